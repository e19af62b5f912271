"""A Ray cluster of three nodes on this machine: the bytes of one process, also when a node is lost in the middle."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.reliability import command, make_chats, outcome

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    nodes = [made.add_node(num_cpus=1, object_store_memory=100 << 20) for _ in range(2)]
    yield made, nodes
    made.shutdown()


def build(args: list[str], log: Path) -> None:
    """A process of its own: Ray, which this one has started, does not outlive a fork."""
    with log.open("w") as file:
        status = subprocess.run(
            [sys.executable, "-m", "omniprep", *args], stdout=file, stderr=file, timeout=900
        ).returncode
    assert status == 0, log.read_text()[-3000:]


def test_three_nodes_and_the_loss_of_one(tmp_path: Path, model_dir: Path, cluster) -> None:
    made, nodes = cluster
    inputs = make_chats(tmp_path / "in", rows=60, files=6)
    build(command(inputs, model_dir, tmp_path / "here"), tmp_path / "log-here")
    expected = outcome(tmp_path / "here")
    on_ray = ("--workers", 3, "--ray-address", made.address)
    lost = []

    def lose() -> None:
        while not list((tmp_path / "two").glob("plan/split-*.json")):
            time.sleep(0.1)
        made.remove_node(nodes[0], allow_graceful=False)
        lost.append(len(list((tmp_path / "two").glob("receipts/*.json"))))

    thread = threading.Thread(target=lose)
    for name in ("three", "two"):
        if name == "two":
            thread.start()
        build(command(inputs, model_dir, tmp_path / name, *on_ray), tmp_path / f"log-{name}")
        assert outcome(tmp_path / name) == expected, name
    thread.join()
    assert lost == [n for n in lost if n < len(list((tmp_path / "two").glob("receipts/*.json")))], "lost too late"
