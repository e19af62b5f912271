"""Risk: benchmarks/adapters.py counts other tokens or steps than it says, or no longer runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from adapters import LOOPS, Watch  # noqa: E402


class Embedding(nn.Module):
    """Stands for a model: takes what one takes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, input_ids, attention_mask=None):
        return input_ids


def test_tokens_are_those_of_the_timed_steps_without_padding():
    model, ticks = Embedding(), iter(range(10, 100, 4))
    watch = Watch(model, warm=1, timed=2)
    watch.clock = lambda: next(ticks)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    model(input_ids=torch.zeros(1, 1000))  # not counted
    model(input_ids=torch.zeros(2, 5), attention_mask=mask)
    model(input_ids=torch.zeros(1, 9))
    model(input_ids=torch.zeros(1, 1000))  # ends the last timed step
    assert watch.tokens_per_second() == (7 + 9) / 4
    watch = Watch(model, warm=1, timed=2)
    model(input_ids=torch.zeros(1, 9))
    with pytest.raises(AssertionError, match="1 steps"):
        watch.tokens_per_second()


@pytest.mark.slow
def test_a_small_run_of_it(model_dir, tmp_path):
    options = ("--rounds", "1", "--steps", "0", "1", "--bin-length", "256", "--scale", "0.15")
    command = [sys.executable, "benchmarks/adapters.py", "--model", model_dir, *options, "--out", tmp_path / "out.json"]
    loops = ["a loop of your own", "TRL's SFTTrainer"]
    done = subprocess.run([*map(str, command), "--loops", ",".join(loops)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row["loop"] for row in found["rows"]] == loops and set(loops) < set(LOOPS)
    assert all(row["packed, tokens/s"] > 0 and row["on the fly, tokens/s"] > 0 for row in found["rows"])
    assert found["rows_a_batch"] >= 1 and found["device"] == "cpu"
