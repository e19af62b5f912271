"""Qwen3-VL: patches of 16 pixels, and a time stamp before each pair of frames, as ms-swift 3.9.3 encodes them.

Sources: ms-swift template/qwen.py Qwen3VLTemplate; qwen_vl_utils 0.0.14; transformers Qwen3VLProcessor (the text of a
video), get_rope_index of modeling_qwen3_vl (every pair of frames is an image of its own, time is text).
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omniprep.families.qwen.media import (
    MERGE,
    QwenVision,
    factor,
    image_grid,
    limits_of,
    patch_size,
    vision_fields,
    vision_options,
)
from omniprep.families.qwen.qwen2_vl import vision_positions
from omniprep.families.qwen.vision import (
    FRAME_FACTOR,
    VideoPlan,
    frame_size,
    most_video_tokens,
    plan_video,
    video_patches,
)
from omniprep.families.registry import REGISTRY, Decoded, Expansion, MediaMeta, ModelArch, Sample, TemplateMeta
from omniprep.media.resample import resize

if TYPE_CHECKING:
    from omniprep.families.context import FamilyContext

# Tokens of "<12345.6 seconds>" and the two that frame the pictures: digits are one token each.
MOST_STAMP = 16


def frame_list_size(ctx: "FamilyContext", meta: MediaMeta) -> tuple[int, int]:
    """(height, width) that frames given as images are resized to first.

    qwen_vl_utils hands the side of a token on as that of a patch, so it is a multiple of 64 pixels. Its limits
    of images count tokens (IMAGE_MIN_TOKEN_NUM, IMAGE_MAX_TOKEN_NUM), so they become four times as many pixels.
    """
    limits = limits_of(ctx)
    area = MERGE * MERGE
    limits = replace(limits, min_pixels=limits.min_pixels * area, max_pixels=limits.max_pixels * area)
    first = plan_video(meta, limits, factor(ctx) * MERGE)
    return first.height, first.width


def plan(ctx: "FamilyContext", meta: MediaMeta) -> VideoPlan:
    """Frames and size of a video."""
    if not meta.sizes:
        return plan_video(meta, limits_of(ctx), factor(ctx))
    height, width = frame_list_size(ctx, meta)
    count = len(meta.sizes) + len(meta.sizes) % FRAME_FACTOR
    height, width = frame_size(height, width, count, limits_of(ctx), factor(ctx), meta.options)
    indices = [min(i, len(meta.sizes) - 1) for i in range(count)]
    return VideoPlan(tuple(indices), height, width, 2.0)


def stamps(ctx: "FamilyContext", meta: MediaMeta) -> list[str]:
    """The text before each pair of frames: the middle of their times (Qwen3VLProcessor._calculate_timestamps)."""
    chosen = plan(ctx, meta).indices
    indices, fps = (range(len(chosen)), 2.0) if meta.sizes else (chosen, meta.fps)
    times = [index / fps for index in indices]
    return [f"<{(a + b) / 2:.1f} seconds>" for a, b in zip(times[::2], times[1::2], strict=True)]


@lru_cache(maxsize=8)
def _frame(ctx: "FamilyContext") -> tuple[int, int]:
    return ctx.token_id("<|vision_start|>"), ctx.token_id("<|vision_end|>")


def _video_grid(ctx: "FamilyContext", meta: MediaMeta) -> tuple[int, int, int]:
    chosen = plan(ctx, meta)
    return len(chosen.indices) // 2, chosen.height // patch_size(ctx), chosen.width // patch_size(ctx)


def video_ids(ctx: "FamilyContext", meta: MediaMeta) -> NDArray[np.int32]:
    """What a video becomes: for each pair of frames the time stamp, and its pictures between two tokens."""
    _, h, w = _video_grid(ctx, meta)
    start, end = _frame(ctx)
    pictures = [start, *[ctx.placeholder_id("video")] * (h * w // MERGE**2), end]
    texts = ctx.encoder.encode(stamps(ctx, meta))
    return np.array([token for text in texts for token in (*text, *pictures)], np.int32)


def count_video(ctx: "FamilyContext", meta: MediaMeta) -> int:
    """Tokens of a video, time stamps and frame tokens too."""
    t, h, w = _video_grid(ctx, meta)
    return t * (h * w // MERGE**2 + 2) + sum(map(len, ctx.encoder.encode(stamps(ctx, meta))))


def video_pixels(ctx: "FamilyContext", meta: MediaMeta) -> int:
    """Patches of a video; its time stamps are text."""
    return math.prod(_video_grid(ctx, meta))


def most_video(ctx: "FamilyContext") -> int:
    """An upper bound of a video's tokens."""
    limits = limits_of(ctx)
    steps = max(limits.fps_max_frames, limits.fps_min_frames, 2) // 2 + 1
    return most_video_tokens(limits, factor(ctx)) + steps * MOST_STAMP


def map_video(ctx: "FamilyContext", items: list[Decoded]) -> dict[str, NDArray[Any]]:
    """Videos → video_grid_thw (n, 3), pixel_values_videos uint8 (patches, 3·2·16·16)."""
    grids, patches = [], []
    for item in items:
        chosen = plan(ctx, item.meta)
        if item.frames is None:
            height, width = frame_list_size(ctx, item.meta)
            pictures = [np.asarray(image.resize((width, height)), np.uint8) for image in item.images]
            frames = np.stack([pictures[i] for i in chosen.indices])
        else:
            frames = item.frames(list(chosen.indices))
        grids.append(_video_grid(ctx, item.meta))
        patches.append(video_patches(resize(frames, (chosen.width, chosen.height)), patch_size(ctx)))
    return {"video_grid_thw": np.array(grids, np.int32), "pixel_values_videos": np.concatenate(patches)}


def expand(ctx: "FamilyContext", sample: Sample) -> list[Expansion]:
    """Images become copies of their placeholder, videos time stamps and framed pictures."""
    image, video = ctx.placeholder_id("image"), ctx.placeholder_id("video")
    result = [
        Expansion("image", n, [image], np.full(item.tokens, image, np.int32))
        for n, item in enumerate(sample.items["image"])
    ]
    for n, item in enumerate(sample.items["video"]):
        ids = video_ids(ctx, item.meta)
        result.append(Expansion("video", n, [video], ids, is_embed=ids == video))
    return result


def rope(ctx: "FamilyContext", sample: Sample) -> NDArray[np.int32] | None:
    """M-rope ids (3, L); None (the plain range) for rows without pictures."""
    names = {ctx.placeholder_id(m): m for m in ("image", "video")}
    media = np.isin(sample.ids, list(names))
    starts = np.flatnonzero(media & ~np.concatenate([[False], media[:-1]])).tolist()
    if not starts:
        return None
    grids: dict[str, list[tuple[int, int, int]]] = {}
    for modality in ("image", "video"):
        of_items = [
            image_grid(ctx, i.meta) if modality == "image" else _video_grid(ctx, i.meta) for i in sample.items[modality]
        ]
        grids[modality] = [(1, h // MERGE, w // MERGE) for t, h, w in of_items for _ in range(t)]
    left = {modality: iter(found) for modality, found in grids.items()}
    blocks = [next(left[names[int(sample.ids[start])]], (1, 0, 0)) for start in starts]
    return vision_positions(len(sample.ids), starts, blocks, [np.zeros(1, np.int64)] * len(starts), spatial=False)


@REGISTRY.register_family(
    "qwen3_vl",
    hf_architectures=["Qwen3VLForConditionalGeneration"],
    model_types=["qwen3_vl"],
    checkpoints=["Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"],
    requires=["transformers>=4.57"],
)
@REGISTRY.register_template(TemplateMeta(norm_bbox="norm1000"))
@REGISTRY.register_model_arch(
    ModelArch(
        language_model=("model.language_model",),
        vision_tower=("model.visual",),
        aligner=("model.visual.merger", "model.visual.deepstack_merger_list"),
    )
)
@REGISTRY.register_input_mapper("video", map_video)
@REGISTRY.register_token_counter("video", count_video)
@REGISTRY.register_tower_work("video", video_pixels)
@REGISTRY.register_max_multimodal_tokens("video", most_video)
@REGISTRY.register_input_processor(expand)
@REGISTRY.register_positions(rope)
class Qwen3VL(QwenVision):
    """Qwen3-VL (dense)."""

    patch_size = 16
    refuses_crossed = True
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    tags = {"image": "<|vision_start|><|image_pad|><|vision_end|>", "video": "<|video_pad|>"}
    fields = vision_fields(16)
    options = vision_options(32)
    load_model = "omniprep.train.vision_text:load_model"
    init_model = "omniprep.testing.small_models:init_qwen3_vl"


__all__ = ["Qwen3VL", "stamps", "video_ids"]
