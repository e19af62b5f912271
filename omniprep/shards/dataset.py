"""A built dataset: item i is bin i, read with one request when it is asked for.

Everything that looks into a dataset without training on it (builds, reports, `inspect`, `verify`) reads through
`StoredDataset`, which needs no torch: its import takes a second. `omniprep.PackedDataset` is the same for torch.

Opening reads manifest.json and index.parquet and nothing else, so 10,000 shards open as fast as one. The object may
be pickled or forked into DataLoader workers: each process opens the shards it needs by itself.
"""

import hashlib
import json
import os
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from omniprep import io
from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.shards.cache import BinCache
from omniprep.shards.cut import cut_rows
from omniprep.shards.index import read_index, read_rows
from omniprep.shards.manifest import content_hash, read_manifest
from omniprep.shards.names import table_name
from omniprep.shards.pairs import sequences_of_unit, with_repeated_media
from omniprep.shards.reader import ShardReader, decode, read_schema
from omniprep.shards.references import References, read_references
from omniprep.shards.schema import Layout, read_layout


class StoredDataset:
    """The bins of a dataset that `omniprep build` finished.

    Args:
        uri: Its folder: a path, s3://..., hf://datasets/ORG/NAME, or any other fsspec URI.
        verify: When the checksum of a bin is compared: the first time that a process reads it (forked processes know
            what their parent has read), always, or never.
        check_pixels: When pixels that are made of files (--pixel-codec source) are compared with the hashes of those
            that the build saw: likewise.
        cache_dir: Local folder in which bins of a remote dataset are kept, so that only the first epoch reads the
            store; processes may share it.
        cache_bytes: Bound of that folder; the bins used longest ago go first.

    Raises:
        OmniprepError: There is no finished dataset, or one of a newer format.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        verify: Literal["first", "always", "never"] = "first",
        *,
        check_pixels: Literal["first", "always", "never"] = "first",
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int = 32 << 30,
    ) -> None:
        for name, value in (("verify", verify), ("check_pixels", check_pixels)):
            if value not in ("first", "always", "never"):
                raise OmniprepError(f"{name} is 'first', 'always' or 'never', not {value!r}")
        self.uri = os.fspath(uri)
        self.verify, self.check_pixels = verify, check_pixels
        for attempt in range(3):
            self.record, self.manifest = read_manifest(self.uri)
            """manifest.json, checked: as a typed record, and as JSON types (without what would let code run)."""
            try:
                self.index = self._read_index()
                """The columns of index.parquet, an array each; line i is bin i."""
                break
            except DamagedDataError:
                # Between the two reads an append or a removal may have ended, which replaces both files.
                if attempt == 2 or read_manifest(self.uri)[1] == self.manifest:
                    raise
        shards = self.record.shards
        self._shards = [io.join(self.uri, *shard.path.split("/")) for shard in shards]
        self._cache = None
        if cache_dir is not None and not io.is_local(self.uri):
            facts = hashlib.sha256(json.dumps([shard.sha256 for shard in shards]).encode()).hexdigest()
            self._cache = BinCache(os.fspath(cache_dir), cache_bytes, facts)
        self._reader = ShardReader(self._shards, self._cache)
        self._seen = np.zeros(len(self), bool)

    def _read_index(self) -> dict[str, np.ndarray]:
        index = read_index(self.table_uri("index.parquet"))
        bins, numbers = sum(shard.bins for shard in self.record.shards), index["shard"]
        shards = len(self.record.shards)
        if bins != len(numbers) or numbers.min(initial=0) < 0 or numbers.max(initial=-1) >= shards:
            raise DamagedDataError(
                f"{self.uri}: manifest.json has {bins} bins in {shards} shards, index.parquet {len(numbers)}"
            )
        return index

    def table_uri(self, name: str) -> str:
        """Where index.parquet, rows.parquet or rejected.jsonl of this dataset lies."""
        return io.join(self.uri, table_name(name, self.record.tables))

    def __len__(self) -> int:
        """Bins."""
        return len(self.index["shard"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The arrays of one bin, all views of one buffer, which is used again when the last of them is gone.

        Args:
            index: 0 .. len-1, or negative from the end.

        Returns:
            int32: input_ids (L,), labels (L,), cu_seqlens (R+1,), row_ids (R,) (row number in rows.parquet),
                row_items (R, M);
            position_ids (3, L) unless every row has the plain range; float32 loss_scale (L,) where the dataset is
            weighted; the media columns as stored, where the bin has any. "columns" declares the media columns,
            "modalities" names the M of row_items. Of a dataset of preference rows a pair is two rows with one row id,
            and there are int32 pair_ids (R,) and chosen (R,), see `omniprep.collate`.

        Raises:
            IndexError: No such bin.
            DamagedDataError: The shard is absent, short or damaged; names shard and bin.
            OtherPixelsError: Files in place of pixels do not give the build's pixels on this machine.
        """
        return self.load(index)

    def load(
        self, index: int, pixels: Literal["arrays", "files", "none"] = "arrays", *, repeat_shared: bool = True
    ) -> dict[str, Any]:
        """A bin as `ds[index]`; with "files", columns of files are not decoded (`omniprep.shards.reader.decode`), with
        "none" no pixels in a codec are. Without `repeat_shared`, media that both answers of a pair have are there once,
        as they are stored.
        """
        number = int(index) + len(self) * (index < 0)
        if not 0 <= number < len(self):
            raise IndexError(f"bin {index} of {len(self)}")
        names = ("shard", "offset", "length", "before")
        shard, offset, length, before = (int(self.index[name][number]) for name in names)
        if not 0 <= before <= offset or length <= 0:
            raise DamagedDataError(f"bin {number}: index.parquet says bytes {offset - before} to {offset + length}")
        unverified, unchecked = (
            when == "always" or (when == "first" and not self._seen[number])
            for when in (self.verify, self.check_pixels)
        )
        checksum = int(self.index["checksum"][number]) if unverified else None
        try:
            schema, layout = self.schema, self.layout
            data = self._reader.read(shard, offset, length, checksum, before)
        except DamagedDataError as error:
            if self._is_replaced(shard):
                raise OmniprepError(
                    f"{self.uri}: rows were removed since this dataset was opened, and its shard "
                    f"{self.record.shards[shard].path} with them; open it again"
                ) from error
            raise DamagedDataError(f"bin {number}: {error}") from error
        try:
            arrays = decode(data, schema, layout, before=before, check=unchecked, pixels=pixels)
        except DamagedDataError as error:
            raise type(error)(f"bin {number}: {self._shards[shard]}: {error}") from error
        self._seen[number] |= pixels != "none"  # which compares none of them with the build's
        if layout.preferences and self.references is not None:
            arrays |= self.references.of_bin(number, len(arrays["row_ids"]))
        return with_repeated_media(arrays) if repeat_shared and layout.preferences else arrays

    def _is_replaced(self, shard: int) -> bool:
        """Whether the dataset, as it is now, has written a shard again under another name (`omniprep remove`)."""
        try:
            now = read_manifest(self.uri)[0]
        except (OmniprepError, OSError):
            return False
        return self.record.shards[shard].path not in {entry.path for entry in now.shards}

    @property
    def counts(self) -> dict[str, Any]:
        """The counts of the manifest, as JSON types.

        Raises:
            DamagedDataError: The manifest has none.
        """
        self.record.counted(self.uri)
        counts: dict[str, Any] = self.manifest["counts"]
        return counts

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the shards.

        Raises:
            OmniprepError: There are none: nothing was packed.
        """
        if not self._shards:
            raise OmniprepError(f"{self.uri}: has no bins")
        return read_schema(self._shards[0])

    @cached_property
    def layout(self) -> Layout:
        """What the shards declare: family, modalities, media columns."""
        return read_layout(self.schema, self._shards[0])

    @cached_property
    def references(self) -> References | None:
        """The log-probabilities of a reference model that `omniprep score` stored; None where there are none, or only
        those of another content.
        """
        stored = read_references(self.uri, len(self))
        return stored if stored is not None and stored.made_by.content == content_hash(self.manifest) else None

    @property
    def costs(self) -> np.ndarray:
        """Work of each bin, float64 (bins,), for `BinSampler(costs=...)`."""
        return self.index["cost"]

    @cached_property
    def rows(self) -> pa.Table:
        """rows.parquet: a line an input row."""
        return read_rows(self.table_uri("rows.parquet"))

    def stored_row(self, number: int) -> dict[str, Any]:
        """The arrays of one packed row, cut out of its bin: those of `ds[i]`, with R = 1; of a pair R = 2.

        Args:
            number: Number of the row in rows.parquet (`row_number`).

        Raises:
            OmniprepError: The row was rejected (the text has the code).
            DamagedDataError: As `row`.
        """
        row = self.rows.slice(number, 1).to_pylist()[0]
        name = f"{row['source']}:{row['line']}"
        if row["bin"] is None:
            raise OmniprepError(f"{name} is not in the dataset: {row['status']} ({row['code']})")
        item = self[row["bin"]] if 0 <= row["bin"] < len(self) else {"row_ids": np.empty(0, np.int32)}
        positions = np.flatnonzero(item["row_ids"] == number)
        count = sequences_of_unit(item, positions[0]) if len(positions) else 0
        if not count or len(positions) != count or item["cu_seqlens"][positions[0]] != row["start"]:
            raise DamagedDataError(
                f"{io.join(self.uri, 'rows.parquet')}: says that {name} is in bin {row['bin']} at {row['start']}, "
                "where it is not: the table is of another build"
            )
        return cut_rows(item, int(positions[0]), int(positions[0]) + count)

    def row_number(self, source: str, line: int) -> int:
        """Number in rows.parquet of an input row, by its source as given to the build and its line.

        Raises:
            OmniprepError: There is no such row.
        """
        names, codes, lines = self.row_keys
        if source not in names:
            raise OmniprepError(f"{source} is no input of {self.uri}; its inputs are: {', '.join(list(names)[:5])}")
        numbers = np.flatnonzero((lines == line) & (codes == names[source]))
        if len(numbers) == 0:
            raise OmniprepError(f"{source} has no row {line} in {self.uri}")
        return int(numbers[0])

    @cached_property
    def row_keys(self) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
        """Sources with a number each; that number of each row, and its line (both (rows,))."""
        sources = self.rows["source"].combine_chunks()
        names = {name: code for code, name in enumerate(sources.dictionary.to_pylist())}
        return names, sources.indices.to_numpy(zero_copy_only=False), self.rows["line"].to_numpy()

    def __getstate__(self) -> dict[str, Any]:
        """What goes to a worker: manifest and index, but no open files, and no row table."""
        kept = ("uri", "verify", "check_pixels", "record", "manifest", "index", "_shards", "_cache", "references")
        return {name: self.__dict__[name] for name in kept if name in self.__dict__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up in another process."""
        self.__dict__.update(state)
        self._reader = ShardReader(self._shards, self._cache)
        self._seen = np.zeros(len(self), bool)
