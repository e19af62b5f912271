"""`--workers auto`: how many CPUs there are, when Ray is worth its start, and the same bytes whatever is chosen."""

import json
import math
import os
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from omniprep.cli.options import make_config
from omniprep.compiler.plan.work import plan_seconds
from omniprep.compiler.run import cluster, machine
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, UsageError
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import find_splits
from tests.reliability import command, make_chats, outcome

CPUS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/", {}, math.inf),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/", {"cpu.max": "250000 100000"}, 2.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "150000 100000"}, 0.5),
        ("0::/not/mounted/here", {"cpu.max": "300000 100000"}, 3.0),
        ("0::/../outside", {"cpu.max": "300000 100000"}, 3.0),
        ("5:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000"}, 4.0),
        ("5:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("5:memory:/a", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
    ],
)
def test_cpus_of_a_control_group(tmp_path: Path, monkeypatch, own: str, files: dict[str, str], quota: float) -> None:
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "own").write_text(own + "\n")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN_CGROUP", tmp_path / "own")
    assert machine._cgroup_quota() == quota
    assert machine.available_cpus() == max(1, min(CPUS, math.floor(min(quota, CPUS))))


def test_cpus_of_a_process_held_to_one() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
    code += "from omniprep.compiler.run.machine import available_cpus; print(available_cpus())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "1"


@pytest.fixture
def ray_of(monkeypatch):
    """Stands for Ray: `started` has the CPUs with which it was started, a cluster has 40 CPUs."""
    started: list[int] = []

    def start(workers: int) -> None:
        started.append(workers)
        assert cluster._session is not None
        cluster._session.ours = True

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "start_ray", start)
    monkeypatch.setattr(cluster, "available_cpus", lambda: 8)
    monkeypatch.setattr(cluster, "cluster_cpus", lambda: 40 if cluster._session.address else started[0])
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(shutdown=lambda: None, is_initialized=lambda: False))
    return started


@pytest.mark.parametrize(
    ("address", "seconds", "workers"),
    [
        (None, [], 0),
        (None, [0.1] * 40, 0),
        (None, [11.0], 0),  # one task gains nothing
        (None, [2.0] * 4, 0),  # 8 s are less than Ray takes to start
        (None, [2.0] * 8, 8),  # 16 s, or 10 and 2
        (None, [61.0], 8),  # long: a decoder that dies should cost a row
        ("10.0.0.1:6379", [0.1], 40),  # a cluster that the user named is used
    ],
)
def test_when_ray_is_worth_its_start(ray_of, address: str | None, seconds: list[float], workers: int) -> None:
    with cluster.ray_session("auto", address):
        assert cluster.count_workers("auto", seconds) == workers
        assert bool(ray_of) == bool(workers)
        if workers:  # once Ray is there, the next stage uses it
            assert cluster.count_workers("auto", [0.1]) == workers


@pytest.mark.parametrize(("seconds", "workers"), [([0.1] * 9, 0), ([5.0] * 9, 40)])
def test_the_cluster_of_the_environment(ray_of, monkeypatch, seconds: list[float], workers: int) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with cluster.ray_session("auto", None):
        assert cluster.count_workers("auto", seconds) == workers


def test_a_number_is_taken_as_it_is(ray_of) -> None:
    with cluster.ray_session(3, None):
        assert cluster.count_workers(3, [0.1]) == 3 and cluster.count_workers(3, []) == 0
    assert cluster.count_workers(0, [1e6]) == 0 and not ray_of


def test_on_the_command_line_and_in_yaml(tmp_path: Path, omniprep) -> None:
    path = tmp_path / "c.yaml"
    for text, value in (("auto", "auto"), ("0", 0), ("16", 16)):
        path.write_text(f"workers: {text}\n")
        assert make_config(BuildConfig, {}, str(path)).workers == value
    for text in ("many", "2.5", "[1]", "''"):
        path.write_text(f"workers: {text}\n")
        with pytest.raises(UsageError, match="workers"):
            make_config(BuildConfig, {}, str(path))
    assert BuildConfig().workers == "auto"
    for text in ("many", "-1", "1.5"):
        result = omniprep("build", "x.jsonl", "--model", "m", "--bin-length", 8, "--out", "o", "--workers", text)
        assert result.code == 2 and "--workers" in result.err
    with pytest.raises(UsageError, match="--workers"):
        BuildConfig(workers="four")  # type: ignore[arg-type]


def test_seconds_that_planning_takes(tmp_path: Path) -> None:
    """Rows with media take longer than text, and what a compressed file holds is more than its bytes."""
    text = json.dumps({"messages": [{"role": "user", "content": "word " * 100}]}) + "\n"
    picture = json.dumps({"messages": [{"role": "user", "content": "<image>what?"}], "images": ["a.jpg"]}) + "\n"
    (tmp_path / "text.jsonl").write_text(text * 1000)
    (tmp_path / "pictures.jsonl").write_text(picture * 1000)
    splits = {name: find_splits(find_inputs((str(tmp_path / f"{name}.jsonl"),))) for name in ("text", "pictures")}
    facts = [{"source": str(path), "bytes": path.stat().st_size} for path in tmp_path.iterdir()]
    seconds = {name: sum(plan_seconds(parts, facts)) for name, parts in splits.items()}
    assert 0.05 < seconds["text"] < 0.5 and 0.5 < seconds["pictures"] < 3


def run(args: list[str], prelude: str = "") -> str:
    """Run a command line in a process of its own; returns what it wrote at last: the names of big modules it has."""
    code = f"{prelude}\nimport sys; from omniprep.cli.main import run; code = run(sys.argv[1:]);"
    code += "print([name for name in ('ray',) if name in sys.modules]); raise SystemExit(code)"
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_a_small_build_starts_no_ray_and_has_the_bytes_of_one_process(tmp_path: Path, model_dir: Path) -> None:
    inputs = make_chats(tmp_path / "in", rows=12)
    for name in ("0", "auto"):
        args = command(inputs, model_dir, tmp_path / name, "--workers", name)
        assert run(args) == "[]"
    assert outcome(tmp_path / "auto") == outcome(tmp_path / "0")


@pytest.mark.slow
def test_a_large_build_runs_on_ray_and_has_the_same_bytes(tmp_path: Path, model_dir: Path) -> None:
    """What is large is made small here: every stage is worth Ray."""
    inputs = make_chats(tmp_path / "in", rows=40, files=4)
    run(command(inputs, model_dir, tmp_path / "0"))
    prelude = "import omniprep.compiler.run.cluster as cluster; cluster.START_SECONDS = cluster.LONG_SECONDS = 0.0"
    assert run(command(inputs, model_dir, tmp_path / "auto", "--workers", "auto"), prelude) == "['ray']"
    assert outcome(tmp_path / "auto") == outcome(tmp_path / "0")


def test_an_address_that_nobody_answers_is_one_line(tmp_path: Path, model_dir: Path, omniprep) -> None:
    inputs = make_chats(tmp_path / "in", rows=2, files=1)
    for workers in ("auto", 2):
        args = command(inputs, model_dir, tmp_path / "out", "--workers", workers, "--ray-address", "127.0.0.1:1")
        result = omniprep(*args)
        last = result.err.strip().splitlines()[-1]
        assert result.code == 1 and "Ray cannot be reached at 127.0.0.1:1" in last and "Traceback" not in result.err
    result = omniprep(*command(inputs, model_dir, tmp_path / "out", "--workers", 1, "--ray-address", "nonsense"))
    assert result.code == 1 and "nonsense" in result.err.strip().splitlines()[-1]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["web", "closed"])
def test_an_address_that_is_no_ray_head_is_one_line(answer: bytes) -> None:
    """The dashboard's port, say: Ray would try it for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 10)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OmniprepError, match=f"{address}: what answers there is no Ray head"):
            cluster._reach(address)
        thread.join()


def test_an_address_that_says_nothing_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr(cluster, "REACH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OmniprepError, match=f"cannot be reached at {address}: timed out"):
            cluster._reach(address)


class TestUnmetDemand:
    """Tasks that no node could run are named, and end the build where none comes."""

    @pytest.fixture
    def nodes(self, monkeypatch) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(nodes=lambda: found))
        return found

    @staticmethod
    def node(cpus: float, gib: float, *, alive: bool = True) -> dict[str, object]:
        return {"Alive": alive, "Resources": {"CPU": cpus, "memory": gib * 2**30} if cpus else {"memory": gib * 2**30}}

    def test_what_fits_is_not_told(self, nodes) -> None:
        told: list[str] = []
        nodes += [self.node(0, 64), self.node(4, 8)]
        cluster.UnmetDemand(told.append).check([2 << 30, 8 << 30])
        assert told == []

    @pytest.mark.parametrize(
        ("there", "said"),
        [([], "none has a CPU"), ([(0, 64)], "none has a CPU"), ([(4, 2), (1, 3)], "the largest has 3.0 GiB")],
    )
    def test_what_fits_nowhere_is_told_once_a_minute(self, nodes, monkeypatch, there, said: str) -> None:
        told: list[str] = []
        nodes += [self.node(*size) for size in there] + [self.node(64, 512, alive=False)]
        unmet = cluster.UnmetDemand(told.append)
        unmet.check([4 << 30])
        unmet.check([4 << 30])
        assert len(told) == 1 and "1 CPU and 4.0 GiB" in told[0] and said in told[0]
        monkeypatch.setattr(cluster, "REMIND_SECONDS", 0.0)
        unmet.check([4 << 30])
        assert len(told) == 2

    def test_a_build_of_which_nothing_can_run_ends(self, nodes, monkeypatch) -> None:
        monkeypatch.setattr(cluster, "PATIENCE_SECONDS", -1.0)
        nodes.append(self.node(4, 2))
        unmet = cluster.UnmetDemand(lambda text: None)
        with pytest.raises(OmniprepError, match="1 CPU and 4.0 GiB"):
            unmet.check([4 << 30])

    def test_a_node_that_comes_begins_the_wait_anew(self, nodes, monkeypatch) -> None:
        unmet = cluster.UnmetDemand(lambda text: None)
        unmet.check([4 << 30])
        nodes.append(self.node(4, 8))
        unmet.check([4 << 30])
        assert unmet._since is None
