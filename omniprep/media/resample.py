"""Images and video frames resized to the bytes of Pillow and of torchvision, two to three times faster.

The weights are Pillow's formula, or read off torch itself. Each pair of lengths (Pillow) or sizes (torch) is tried out
once in every process, on noise, and only where the library's results are equal to ours in every bit do our kernels
(omniprep/media/kernels.py) take its place. So a library that computes differently, or a machine without numba, costs
time and never a bit. Where the kernels must be compiled first, which takes some ten seconds once on a machine, the
libraries do the first `FEW` pictures of a process: a small build is over before that would pay.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Weights = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]
"""First input of each output (outputs,), groups of four of its weights (outputs,), the weights, zeros at the end."""


@lru_cache(maxsize=1)
def _kernels() -> Any:
    """The compiled kernels, or None where numba is absent or cannot be used."""
    try:
        from omniprep.media import kernels
    except (ImportError, RuntimeError, OSError):
        return None
    return kernels


FEW = 256
_done = 0
"""Pictures that the libraries resized in this process while no compiled kernels were there."""


@lru_cache(maxsize=2)
def _compiled(kernel: str) -> bool:
    """Whether numba keeps code of this very kernel on the disk (a wrong guess costs time alone)."""
    kernels = _kernels()
    if kernels is None:
        return True
    made = Path(kernels.__file__).stat().st_mtime
    folder = Path(getattr(kernels, kernel).stats.cache_path)
    return any(path.stat().st_mtime >= made for path in folder.glob(f"kernels.{kernel}-*.nbi"))


def _worth_it(kernel: str, pictures: int) -> bool:
    """Whether to use a kernel for some more pictures, compiling it where it is not."""
    global _done
    if _done >= FEW or _compiled(kernel):
        return True
    _done += pictures
    return False


def image_is_fast() -> bool:
    """Whether pictures are resized by our kernels here (tried on one pair of lengths); for `omniprep doctor`."""
    return bool(_side(640, 448))


def video_is_fast() -> bool:
    """Whether frames are, likewise."""
    return _checked(180, 320, 112, 196) is not None


def resize_image(image: Any, width: int, height: int) -> Pixels:
    """`image.resize((width, height))`, which is bicubic, as an array (height, width, 3).

    Args:
        image: 8-bit RGB image of Pillow.
        width: New width.
        height: New height.
    """
    # Of a very tall image, Pillow may take the passes the other way round.
    if image.height > 100 * image.width or not _worth_it("whole_across", 1):
        return np.asarray(image.resize((width, height)), np.uint8)
    across, down = (_side(*pair) for pair in zip(image.size, (width, height), strict=True))
    if image.mode != "RGB" or across is False or down is False or (across is None and down is None):
        return np.asarray(image.resize((width, height)), np.uint8)
    return _whole(image, across, down)


STRIP_PIXELS = 4 << 20
"""Larger pictures go through the first pass in strips: Pillow holds them in pieces, so they must be copied."""
Whole = tuple[NDArray[np.int32], NDArray[np.int32]]
"""First input of each output (outputs,), and the weights from there on (outputs, a multiple of 4), zeros at the end."""


def _whole(image: Any, across: Whole | None, down: Whole | None) -> Pixels:
    """Pillow's two passes. The rows of the result have their channels apart, which is how patches want them."""
    kernels = _kernels()
    if across is None:
        assert down is not None
        pixels = np.asarray(image, np.uint8)
        result = np.empty((len(down[0]), *pixels.shape[1:]), np.uint8)
        kernels.whole_down(pixels.reshape(len(pixels), -1), *down, 0, result.reshape(len(result), -1))
        return result
    top, bottom = 0, image.height
    if down is not None:  # the second pass may not need all rows
        top, bottom = int(down[0][0]), min(int(down[0][-1]) + down[1].shape[1], bottom)
    between = _across(image, across, top, bottom)
    size = 3 * len(across[0])
    if down is None:
        return _channels_last(between[:, :size])
    result = np.empty((len(down[0]), size), np.uint8)
    kernels.whole_down(between, *down, top, result)
    return _channels_last(result)


def _across(image: Any, weights: Whole, top: int, bottom: int) -> Pixels:
    """Rows top..bottom after the first pass, (rows, 3 * w and up to 7 bytes more)."""
    kernels = _kernels()
    rows = bottom - top
    result = np.empty((-(-rows // kernels.ROWS) * kernels.ROWS, -(-3 * len(weights[0]) // 8) * 8), np.uint8)
    words = result.view(np.uint64)
    if image.width * image.height <= STRIP_PIXELS:
        kernels.whole_across(_words(image), *weights, top, rows, words)
        return result[:rows]
    step = max(STRIP_PIXELS // image.width // kernels.ROWS, 1) * kernels.ROWS
    for start in range(0, rows, step):
        end = min(start + step, rows)
        strip = image.crop((0, top + start, image.width, top + end))
        kernels.whole_across(_words(strip), *weights, 0, end - start, words[start:])
    return result[:rows]


def _channels_last(rows: NDArray[Any]) -> NDArray[Any]:
    """A view (..., H, W, 3) of rows (..., H, 3 * W) that have their channels apart."""
    return np.moveaxis(rows.reshape(*rows.shape[:-1], 3, -1), -2, -1)


def _words(image: Any) -> NDArray[np.uint32]:
    """The pixels of an RGB image of Pillow, four bytes each, (H, W): Pillow's own memory where it is in one piece."""
    import pyarrow as pa

    try:
        data = pa.array(image).values.buffers()[1]
    except (ValueError, TypeError, pa.ArrowInvalid):  # several pieces; a Pillow older than 11.2
        data = image.tobytes("raw", "RGBX")
    return np.frombuffer(data, np.uint32)[: image.width * image.height].reshape(image.height, image.width)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _whole_weights(old: int, new: int) -> Whole:
    """Weights of one pass (Pillow: Resample.c precompute_coeffs, normalize_coeffs_8bpc)."""
    scale = old / new
    support = 2.0 * max(scale, 1.0)
    centers = (np.arange(new) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centers + support + 0.5).astype(np.int64), old) - first
    taps = np.arange(-(-(math.ceil(support) * 2 + 1) // 4) * 4)
    weights = _bicubic((taps + first[:, None] - centers[:, None] + 0.5) * (1.0 / max(scale, 1.0)))
    weights[taps >= count[:, None]] = 0.0
    total = np.zeros(new)
    for tap in taps:  # one after the other, as the C loop adds
        total += weights[:, tap]
    weights = weights / np.where(total == 0.0, 1.0, total)[:, None] * (1 << 22)
    whole = np.trunc(np.where(weights < 0, weights - 0.5, weights + 0.5)).astype(np.int32)
    used = -(-(int(np.flatnonzero((whole != 0).any(axis=0))[-1]) + 1) // 4) * 4
    return first.astype(np.int32), np.ascontiguousarray(whole[:, :used])


@lru_cache(maxsize=4096)
def _side(old: int, new: int) -> Whole | Literal[False] | None:
    """Weights of one pass; None where it is none, False where Pillow computes otherwise."""
    from PIL import Image

    if old == new:
        return None
    if _kernels() is None:
        return False
    weights = _whole_weights(old, new)
    noise = np.random.default_rng(0).integers(0, 256, (2, old, 3), np.uint8)
    wide, tall = Image.fromarray(noise), Image.fromarray(np.ascontiguousarray(noise.transpose(1, 0, 2)))
    same = np.array_equal(_whole(wide, weights, None), np.asarray(wide.resize((new, 2))))
    same = same and np.array_equal(_whole(tall, None, weights), np.asarray(tall.resize((2, new))))
    return weights if same else False


def resize_bytes(frames: Pixels, height: int, width: int) -> Pixels:
    """Frames (T, H, W, 3) resized by torch's antialiased bicubic kernel of whole numbers (torchvision's functions of
    version 2, which the processors call).
    """
    import torch

    if frames.shape[1:3] == (height, width):
        return frames
    tensor = torch.from_numpy(np.require(frames, requirements="W")).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(tensor, size=(height, width), mode="bicubic", antialias=True)
    result: Pixels = small.permute(0, 2, 3, 1).contiguous().numpy()
    return result


def resize_frames(frames: Pixels, height: int, width: int) -> Pixels:
    """Frames (T, H, W, 3) resized by torchvision's antialiased bicubic kernel on uint8, as the reference does."""
    if frames.shape[1:3] == (height, width):
        return frames
    weights = _checked(frames.shape[1], frames.shape[2], height, width) if _worth_it("across", len(frames)) else None
    if weights is None:
        return _torchvision(frames, height, width)
    kernels = _kernels()
    result = np.empty((len(frames), height, 3 * width), np.uint8)
    between = np.empty((frames.shape[1], width * 3), np.float32)
    total = np.empty((height, width * 3), np.float32)
    for frame, out in zip(frames, result, strict=True):  # one by one: what is between the passes stays in the cache
        kernels.across(frame.reshape(len(frame), -1), *weights[0], between)
        kernels.down(between, *weights[1], total)
        kernels.to_bytes(total, out)
    return _channels_last(result)


def _torchvision(frames: Pixels, height: int, width: int) -> Pixels:
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    small = resize(tensor, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    result: Pixels = small.permute(0, 2, 3, 1).contiguous().numpy()
    return result


@lru_cache(maxsize=1024)
def _weights(old: int, new: int) -> Weights:
    """Weights of one pass, as torch's kernel answers single bright pixels; their windows as its source has them."""
    import torch

    basis = torch.eye(old)[None, None]
    answer = torch.nn.functional.interpolate(basis, size=(old, new), mode="bicubic", antialias=True)[0, 0].numpy().T
    one, half = np.float32(1), np.float32(0.5)
    scale = np.float32(old) / np.float32(new)
    support, centers = 2 * max(scale, one), scale * (np.arange(new, dtype=np.float32) + half)
    first = np.maximum((centers - support + half).astype(np.int64), 0)
    count = np.minimum((centers + support + half).astype(np.int64), old) - first
    taps = first[:, None] + np.arange(int(count.max()) + 3)
    weights = np.where(taps < old, np.take_along_axis(answer, np.minimum(taps, old - 1), axis=1), 0)
    return first.astype(np.int32), ((count - 1) // 4).astype(np.int32), np.ascontiguousarray(weights, np.float32)


@lru_cache(maxsize=1024)
def _checked(old_height: int, old_width: int, height: int, width: int) -> tuple[Weights, Weights] | None:
    """Weights of both passes, or None where torch computes otherwise."""
    import torch

    kernels = _kernels()
    if kernels is None:
        return None
    across, down = _weights(old_width, width), _weights(old_height, height)
    noise = np.random.default_rng(0).integers(0, 256, (old_height, old_width, 3), np.uint8)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(noise).permute(2, 0, 1)[None].float(), size=(height, width), mode="bicubic", antialias=True
    )
    ours = np.empty((height, width * 3), np.float32)
    between = np.empty((old_height, width * 3), np.float32)
    kernels.across(noise.reshape(old_height, -1), *across, between)
    kernels.down(between, *down, ours)
    same = np.array_equal(_channels_last(ours), theirs[0].permute(1, 2, 0).numpy())
    return (across, down) if same else None
