"""Makes the host numbers of a batch for the model that will take it (`omniprep.data.host_numbers`).

`TowerGeometry` says what has to be known of a model's towers; it is read from the loaded model once, and travels to the
reader processes. The borders, windows and indices themselves are computed by transformers' own functions
(`transformers.vision_utils`, and those of the tower's module for audio), on host tensors.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from omniprep.data.host_numbers import AudioNumbers, BinNumbers, Grid, VisionNumbers

VISION_MODULES = frozenset(
    f"modeling_{name}"
    for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen2_5_omni", "qwen3_omni_moe")
)
"""Modules whose vision tower takes the arguments of `vision_numbers`; that of another class computes them itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerGeometry:
    """Sizes of a model's towers, and the ids of its placeholder tokens."""

    token_ids: Mapping[str, int]
    """Of "image", "video" and "audio", those that the model has."""
    merge_size: int = 0
    """Side of the square of patches that becomes one token; 0 without a vision tower."""
    window_size: int = 0
    """Side of a window in pixels; 0 for a tower without windows."""
    patch_size: int = 0
    """Side of a patch in pixels."""
    position_side: int = 0
    """Side of the table of position embeddings that is interpolated; 0 for a tower without one."""
    interpolation: tuple[str, bool] = ("bilinear", True)
    """Mode of the interpolation, and whether corners are aligned."""
    audio_module: str = ""
    """Module of transformers that defines the audio tower; empty without one."""
    n_window: int = 0
    """Half of an audio chunk in frames; 0 for a tower that takes whole clips."""
    n_window_infer: int = 0
    """Qwen3-Omni: frames of a segment of attention."""


def tower_geometry(core: nn.Module, config: Any) -> TowerGeometry:
    """The geometry of a loaded model, whose `core` holds the towers as `visual` and `audio_tower`."""
    visual, audio = getattr(core, "visual", None), getattr(core, "audio_tower", None)
    ids = {kind: getattr(config, f"{kind}_token_id", None) for kind in ("image", "video", "audio")}
    sizes: dict[str, Any] = {}
    if visual is not None and tower_module(visual).split(".")[-1] in VISION_MODULES:
        sizes["merge_size"] = visual.spatial_merge_size
        sizes["patch_size"] = visual.config.patch_size
        if hasattr(visual, "fullatt_block_indexes"):
            sizes["window_size"] = visual.window_size
        if hasattr(visual, "num_grid_per_side"):
            sizes["position_side"] = visual.num_grid_per_side
            sizes["interpolation"] = (visual.interpolation_mode, visual.interpolation_align_corners)
    if audio is not None:
        sizes["audio_module"] = tower_module(audio)
        sizes["n_window"] = getattr(audio, "n_window", 0)
        sizes["n_window_infer"] = getattr(audio, "n_window_infer", 0)
    return TowerGeometry(token_ids={k: v for k, v in ids.items() if v is not None}, **sizes)


def tower_module(tower: nn.Module) -> str:
    """The module that defines the class of a tower, looking through what FSDP puts in front of it."""
    return next(cls.__module__ for cls in type(tower).__mro__ if not cls.__module__.startswith("torch."))


def bin_numbers(batch: Mapping[str, Any], geometry: TowerGeometry | None) -> BinNumbers:
    """The numbers of a batch, from its integers in host memory; without a geometry, those that need no model."""
    borders: Tensor = batch["cu_seq_lens_q"]
    row_lengths = tuple(borders.diff().tolist())
    grids = [_grids(batch.get(name)) for name in ("image_grid_thw", "video_grid_thw")]
    mask: Tensor | None = batch.get("feature_attention_mask")
    lengths = () if mask is None else tuple(mask.sum(-1).tolist())
    indices: dict[str, Tensor | None] = {}
    vision = audio = None
    if geometry is not None:
        ids = batch["input_ids"].flatten()
        indices = {f"{kind}_index": positions_of(ids, token) for kind, token in geometry.token_ids.items()}
        visual = [x for x in (indices.get("image_index"), indices.get("video_index")) if x is not None]
        indices["visual_index"] = torch.cat(visual) if visual else None
        if geometry.merge_size and any(grids):
            vision = vision_numbers([*grids[0], *grids[1]], geometry)
        if geometry.audio_module and lengths:
            assert mask is not None
            audio = audio_numbers(lengths, mask.shape[-1], geometry)
    return BinNumbers(
        row_lengths=row_lengths,
        max_row_length=max(row_lengths),
        cu_seqlens=borders,
        image_grids=grids[0],
        video_grids=grids[1],
        audio_lengths=lengths,
        vision=vision,
        audio=audio,
        **indices,
    )


def vision_numbers(grids: list[Grid], geometry: TowerGeometry) -> VisionNumbers:
    """What the vision tower needs of the grids of one call."""
    grid = torch.tensor(grids)
    borders = get_vision_cu_seqlens(grid)
    segments = borders.diff().tolist()
    arguments: dict[str, Tensor | int] = {
        "position_ids": get_vision_position_ids(grid, geometry.merge_size),
        "cu_seqlens": borders,
        "max_seqlen": max(segments),
    }
    windows: list[int] = []
    if geometry.window_size:
        index, window_borders = get_vision_window_index(
            grid, geometry.merge_size, geometry.window_size, geometry.patch_size
        )
        windows = window_borders.diff().tolist()
        arguments |= {"window_index": index, "cu_window_seqlens": window_borders, "max_window_seqlen": max(windows)}
    if geometry.position_side:
        mode, align_corners = geometry.interpolation
        taps, weights = get_vision_interpolation_indices_and_weights(
            grid, geometry.position_side, mode, align_corners, geometry.merge_size
        )
        arguments |= {"interp_indices": taps, "interp_weights": weights}
    return VisionNumbers(arguments=arguments, segment_lengths=tuple(segments), window_lengths=tuple(windows))


def _grids(grid: Tensor | None) -> tuple[Grid, ...]:
    return () if grid is None else tuple((t, h, w) for t, h, w in grid.tolist())


def positions_of(ids: Tensor, token: int) -> Tensor | None:
    """int64 (n): where a token stands, ascending; None where it does not."""
    positions = (ids == token).nonzero()[:, 0]
    return positions if len(positions) else None


def audio_numbers(lengths: tuple[int, ...], width: int, geometry: TowerGeometry) -> AudioNumbers:
    """What the audio tower needs of clips of `lengths` frames that lie padded to `width` frames each."""
    if not geometry.n_window:
        states = (width - 1) // 2 + 1
        kept = (states - 2) // 2 + 1  # of each clip, after the second halving
        counts = [((frames - 1) // 2 + 1 - 2) // 2 + 1 for frames in lengths]
        index = [torch.arange(count) + clip * kept for clip, count in enumerate(counts)]
        return AudioNumbers(output_index=torch.cat(index))
    chunk = 2 * geometry.n_window
    each = -(-width // chunk)
    chunks = [[min(chunk, frames - start) for start in range(0, frames, chunk)] for frames in lengths]
    chunk_lengths = torch.tensor(list(chain.from_iterable(chunks)))
    feature_lens = torch.tensor(lengths)
    functions = vars(importlib.import_module(geometry.audio_module))
    arguments: dict[str, Tensor | int] = {"feature_lens": feature_lens, "chunk_lengths": chunk_lengths}
    if geometry.n_window_infer:
        arguments["valid_indices"] = functions["get_valid_indices"](chunk_lengths, geometry.n_window)
        borders = functions["get_audio_cu_seqlens"](
            chunk_lengths, feature_lens, geometry.n_window_infer, geometry.n_window
        )
    else:
        arguments["valid_indices"] = functions["get_valid_indices"](chunk_lengths)
        arguments["pool_indices"] = functions["get_pool_indices"](feature_lens)
        borders = functions["get_audio_cu_seqlens"](chunk_lengths)
    segments = tuple(borders.diff().tolist())
    return AudioNumbers(
        arguments=arguments | {"cu_seqlens": borders, "max_seqlen": max(segments)},
        segment_lengths=segments,
        chunk_frames=chunk,
        longest_chunk=int(chunk_lengths.max()),
        chunk_index=torch.cat([torch.arange(len(part)) + clip * each for clip, part in enumerate(chunks)]),
    )
