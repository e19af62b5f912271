"""Repack: finished datasets → another bin length, seed or choice of rows, with no decode and no tokenizer.

Rows are packed anew by their lengths and costs in rows.parquet, as a build packs them, and then copied: token slices
and media bytes come straight from the old shards. So the shards, index.parquet and rows.parquet are byte for byte those
of a fresh build with the new options, unless rows were rejected for a reason that a fresh build would see differently
(too long for the old bins but not for the new ones, or damaged, which a fresh build finds only after it has packed).

All else is the build's: who may work in the folder, its identity, what is done again after a kill, and how it ends
(compiler/driver.py, run/stages.py, output/folder.py, output/manifest.py). What identifies a repack is its options, the
choice of rows, and the content of its sources.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omniprep import io
from omniprep.compiler.costs import QWEN_BYTES, TYPICAL_SHARE, stored_bytes
from omniprep.compiler.driver import run_in_folder
from omniprep.compiler.duplicates import HASH_COLUMNS
from omniprep.compiler.encode.copied_bins import (
    COPIED_BYTES,
    CheckPixels,
    CopySource,
    CopyTask,
    RowPlaces,
    forget_copied,
    places_of,
)
from omniprep.compiler.encode.row_padding import RowPadding, repack_padding
from omniprep.compiler.merged_names import merged_names, names_of_one_file, refuse_repeated, renamed_table
from omniprep.compiler.named_rows import RowNames, exclusions
from omniprep.compiler.output.copied_rows import Chosen, CopiedRows, with_verdicts
from omniprep.compiler.output.folder import BuildIdentity, os_errors_as_one_line
from omniprep.compiler.output.lease import Lease
from omniprep.compiler.output.manifest import finish, versions
from omniprep.compiler.output.ownfiles import refuse_overlap
from omniprep.compiler.pack import Assignment, Rows, assign_bins, freeze
from omniprep.compiler.plan.file import PREFERENCE_FACTS
from omniprep.compiler.run.cluster import ray_session
from omniprep.compiler.run.stages import Stage
from omniprep.config import BuildConfig, Trust, Workers, build_config, refuse_undecoded, shaping
from omniprep.errors import OmniprepError, RejectCode, UsageError
from omniprep.modalities import KINDS, MEDIA_COLUMNS, media_counts, row_kinds
from omniprep.progress import Reporter
from omniprep.rows.columns import Note
from omniprep.rows.preference import Verdict
from omniprep.shards.codecs import chosen_codec, codec_names, recoded, without_codec
from omniprep.shards.dataset import StoredDataset
from omniprep.shards.schema import arrow_schema

FACTS = ("trained", "patches", "audio_frames", "control")


def repack(
    uris: Sequence[str], out: str, bin_length: int, progress: Reporter, *, seed: int | None = None,
    shard_size: int | None = None, sources: Sequence[str] = (), kinds: Sequence[str] = (),
    exclude: RowNames | None = None, overwrite: bool = False,
    pixel_codec: str | None = None, check_pixels: CheckPixels = "first", workers: Workers = 0,
    ray_address: str | None = None, pad_rows_to: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a new dataset from the rows of finished ones; returns its manifest.

    Args:
        uris: Folders or URIs of the datasets; several are merged, in this order.
        out: Folder or URI of the new one.
        bin_length: Tokens a new bin holds. Longer rows are rejected (row_too_long).
        progress: Shows every shard.
        seed: Seed of the order (default: that of the first dataset).
        shard_size: Bytes a shard grows to (default: as the first dataset was built).
        sources: Keep the rows of these inputs alone; an input may be shortened to its end (chats.jsonl).
        kinds: Keep rows of these kinds alone, see `KINDS`; rejected rows have no kind and are left out.
        exclude: Rows to leave away (`omniprep.compiler.named_rows.exclusions`).
        overwrite: Throw away what an earlier build or repack left in `out`.
        pixel_codec: delta, raw, webp or jxl; source of datasets in source alone (default: that of the first dataset).
        check_pixels: As `omniprep.PackedDataset` takes it.
        workers: As `BuildConfig.workers`. The bytes are the same with any number.
        ray_address: A running Ray cluster.
        pad_rows_to: As `BuildConfig.pad_rows_to` (default: rows as they are).

    Raises:
        OmniprepError: Datasets that do not fit together, or `out` holds something else.
    """
    refuse_undecoded(tuple(uris))
    refuse_overlap(out, uris)
    with os_errors_as_one_line(out):
        for uri in uris:
            _refuse_linked_rejects(uri)
        datasets = [StoredDataset(uri, verify="first", check_pixels=check_pixels) for uri in uris]
        refuse_repeated(datasets)
        _check_alike(datasets)
        padding = repack_padding(datasets, pad_rows_to)
        pixel_codec = pixel_codec or chosen_codec(datasets[0].layout.columns)
        if pixel_codec == "source":
            _check_files(datasets)
        changed = {"bin_length": bin_length, "out": out, "seed": seed, "shard_size": shard_size}
        changed |= {"workers": workers, "ray_address": ray_address, "pad_rows_to": pad_rows_to}
        config = _config(datasets, {**changed, "pixel_codec": pixel_codec, "overwrite": overwrite or None})
        exclude = exclude or exclusions((), "", ())
        chosen = choose(datasets, sources, kinds, exclude)
        identity = BuildIdentity(
            command="repack",
            config={
                **shaping(config),
                "source": sorted(set(sources)),
                "kind": sorted(set(kinds)),
                "exclude": exclude.described(),
            },
            inputs=tuple(_fingerprint(dataset) for dataset in datasets),
            versions=dict(versions()),
            tokenizer_sha256=datasets[0].record.tokenizer_sha256 or "",
        )
    return run_in_folder(
        config,
        identity,
        progress,
        lambda lease, shown: _repack(datasets, config, chosen, identity, lease, shown, check_pixels, padding),
    )


def _repack(
    datasets: Sequence[StoredDataset], config: BuildConfig, chosen: Chosen, identity: BuildIdentity, lease: Lease,
    progress: Reporter, check_pixels: CheckPixels, padding: RowPadding,
) -> dict[str, Any]:  # fmt: skip
    rows = _rows(chosen, config, padding, [dataset.record.config.pad_rows_to for dataset in datasets])
    rows.unit_bytes = {**QWEN_BYTES, **datasets[0].record.unit_bytes}
    assignment = assign_bins(rows, config)
    plan_hash = freeze(config.out, rows, assignment, config, lease.generation)
    sources = tuple(CopySource(entry["source"], entry["sha256"]) for entry in identity.inputs)
    tasks = _tasks(sources, datasets, config, chosen, assignment, lease, check_pixels, padding)
    try:
        with ray_session(config.workers, config.ray_address):
            stage = Stage(name="repack", out=config.out, workers=config.workers, progress=progress, lease=lease)
            receipts = stage.run(tasks, _seconds(rows, assignment, config))
    finally:
        forget_copied()
    for dataset, before in zip(datasets, identity.inputs, strict=True):
        if _fingerprint(StoredDataset(dataset.uri)) != before:
            raise OmniprepError(f"{dataset.uri}: was changed while it was read; begin anew with --overwrite")
    return finish(config, CopiedRows(datasets, chosen, rows, assignment, plan_hash, config, identity), receipts)


def _seconds(rows: Rows, assignment: Assignment, config: BuildConfig) -> list[float]:
    """What each shard takes to copy, about: the bytes that it will hold, at the speed of one core."""
    sizes = stored_bytes(rows.columns(assignment.order), config.pixel_codec, rows.unit_bytes)
    before = np.concatenate([[0], np.cumsum(sizes)])[assignment.offsets[assignment.shard_bins]]
    return [float(seconds) for seconds in np.diff(before) / COPIED_BYTES]


def _tasks(
    sources: tuple[CopySource, ...], datasets: Sequence[StoredDataset], config: BuildConfig, chosen: Chosen,
    assignment: Assignment, lease: Lease, check_pixels: CheckPixels, padding: RowPadding,
) -> list[CopyTask]:  # fmt: skip
    """A task a shard, each with what it needs to know of its own rows alone: it may travel to another machine."""
    layout = datasets[0].layout
    companions = {column.companion for column in layout.columns if column.companion}
    columns = tuple(column for column in layout.columns if column.name not in companions)
    schema = arrow_schema(
        recoded(columns, config.pixel_codec),
        family=layout.family,
        modalities=layout.modalities,
        weighted=layout.weighted,
        mrope=layout.mrope,
        preferences=any(dataset.layout.preferences for dataset in datasets),
    )
    places = _chosen_places(datasets, chosen)
    tasks = []
    for number in range(assignment.shards):
        first, last = (int(border) for border in assignment.shard_bins[number : number + 2])
        borders = assignment.offsets[first : last + 1]
        row_ids = assignment.order[borders[0] : borders[-1]]
        tasks.append(
            CopyTask(
                number=number,
                out=config.out,
                generation=lease.generation,
                fence=lease.fence,
                sources=sources,
                schema=schema,
                places=places.take(row_ids),
                row_ids=row_ids,
                borders=borders - borders[0],
                pixels="files" if config.pixel_codec == "source" else "arrays",
                check_pixels=check_pixels,
                padding=padding,
            )
        )
    return tasks


def _chosen_places(datasets: Sequence[StoredDataset], chosen: Chosen) -> RowPlaces:
    """Where each chosen row lies."""
    every = [places_of(dataset, number) for number, dataset in enumerate(datasets)]
    before = np.cumsum([0, *(len(places.line) for places in every)])
    numbers = before[chosen.dataset] + chosen.line
    fields = (
        np.concatenate([getattr(places, entry.name) for places in every])[numbers]
        for entry in dataclasses.fields(RowPlaces)
    )
    return RowPlaces(*fields)


def _refuse_linked_rejects(uri: str) -> None:
    """Refuse a source whose rejected.jsonl is a link: its lines are copied, and would be those of a file elsewhere."""
    path = io.join(uri, "rejected.jsonl")
    if io.is_local(path) and os.path.islink(path):
        raise OmniprepError(f"{path}: a symbolic link; repack copies files of the dataset alone, so put the file there")


def _fingerprint(dataset: StoredDataset) -> dict[str, Any]:
    """What tells that a source changed: its manifest, which has the hashes of its shards, and the files beside it."""
    facts = {name: value for name, value in dataset.manifest.items() if name != "seconds"}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in ("index.parquet", "rows.parquet", "rejected.jsonl"):
        uri = dataset.table_uri(name)
        if io.exists(uri):
            digest.update(f"{name} {io.size(uri)}".encode())
            with io.open_input(uri) as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    return {"source": dataset.uri, "sha256": digest.hexdigest()}


def choose(
    datasets: Sequence[StoredDataset], sources: Sequence[str], kinds: Sequence[str], exclude: RowNames
) -> Chosen:
    """The rows that go on; refuses a source or kind that there is none of, and an input line of two datasets."""
    without = set() if has_hashes(datasets) else set(HASH_COLUMNS)
    tables = [ds.rows for ds in datasets]
    if any("verdict" in table.column_names for table in tables):
        tables = [with_verdicts(table) for table in tables]
    names = [name for name in tables[0].column_names if name not in without]
    for ds, table in zip(datasets, tables, strict=True):
        if missing := [name for name in (*FACTS, *names) if name not in table.column_names]:
            raise OmniprepError(f"{ds.uri}: rows.parquet has no column {missing[0]!r}; build the dataset again")
    renamed = merged_names(datasets)
    parts = [renamed_table(table.select(names), new) for table, new in zip(tables, renamed, strict=True)]
    table = pa.concat_tables([part.cast(parts[0].schema) for part in parts]).unify_dictionaries().combine_chunks()
    dataset = np.repeat(np.arange(len(datasets)), [part.num_rows for part in parts])
    line = np.concatenate([np.arange(part.num_rows) for part in parts])
    ended = np.asarray(pc.equal(table["status"], "removed").to_numpy(zero_copy_only=False), bool)
    keep = ~ended
    if sources:
        column = table["source"].combine_chunks()
        given = column.dictionary.to_pylist()
        fitting = {name for name in given if any(name == s or name.endswith("/" + s) for s in sources)}
        for wanted in sources:
            if not any(name == wanted or name.endswith("/" + wanted) for name in fitting):
                raise UsageError(
                    f"--source {wanted}: there is no such input; there are: {', '.join(sorted(set(given))[:8])}"
                )
        keep &= np.isin(column.indices.to_numpy(), [given.index(name) for name in fitting])
    if kinds:
        chosen_kinds = [KINDS.index(kind) for kind in kinds]
        of_kind = np.isin(row_kinds(media_counts(table)), chosen_kinds)
        keep &= of_kind & table["bin"].is_valid().to_numpy()
    if exclude:
        column = table["source"].combine_chunks()
        numbers = {name: code for code, name in enumerate(column.dictionary.to_pylist())}
        keys = (numbers, column.indices.to_numpy(), table["line"].to_numpy())
        excluded = exclude.find(keys, " and ".join(dataset.uri for dataset in datasets))
        ended |= excluded
        keep &= ~excluded
        if not keep.any():
            raise UsageError("--exclude: no row is left")
    known = frozenset(table["source"].filter(pa.array(ended)).unique().to_pylist())
    chosen = Chosen(table.filter(pa.array(keep)), dataset[keep], line[keep], renamed, known)
    if len(datasets) > 1:
        _refuse_lines_of_two(datasets, chosen)
    return chosen


def has_hashes(datasets: Sequence[StoredDataset]) -> bool:
    """Whether all datasets have the hashes of their rows (--dedup)."""
    return all(set(HASH_COLUMNS) <= set(dataset.rows.column_names) for dataset in datasets)


def _refuse_lines_of_two(datasets: Sequence[StoredDataset], chosen: Chosen) -> None:
    """Refuse an input line that two datasets have: it would be trained twice, and its name would be of two rows."""
    column = chosen.table["source"].combine_chunks()
    names = column.dictionary.to_pylist()
    # A merge of before may have the file under a new name.
    first_name = names_of_one_file(datasets, chosen.renamed)
    numbers = {name: number for number, name in enumerate(names)}
    file_of_name = np.array([numbers.get(first_name.get(name, name), numbers[name]) for name in names], np.int64)
    codes, lines = file_of_name[column.indices.to_numpy()], chosen.table["line"].to_numpy()
    order = np.lexsort((lines, codes))
    same = (np.diff(codes[order]) == 0) & (np.diff(lines[order]) == 0)
    if same.any():
        first, second = order[np.flatnonzero(same)[0] :][:2]
        name = f"{column[int(first)].as_py()}:{int(lines[first])}"
        holders = [datasets[chosen.dataset[number]].uri for number in sorted((first, second))]
        raise OmniprepError(
            f"one input line is in two of the datasets ({name}, in {holders[0]} and in {holders[1]}); leave one of "
            "them out, or choose rows with --source"
        )


def _check_alike(datasets: Sequence[StoredDataset]) -> None:
    first = datasets[0]
    if len(first):  # or it is refused below
        alike = dataclasses.replace(without_codec(first.layout), preferences=False)
    for dataset in datasets:
        if len(dataset) == 0:
            raise OmniprepError(f"{dataset.uri}: has no bins")
        # A merge may have preference rows and ordinary ones, as a build with --preference mixed.
        if dataclasses.replace(without_codec(dataset.layout), preferences=False) != alike:
            raise OmniprepError(f"{dataset.uri}: its shards hold other columns than those of {first.uri}")
        for name in ("tokenizer_sha256", "preprocessor_sha256"):
            if dataset.manifest.get(name) != first.manifest.get(name):
                raise OmniprepError(f"{dataset.uri}: made with another {name.removesuffix('_sha256')} than {first.uri}")


def _check_files(datasets: Sequence[StoredDataset]) -> None:
    """Refuse what cannot be repacked into source: a dataset that holds pixels, and not the files that they are of."""
    first = codec_names(datasets[0].layout.columns)
    for dataset in datasets:
        names = codec_names(dataset.layout.columns)
        if "source" not in names.values():
            stored = ", ".join(sorted(set(names.values()))) or "no pictures"
            raise UsageError(
                f"--pixel-codec source: {dataset.uri} holds {stored}, and not the files; build it again from its "
                "inputs with --pixel-codec source"
            )
        if names != first:
            raise UsageError(
                f"--pixel-codec source: {dataset.uri} stores other columns as files than {datasets[0].uri}"
            )


def _config(datasets: Sequence[StoredDataset], given: dict[str, Any]) -> BuildConfig:
    record = datasets[0].record
    before = build_config(record.config, Trust(), model=record.model)
    inputs = dict.fromkeys(entry.source for ds in datasets for entry in ds.record.inputs)
    changed = {name: value for name, value in given.items() if value is not None}
    if not has_hashes(datasets):  # rows of a dataset without hashes cannot be told from those that an append brings
        changed["dedup"] = "none"
    if len({ds.layout.preferences for ds in datasets}) > 1:
        changed["preference"] = "mixed"  # as a build that is told to take both
    return dataclasses.replace(before, inputs=tuple(inputs), **changed)


def _rows(chosen: Chosen, config: BuildConfig, padding: RowPadding, multiples: Sequence[int]) -> Rows:
    """Facts of the rows; `multiples`: what those of each dataset are padded to before."""
    table = chosen.table
    lengths = table["length"].fill_null(0).to_numpy().astype(np.int32)
    codes = np.array(table["code"].to_pylist(), object)
    pairs, longest = np.zeros(len(lengths), bool), lengths.copy()
    if "verdict" in table.column_names:  # a limit of rows is one of each answer of a pair
        pairs, first = table["verdict"].to_numpy() == Verdict.PAIR, table["chosen_length"].to_numpy()
        longest = np.where(pairs, np.maximum(first, lengths - first), lengths)
    # As long as the longest row without pad tokens, and those that its dataset put behind it.
    limits = np.array([config.row_limit + (-config.row_limit % max(m, 1)) for m in multiples])[chosen.dataset]
    lengths = padding.padded(lengths)
    for long, code in (
        (longest > limits, RejectCode.ROW_TOO_LONG),
        (pairs & (lengths > config.bin_length), RejectCode.PAIR_EXCEEDS_BIN),
        (~pairs & (lengths > config.bin_length), RejectCode.ROW_EXCEEDS_BIN),
    ):
        long &= lengths > 0
        codes[long], lengths[long] = str(code), 0
    facts: dict[str, Any] = {"length": lengths, "code": codes}
    facts |= {name: np.where(lengths > 0, table[name].to_numpy(), 0) for name in FACTS}
    facts |= {name: np.where(lengths > 0, table[name].to_numpy(), 0).astype(np.int32) for name in MEDIA_COLUMNS}
    # Datasets of earlier versions, which hold no files, lack both.
    sizes = table["file_bytes"].to_numpy() if "file_bytes" in table.column_names else np.zeros(len(lengths), np.int64)
    facts["file_bytes"] = np.where(lengths > 0, sizes, 0)
    for name in HASH_COLUMNS:
        if name in table.column_names:
            facts[name] = np.where(lengths > 0, table[name].to_numpy(), np.uint64(0))
    for name, dtype in PREFERENCE_FACTS.items():
        if name in table.column_names:
            facts[name] = np.where(lengths > 0, table[name].to_numpy(), 0).astype(dtype)
    shares = (
        table["pixel_share"].to_numpy()
        if "pixel_share" in table.column_names
        else np.full(len(lengths), TYPICAL_SHARE, np.float32)
    )
    facts["pixel_share"] = np.where(lengths > 0, shares, 0)
    facts["trained"] = facts["trained"].astype(np.int32)
    facts["control"] = facts["control"].astype(bool)
    facts["notes"] = np.zeros(len(lengths), np.uint8)
    for note in Note:  # datasets of earlier versions lack the columns
        if (name := str(note.name).lower()) in table.column_names:
            facts["notes"] |= np.where((lengths > 0) & table[name].to_numpy(), note.value, 0).astype(np.uint8)
    empty = np.zeros(len(lengths), np.int32)
    return Rows(split=empty, within=empty, facts=facts)
