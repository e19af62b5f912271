"""Dummy rows of a family, planned and encoded: the second half of `omniprep doctor`.

The media of a dummy row are written to files, probed, counted, decoded, mapped and expanded, as those of every row. The
encoder refuses a row whose counter, expansion and tensors disagree; the three numbers are reported as well, for each
modality alone and for all together. Then a dozen kinds of rows are held against the checkpoint's own processor
(compiler/oracle/). Takes 10 to 30 s, most of it imports.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from omniprep.compiler.oracle import trial as oracle
from omniprep.compiler.oracle.processor import NoOracleError, one_line
from omniprep.doctor.machine import Finding
from omniprep.errors import OmniprepError, Reject
from omniprep.families.context import FamilyContext, resolve_family
from omniprep.families.records import FamilyRecord

BIN_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class Trial:
    """One dummy row: what was promised, what came out, and what was wrong."""

    what: str
    counter: int = 0
    expansion: int = 0
    tensors: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True)
class LogitTrial:
    """One row of a bin: its logits against those of transformers' own forward pass."""

    what: str
    text: str = ""
    fault: str = ""


@dataclass(slots=True)
class FamilyReport:
    """What came of a family."""

    name: str
    version: str
    origin: str
    not_tried: str = ""
    """Why nothing was tried."""
    fault: str = ""
    """What keeps the family from being made."""
    words_remembered: bool = True
    """The tokenizer's words are kept, so that texts are tokenized fast."""
    dummies: list[Trial] = field(default_factory=list)
    against: str = ""
    """What rows were compared with; empty where the checkpoint has no processor of its own, and then:"""
    not_compared: str = ""
    rows: list[oracle.Trial] = field(default_factory=list)
    meant: dict[str, str] = field(default_factory=dict)
    """Name → reason, of what differs and is meant to."""
    rejected: list[str] = field(default_factory=list)
    """Kinds of rows of which the family rejects all, while the processor takes them."""
    logits: list[LogitTrial] = field(default_factory=list)
    logits_not_compared: str = ""

    @property
    def faults(self) -> int:
        """Rows and dummies with faults, and one if the family cannot be made."""
        wrong = [dummy.fault for dummy in self.dummies] + [trial.fault for trial in self.logits]
        wrong += ["; ".join(trial.comparison.faults) for trial in self.rows]
        return sum(map(bool, wrong)) + len(self.rejected) + bool(self.fault)

    def lines(self, known: set[tuple[str, str]]) -> Iterator[str]:
        """The report as lines of text; `known` gets what is meant to differ, which is then said once."""
        yield f"family {self.name} {self.version} ({self.origin})"
        if self.not_tried:
            yield f"  not tried: {self.not_tried}"
            return
        if self.fault:
            yield f"  FAULT {self.fault}"
            return
        tokenizer = "ok  words are remembered" if self.words_remembered else "slow  the tokenizer is asked each time"
        yield f"  {'tokenizer':42} {tokenizer}"
        for dummy in self.dummies:
            counts = f"ok  counter {dummy.counter} = expansion {dummy.expansion}: {dummy.tensors}"
            yield f"  {dummy.what:42} {f'FAULT {dummy.fault}' if dummy.fault else counts}"
        if self.not_compared:
            yield f"  not compared with a processor: {self.not_compared}"
            return
        yield f"  compared with {self.against}:"
        for row in self.rows:
            yield from _row_lines(row)
        yield from (f"  FAULT {text}" for text in self.rejected)
        if self.meant:
            before = [name for name, reason in self.meant.items() if (name, reason) in known]
            yield f"  what differs and is meant to{f', as above: {chr(44).join(before)}' if before else ''}:"
            yield from (f"    {name}: {reason}" for name, reason in self.meant.items() if (name, reason) not in known)
            known.update(self.meant.items())
        if self.logits_not_compared:
            yield f"  logits not compared: {self.logits_not_compared}"
        for trial in self.logits:
            yield f"  {f'logits: {trial.what}':42} {f'FAULT {trial.fault}' if trial.fault else f'ok  {trial.text}'}"


def _row_lines(row: oracle.Trial) -> Iterator[str]:
    if row.comparison.faults:
        for fault in row.comparison.faults:
            yield f"  {row.chat:42} FAULT {fault}"
    elif row.rejected:
        also = f"; the processor refuses it too ({row.refused})" if row.refused else ""
        yield f"  {row.chat:42} -   rejected, {row.rejected}{also}"
    else:
        yield f"  {row.chat:42} ok  {row.tokens} tokens; equal: {', '.join(row.comparison.equal)}"


LogitComparison = Callable[[FamilyContext, Path], tuple[list[LogitTrial], str]]


def untried(record: FamilyRecord) -> FamilyReport:
    """The report of a family that has no small checkpoint."""
    return FamilyReport(record.name, record.version, record.origin, not_tried="give a checkpoint with --model")


def examine(
    record: FamilyRecord,
    model: str,
    plugins: tuple[str, ...],
    folder: Path,
    *,
    trust_remote_code: bool = False,
    compare_logits: LogitComparison | None = None,
    quick: bool = False,
) -> FamilyReport:
    """Try a family on a checkpoint.

    Args:
        record: The family.
        model: Checkpoint folder or Hub name.
        plugins: Files that register families.
        folder: Where media may be written.
        trust_remote_code: Let the checkpoint's own Python code run.
        quick: Only the rows that a build tries.
        compare_logits: Gives the logits of rows, or none and why (omniprep/train/doctor_logits.py).
    """
    report = FamilyReport(record.name, record.version, record.origin)
    try:
        ctx = resolve_family(model, record.name, plugins, None, trust_remote_code)
        report.words_remembered = ctx.encoder.by_words
        report.dummies = try_family(ctx, folder)
        _compare(report, ctx, quick)
        if report.against and compare_logits is not None:
            report.logits, report.logits_not_compared = compare_logits(ctx, folder)
    except OmniprepError as error:
        report.fault = one_line(error)
    return report


def _compare(report: FamilyReport, ctx: FamilyContext, quick: bool) -> None:
    """Hold dummy rows against the checkpoint's processor."""
    family = oracle.family_without_options(ctx)
    try:
        processor = oracle.oracle_of(family)
        chats = oracle.chats_for(family, processor, quick=quick)
        report.rows = list(oracle.try_chats(family, processor, chats))
    except NoOracleError as error:
        report.not_compared = str(error)
        return
    report.against = processor.name
    for row in report.rows:
        report.meant |= row.comparison.meant
    report.rejected = [
        f"{row.chat}: rejected ({row.rejected}), the processor takes it"
        for row in oracle.unfounded_rejects(chats, report.rows)
    ]


def reference_findings() -> list[Finding]:
    """Whether sizes and frame choices equal those of the installed qwen_omni_utils."""
    from omniprep.families.qwen.agreement import compare_with_qwen_omni_utils

    fix = "rows follow qwen_omni_utils 0.0.8; please report this"
    return [
        Finding(entry.name, "ok", entry.text) if entry.holds else Finding(entry.name, "differs", entry.text, fix)
        for entry in compare_with_qwen_omni_utils()
    ]


def small_checkpoint(record: FamilyRecord, folder: Path, *, asked: bool = False) -> Path | None:
    """A small random checkpoint of a family, or None where the family cannot make one.

    Args:
        record: The family.
        folder: Of the checkpoint.
        asked: The family was named: one without a hook of its own then gets a checkpoint by its model type, which
            takes up to half a minute.
    """
    from omniprep.testing.init_model import init_model

    makes = cast(Any, record.cls).init_model or (asked and record.model_types)
    return init_model(folder, record.name) if makes else None


def try_family(ctx: FamilyContext, folder: Path) -> list[Trial]:
    """Dummy rows of one item of each modality, and of all together, through counter, decoder, mapper and expansion."""
    trials = []
    for counts in [*({modality: 1} for modality in ctx.modalities), dict.fromkeys(ctx.modalities, 1)]:
        name = " + ".join(counts)
        try:
            messages, media = ctx.dummy(BIN_LENGTH, counts)
            trials.append(_try_row(ctx, name, {"messages": messages, **_save_media(media, folder)}, folder))
        except (Reject, OmniprepError, OSError) as error:
            trials.append(Trial(name, fault=" ".join(str(error).split())))
    return trials


def _try_row(ctx: FamilyContext, name: str, row: dict[str, Any], folder: Path) -> Trial:
    from omniprep.compiler.encode.rows import MediaCache, encode_planned
    from omniprep.compiler.plan.rows import plan_rows
    from omniprep.config import BuildConfig
    from omniprep.media.fetch import MediaRoots
    from omniprep.shards.content import item_sizes

    config = BuildConfig(model=ctx.spec.model, bin_length=BIN_LENGTH)
    planned = plan_rows([row], ctx, config, MediaRoots(str(folder), (), False))[0]
    if isinstance(planned, Reject):
        return Trial(name, fault=str(planned))
    pads = [ctx.stand_in_id(modality) for modality in ctx.modalities]
    promised = sum(item.tokens for items in planned.items.values() for item in items)
    encoded = encode_planned(planned, ctx, config, MediaCache(0))
    expanded = len(encoded.input_ids) - len(planned.ids) + int(np.isin(planned.ids, pads).sum())
    over = [
        f"{m} {item.tokens}"
        for m in ctx.modalities
        for item in planned.items[m]
        if item.tokens > ctx.maxima.get(m, item.tokens)
    ]
    fault = "" if promised == expanded else f"the counters promise {promised} tokens, the expansion gives {expanded}"
    fault = fault or (f"more tokens than the registered maximum: {', '.join(over)}" if over else "")
    tensors = [(name, array) for name, arrays in encoded.media.items() for array in arrays]
    shapes = [f"{name} {'x'.join(map(str, array.shape)) or int(array)}" for name, array in tensors]
    for column in ctx.columns:
        arrays = encoded.media[column.name]
        if column.kind == "flat" and column.sizes and arrays:
            source, _ = column.size_source()
            declared = item_sizes(column, {source: np.array(encoded.media[source])}).tolist()
            units = [array.size // column.unit for array in arrays]
            if units != declared:
                fault = f"{column.name} holds {units} units, but {column.sizes} says {declared}"
    return Trial(name, promised, expanded, ", ".join(shapes), fault)


def _save_media(media: dict[str, list[Any]], folder: Path) -> dict[str, list[Any]]:
    """Write dummy media (PIL images, waveforms at 16 kHz, lists of PIL images) to files, as rows name them."""
    import soundfile

    saved: dict[str, list[Any]] = {f"{modality}s": [] for modality in media}
    for modality, items in media.items():
        for number, item in enumerate(items):
            if isinstance(item, np.ndarray):
                soundfile.write(folder / f"{modality}{number}.wav", item, 16_000)
                saved[f"{modality}s"].append(f"{modality}{number}.wav")
                continue
            pictures = item if isinstance(item, list) else [item]
            names = [f"{modality}{number}_{frame}.png" for frame in range(len(pictures))]
            for name, picture in zip(names, pictures, strict=True):
                picture.save(folder / name)
            saved[f"{modality}s"].append(names if isinstance(item, list) else names[0])
    return saved
