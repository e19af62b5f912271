"""Risk: ranks whose bins hold other kinds of media wait for each other for ever.

Two processes with sharded weights, where every call of a tower's block is a collective one: this file is also the
program that each of them runs.
"""

import os
import subprocess
import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import torch

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_omni")
# What rank 0 and rank 1 have in a step: one kind after the other, so that each meets the next.
KINDS = ("text", "image", "video audio", "image video", "text")


def bin_of(kind: str, core) -> dict[str, torch.Tensor]:
    """Forward arguments of a bin of one row with media of these kinds (4 tokens a picture, 13 a clip)."""
    config, patch = core.config, core.config.vision_config
    width = 3 * 2 * patch.patch_size**2
    ids, media = [100, 101], {}
    for name in kind.split():
        if name == "audio" and hasattr(core, "audio_tower"):
            ids += [config.audio_token_id] * 13
            media |= {"input_features": torch.ones(1, 128, 100), "feature_attention_mask": torch.ones(1, 100).long()}
        if name in ("image", "video"):
            ids += [getattr(config, f"{name}_token_id")] * 4 + [102]
            grid = torch.tensor([[1, 4, 4]])
            pixels = "pixel_values" if name == "image" else "pixel_values_videos"
            media |= {pixels: torch.ones(16, width), f"{name}_grid_thw": grid}
    ids += [103, 104]
    positions = torch.arange(len(ids)).expand(4, 1, -1)
    borders = torch.tensor([0, len(ids)], dtype=torch.int32)
    return {"input_ids": torch.tensor([ids]), "position_ids": positions, "cu_seq_lens_q": borders, **media}


def run_rank(folder: Path) -> None:
    """Forward and backward passes of both ranks on each pair of neighbors of `KINDS`."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    from omniprep.train import qwen3_omni, vision_text
    from omniprep.train.attention_choice import use_attention

    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = distributed.get_rank()
    for family in FAMILIES:
        load = (qwen3_omni if family == "qwen3_omni" else vision_text).load_model
        model = load(str(folder / family), torch.float32, "sdpa")
        use_attention(model, "sdpa")
        model.touch_towers = True
        for module in reversed(list(model.modules())):  # the innermost first
            if module is model or type(module).__name__ in model._no_split_modules:
                fully_shard(module)
        core = model.core()[0]
        for pair in pairwise(KINDS):
            model.zero_grad()
            out = model(**bin_of(pair[rank], core), targets=torch.tensor([5]), logits_to_keep=torch.tensor([1]))
            out.losses.sum().backward()
            missing = [n for n, p in model.named_parameters() if p.grad is None]
            assert not missing, (family, pair, missing)
        distributed.barrier()
        if rank == 0:
            print("done", family, flush=True)


@pytest.mark.slow
def test_ranks_with_other_media_never_wait(tmp_path, monkeypatch):
    from omniprep.testing import small_base
    from omniprep.testing.init_model import init_model

    monkeypatch.setattr(small_base, "write_tokenizer", lambda *_: None)
    for family in FAMILIES:
        init_model(tmp_path / family, family)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*start, __file__, str(tmp_path)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[:-1] == [f"done {family}" for family in FAMILIES]


if __name__ == "__main__":
    run_rank(Path(sys.argv[1]))
