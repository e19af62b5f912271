"""manifest.json as a typed record; every command reads the manifest of a dataset here.

A dataset may come from anyone, so its manifest is treated as data only. The record holds what it says about the
dataset's own files and how its rows were made; it has no field for options that would let code run or open folders or
the network (`omniprep.config.Trust`). Of such options that the build was given only the names are kept, so that a
message can say which flags the user would have to give.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from omniprep import io
from omniprep.config import RowOptions, Trust, row_options_as_json
from omniprep.errors import DamagedDataError, OmniprepError, UsageError
from omniprep.modalities import MODALITIES
from omniprep.shards.names import is_shard_path
from omniprep.shards.schema import FORMAT
from omniprep.shards.typed import parse_json, typed_record

MOST_BYTES = 256 << 20
"""A manifest of a million inputs has 100 MB; a larger one is not read into memory."""
_ROWS_WITH = "rows_with_"
LEFT_OUT = ("filtered", "other_part")
"""Counts of rows of the inputs that are no rows of the dataset, where there are any."""
TRUST_FLAGS = MappingProxyType({entry.name: "--" + entry.name.replace("_", "-") for entry in dataclasses.fields(Trust)})
"""Fields of `Trust` and the command-line flags that set them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """A shard, as the manifest lists it."""

    path: str
    """Relative to the dataset, such as shards/00000.arrow; always of this form (`is_shard_path`)."""
    bins: int
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputEntry:
    """An input of the build, and what identified its content then."""

    source: str
    given: str = ""
    """Of an input that a merge of datasets renamed: its name as it was given to the build."""
    bytes: int | None = None
    sample_sha256: str | None = None
    """Of a local file: SHA-256 of a sample of its content (omniprep/io/fingerprints.py)."""
    mtime_ns: int | None = None
    """Modification time of a local file, in datasets of earlier versions."""
    mark: str | None = None
    """ETag or time of an object in a store."""
    state_sha256: str | None = None
    """Of a saved dataset: SHA-256 of its state.json, which holds a hash of its content."""
    drawn_rows: int | None = None
    """Of INPUT#N: how many rows of this input were drawn."""
    drawn_sha256: str | None = None
    """Of INPUT#N: a hash of which rows were drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCounts:
    """How many input rows were read, and what became of them."""

    read: int
    packed: int
    rejected: int
    removed: int = 0
    filtered: int = 0
    """Rows of the inputs that --where left out; not among those read."""
    other_part: int = 0
    """Rows of the inputs that --split-by put into the other dataset; not among those read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnreadColumn:
    """A column of the inputs that the build did not read."""

    rows: int
    option: str
    """Value of --columns that reads it, or another option with its value (--preference kto); empty if none does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """The counts of a dataset."""

    rows: RowCounts
    tokens: int
    bins: int
    labeled_tokens: int = 0
    rejected_by_code: Mapping[str, int] = field(default_factory=dict)
    rows_without_labels: int = 0
    rows_with: Mapping[str, int] = field(default_factory=dict)
    """The entries rows_with_NAME, by NAME: rows with that note."""
    items: Mapping[str, int] = field(default_factory=dict)
    """Media items by modality."""
    unread_columns: Mapping[str, UnreadColumn] = field(default_factory=dict)
    preference: Mapping[str, int] = field(default_factory=dict)
    """Packed rows by pairs, desirable, undesirable and ordinary, in a dataset with preference rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One change of a dataset: its build, an append, or a removal of rows."""

    command: Literal["build", "repack", "append", "remove"]
    rows: RowCounts
    """Rows that were read; of a removal those that it removed."""
    tokens: int
    bins: int
    fill: float = 0.0
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A manifest whose types are checked. Nothing in it lets code run or opens files outside the dataset."""

    format: int
    shards: tuple[ShardEntry, ...]
    family: str = ""
    model: str = ""
    """The checkpoint as it was named to the build, for display. See `omniprep.inspect.trust` before opening it."""
    model_types: tuple[str, ...] = ()
    """`model_type`s of its config.json whose classes take the batches; () in datasets built before it was written."""
    placeholders: Mapping[str, int] = field(default_factory=dict)
    """Modality → id of the token that stands for its items; {} in datasets built before it was written."""
    pad_token: int | None = None
    """Token that --pad-rows-to ends rows with; None where the tokenizer has none, or before it was written."""
    bin_length: int = 0
    fill: float = 0.0
    counts: Counts | None = None
    config: RowOptions = field(default_factory=RowOptions)
    """Options by which the rows were made."""
    config_sha256: str = ""
    plan_sha256: str | None = None
    tokenizer_sha256: str | None = None
    preprocessor_sha256: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[InputEntry, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    unit_bytes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of families whose columns are not of Qwen's form: modality → bytes that a unit of its tower's work takes in a
    shard, of pixels and of others, by which shards were cut."""
    generations: tuple[Generation, ...] = ()
    """What was done to the dataset, in order, where rows were appended or removed since it was built."""
    tables: str = ""
    """While a change is written: part of the names of the tables that belong to this manifest (`table_name`)."""
    needed_flags: tuple[str, ...] = ()
    """Names of the flags of `Trust` that the build was given: encoding its rows again needs them too."""

    def __post_init__(self) -> None:
        """Refuse a tag that would lead out of the folder."""
        if self.tables.strip("0123456789abcdef"):
            raise UsageError(f"tables: expected hexadecimal digits, found {self.tables!r:.40}")

    def counted(self, uri: str) -> Counts:
        """The counts; DamagedDataError names the dataset where the manifest has none."""
        if self.counts is None:
            raise DamagedDataError(f"{io.join(uri, 'manifest.json')}: 'counts' is absent")
        return self.counts


def read_manifest(uri: str) -> tuple[Manifest, dict[str, Any]]:
    """The manifest of a dataset, as a record and as JSON types (see `parse_manifest`); refused unless finished."""
    path = io.join(uri, "manifest.json")
    try:
        if (size := io.size(path)) > MOST_BYTES:
            raise DamagedDataError(f"{path}: {size:,} bytes are too many for a manifest")
        data = io.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise OmniprepError(f"{uri}: {_why_no_dataset(uri)}") from error
    return parse_manifest(parse_json(data, path), path)


def _why_no_dataset(uri: str) -> str:
    """What is there in place of a finished dataset, and what to do."""
    none = "no manifest.json, so this is no finished omniprep dataset"
    folder = io.local_path(uri) if io.is_local(uri) else ""
    if folder and os.path.isfile(folder):
        return "is a file, and no dataset: give the folder that `omniprep build` made of it (its --out)"
    if folder and not os.path.isdir(folder):
        return f"{none}: no such folder{io.did_you_mean_file(uri)}"
    if io.exists(io.join(uri, "plan", "build.json")):
        return f"{none}; the command that built it, run again, finishes it (omniprep status {uri})"
    names = sorted(os.listdir(folder))[:1000] if folder else []
    if folder and os.path.isfile(os.path.join(folder, os.pardir, "manifest.json")):
        return f"{none}; did you mean {os.path.normpath(os.path.join(uri, os.pardir))!r}?"
    if inside := [name for name in names if os.path.isfile(os.path.join(folder, name, "manifest.json"))]:
        return f"{none}; did you mean {os.path.join(uri, inside[0])!r}?"
    return f"{none}; `omniprep build` makes one"


def parse_manifest(content: Any, where: str) -> tuple[Manifest, dict[str, Any]]:
    """The record of a parsed manifest.json, and the same as JSON types for display.

    In both, `config` holds only the options of `RowOptions`, and `needed_flags` the names of the flags of `Trust` that
    the build was given.
    """
    if not isinstance(content, dict):
        raise DamagedDataError(f"{where}: expected an object")
    if content.get("format") != FORMAT or isinstance(content.get("format"), bool):
        raise OmniprepError(f"{where}: format {content.get('format')!r:.40}, but this omniprep reads format {FORMAT}")
    flags = _needed_flags(content)
    read = {**content, "needed_flags": flags}
    if isinstance(counts := content.get("counts"), dict):
        rows_with = {name[len(_ROWS_WITH) :]: count for name, count in counts.items() if name.startswith(_ROWS_WITH)}
        read["counts"] = {**counts, "rows_with": rows_with}
    manifest = typed_record(Manifest, read, where)
    for modality, prices in manifest.unit_bytes.items():
        if modality not in MODALITIES or len(prices) != 2 or not all(0 <= price < 1e9 for price in prices):
            raise DamagedDataError(f"{where}: unit_bytes of {modality!r:.40} are no two numbers of bytes")
    for shard in manifest.shards:
        if not is_shard_path(shard.path):
            raise DamagedDataError(f"{where}: {shard.path!r:.120} is no name of a shard, such as shards/00000.arrow")
        if shard.bins < 0 or shard.bytes < 0:
            raise DamagedDataError(f"{where}: {shard.path}: bins and bytes cannot be negative")
    plain = {**content, "config": row_options_as_json(manifest.config), "needed_flags": flags}
    plain |= {name: getattr(manifest, name) for name in ("family", "model", "bin_length", "fill")}
    plain |= {name: plain.get(name, empty) for name, empty in (("inputs", []), ("versions", {}), ("seconds", {}))}
    if manifest.counts is not None:
        plain["counts"] = _counts_as_json(manifest.counts)
        for name in ("removed", *LEFT_OUT):  # absent where no row was ever removed or left out
            if name not in content["counts"]["rows"]:
                del plain["counts"]["rows"][name]
        if not manifest.counts.preference:
            del plain["counts"]["preference"]
    return manifest, plain


def content_hash(manifest: dict[str, Any]) -> str:
    """Hash of a dataset's bins, wherever they lie."""
    shards = [[shard["bins"], shard["sha256"]] for shard in manifest["shards"]]
    return hashlib.sha256(json.dumps(shards).encode()).hexdigest()


def _counts_as_json(counts: Counts) -> dict[str, Any]:
    plain = dataclasses.asdict(counts)
    return plain | {f"{_ROWS_WITH}{name}": count for name, count in plain.pop("rows_with").items()}


def _needed_flags(content: dict[str, Any]) -> list[str]:
    """Names of the flags of `Trust` that a build was given: from its config, or as `parse_manifest` left them."""
    config, listed = content.get("config"), content.get("needed_flags")
    options = config if isinstance(config, dict) else {}
    flags = listed if isinstance(listed, list) else []
    return [flag for name, flag in TRUST_FLAGS.items() if options.get(name) or flag in flags]
