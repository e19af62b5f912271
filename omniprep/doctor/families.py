"""Dummy rows of a family, planned and encoded: the second half of `omniprep doctor`.

The media of a dummy row are written to files, probed, counted, decoded, mapped and expanded, as those of every row. The
encoder refuses a row whose counter, expansion and tensors disagree; the three numbers are reported as well, for each
modality alone and for all together. Takes 10 to 30 s, most of it imports.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from omniprep.doctor.machine import Finding
from omniprep.errors import OmniprepError, Reject
from omniprep.families.context import FamilyContext
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


def reference_findings() -> list[Finding]:
    """Whether sizes and frame choices equal those of the installed qwen_omni_utils."""
    from omniprep.families.qwen.agreement import compare_with_qwen_omni_utils

    fix = "rows follow qwen_omni_utils 0.0.8; please report this"
    return [
        Finding(entry.name, "ok", entry.text) if entry.holds else Finding(entry.name, "differs", entry.text, fix)
        for entry in compare_with_qwen_omni_utils()
    ]


def small_checkpoint(record: FamilyRecord, folder: Path) -> Path | None:
    """A small random checkpoint of a family, or None where the family cannot make one."""
    from omniprep.testing.init_model import init_model

    return init_model(folder, record.name) if cast(Any, record.cls).init_model else None


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
    pads = [ctx.placeholder_id(modality) for modality in ctx.modalities]
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
