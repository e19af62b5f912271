"""Our sizes and frame choices against the installed qwen_omni_utils: a part of `omniprep doctor`.

Rows follow qwen_omni_utils 0.0.8, without calling it: its functions take decoded media, a plan has headers alone. A
version that computes otherwise does not change what omniprep builds, but a trainer that calls it would see other sizes.
So its functions are called over a grid of sizes, rates and durations, and the first difference is reported.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from omniprep.errors import Reject
from omniprep.families.qwen.vision import (
    FRAME_FACTOR,
    MAX_RATIO,
    Limits,
    frame_count,
    frame_range,
    frame_size,
    image_size,
    smart_resize,
)

SIDES = (1, 3, 20, 27, 28, 29, 56, 97, 224, 300, 448, 719, 1013, 1280, 1920, 4096)
# Least and most tokens of a picture: the defaults of images and of frames, and some that people set.
TOKENS = ((4, 16384), (128, 768), (1, 4), (4, 256), (256, 1280), (16, 64))
FACTORS = (28, 32)
FRAMES = (*range(1, 9), 30, 33, 77, 100, 121, 240, 553, 1800, 5000, 40_000)
RATES = (0.5, 1.0, 5.0, 7.5, 10.0, 24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 50.0, 60000 / 1001, 60.0, 120.0)
WANTED_RATES = (0.5, 1.0, 2.0, 3.0, 7.3, 30.0)
FRAME_LIMITS = ((4, 768), (2, 6), (5, 33), (10, 32))
RANGES = ((None, None), (0.0, 1.0), (0.4, 3.3), (2.0, None), (None, 2.5), (1.0, 1.0), (5.0, 2.0), (-1.0, 100.0))
Outcome = tuple[float, ...] | None
"""What a function gives; None where it refuses the input."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether one kind of choice equals the reference's."""

    name: str
    holds: bool
    text: str


def _ours(function: Callable[..., Any], *args: Any) -> Outcome:
    try:
        outcome = function(*args)
    except Reject:
        return None
    return outcome if isinstance(outcome, tuple) else (outcome,)


def _theirs(function: Callable[..., Any], *args: Any, **named: Any) -> Outcome:
    try:
        outcome = function(*args, **named)
    except (ValueError, AssertionError):
        return None
    return tuple(map(int, outcome)) if isinstance(outcome, tuple) else (int(outcome),)


def _images(utils: Any) -> Iterator[tuple[str, Outcome, Outcome]]:
    for height, width in itertools.product(SIDES, SIDES):
        for (least, most), factor in itertools.product(TOKENS, FACTORS):
            low, high = least * factor**2, most * factor**2
            yield (
                f"a picture of {width}x{height}, {low} to {high} pixels, in multiples of {factor}",
                _theirs(utils.smart_resize, height, width, factor=factor, min_pixels=low, max_pixels=high),
                _ours(smart_resize, height, width, factor, low, high),
            )


def _fetched(utils: Any) -> Iterator[tuple[str, Outcome, Outcome]]:
    """Images through `fetch_image`, whose limits are the module's own."""
    from PIL import Image

    for width, height in itertools.product((1, 20, 50, 97, 300), (1, 15, 42, 230)):
        picture = Image.new("RGB", (width, height))
        theirs = _theirs(_size_of, utils.fetch_image, picture)
        yield f"fetch_image of {width}x{height}", theirs, _ours(image_size, height, width, Limits())


def _size_of(fetch_image: Callable[..., Any], picture: Any) -> tuple[int, int]:
    fetched = fetch_image({"image": picture})
    return fetched.height, fetched.width


def _frame_sizes(utils: Any) -> Iterator[tuple[str, Outcome, Outcome]]:
    limits = Limits()
    low = limits.video_min_pixels
    for height, width in itertools.product(SIDES, SIDES):
        for taken in (2, 4, 16, 64, 256, 768):
            # The most pixels of a frame, as fetch_video has them: it is no function of its own.
            most = limits.video_total_pixels / taken * 2
            high = max(min(limits.video_max_pixels, most), int(low * 1.05))
            yield (
                f"{taken} frames of {width}x{height}",
                _theirs(utils.smart_resize, height, width, factor=28, min_pixels=low, max_pixels=high),
                _ours(frame_size, height, width, taken, limits, 28, {}),
            )


def _frame_counts(utils: Any) -> Iterator[tuple[str, Outcome, Outcome]]:
    for frames, rate in itertools.product(FRAMES, RATES):
        for fps, (least, most) in itertools.product(WANTED_RATES, FRAME_LIMITS):
            asked = {"fps": fps, "min_frames": least, "max_frames": min(most, frames)}
            yield (
                f"{frames} frames at {rate:.6g} a second, asked for {fps} a second, {least} to {most} frames",
                _theirs(utils.smart_nframes, asked, total_frames=frames, video_fps=rate),
                _ours(frame_count, frames, rate, Limits(fps=fps, fps_min_frames=least, fps_max_frames=most), {}),
            )


def _frame_ranges(utils: Any) -> Iterator[tuple[str, Outcome, Outcome]]:
    for frames, rate, (start, end) in itertools.product(FRAMES, RATES, RANGES):
        limits = (("video_start", start), ("video_end", end))
        asked = {name: seconds for name, seconds in limits if seconds is not None}
        yield (
            f"{frames} frames at {rate:.6g} a second, from {start} s to {end} s",
            _theirs(utils.calculate_video_frame_range, asked, frames, rate),
            _ours(frame_range, frames, rate, asked),
        )


def _defaults(utils: Any) -> Iterator[tuple[str, Outcome, Outcome]]:
    limits, area = Limits(), 28 * 28
    known = {
        "MIN_PIXELS": limits.min_pixels,
        "MAX_PIXELS": limits.max_pixels,
        "VIDEO_MIN_PIXELS": limits.video_min_pixels,
        "VIDEO_MAX_PIXELS": limits.video_max_pixels,
        "IMAGE_MIN_TOKEN_NUM": limits.min_pixels // area,
        "IMAGE_MAX_TOKEN_NUM": limits.max_pixels // area,
        "VIDEO_MIN_TOKEN_NUM": limits.video_min_pixels // area,
        "VIDEO_MAX_TOKEN_NUM": limits.video_max_pixels // area,
        "FPS": limits.fps,
        "FPS_MIN_FRAMES": limits.fps_min_frames,
        "FPS_MAX_FRAMES": limits.fps_max_frames,
        "FRAME_FACTOR": FRAME_FACTOR,
        "MAX_RATIO": MAX_RATIO,
        "IMAGE_FACTOR": 28,
    }
    for name, value in known.items():
        if hasattr(utils, name):  # versions name them differently
            yield f"the default {name}", (getattr(utils, name),), (value,)


def compare_with_qwen_omni_utils() -> list[Agreement]:
    """Of each kind of choice whether it agrees, or the first input of which it does not."""
    from qwen_omni_utils.v2_5 import vision_process as utils

    release = version("qwen-omni-utils")
    sizes = {"sizes of images": (_images, _fetched), "sizes of frames": (_frame_sizes,)}
    choices = {"frames taken": (_frame_counts,), "parts of videos": (_frame_ranges,), "defaults": (_defaults,)}
    logger = logging.getLogger(utils.__name__)
    quiet, logger.disabled = logger.disabled, True  # it warns of each short video
    try:
        return [
            _compare(
                name, release, itertools.chain.from_iterable(part(utils) for part in parts), of_sizes=name in sizes
            )
            for name, parts in {**sizes, **choices}.items()
        ]
    finally:
        logger.disabled = quiet


def _compare(name: str, release: str, cases: Iterator[tuple[str, Outcome, Outcome]], *, of_sizes: bool) -> Agreement:
    equal = thin = 0
    for what, theirs, ours in cases:
        if theirs == ours:
            equal += 1
        elif of_sizes and theirs is not None and 0 in theirs and ours is not None:
            thin += 1  # 0.0.9 has lost the floor of one token that 0.0.8 has; such a picture fails there
        else:
            text = f"{release} gives {_say(theirs)} for {what}; omniprep gives {_say(ours)}"
            return Agreement(name, False, text)
    rule = f"; {thin} thin pictures that it shrinks to nothing keep one token, as in 0.0.8" if thin else ""
    return Agreement(name, True, f"{equal} equal to those of qwen_omni_utils {release}{rule}")


def _say(outcome: Outcome) -> str:
    return "an error" if outcome is None else " x ".join(map(str, outcome))
