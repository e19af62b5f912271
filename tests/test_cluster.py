"""A Ray cluster of three nodes on this machine: the bytes of one process, also when a node is lost; rows of 200 MB in
bounded memory."""

import base64
import io as _io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.reliability import command, in_fork, make_chats, outcome, run_cli, wait_for, warm

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    nodes = [made.add_node(num_cpus=1, object_store_memory=100 << 20) for _ in range(2)]
    yield made, nodes
    made.shutdown()


def test_three_nodes_and_the_loss_of_one(tmp_path: Path, model_dir: Path, cluster) -> None:
    made, nodes = cluster
    warm(model_dir)
    inputs = make_chats(tmp_path / "in", rows=60, files=6)
    log = tmp_path / "log"
    assert wait_for(in_fork(lambda: run_cli(command(inputs, model_dir, tmp_path / "here")), log)) == 0, log.read_text()
    expected = outcome(tmp_path / "here")
    on_ray = ("--workers", 3, "--ray-address", made.address)

    args = command(inputs, model_dir, tmp_path / "three", *on_ray)
    assert wait_for(in_fork(lambda: run_cli(args), log), 600) == 0, log.read_text()[-3000:]
    assert outcome(tmp_path / "three") == expected

    def lose() -> None:
        while not list((tmp_path / "two").glob("plan/split-*.json")):
            time.sleep(0.2)
        made.remove_node(nodes[0], allow_graceful=False)

    threading.Thread(target=lose, daemon=True).start()
    args = command(inputs, model_dir, tmp_path / "two", *on_ray)
    assert wait_for(in_fork(lambda: run_cli(args), log), 600) == 0, log.read_text()[-3000:]
    assert outcome(tmp_path / "two") == expected


def test_rows_of_200_mb(tmp_path: Path, model_dir: Path) -> None:
    """A 147 MB picture inline in each of four rows. The goal is 1.5 GiB; 1.9 GiB is what it takes now (text, bytes,
    pixels)."""
    rng = np.random.default_rng(0)
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for _ in range(4):
            data = _io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (7000, 7000, 3), dtype=np.uint8)).save(data, "BMP")
            text = base64.b64encode(data.getvalue()).decode()
            row = {
                "messages": [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "noise"}],
                "images": ["data:image/bmp;base64," + text],
            }
            file.write(json.dumps(row) + "\n")
    args = command([path], model_dir, tmp_path / "out", "--bin-length", 4096, "--max-pixels", 1_000_000)
    # A process of its own: a forked one would begin with what this one holds.
    with (tmp_path / "log").open("w") as log:
        build = subprocess.Popen([sys.executable, "-m", "omniprep", *args], stdout=log, stderr=log)
        _, status, usage = os.wait4(build.pid, 0)
    assert status == 0, (tmp_path / "log").read_text()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]["rows"]["packed"] == 4
    print(f"largest resident size: {usage.ru_maxrss >> 10} MiB")
    assert usage.ru_maxrss < 2100 << 10, usage.ru_maxrss
