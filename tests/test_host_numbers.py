"""Risk: the numbers that travel beside a batch are not those that a model would compute, or a step still waits."""

import pickle

import pytest
import torch
from train_helpers import KINDS, forward_kwargs, make_row

from omniprep.data.host_numbers import BinNumbers, map_tensors
from omniprep.train.audio_input import audio_states
from omniprep.train.tower_numbers import bin_numbers, tower_geometry

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_5_omni", "qwen3_omni", "qwen2_audio")
GRIDS = [(1, 4, 6), (3, 8, 4), (1, 18, 10), (1, 2, 2)]
CLIPS = (37, 250, 101, 200, 3)


@pytest.fixture(scope="module", params=FAMILIES)
def core(request, tmp_path_factory):
    """The module that holds towers and language model of a small model of each shipped family."""
    from omniprep.testing import small_base
    from omniprep.testing.init_model import init_model
    from omniprep.train.qwen2_5_omni import load_model as load_qwen2_5_omni
    from omniprep.train.qwen3_omni import load_model as load_qwen3_omni
    from omniprep.train.vision_text import load_model

    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_base, "write_tokenizer", lambda *_: None)
        init_model(folder, request.param)
    load = {"qwen2_5_omni": load_qwen2_5_omni, "qwen3_omni": load_qwen3_omni}.get(request.param, load_model)
    model = load(str(folder), torch.float32, "sdpa")
    return getattr(model, "thinker", model).model


def batch_of(core) -> dict:
    """Integers of a batch with two images, two videos and five clips, as far as the model has such towers."""
    geometry = tower_geometry(core, core.config)
    ids = [[7, 8], [9]]
    for kind, count in (("image", 30), ("video", 25), ("audio", 11)):
        if kind in geometry.token_ids:
            ids[1] += [geometry.token_ids[kind]] * count + [10]
    batch = {
        "input_ids": torch.tensor([ids[0] + ids[1]]),
        "cu_seq_lens_q": torch.tensor([0, 2, 2 + len(ids[1])], dtype=torch.int32),
        "max_length_q": len(ids[1]),
    }
    if geometry.merge_size:
        batch |= {"image_grid_thw": torch.tensor(GRIDS[:2]), "video_grid_thw": torch.tensor(GRIDS[2:])}
    if geometry.audio_module:
        width = 260 if geometry.n_window else 2 * core.audio_tower.config.max_source_positions
        batch["feature_attention_mask"] = (torch.arange(width) < torch.tensor(CLIPS)[:, None]).long()
    return batch


def test_towers_give_the_same_bits_with_the_numbers_as_without(core):
    batch = batch_of(core)
    numbers = bin_numbers(batch, tower_geometry(core, core.config))
    if hasattr(core, "visual"):
        patch = core.visual.config
        pixels = torch.randn(sum(t * h * w for t, h, w in GRIDS), 3 * 2 * patch.patch_size**2)
        grid = torch.tensor(GRIDS)
        alone = core.visual(pixels, grid_thw=grid).pooler_output
        assert torch.equal(core.visual(pixels, grid_thw=grid, **numbers.vision.arguments).pooler_output, alone)
        assert sum(numbers.vision.segment_lengths) == sum(numbers.vision.window_lengths or [len(pixels)]) == len(pixels)
    if hasattr(core, "audio_tower") and numbers.audio.arguments:
        mask = batch["feature_attention_mask"]
        features = torch.randn(len(mask), 128, mask.shape[1]) * mask[:, None]
        alone = core.get_audio_features(features, mask, return_dict=True).last_hidden_state
        audio = numbers.audio
        given = audio_states(core, features, mask, audio)
        assert torch.equal(given, alone)
        assert sum(audio.segment_lengths) == len(audio.arguments["valid_indices"])


def test_rows_grids_lengths_and_placeholders(core):
    batch = batch_of(core)
    geometry = tower_geometry(core, core.config)
    numbers = pickle.loads(pickle.dumps(bin_numbers(batch, geometry)))
    ids = batch["input_ids"][0]
    assert numbers.row_lengths == (2, len(ids) - 2) and numbers.max_row_length == len(ids) - 2
    assert numbers.image_grids == (tuple(GRIDS[:2]) if geometry.merge_size else ())
    assert numbers.video_grids == (tuple(GRIDS[2:]) if geometry.merge_size else ())
    assert numbers.audio_lengths == (CLIPS if geometry.audio_module else ())
    for kind, token in geometry.token_ids.items():
        assert torch.equal(getattr(numbers, f"{kind}_index"), (ids == token).nonzero()[:, 0])
    if numbers.visual_index is not None:
        assert torch.equal(numbers.visual_index, torch.cat([numbers.image_index, numbers.video_index]))


def test_only_tensors_that_a_device_needs_are_moved(core):
    numbers = bin_numbers(batch_of(core), tower_geometry(core, core.config))
    moved = map_tensors(numbers, lambda tensor: tensor.to("meta"))
    assert isinstance(moved, BinNumbers) and moved.cu_seqlens.device.type == "cpu"
    assert moved.row_lengths == numbers.row_lengths
    indices = [moved.image_index, moved.video_index, moved.audio_index, moved.visual_index]
    arguments = [*(moved.vision.arguments if moved.vision else {}).values()]
    arguments += (moved.audio.arguments if moved.audio else {}).values()
    assert all(x.device.type == "meta" for x in [*indices, *arguments] if isinstance(x, torch.Tensor))
    assert numbers.cu_seqlens is moved.cu_seqlens


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_model_there_are_rows_grids_and_lengths(kind):
    import numpy as np

    rng = np.random.default_rng(3)
    rows = [make_row(kind, rng), make_row("text", rng)]
    numbers = bin_numbers(forward_kwargs(rows), None)
    assert numbers.row_lengths == tuple(len(r["ids"]) for r in rows)
    assert numbers.image_grids == tuple(g for r in rows for _, g in r["images"])
    assert numbers.audio_lengths == tuple(a.shape[1] for r in rows for a in r["audios"])
    assert numbers.vision is None and numbers.image_index is None
