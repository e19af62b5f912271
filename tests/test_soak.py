"""benchmarks/soak.py at a small size: a cluster of three nodes, a driver killed, a node removed, the same bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "soak.py"

pytestmark = pytest.mark.slow


def test_a_build_that_is_killed_twice_on_three_nodes(tmp_path: Path, model_dir: Path) -> None:
    result = tmp_path / "soak.json"
    size = ("--rows", "5000", "--media", "500", "--shard-size", "200000", "--store-seconds", "4")
    done = subprocess.run(
        [sys.executable, SCRIPT, "--model", model_dir, *size, "--folder", tmp_path, "--result", result],
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(result.read_text())
    assert facts["equal_bytes"] and facts["rows_packed"] == 5000
    undisturbed, killed = facts["rows"]
    assert undisturbed["shards"] == killed["shards"] > 30
    # Tasks and receipts are some kB each, and whole MiB are all that `ray memory` tells.
    assert max(line["object_store_peak_mib"] for line in facts["rows"]) < 4
    # A worker of a short build still warms up: measured 1.08. The full size says whether memory grows.
    assert undisturbed["driver_last_to_first_third"] < 1.2 and undisturbed["worker_last_to_first_third"] < 1.5
