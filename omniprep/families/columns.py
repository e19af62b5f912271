"""The shard columns of a family, from its `fields`; what a field does not say is learned from a blank item."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from omniprep.families.errors import CallbackError, UnknownFunctionError
from omniprep.families.kinds import Array, Decoded, Field, MediaMeta
from omniprep.shards.loaders import LOADERS
from omniprep.shards.schema import LOADS, Column, storage_dtype

_KINDS: dict[str, Literal["items", "flat", "tokens", "rows"]] = {
    "item": "items",
    "flat": "flat",
    "token": "tokens",
    "row": "rows",
}


def shard_columns(
    fields: Mapping[str, Field],
    modalities: Collection[str],
    map_item: Callable[[str, Decoded], dict[str, Array]],
    family: Any,
) -> tuple[Column, ...]:
    """The columns of the modalities that a family supports, in the order of `fields`."""
    learned: dict[str, Array] = {}
    columns = []
    for name, entry in fields.items():
        dtype, shape = entry.dtype, entry.shape
        if entry.layout == "token":
            dtype, shape = dtype or "int32", ()
        elif entry.modality not in modalities:
            continue
        if dtype is None or shape is None:
            if name not in learned:
                learned.update(map_item(entry.modality, blank_item(entry.modality)))
            array = learned[name]
            shape = tuple(array.shape[1:]) if shape is None else shape
            # Grids and counts are stored in 32 bits, whatever the mapper computes them in.
            counts = entry.layout in ("item", "row") and array.dtype.kind in "iu"
            dtype = ("int32" if counts else str(array.dtype)) if dtype is None else dtype
        columns.append(
            Column(
                name=name,
                modality=entry.modality,
                kind=_KINDS[entry.layout],
                dtype=dtype,
                shape=shape,
                sizes=entry.sizes if isinstance(entry.sizes, str) else "",
                load=entry.load,
                params=_params(name, entry, family),
                join=entry.join,
                batch_axis=entry.batch_axis,
            )
        )
    return tuple(columns)


def _params(name: str, entry: Field, family: Any) -> dict[str, Any]:
    """The params of a field, with what a dataset states of a registered loader."""
    params = entry.params(family) if callable(entry.params) else dict(entry.params)
    if entry.load in LOADS:
        return params
    if entry.load not in LOADERS:
        known = ", ".join([*LOADS, *LOADERS])
        raise UnknownFunctionError(
            f"family {family.name!r}: field {name!r} is loaded by {entry.load!r}, which is not registered; known: "
            f"{known}. Register it with @REGISTRY.register_loader({entry.load!r})"
        )
    return params | LOADERS[entry.load].facts


def stored_form(family: str, column: Column, array: Array) -> Array:
    """What a family made for a column of one item (or one row's tokens), in the dtype and shape that the shard holds.

    Numbers of another type are taken where none of them changes; an "item" or "row" field is the first entry of what a
    mapper gives.

    Raises:
        CallbackError: It does not fit the column; the message names the field and what was declared.
    """
    array = np.asarray(array)
    name = f"family {family!r}: field {column.name!r}"
    declared = f"declared are {column.dtype} {list(column.shape)} (0: items differ)"
    if column.kind in ("items", "rows"):
        if not len(array.shape) or len(array) < 1:
            raise CallbackError(f"{name} is of shape {array.shape}; its first axis must be that of items")
        array = np.asarray(array[0])
    dtype = storage_dtype(column.dtype)
    if array.dtype != dtype:
        with np.errstate(invalid="ignore", over="ignore"):  # a change is refused below
            converted = array.astype(dtype)
        if not np.array_equal(converted, array, equal_nan=array.dtype.kind == "f" and dtype.kind == "f"):
            raise CallbackError(f"{name} has values of {array.dtype} that {column.dtype} cannot hold; {declared}")
        array = converted
    if column.kind in ("items", "rows"):
        fits = array.shape == column.shape
    elif column.kind == "tokens":
        fits = array.ndim == 1
    elif column.varies or column.join != "concat":
        sizes = array.shape[1:]
        fits = len(sizes) == len(column.shape) and all(
            want in (0, size) for want, size in zip(column.shape, sizes, strict=True)
        )
    else:  # a spectrogram lies transposed, units may be flattened: as many values as whole units have
        fits = array.size % column.unit == 0
    if not fits:
        raise CallbackError(f"{name} is of shape {array.shape}; {declared}")
    return array


def blank_image(width: int, height: int) -> Any:
    """A black RGB PIL image."""
    from PIL import Image

    return Image.new("RGB", (width, height))


def _blank_frames(indices: Sequence[int], size: tuple[int, int] | None = None, /) -> NDArray[np.uint8]:
    width, height = size or (64, 64)
    return np.zeros((len(indices), height, width, 3), np.uint8)


def blank_item(modality: str) -> Decoded:
    """A small decoded item of a modality, to learn shapes from."""
    if modality == "image":
        return Decoded(MediaMeta(kind="image", width=64, height=64), image=blank_image(64, 64))
    if modality == "audio":
        return Decoded(MediaMeta(kind="audio", samples=16000), waveform=np.zeros(16000, np.float32))
    meta = MediaMeta(kind="video", width=64, height=64, frames=4, fps=2.0)
    return Decoded(meta, frames=_blank_frames)
