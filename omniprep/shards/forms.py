"""Checks of what a column declares beyond its kind: how its values become floats, how its items are joined.

A declaration may be a stranger's, so every number is held against what a reader does with it.
"""

import math
from typing import Any, Protocol

from omniprep.errors import OmniprepError
from omniprep.shards.affine import byte_floats
from omniprep.shards.typed import shown

FORWARD_DTYPES = ("bool", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64")
DEFAULTS = {"merge_size": 2, "frames_per_second": 100}
"""Params of columns that are left out at these values: patches along a side of a token, whose patches lie together, and
audio frames a second (a hop of 160 samples at 16 kHz)."""
MOST_LENGTH = 1 << 24
"""Of a padded axis."""


class Declared(Protocol):
    """What is read of a `Column` (omniprep/shards/schema.py, which imports this module)."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def load(self) -> str: ...  # noqa: D102
    @property
    def join(self) -> str: ...  # noqa: D102
    @property
    def batch_axis(self) -> bool: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def unit(self) -> int: ...  # noqa: D102
    @property
    def sizes(self) -> str: ...  # noqa: D102
    @property
    def params(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def padded_axes(self) -> tuple[int, ...]: ...  # noqa: D102


def channel_axis(column: Declared) -> int:
    """The axis of the channels in an item's array, counted from its end (-1 is the last)."""
    axis = column.params.get("channel_axis", {"chw": -3, "hwc": -1}.get(column.params.get("picture", "")))
    if isinstance(axis, bool) or not isinstance(axis, int) or not -len(column.shape) <= axis < 0:
        raise OmniprepError(
            f"column {column.name!r}: channel_axis {shown(axis)} is no axis of {shown(list(column.shape))}, counted "
            "from its end (-1, -2 ...)"
        )
    return axis


def channel_run(column: Declared, shape: tuple[int, ...], channels: int) -> int:
    """How many values of one channel follow each other in units of `shape` (units, ...), in C order."""
    if channels == 1:
        return 1
    run: int | None = column.params.get("channel_run")
    if run is not None:
        return run
    if column.params.get("picture") == "patches":  # a patch holds its channels first
        return math.prod(shape[1:]) // channels
    return math.prod(shape[len(shape) + channel_axis(column) + 1 :])


def check_affine(column: Declared) -> None:
    """Refuse affine pixels whose floats or channels are not said."""
    if (column.kind, column.dtype) != ("flat", "uint8"):
        raise OmniprepError(f"column {column.name!r}: affine pixels are a flat column of uint8")
    channels = len(byte_floats(column.params, column.name))
    run = column.params.get("channel_run")
    if run is not None:
        good = isinstance(run, int) and not isinstance(run, bool) and run > 0 and column.shape
        if not good or not column.shape[-1] or column.shape[-1] % (channels * run):
            raise OmniprepError(
                f"column {column.name!r}: channel_run {shown(run)} does not divide the last axis of "
                f"{shown(list(column.shape))} into {channels} channels"
            )
    elif column.params.get("picture") == "patches":
        if column.unit % channels:
            raise OmniprepError(f"column {column.name!r}: patches of {column.unit} values have no {channels} channels")
    elif channels != 1 and column.shape[channel_axis(column)] != channels:
        raise OmniprepError(
            f"column {column.name!r}: floats of {channels} channels, but its axis of channels has "
            f"{column.shape[channel_axis(column)]}"
        )


def check_join(column: Declared) -> None:
    """Refuse a join, or numbers for it, that nothing can be made of."""
    params = column.params
    if column.join not in ("concat", "batch", "pad", "list"):
        raise OmniprepError(f"column {column.name!r}: join {shown(column.join)} is none of concat, batch, pad, list")
    if column.join != "concat" and (column.kind != "flat" or column.load == "mel"):
        raise OmniprepError(f"column {column.name!r}: only flat columns, and no spectrograms of mel, have a join")
    if column.batch_axis and (column.kind == "tokens" or column.join == "list" or column.load == "mel"):
        raise OmniprepError(f"column {column.name!r}: tokens, lists and spectrograms of mel have no other batch axis")
    for name, known in (("forward_dtype", FORWARD_DTYPES), ("mask_dtype", FORWARD_DTYPES)):
        if name in params and params[name] not in known:
            raise OmniprepError(f"column {column.name!r}: {name} {shown(params[name])} is none of {', '.join(known)}")
    if "frames_axis" in params:
        axis = params["frames_axis"]
        if isinstance(axis, bool) or not isinstance(axis, int) or not -1 - len(column.shape) <= axis < 0:
            raise OmniprepError(f"column {column.name!r}: frames_axis {shown(axis)} is no axis, counted from the end")
    if column.load == "mel":
        return
    axes = len(column.padded_axes)
    if not axes and params.keys() & {"mask", "pad_value", "pad_to"}:
        raise OmniprepError(f"column {column.name!r}: a mask, pad_value or pad_to, but its join pads no axis")
    if not isinstance(params.get("mask", ""), str) or params.get("mask", "x") in ("", column.name):
        raise OmniprepError(f"column {column.name!r}: mask is the name of another argument")
    value = params.get("pad_value", 0)
    if not isinstance(value, bool) and not is_number(value):
        raise OmniprepError(f"column {column.name!r}: pad_value is a number, not {shown(value)}")
    least = params.get("pad_to")
    if least is not None and (
        not isinstance(least, list | tuple)
        or len(least) != axes
        or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < MOST_LENGTH for n in least)
    ):
        raise OmniprepError(f"column {column.name!r}: pad_to is a least size for each of {axes} padded axes")


def check_patches(column: Declared) -> None:
    """Refuse patches whose sizes or normalization are not said."""
    mean, std = (
        [*numbers] if isinstance(numbers := column.params.get(name), list | tuple) else [] for name in ("mean", "std")
    )
    if len(mean) != len(std) or not mean or not all(is_number(n) for n in mean + std) or not all(std):
        raise OmniprepError(f"column {column.name!r}: mean and std of patches are one number a channel, std not 0")
    _check_sides(column, "temporal_patch_size")


def _check_sides(column: Declared, *others: str) -> None:
    for name in ("patch_size", "merge_size", *others):
        size = column.params.get(name, DEFAULTS.get(name))
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size < 1 << 12:
            raise OmniprepError(f"column {column.name!r}: {name} of patches is a number of pixels, not {shown(size)}")


def check_picture(column: Declared) -> None:
    """Refuse pictures that the shape does not hold."""
    picture, shape = column.params["picture"], column.shape
    fits = {
        "chw": len(shape) >= 3 and shape[-3:-2] == (3,),
        "hwc": len(shape) >= 3 and shape[-1:] == (3,),
        "patches": column.sizes.startswith("prod("),
    }
    if column.kind != "flat" or column.dtype != "uint8" or not isinstance(picture, str) or not fits.get(picture):
        raise OmniprepError(
            f"column {column.name!r}: picture {shown(picture)} does not fit {column.kind} {column.dtype} "
            f"{shown(list(shape))}; it is chw (..., 3, H, W), hwc (..., H, W, 3) or patches, of a flat uint8 column"
        )
    if picture == "patches":
        _check_sides(column)


def check_mel(column: Declared) -> None:
    """Refuse spectrograms whose mask or padding is not said."""
    params = column.params
    if column.kind != "flat" or not isinstance(params.get("mask"), str):
        raise OmniprepError(f"column {column.name!r}: spectrograms are a flat column with the name of their mask")
    if (frames := params.get("pad_to")) is not None and (not isinstance(frames, int) or not 0 <= frames < 1 << 24):
        raise OmniprepError(f"column {column.name!r}: pad_to is a number of frames, not {shown(frames)}")
    rate = params.get("frames_per_second", DEFAULTS["frames_per_second"])
    if not is_number(rate) or rate <= 0:
        raise OmniprepError(f"column {column.name!r}: frames_per_second is a number above 0, not {shown(rate)}")
    if params.get("pad") not in (None, "zero", "edge"):
        raise OmniprepError(f"column {column.name!r}: pad is 'zero' or 'edge', not {shown(params['pad'])}")


def is_number(value: Any) -> bool:
    """Whether a value is a number, and one that a mean or a rate may be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6
