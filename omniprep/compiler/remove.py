"""Remove: rows taken out of a finished dataset for good. Only shards that hold them are written again, with no decode.

The rows that stay keep their bins and their numbers; a bin that loses all of its rows is gone. Shards get names of
their own, and the dataset changes at once (compiler/output/commit.py). Then the old shards go, and with them whatever
else held the rows' texts: lines of rejected.jsonl, plans, the examples of report.html. rows.parquet keeps the line of
each, with the status `removed` and no other fact than its source.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.build import write_dataset_report
from omniprep.compiler.costs import bin_cost
from omniprep.compiler.driver import stopped_by_signal
from omniprep.compiler.duplicates import row_repeated
from omniprep.compiler.encode.copied_bins import COPIED_BYTES, CopySource, CopyTask, forget_copied, places_of
from omniprep.compiler.named_rows import RowNames
from omniprep.compiler.output.commit import (
    add_generation,
    commit,
    next_tag,
    read_plain_manifest,
    recover,
    remove_plans,
)
from omniprep.compiler.output.folder import os_errors_as_one_line
from omniprep.compiler.output.lease import Lease, hold
from omniprep.compiler.output.manifest import count_verdicts, fill
from omniprep.compiler.output.ownfiles import APPEND_STATE, OWN, remove_tagged, sweep
from omniprep.compiler.output.progress_file import kept_progress
from omniprep.compiler.run.cluster import ray_session
from omniprep.compiler.run.stages import Stage
from omniprep.compiler.run.tasks import Receipt
from omniprep.config import Workers
from omniprep.errors import OmniprepError, RejectCode
from omniprep.modalities import MODALITIES
from omniprep.progress import Reporter
from omniprep.rows.columns import Note
from omniprep.rows.longline import parse_line
from omniprep.shards.dataset import StoredDataset
from omniprep.shards.index import INDEX_SCHEMA, write_index_table, write_rows
from omniprep.shards.manifest import LEFT_OUT


def remove(
    out: str, progress: Reporter, *, rows: Sequence[str] = (), rows_file: str = "", sources: Sequence[str] = (),
    workers: Workers = 0, ray_address: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Remove rows from a dataset; returns its manifest.

    Args:
        out: The dataset.
        progress: Shows each shard that is written again.
        rows: SOURCE:LINE of rows; the source as given to the build.
        rows_file: A file with SOURCE:LINE, or a JSON object with source and line (as rejected.jsonl has), on each line.
        sources: Patterns (`*`, `?`, `[a-z]`) of sources all of whose rows go.
        workers: As `BuildConfig.workers`: who writes the shards. The bytes are the same with any number.
        ray_address: A running Ray cluster.

    Raises:
        UsageError: A row or source that the dataset does not have; nothing is changed.
        OmniprepError: No finished dataset, or another run is at work there.
    """
    with os_errors_as_one_line(out), stopped_by_signal():
        StoredDataset(out)  # says at once that there is none
        with hold(out, progress.message) as lease:
            recover(out)
            before = read_plain_manifest(out)
            dataset = StoredDataset(out, verify="first")
            named = RowNames(rows=tuple(rows), rows_file=rows_file, sources=tuple(sources))
            gone = named.find(dataset.row_keys, dataset.uri)
            already = _removed(dataset.rows)
            if (gone & already).any():
                progress.message(f"{out}: {int((gone & already).sum()):,} of these rows were removed before")
            gone &= ~already
            if not gone.any():
                _sweep_texts(out, before)  # of a run that was killed when the dataset had changed already
                progress.message(f"{out}: no row is left to remove")
                return before
            if io.exists(io.join(out, *APPEND_STATE)):
                raise OmniprepError(f"{out}: an append that was stopped is not done; run it again first")
            lease.generation = next_tag(before)
            sweep(out)
            remove_tagged(out, lease.generation)  # of a removal of other rows that was killed
            with kept_progress(lease, "remove", workers, progress) as shown, ray_session(workers, ray_address):
                manifest = _remove(dataset, before, gone, workers, lease, shown)
            _write_report_again(out, progress)
            _sweep_texts(out, manifest)
            return manifest


def _remove(
    dataset: StoredDataset, before: dict[str, Any], gone: NDArray[np.bool_], workers: Workers, lease: Lease,
    progress: Reporter,
) -> dict[str, Any]:  # fmt: skip
    """Write the shards and tables without the rows; returns the manifest."""
    table, out = dataset.rows, dataset.uri
    places = places_of(dataset)
    bins, shard_of_bin = places.bin.copy(), dataset.index["shard"]
    touched = np.unique(shard_of_bin[np.unique(bins[gone & (bins >= 0)])])
    kept = np.flatnonzero((bins >= 0) & ~gone)
    kept = kept[np.lexsort((places.start[kept], bins[kept]))]
    borders = np.searchsorted(bins[kept], np.arange(len(dataset) + 1))
    state = hashlib.sha256(json.dumps(dataset.manifest, sort_keys=True).encode()).hexdigest()
    tasks = []
    for shard in touched.tolist():
        its_bins = np.flatnonzero(shard_of_bin == shard)
        bin_rows = [kept[borders[number] : borders[number + 1]] for number in its_bins.tolist()]
        its_rows = np.concatenate(bin_rows)
        tasks.append(
            CopyTask(
                number=shard,
                out=out,
                generation=lease.generation,
                fence=lease.fence,
                sources=(CopySource(out, state),),
                schema=dataset.schema,
                places=places.take(its_rows),
                row_ids=its_rows,
                borders=np.cumsum([0, *map(len, bin_rows)]),
                pixels="files",
            )
        )
    try:
        receipts = Stage(name="remove", out=out, workers=workers, progress=progress, lease=lease).run(
            tasks, [dataset.record.shards[shard].bytes / COPIED_BYTES for shard in touched.tolist()]
        )
    finally:
        forget_copied()
    index, shards, new_bin = _new_index(dataset, before, dict(zip(touched.tolist(), receipts, strict=True)))
    new_rows = _new_rows(dataset, gone, bins, new_bin)
    index = _with_work(index, new_rows)
    counts = _counts(before["counts"], new_rows, index)
    entry = {
        "command": "remove",
        "rows": {
            "read": int(gone.sum()),
            "packed": int((gone & (bins >= 0)).sum()),
            "rejected": int((gone & (bins < 0)).sum()),
        },
        "tokens": before["counts"]["tokens"] - counts["tokens"],
        "bins": before["counts"]["bins"] - counts["bins"],
    }
    manifest = {
        **before,
        "counts": counts,
        "fill": fill(counts, dataset.record.bin_length),
        "shards": shards,
        "generations": add_generation(before, entry),
    }
    copies: list[str] = []
    keys = {(row["source"], row["line"]) for row in table.filter(pa.array(gone)).select(["source", "line"]).to_pylist()}
    commit(
        out, manifest, lease.generation,
        {
            "index.parquet": lambda uri: write_index_table(uri, index),
            "rows.parquet": lambda uri: write_rows(uri, [new_rows]),
            "rejected.jsonl": lambda uri: _write_rejects(dataset, uri, keys, copies),
        },
    )  # fmt: skip
    if copies:
        more = f" and {len(copies) - 5:,} more" if len(copies) > 5 else ""
        progress.message(
            f"{out}: rejected.jsonl still has the text of removed rows, in rows that --dedup rejected as their copies; "
            f"remove them too where the text must go: {', '.join(copies[:5])}{more}"
        )
    return manifest


def _new_index(
    dataset: StoredDataset, before: dict[str, Any],
    rewritten: dict[int, Receipt],
) -> tuple[pa.Table, list[dict[str, Any]], NDArray[np.int64]]:  # fmt: skip
    """index.parquet, the manifest's shards, and the new number of each bin (-1: it is gone).

    A shard that lost all of its bins is not named any more.
    """
    columns: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}
    shards: list[dict[str, Any]] = []
    new_bin = np.full(len(dataset), -1, np.int64)
    for shard, entry in enumerate(before["shards"]):
        numbers = np.flatnonzero(dataset.index["shard"] == shard)
        lines = [{name: values[number].item() for name, values in dataset.index.items()} for number in numbers.tolist()]
        if shard in rewritten:
            receipt = rewritten[shard]
            by_bin = {done["bin"]: done for done in receipt["bins"]}
            numbers = np.array([number for place, number in enumerate(numbers.tolist()) if place in by_bin], np.int64)
            names = ("offset", "length", "tokens", "rows", "checksum")
            lines = [
                {**line, **{name: by_bin[place][name] for name in names}}
                for place, line in enumerate(lines)
                if place in by_bin
            ]
            entry = {
                "path": receipt["path"],
                "bins": len(lines),
                "bytes": receipt["bytes"],
                "sha256": receipt["sha256"],
            }
        if not lines:
            continue
        for number, line in zip(numbers.tolist(), lines, strict=True):
            new_bin[number] = len(columns["shard"])
            for name, value in {**line, "shard": len(shards)}.items():
                columns[name].append(value)
        shards.append(entry)
    return pa.table(columns, schema=INDEX_SCHEMA), shards, new_bin


def _new_rows(
    dataset: StoredDataset, gone: NDArray[np.bool_], bins: NDArray[np.int64], new_bin: NDArray[np.int64]
) -> pa.Table:
    """rows.parquet without the facts of the rows that go, and with the bins and first tokens of those that stay."""
    table = dataset.rows
    removed = _removed(table) | gone
    packed = (bins >= 0) & ~removed
    lengths = table["length"].cast(pa.int64()).fill_null(0).to_numpy()
    old_starts = table["start"].cast(pa.int64()).fill_null(0).to_numpy()
    order = np.flatnonzero(packed)
    order = order[np.lexsort((old_starts[order], bins[order]))]
    before = np.cumsum(lengths[order]) - lengths[order]
    first = np.concatenate([[True], bins[order][1:] != bins[order][:-1]]) if len(order) else np.zeros(0, bool)
    starts = np.zeros(len(gone), np.int64)
    starts[order] = before - np.maximum.accumulate(np.where(first, before, 0)) if len(order) else before
    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        columns[name] = column
    mask = pa.chunked_array([pa.array(removed)])
    columns["status"] = pc.if_else(mask, "removed", columns["status"])
    columns["code"] = pc.if_else(mask, pa.scalar(None, pa.string()), columns["code"])
    placed = {
        "bin": np.where(packed, new_bin[np.where(packed, bins, 0)], 0) if len(new_bin) else bins,
        "start": starts,
        "length": lengths,
    }
    columns |= {name: pa.array(values, mask=~packed) for name, values in placed.items()}
    for name in table.column_names:
        if name not in ("source", "line", "status", "code", "bin", "start", "length"):
            values = table[name].to_numpy(zero_copy_only=False).copy()
            values[gone] = np.zeros(1, values.dtype)[0]
            columns[name] = pa.array(values, table[name].type)
    return pa.table(columns)


def _removed(table: pa.Table) -> NDArray[np.bool_]:
    """Which rows were removed."""
    texts = table["status"]
    plain = texts.cast(pa.string()) if pa.types.is_dictionary(texts.type) else texts
    return np.asarray(pc.equal(plain, "removed").to_numpy(zero_copy_only=False), bool)


def _with_work(index: pa.Table, rows: pa.Table) -> pa.Table:
    """index.parquet with what the towers and the model have to do for the rows that each bin holds now."""
    packed = rows.filter(rows["bin"].is_valid())
    bins = packed["bin"].to_numpy()
    names = ("length", "patches", "audio_frames", "chosen_length")
    facts = {name: packed[name].to_numpy() for name in names if name in packed.column_names}
    columns = {name: index[name] for name in index.column_names}
    for name in ("patches", "audio_frames"):
        columns[name] = pa.array(np.bincount(bins, facts[name], index.num_rows).astype(np.int64))
    columns["cost"] = pa.array(bin_cost(facts, bins) if len(bins) else np.zeros(0))
    return pa.table(columns, schema=INDEX_SCHEMA)


def _counts(before: dict[str, Any], rows: pa.Table, index: pa.Table) -> dict[str, Any]:
    """The counts of a manifest, from rows.parquet."""
    packed = rows["bin"].is_valid().to_numpy()
    removed = int(_removed(rows).sum())
    codes = {entry["values"]: entry["counts"] for entry in rows["code"].drop_null().value_counts().to_pylist()}
    trained = rows["trained"].to_numpy()
    notes = [str(note.name).lower() for note in Note if str(note.name).lower() in rows.column_names]
    counts = {
        **before,
        "rows": {
            "read": rows.num_rows,
            "packed": int(packed.sum()),
            "rejected": rows.num_rows - int(packed.sum()) - removed,
            "removed": removed,
            **{name: count for name, count in before["rows"].items() if name in LEFT_OUT},
        },
        "tokens": int(index["tokens"].to_numpy().sum()),
        "labeled_tokens": int(trained[packed].sum()),
        "bins": index.num_rows,
        "rejected_by_code": dict(sorted(codes.items())),
        "rows_with_control_tokens": int(rows["control"].to_numpy(zero_copy_only=False)[packed].sum()),
        **{f"rows_with_{name}": int(rows[name].to_numpy(zero_copy_only=False)[packed].sum()) for name in notes},
        "rows_without_labels": int((trained[packed] == 0).sum()),
        "items": {name: int(rows[entry.column].to_numpy()[packed].sum()) for name, entry in MODALITIES.items()},
    }
    if "verdict" in rows.column_names:
        counts["preference"] = count_verdicts(rows["verdict"].to_numpy()[packed])
    # How many of the rows that stay have each column that nobody reads is not recorded: at most as many as are noted.
    if "unread_columns" in counts:
        noted = int(counts.get("rows_with_unread_columns", 0))
        kept = {name: {**entry, "rows": min(entry["rows"], noted)} for name, entry in counts["unread_columns"].items()}
        counts["unread_columns"] = {name: entry for name, entry in kept.items() if entry["rows"]}
    return counts


def _write_rejects(dataset: StoredDataset, uri: str, keys: set[tuple[str, int]], copies: list[str]) -> None:
    """rejected.jsonl without the lines of rows that go; `copies` gets the names of rows that stay and repeat those."""
    names = {f"{source}:{line}" for source, line in keys}
    with io.open_input(dataset.table_uri("rejected.jsonl")) as old, io.atomic_writer(uri) as new:
        for number, line in enumerate(old, 1):
            try:
                entry = parse_line(line)
                key = str(entry["source"]), int(entry["line"])
            except (ValueError, KeyError, TypeError) as error:
                raise OmniprepError(f"{dataset.uri}: rejected.jsonl:{number} is no rejected row ({error})") from error
            if key in keys:
                continue
            new.write(line)
            if entry.get("code") == RejectCode.DUPLICATE and row_repeated(str(entry.get("message"))) in names:
                copies.append(f"{key[0]}:{key[1]}")


def _write_report_again(out: str, progress: Reporter) -> None:
    """report.html, which shows rows. It goes first, so that it holds none of them even where it cannot be written."""
    had = io.exists(io.join(out, "report.html"))
    io.remove(io.join(out, "report.html"))
    if had:
        write_dataset_report(out, None, progress)


def _sweep_texts(out: str, manifest: dict[str, Any]) -> None:
    """Remove the files that the dataset does not name any more, and the plans, which hold the texts of all rows."""
    named = {entry["path"] for entry in manifest["shards"]}
    tags = {path.removeprefix("shards/").removesuffix(".arrow") for path in named}
    for folder in ("shards", "receipts"):
        for name in io.list_folder(io.join(out, folder)):
            if OWN[folder].fullmatch(name) and name.rsplit(".", 1)[0] not in tags:
                io.remove(io.join(out, folder, name))
    remove_plans(out)
