"""Append: new inputs into a finished dataset, as new bins in new shards beside the old ones, which stay byte for byte.

The new inputs are planned, packed and encoded as a build does it, with the options that the manifest has; only the
numbers of rows and shards go on where the dataset ends. All of its files carry the tag of the append in their names, so
what a killed run left is found again, and the same command goes on. The dataset changes at the end, at once
(compiler/output/commit.py). Inputs that the dataset has already are left out.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omniprep import io
from omniprep.compiler.build import encode, plan, write_dataset_report
from omniprep.compiler.driver import stopped_by_signal
from omniprep.compiler.duplicates import HASH_COLUMNS
from omniprep.compiler.options import family_of
from omniprep.compiler.oracle.quick import check_family
from omniprep.compiler.output.built_rows import Planned
from omniprep.compiler.output.commit import (
    add_generation,
    commit,
    json_facts,
    next_tag,
    read_plain_manifest,
    recover,
    remove_plans,
)
from omniprep.compiler.output.folder import (
    BuildIdentity,
    Listed,
    build_identity,
    is_same_input,
    list_inputs,
    os_errors_as_one_line,
)
from omniprep.compiler.output.lease import Lease, hold
from omniprep.compiler.output.manifest import Settled, fill, row_columns, settle
from omniprep.compiler.output.ownfiles import APPEND_STATE, FOLDERS, canonical, remove_tagged, sweep
from omniprep.compiler.output.progress_file import kept_progress
from omniprep.compiler.parts import eval_dataset
from omniprep.compiler.run.cluster import ray_session
from omniprep.compiler.run.tasks import Receipt
from omniprep.config import BuildConfig, Trust, build_config
from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.families.registry import REGISTRY
from omniprep.inspect.trust import model_of_dataset, with_missing_flags
from omniprep.media.track import sound_decoder
from omniprep.printable import counted
from omniprep.progress import Reporter
from omniprep.shards.dataset import StoredDataset
from omniprep.shards.index import INDEX_SCHEMA, index_table, read_index, write_index_table, write_rows
from omniprep.shards.typed import parse_json, typed_record


def append(
    out: str, inputs: tuple[str, ...], given: dict[str, Any], trust: Trust, progress: Reporter
) -> dict[str, Any]:
    """Append the rows of inputs to a dataset, and to that for evaluation beside it (--split-by); returns its manifest.

    Args:
        out: The dataset.
        inputs: As those of a build; what the dataset has already is left out.
        given: Options that no byte depends on (workers, ray_address, on_error, ...), `model`, and `overwrite`, which
            drops an append of other inputs that was killed.
        trust: What the command line allows; nothing of it is taken from the dataset.
        progress: Shows what is done.

    Raises:
        UsageError: Options that cannot be used.
        OmniprepError: No finished dataset, an input that changed since it was built, another run at work, or whatever
            ends a build.
    """
    with os_errors_as_one_line(out):
        other = eval_dataset(StoredDataset(out))
    # The one for evaluation first, as it is built first: run again after a kill, it has these inputs, and the other
    # gets them too.
    if other is not None:
        _append_held(other.uri, inputs, dict(given), trust, progress)
    return _append_held(out, inputs, given, trust, progress)


def _append_held(
    out: str, inputs: tuple[str, ...], given: dict[str, Any], trust: Trust, progress: Reporter
) -> dict[str, Any]:
    """Append to one dataset; its lease comes first, so that what it has, and what it has not, is looked at once."""
    with os_errors_as_one_line(out), stopped_by_signal(), hold(out, progress.message) as lease:
        recover(out)
        return _append(StoredDataset(out), inputs, given, trust, lease, progress)


def _append(
    dataset: StoredDataset, inputs: tuple[str, ...], given: dict[str, Any], trust: Trust, lease: Lease,
    progress: Reporter,
) -> dict[str, Any]:  # fmt: skip
    out, before = dataset.uri, read_plain_manifest(dataset.uri)
    overwrite = bool(given.pop("overwrite", False))
    config = _config(dataset, inputs, given, trust)
    try:
        family = family_of(config)
    except OmniprepError as error:
        flags = [f"--{name.replace('_', '-')}" for name, value in asdict(trust).items() if value]
        raise with_missing_flags(error, dataset.record, flags) from error
    if family.tokenizer_sha256 != dataset.record.tokenizer_sha256:
        raise OmniprepError(f"{out}: was built with another tokenizer than that of --model {config.model}")
    check_family(family, progress.message)
    _refuse_other_columns(dataset, config)
    listed = new_inputs(dataset, list_inputs(config, progress.message), progress)
    if not listed.splits:
        _end_what_was_killed(out, before, progress)
        progress.message(f"{out}: has all of these inputs; nothing to do")
        return before
    identity = replace(build_identity(config, family, listed), command="append")
    lease.generation = _begin(out, identity, next_tag(before), overwrite=overwrite)
    with kept_progress(lease, "append", config.workers, progress) as shown:
        with ray_session(config.workers, config.ray_address), REGISTRY.frozen_while():
            planned = plan(config, shown, lease, listed, existing=dataset)
            first = len(before["shards"]), int(before["counts"]["rows"]["read"])
            receipts = encode(config, planned, shown, lease, first_shard=first[0], first_row=first[1])
        manifest = _finish(config, planned, receipts, dataset, before, lease)
    _tell_fill(out, manifest["generations"][-1], progress)
    write_dataset_report(out, family, progress)
    sweep(out)
    _drop_plans(out, lease.generation, before)
    return manifest


def _tell_fill(out: str, entry: dict[str, Any], progress: Reporter) -> None:
    """Say how full the bins of this append are: what room its last bin has, no later append fills."""
    if entry["bins"]:  # none where every row was rejected or left out
        bins, full = counted(entry["bins"], "bin"), f"{100 * entry['fill']:.1f} % full"
        progress.message(f"{out}: this append wrote {bins}, {full}; omniprep repack packs all rows anew")


def _end_what_was_killed(out: str, manifest: dict[str, Any], progress: Reporter) -> None:
    """Finish an append whose run was killed when the dataset had its rows already."""
    uri = io.join(out, *APPEND_STATE)
    if not io.exists(uri):
        return
    state = typed_record(BuildIdentity, parse_json(io.read_bytes(uri), uri), uri)
    done = {entry["source"] for entry in state.inputs} <= {entry["source"] for entry in manifest.get("inputs", ())}
    if done:  # else it is an append of other inputs, which is still to be run again
        write_dataset_report(out, None, progress)
        _drop_plans(out, state.generation, manifest)


def _drop_plans(out: str, tag: str, manifest: dict[str, Any]) -> None:
    """Remove what only a run that goes on with an append needs; the plan of a build stays, unless rows were removed."""
    remove_tagged(out, tag, ("plan",))
    if "removed" in manifest["counts"]["rows"]:
        remove_plans(out)
    io.remove(io.join(out, *APPEND_STATE))


def _config(dataset: StoredDataset, inputs: tuple[str, ...], given: dict[str, Any], trust: Trust) -> BuildConfig:
    record = dataset.record
    model = model_of_dataset(given.pop("model", None), record, dataset.uri)
    config = build_config(record.config, trust, model=model, inputs=inputs, out=dataset.uri)
    config = replace(config, bin_length=record.bin_length, **given)
    return replace(config, audio_decoder=sound_decoder(config.audio_decoder))


def new_inputs(dataset: StoredDataset, listed: Listed, progress: Reporter) -> Listed:
    """The inputs that a dataset does not have; OmniprepError for one that it has, and that was changed since."""
    known = {canonical(entry["source"]): entry for entry in dataset.manifest.get("inputs", ())}
    # A merge renames inputs, but they lie where they lay: one that is what its build read is not read again.
    renamed: dict[str, list[dict[str, Any]]] = {}
    for old in known.values():
        if old.get("given"):
            renamed.setdefault(canonical(old["given"]), []).append(old)
    fresh, left_out = [], []
    for entry in listed.inputs:
        place = canonical(entry["source"])
        before = known.get(place)
        merged = next((old for old in renamed.get(place, ()) if is_same_input(old, json_facts(entry))), None)
        if merged is not None:
            _refuse_another_draw(dataset, merged, entry)
            left_out.append(entry["source"])
        elif before is None:
            fresh.append(entry)
        elif is_same_input(before, json_facts(entry)):
            _refuse_another_draw(dataset, before, entry)
            left_out.append(entry["source"])
        else:
            raise OmniprepError(
                f"{entry['source']}: was changed since {dataset.uri} was built of it; append new rows as a file of "
                "their own, or build anew"
            )
    for source in left_out[:5]:
        progress.message(f"{source}: {dataset.uri} has it already; left out")
    if len(left_out) > 5:
        progress.message(f"{len(left_out) - 5} more inputs are left out, since {dataset.uri} has them")
    contents = {_content(entry): entry["source"] for entry in known.values()}
    for entry in fresh:
        same = contents.get(_content(entry))
        if same is not None and _content(entry) is not None:
            progress.message(
                f"{entry['source']}: has the content of {same}, which {dataset.uri} has; it is appended under its name"
            )
    names = {entry["source"] for entry in fresh}
    return Listed([split for split in listed.splits if split.source in names], fresh)


def _refuse_another_draw(dataset: StoredDataset, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse other rows of an input of which INPUT#N drew some; some of them might be there twice."""
    if before.get("drawn_sha256") not in (None, now.get("drawn_sha256")):
        raise OmniprepError(
            f"{now['source']}: {dataset.uri} has {before['drawn_rows']:,} rows of it, drawn by #N, and these would be "
            "others; append the rows that are wanted as a file of their own, or build anew"
        )


def _content(entry: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What says of an input's content that it is another's too; None where only a name or a time is kept of it."""
    marks = [entry.get(name) for name in ("sample_sha256", "mark", "state_sha256")]
    return (entry.get("bytes"), *marks) if any(marks) else None


def _begin(out: str, identity: BuildIdentity, tag: str, *, overwrite: bool) -> str:
    """Say what is appended, or find that a killed run began just this; the tag of its files."""
    uri = io.join(out, *APPEND_STATE)
    for folder in FOLDERS:
        io.make_folder(io.join(out, folder))
    if io.exists(uri):
        before = typed_record(BuildIdentity, parse_json(io.read_bytes(uri), uri), uri)
        changes = list(before.differences(identity))
        if before.generation == tag and not changes:
            return tag
        if changes and before.generation == tag and not overwrite:
            raise OmniprepError(
                f"{out}: an append that was stopped is not done ({'; '.join(changes)}); run it again first, or give "
                "--overwrite to drop it"
            )
        remove_tagged(out, before.generation)
    remove_tagged(out, tag)  # of a removal that was killed
    sweep(out)
    io.write_atomic(uri, json.dumps(asdict(replace(identity, generation=tag)), indent=1).encode())
    return tag


def _finish(
    config: BuildConfig, planned: Planned, receipts: list[Receipt], dataset: StoredDataset, before: dict[str, Any],
    lease: Lease,
) -> dict[str, Any]:  # fmt: skip
    """Write the tables of old and new rows together, and the manifest; returns the manifest."""
    settled = settle(config, planned, receipts)
    lease.check()
    first_bin, first_shard = len(dataset), len(before["shards"])
    facts = json_facts(planned.facts(sum(receipt["seconds"] for receipt in receipts)))
    entry = {
        "command": "append",
        "rows": settled.counts["rows"],
        "tokens": settled.counts["tokens"],
        "bins": settled.counts["bins"],
        "fill": fill(settled.counts, config.bin_length),
        "inputs": [given["source"] for given in facts["inputs"]],
        "plan_sha256": planned.plan_hash,
        # Shards of other versions of a decoder may differ; which made which is kept.
        **({"versions": facts["versions"]} if facts["versions"] != before.get("versions") else {}),
    }
    counts = add_counts(before["counts"], settled.counts)
    manifest = {
        **before,
        "inputs": [*before["inputs"], *facts["inputs"]],
        "counts": counts,
        "fill": fill(counts, config.bin_length),
        "shards": [*before["shards"], *settled.shards],
        "generations": add_generation(before, entry),
    }

    def index(uri: str) -> None:
        old = pa.table(read_index(dataset.table_uri("index.parquet")), schema=INDEX_SCHEMA)
        shifted = [replace(entry, shard=entry.shard + first_shard) for entry in settled.entries]
        write_index_table(uri, pa.concat_tables([old, index_table(shifted)]))

    def rows(uri: str) -> None:
        write_rows(uri, _all_rows(dataset, settled, first_bin))

    def rejected(uri: str) -> None:
        with io.open_input(dataset.table_uri("rejected.jsonl")) as old, io.atomic_writer(uri) as new:
            while piece := old.read(8 << 20):
                new.write(piece)
            for line in settled.rejected():
                new.write(line)

    commit(
        config.out,
        manifest,
        lease.generation,
        {"index.parquet": index, "rows.parquet": rows, "rejected.jsonl": rejected},
    )
    return manifest


def _all_rows(dataset: StoredDataset, settled: Settled, first_bin: int) -> Iterator[pa.Table]:
    """rows.parquet of old and new rows, part by part."""
    uri = dataset.table_uri("rows.parquet")
    with io.open_input(uri) as file:
        table = pq.ParquetFile(file, pre_buffer=False)
        names = table.schema_arrow.names
        for group in range(table.metadata.num_row_groups):
            yield table.read_row_group(group, use_threads=False)
    for part in settled.tables(first_bin):
        yield part.select(names)


def _refuse_other_columns(dataset: StoredDataset, config: BuildConfig) -> None:
    """Refuse, before anything is encoded, a table that rows of this version cannot be added to."""
    uri = dataset.table_uri("rows.parquet")
    with io.open_input(uri) as file:
        names = set(pq.ParquetFile(file, pre_buffer=False).schema_arrow.names)
    # That hashes are absent which --dedup needs is said, with what to do, where they are read.
    if differing := names ^ (set(row_columns(config, preferences="verdict" in names)) - (set(HASH_COLUMNS) - names)):
        raise DamagedDataError(
            f"{uri}: has other columns than this omniprep writes ({', '.join(sorted(differing))}); repack the dataset "
            "first"
        )


def add_counts(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The counts of two parts of a dataset together: numbers add up, by key; texts are the newer ones."""
    total = dict(old)
    for name, value in new.items():
        if isinstance(value, dict):
            total[name] = add_counts(total.get(name) or {}, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            total[name] = total.get(name, 0) + value
        else:
            total[name] = value
    return total
