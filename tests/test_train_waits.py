"""Risk: a training step waits for the GPU, which has nothing to do meanwhile."""

import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import varlen_reference
from test_host_numbers import FAMILIES
from transformers import TrainerCallback
from waits import counting

from omniprep.data.loss import predicted
from omniprep.families.loading import load_families
from omniprep.families.registry import REGISTRY
from omniprep.train.arguments import training_arguments
from omniprep.train.attention_choice import use_attention
from omniprep.train.batches import Batcher
from omniprep.train.config import TrainConfig
from omniprep.train.data import RunData
from omniprep.train.freeze import compute_frozen_towers_without_gradients, freeze, resolve_parts
from omniprep.train.loss import make_loss_head
from omniprep.train.stream import BinStream, Mixture
from omniprep.train.tower_numbers import bin_numbers
from omniprep.train.trainer import BinTrainer

GRIDS = [(1, 4, 6), (3, 8, 4), (1, 18, 10), (2, 4, 4)]
CLIPS = (200, 37, 101)


SLOW = [pytest.param(name, marks=() if name == "qwen2_5_omni" else pytest.mark.slow) for name in FAMILIES]


@pytest.fixture(scope="module", params=SLOW)
def family(request, tmp_path_factory):
    """A small checkpoint of each shipped family, and the family."""
    from omniprep.testing import small_base
    from omniprep.testing.init_model import init_model

    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_base, "write_tokenizer", lambda *_: None)
        init_model(folder, request.param)
    load_families()
    return folder, REGISTRY.find(None, json.loads((folder / "config.json").read_text())).cls


def load(family):
    from omniprep.families.loading import named_function

    folder, cls = family
    model = named_function("family", "load_model", cls.load_model)(str(folder), torch.float32, "sdpa")
    make_loss_head(model.get_output_embeddings())
    return model, resolve_parts(model, cls.model_arch)


def batch_of(model, seed: int) -> dict:
    """A batch as `Batcher` gives it: three rows, with images, videos and clips where the model takes them."""
    core, geometry = model.core()[0], model.geometry
    rng = np.random.default_rng(seed)
    rows = [list(rng.integers(10, 90, 5 + seed)), list(rng.integers(10, 90, 9)), list(rng.integers(10, 90, 4))]
    stacked: dict = {"columns": (), "use_cache": False}
    if hasattr(core, "visual"):
        width = 3 * 2 * core.visual.config.patch_size**2
        for kind, grids, pixels in (("image", GRIDS[:2], "pixel_values"), ("video", GRIDS[2:], "pixel_values_videos")):
            count = sum(t * h * w for t, h, w in grids)
            rows[1] += [geometry.token_ids[kind]] * (count // 4) + [11]
            stacked |= {pixels: torch.randn(count, width), f"{kind}_grid_thw": torch.tensor(grids)}
    if hasattr(core, "audio_tower"):
        width = 204 if geometry.n_window else 2 * core.audio_tower.config.max_source_positions
        mask = (torch.arange(width) < torch.tensor(CLIPS)[:, None]).long()
        stacked |= {"input_features": torch.randn(3, 128, width) * mask[:, None], "feature_attention_mask": mask}
        tokens = [((frames - 1) // 2 + 1 - 2) // 2 + 1 for frames in CLIPS]
        if geometry.n_window_infer:
            from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths

            tokens = [int(_get_feat_extract_output_lengths(frames, geometry.n_window)) for frames in CLIPS]
        rows[2] += [geometry.token_ids["audio"]] * sum(tokens) + [12]
    rows = [[*row, 13, 14, 15] for row in rows]
    lengths = [len(row) for row in rows]
    ids = torch.tensor([token for row in rows for token in row])
    labels = torch.cat([torch.tensor([-100] * (len(row) - 3) + row[-3:]) for row in rows])
    plain = torch.cat([torch.arange(n) for n in lengths])
    borders = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    stacked |= {
        "input_ids": ids[None],
        "labels": labels[None],
        "position_ids": plain.expand(4, 1, -1) if model.mrope else plain[None],
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    positions, targets, _ = predicted(labels)
    return {
        "stacked": stacked,
        "numbers": bin_numbers(stacked, geometry),
        "positions": positions,
        "targets": targets,
        "weights": torch.linspace(0.5, 2, len(targets)),
        "kinds": torch.zeros(len(targets), dtype=torch.int64),
        "sides": None,
        "mismatched": None,
        "sources": None,
        "tokens": len(ids),
    }


class Batches(list):
    """Stands for `BatchLoader`."""

    waited = 0.0


def run(model, parts, config, batches, callback) -> BinTrainer:
    args = training_arguments(config)
    args.save_strategy = "no"
    trainer = BinTrainer(
        model=model,
        args=args,
        config=config,
        parts=parts,
        data=RunData(
            bins=None,
            batcher=Batcher(("image", "audio", "video")),
            stream=BinStream(Mixture(sizes=[100]), total=100, start=0, steps=len(batches)),
            evaluation=None,
        ),
        loader=Batches(batches),
        source=None,
        dtype=torch.float32,
        generator=(),
        identity={},
        facts=[],
    )
    trainer.add_callback(callback)
    trainer.train()
    return trainer


@pytest.mark.parametrize("trained", ["language model", "all", "lora"])
def test_a_step_waits_at_most_twice_for_the_device(family, tmp_path, monkeypatch, trained):
    """The Trainer's whole loop, from one step to the next, with a line of the log in the third."""
    from omniprep.train.model import add_lora

    varlen = ModuleType("torch.nn.attention.varlen")
    varlen.varlen_attn = varlen_reference.varlen_2_14
    monkeypatch.setitem(sys.modules, varlen.__name__, varlen)
    model, parts = load(family)
    config = TrainConfig(
        model="m", out=str(tmp_path), max_steps=6, logging_steps=4, save_steps=0, report_to=("none",), device="cpu",
        optimizer="adamw_torch_fused", freeze_vit=trained != "all", freeze_aligner=trained != "all",
        lora=trained == "lora",
    )  # fmt: skip
    use_attention(model, "varlen", parts.towers)
    freeze(model, parts, config)
    batches = [batch_of(model, seed) for seed in range(6)]
    trains = add_lora(model, parts, config) if config.lora else model
    compute_frozen_towers_without_gradients(trains, parts)
    found = {}
    with counting(monkeypatch) as counter:

        class Arm(TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                counter.armed = False
                if state.global_step > 2:  # what happened since the step before began
                    found[state.global_step] = dict(counter.found)
                counter.found.clear()
                counter.armed = state.global_step >= 2

            def on_train_end(self, *_, **__):
                counter.armed = False

        run(trains, parts, config, batches, Arm())
    assert found.keys() == {3, 4, 5}
    for step, waits in found.items():
        # The line of the log: one reading for loss and norm, one for the meter; and the Trainer's own of the loss, which
        # is in host memory by then.
        # transformers looks once whether plain positions hold several rows (`find_packed_sequence_indices`); the three
        # rows of m-rope it does not look at.
        plain = 0 if model.mrope else 1
        assert sum(waits.values()) <= (3 if step == 4 else 0) + plain, f"step {step}: {waits}"
