"""`verify --deep`: a sample of rows, encoded again from their inputs, gives the tensors that are stored.

Of the inputs only the parts that hold sampled rows are read. The sample is drawn with a fixed seed, uniformly over all
packed rows. A row is compared argument by argument, bit by bit; spectrograms may differ by one bf16 step, since the FFT
library chooses its kernels by the CPU.

The dataset may be a stranger's: its manifest says how rows were made (`RowOptions`), and nothing else of it is used.
`inspect/trust.py` decides which checkpoint and inputs are opened; the caller decides what lets code run. An input that
is not opened is no damage, so it is reported apart from the findings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from omniprep.inspect.trust import input_refusal, located_input, model_of_dataset, with_missing_flags
from omniprep.rows.inputs import find_inputs
from omniprep.rows.preference import Verdict
from omniprep.rows.sources import RawRow, find_splits, numbered
from omniprep.rows.split import Split
from omniprep.shards.manifest import TRUST_FLAGS

_ELSEWHERE = {
    RejectCode.MEDIA_NOT_FOUND,
    RejectCode.MEDIA_OUTSIDE_ROOT,
    RejectCode.MEDIA_URL_FORBIDDEN,
    RejectCode.MEDIA_FETCH_FAILED,
}
"""Rejects that say nothing about the dataset if this command was given fewer flags than the build."""


@dataclass(slots=True)
class SampleCheck:
    """Result of encoding rows again."""

    findings: list[str] = field(default_factory=list)
    """Rows that differ: the dataset, its input or the installed versions have changed."""
    unread: list[str] = field(default_factory=list)
    """Inputs and rows that were not read, and why."""
    equal: int = 0
    """Rows that encode to what is stored."""


def check_sample(
    dataset: PackedDataset, count: int, trust: Trust, *, model: str | None = None, inputs: Sequence[str] = (),
    done: Callable[[int], None] = lambda count: None,
) -> SampleCheck:  # fmt: skip
    """Encode `count` packed rows again from their inputs; the dataset may be a stranger's.

    `model` and `inputs` are those that the user named; `done` is called with 1 after each row.
    """
    record = dataset.record
    config = build_config(record.config, trust, model=model_of_dataset(model, record, dataset.uri))
    flags = [flag for name, flag in TRUST_FLAGS.items() if getattr(trust, name)]
    try:
        ctx = family_of(config)
    except OmniprepError as error:
        raise with_missing_flags(error, record, flags) from error
    hint = changed_versions(record.versions, {**versions(), **ctx.versions})
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
            path = located_input(source, record, dataset.uri, inputs)
            for line, split, raw in read_lines(path, lines, config):
                split = replace(split, source=source)
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


def changed_versions(built: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Packages, and the family, whose version differs from the build's, as a remark; empty if none does."""
    changed = [f"{name} {built[name]} then, {now.get(name)} now" for name in built if built[name] != now.get(name)]
    return f" (versions differ: {', '.join(changed)})" if changed else ""


def read_lines(source: str, lines: set[int], config: BuildConfig) -> Iterator[tuple[int, Split, RawRow]]:
    """Some lines of an input, numbered from 1 as in rows.parquet; splits of it that hold none are not read."""
    splits = [split for split in find_splits(find_inputs((source,), config.split)) if split.source == source]
    for split, line, raw in numbered(splits, lambda part: any(n in part for n in lines), config.max_line_bytes):
        if line in lines:
            yield line, split, raw


def compare_row(
    dataset: PackedDataset, ctx: FamilyContext, config: BuildConfig, split: Split, line: int, raw: RawRow
) -> tuple[str, str]:
    """What differs in one row, and the code with which it would be rejected now; both may be empty."""
    if isinstance(raw.content, Reject):
        return str(raw.content), str(raw.content.code)
    try:
        preferences = dataset.layout.preferences
        if config.preference == "mixed" and preferences and not _has_verdict(dataset, split.source, line):
            config = replace(config, preference="ignore")  # a merge may have rows of a build with that option
        again = encode_row(raw.content, ctx, config, split.base, preferences=preferences)
    except Reject as reject:
        return f"would be rejected now: {reject}", str(reject.code)
    # Log-probabilities are of a reference model, not of the row (`omniprep score`).
    scores = ("reference_logps", "reference_kl_logps")
    stored = {name: value for name, value in dataset.row(split.source, line).items() if name not in scores}
    spectrograms = {
        column.name
        for column in dataset.layout.columns
        if column.modality == "audio" and column.kind == "flat" and "float" in column.dtype
    }
    names = [
        name
        for name in dict.fromkeys((*stored, *again))
        if not _equal(stored.get(name), again.get(name), within_a_step=name in spectrograms)
    ]
    return (f"differs from what it encodes to now: {', '.join(names)}" if names else ""), ""


def _has_verdict(dataset: PackedDataset, source: str, line: int) -> bool:
    """Whether a row is a pair or has a verdict in the dataset."""
    return bool(dataset.rows["verdict"][dataset.row_number(source, line)].as_py() != Verdict.NONE)


def _equal(stored: Any, again: Any, *, within_a_step: bool) -> bool:
    """Whether two forward arguments are equal, bit by bit or within one bf16 step."""
    if isinstance(stored, list) and isinstance(again, list):
        pairs = zip(stored, again, strict=False)
        return len(stored) == len(again) and all(_equal(*pair, within_a_step=within_a_step) for pair in pairs)
    if not isinstance(stored, torch.Tensor) or not isinstance(again, torch.Tensor):
        return type(stored) is type(again) and bool(stored == again)
    if stored.shape != again.shape or stored.dtype != again.dtype:
        return False
    if torch.equal(stored, again):
        return True
    steps = stored.bfloat16().view(torch.int16).int() - again.bfloat16().view(torch.int16).int()
    return within_a_step and int(steps.abs().max()) <= 1
