"""What ends a build without being a fault of a row: an exception that nothing expects, state that was cut or changed, a
disk that is full at one file. One line says so, what is finished stays, and the same command ends with the same bytes.
"""

import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniprep import io
from omniprep.compiler.encode.shard_task import EncodeTask
from omniprep.compiler.output.paths import plan_path
from omniprep.compiler.plan.file import read_facts, read_rejects
from omniprep.compiler.plan.reader import PlanReader
from omniprep.compiler.plan.split_task import PlanTask
from omniprep.compiler.run.tasks import read_receipt
from omniprep.errors import DamagedDataError, OmniprepError
from tests.reliability import command, in_fork, make_chats, outcome, run_cli, wait_for, warm


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> tuple[list[Path], Path]:
    """Inputs, and a build of them that nothing disturbed."""
    folder = tmp_path_factory.mktemp("built")
    warm(model_dir)
    inputs = make_chats(folder / "in", rows=30)
    assert wait_for(in_fork(lambda: run_cli(command(inputs, model_dir, folder / "out")), folder / "log")) == 0
    return inputs, folder / "out"


def run(args: list[str], log: Path, before: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Exit status of a build in a process of its own, and what it said."""
    log.unlink(missing_ok=True)

    def work() -> int:
        before()
        return run_cli(args)

    return wait_for(in_fork(work, log)), log.read_text()


def times(out: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in [*out.glob("receipts/*"), *out.glob("plan/split-*.json")]}


def fail_at(module: str, name: str, call: int) -> None:
    """The `call`-th call of a function raises what nobody expects."""
    import importlib

    owner, calls = importlib.import_module(module), 0
    real = getattr(owner, name)

    def failing(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise RuntimeError("the moon\nis full")
        return real(*args, **more)

    setattr(owner, name, failing)


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        ("omniprep.compiler.plan.split_task", "to_batch", 2),
        ("omniprep.compiler.encode.shard_task", "report_progress", 3),
        ("omniprep.compiler.build", "assign_bins", 1),
        ("omniprep.compiler.output.manifest", "write_rows", 1),
    ],
    ids=["plan", "encode", "pack", "finish"],
)
def test_an_exception_that_nothing_expects(tmp_path: Path, model_dir: Path, built, module, name, call) -> None:
    args, log = command(built[0], model_dir, tmp_path / "out"), tmp_path / "log"
    status, said = run(args, log, lambda: fail_at(module, name, call))
    last = said.strip().splitlines()[-1]
    assert status == 1 and "Traceback" not in said, said
    assert "RuntimeError at test_driver_faults.py" in last and "the moon is full. This is a defect" in last
    done = times(tmp_path / "out")
    assert done and not list((tmp_path / "out").rglob("*.tmp")) and not (tmp_path / "out" / "lease.json").exists()
    assert run(args, log)[0] == 0, log.read_text()
    assert done.items() <= times(tmp_path / "out").items(), "what was finished is done again"
    assert outcome(tmp_path / "out") == outcome(built[1])


@pytest.mark.slow
def test_an_exception_that_nothing_expects_on_ray(tmp_path: Path, model_dir: Path, built) -> None:
    plugin = tmp_path / "boom.py"
    plugin.write_text(
        "import omniprep.compiler.encode.shard_task as encoding\n"
        "def boom(*args, **more): raise RuntimeError('the moon is full')\n"
        "encoding.report_progress = boom\n"
    )
    args = command(built[0], model_dir, tmp_path / "out", "--workers", 1, "--plugin", plugin)
    status, said = run([*args], tmp_path / "log")
    last = said.strip().splitlines()[-1]
    assert status == 1 and "Traceback" not in said, said
    assert "RuntimeError" in last and "the moon is full. This is a defect" in last


@pytest.mark.parametrize("content", [b'{"bins": [{', b'{"path": 1, "rows": []}'], ids=["cut", "another"])
def test_receipts_that_are_none(tmp_path: Path, model_dir: Path, built, content: bytes) -> None:
    """Cut, or of another shape: their task is done again."""
    args, out, log = command(built[0], model_dir, tmp_path / "out"), tmp_path / "out", tmp_path / "log"
    assert run(args, log)[0] == 0
    (out / "manifest.json").unlink()
    for path in (out / "receipts" / "00001.json", out / "plan" / "split-000000.json"):
        path.write_bytes(content)
    assert run(args, log)[0] == 0, log.read_text()
    assert outcome(out) == outcome(built[1])


def plan_task(out: Path | str, number: int) -> PlanTask:
    """A task of which only the receipt is read."""
    return PlanTask(number=number, out=str(out), split=None, spec=None, config=None)  # type: ignore[arg-type]


def shard_task(out: Path | str, number: int) -> EncodeTask:
    """The same for a shard."""
    fields = dict.fromkeys(("shard", "run_id", "spec", "config"))
    return EncodeTask(number=number, out=str(out), **fields)  # type: ignore[arg-type]


CONTENT = [b"", b"{", b"[]", b"null", b"7", b"{}", b'{"path": 1}', b"\xff\xfe", b'{"bins": [{}]}']


@pytest.mark.parametrize("name", ["rows", "chunks", "codes", "bytes", "seconds", "bins", "sha256", "rejects", "unread"])
def test_receipts_with_a_field_that_is_wrong(tmp_path: Path, built, name: str) -> None:
    out = tmp_path / "out"
    io.make_folder(str(out / "plan"))
    for kind in ("plan", "receipts", "shards"):
        (out / kind).mkdir(exist_ok=True)
        for path in (built[1] / kind).iterdir():
            (out / kind / path.name).write_bytes(path.read_bytes())
    for task in (plan_task(out, 0), shard_task(out, 1)):
        receipt = read_receipt(task)
        assert receipt is not None
        if name not in receipt:
            continue
        for wrong in (None, "x", [None], {"a": 1}, -1, 1e300):
            if wrong == receipt[name] or (name == "seconds" and isinstance(wrong, int | float)):
                continue
            Path(task.receipt_path).write_text(json.dumps({**receipt, name: wrong}))
            assert read_receipt(task) is None, (name, wrong)
        Path(task.receipt_path).write_text(json.dumps({k: v for k, v in receipt.items() if k != name}))
        assert read_receipt(task) is None
        for content in CONTENT:
            Path(task.receipt_path).write_bytes(content)
            assert read_receipt(task) is None


def test_plans_that_were_cut_or_changed(tmp_path: Path, model_dir: Path, built) -> None:
    args, out, log = command(built[0], model_dir, tmp_path / "out"), tmp_path / "out", tmp_path / "log"
    assert run(args, log)[0] == 0
    plan = out / "plan" / "split-000001.arrow"
    good, done = plan.read_bytes(), times(out)
    (out / "manifest.json").unlink()
    plan.write_bytes(good[: len(good) // 2])  # its receipt has another size: planned again
    assert run(args, log)[0] == 0, log.read_text()
    assert outcome(out) == outcome(built[1])
    (out / "manifest.json").unlink()
    plan.write_bytes(good[:8] + bytes(len(good) - 8))
    status, said = run(args, log)
    last = said.strip().splitlines()[-1]
    assert status == 1 and f"{plan}: the plan cannot be read" in last and "Traceback" not in said, said
    plan.unlink()  # as the message says
    assert run(args, log)[0] == 0, log.read_text()
    assert outcome(out) == outcome(built[1])
    kept = {name: time for name, time in done.items() if name != "split-000001.json"}
    assert kept.items() <= times(out).items(), "shards are kept"


@pytest.mark.parametrize("name", ["plan/build.json", "plan/plan.json", "manifest.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 100_000], ids=["cut", "list", "deep"])
def test_state_that_was_cut(tmp_path: Path, model_dir: Path, built, name: str, content: bytes) -> None:
    args, out, log = command(built[0], model_dir, tmp_path / "out"), tmp_path / "out", tmp_path / "log"
    assert run(args, log)[0] == 0
    if name != "manifest.json":
        (out / "manifest.json").unlink()
    (out / name).write_bytes(content)
    status, said = run(args, log)
    assert status == 1 and name in said.strip().splitlines()[-1] and "Traceback" not in said, said
    assert run([*args, "--overwrite"], log)[0] == 0, log.read_text()
    assert outcome(out) == outcome(built[1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("config", []), ("config", None), ("versions", {"torch": 2}), ("inputs", [{"source": {}}]), ("inputs", [3]),
        ("generation", "../../x"), ("tokenizer_sha256", 7), ("command", []),
    ],
)  # fmt: skip
def test_state_of_other_types_is_damaged(tmp_path: Path, model_dir: Path, built, field: str, value: object) -> None:
    """The folder may have come from anybody; its generation is a part of file names."""
    args, out = command(built[0], model_dir, tmp_path / "out"), tmp_path / "out"
    (out / "plan").mkdir(parents=True)
    state = json.loads((built[1] / "plan" / "build.json").read_text()) | {field: value}
    (out / "plan" / "build.json").write_text(json.dumps(state))
    status, said = run(args, tmp_path / "log")
    last = said.strip().splitlines()[-1]
    assert status == 1 and "plan/build.json" in last and field in last and "--overwrite" in last, said


@pytest.mark.parametrize("name", ["plan", "shards", "receipts"])
def test_a_folder_that_is_a_link_is_not_worked_in(tmp_path: Path, model_dir: Path, built, name: str) -> None:
    """--overwrite removed leftovers and files of our names in the folder that the link points to."""
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    files = ("x.tmp", "00000.arrow", "00000.json", "build.json")
    for file in files:
        (outside / file).write_text("mine")
    out.mkdir()
    (out / "manifest.json").write_text((built[1] / "manifest.json").read_text())
    (out / name).symlink_to(outside)
    status, said = run([*command(built[0], model_dir, out), "--overwrite"], tmp_path / "log")
    assert status == 1 and f"{out / name}: a symbolic link" in said.strip().splitlines()[-1], said
    assert {path.name: path.read_text() for path in outside.iterdir()} == dict.fromkeys(files, "mine")


def test_a_manifest_that_is_none_makes_no_folder_ours(tmp_path: Path, model_dir: Path, built) -> None:
    """--overwrite looks at it first; nested deeper than Python reads, it ended as a defect."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_bytes(b"[" * 100_000)
    status, said = run([*command(built[0], model_dir, out), "--overwrite"], tmp_path / "log")
    assert status == 1 and "the folder is not empty (manifest.json)" in said.strip().splitlines()[-1], said
    assert (out / "manifest.json").read_bytes() == b"[" * 100_000


FILES = [
    "lease.json", "split-000001.arrow", "plan.json", "encode-000001.begun", "00001.json", "rows.parquet",
    "manifest.json",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "build.json", "plan-000000.begun", "split-000001.json", "placement.arrow", "00001.arrow", "index.parquet",
            "rejected.jsonl",
        )
    ),
]  # fmt: skip


def full_at(name: str) -> None:
    """A disk on which there is room for everything but one file."""
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if str(target).endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        real(source, target)

    def link(source: Any, target: Any) -> None:  # the lease appears so
        if str(target).endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        real_link(source, target)

    def opened(path: Any, flags: int, *args: Any, **more: Any) -> int:
        if str(path).endswith(name) and flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real_open(path, flags, *args, **more)

    real_open, real_link = os.open, os.link
    os.replace, os.open, os.link = replace, opened, link


@pytest.mark.parametrize("name", FILES)
def test_a_disk_that_is_full_at_any_file(tmp_path: Path, model_dir: Path, built, name: str) -> None:
    args, out, log = command(built[0], model_dir, tmp_path / "out"), tmp_path / "out", tmp_path / "log"
    status, said = run(args, log, lambda: full_at(name))
    last = said.strip().splitlines()[-1]
    assert status == 1 and "no space is left" in last and str(out) in last and "Traceback" not in said, said
    assert not list(out.rglob("*.tmp")) and not (out / "manifest.json").exists()
    done = times(out)
    assert run(args, log)[0] == 0, log.read_text()
    assert done.items() <= times(out).items()
    assert outcome(out) == outcome(built[1])


def mangle(data: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut off, or taken from elsewhere."""
    mangled = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(mangled))
        what = rng.randrange(4)
        if what == 0:
            mangled[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            mangled[at : at + 8] = rng.choice([bytes(8), b"\xff" * 8, (1 << 62).to_bytes(8, "little")])
        elif what == 2:
            del mangled[at : at + rng.randint(1, 64)]
        else:
            other = rng.randrange(len(mangled))
            mangled[at : at + 16] = mangled[other : other + 16]
        if not mangled:
            return b"\0"
    return bytes(mangled)


def read_everything(out: str, rows: int) -> None:
    """All that a build reads of a plan; whatever is wrong with it is a DamagedDataError."""
    try:
        read_facts(plan_path(out, 0, ".arrow"))
        list(read_rejects(plan_path(out, 0, ".arrow")))
        reader = PlanReader(out)
        for number in range(rows):
            reader.read(0, number)
    except DamagedDataError as error:
        assert "plan" in str(error)


def fuzz_plans(out: Path, good: dict[str, bytes], seed: int) -> None:
    rng = random.Random(seed)
    for name, data in good.items():
        (out / "plan" / name).write_bytes(mangle(data, rng) if rng.random() < 0.6 else data)
    receipt = read_receipt(plan_task(out, 0))
    assert receipt is None or isinstance(receipt["rows"], int)
    read_everything(str(out), 20)


@pytest.fixture
def plan_copy(built, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    names = ("split-000000.arrow", "split-000000.json")
    (tmp_path / "plan").mkdir()
    return tmp_path, {name: (built[1] / "plan" / name).read_bytes() for name in names}


def test_mangled_plans_are_told(plan_copy) -> None:
    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, 1 << 32))
    def fuzz(seed: int) -> None:
        fuzz_plans(*plan_copy, seed)

    fuzz()


@pytest.mark.slow
def test_more_mangled_plans_are_told(plan_copy) -> None:
    for seed in range(20_000):
        fuzz_plans(*plan_copy, seed)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["path", "bytes", "sha256", "bins", "rejects", "seconds", "rows"]), JSON))
@settings(max_examples=300, deadline=None)
def test_receipts_of_any_content(given: dict[str, Any]) -> None:
    task = shard_task("memory://receipts", 0)
    io.write_atomic(task.receipt_path, json.dumps(given).encode(errors="surrogatepass"))
    assert read_receipt(task) is None


def test_an_input_in_out_is_refused(tmp_path: Path, model_dir: Path, built, omniprep) -> None:
    """rejected.jsonl of a dataset, built anew into the dataset with --overwrite, would be gone before it is read."""
    args = command([built[1] / "rejected.jsonl"], model_dir, built[1], "--overwrite")
    before = outcome(built[1])
    (built[1] / "rejected.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    try:
        done = omniprep(*args)
        assert done.code == 2 and "this input lies in --out" in done.err
    finally:
        (built[1] / "rejected.jsonl").write_text("")
    assert outcome(built[1]) == before


def test_the_line_of_an_unforeseen_error_is_one_line(tmp_path: Path) -> None:
    from omniprep.compiler.output.folder import os_errors_as_one_line

    with pytest.raises(OmniprepError) as caught, os_errors_as_one_line("out"):
        raise ZeroDivisionError("a\nb")
    assert "\n" not in str(caught.value) and "ZeroDivisionError" in str(caught.value)
    with pytest.raises(OmniprepError, match="memory ran out"), os_errors_as_one_line("out"):
        raise MemoryError
