"""Inputs → splits → rows: where each row stands (source, line) and what it says.

A split is the unit of planning: a byte range of a .jsonl file, cut at line ends, so one large file feeds many workers;
a row group of a .parquet file; a range of a Hugging Face dataset; a whole compressed file or JSON array. Workers know
line numbers only within their split; the driver adds up. A line that cannot be parsed is a Reject, not the end.
"""

import gzip
import io as _io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

from omniprep import io
from omniprep.errors import OmniprepError, Reject, RejectCode, did_you_mean
from omniprep.rows.longline import parse_line

Kind = Literal["jsonl", "json", "parquet", "hf"]
SPLIT_BYTES = 16 << 20
HF_ROWS = 2000


@dataclass(frozen=True, slots=True)
class Input:
    """One input file (or dataset folder): as the user named it, and what it is."""

    source: str
    kind: Kind
    codec: str = ""

    @property
    def base(self) -> str:
        """The folder that media paths are relative to."""
        if self.kind == "hf" and io.is_local(self.source):
            return io.local_path(self.source)
        if io.is_local(self.source):
            return os.path.dirname(io.local_path(self.source)) or "."
        return self.source.rsplit("/", 1)[0]


@dataclass(frozen=True, slots=True)
class Split:
    """A part of an input: bytes [start, end) of JSON lines, rows [start, end) of a dataset, or row group `start` of
    parquet.
    """

    source: str
    kind: Kind
    codec: str
    start: int
    end: int

    @property
    def base(self) -> str:
        """The folder that media paths are relative to."""
        return Input(self.source, self.kind).base


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as read: its line within the split (from 0), its content or why it cannot be read, and how many bytes it
    took.
    """

    line: int
    content: Any
    size: int


def find_inputs(patterns: tuple[str, ...]) -> list[Input]:
    """Expand what was given on the command line, in the order given.

    Raises:
        OmniprepError: A file is absent, a glob matches nothing, or a file is of no known kind.
    """
    found: list[Input] = []
    for pattern in patterns:
        if pattern.startswith("hf://datasets/") and not pattern.endswith(tuple(_KINDS)):
            found.append(Input(pattern, "hf"))
            continue
        names = io.expand(pattern) if any(c in pattern for c in "*?[") and not _exists(pattern) else [pattern]
        if not names:
            raise OmniprepError(f"{pattern}: no file matches")
        for name in names:
            found += _folder_or_file(name)
    if not found:
        raise OmniprepError("no input: give at least one .jsonl, .json or .parquet file, or a dataset folder")
    return list(dict.fromkeys(found))


_KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
_CODECS = {".gz": "gz", ".zst": "zst"}


def _exists(name: str) -> bool:
    try:
        return io.exists(name)
    except PermissionError as error:
        raise OmniprepError(f"{name}: no permission to read it ({error.strerror})") from error
    except (OSError, ImportError, ValueError) as error:
        raise OmniprepError(f"{name}: {error}") from error


def _near(name: str) -> str:
    """The file in the same folder that may have been meant."""
    if not io.is_local(name):
        return ""
    folder, word = os.path.split(io.local_path(name))
    return did_you_mean(word, os.listdir(folder or ".") if os.path.isdir(folder or ".") else [], folder)


def _folder_or_file(name: str) -> list[Input]:
    if not _exists(name):
        raise OmniprepError(f"{name}: no such file{_near(name)}")
    if io.is_local(name) and os.path.isdir(io.local_path(name)):
        inside = io.list_folder(name)
        if "dataset_info.json" in inside or "dataset_dict.json" in inside or "state.json" in inside:
            return [Input(name, "hf")]
        files = [n for n in inside if _kind(n) is not None]
        if not files:
            raise OmniprepError(
                f"{name}: a folder without .jsonl, .json or .parquet files, and not a saved Hugging Face dataset"
            )
        return [entry for n in files for entry in _folder_or_file(os.path.join(name, n))]
    kind = _kind(name)
    if kind is None:
        raise OmniprepError(
            f"{name}: not a kind of file that is known ({', '.join(_KINDS)}, with .gz or .zst after JSON)"
        )
    return [Input(name, *kind)]


def _kind(name: str) -> tuple[Kind, str] | None:
    stem, suffix = os.path.splitext(name.lower())
    codec = _CODECS.get(suffix, "")
    if codec:
        suffix = os.path.splitext(stem)[1]
    kind = _KINDS.get(suffix)
    return None if kind is None or (codec and kind == "parquet") else (kind, codec)


def find_splits(inputs: list[Input], split_bytes: int = SPLIT_BYTES) -> list[Split]:
    """Cut inputs into splits, in input order.

    Args:
        inputs: From `find_inputs`.
        split_bytes: Bytes of JSON lines in a split.
    """
    splits = []
    for entry in inputs:
        if entry.kind == "jsonl" and not entry.codec:
            size = io.size(entry.source)
            ranges = [(start, min(start + split_bytes, size)) for start in range(0, size, split_bytes)]
        elif entry.kind == "parquet":
            ranges = [(group, group + 1) for group in range(_row_groups(entry.source))]
        elif entry.kind == "hf":
            rows = len(_hf_dataset(entry.source))
            ranges = [(start, min(start + HF_ROWS, rows)) for start in range(0, rows, HF_ROWS)]
        else:
            ranges = [(0, 0)]
        splits += [Split(entry.source, entry.kind, entry.codec, start, end) for start, end in ranges]
    return splits


def _row_groups(source: str) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading(source) as file:
        try:
            groups: int = pq.ParquetFile(file).num_row_groups
        except (pa.ArrowInvalid, OSError) as error:
            raise OmniprepError(f"{source}: damaged parquet file: {error}") from error
    return groups


def _reading(uri: str) -> BinaryIO:
    try:
        return io.open_input(uri)
    except OSError as error:
        raise OmniprepError(f"{uri}: {error.strerror or error}") from error


def read_split(split: Split, ended: Callable[[int], None] = lambda lines: None) -> Iterator[RawRow]:
    """The rows of a split; blank lines are counted but are no rows. None is held while the next is read.

    Args:
        split: Of an input.
        ended: Told at the end how many lines the split has.

    Raises:
        OmniprepError: The file cannot be opened, or is damaged as a whole (gzip, zstd, parquet, a JSON array).
    """
    if split.kind == "jsonl":
        yield from _read_lines(split, ended)
        return
    line = -1
    for line, content in enumerate(_contents(split)):
        yield RawRow(line, content, _size(content))
        del content
    ended(line + 1)


def _contents(split: Split) -> Iterator[Any]:
    if split.kind == "json":
        return _read_array(split)
    if split.kind == "parquet":
        return _read_parquet(split)
    dataset = _hf_dataset(split.source)
    return (dataset[number] for number in range(split.start, split.end))


def _size(value: Any) -> int:
    """About how many bytes a row takes, so that chunks of rows with inline media stay small."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8


def count_lines(split: Split) -> int:
    """Lines of a split of JSON lines, rows of another; used to number the lines of the next split."""
    if split.kind != "jsonl":
        return sum(1 for _ in read_split(split))
    with _reading(split.source) as file:
        start, end = _line_range(file, split)
        file.seek(start)
        lines = 0
        left = end - start
        while left > 0 and (block := file.read(min(left, 8 << 20))):
            lines += block.count(b"\n")
            left -= len(block)
            last = block[-1:]
        return lines + int(end > start and last != b"\n")


def _line_range(file: BinaryIO, split: Split) -> tuple[int, int]:
    """The split's byte range moved to line starts: a line belongs to the split that its first byte is in."""

    def next_line_start(at: int) -> int:
        if at == 0:
            return 0
        file.seek(at - 1)
        while block := file.readline(1 << 20):
            if block.endswith(b"\n"):
                break
        return file.tell()

    start = next_line_start(split.start)
    return start, start if start >= split.end else next_line_start(split.end)


def _decompress(file: BinaryIO, codec: str) -> BinaryIO:
    if codec == "gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if codec == "zst":
        import zstandard

        return cast(BinaryIO, _io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file), 1 << 20))
    return file


def _read_lines(split: Split, ended: Callable[[int], None]) -> Iterator[RawRow]:
    with _reading(split.source) as file:
        start, end = (0, sys.maxsize) if split.codec else _line_range(file, split)
        file.seek(start)
        whole = _decompress(file, split.codec)
        at, line = start, 0
        while at < end and (text := _next_line(whole, split)):
            at += len(text)
            row = _parse(line, text)
            del text  # not held while the row is planned: with inline media it may be hundreds of MB
            line += 1
            if row is not None:
                yield row
                del row
        ended(line)


def _next_line(file: BinaryIO, split: Split) -> bytes:
    try:
        return file.readline()
    except (OSError, EOFError, RuntimeError, zlib.error) as error:
        if not split.codec:
            raise
        raise OmniprepError(f"{split.source}: damaged as {split.codec}: {error}") from error
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise OmniprepError(f"{split.source}: damaged as zst: {error}") from error


def _parse(line: int, text: bytes) -> RawRow | None:
    if line == 0:
        text = text.removeprefix(b"\xef\xbb\xbf")
    if not text or text.isspace():
        return None
    size = len(text)
    try:
        return RawRow(line, parse_line(text), size)
    except (ValueError, RecursionError) as error:
        return RawRow(line, Reject(RejectCode.BAD_JSON, f"{type(error).__name__}: {error}"), size)


def _read_array(split: Split) -> Iterator[Any]:
    with _reading(split.source) as file:
        try:
            data = _decompress(file, split.codec).read()
        except (OSError, EOFError) as error:
            raise OmniprepError(f"{split.source}: cannot be read: {error}") from error
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise OmniprepError(f"{split.source}: not valid JSON ({error}); one object a line is .jsonl") from error
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, list):
        raise OmniprepError(f"{split.source}: a .json input must be an array of rows")
    yield from rows


def _read_parquet(split: Split) -> Iterator[dict[str, Any]]:
    """The rows of a group, a few megabytes at a time, since a group may hold gigabytes of inline media."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading(split.source) as file:
        try:
            table = pq.ParquetFile(file, buffer_size=1 << 20)
            group = table.metadata.row_group(split.start)
            rows = max(1, min(64, (8 << 20) * group.num_rows // max(group.total_byte_size, 1)))
            for batch in table.iter_batches(rows, row_groups=[split.start], use_threads=False):
                yield from map(_plain, batch.to_pylist())
        except (pa.ArrowInvalid, OSError) as error:
            raise OmniprepError(f"{split.source}: damaged parquet file: {error}") from error


def _hf_dataset(source: str) -> Any:
    """A saved Hugging Face dataset, or one on the Hub; media columns give their bytes and paths undecoded."""
    import datasets

    try:
        if source.startswith("hf://"):
            dataset = datasets.load_dataset(source.removeprefix("hf://datasets/"))
        else:
            dataset = datasets.load_from_disk(io.local_path(source))
    except (OSError, ValueError) as error:
        raise OmniprepError(f"{source}: cannot be read as a Hugging Face dataset: {error}") from error
    if isinstance(dataset, datasets.DatasetDict):
        dataset = datasets.concatenate_datasets([dataset[name] for name in dataset])
    return dataset.with_format(None) if not _media_features(dataset) else _undecoded(dataset)


def _media_features(dataset: Any) -> bool:
    return any(
        type(f).__name__ in ("Image", "Audio", "Video") or "Image(" in repr(f) or "Audio(" in repr(f)
        for f in dataset.features.values()
    )


def _undecoded(dataset: Any) -> Any:
    """Cast Image, Audio and Video features to decode=False, also inside lists."""
    import datasets

    def cast_feature(feature: Any) -> Any:
        if isinstance(feature, datasets.Image | datasets.Audio) or type(feature).__name__ == "Video":
            return type(feature)(decode=False)
        if isinstance(feature, dict):
            return {k: cast_feature(v) for k, v in feature.items()}
        if isinstance(feature, list):
            return [cast_feature(v) for v in feature]
        inner = getattr(feature, "feature", None)
        return type(feature)(cast_feature(inner)) if inner is not None else feature

    features = datasets.Features({name: cast_feature(feature) for name, feature in dataset.features.items()})
    return dataset.cast(features)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}
