"""`verify --deep`: what stands in the bins is what rows.parquet says, and a sample of rows encodes to the same tensors
again.

Reads every bin once, and of the inputs only the parts that sampled rows lie in. The sample is drawn with a fixed seed,
from all sources alike. A row is compared argument by argument, bit by bit; spectrograms may differ by one bf16 step,
since the FFT library chooses its kernels by the CPU.

The dataset may be a stranger's: its manifest says how rows were made (`RowOptions`), and nothing else of it is used.
Which checkpoint and inputs are opened is decided by `inspect/trust.py`; what lets code run is given by the caller.
An input that is not opened is no damage, so it is kept apart from the findings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from omniprep.compiler.encode.single_row import encode_row
from omniprep.compiler.options import family_of
from omniprep.compiler.output.manifest import versions
from omniprep.config import BuildConfig, Trust, build_config
from omniprep.data.dataset import PackedDataset
from omniprep.errors import OmniprepError, Reject, RejectCode
from omniprep.families.context import FamilyContext
from omniprep.inspect.trust import input_refusal, model_of_dataset, with_missing_flags
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import RawRow, Split, find_splits, numbered
from omniprep.shards.manifest import TRUST_FLAGS

__all__ = ["SampleCheck", "check_bins", "check_sample"]

_ELSEWHERE = {
    RejectCode.MEDIA_NOT_FOUND,
    RejectCode.MEDIA_OUTSIDE_ROOT,
    RejectCode.MEDIA_URL_FORBIDDEN,
    RejectCode.MEDIA_FETCH_FAILED,
}
"""Rejects that say nothing of the dataset where this command was given fewer flags than the build."""


@dataclass(slots=True)
class SampleCheck:
    """What came of encoding rows again."""

    findings: list[str] = field(default_factory=list)
    """Rows that differ: the dataset, its input or the installed versions are not what they were."""
    unread: list[str] = field(default_factory=list)
    """Inputs and rows that were not read, and why: nothing is known of them."""
    equal: int = 0
    """Rows that encode to what is stored."""


def check_bins(dataset: PackedDataset, done: Callable[[int], None] = lambda count: None) -> Iterator[str]:
    """Findings about the content of bins: rows, borders and lengths against rows.parquet."""
    places = {name: dataset.rows[name].to_numpy() for name in ("bin", "start", "length")}
    for number in range(len(dataset)):
        try:
            item = dataset[number]
        except OmniprepError as error:
            yield str(error)
            continue
        ids, borders = item["row_ids"], item["cu_seqlens"].astype(np.int64)
        if ids.min(initial=0) < 0 or ids.max(initial=-1) >= dataset.rows.num_rows:
            yield f"bin {number}: holds rows that rows.parquet does not have"
            continue
        same = (
            (places["bin"][ids] == number).all()
            and np.array_equal(places["start"][ids], borders[:-1])
            and np.array_equal(places["length"][ids], np.diff(borders))
            and len(item["input_ids"]) == len(item["labels"]) == borders[-1]
        )
        if not same:
            yield f"bin {number}: its rows are not where rows.parquet says"
        elif (item["labels"][borders[:-1]] != -100).any():
            yield f"bin {number}: a row begins with a trained token, which the row before it would predict"
        done(1)


def check_sample(
    dataset: PackedDataset, count: int, trust: Trust, *, model: str | None = None, inputs: Sequence[str] = (),
    done: Callable[[int], None] = lambda count: None,
) -> SampleCheck:  # fmt: skip
    """Encode `count` packed rows again from their inputs.

    Args:
        dataset: Whoever made it.
        count: Rows of the sample.
        trust: What the user's command line allows.
        model: Checkpoint that the user named (default: the build's, where it is on this machine).
        inputs: Inputs that the user named, or folders of them.
        done: Called with 1 after each row.

    Raises:
        OmniprepError: The checkpoint cannot be opened, or needs a flag.
    """
    record = dataset.record
    config = build_config(record.config, trust, model=model_of_dataset(model, record, dataset.uri))
    flags = [flag for name, flag in TRUST_FLAGS.items() if getattr(trust, name)]
    try:
        ctx = family_of(config)
    except OmniprepError as error:
        raise with_missing_flags(error, record, flags) from error
    hint = changed_versions(record.versions)
    packed = np.flatnonzero(dataset.rows["bin"].is_valid().to_numpy())
    chosen = np.random.default_rng(0).permutation(packed)[:count]
    wanted: dict[str, set[int]] = {}
    for row in dataset.rows.select(["source", "line"]).take(np.sort(chosen)).to_pylist():
        wanted.setdefault(row["source"], set()).add(row["line"])
    result = SampleCheck()
    missing = [flag for flag in record.needed_flags if flag not in flags]
    for source, lines in wanted.items():
        if refusal := input_refusal(source, record, dataset.uri, inputs):
            result.unread.append(f"{source}: not read: {refusal}")
            continue
        try:
            for line, split, raw in read_lines(source, lines, config):
                finding, code = compare_row(dataset, ctx, config, split, line, raw)
                if code in _ELSEWHERE and missing:
                    text = f"the build was given {', '.join(missing)}; give that here too"
                    result.unread.append(f"{source}:{line}: not encoded: {finding}; {text}")
                elif finding:
                    result.findings.append(f"{source}:{line}: {finding}{hint}")
                else:
                    result.equal += 1
                lines = lines - {line}
                done(1)
        except OmniprepError as error:
            result.unread.append(f"{source}: cannot be read again: {error}")
            continue
        if lines:
            result.findings.append(f"{source}: line {min(lines)} is not there any more")
    return result


def changed_versions(built: Mapping[str, str]) -> str:
    """Words that name the packages of other versions than the build's; empty where all are the same."""
    now = versions()
    changed = [f"{name} {built[name]} then, {now.get(name)} now" for name in built if built[name] != now.get(name)]
    return f" (versions differ: {', '.join(changed)})" if changed else ""


def read_lines(source: str, lines: set[int], config: BuildConfig) -> Iterator[tuple[int, Split, RawRow]]:
    """Some lines of an input, numbered from 1 as in rows.parquet; parts of it without any are skipped over."""
    splits = [split for split in find_splits(find_inputs((source,), config.split)) if split.source == source]
    found = numbered(splits, lambda part: any(line in part for line in lines), config.max_line_bytes)
    for split, line, raw in found:
        if line in lines:
            yield line, split, raw


def compare_row(
    dataset: PackedDataset, ctx: FamilyContext, config: BuildConfig, split: Split, line: int, raw: RawRow
) -> tuple[str, str]:
    """What is wrong with one row, and the code with which it would be rejected; both may be empty."""
    if isinstance(raw.content, Reject):
        return str(raw.content), str(raw.content.code)
    try:
        again = encode_row(raw.content, ctx, config, split.base)
    except Reject as reject:
        return f"would be rejected now: {reject}", str(reject.code)
    stored = dataset.row(split.source, line)
    mel = {column.name for column in dataset.layout.columns if column.load == "mel"}
    names = [name for name in stored if name not in again] + [name for name in again if name not in stored]
    names += [
        name for name in stored if name in again and not alike(stored[name], again[name], within_a_step=name in mel)
    ]
    return (f"differs from what it encodes to now: {', '.join(names)}" if names else ""), ""


def alike(a: Any, b: Any, *, within_a_step: bool = False) -> bool:
    """Whether two forward arguments are equal, bit by bit or within one bf16 step."""
    if not isinstance(a, torch.Tensor):
        return bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    if not within_a_step:
        return False
    steps = a.bfloat16().view(torch.int16).int() - b.bfloat16().view(torch.int16).int()
    return int(steps.abs().max()) <= 1
