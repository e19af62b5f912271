"""benchmarks/gpu.py before it meets a GPU: its arithmetic on made-up traces, and all of it on small sizes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_inputs import SHAPES, picture, write_config, write_rows  # noqa: E402
from gpu_report import Report  # noqa: E402
from gpu_trace import analyze, overlap, tensors, union  # noqa: E402

CUDA, CPU = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU


def trace(*events: tuple[str, int, int], device=CUDA) -> SimpleNamespace:
    """A stopped profile of (name, begin, end) in microseconds."""
    made = [
        SimpleNamespace(
            name=lambda n=name: n,
            start_ns=lambda b=begin: b * 1000,
            duration_ns=lambda d=end - begin: d * 1000,
            device_type=lambda: device,
        )
        for name, begin, end in events
    ]
    results = SimpleNamespace(events=lambda: made)
    return SimpleNamespace(profiler=SimpleNamespace(kineto_results=results))


def test_the_busy_share_counts_kernels_that_run_side_by_side_once():
    found = analyze(trace(("a", 0, 100), ("b", 50, 150), ("a", 200, 400)), 2, torch.device("cuda"))
    assert found["busy"] == pytest.approx(350 / 400)
    assert found["kernels"] == 1.5
    assert found["longest"][0] == {"kernel": "a", "ms": 0.15, "calls": 1.0}
    assert found["gaps_ms"] == {"over_1": 0.0, "0.1_to_1": 0.0, "under_0.1": 0.03}  # 0.05 ms in two steps, rounded


def test_copies_are_told_apart_from_kernels_with_their_overlap():
    found = analyze(trace(("k", 0, 100), ("Memcpy HtoD", 50, 150), ("Memset", 0, 900)), 1, torch.device("cuda"))
    assert found["kernels"] == 1 and found["busy"] == 1.0
    assert found["copies"] == {"Memcpy HtoD": {"ms": 0.1, "number": 1.0, "under_kernels": 0.5}}


def test_events_of_the_host_are_no_kernels_of_the_device():
    assert analyze(trace(("cudaLaunchKernel", 0, 100), device=CPU), 1, torch.device("cuda"))["kernels"] == 0


def test_unions_and_overlaps_of_spans():
    merged = union([(5, 9), (0, 3), (2, 4), (9, 10)])
    assert merged == [[0, 4], [5, 10]]
    assert overlap((3, 6), merged) == 2 and overlap((10, 12), merged) == 0


def test_tensors_of_nested_outputs_are_found():
    a, b, c = (torch.zeros(n) for n in (1, 2, 3))
    assert [len(t) for t in tensors({"a": a, "b": [b, (c, None)]})] == [1, 2, 3]


def test_a_failed_part_is_reported_and_the_others_go_on(tmp_path, capsys):
    report = Report(tmp_path / "result.json", 100.0, {"device": "none"})
    assert report.guard("part", "first", lambda: 1 / 0) is None
    assert report.guard("part", "second", lambda: 7) == 7
    assert report.guard("part", "third", lambda: pytest.fail("no time was left"), needs=1000) is None
    report.check("waits", 3, 2)
    report.check("busy", 0.97, 0.95, at_least=True)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["rows"][0]["failed"] == "ZeroDivisionError: division by zero"
    assert "1 / 0" in written["failures"][0]["traceback"]
    assert "left_out" in written["rows"][1]
    assert [(c["goal"], c["reached"]) for c in written["checks"]] == [("waits", False), ("busy", True)]


@pytest.mark.parametrize("shape", SHAPES)
def test_configs_have_the_shapes_of_the_real_models(model_dir, tmp_path, shape):
    folder = write_config(model_dir, tmp_path / shape, shape)
    config = json.loads((folder / "config.json").read_text())["thinker_config"]
    given = SHAPES[shape] or {}
    assert given.items() <= config["text_config"].items()
    assert config["vision_config"]["out_hidden_size"] == config["text_config"]["hidden_size"]
    assert config["audio_config"]["output_dim"] == config["text_config"]["hidden_size"]
    assert not list(folder.glob("*.safetensors"))


def test_media_are_the_same_every_time_and_shrink_as_photographs(tmp_path):
    for name in ("a", "b"):
        write_rows(tmp_path / name, 2, 1, 0.5)
    for file in ("0.jpg", "1.jpg", "0.wav"):
        assert (tmp_path / "a/media" / file).read_bytes() == (tmp_path / "b/media" / file).read_bytes()
    pixels = picture(640, 480, np.random.default_rng(0))
    assert pixels.shape == (480, 640, 3) and pixels.std() > 20
    assert np.abs(np.diff(pixels.astype(int), axis=1)).mean() < 12  # neighbors are alike, as in photographs


@pytest.mark.slow
def test_all_sections_run_on_small_sizes(model_dir, tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--small", "--model", str(model_dir), "--out", str(out)]
    subprocess.run([*command, "--seconds", "3000"], check=True, capture_output=True, text=True)
    result = json.loads(out.read_text())
    failed = {(row["part"], row["what"]) for row in result["rows"] if "failed" in row}
    assert all(part == "attention" and what.startswith("varlen") for part, what in failed), failed  # no kernel on a CPU
    steps = [row for row in result["rows"] if "step_ms" in row]
    assert steps and all(row["tokens_per_s"] > 0 and row["mfu"] > 0 for row in steps)
    goals = {check["goal"]: check["reached"] for check in result["checks"]}
    assert goals["towers with a backward pass (full)"] and goals["dry run's peak against training's (3B, LoRA)"]
    assert len([row for row in result["rows"] if row["part"] == "loader" and "ms_a_bin" in row]) == 6
