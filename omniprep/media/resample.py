"""Video frames resized to the bytes that torchvision's bicubic kernel gives, two to three times faster.

The weights are read off torch itself. Each pair of sizes is tried out once in every process, on a frame of noise, and
only where torch's float32 results are equal to ours in every bit does our kernel (omniprep/media/kernels.py) take its
place. So a torch that computes differently, or a machine without numba, costs time and never a bit.
"""

from functools import lru_cache
from typing import Any

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


def resize_frames(frames: Pixels, height: int, width: int) -> Pixels:
    """Frames (T, H, W, 3) resized by torchvision's antialiased bicubic kernel on uint8, as the reference does."""
    if frames.shape[1:3] == (height, width):
        return frames
    weights = _checked(frames.shape[1], frames.shape[2], height, width)
    if weights is None:
        return _torchvision(frames, height, width)
    kernels = _kernels()
    result = np.empty((len(frames), height, width, 3), np.uint8)
    between = np.empty((frames.shape[1], width * 3), np.float32)
    total = np.empty((height, width * 3), np.float32)
    for frame, out in zip(frames, result, strict=True):  # one by one: what is between the passes stays in the cache
        kernels.across(frame.reshape(len(frame), -1), *weights[0], between)
        kernels.down(between, *weights[1], total)
        kernels.to_bytes(total, out.reshape(height, -1))
    return result


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
    scale = old / new
    support, centers = 2 * max(scale, 1.0), scale * (np.arange(new) + 0.5)
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centers + support + 0.5).astype(np.int64), old) - first
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
    same = np.array_equal(ours.reshape(height, width, 3), theirs[0].permute(1, 2, 0).numpy())
    return (across, down) if same else None
