"""`verify --deep`: what stands in the bins is what rows.parquet says, and a sample of rows encodes to the same tensors
again.

Reads every bin once, and of the inputs only the parts that sampled rows lie in. The sample is drawn with a fixed seed,
from all sources alike. A row is compared argument by argument, bit by bit; spectrograms may differ by one bf16 step,
since the FFT library chooses its kernels by the CPU.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from omniprep.build.manifest import versions
from omniprep.build.options import family_of
from omniprep.build.single import encode_row
from omniprep.config import BuildConfig
from omniprep.data.dataset import PackedDataset
from omniprep.errors import OmniprepError, Reject
from omniprep.families.context import FamilyContext
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import RawRow, Split, find_splits, numbered

__all__ = ["check_bins", "check_sample"]


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


def check_sample(dataset: PackedDataset, count: int, done: Callable[[int], None] = lambda count: None) -> Iterator[str]:
    """Findings about `count` packed rows, encoded again from their inputs."""
    config = config_of(dataset.manifest)
    ctx = family_of(config)
    built, now = dataset.manifest["versions"], versions()
    changed = [
        f"{name} {built.get(name)} then, {now.get(name)} now" for name in built if built.get(name) != now.get(name)
    ]
    hint = f" (versions differ: {', '.join(changed)})" if changed else ""
    packed = np.flatnonzero(dataset.rows["bin"].is_valid().to_numpy())
    chosen = np.random.default_rng(0).permutation(packed)[:count]
    wanted: dict[str, set[int]] = {}
    for row in dataset.rows.select(["source", "line"]).take(np.sort(chosen)).to_pylist():
        wanted.setdefault(row["source"], set()).add(row["line"])
    for source, lines in wanted.items():
        try:
            for line, split, raw in read_lines(source, lines, config):
                if finding := compare_row(dataset, ctx, config, split, line, raw):
                    yield f"{source}:{line}: {finding}{hint}"
                lines = lines - {line}
                done(1)
        except OmniprepError as error:
            yield f"{source}: cannot be read again: {error}"
            continue
        if lines:
            yield f"{source}: line {min(lines)} is not there any more"


def config_of(manifest: dict[str, Any]) -> BuildConfig:
    """The options of the build that made a dataset."""
    known = manifest["config"].keys() & BuildConfig.__dataclass_fields__.keys()
    values: dict[str, Any] = {name: manifest["config"][name] for name in known}
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return BuildConfig(**values)


def read_lines(source: str, lines: set[int], config: BuildConfig) -> Iterator[tuple[int, Split, RawRow]]:
    """Some lines of an input, numbered from 1 as in rows.parquet; parts of it without any are skipped over."""
    splits = [split for split in find_splits(find_inputs((source,), config.split)) if split.source == source]
    found = numbered(splits, lambda part: any(line in part for line in lines), config.max_line_bytes)
    for split, line, raw in found:
        if line in lines:
            yield line, split, raw


def compare_row(
    dataset: PackedDataset, ctx: FamilyContext, config: BuildConfig, split: Split, line: int, raw: RawRow
) -> str:
    """What is wrong with one row, or the empty string."""
    if isinstance(raw.content, Reject):
        return str(raw.content)
    try:
        again = encode_row(raw.content, ctx, config, split.base)
    except Reject as reject:
        return f"would be rejected now: {reject}"
    stored = dataset.row(split.source, line)
    mel = {column.name for column in dataset.layout.columns if column.load == "mel"}
    names = [name for name in stored if name not in again] + [name for name in again if name not in stored]
    names += [
        name for name in stored if name in again and not alike(stored[name], again[name], within_a_step=name in mel)
    ]
    return f"differs from what it encodes to now: {', '.join(names)}" if names else ""


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
