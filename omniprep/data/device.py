"""uint8 patches of Qwen's form become the floats that the image processor would have made, to the bit, on any device.

Media travel as they are stored (2,352 bytes an image token instead of 18,816 in float32) and are normalized where the
model is.
"""

import importlib.util
from collections.abc import Sequence
from functools import lru_cache

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""It comes with torch for NVIDIA and AMD GPUs."""


def unpack_pixels(
    patches: torch.Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    patch_size: int = 14,
    temporal_patch_size: int = 2,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The model's pixel_values of stored patches.

    Source: transformers' Qwen2VLImageProcessor, which folds the rescaling by 1/255 into mean and std and computes
    (x - mean*255) / (std*255) in float32. A still image is stored once; its temporal copies are made after that
    and are therefore equal. On a GPU it is one kernel (data/pixels.py), elsewhere plain torch; both give the same bits.

    Args:
        patches: uint8 (n, C * T * patch_size**2), T being 1 (still images) or temporal_patch_size (video), on any
            device.
        mean: Mean of each channel, pixels in [0, 1].
        std: Standard deviation of each channel.
        patch_size: Side of a patch in pixels.
        temporal_patch_size: Frames of a patch in the result.
        dtype: Type of the result; rounding to it comes last.

    Returns:
        dtype (n, C * temporal_patch_size * patch_size**2), on the same device.

    Raises:
        ValueError: The width of the patches does not fit.
    """
    channels, area = len(mean), patch_size * patch_size
    frames, rest = divmod(patches.shape[1], channels * area)
    if rest or frames not in (1, temporal_patch_size):
        raise ValueError(
            f"patches of {patches.shape[1]} values are not {channels} channels of {patch_size}x{patch_size}"
        )
    if patches.is_cuda and HAS_TRITON:
        from omniprep.data.pixels import launch

        tables = _tables(tuple(mean), tuple(std), dtype, patches.device)
        return launch(patches, tables, area, temporal_patch_size // frames)
    pixels = patches.view(-1, channels, frames, area).to(torch.float32)
    center, scale = _times_255(tuple(mean), patches.device), _times_255(tuple(std), patches.device)
    pixels = pixels.sub_(center).div_(scale).to(dtype)
    if frames != temporal_patch_size:
        pixels = pixels.expand(-1, -1, temporal_patch_size, -1)
    return pixels.reshape(len(patches), channels * temporal_patch_size * area)


@lru_cache(maxsize=64)
def _times_255(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    # Kept on the device: a copy from the host for each batch would wait for the device's queue.
    return (torch.tensor(values, dtype=torch.float32) * 255.0).view(-1, 1, 1).to(device)


@lru_cache(maxsize=64)
def _tables(mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(C, 256): the float of each byte in each channel."""
    every_byte = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, len(mean)).contiguous()
    floats = unpack_pixels(every_byte, mean=mean, std=std, patch_size=1, temporal_patch_size=1, dtype=dtype)
    return floats.t().contiguous().to(device)
