"""The shard format: the columns of a bin, the declarations of a family's columns, the metadata that holds them.

A shard is an uncompressed Arrow IPC *file*; one bin is one record batch with one row. Fixed columns hold the tokens
of the bin and the borders of its rows; the columns of the model family follow, declared as `Column` records, so nothing
here depends on a modality's name. There are four kinds: "items", a small vector for each media item (a grid, a frame
count), "rows", one for each row that has such items, "flat", the raw bytes of all items one after the other along their
first axis, and "tokens", one value a token. A reader infers nothing: `sizes` names the column that holds the sizes of a
flat column's items; items of different shapes have a column of their shapes.

Format 2 is format 1 with what the columns of some families need beyond it (`Column.format`), format 3 is either with
the columns of preference rows; a shard has the lowest number that says everything. So what an older version reads it
reads right, and it refuses a shard of preference rows, which it would train on as on ordinary rows.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.shards.files import StoredItem
from omniprep.shards.forms import check_affine, check_join, check_mel, check_patches, check_picture
from omniprep.shards.typed import parse_json, shown, typed_record

FORMAT = 1
"""Of manifests and tables."""
SHARD_FORMATS = (1, 2, 3)
METADATA_KEY = b"omniprep"
PREFERENCE_COLUMNS = ("pair_ids", "chosen", "shared_media")
"""Of shards with preference rows, behind row_items; the fields of `Bin` say what they hold."""
_STORAGE: dict[str, np.dtype[Any]] = {
    "bool": np.dtype(np.bool_),
    "uint8": np.dtype(np.uint8),
    "int8": np.dtype(np.int8),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "bfloat16": np.dtype(np.uint16),  # numpy has no bfloat16: its 16 bits travel as an unsigned integer
}
_LOADER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_RESERVED = frozenset(
    (
        *("columns", "item_shapes", "layout", "modalities"),
        *("cu_seq_lens_k", "cu_seq_lens_q", "max_length_k", "max_length_q", "use_cache"),
        *("attention_mask", "past_key_values"),
        *("pair_ids", "chosen", "shared_media", "reference_logps"),
    )
)
"""Names of a batch or bin beside its columns, and arguments that would let its rows see each other."""
_LIST_TYPES = {
    "bool": pa.uint8(),  # Arrow packs its own booleans into bits, which no view of numpy shows
    "uint8": pa.uint8(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
}
"""Types of the columns that are lists of values: items, rows and tokens."""
_FIRST_LIST_TYPES = ("int32", "int64", "float32")
_FIRST_STORAGE = ("uint8", "int32", "int64", "float32", "bfloat16")
"""Those of format 1."""
LOADS = ("array", "patches", "affine", "mel", "none")
"""Ways to load that need no registered loader."""
JOINS = ("concat", "batch", "pad", "list")
MOST_AXES = 8


def storage_dtype(name: str) -> np.dtype[Any]:
    """The numpy type that holds values of a column's dtype (bfloat16 is held as uint16)."""
    return _STORAGE[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A media column: what it holds for each item, and how the loader turns it into a forward argument."""

    name: str
    """Name in the shard, and of the forward argument."""
    modality: str
    """Modality whose items the column describes ("image", "audio", "video"); "text" of kind tokens."""
    kind: Literal["items", "flat", "tokens", "rows"]
    """items: an array of `shape` for each media item. rows: one for each row that has items of the modality. flat: an
    array (units, *shape) for each item, stored end to end. tokens: one value for each token of the bin."""
    dtype: str = "int32"
    """bool, uint8, int32, int64, float32, float64; flat: also int8, int16, float16 and bfloat16."""
    shape: tuple[int, ...] = ()
    """Shape of one item or row, or of one unit (flat); 0 for an axis of a unit in which items differ (`varies`)."""
    sizes: str = ""
    """flat: units of each item: "prod(NAME)" or "NAME" of an items column; "" adds a companion column `NAME_sizes`, or
    `NAME_shapes` where items differ in shape."""
    load: str = "array"
    """array: passed on as it is. affine: uint8, a float for each byte, made on the device. patches: likewise, of
    patches of Qwen's form. mel: padded, with a mask. none: not passed on. Any other name is that of a registered loader
    (omniprep/shards/loaders.py)."""
    join: Literal["concat", "batch", "pad", "list"] = "concat"
    """flat: how the loaded items of a batch become one argument. concat: one after the other along the first axis;
    batch: each an entry of a new first axis; pad: likewise, padded to the largest; list: a list of arrays. Axes in
    which items differ are padded to the largest (not by batch, which refuses them, nor by list)."""
    batch_axis: bool = False
    """The argument has one more axis in front, of one entry: the bin as one row."""
    params: dict[str, Any] = field(default_factory=dict)
    """patches: mean, std (of [0, 1] pixels), patch_size, temporal_patch_size, merge_size. mel: mask (its name), pad_to
    (frames or null), pad ("zero" or "edge": the last frame again), valid (an items column, where more frames are stored
    than count), frames_per_second. merge_size and frames_per_second may be left out (`DEFAULTS`).

    picture (any flat uint8 column): how a unit makes pictures, by which --pixel-codec compresses it. "chw": shape
    (..., 3, H, W), "hwc": (..., H, W, 3), each a whole picture (crops and tiles). "patches": a unit is a patch (3, F,
    p, p) with p = patch_size, in blocks of merge_size * merge_size; said by `load` alone where that is patches.

    affine: arithmetic and its numbers (omniprep/shards/affine.py), channel_axis (of the item's array, from its end; a
    picture says it) or channel_run (how many values of one channel follow each other in the last axis: flat patches).
    Where a join pads: pad_value (default 0), pad_to (least sizes of the padded axes), mask (name of an argument that is
    1 where something was stored, over the first axis and the padded ones), mask_dtype (default int64).
    forward_dtype: type of the argument, where it is not that of the values. frames_axis: of a spectrogram that is not
    loaded as mel, the axis of its frames, from the end of the item's array."""

    def __post_init__(self) -> None:
        """Refuse a declaration that cannot be stored or read."""
        object.__setattr__(self, "shape", tuple(self.shape))
        allowed = _STORAGE if self.kind == "flat" else _LIST_TYPES
        if self.kind not in ("items", "flat", "tokens", "rows") or self.dtype not in allowed:
            raise OmniprepError(f"column {self.name!r}: kind {self.kind!r} cannot hold dtype {self.dtype!r}")
        if self.kind != "flat" and self.load not in ("array", "none"):
            raise OmniprepError(f"column {self.name!r}: only flat columns are loaded by {shown(self.load)}")
        if self.load not in LOADS and not _LOADER_NAME.fullmatch(self.load):
            raise OmniprepError(f"column {self.name!r}: load {shown(self.load)} is no name of a loader")
        least = 0 if self.kind == "flat" and not self.sizes and self.load != "mel" else 1
        if (
            len(self.shape) > MOST_AXES
            or any(isinstance(n, bool) or not isinstance(n, int) or n < least for n in self.shape)
            or self.unit >= 1 << 31
            or (self.kind == "tokens" and self.shape)
        ):
            raise OmniprepError(f"column {self.name!r}: shape {shown(list(self.shape))} is none of one item or unit")
        if "picture" in self.params:
            check_picture(self)
        if "codec" in self.params and not self.picture:
            raise OmniprepError(f"column {self.name!r}: a pixel codec needs uint8 whose pictures are declared")
        check = {"patches": check_patches, "mel": check_mel, "affine": check_affine}.get(self.load)
        if check is not None:
            check(self)
        check_join(self)

    @property
    def varies(self) -> bool:
        """Whether items differ in the shape of their units: values are then stored flat, with each item's shape."""
        return 0 in self.shape

    @property
    def unit(self) -> int:
        """Values of one item or row, or of one unit (flat; 1 where shapes vary: a unit is then a value)."""
        return 1 if self.varies else math.prod(self.shape)

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
        if self.kind != "flat" or self.sizes:
            return ""
        return f"{self.name}_shapes" if self.varies else f"{self.name}_sizes"

    @property
    def padded_axes(self) -> tuple[int, ...]:
        """Axes that `join` pads, of the joined array without the batch axis."""
        first = 2 if self.join == "pad" else 1
        varying = tuple(axis + first for axis, size in enumerate(self.shape) if size == 0)
        return {"concat": varying, "pad": (1, *varying)}.get(self.join, ()) if self.kind == "flat" else ()

    @property
    def format(self) -> int:
        """The lowest shard format that can hold the column."""
        first_types = _FIRST_STORAGE if self.kind == "flat" else _FIRST_LIST_TYPES
        first = self.kind in ("items", "flat") and self.dtype in first_types and self.load in LOADS
        plain = self.load != "affine" and self.join == "concat" and not self.batch_axis and not self.varies
        return 1 if first and plain and not self.params.keys() & {"forward_dtype", "picture"} else 2

    def size_source(self) -> tuple[str, bool]:
        """The items column that gives the units of each item, and whether they are the product of its values."""
        if self.companion:
            return self.companion, self.varies
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
    pair_ids: np.ndarray | None = None
    """int32 (R,): number of the sequence's pair in the bin, from 0 and rising; -1 where it has no partner. None, as the
    two below, where the dataset has no preference rows."""
    chosen: np.ndarray | None = None
    """int32 (R,): 1 preferred or desirable, 0 rejected or undesirable, -1 an ordinary row."""
    shared_media: np.ndarray | None = None
    """int32 (R,): bit m says that the media of modality m are those of the partner in front, stored there alone."""
    media: dict[str, list[Any]] = field(default_factory=dict)
    """Column name to one array for each media item, in row order. items: `shape`; flat: (units, *shape), or any array
    of as many values, stored in C order (a spectrogram (128, T)); bfloat16 as uint16. rows: one `shape` for each row
    that has items of the modality. tokens: one (l,) for each row. A flat column whose codec compresses pictures one by
    one may hold a `CompressedItem` (omniprep/shards/codecs/base.py) for the array."""
    files: dict[str, list[StoredItem]] = field(default_factory=dict)
    """Column name to its items, for columns with the codec source, which are not in `media`."""


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
    preferences: bool = False
    """Whether the shard has the columns of preference rows: pair_ids, chosen, shared_media."""


def arrow_schema(
    columns: Sequence[Column], *, family: str, modalities: Sequence[str], weighted: bool = False, mrope: bool = True,
    preferences: bool = False,
) -> pa.Schema:  # fmt: skip
    """The schema of a shard; a companion is added after each flat column that needs one.

    Refused where a column names a modality or a sizes column that is not declared, or a name twice.
    """
    declared = _with_companions(columns)
    _check(declared, modalities)
    ints = pa.list_(pa.int32())
    shard_fields = [
        pa.field("input_ids", ints),
        pa.field("labels", ints),
        pa.field("loss_scale", pa.list_(pa.float32())),
        pa.field("position_ids", ints),
        pa.field("cu_seqlens", ints),
        pa.field("row_ids", ints),
        pa.field("row_items", ints),
    ]
    if preferences:
        shard_fields += [pa.field(name, ints) for name in PREFERENCE_COLUMNS]
    shard_fields += [pa.field(column.name, _arrow_type(column)) for column in declared]
    names = [f.name for f in shard_fields]
    if len(set(names)) != len(names):
        raise OmniprepError(f"family {family!r} declares a shard column twice: {', '.join(sorted(names))}")
    layout = {
        "format": 3 if preferences else max((column.format for column in declared), default=1),
        "family": family,
        "modalities": list(modalities),
        "columns": [_column_json(column) for column in declared],
        "weighted": weighted,
    }
    if not mrope:  # written only if false: shards of families with m-rope keep the bytes that they always had
        layout["mrope"] = False
    if preferences:
        layout["preferences"] = True
    text = json.dumps(layout, sort_keys=True, separators=(",", ":"))
    return pa.schema(shard_fields, metadata={METADATA_KEY: text.encode()})


def read_layout(schema: pa.Schema, name: str = "shard") -> Layout:
    """The layout that a shard's schema declares, which may be a stranger's."""
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    if METADATA_KEY not in metadata:
        raise OmniprepError(f"{name}: not an omniprep shard (its schema has no {METADATA_KEY.decode()!r} metadata)")
    content = parse_json(metadata[METADATA_KEY], f"{name}: schema metadata")
    version = content.get("format") if isinstance(content, dict) else None
    if version not in SHARD_FORMATS or isinstance(version, bool):
        known = ", ".join(map(str, SHARD_FORMATS))
        raise OmniprepError(
            f"{name}: shard format {shown(version)}, but this omniprep reads formats {known}: use a newer one"
        )
    try:
        layout = typed_record(Layout, content, f"{name}: schema metadata")
        expected = arrow_schema(
            layout.columns,
            family=layout.family,
            modalities=layout.modalities,
            weighted=layout.weighted,
            preferences=layout.preferences,
        )
    except DamagedDataError:
        raise
    except OmniprepError as error:  # columns that no family can declare
        raise DamagedDataError(f"{name}: {error}") from error
    if not schema.equals(expected):
        raise DamagedDataError(f"{name}: its columns are not those that its metadata declares")
    return layout


def _column_json(column: Column) -> dict[str, Any]:
    """A column as the metadata has it; what format 1 did not have is written only where it says something."""
    plain = {entry.name: getattr(column, entry.name) for entry in fields(column)}
    defaults = {"join": "concat", "batch_axis": False}
    return {name: value for name, value in plain.items() if name not in defaults or value != defaults[name]}


def _arrow_type(column: Column) -> pa.DataType:
    return pa.large_binary() if column.kind == "flat" else pa.list_(_LIST_TYPES[column.dtype])


def _with_companions(columns: Sequence[Column]) -> list[Column]:
    declared = []
    names = {c.name for c in columns}
    for column in columns:
        declared.append(column)
        if column.companion and column.companion not in names:
            shape = (1 + len(column.shape),) if column.varies else ()
            declared.append(
                Column(name=column.companion, modality=column.modality, kind="items", shape=shape, load="none")
            )
    return declared


def _check(columns: Sequence[Column], modalities: Sequence[str]) -> None:
    items = {c.name: c for c in columns if c.kind == "items"}
    column_names = {column.name for column in columns}
    masks = [column.params["mask"] for column in columns if "mask" in column.params]
    for column in columns:
        mask = column.params.get("mask")
        if column.name in _RESERVED or mask in _RESERVED:
            raise OmniprepError(f"column {column.name!r}: its name, or its mask's, is one of a batch's own")
        if column.load == "mel" and (valid := column.params.get("valid")) is not None and valid not in items:
            raise OmniprepError(f"column {column.name!r}: valid {shown(valid)} names no items column")
        known = modalities if column.kind != "tokens" else ("text",)
        if column.modality not in known:
            raise OmniprepError(f"column {column.name!r}: modality {column.modality!r} is none of {', '.join(known)}")
        if mask is not None and (masks.count(mask) > 1 or mask in column_names):
            raise OmniprepError(f"column {column.name!r}: its mask has the name of another column or mask")
        if column.kind == "flat":
            source, product = column.size_source()
            sizes = items.get(source)
            if (
                sizes is None
                or sizes.modality != column.modality
                or sizes.dtype not in ("int32", "int64")
                or (sizes.unit != 1 and not product)
                or (column.varies and sizes.shape != (1 + len(column.shape),))
            ):
                raise OmniprepError(
                    f"column {column.name!r}: sizes {column.sizes!r} names no items column of its modality"
                )
