"""Images and videos of the Qwen families: sizes as qwen_vl_utils (and its twin qwen_omni_utils) has them, patches as
Qwen2-VL.

`QwenVision` is what those families inherit; a family says its patch size, and may replace any of it. Pixels leave here
as uint8 patches: (uint8 - mean*255) / (std*255) in float32 on the device is bit for bit the processor's pixel_values. A
still image is stored without its temporal copy.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep.families.kinds import Array, Decoded, Field, MediaMeta
from omniprep.families.qwen import vision
from omniprep.families.qwen.family import QwenFamily
from omniprep.media.recipe import PixelRecipe, VideoFile
from omniprep.media.resample import resize, resize_bytes
from omniprep.rows.normalize import ITEM_OPTIONS

MERGE = 2
"""Patches along a side of a token."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Grid = tuple[int, int, int]
"""Steps in time, rows and columns."""


def vision_fields(patch: int) -> dict[str, Field]:
    """The forward arguments of images and videos, for patches of `patch` x `patch` pixels."""
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
            params=lambda family: family.patches_params(family.preprocessor),
        ),
        "pixel_values_videos": Field(
            "video",
            "flat",
            sizes="prod(video_grid_thw)",
            dtype="uint8",
            shape=(6 * patch * patch,),
            load="patches",
            params=lambda family: family.patches_params(family.video_preprocessor or family.preprocessor),
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


class QwenVision(QwenFamily):
    """What the Qwen families with images and videos inherit."""

    patch_size: int = 14
    """Side of a patch in pixels."""
    fetch_factor: int | None = None
    """Side in pixels of the multiples that media are resized to before the processor resizes them once more; None:
    they are resized once, to multiples of a token."""
    refuses_thin: bool = True
    """As `Limits` says; of the library that the reference fetches the family's media with."""
    refuses_crossed: bool = False
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD
    limits = {"image": None, "video": None}
    placeholders = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    tags = {
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
        "video": "<|vision_start|><|video_pad|><|vision_end|>",
    }
    media_tokens: tuple[str, ...] = ("<|vision_start|>", "<|vision_end|>")
    fields = vision_fields(14)
    options = vision_options(28)
    row_options = ITEM_OPTIONS

    @cached_property
    def token_side(self) -> int:
        """Side of a token in pixels."""
        return self.patch_size * MERGE

    @cached_property
    def fetched_side(self) -> int:
        """Side in pixels of what media are first resized to multiples of."""
        return self.fetch_factor or self.token_side

    @cached_property
    def pixel_limits(self) -> vision.Limits:
        """The build's pixel and frame limits."""
        return vision.Limits(
            self.opt.min_pixels,
            self.opt.max_pixels,
            self.opt.video_min_pixels,
            self.opt.video_max_pixels,
            self.opt.video_total_pixels,
            self.opt.fps,
            self.opt.fps_min_frames,
            self.opt.fps_max_frames,
            refuses_thin=self.refuses_thin,
            refuses_crossed=self.refuses_crossed,
        )

    def processor_limits(self, modality: str) -> vision.Limits:
        """Pixel limits of the processor, where it resizes images or frames again (families with `fetch_factor`).

        Source: for images the checkpoint's settings; for frames the constants of Qwen3OmniMoeProcessor, which it uses
        instead of those settings.
        """
        if modality == "video":
            area = self.token_side**2
            return vision.Limits(min_pixels=128 * area, max_pixels=768 * area)
        size = self.preprocessor.get("size") or {}
        low = self.preprocessor.get("min_pixels") or size.get("shortest_edge") or 56 * 56
        high = self.preprocessor.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280
        return vision.Limits(min_pixels=int(low), max_pixels=int(high))

    def seen_size(self, modality: str, height: int, width: int) -> tuple[int, int]:
        """(height, width) as the model sees it, of an image or frame that was resized once."""
        if self.fetch_factor is None:
            return height, width
        return vision.image_size(height, width, self.processor_limits(modality), self.token_side)

    def fetched_size(self, meta: MediaMeta) -> tuple[int, int]:
        """(height, width) that an image is resized to first."""
        return vision.image_size(meta.height, meta.width, self.pixel_limits, self.fetched_side, meta.options)

    def video_plan(self, meta: MediaMeta) -> vision.VideoPlan:
        """Frames of a video, and the size that they are resized to first."""
        return vision.plan_video(meta, self.pixel_limits, self.fetched_side)

    def grid(self, meta: MediaMeta) -> Grid:
        """(T, H/patch, W/patch) of an image, whose T is 1, or of a video, whose T is half its frames."""
        if meta.kind == "image":
            steps, (height, width) = 1, self.fetched_size(meta)
        else:
            plan = self.video_plan(meta)
            steps, height, width = len(plan.indices) // 2, plan.height, plan.width
        height, width = self.seen_size(meta.kind, height, width)
        return steps, height // self.patch_size, width // self.patch_size

    def token_grid(self, meta: MediaMeta) -> Grid:
        """The grid of an image or a video in tokens."""
        steps, rows, columns = self.grid(meta)
        return steps, rows // MERGE, columns // MERGE

    def count_tokens(self, modality: str, meta: MediaMeta) -> int:
        """Tokens of an image or a video: a quarter of its patches."""
        if modality not in ("image", "video"):
            return super().count_tokens(modality, meta)
        return math.prod(self.grid(meta)) // MERGE**2

    def cost(self, modality: str, meta: MediaMeta) -> int | None:
        """Patches of an image or a video."""
        if modality not in ("image", "video"):
            return super().cost(modality, meta)
        return math.prod(self.grid(meta))

    def max_tokens(self, modality: str) -> int:
        """An upper bound of the tokens of an image or a video."""
        limits, fetched = self.pixel_limits, self.fetched_side
        if modality not in ("image", "video"):
            return super().max_tokens(modality)
        most = (
            vision.most_image_tokens(limits, fetched)
            if modality == "image"
            else vision.most_video_tokens(limits, fetched)
        )
        if self.fetch_factor is None:
            return most
        # The side of a token grows by 32/28, to which a side of the picture grows at most: what is fetched bounds what
        # is seen, unless the second resize enlarges it.
        enlarged = vision.most_image_tokens(replace(self.processor_limits(modality), max_pixels=0), self.token_side)
        pairs = 1 if modality == "image" else max(limits.fps_max_frames, limits.fps_min_frames, 2) // 2 + 1
        return max(most, pairs * enlarged)

    def map_items(self, modality: str, items: list[Decoded]) -> dict[str, Array]:
        """Images → image_grid_thw (n, 3), pixel_values uint8 (patches, 3·p·p); videos → video_grid_thw (n, 3),
        pixel_values_videos uint8 (patches, 3·2·p·p).
        """
        if modality not in ("image", "video"):
            return super().map_items(modality, items)
        pixels, name = (self.image_pixels, "") if modality == "image" else (self.video_pixels, "_videos")
        patches = [pixels(item) for item in items]
        return {
            f"{modality}_grid_thw": np.array([self.grid(item.meta) for item in items], np.int32),
            f"pixel_values{name}": patches[0] if len(patches) == 1 else np.concatenate(patches),
        }

    def pixel_recipe(self, modality: str, meta: MediaMeta) -> PixelRecipe | None:
        """As `image_pixels` and `video_pixels` compute."""
        frames: tuple[int, ...] = ()
        if modality == "image":
            height, width = self.fetched_size(meta)
        elif modality == "video":
            plan = self.video_plan(meta)
            height, width, frames = plan.height, plan.width, plan.indices
        else:
            return super().pixel_recipe(modality, meta)
        seen_height, seen_width = self.seen_size(modality, height, width)
        video = None
        if modality == "video" and not meta.sizes:
            facts: dict[str, Any] = {
                name: getattr(meta, name) for name in ("width", "height", "frames", "fps", "reader")
            }
            video = VideoFile(**facts)
        return PixelRecipe(size=(width, height), seen=(seen_width, seen_height), frames=frames, video=video)

    def image_pixels(self, item: Decoded) -> NDArray[np.uint8]:
        """Patches of an image, uint8 (patches, 3·p·p)."""
        height, width = self.fetched_size(item.meta)
        pixels = resize(item.image, (width, height))[None]
        height, width = self.seen_size("image", height, width)
        return vision.image_patches(resize_bytes(pixels, (width, height))[0], self.patch_size)

    def video_pixels(self, item: Decoded) -> NDArray[np.uint8]:
        """Patches of a video, uint8 (patches, 3·2·p·p)."""
        plan = self.video_plan(item.meta)
        if item.frames is None:
            frames = self.listed_frames(item, plan)
        else:
            frames = item.frames(plan.indices, (plan.width, plan.height))
        height, width = self.seen_size("video", plan.height, plan.width)
        return vision.video_patches(resize_bytes(frames, (width, height)), self.patch_size)

    def listed_frames(self, item: Decoded, plan: vision.VideoPlan) -> NDArray[np.uint8]:
        """The frames (T, H, W, 3) of a video given as images, resized as the plan says; the last one fills a pair."""
        pictures = [resize(item.images[n], (plan.width, plan.height)) for n in dict.fromkeys(plan.indices)]
        return np.stack([*pictures, *pictures[-1:] * (len(plan.indices) - len(pictures))])

    def patches_params(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the loader needs to make floats of patches, from the checkpoint's settings."""
        return {
            "mean": tuple(settings.get("image_mean", self.image_mean)),
            "std": tuple(settings.get("image_std", self.image_std)),
            "patch_size": self.patch_size,
            "temporal_patch_size": 2,
        }

    def resized_image(self, meta: MediaMeta) -> tuple[int, int]:
        """(width, height) of an image as the model sees it, for boxes in pixels."""
        _, rows, columns = self.grid(meta)
        return columns * self.patch_size, rows * self.patch_size
