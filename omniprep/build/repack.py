"""Repack: finished datasets → another bin length, seed or choice of rows, with no decode and no tokenizer.

Rows are packed anew by their lengths and costs in rows.parquet, as a build packs them, and then copied: token slices
and media bytes come straight from the old shards. So the shards, index.parquet and rows.parquet are byte for byte those
of a fresh build with the new options, unless rows were rejected for a reason that a fresh build would see differently
(too long for the old bins but not for the new ones, or damaged, which a fresh build finds only after it has packed).

Local shards are mapped and only the bytes of a row are touched; remote ones are read bin by bin, the last gigabyte of
them kept, so pull a large dataset first. Resume is as in a build: a shard with a receipt is not made again.
"""

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omniprep import io
from omniprep.build.manifest import count, fill, index_entries, note_columns, places
from omniprep.build.packstage import Placement, Rows, freeze, item_counts, place
from omniprep.build.rowencode import EncodedRow, make_bin
from omniprep.build.shardfile import ShardFile
from omniprep.build.tasks import receipt_path
from omniprep.config import BuildConfig, config_hash, shaping
from omniprep.data.collate import cut_row
from omniprep.data.dataset import PackedDataset
from omniprep.errors import OmniprepError, RejectCode, UsageError
from omniprep.progress import Reporter
from omniprep.rows.columns import Note
from omniprep.rows.longline import parse_line
from omniprep.rows.normalize import MODALITIES
from omniprep.shards.codec import with_codec
from omniprep.shards.index import write_index, write_rows
from omniprep.shards.reader import decode, item_sizes
from omniprep.shards.schema import Layout, arrow_schema

__all__ = ["Chosen", "choose", "repack"]

KEPT_BYTES = 1 << 30
FACTS = ("trained", "patches", "audio_frames", "control")
KINDS = ("text", *MODALITIES, "mixed")


@dataclass(slots=True)
class Chosen:
    """Rows of the old datasets that go on, in order."""

    table: pa.Table
    """rows.parquet of all datasets, the chosen lines alone."""
    dataset: NDArray[np.int64]
    """Which dataset each line is of."""
    line: NDArray[np.int64]
    """Its line in that dataset's rows.parquet."""


def repack(
    uris: Sequence[str], out: str, bin_length: int, progress: Reporter, *, seed: int | None = None,
    shard_size: int | None = None, sources: Sequence[str] = (), kinds: Sequence[str] = (), overwrite: bool = False,
    pixel_codec: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a new dataset from the rows of finished ones; returns its manifest.

    Args:
        uris: Folders or URIs of the datasets; several are merged, in this order.
        out: Folder or URI of the new one.
        bin_length: Tokens a new bin holds. Longer rows are rejected (row_too_long).
        progress: Told of every shard.
        seed: Seed of the order (default: that of the first dataset).
        shard_size: Bytes a shard grows to (default: that of the first dataset).
        sources: Keep the rows of these inputs alone; an input may be shortened to its end (chats.jsonl).
        kinds: Keep rows of these kinds alone, see `KINDS`; rejected rows have no kind and are left out.
        overwrite: Throw away what is in `out`.
        pixel_codec: raw, webp or jxl (default: that of the first dataset).

    Raises:
        OmniprepError: Datasets that do not fit together, or `out` holds something else.
    """
    datasets = [PackedDataset(uri, verify="first") for uri in uris]
    _check_alike(datasets)
    changed = {"bin_length": bin_length, "out": out, "seed": seed, "shard_size": shard_size, "pixel_codec": pixel_codec}
    config = _config(datasets, changed)
    chosen = choose(datasets, sources, kinds)
    rows = _rows(chosen, config)
    _prepare(out, uris, overwrite)
    placement = place(rows, config)
    digest = freeze(out, rows, placement, config)
    shards = len(placement.shard_bins) - 1
    progress.start("repack", shards, "shards")
    reader = _RowReader(datasets)
    receipts = []
    for number in range(shards):
        receipt = _shard(number, placement, chosen, reader, datasets[0], config)
        receipts.append(receipt)
        progress.advance("repack", 1, tokens=sum(entry["tokens"] for entry in receipt["bins"]))
    progress.finish("repack")
    return _finish(datasets, config, chosen, rows, placement, receipts, digest)


def choose(datasets: Sequence[PackedDataset], sources: Sequence[str], kinds: Sequence[str]) -> Chosen:
    """The rows that go on.

    Raises:
        UsageError: A source or kind that there is none of.
        OmniprepError: One input line is in two datasets.
    """
    names = datasets[0].rows.column_names
    for ds in datasets:
        if missing := [name for name in (*FACTS, *names) if name not in ds.rows.column_names]:
            raise OmniprepError(f"{ds.uri}: rows.parquet has no column {missing[0]!r}; build the dataset again")
    parts = [ds.rows.select(names).cast(_plain(ds.rows.select(names).schema)) for ds in datasets]
    table = pa.concat_tables(parts)
    dataset = np.repeat(np.arange(len(datasets)), [part.num_rows for part in parts])
    line = np.concatenate([np.arange(part.num_rows) for part in parts])
    keep = np.ones(table.num_rows, bool)
    if sources:
        given = np.array(table["source"].to_pylist(), object)
        fitting = {name for name in set(given) if any(name == s or name.endswith("/" + s) for s in sources)}
        for wanted in sources:
            if not any(name == wanted or name.endswith("/" + wanted) for name in fitting):
                raise UsageError(
                    f"--source {wanted}: there is no such input; there are: {', '.join(sorted(set(given))[:8])}"
                )
        keep &= np.isin(given, list(fitting))
    if kinds:
        counts = [table[f"{m}s"].to_numpy() > 0 for m in MODALITIES]
        several = np.sum(counts, axis=0)
        kind = np.select([several == 0, several > 1, *counts], ["text", "mixed", *MODALITIES], "text")
        keep &= np.isin(kind, list(kinds)) & table["bin"].is_valid().to_numpy()
    chosen = Chosen(table.filter(pa.array(keep)), dataset[keep], line[keep])
    if len(datasets) > 1:
        pairs = chosen.table.select(["source", "line"]).group_by(["source", "line"]).aggregate([([], "count_all")])
        if pairs.num_rows != chosen.table.num_rows:
            raise OmniprepError("one input line is in two of the datasets; choose rows with --source")
    return chosen


def _plain(schema: pa.Schema) -> pa.Schema:
    return pa.schema(
        [pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in schema]
    )


def _check_alike(datasets: Sequence[PackedDataset]) -> None:
    first = datasets[0]
    for dataset in datasets:
        if len(dataset) == 0:
            raise OmniprepError(f"{dataset.uri}: has no bins")
        if _without_codec(dataset.layout) != _without_codec(first.layout):
            raise OmniprepError(f"{dataset.uri}: its shards hold other columns than those of {first.uri}")
        for name in ("tokenizer_sha256", "preprocessor_sha256"):
            if dataset.manifest.get(name) != first.manifest.get(name):
                raise OmniprepError(f"{dataset.uri}: made with another {name.removesuffix('_sha256')} than {first.uri}")


def _without_codec(layout: Layout) -> Layout:
    return dataclasses.replace(layout, columns=with_codec(layout.columns, "raw"))


def _config(datasets: Sequence[PackedDataset], given: dict[str, Any]) -> BuildConfig:
    known = {field.name for field in dataclasses.fields(BuildConfig)}
    before = {name: value for name, value in datasets[0].manifest["config"].items() if name in known}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in before.items()}
    inputs = dict.fromkeys(source for ds in datasets for source in ds.manifest["config"]["inputs"])
    changed = {name: value for name, value in given.items() if value is not None}
    return BuildConfig(**{**values, "inputs": tuple(inputs), **changed})


def _rows(chosen: Chosen, config: BuildConfig) -> Rows:
    table = chosen.table
    lengths = table["length"].fill_null(0).to_numpy().astype(np.int32)
    codes = np.array(table["code"].to_pylist(), object)
    for limit, code in (
        (config.row_limit, RejectCode.ROW_TOO_LONG),
        (config.bin_length, RejectCode.ROW_EXCEEDS_BIN),
    ):
        long = lengths > limit
        codes[long], lengths[long] = str(code), 0
    facts: dict[str, Any] = {"length": lengths, "code": codes}
    facts |= {name: np.where(lengths > 0, table[name].to_numpy(), 0) for name in FACTS}
    facts |= {f"{m}s": np.where(lengths > 0, table[f"{m}s"].to_numpy(), 0).astype(np.int32) for m in MODALITIES}
    facts["trained"] = facts["trained"].astype(np.int32)
    facts["control"] = facts["control"].astype(bool)
    facts["notes"] = np.zeros(len(lengths), np.uint8)
    for note in Note:  # datasets of earlier versions lack the columns
        if (name := str(note.name).lower()) in table.column_names:
            facts["notes"] |= np.where((lengths > 0) & table[name].to_numpy(), note.value, 0).astype(np.uint8)
    empty = np.zeros(len(lengths), np.int32)
    return Rows(split=empty, within=empty, facts=facts)


def _prepare(out: str, uris: Sequence[str], overwrite: bool) -> None:
    if any(io.join(out, "") == io.join(uri, "") for uri in uris):
        raise UsageError("--out is one of the datasets")
    state = io.join(out, "plan", "repack.json")
    this = {"from": list(uris)}
    if io.exists(state) and json.loads(io.read_bytes(state)) == this and not overwrite:
        return
    if io.list_folder(out):
        if not overwrite:
            raise OmniprepError(f"{out}: the folder is not empty; choose another --out, or --overwrite")
        if not io.exists(state):
            raise OmniprepError(f"{out}: holds something else than a repacked dataset; remove it yourself")
        io.remove(out)
    for name in ("plan", "shards", "receipts"):
        io.make_folder(io.join(out, name))
    io.write_atomic(state, json.dumps(this).encode())


class _RowReader:
    """Cuts single rows out of bins; see the module for what is kept."""

    def __init__(self, datasets: Sequence[PackedDataset]) -> None:
        self.datasets = datasets
        self._places = [
            {name: ds.rows[name].to_numpy(zero_copy_only=False) for name in ("bin", "start")} for ds in datasets
        ]
        self._maps: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._bins: OrderedDict[tuple[int, int], dict[str, Any]] = OrderedDict()
        self._size = 0

    def read(self, dataset: int, line: int) -> EncodedRow:
        """One row, as `encode_planned` would give it; its arrays look into the old shard."""
        place = self._places[dataset]
        item = self._bin(dataset, int(place["bin"][line]))
        cut = cut_row(item, int(np.searchsorted(item["cu_seqlens"], int(place["start"][line]))))
        items = cut["row_items"][0].tolist()
        weights = cut["loss_scale"] if "loss_scale" in cut else np.empty(0, np.float32)
        positions = cut["position_ids"] if "position_ids" in cut and any(items) else None
        return EncodedRow(cut["input_ids"], cut["labels"], weights, positions, items, _items(cut))

    def _bin(self, dataset: int, number: int) -> dict[str, Any]:
        ds = self.datasets[dataset]
        shard, offset, length = (int(ds.index[name][number]) for name in ("shard", "offset", "length"))
        uri = io.join(ds.uri, *ds.manifest["shards"][shard]["path"].split("/"))
        coded = any("codec" in column.params for column in ds.layout.columns)  # a bin is then decoded once, not by row
        if io.is_local(uri) and not coded:
            if (dataset, shard) not in self._maps:
                self._maps[dataset, shard] = np.memmap(io.local_path(uri), np.uint8, "r")
                if len(self._maps) > 256:
                    self._maps.popitem(last=False)
            return decode(self._maps[dataset, shard][offset : offset + length], ds.schema, ds.layout)
        if (dataset, number) not in self._bins:
            self._bins[dataset, number] = item = ds[number]
            self._size += _bytes(item)
            while self._size > KEPT_BYTES and len(self._bins) > 1:
                _, gone = self._bins.popitem(last=False)
                self._size -= _bytes(gone)
        self._bins.move_to_end((dataset, number))
        return self._bins[dataset, number]


def _bytes(item: dict[str, Any]) -> int:
    return sum(value.nbytes for value in item.values() if isinstance(value, np.ndarray))


def _items(cut: dict[str, Any]) -> dict[str, list[NDArray[Any]]]:
    media: dict[str, list[NDArray[Any]]] = {column.name: [] for column in cut["columns"]}
    for column in cut["columns"]:
        if column.name not in cut:
            continue
        if column.kind == "items":
            media[column.name] = list(cut[column.name])
            continue
        unit = column.unit if column.load == "mel" else 1
        media[column.name] = np.split(cut[column.name], np.cumsum(item_sizes(column, cut))[:-1] * unit)
    return media


def _shard(
    number: int, placement: Placement, chosen: Chosen, reader: _RowReader, like: PackedDataset, config: BuildConfig
) -> dict[str, Any]:
    path = receipt_path(config.out, number)
    if io.exists(path):
        return json.loads(io.read_bytes(path))
    companions = {column.companion for column in like.layout.columns if column.companion}
    columns = tuple(column for column in like.layout.columns if column.name not in companions)
    columns = with_codec(columns, config.pixel_codec)
    layout = like.layout
    schema = arrow_schema(columns, family=layout.family, modalities=layout.modalities, weighted=layout.weighted)
    first, last = (int(b) for b in placement.shard_bins[number : number + 2])
    with ShardFile(config.out, number, schema) as shard:
        for b in range(first, last):
            ids = placement.order[placement.offsets[b] : placement.offsets[b + 1]]
            rows = [reader.read(int(chosen.dataset[row]), int(chosen.line[row])) for row in ids]
            shard.put(b - first, make_bin(rows, ids.tolist(), columns, weighted=layout.weighted))
    return shard.finish([])


def _finish(
    datasets: Sequence[PackedDataset], config: BuildConfig, chosen: Chosen, rows: Rows, placement: Placement,
    receipts: list[dict[str, Any]], digest: str,
) -> dict[str, Any]:  # fmt: skip
    packed = rows.packed
    entries = index_entries(rows, placement, packed, receipts)
    write_index(io.join(config.out, "index.parquet"), entries)
    where = {**places(rows, placement, packed), "length": rows.facts["length"].astype(np.int64)}
    columns: dict[str, Any] = {name: chosen.table[name] for name in ("source", "line")}
    columns |= {"status": pa.array(np.where(packed, "packed", "rejected").tolist(), pa.string())}
    columns |= {"code": pa.array(rows.facts["code"].tolist(), pa.string())}
    columns |= {name: pa.array(values, mask=~packed) for name, values in where.items()}
    columns |= {f"{m}s": counts for m, counts in item_counts(rows).items()}
    columns |= {name: rows.facts[name] for name in FACTS} | note_columns(rows)
    write_rows(io.join(config.out, "rows.parquet"), [pa.table(columns)])
    _write_rejects(datasets, chosen, rows, config)
    counts = count(config.out, rows, packed, rows.facts["code"], entries)
    inputs = {entry["source"]: entry for ds in datasets for entry in ds.manifest["inputs"]}
    kept = set(chosen.table["source"].unique().to_pylist())
    manifest = {
        **datasets[0].manifest,
        "config": shaping(config),
        "config_sha256": config_hash(config),
        "plan_sha256": digest,
        "inputs": [entry for source, entry in inputs.items() if source in kept],
        "bin_length": config.bin_length,
        "counts": counts,
        "fill": fill(counts, config.bin_length),
        "seconds": {"repack": round(sum(r["seconds"] for r in receipts), 1)},
        "shards": [
            {"path": r["path"], "bins": len(r["bins"]), "bytes": r["bytes"], "sha256": r["sha256"]} for r in receipts
        ],
        "repacked_from": [{"uri": ds.uri, "plan_sha256": ds.manifest.get("plan_sha256")} for ds in datasets],
    }
    io.write_atomic(io.join(config.out, "manifest.json"), json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    return manifest


def _write_rejects(datasets: Sequence[PackedDataset], chosen: Chosen, rows: Rows, config: BuildConfig) -> None:
    """The old rejects of the chosen rows as they were; rows that are too long now without their content."""
    keys = list(zip(chosen.table["source"].to_pylist(), chosen.table["line"].to_pylist(), strict=True))
    rejected = np.flatnonzero(~rows.packed)
    wanted = {keys[number] for number in rejected}
    old: dict[tuple[str, int], bytes] = {}
    for dataset in datasets:
        uri = io.join(dataset.uri, "rejected.jsonl")
        if not wanted or not io.exists(uri):
            continue
        with io.open_input(uri) as file:
            for line in file:
                reject = parse_line(line)
                if (reject["source"], reject["line"]) in wanted:
                    old[reject["source"], reject["line"]] = line
    lengths = chosen.table["length"].to_pylist()
    with io.atomic_writer(io.join(config.out, "rejected.jsonl")) as file:
        for number in rejected:
            source, line = keys[number]
            fresh = {"source": source, "line": line, "code": rows.facts["code"][number]}
            message = f"{lengths[number]} tokens, the limit is {config.row_limit}"
            text = json.dumps({**fresh, "message": message, "row": None}, ensure_ascii=False) + "\n"
            file.write(old.get((source, line), text.encode()))
