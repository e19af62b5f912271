"""The float of each byte of a pixel column (load "affine"), in the order of operations of the processor that it is for.

A value depends on its byte and its channel alone, so the floats of a channel are a table of 256. The tables are made on
the host, in numpy's float32 and float64, and looked up wherever the pixels are: the same bits on every device.

`arithmetic` in the column's params says how a processor of transformers computes:

- "fused" (torchvision backend): mean and std are multiplied by 1/rescale in float32, then (x - mean) / std;
- "torch": x * rescale in float32, then (x - mean) / std;
- "numpy" (PIL backend): x * rescale in float64, rounded to float32, then (x - mean) / std;
- "table": any other arithmetic, its floats as they are (`table`: float32 (channels, 256), little endian, in base64).

Without `rescale`, or without mean and std, that step is left out.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omniprep.errors import OmniprepError

ARITHMETIC = ("fused", "torch", "numpy", "table")
MOST_CHANNELS = 16


def byte_floats(params: Mapping[str, Any], name: str = "") -> np.ndarray:
    """float32 (channels, 256): the float of each byte in each channel.

    Args:
        params: Of a column: arithmetic, and mean and std (of each channel) and rescale, or table.
        name: Of the column, for messages.

    Raises:
        OmniprepError: The params say no arithmetic.
    """
    arithmetic = params.get("arithmetic", "fused")
    if arithmetic == "table":
        return _decoded_table(params.get("table"), name)
    mean, std = (_channels(params.get(key), key, name) for key in ("mean", "std"))
    rescale = params.get("rescale")
    if arithmetic not in ARITHMETIC or (mean is None) != (std is None) or (mean is None and rescale is None):
        raise OmniprepError(
            f"column {name!r}: affine pixels have arithmetic ({', '.join(ARITHMETIC)}), mean and std, rescale or both"
        )
    if rescale is not None and not _is_scale(rescale):
        raise OmniprepError(f"column {name!r}: rescale is a number above 0")
    factor = float(rescale or 1)
    every_byte = np.arange(256, dtype=np.float32)[None]
    if mean is None or std is None:
        scaled = every_byte.astype(np.float64) * factor if arithmetic == "numpy" else every_byte * np.float32(factor)
        return _finite(np.repeat(scaled.astype(np.float32), _count(params, name), axis=0), name)
    if len(mean) != len(std) or not std.all():
        raise OmniprepError(f"column {name!r}: mean and std are one number a channel, std not 0")
    if rescale is not None and arithmetic == "fused":
        mean, std = (values * np.float32(1.0 / factor) for values in (mean, std))
    elif rescale is not None and arithmetic == "torch":
        every_byte = every_byte * np.float32(factor)
    elif rescale is not None:
        every_byte = (every_byte.astype(np.float64) * factor).astype(np.float32)
    return _finite((every_byte - mean[:, None]) / std[:, None], name)


def affine_params(
    pixels: np.ndarray,
    floats: np.ndarray,
    channel_axis: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    rescale: float | None = None,
) -> dict[str, Any] | None:
    """The params by which a processor's floats follow from bytes, proved on an example; None where they do not.

    Args:
        pixels: uint8, the pixels before the arithmetic.
        floats: float32 of the same shape, what the processor made of them.
        channel_axis: The axis of the channels.
        mean: Of each channel, where the processor normalizes.
        std: Likewise.
        rescale: The factor, where the processor rescales.

    Returns:
        arithmetic, with mean, std and rescale where one of the known orders gives these floats to the bit; else the
        table itself, if every byte is there in every channel and has one float only.
    """
    if pixels.dtype != np.uint8 or floats.dtype != np.float32 or pixels.shape != floats.shape or not pixels.size:
        return None
    by_channel = np.moveaxis(pixels, channel_axis, 0).reshape(pixels.shape[channel_axis], -1)
    values = np.ascontiguousarray(np.moveaxis(floats, channel_axis, 0)).reshape(len(by_channel), -1)
    if len(by_channel) > MOST_CHANNELS or not np.isfinite(values).all():
        return None
    table, seen = np.zeros((len(by_channel), 256), np.float32), np.zeros((len(by_channel), 256), bool)
    for channel, (bytes_there, floats_there) in enumerate(zip(by_channel, values, strict=True)):
        table[channel, bytes_there], seen[channel, bytes_there] = floats_there, True
        if (table[channel, bytes_there].view(np.uint32) != floats_there.view(np.uint32)).any():
            return None  # one byte has two floats: they depend on more than the byte
    known: dict[str, Any] = {}
    if mean is not None and std is not None:
        known |= {"mean": [float(number) for number in mean], "std": [float(number) for number in std]}
    elif rescale is not None:
        known["channels"] = len(by_channel)
    if rescale is not None:
        known["rescale"] = float(rescale)
    for arithmetic in ARITHMETIC[:-1] if known else ():
        params = {"arithmetic": arithmetic, **known}
        try:
            promised = byte_floats(params)
        except OmniprepError:  # mean and std of another number of channels
            continue
        if promised.shape == table.shape and (promised.view(np.uint32) == table.view(np.uint32))[seen].all():
            return params
    if not seen.all():
        return None
    return {"arithmetic": "table", "table": base64.b64encode(table.astype("<f4").tobytes()).decode()}


def _decoded_table(text: Any, name: str) -> np.ndarray:
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except binascii.Error:
        data = b""
    channels, rest = divmod(len(data), 256 * 4)
    if rest or not 1 <= channels <= MOST_CHANNELS:
        raise OmniprepError(f"column {name!r}: table is float32 (channels, 256) in base64")
    return _finite(np.frombuffer(data, "<f4").astype(np.float32).reshape(channels, 256), name)


def _channels(values: Any, key: str, name: str) -> np.ndarray | None:
    """Mean or std of each channel, float32 (channels,)."""
    if values is None:
        return None
    numbers = [*values] if isinstance(values, list | tuple) else []
    if not 1 <= len(numbers) <= MOST_CHANNELS or not all(_is_number(number) for number in numbers):
        raise OmniprepError(f"column {name!r}: {key} is one number a channel")
    return np.array(numbers, np.float32)


def _count(params: Mapping[str, Any], name: str) -> int:
    count = params.get("channels", 1)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_CHANNELS:
        raise OmniprepError(f"column {name!r}: channels is a number from 1 to {MOST_CHANNELS}")
    return count


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _is_scale(value: Any) -> bool:
    return _is_number(value) and bool(value > 1e-9)


def _finite(floats: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(floats).all():
        raise OmniprepError(f"column {name!r}: the floats of its bytes are not finite")
    return floats
