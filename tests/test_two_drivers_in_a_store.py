"""Runs in one folder of an object store, played through request by request (tests/chaos_store.py): whatever stops, dies
and wakes, what the manifest names is one dataset, whole.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from omniprep import io
from omniprep.compiler.output import lease
from omniprep.compiler.repack import repack
from omniprep.data.dataset import PackedDataset
from omniprep.errors import OmniprepError
from omniprep.progress import QuietReporter
from omniprep.verify.files import check_rows, check_shards
from tests.chaos_store import ChaosStore, KilledError, Play, Run
from tests.reliability import command, make_chats

OUT = "chaos://lake/out"
SIZES = {1: 1_000, 2: 15_000}
LONG = 10_000.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, omniprep) -> Path:
    folder = tmp_path_factory.mktemp("source")
    done = omniprep(*command(make_chats(folder / "in", rows=24), model_dir, folder / "out"))
    assert done.code == 0, done.err
    return folder / "out"


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[bytes]]:
    """Shards in order and tables of undisturbed runs, by seed."""
    folder = tmp_path_factory.mktemp("expected")
    for seed in SIZES:
        run(source, str(folder / str(seed)), seed)
    return {seed: content(str(folder / str(seed))) for seed in SIZES}


def run(source: Path, out: str, seed: int, overwrite: bool = False) -> None:
    quiet = QuietReporter(open("/dev/null", "w"))
    repack([str(source)], out, 256, quiet, seed=seed, shard_size=SIZES[seed], overwrite=overwrite)


def content(out: str) -> list[bytes]:
    manifest = json.loads(io.read_bytes(f"{out}/manifest.json"))
    names = [*(shard["path"] for shard in manifest["shards"]), "index.parquet", "rows.parquet", "rejected.jsonl"]
    return [io.read_bytes(f"{out}/{name}") for name in names]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The store under chaos://, and the time and the machine of the run whose thread asks."""
    fsspec.register_implementation("chaos", ChaosStore, clobber=True)

    def machine() -> dict[str, Any]:
        run = Play.current.run
        name = run.name if run else "onlooker"
        return {"host": name, "boot": name, "pidns": name, "pid": 1, "started": 1}

    clock = SimpleNamespace(
        time=lambda: Play.current.now + (Play.current.run.clock if Play.current.run else 0),
        monotonic=lambda: Play.current.now,
        sleep=lambda seconds: Play.current.pause(seconds),
    )

    class Held(lease.Lease):
        """Signs of life come when the play says so."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            run = Play.current.run
            if run is not None:
                run.lease, run.beaten = self, Play.current.now

        def release(self) -> None:
            run = Play.current.run
            if run is not None:
                run.lease = None
                if run.dead:
                    raise KilledError
            super().release()

    monkeypatch.setattr(lease, "time", clock)
    monkeypatch.setattr(lease, "process_identity", machine)
    monkeypatch.setattr(lease, "Lease", Held)
    pause = Play.pause

    def beating(play: Play, seconds: float = 0.0) -> None:
        """Before a request of a run whose sign of life is due, that is given."""
        pause(play, seconds)
        run = play.run
        if run is not None and run.lease is not None and play.now - run.beaten > lease.BEAT:
            held, run.lease = run.lease, None  # its own requests do not come here again
            try:
                held.beat()
            except OmniprepError:
                held = None
            run.lease, run.beaten = held, play.now

    monkeypatch.setattr(Play, "pause", beating)
    yield
    Play.current.end()


def whole(expected: dict[int, list[bytes]]) -> int | None:
    """Which dataset the store holds; None where there is no manifest. Looks past all delays."""
    if not io.exists(f"{OUT}/manifest.json"):
        return None
    dataset = PackedDataset(OUT, verify="never")
    assert [*check_shards(dataset), *check_rows(dataset)] == []
    seed: int = dataset.manifest["config"]["seed"]
    assert content(OUT) == expected[seed]
    return seed


def act(play: Play, source: Path, expected: dict[int, list[bytes]]) -> None:
    """Random acts until every run has ended, at most five runs."""
    rng, started = play.rng, 0
    while play.awake() or play.stopped() or started < 2:
        dice = rng.random()
        if started < 5 and (dice < 0.02 or not play.awake()) and (started < 2 or rng.random() < 0.7):
            seed, overwrite = rng.choice([1, 2]), rng.random() < 0.5
            clock = rng.choice([0.0, 0.0, 1e6, -1e6])
            name = f"run {started}: seed {seed}{', overwrite' * overwrite}"
            play.start(Run(name, lambda s=seed, o=overwrite: run(source, OUT, s, o), clock))  # type: ignore[misc]
            started += 1
        elif play.stopped() and (dice < 0.04 or not play.awake()):
            woken = rng.choice(play.stopped())
            woken.wakes, woken.dead = play.now, rng.random() < 0.2
        elif dice < 0.08 and play.awake():
            asleep = rng.choice(play.awake())
            if rng.random() < 0.6:
                asleep.wakes = float("inf")
                play.now += rng.choice([0.0, 50.0, LONG])
            else:
                asleep.dead = True
        elif play.awake():
            play.go(rng.choice(play.awake()))
        for ended in [r for r in play.runs if r.done and r.error is not None]:
            assert isinstance(ended.error, OmniprepError | KilledError), (ended.name, ended.error)
            assert "defect" not in str(ended.error), (ended.name, ended.error)


def finish(play: Play, source: Path, expected: dict[int, list[bytes]]) -> int:
    """After long: the same command again finishes what was last, and the other one is refused."""
    play.now += LONG
    ended = {}
    for seed in SIZES:
        last = Run(f"last: seed {seed}", lambda s=seed: run(source, OUT, s), 0.0)  # type: ignore[misc]
        play.start(last)
        while not last.done:
            play.go(last)
        play.now += LONG
        ended[seed] = last.error
    done = [seed for seed, error in ended.items() if error is None]
    assert len(done) == 1, ended
    assert all("other options" in str(error) for error in ended.values() if error is not None), ended
    assert whole(expected) == done[0]
    assert not io.exists(f"{OUT}/lease.json")
    named = {shard["path"].split("/")[1] for shard in json.loads(io.read_bytes(f"{OUT}/manifest.json"))["shards"]}
    assert named <= set(io.list_folder(f"{OUT}/shards"))
    return done[0]


@pytest.mark.parametrize(
    "seeds", [range(10), pytest.param(range(10, 200), marks=pytest.mark.slow)], ids=["some", "all"]
)  # fmt: skip
@pytest.mark.parametrize("delay", [0.0, 20.0], ids=["at once", "late"])
def test_two_hundred_random_plays(stage, source: Path, expected, seeds: range, delay: float) -> None:
    requests = 0
    for seed in seeds:
        play = Play(random.Random(seed), delay, conditions=True)
        try:
            act(play, source, expected)
            whole(expected)
            finish(play, source, expected)
        except AssertionError as error:
            raise AssertionError(f"play {seed}: {error}") from error
        finally:
            play.end()
        requests += play.requests
    assert requests > 100 * len(seeds)


KEPT = ("manifest.json", "index.parquet", "rows.parquet", "rejected.jsonl")


@pytest.mark.parametrize("conditions", [True, False], ids=["conditions", "create alone"])
@pytest.mark.parametrize(
    "begun", ["new", *(pytest.param(name, marks=pytest.mark.slow) for name in ("over another", "over B's own"))]
)
def test_a_run_that_slept_before_any_request(stage, source: Path, expected, conditions: bool, begun: str) -> None:
    """A sleeps before its n-th request, B begins anew and finishes, A wakes: what B wrote stays.

    Where the store takes no conditions to remove (or cannot tell B's file from the one before, which had the same
    bytes), a run that begins anew itself and sleeps between its look at the lease and the request that removes one of
    the old results removes the new one: B's command, again, writes it. Nothing is ever mixed.
    """
    overwrite, lost, woken = begun != "new", 0, 0
    for at in range(1, 10_000):
        play = Play(random.Random(at), 0.0, conditions)
        if overwrite:
            run(source, OUT, 1 if begun == "over another" else 2)
        old = {path: play.latest(path) for path in play.history}
        a = Run("a", lambda: run(source, OUT, 1, overwrite), 0.0)
        play.start(a)
        for _ in range(at):
            if not a.done:
                play.go(a)
        if a.done:
            break
        if a.lease is None:  # not yet, or no more: when it wakes it begins as any other run
            play.end()
            continue
        was_done = whole(expected) == 1
        a.wakes = float("inf")
        play.now += LONG
        b = Run("b", lambda: run(source, OUT, 2, True), 0.0)
        play.start(b)
        while not b.done:
            play.go(b)
        assert b.error is None and whole(expected) == 2, (at, b.error)
        before = {path: play.latest(path) for path in play.history}
        a.wakes = play.now
        while not a.done:
            play.go(a)
        changed = {path.split("out/")[1] for path in play.history if play.latest(path) != before.get(path)}
        changed.discard("lease.json")
        assert a.error is not None or was_done, at
        if changed & set(KEPT):
            (name,) = changed
            path = f"lake/out/{name}"
            assert overwrite and play.latest(path) is None, (at, name)
            assert not conditions or before[path] == old[path], (at, name)
            lost += 1
            again = Run("b again", lambda: run(source, OUT, 2), 0.0)
            play.start(again)
            while not again.done:
                play.go(again)
            assert again.error is None, (at, again.error)
        assert whole(expected) == 2, (at, changed)
        woken += 1
        play.end()
    assert woken > 50
    assert lost <= len(KEPT) if overwrite else not lost
