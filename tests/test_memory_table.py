"""The memory that docs/training.md promises is reckoned; it must be what was measured on a GPU."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_inputs import write_config  # noqa: E402
from memory_table import GIB, HEADROOM, SHAPES, Shape, largest_bin, peak_bytes  # noqa: E402

from omniprep.train.memory import SAFE_SHARE  # noqa: E402
from omniprep.train.qwen2_5_omni import Qwen2_5OmniForConditionalGeneration  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "gpu.json"


def measured() -> list[tuple[str, int, bool, bool, float]]:
    """Model, tokens of the longest bin, LoRA, checkpointing and peak GiB of each run that is there."""
    rows = json.loads(RESULT.read_text())["rows"]
    found = []
    for row in rows:
        what = row["what"]
        if row["part"] == "memory" and "training_gib" in row and "checkpointing" in row:
            found.append(
                (what[:2], row["longest_bin"], "LoRA" in what, row["checkpointing"] == "on", row["training_gib"])
            )
        elif row["part"] == "steps" and what in ("full", "lora", "full, checkpointing", "lora, checkpointing"):
            found.append(
                ("3B", row["longest_bin"], what.startswith("lora"), row["checkpointing"] == "on", row["peak_gib"])
            )
    return found


@pytest.mark.parametrize(("model", "tokens", "lora", "checkpointing", "peak"), measured())
def test_reckoned_peaks_are_those_measured(model, tokens, lora, checkpointing, peak):
    reckoned = peak_bytes(SHAPES[model], tokens, lora=lora, checkpointing=checkpointing) / GIB
    assert reckoned == pytest.approx(peak, rel=0.05)


def test_enough_was_measured_to_say_so():
    kinds = {(lora, checkpointing) for _, _, lora, checkpointing, _ in measured()}
    assert len(kinds) >= 3, "full and LoRA, with and without checkpointing"


@pytest.mark.parametrize("name", SHAPES)
def test_the_weights_are_those_of_the_model(model_dir, tmp_path, name):
    config = AutoConfig.from_pretrained(write_config(model_dir, tmp_path / "m", name.lower()))
    config.enable_audio_output = False
    with torch.device("meta"):
        model = Qwen2_5OmniForConditionalGeneration._from_config(config)
    towers = ("thinker.model.visual", "thinker.model.audio_tower")
    counts = [
        sum(p.numel() for n, p in model.named_parameters() if n.startswith(towers) == wanted) for wanted in (0, 1)
    ]
    assert counts == [SHAPES[name].language_weights, SHAPES[name].towers]


def test_the_longest_bin_of_a_card_fits_and_the_next_does_not():
    shape: Shape = SHAPES["7B"]
    options = {"lora": True, "checkpointing": True}
    tokens = largest_bin(shape, 24, **options)
    assert peak_bytes(shape, tokens, **options) <= HEADROOM * 24 * GIB < peak_bytes(shape, tokens + 256, **options)
    assert largest_bin(shape, 8, **options) == 0
    assert largest_bin(shape, 200, **options) == 32768  # no bin is longer than the positions
    assert HEADROOM == SAFE_SHARE
