"""Reads single planned rows of many splits, in the order in which bins hold them."""

import json
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import pyarrow as pa

from omniprep import io
from omniprep.compiler.output.paths import plan_path
from omniprep.compiler.plan.file import KEPT_BYTES, LISTS, SCHEMA, damaged_plan, open_split, read_batch, views
from omniprep.compiler.plan.planned import PlannedRow
from omniprep.families.kinds import Item, from_json
from omniprep.io.tar import Member
from omniprep.lru import BoundedCache
from omniprep.media.source import Source
from omniprep.modalities import MODALITIES
from omniprep.rows.preference import Verdict

_NUMBERS = ("length", "verdict", "chosen_length", "chosen_ids", "chosen_runs", "shared")


class PlanReader:
    """Reads single planned rows of many splits; keeps the files and chunks used last."""

    def __init__(self, out: str, generation: str = "", keep: int = 64) -> None:
        self._out, self._generation = out, generation
        self._chunk_borders: dict[int, list[int]] = {}
        self._files: BoundedCache[int, pa.ipc.RecordBatchFileReader] = BoundedCache(keep)
        # Rows come in packed order, from anywhere, and opening a chunk costs more than a row, so many are kept. Bounded
        # by bytes: rows with inline media make chunks of hundreds of MB.
        self._chunks: BoundedCache[tuple[int, int], _Chunk] = BoundedCache(KEPT_BYTES, lambda chunk: chunk.nbytes)

    def read(self, split: int, number: int) -> PlannedRow:
        """Planned row `number` of a split. Inline media are views of the plan's bytes."""
        if split not in self._chunk_borders:
            uri = self._path(split, ".json")
            try:
                rows = json.loads(io.read_bytes(uri))["chunks"]
                self._chunk_borders[split] = list(accumulate(rows, initial=0))
            except (ValueError, KeyError, TypeError) as error:
                raise damaged_plan(uri, error) from error
        borders = self._chunk_borders[split]
        index = bisect_right(borders, number) - 1
        chunk = self._chunks.get((split, index))
        if chunk is None:
            uri = self._path(split, ".arrow")
            chunk = self._chunks.put((split, index), _Chunk(read_batch(self._file(split, uri), index, uri)))
        try:
            return chunk.row(number - borders[index])
        except (LookupError, ValueError, TypeError) as error:  # values that no plan has
            raise damaged_plan(self._path(split, ".arrow"), error) from error

    def _path(self, split: int, suffix: str) -> str:
        return plan_path(self._out, split, suffix, self._generation)

    def _file(self, split: int, uri: str) -> pa.ipc.RecordBatchFileReader:
        reader = self._files.get(split)
        if reader is None:
            reader = open_split(uri)
            # A larger file is opened for each chunk, since what is mapped counts as held memory.
            if io.size(uri) < KEPT_BYTES // 2:
                self._files.put(split, reader)
        return reader


class _Chunk:
    """A record batch of a plan; its buffers are looked up once and not for every row."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.nbytes = batch.nbytes
        columns = {name: batch.column(SCHEMA.get_field_index(name)) for name in (*LISTS, *_NUMBERS, "media")}
        self._offsets = {name: columns[name].offsets.to_numpy() for name in (*LISTS, "media")}
        self._values = {name: columns[name].values.to_numpy() for name in LISTS}
        self._numbers = {name: columns[name].to_numpy() for name in _NUMBERS}
        self._media = columns["media"]

    def row(self, index: int) -> PlannedRow:
        """A planned row."""
        ids, run_lengths, run_weights = (
            self._values[name][self._offsets[name][index] : self._offsets[name][index + 1]] for name in LISTS
        )
        length, verdict, chosen_length, chosen_ids, chosen_runs, shared = (
            int(self._numbers[name][index]) for name in _NUMBERS
        )
        row = PlannedRow(ids, run_lengths, run_weights, length=length, verdict=Verdict(verdict))
        if row.verdict == Verdict.PAIR:
            row.ids, row.length = ids[:chosen_ids], chosen_length
            row.run_lengths, row.run_weights = run_lengths[:chosen_runs], run_weights[:chosen_runs]
            row.rejected = PlannedRow(
                ids[chosen_ids:], run_lengths[chosen_runs:], run_weights[chosen_runs:], length=length - chosen_length,
                shared=frozenset(name for number, name in enumerate(MODALITIES) if shared >> number & 1),
            )  # fmt: skip
        first, last = self._offsets["media"][index : index + 2].tolist()
        if first != last:
            for rejected, item in _items(self._media.values.slice(first, last - first)):
                row.sequences[rejected].items[item.modality].append(item)
        if row.rejected is not None:
            for modality in row.rejected.shared:
                row.rejected.items[modality] = row.items[modality]
        return row


def _items(media: pa.StructArray) -> Iterator[tuple[bool, Item]]:
    offsets = media.field("sources").offsets.to_numpy()
    offsets, values = offsets - offsets[0], media.field("sources").values.slice(offsets[0], offsets[-1] - offsets[0])
    paths, uris, roots = (values.field(name).to_pylist() for name in ("path", "uri", "root"))
    members = [entry and Member(**entry) for entry in values.field("member").to_pylist()]
    marks = [mark or "" for mark in values.field("mark").to_pylist()]
    lengths = [-1 if length is None else length for length in values.field("length").to_pylist()]
    data = views(values.field("data"))
    sources = [Source(*facts) for facts in zip(paths, uris, data, roots, members, marks, lengths, strict=True)]
    modalities = tuple(MODALITIES)
    facts = (media.field(name).to_pylist() for name in ("modality", "tokens", "audio", "meta", "rejected"))
    for number, (modality, tokens, audio, meta, rejected) in enumerate(zip(*facts, strict=True)):
        own = sources[offsets[number] : offsets[number + 1]]
        yield rejected, Item(modalities[modality], from_json(json.loads(meta)), tokens, audio, own)
