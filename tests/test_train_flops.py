"""MFU counts what a step computes: held against the operations that torch itself counts, part by part."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from synthetic import write_bins
from torch.utils.flop_counter import FlopCounterMode
from train_helpers import (
    ARCH,
    AUDIO,
    COLUMNS,
    MODALITIES,
    make_row,
    positions_3d,
    small_model,
    to_bin,
    write_dataset,
)

from omniprep.data import PackedDataset
from omniprep.data.host_numbers import BinNumbers
from omniprep.train.batches import Batcher, forward_kwargs
from omniprep.train.config import TrainConfig
from omniprep.train.flops import StepWork, Tower, causal_pairs
from omniprep.train.freeze import Parts, freeze, resolve_parts
from omniprep.train.loss import make_loss_head
from omniprep.train.tower_numbers import tower_geometry

# A clip of whole chunks: those that a batch pads are computed too, and not counted.
WHOLE_KINDS = ("text", "image", "video", "audio of whole chunks")
PRODUCTS = {"mm", "addmm", "convolution", "convolution_backward"}


def one_bin(folder, kind: str) -> dict:
    if not kind.startswith("audio"):
        return PackedDataset(str(write_dataset(folder, bins=1, kinds=(kind,))))[0]
    rng = np.random.default_rng(0)
    row = make_row("text", rng)
    row["audios"] = [torch.zeros(128, frames) for frames in (200, 300)]
    row["ids"] = torch.cat([row["ids"], torch.tensor([907, *[AUDIO] * 50, 908, 907, *[AUDIO] * 75, 908])])
    row["positions"] = positions_3d(len(row["ids"]), rng)
    made = to_bin([row], 0, rng, weighted=False)
    write_bins(folder, [made], COLUMNS, family="small", modalities=MODALITIES, weighted=False, bin_length=1024)
    return PackedDataset(str(folder))[0]


def count(folder, kind: str, **options) -> tuple[float, float]:
    """Our count and torch's of one step on a bin of one kind of rows, without attention and what is computed twice."""
    model = small_model()
    model.config._attn_implementation = "eager"  # its products are bmm, which are not counted here
    parts = resolve_parts(model, ARCH)
    make_loss_head(model.get_output_embeddings())
    freeze(model, parts, TrainConfig(**options))
    work = StepWork(model, parts)
    work.query_width = work.towers["vision"].width = work.towers["audio"].width = 0
    batcher = Batcher(MODALITIES)
    batcher.geometry = tower_geometry(model.thinker.model, model.thinker.config)
    batch = batcher([one_bin(folder, kind)])
    kwargs = forward_kwargs(batch, torch.device("cpu"), torch.float32)
    with FlopCounterMode(display=False) as counter:
        out = model(**kwargs, logits_to_keep=batch["positions"], targets=batch["targets"])
        out.losses.sum().backward()
    found = counter.get_flop_counts()["Global"]
    torchs = sum(n for operator, n in found.items() if str(operator).split(".")[-1] in PRODUCTS)
    again = 2 * len(batch["targets"]) * model.get_output_embeddings().weight.numel()  # the loss makes logits twice
    return work.of(batch), float(torchs - again)


@pytest.mark.parametrize("kind", WHOLE_KINDS)
def test_all_products_of_a_step_with_frozen_towers_are_counted(tmp_path, kind):
    ours, torchs = count(tmp_path, kind)
    assert ours == pytest.approx(torchs, rel=0.02)


@pytest.mark.parametrize("kind", WHOLE_KINDS)
def test_the_backward_pass_of_towers_that_train_is_counted(tmp_path, kind):
    ours, torchs = count(tmp_path, kind, freeze_vit=False, freeze_aligner=False)
    assert ours == pytest.approx(torchs, rel=0.05)  # the first layers have no gradient of an input


def test_a_frozen_language_model_has_no_gradients_of_weights(tmp_path):
    ours, torchs = count(tmp_path, "image", freeze_llm=True, freeze_aligner=False)
    assert ours == pytest.approx(torchs, rel=0.05)


def test_attention_goes_by_the_real_lengths_of_rows():
    assert causal_pairs(4) == 1 + 2 + 3 + 4
    assert causal_pairs(5, window=2) == 1 + 2 + 2 + 2 + 2
    model = small_model()
    work = StepWork(model, resolve_parts(model, ARCH))
    text = model.config.get_text_config()
    batch = {
        "targets": [],
        "tokens": 8,
        "numbers": BinNumbers(row_lengths=(3, 5), max_row_length=5, cu_seqlens=torch.tensor([0, 3, 8])),
    }
    work.language = work.head = type(work.language)()
    width = text.num_attention_heads * text.hidden_size // text.num_attention_heads
    assert work.of(batch) == 3 * 2 * 2 * width * text.num_hidden_layers * (6 + 15)  # two products, forward and back
    numbers = BinNumbers(row_lengths=(3, 5, 4), max_row_length=5, cu_seqlens=torch.tensor([0, 3, 8, 12]))
    padded = work.of({**batch, "numbers": numbers})
    assert padded == work.of(batch), "a row that pads the batch for --torch-compile is no work of the step's own"
    plain = work.of(batch)
    vars_of(text, layer_types=None, sliding_window=2)
    windowed = StepWork(model, resolve_parts(model, ARCH))
    windowed.language = windowed.head = work.language
    assert windowed.of(batch) == plain / 21 * (1 + 2 + 2 + 1 + 4 * 2), "a window of all layers, without a list of them"


def vars_of(config, **values):
    for name, value in values.items():
        object.__setattr__(config, name, value)


def test_an_adapter_in_one_tower_gives_the_other_no_backward_pass():
    model = small_model()
    parts = resolve_parts(model, ARCH)
    freeze(model, parts, TrainConfig(freeze_llm=True, freeze_aligner=False))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("visual.blocks.0" in name)
    work = StepWork(model, parts)
    vision, audio = work.towers["vision"], work.towers["audio"]
    assert vision.trains and vision.layers.backward and vision.aligner.backward
    assert not audio.trains and audio.layers.backward == audio.aligner.backward == 0


def test_attention_of_a_tower_goes_by_windows_and_images():
    tower = Tower(width=8, windowed=3, full=1)
    assert tower.work([16, 4], [4, 4, 4, 4, 4], tokens=5) == 4 * 8 * (1 * (256 + 16) + 3 * 5 * 16)


def test_a_model_of_a_plug_in_need_not_name_its_heads_and_layers():
    """Only the log is the worse for it."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 30, bias=False))
    model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(width=8))
    model.get_output_embeddings = lambda: model[1]
    work = StepWork(model, Parts(language_model=("0",), towers=(), aligner=(), generator=()))
    numbers = BinNumbers(row_lengths=(3, 5), max_row_length=5, cu_seqlens=torch.tensor([0, 3, 8]))
    assert work.of({"numbers": numbers, "targets": [1, 2], "tokens": 8}) == 3 * 2 * (8 * 64 + 2 * 240)
