"""Sizes of images and videos for the Qwen vision towers, as pure functions of header facts and limits.

Source: qwen_omni_utils 0.0.8 v2_5/vision_process.py (smart_resize, smart_nframes, fetch_video); Python's round is half
to even. Sides are in pixels. Every function here is exact: tests compare it with qwen_omni_utils on random sizes and
limits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.families.kinds import MediaMeta
from omniprep.shards.codecs.picture import PictureShape

MAX_RATIO = 200
FRAME_FACTOR = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """Pixel and frame limits of one build (the reference's environment variables)."""

    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 16384 * 28 * 28
    video_min_pixels: int = 128 * 28 * 28
    video_max_pixels: int = 768 * 28 * 28
    video_total_pixels: int = 90_316_800
    fps: float = 2.0
    fps_min_frames: int = 4
    fps_max_frames: int = 768
    refuses_thin: bool = False
    """A side that shrinking leaves without a token: refused (qwen_vl_utils), or one token (qwen_omni_utils 0.0.8)."""
    refuses_crossed: bool = False
    """A minimum above the maximum: refused (qwen_vl_utils 0.0.14), or the maximum counts."""


def smart_resize(
    height: int, width: int, factor: int, min_pixels: float, max_pixels: float, rules: Limits | None = None
) -> tuple[int, int]:
    """(height, width), multiples of `factor`, area between the limits where the shape allows, ratio kept.

    `rules` says what is refused as aspect_ratio or bad_option (`refuses_thin`, `refuses_crossed`).
    """
    if rules is not None and rules.refuses_crossed and min_pixels > max_pixels:
        raise Reject(
            RejectCode.BAD_OPTION,
            f"the least area ({min_pixels:.0f} pixels) is above the most ({max_pixels:.0f} pixels)",
        )
    if max(height, width) / min(height, width) > MAX_RATIO:
        raise Reject(
            RejectCode.ASPECT_RATIO, f"{width}x{height} pixels: one side is more than {MAX_RATIO} times the other"
        )
    h = max(factor, round(height / factor) * factor)
    w = max(factor, round(width / factor) * factor)
    if h * w > max_pixels:
        beta = math.sqrt((height * width) / max_pixels)
        h = math.floor(height / beta / factor) * factor
        w = math.floor(width / beta / factor) * factor
        if rules is not None and rules.refuses_thin and not (h and w):
            raise Reject(
                RejectCode.ASPECT_RATIO,
                f"{width}x{height} pixels: shrunk to {max_pixels:.0f} pixels, its shorter side is less than a token of "
                f"{factor} pixels; use a larger maximum",
            )
        h, w = max(factor, h), max(factor, w)
    elif h * w < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        h = math.ceil(height * beta / factor) * factor
        w = math.ceil(width * beta / factor) * factor
    return h, w


def _asked_size(options: Mapping[str, Any], factor: int) -> tuple[int, int] | None:
    if "resized_height" in options and "resized_width" in options:
        area = factor * factor
        return smart_resize(options["resized_height"], options["resized_width"], factor, 4 * area, 16384 * area)
    return None


def image_size(
    height: int, width: int, limits: Limits, factor: int = 28, options: Mapping[str, Any] | None = None
) -> tuple[int, int]:
    """(height, width) of an image as the model sees it, or the reject aspect_ratio."""
    options = options or {}
    size = _asked_size(options, factor)
    if size is not None:
        return size
    low, high = options.get("min_pixels", limits.min_pixels), options.get("max_pixels", limits.max_pixels)
    return smart_resize(height, width, factor, low, high, limits)


def frame_range(frames: int, fps: float, options: Mapping[str, Any]) -> tuple[int, int, int]:
    """(first, last, count) of frames from video_start to video_end in seconds; rejects bad_video_option."""
    start, end = options.get("video_start"), options.get("video_end")
    if start is None and end is None:
        return 0, frames - 1, frames
    duration = frames / fps
    first = 0 if start is None else math.ceil(max(0.0, min(start, duration)) * fps)
    last = frames - 1 if end is None else min(math.floor(max(0.0, min(end, duration)) * fps), frames - 1)
    if first >= last:
        raise Reject(
            RejectCode.BAD_VIDEO_OPTION, f"video_start {start} and video_end {end} leave no frames of {duration:.2f} s"
        )
    return first, last, last - first + 1


def frame_count(frames: int, fps: float, limits: Limits, options: Mapping[str, Any]) -> int:
    """Frames taken of `frames`, always even; rejects video_too_short, bad_video_option."""
    if "nframes" in options:
        if "fps" in options:
            raise Reject(RejectCode.BAD_VIDEO_OPTION, "give fps or nframes, not both")
        wanted = round(options["nframes"] / FRAME_FACTOR) * FRAME_FACTOR
        if not FRAME_FACTOR <= wanted <= frames:
            raise Reject(RejectCode.BAD_VIDEO_OPTION, f"nframes {options['nframes']}: the video has {frames} frames")
        return int(wanted)
    least = math.ceil(options.get("min_frames", limits.fps_min_frames) / FRAME_FACTOR) * FRAME_FACTOR
    most = math.floor(options.get("max_frames", min(limits.fps_max_frames, frames)) / FRAME_FACTOR) * FRAME_FACTOR
    value = frames / fps * options.get("fps", limits.fps)
    wanted = math.floor(min(min(max(value, least), most), frames) / FRAME_FACTOR) * FRAME_FACTOR
    if wanted < FRAME_FACTOR:
        raise Reject(RejectCode.VIDEO_TOO_SHORT, f"{frames} frames; at least {FRAME_FACTOR} are needed")
    return int(wanted)


def frame_size(
    height: int, width: int, taken: int, limits: Limits, factor: int, options: Mapping[str, Any]
) -> tuple[int, int]:
    """(height, width) of each of `taken` frames, or the reject aspect_ratio."""
    low = options.get("min_pixels", limits.video_min_pixels)
    total = options.get("total_pixels", limits.video_total_pixels)
    high = max(min(limits.video_max_pixels, total / taken * FRAME_FACTOR), int(low * 1.05))
    high = min(options.get("max_pixels", high), high)
    size = _asked_size(options, factor)
    return size if size is not None else smart_resize(height, width, factor, low, high, limits)


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """Which frames of a video are taken, at what size, and how many a second they are."""

    indices: tuple[int, ...]
    height: int
    width: int
    sample_fps: float


def plan_video(meta: MediaMeta, limits: Limits, factor: int = 28) -> VideoPlan:
    """The frames to take, by the header; rejects aspect_ratio, video_too_short, bad_video_option."""
    if meta.sizes:
        sizes = {image_size(h, w, limits, factor, meta.options) for w, h in meta.sizes}
        if len(sizes) > 1:
            raise Reject(
                RejectCode.BAD_MEDIA, f"the frames of a video must become one size, these become {sorted(sizes)}"
            )
        height, width = sizes.pop()
        indices = list(range(len(meta.sizes)))
        indices += indices[-1:] * (-len(indices) % FRAME_FACTOR)
        return VideoPlan(tuple(indices), height, width, meta.options.get("fps", 2.0))
    first, last, count = frame_range(meta.frames, meta.fps, meta.options)
    taken = frame_count(count, meta.fps, limits, meta.options)
    height, width = frame_size(meta.height, meta.width, taken, limits, factor, meta.options)
    return VideoPlan(frame_indices(first, last, taken), height, width, taken / count * meta.fps)


def frame_indices(first: int, last: int, taken: int) -> tuple[int, ...]:
    """torch.linspace(first, last, taken).round(), in float32 as torch computes it."""
    import torch

    return tuple(torch.linspace(first, last, taken).round().long().tolist())


def image_patches(pixels: NDArray[np.uint8], patch: int = 14, merge: int = 2) -> NDArray[np.uint8]:
    """(H, W, 3) → (H/p · W/p, 3·p·p): merge windows of 2x2 patches row by row, without the temporal copy.

    Source: transformers Qwen2VLImageProcessor (order of patches and of values in a patch).
    """
    return _patches(pixels[None], 1, patch, merge)


def video_patches(frames: NDArray[np.uint8], patch: int = 14, merge: int = 2) -> NDArray[np.uint8]:
    """(T, H, W, 3) → (T/2 · H/p · W/p, 3·2·p·p)."""
    return _patches(frames, FRAME_FACTOR, patch, merge)


def _patches(frames: NDArray[np.uint8], together: int, patch: int, merge: int) -> NDArray[np.uint8]:
    """Patches of so many frames each, those of one step in time after those of the one before."""
    count, height, width, _ = frames.shape
    shape = PictureShape(together, height, width, patch, patch, merge)
    patches = np.empty((count // together, shape.size), np.uint8)
    for step, pictures in zip(patches, frames.reshape(count // together, together, height, width, 3), strict=True):
        shape.fill_patches(step, pictures)
    return patches.reshape(-1, 3 * together * patch * patch)


def most_image_tokens(limits: Limits, factor: int = 28) -> int:
    """Most tokens of an image: the area limit, what shrinking keeps of thin images, what growing adds."""
    area = factor * factor
    high, low = limits.max_pixels / area, limits.min_pixels / area
    return math.ceil(max(high, math.sqrt(MAX_RATIO * high), low + math.sqrt(low) * (math.sqrt(MAX_RATIO) + 0.1) + 1, 1))


def most_video_tokens(limits: Limits, factor: int = 28) -> int:
    """An upper bound of a video's tokens, over every number of frames."""
    area = factor * factor
    best = 1
    low = limits.video_min_pixels / area
    grown = low + math.sqrt(low) * (math.sqrt(MAX_RATIO) + 0.1) + 1
    for taken in range(2, max(limits.fps_max_frames, limits.fps_min_frames, 2) + 2, 2):
        high = (
            max(
                min(limits.video_max_pixels, limits.video_total_pixels / taken * 2), int(limits.video_min_pixels * 1.05)
            )
            / area
        )
        best = max(best, math.ceil(taken / 2 * max(high, math.sqrt(MAX_RATIO * high), grown)))
    return best
