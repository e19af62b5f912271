"""`resize`: images and video frames, bicubic, to the bytes of Pillow and of torchvision, four times faster.

Our kernels (omniprep/media/kernels.py) replace a library only where they give the same bits: the weights are Pillow's
formula, or read from torch's own answers, and each pair of lengths (Pillow) or sizes (torch) is tried on noise once in
every process. A library that computes differently, or a machine without numba, costs time and never a bit.
"""

import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from omniprep.media.compiled import CompiledElsewhere, answer_of_compiler, call_compiled

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
"""(width, height)."""
PillowPass = tuple[NDArray[np.int32], NDArray[np.int32]]
"""First input of each output (outputs,), and the weights from there on (outputs, a multiple of 4), zeros at the end."""
TorchPass = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]
"""First input of each output (outputs,), groups of four of its weights (outputs,), the weights, zeros at the end."""

KERNELS_AFTER = 128
"""Pictures of a process that the libraries resize before numba is thought of. Loading compiled kernels takes 1.5 s,
compiling them 14 s once on a machine, which another process does meanwhile; a kernel saves 6 to 30 ms a picture. So
small builds never wait, and large ones lose at most what loading costs."""
STRIP_PIXELS = 4 << 20
"""Pillow stores larger images in several blocks, so they are copied; the first pass copies them strip by strip."""
_MAX_ASPECT = 100
"""Taller images go to Pillow, which may do the vertical pass first."""

_COMPILED = CompiledElsewhere(
    "omniprep.media.resample:compile_kernels", *(Path(__file__).with_name(n) for n in ("kernels.py", "transpose.py"))
)
_resized_by_libraries = 0


def resize(picture: Any, size: Size) -> Pixels:
    """Resize a picture as the reference does, antialiased bicubic.

    Args:
        picture: An 8-bit RGB image of Pillow, resized as by `image.resize(size)`; or video frames (T, H, W, 3) uint8,
            resized as by torchvision's `resize`.
        size: New (width, height).

    Returns:
        uint8 (height, width, 3) of an image, (T, height, width, 3) of frames. It may be a view whose rows have their
        channels apart, which is what cutting into patches reads fastest.
    """
    if isinstance(picture, np.ndarray):
        if picture.shape[1:3] == size[::-1]:
            return picture
        resizer = FrameResizer(picture.shape[2:0:-1], size, len(picture))
        for place, frame in enumerate(picture):
            resizer.put([place], frame)
        return resizer.frames()
    if picture.mode == "RGB" and picture.height <= _MAX_ASPECT * picture.width and _kernels_pay(1):
        across, down = (_pillow_pass(*lengths) for lengths in zip(picture.size, size, strict=True))
        if across is not False and down is not False and (across or down):
            return _resize_image(picture, across, down)
    return np.asarray(picture.resize(size), np.uint8)


def resize_bytes(frames: Pixels, size: Size) -> Pixels:
    """Frames (T, H, W, 3) resized by torch's antialiased bicubic kernel of integers.

    Version 2 of torchvision's functions, which the processors of transformers call, uses it for uint8 tensors.
    """
    if frames.shape[1:3] == size[::-1]:
        return frames
    import torch

    tensor = torch.from_numpy(np.require(frames, requirements="W")).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(tensor, size=size[::-1], mode="bicubic", antialias=True)
    pixels: Pixels = resized.permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def image_is_fast(old: Size = (640, 480), new: Size = (448, 336)) -> bool:
    """Whether images of this size are resized by our kernels here, once `KERNELS_AFTER` is reached."""
    passes = [_pillow_pass(*lengths) for lengths in zip(old, new, strict=True)]
    return False not in passes and any(passes)


def video_is_fast(old: Size = (320, 180), new: Size = (196, 112)) -> bool:
    """Whether video frames of this size are, likewise."""
    return _torch_passes(old, new) is not None


def _kernels_pay(pictures: int) -> bool:
    """Whether to use the kernels: where they are loaded already, or many pictures were resized without and the code is
    there.
    """
    global _resized_by_libraries
    if "omniprep.media.kernels" in sys.modules:
        return True
    if _resized_by_libraries >= KERNELS_AFTER and _COMPILED.is_ready(_resized_by_libraries):
        return True
    _resized_by_libraries += pictures
    return False


def compile_kernels(_: dict[str, Any]) -> bytes | None:
    """The child of `_COMPILED`: call every kernel as `resize` and `FrameResizer` do, but without torch."""
    from PIL import Image

    with _COMPILED.compiling():
        if (kernels := _kernels()) is None:
            return None
        across, down = _pillow_pass(640, 448), _pillow_pass(480, 336)
        if not across or not down:
            return None
        _resize_image(Image.new("RGB", (640, 480)), across, down)
        first, groups, weights = np.zeros(8, np.int32), np.zeros(8, np.int32), np.zeros((8, 4), np.float32)
        frame, between = np.zeros((8, 3 * 8), np.uint8), np.zeros((8, 3 * 8), np.float32)
        call_compiled(kernels.across, frame, first, groups, weights, between)
        call_compiled(kernels.down, between, first, groups, weights, np.zeros_like(between))
        call_compiled(kernels.to_bytes, between, frame)
    return answer_of_compiler()


def _kernels() -> Any:
    """The compiled kernels; None where numba is absent or cannot be used (it has no folder for compiled code, say)."""
    try:
        from omniprep.media import kernels
    except (ImportError, RuntimeError, OSError):
        return None
    return kernels


def _channels_last(rows: NDArray[Any]) -> NDArray[Any]:
    """A view (..., H, W, 3) of rows (..., H, 3 * W) that have their channels apart."""
    return np.moveaxis(rows.reshape(*rows.shape[:-1], 3, -1), -2, -1)


# ---- images, as Pillow


def _resize_image(image: Any, across: PillowPass | None, down: PillowPass | None) -> Pixels:
    """Pillow's horizontal, then vertical pass; None for a length that stays."""
    kernels = _kernels()
    if across is None:
        assert down is not None
        pixels = np.asarray(image, np.uint8)
        result = np.empty((len(down[0]), *pixels.shape[1:]), np.uint8)
        call_compiled(kernels.whole_down, pixels.reshape(len(pixels), -1), *down, 0, result.reshape(len(result), -1))
        return result
    top, bottom = 0, image.height
    if down is not None:  # the vertical pass may not need all rows
        top, bottom = int(down[0][0]), min(int(down[0][-1]) + down[1].shape[1], bottom)
    between = _pass_across(image, across, top, bottom)
    row_bytes = 3 * len(across[0])
    if down is None:
        return _channels_last(between[:, :row_bytes])
    result = np.empty((len(down[0]), row_bytes), np.uint8)
    call_compiled(kernels.whole_down, between, *down, top, result)
    return _channels_last(result)


def _pass_across(image: Any, weights: PillowPass, top: int, bottom: int) -> Pixels:
    """Rows top..bottom after the horizontal pass, (rows, 3 * w and up to 7 bytes more)."""
    kernels = _kernels()
    rows = bottom - top
    result = np.empty((-(-rows // kernels.ROWS) * kernels.ROWS, -(-3 * len(weights[0]) // 8) * 8), np.uint8)
    words = result.view(np.uint64)
    if image.width * image.height <= STRIP_PIXELS:
        call_compiled(kernels.whole_across, _pixel_words(image), *weights, top, rows, words)
        return result[:rows]
    step = max(STRIP_PIXELS // image.width // kernels.ROWS, 1) * kernels.ROWS
    for start in range(0, rows, step):
        end = min(start + step, rows)
        strip = image.crop((0, top + start, image.width, top + end))
        call_compiled(kernels.whole_across, _pixel_words(strip), *weights, 0, end - start, words[start:])
    return result[:rows]


def _pixel_words(image: Any) -> NDArray[np.uint32]:
    """The pixels of an RGB image, four bytes each, (H, W): Pillow's own memory where it is one block, else a copy."""
    import pyarrow as pa

    try:
        data = pa.array(image).values.buffers()[1]
    except (ValueError, TypeError, pa.ArrowInvalid):  # several blocks; a Pillow older than 11.2
        data = image.tobytes("raw", "RGBX")
    return np.frombuffer(data, np.uint32)[: image.width * image.height].reshape(image.height, image.width)


@lru_cache(maxsize=4096)
def _pillow_pass(old: int, new: int) -> PillowPass | Literal[False] | None:
    """Weights of one pass; None where the length stays, False where Pillow computes otherwise or numba is absent."""
    from PIL import Image

    if old == new:
        return None
    if _kernels() is None:
        return False
    weights = _pillow_weights(old, new)
    noise = np.random.default_rng(0).integers(0, 256, (2, old, 3), np.uint8)
    wide, tall = Image.fromarray(noise), Image.fromarray(np.ascontiguousarray(noise.transpose(1, 0, 2)))
    same = np.array_equal(_resize_image(wide, weights, None), np.asarray(wide.resize((new, 2))))
    same = same and np.array_equal(_resize_image(tall, None, weights), np.asarray(tall.resize((2, new))))
    return weights if same else False


def _pillow_weights(old: int, new: int) -> PillowPass:
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
    for tap in taps:  # in order, as the C loop adds
        total += weights[:, tap]
    weights = weights / np.where(total == 0.0, 1.0, total)[:, None] * (1 << 22)
    whole = np.trunc(np.where(weights < 0, weights - 0.5, weights + 0.5)).astype(np.int32)
    used = -(-(int(np.flatnonzero((whole != 0).any(axis=0))[-1]) + 1) // 4) * 4
    return first.astype(np.int32), np.ascontiguousarray(whole[:, :used])


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


# ---- video frames, as torchvision


class FrameResizer:
    """Frames of one video resized one by one, as by `resize`, and held at their new size only.

    The horizontal and the vertical pass of torch, and rounding, where our kernels give torch's bits.
    """

    def __init__(self, old: Size, new: Size, count: int) -> None:
        """Take room for `count` frames of the `new` size (width, height)."""
        self._new, self._same = new, old == new
        self._passes = _torch_passes(old, new) if not self._same and _kernels_pay(count) else None
        width, height = new
        self._rows: NDArray[np.uint8] = np.empty((count, height, 3 * width), np.uint8)
        if self._passes is not None:
            self._between = np.empty((old[1], 3 * width), np.float32)
            self._total = np.empty((height, 3 * width), np.float32)

    def put(self, places: Sequence[int], frame: Pixels) -> None:
        """Resize a frame (H, W, 3), which stands at `places` of the result."""
        first, *others = places
        out = self._rows[first]
        if self._passes is not None:
            kernels = _kernels()
            call_compiled(kernels.across, frame.reshape(len(frame), -1), *self._passes[0], self._between)
            call_compiled(kernels.down, self._between, *self._passes[1], self._total)
            call_compiled(kernels.to_bytes, self._total, out)
        else:
            pixels = frame if self._same else resize_by_torch(frame[None], self._new)[0]
            out[:] = pixels.reshape(out.shape)
        for place in others:
            self._rows[place] = out

    def frames(self) -> Pixels:
        """All frames, (count, height, width, 3)."""
        if self._passes is not None:  # the kernels leave the channels of a row apart
            return _channels_last(self._rows)
        return self._rows.reshape(*self._rows.shape[:2], -1, 3)


def resize_by_torch(frames: Pixels, size: Size) -> Pixels:
    """Frames (T, H, W, 3) as torchvision's `resize` makes them, by the function of torch that it calls.

    Source: torchvision transforms/_functional_tensor.py resize, for uint8. torchvision itself takes 1.3 s to import.
    """
    import torch

    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2).to(torch.float32)
    resized = torch.nn.functional.interpolate(
        tensor, size=list(size[::-1]), mode="bicubic", align_corners=False, antialias=True
    )
    rounded = torch.round(resized.clamp(min=0, max=255)).to(torch.uint8)
    pixels: Pixels = rounded.permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


@lru_cache(maxsize=1024)
def _torch_passes(old: Size, new: Size) -> tuple[TorchPass, TorchPass] | None:
    """Weights of both passes; None where torch computes otherwise or numba is absent."""
    import torch

    kernels = _kernels()
    if kernels is None:
        return None
    across, down = (_torch_weights(*lengths) for lengths in zip(old, new, strict=True))
    noise = np.random.default_rng(0).integers(0, 256, (old[1], old[0], 3), np.uint8)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(noise).permute(2, 0, 1)[None].float(), size=new[::-1], mode="bicubic", antialias=True
    )
    ours = np.empty((new[1], 3 * new[0]), np.float32)
    between = np.empty((old[1], 3 * new[0]), np.float32)
    call_compiled(kernels.across, noise.reshape(old[1], -1), *across, between)
    call_compiled(kernels.down, between, *down, ours)
    same = np.array_equal(_channels_last(ours), theirs[0].permute(1, 2, 0).numpy())
    return (across, down) if same else None


@lru_cache(maxsize=1024)
def _torch_weights(old: int, new: int) -> TorchPass:
    """Weights of one pass, which are torch's answers to single bright pixels; their windows as in its source."""
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
