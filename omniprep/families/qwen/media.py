"""Images and videos of the Qwen families: sizes as qwen_vl_utils (and its twin qwen_omni_utils) has them, patches as
Qwen2-VL.

`QwenVision` is what those families inherit; a family says its patch size, and may replace any of it. Pixels leave here
as uint8 patches: (uint8 - mean*255) / (std*255) in float32 on the device is bit for bit the processor's pixel_values. A
still image is stored without its temporal copy.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from omniprep.families.qwen.vision import (
    Limits,
    VideoPlan,
    image_patches,
    image_size,
    most_image_tokens,
    most_video_tokens,
    plan_video,
    video_patches,
)
from omniprep.families.registry import REGISTRY, Decoded, Field, MediaMeta, Sample, SupportsMultiModal
from omniprep.media.resample import resize, resize_bytes

if TYPE_CHECKING:
    from omniprep.families.context import FamilyContext

MERGE = 2
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def patch_size(ctx: "FamilyContext") -> int:
    """Side of a patch in pixels."""
    return int(ctx.attribute("patch_size"))


def factor(ctx: "FamilyContext") -> int:
    """Side of a token in pixels."""
    return patch_size(ctx) * MERGE


def fetch_factor(ctx: "FamilyContext") -> int:
    """Side in pixels of what media are first resized to multiples of; the side of a token, unless they are resized
    twice.
    """
    return int(ctx.attribute("fetch_factor") or factor(ctx))


def limits_of(ctx: "FamilyContext") -> Limits:
    """The build's pixel and frame limits."""
    o = ctx.opt
    return Limits(
        o.min_pixels,
        o.max_pixels,
        o.video_min_pixels,
        o.video_max_pixels,
        o.video_total_pixels,
        o.fps,
        o.fps_min_frames,
        o.fps_max_frames,
        refuses_thin=bool(ctx.attribute("refuses_thin")),
        refuses_crossed=bool(ctx.attribute("refuses_crossed")),
    )


def second_limits(ctx: "FamilyContext", kind: str) -> Limits:
    """Pixel limits of the processor, where it resizes images or frames again (families with `fetch_factor`).

    Source: the checkpoint's settings for images; Qwen3OmniMoeProcessor, whose own numbers go before them, for frames.
    """
    if kind == "video":
        area = factor(ctx) ** 2
        return Limits(min_pixels=128 * area, max_pixels=768 * area)
    given = ctx.preprocessor.get("size") or {}
    low = ctx.preprocessor.get("min_pixels") or given.get("shortest_edge") or 56 * 56
    high = ctx.preprocessor.get("max_pixels") or given.get("longest_edge") or 28 * 28 * 1280
    return Limits(min_pixels=int(low), max_pixels=int(high))


def final_size(ctx: "FamilyContext", kind: str, height: int, width: int) -> tuple[int, int]:
    """(height, width) as the model sees it, of an image or frame that was resized once.

    Raises:
        Reject: aspect_ratio.
    """
    if ctx.attribute("fetch_factor") is None:
        return height, width
    return image_size(height, width, second_limits(ctx, kind), factor(ctx))


def fetched_size(ctx: "FamilyContext", meta: MediaMeta) -> tuple[int, int]:
    """(height, width) that an image is resized to first."""
    return image_size(meta.height, meta.width, limits_of(ctx), fetch_factor(ctx), meta.options)


def image_grid(ctx: "FamilyContext", meta: MediaMeta) -> tuple[int, int, int]:
    """(1, H/patch, W/patch) of an image."""
    height, width = final_size(ctx, "image", *fetched_size(ctx, meta))
    return 1, height // patch_size(ctx), width // patch_size(ctx)


def video_plan(ctx: "FamilyContext", meta: MediaMeta) -> VideoPlan:
    """Frames of a video, and the size that they are resized to first."""
    return plan_video(meta, limits_of(ctx), fetch_factor(ctx))


def video_grid(ctx: "FamilyContext", meta: MediaMeta) -> tuple[int, int, int]:
    """(T/2, H/patch, W/patch) of a video."""
    plan = video_plan(ctx, meta)
    height, width = final_size(ctx, "video", plan.height, plan.width)
    return len(plan.indices) // 2, height // patch_size(ctx), width // patch_size(ctx)


def grid_of(ctx: "FamilyContext", meta: MediaMeta) -> tuple[int, int, int]:
    """The grid of an image or a video."""
    return image_grid(ctx, meta) if meta.kind == "image" else video_grid(ctx, meta)


def count_vision(ctx: "FamilyContext", meta: MediaMeta) -> int:
    """Tokens of an image or a video: a quarter of its patches."""
    t, h, w = grid_of(ctx, meta)
    return t * h * w // MERGE**2


def vision_patches(ctx: "FamilyContext", meta: MediaMeta) -> int:
    """Patches of an image or a video."""
    return math.prod(grid_of(ctx, meta))


def map_image(ctx: "FamilyContext", items: list[Decoded]) -> dict[str, NDArray[Any]]:
    """Images → image_grid_thw (n, 3), pixel_values uint8 (patches, 3·p·p)."""
    patch = patch_size(ctx)
    grids = [image_grid(ctx, item.meta) for item in items]
    patches = []
    for item, (_, h, w) in zip(items, grids, strict=True):
        height, width = fetched_size(ctx, item.meta)
        pixels = resize_bytes(resize(item.image, (width, height))[None], (w * patch, h * patch))
        patches.append(image_patches(pixels[0], patch))
    return {"image_grid_thw": np.array(grids, np.int32), "pixel_values": _joined(patches)}


def map_video(ctx: "FamilyContext", items: list[Decoded]) -> dict[str, NDArray[Any]]:
    """Videos → video_grid_thw (n, 3), pixel_values_videos uint8 (patches, 3·2·p·p)."""
    patch = patch_size(ctx)
    grids, patches = [], []
    for item in items:
        plan = video_plan(ctx, item.meta)
        if item.frames is None:
            frames = frame_list(item, plan, (plan.width, plan.height))
        else:
            frames = resize(item.frames(list(plan.indices)), (plan.width, plan.height))
        height, width = final_size(ctx, "video", plan.height, plan.width)
        grids.append((len(frames) // 2, height // patch, width // patch))
        patches.append(video_patches(resize_bytes(frames, (width, height)), patch))
    return {"video_grid_thw": np.array(grids, np.int32), "pixel_values_videos": _joined(patches)}


def _joined(patches: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return patches[0] if len(patches) == 1 else np.concatenate(patches)


def frame_list(item: Decoded, plan: VideoPlan, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The frames (T, H, W, 3) of a video given as images, each resized to (width, height); the last fills a pair."""
    pictures = [resize(item.images[i], size) for i in dict.fromkeys(plan.indices)]
    return np.stack([*pictures, *pictures[-1:] * (len(plan.indices) - len(pictures))])


def dummy(
    ctx: "FamilyContext", bin_length: int, counts: dict[str, int]
) -> tuple[list[dict[str, str]], dict[str, list[Any]]]:
    """A chat with black images, one second of silence and short videos."""
    media: dict[str, list[Any]] = {
        "image": [ctx.blank_image(280, 280)] * counts.get("image", 0),
        "audio": [np.zeros(16000, np.float32)] * counts.get("audio", 0),
        "video": [[ctx.blank_image(112, 112)] * 4] * counts.get("video", 0),
    }
    media = {modality: items for modality, items in media.items() if modality in ctx.modalities}
    tags = "".join(f"<{m}>" * len(items) for m, items in media.items())
    return [{"role": "user", "content": tags + "hi"}, {"role": "assistant", "content": "ok"}], media


def reading_order(ctx: "FamilyContext", sample: Sample, modalities: Iterable[str]) -> list[tuple[int, str, int]]:
    """(first token, modality, number of the item) of each media block of an expanded row whose blocks hold one token
    each.
    """
    ids = {ctx.placeholder_id(m): m for m in modalities}
    media = np.isin(sample.ids, list(ids))
    starts = np.flatnonzero(media & ~np.concatenate([[False], media[:-1]])).tolist()
    numbers = {m: iter([i for i, item in enumerate(sample.items[m]) if not item.meta.in_video]) for m in ids.values()}
    return [(s, modality, next(numbers[modality], -1)) for s in starts for modality in [ids[int(sample.ids[s])]]]


def patches_params(ctx: "FamilyContext", settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the loader needs to make floats of patches, from the checkpoint's settings."""
    mean, std = ctx.attribute("image_mean"), ctx.attribute("image_std")
    return {
        "mean": tuple(settings.get("image_mean", mean)),
        "std": tuple(settings.get("image_std", std)),
        "patch_size": patch_size(ctx),
        "temporal_patch_size": 2,
    }


def vision_fields(patch: int) -> dict[str, Field]:
    """The forward arguments of images and videos."""
    return {
        "image_grid_thw": Field("image", "item", dtype="int32", shape=(3,)),
        "video_grid_thw": Field("video", "item", dtype="int32", shape=(3,)),
        "pixel_values": Field(
            "image",
            "flat",
            sizes="prod(image_grid_thw)",
            dtype="uint8",
            shape=(3 * patch * patch,),
            load="patches",
            params=lambda ctx: patches_params(ctx, ctx.preprocessor),
        ),
        "pixel_values_videos": Field(
            "video",
            "flat",
            sizes="prod(video_grid_thw)",
            dtype="uint8",
            shape=(6 * patch * patch,),
            load="patches",
            params=lambda ctx: patches_params(ctx, ctx.video_preprocessor or ctx.preprocessor),
        ),
    }


def vision_options(side: int) -> dict[str, Any]:
    """The options of images and videos, for tokens of `side` x `side` pixels."""
    area = side * side
    return {
        "max_pixels": 16384 * area,
        "min_pixels": 4 * area,
        "video_max_pixels": 768 * area,
        "video_min_pixels": 128 * area,
        "video_total_pixels": int(128000 * area * 0.9),
        "fps": 2.0,
        "fps_min_frames": 4,
        "fps_max_frames": 768,
        "video_timing": "reference",
    }


ROW_OPTIONS = (
    *("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"),
    *("fps", "nframes", "min_frames", "max_frames", "video_start", "video_end"),
)


def most_image(ctx: "FamilyContext") -> int:
    """An upper bound of an image's tokens."""
    first = most_image_tokens(limits_of(ctx), fetch_factor(ctx))
    if ctx.attribute("fetch_factor") is None:
        return first
    # The side of a token grows by 32/28, to which a side of the picture grows at most: what is fetched bounds what is
    # seen, unless the second resize enlarges it.
    return max(first, most_image_tokens(replace(second_limits(ctx, "image"), max_pixels=0), factor(ctx)))


def most_video(ctx: "FamilyContext") -> int:
    """An upper bound of a video's tokens."""
    limits = limits_of(ctx)
    if ctx.attribute("fetch_factor") is None:
        return most_video_tokens(limits, factor(ctx))
    enlarged = most_image_tokens(replace(second_limits(ctx, "video"), max_pixels=0), factor(ctx))
    pairs = max(limits.fps_max_frames, limits.fps_min_frames, 2) // 2 + 1
    return max(most_video_tokens(limits, fetch_factor(ctx)), pairs * enlarged)


@REGISTRY.register_image_input_mapper(map_image)
@REGISTRY.register_input_mapper("video", map_video)
@REGISTRY.register_max_image_tokens(most_image)
@REGISTRY.register_max_multimodal_tokens("video", most_video)
@REGISTRY.register_token_counter("image", count_vision)
@REGISTRY.register_token_counter("video", count_vision)
@REGISTRY.register_tower_work("image", vision_patches)
@REGISTRY.register_tower_work("video", vision_patches)
@REGISTRY.register_dummy_data(dummy)
class QwenVision(SupportsMultiModal):
    """What the Qwen families with images and videos inherit."""

    patch_size: ClassVar[int] = 14
    fetch_factor: ClassVar[int | None] = None
    """Side in pixels of the multiples that media are resized to before the processor resizes them once more."""
    refuses_thin: ClassVar[bool] = True
    """As `Limits` says; of the library that the reference fetches the family's media with."""
    refuses_crossed: ClassVar[bool] = False
    image_mean: ClassVar[tuple[float, ...]] = CLIP_MEAN
    image_std: ClassVar[tuple[float, ...]] = CLIP_STD
    limits = {"image": None, "video": None}
    placeholders = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    tags = {
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
        "video": "<|vision_start|><|video_pad|><|vision_end|>",
    }
    media_tokens: ClassVar[tuple[str, ...]] = ("<|vision_start|>", "<|vision_end|>")
    fields = vision_fields(14)
    options = vision_options(28)
    row_options = frozenset(ROW_OPTIONS)

    @staticmethod
    def resized_image(ctx: "FamilyContext", meta: MediaMeta) -> tuple[int, int]:
        """(width, height) of an image as the model sees it, for boxes in pixels."""
        _, h, w = image_grid(ctx, meta)
        return w * patch_size(ctx), h * patch_size(ctx)
