"""The shard format, version 1: the columns of a bin, the declarations of media columns, the metadata that holds them.

A shard is an uncompressed Arrow IPC *file*; one bin is one record batch with one row. Fixed columns hold the tokens
of the bin and the borders of its rows; media columns follow, declared by the model family as `Column` records, so
nothing here depends on a modality's name. There are two kinds: "items", a small vector for each media item (a grid, a
frame count), and "flat", the raw bytes of all items one after the other along their first axis. A reader infers
nothing: `sizes` names the column that holds the sizes of a flat column's items.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.shards.typed import parse_json, shown, typed_record

FORMAT = 1
METADATA_KEY = b"omniprep"
DEFAULTS = {"merge_size": 2, "frames_per_second": 100}
"""Params of columns that are left out at these values: patches along a side of a token, whose patches lie together, and
audio frames a second (a hop of 160 samples at 16 kHz)."""

_STORAGE: dict[str, np.dtype[Any]] = {
    "uint8": np.dtype(np.uint8),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),  # numpy has no bfloat16: its 16 bits travel as an unsigned integer
}
_RESERVED = frozenset(
    (
        *("columns", "layout", "modalities"),
        *("cu_seq_lens_k", "cu_seq_lens_q", "max_length_k", "max_length_q", "use_cache"),
        *("attention_mask", "past_key_values"),
    )
)
"""Names of a batch or bin beside its columns, and arguments that would let its rows see each other."""
_ITEM_TYPES = {"int32": pa.int32(), "int64": pa.int64(), "float32": pa.float32()}


def storage_dtype(name: str) -> np.dtype[Any]:
    """The numpy type that holds values of a column's dtype (bfloat16 is held as uint16)."""
    return _STORAGE[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A media column: what it holds for each item, and how the loader turns it into a forward argument."""

    name: str
    """Name in the shard, and of the forward argument."""
    modality: str
    """Modality whose items the column describes ("image", "audio", "video")."""
    kind: Literal["items", "flat"]
    """items: an array of `shape` for each media item. flat: an array (units, *shape) for each, stored end to end."""
    dtype: str = "int32"
    """items: int32, int64 or float32. flat: also uint8 and bfloat16."""
    shape: tuple[int, ...] = ()
    """Shape of one item (items) or of one unit (flat)."""
    sizes: str = ""
    """flat: units of each item: "prod(NAME)" or "NAME" of an items column; "" adds a companion column `NAME_sizes`."""
    load: Literal["array", "patches", "mel", "none"] = "array"
    """array: passed on as it is. patches: uint8, normalized on the device. mel: padded, with a mask. none: not passed
    on."""
    params: dict[str, Any] = field(default_factory=dict)
    """patches: mean, std (of [0, 1] pixels), patch_size, temporal_patch_size, merge_size. mel: mask (its name), pad_to
    (frames or null), pad ("zero" or "edge": the last frame again), valid (an items column, where more frames are stored
    than count), frames_per_second. merge_size and frames_per_second may be left out (`DEFAULTS`).

    picture (any flat uint8 column): how a unit makes pictures, by which --pixel-codec compresses it. "chw": shape
    (..., 3, H, W), "hwc": (..., H, W, 3), each a whole picture (crops and tiles). "patches": a unit is a patch (3, F,
    p, p) with p = patch_size, in blocks of merge_size * merge_size; said by `load` alone where that is patches."""

    def __post_init__(self) -> None:
        """Refuse a declaration that cannot be stored or read."""
        object.__setattr__(self, "shape", tuple(self.shape))
        allowed = _ITEM_TYPES if self.kind == "items" else _STORAGE
        if self.kind not in ("items", "flat") or self.dtype not in allowed:
            raise OmniprepError(f"column {self.name!r}: kind {self.kind!r} cannot hold dtype {self.dtype!r}")
        if self.load not in ("array", "patches", "mel", "none"):
            raise OmniprepError(f"column {self.name!r}: unknown load {self.load!r}")
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in self.shape) or self.unit >= 1 << 31:
            raise OmniprepError(f"column {self.name!r}: shape {shown(list(self.shape))} is none of one item or unit")
        if "picture" in self.params:
            _check_picture(self)
        if "codec" in self.params and not self.picture:
            raise OmniprepError(f"column {self.name!r}: a pixel codec needs uint8 whose pictures are declared")
        check = {"patches": _check_patches, "mel": _check_mel}.get(self.load)
        if check is not None:
            check(self)

    @property
    def unit(self) -> int:
        """Values of one item (items) or of one unit (flat)."""
        return math.prod(self.shape)

    @property
    def picture(self) -> str:
        """How a unit makes pictures: "patches", "chw" or "hwc" (`params`); "" where it makes none that is declared."""
        if self.load == "patches" and self.dtype == "uint8" and self.sizes.startswith("prod("):
            return "patches"
        declared: str = self.params.get("picture", "")
        return declared

    @property
    def companion(self) -> str:
        """Name of the items column that is added for the units of each item if `sizes` names none; else empty."""
        return f"{self.name}_sizes" if self.kind == "flat" and not self.sizes else ""

    def size_source(self) -> tuple[str, bool]:
        """The items column that gives the units of each item, and whether they are the product of its values."""
        if self.companion:
            return self.companion, False
        if self.sizes.startswith("prod(") and self.sizes.endswith(")"):
            return self.sizes[5:-1], True
        return self.sizes, False


@dataclass(kw_only=True, slots=True)
class Bin:
    """One bin for the writer: L tokens of R rows, M modalities."""

    input_ids: np.ndarray
    """int32 (L,)"""
    labels: np.ndarray
    """int32 (L,); -100 where nothing is learned, always at the first token of a row."""
    position_ids: np.ndarray | None
    """int32 (3, L), the m-rope rows; None if they are 0..n-1 for every row of the bin."""
    cu_seqlens: np.ndarray
    """int32 (R+1,): borders of the rows, from 0 to L."""
    row_ids: np.ndarray
    """int32 (R,): number of each row in rows.parquet."""
    row_items: np.ndarray
    """int32 (R, M): media items of each row, modalities in the order of the metadata."""
    loss_scale: np.ndarray | None = None
    """float32 (L,), or None if the loss strategy has no weights."""
    media: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Column name to one array for each media item, in row order. items: `shape`; flat: (units, *shape), or any array
    of as many values, stored in C order (a spectrogram (128, T)); bfloat16 as uint16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The content of the schema metadata: all that a reader needs to interpret a bin."""

    family: str
    modalities: tuple[str, ...]
    columns: tuple[Column, ...]
    """Media columns in the order of the schema, companions included."""
    weighted: bool
    mrope: bool = True
    """Whether the family has m-rope positions; other models take the position in the row alone."""


def arrow_schema(
    columns: Sequence[Column], *, family: str, modalities: Sequence[str], weighted: bool = False, mrope: bool = True
) -> pa.Schema:
    """The schema of a shard; a companion is added after each flat column that needs one.

    Refused where a column names a modality or a sizes column that is not declared, or a name twice.
    """
    declared = _with_companions(columns)
    _check(declared, modalities)
    ints = pa.list_(pa.int32())
    fields = [
        pa.field("input_ids", ints),
        pa.field("labels", ints),
        pa.field("loss_scale", pa.list_(pa.float32())),
        pa.field("position_ids", ints),
        pa.field("cu_seqlens", ints),
        pa.field("row_ids", ints),
        pa.field("row_items", ints),
    ]
    fields += [pa.field(column.name, _arrow_type(column)) for column in declared]
    names = [f.name for f in fields]
    if len(set(names)) != len(names):
        raise OmniprepError(f"family {family!r} declares a shard column twice: {', '.join(sorted(names))}")
    layout = {
        "format": FORMAT,
        "family": family,
        "modalities": list(modalities),
        "columns": [asdict(c) for c in declared],
        "weighted": weighted,
    }
    if not mrope:  # written only if false: shards of families with m-rope keep the bytes that they always had
        layout["mrope"] = False
    text = json.dumps(layout, sort_keys=True, separators=(",", ":"))
    return pa.schema(fields, metadata={METADATA_KEY: text.encode()})


def read_layout(schema: pa.Schema, name: str = "shard") -> Layout:
    """The layout that a shard's schema declares, which may be a stranger's."""
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    if METADATA_KEY not in metadata:
        raise OmniprepError(f"{name}: not an omniprep shard (its schema has no {METADATA_KEY.decode()!r} metadata)")
    content = parse_json(metadata[METADATA_KEY], f"{name}: schema metadata")
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT or isinstance(version, bool):
        raise OmniprepError(
            f"{name}: shard format {shown(version)}, but this omniprep reads format {FORMAT}: use a newer one"
        )
    try:
        layout = typed_record(Layout, content, f"{name}: schema metadata")
        expected = arrow_schema(
            layout.columns, family=layout.family, modalities=layout.modalities, weighted=layout.weighted
        )
    except DamagedDataError:
        raise
    except OmniprepError as error:  # columns that no family can declare
        raise DamagedDataError(f"{name}: {error}") from error
    if not schema.equals(expected):
        raise DamagedDataError(f"{name}: its columns are not those that its metadata declares")
    return layout


def _check_patches(column: Column) -> None:
    mean, std = (
        [*numbers] if isinstance(numbers := column.params.get(name), list | tuple) else [] for name in ("mean", "std")
    )
    if len(mean) != len(std) or not mean or not all(_is_number(n) for n in mean + std) or not all(std):
        raise OmniprepError(f"column {column.name!r}: mean and std of patches are one number a channel, std not 0")
    _check_sides(column, "temporal_patch_size")


def _check_sides(column: Column, *others: str) -> None:
    for name in ("patch_size", "merge_size", *others):
        size = column.params.get(name, DEFAULTS.get(name))
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size < 1 << 12:
            raise OmniprepError(f"column {column.name!r}: {name} of patches is a number of pixels, not {shown(size)}")


def _check_picture(column: Column) -> None:
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


def _check_mel(column: Column) -> None:
    params = column.params
    if column.kind != "flat" or not isinstance(params.get("mask"), str):
        raise OmniprepError(f"column {column.name!r}: spectrograms are a flat column with the name of their mask")
    if (frames := params.get("pad_to")) is not None and (not isinstance(frames, int) or not 0 <= frames < 1 << 24):
        raise OmniprepError(f"column {column.name!r}: pad_to is a number of frames, not {shown(frames)}")
    rate = params.get("frames_per_second", DEFAULTS["frames_per_second"])
    if not _is_number(rate) or rate <= 0:
        raise OmniprepError(f"column {column.name!r}: frames_per_second is a number above 0, not {shown(rate)}")
    if params.get("pad") not in (None, "zero", "edge"):
        raise OmniprepError(f"column {column.name!r}: pad is 'zero' or 'edge', not {shown(params['pad'])}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _arrow_type(column: Column) -> pa.DataType:
    return pa.large_binary() if column.kind == "flat" else pa.list_(_ITEM_TYPES[column.dtype])


def _with_companions(columns: Sequence[Column]) -> list[Column]:
    declared = []
    names = {c.name for c in columns}
    for column in columns:
        declared.append(column)
        if column.companion and column.companion not in names:
            declared.append(Column(name=column.companion, modality=column.modality, kind="items", load="none"))
    return declared


def _check(columns: Sequence[Column], modalities: Sequence[str]) -> None:
    items = {c.name: c for c in columns if c.kind == "items"}
    for column in columns:
        if column.name in _RESERVED or column.params.get("mask") in _RESERVED:
            raise OmniprepError(f"column {column.name!r}: its name, or its mask's, is one of a batch's own")
        if column.load == "mel" and (valid := column.params.get("valid")) is not None and valid not in items:
            raise OmniprepError(f"column {column.name!r}: valid {shown(valid)} names no items column")
        if column.modality not in modalities:
            known = ", ".join(modalities)
            raise OmniprepError(f"column {column.name!r}: modality {column.modality!r} is none of {known}")
        if column.kind == "flat":
            source, product = column.size_source()
            sizes = items.get(source)
            if sizes is None or sizes.modality != column.modality or (sizes.unit != 1 and not product):
                raise OmniprepError(
                    f"column {column.name!r}: sizes {column.sizes!r} names no items column of its modality"
                )
