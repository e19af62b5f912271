"""Raw rows → planned rows: tokens, loss weights and exact lengths, from text and media headers alone.

Nothing is decoded, except where no header tells a length exactly (the sound of a video, m4a: compiler/plan/probe.py).
Rows go through in chunks, so that the tokenizer sees the texts of many rows at once.
"""

import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from omniprep.compiler.isolate.deadline import row_limit
from omniprep.compiler.plan.probe import PlannedItem, find_media
from omniprep.compiler.plan.text_checks import check_text, check_unicode
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject, RejectCode
from omniprep.families.context import FamilyContext
from omniprep.families.errors import FamilyError
from omniprep.families.registry import MediaMeta, Sample
from omniprep.media.fetch import MediaRoots
from omniprep.modalities import MODALITIES
from omniprep.rows.columns import Note, parse_columns
from omniprep.rows.normalize import Row, normalize
from omniprep.template.chat import TemplateMeta, contexts, prepare, surplus_tags, without_roles
from omniprep.template.grounding import normalize_boxes, write_box, write_reference
from omniprep.template.loss import Pieces, parse_strategy
from omniprep.template.tags import replace_tags
from omniprep.template.truncate import kept_tokens, text_tokens

T = TypeVar("T")


@dataclass(slots=True)
class PlannedRow:
    """A row that will be packed: everything but the decoded media.

    `ids` hold one placeholder an item; `run_lengths` and `run_weights` are the loss weights, run by run; `length`
    counts tokens after expansion; `patches` and `audio_frames` are the work of the model's towers, as the family counts
    it. `notes` and `unread` are what the build says of the row (rows/columns.py).
    """

    ids: NDArray[np.int32]
    run_lengths: NDArray[np.int32]
    run_weights: NDArray[np.float32]
    length: int
    items: dict[str, list[PlannedItem]] = field(default_factory=lambda: {m: [] for m in MODALITIES})
    control_tokens: bool = False
    notes: Note = field(default_factory=lambda: Note(0))
    unread: dict[str, str] = field(default_factory=dict)
    patches: int = 0
    audio_frames: int = 0

    def weights(self) -> NDArray[np.float32]:
        """Loss weight of each token, (len(ids),)."""
        return np.repeat(self.run_weights, self.run_lengths)


@dataclass(slots=True)
class _Rendered:
    runs: Pieces
    items: dict[str, list[PlannedItem]]
    control_tokens: bool
    notes: Note
    unread: dict[str, str]


def plan_rows(
    raws: Iterable[Any], ctx: FamilyContext, config: BuildConfig, media_roots: MediaRoots, *, generate: bool = False
) -> list[PlannedRow | Reject]:
    """Plan a chunk of rows, in order; a row that cannot be used gives its Reject.

    Args:
        raws: Raw rows, or a Reject for a line that could not be parsed.
        ctx: The family.
        config: The build's options.
        media_roots: Where the rows' media may lie.
        generate: Leave the last answer open (inference).

    Raises:
        FamilyError: The family is not right; its `place` is the number of the row in the chunk.
    """
    rendered: list[_Rendered | Reject] = []
    for number, raw in enumerate(raws):
        if isinstance(raw, Reject):
            rendered.append(raw)
        else:
            rendered.append(_or_reject(number, _render, raw, ctx, config, media_roots, generate))
    ids = _token_ids([entry for entry in rendered if isinstance(entry, _Rendered)], ctx)
    result: list[PlannedRow | Reject] = []
    for number, entry in enumerate(rendered):
        if isinstance(entry, Reject):
            result.append(entry)
            continue
        tokens = next(ids)
        result.append(
            tokens if isinstance(tokens, Reject) else _or_reject(number, _assemble, entry, tokens, ctx, config)
        )
    return result


def _or_reject(number: int, make: Callable[..., T], *args: Any) -> T | Reject:
    """What `make` gives for a row, or the row's reject; only faults of the family and of the build go on.

    Args:
        number: Of the row in the chunk, for the message of a family's fault.
        make: Called with `args`.
        args: What it takes.
    """
    try:
        return make(*args)
    except Reject as reject:
        return _alone(reject)
    except RecursionError as error:
        return Reject(RejectCode.BAD_ROW, f"the row is nested too deeply ({error})")
    except FamilyError as error:
        error.place = number
        raise
    except OmniprepError:
        raise
    except Exception as error:
        return unexpected(error)


def _token_ids(rows: list[_Rendered], ctx: FamilyContext) -> Iterator[list[NDArray[np.int32]] | Reject]:
    """The ids of each row's runs; a text that the tokenizer cannot take costs its own row."""
    try:
        ids = iter(ctx.encoder.arrays([text for row in rows for text, _ in row.runs]))
    except Exception:  # of any row of the chunk: each is tried alone, and the one to blame is rejected
        for row in rows:
            try:
                yield ctx.encoder.arrays([text for text, _ in row.runs])
            except Exception as error:
                yield unexpected(error)
        return
    for row in rows:
        yield [next(ids) for _ in row.runs]


def _alone(reject: Reject) -> Reject:
    """The same without the frames it came through, which hold the row's media."""
    return Reject(reject.code, reject.message)


def unexpected(error: Exception) -> Reject:
    """The reject for an exception that nothing foresaw: a fault of omniprep, of a decoder, or of a family's callback.

    One row must not end a build of millions; the code and the message say that it is a defect, and where.
    """
    if isinstance(error, MemoryError):
        return Reject(RejectCode.DECODE_MEMORY, f"there is not enough memory for the row ({error})")
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno} {frames[-1].name})" if frames else ""
    return Reject(RejectCode.INTERNAL_ERROR, f"{type(error).__name__}: {error}{where}")


@lru_cache(maxsize=8)
def _template(ctx: FamilyContext, use_chat_template: bool) -> TemplateMeta:
    return ctx.template if use_chat_template else without_roles(ctx.template, ctx.tokenizer.eos_token)


def _apply_row_options(row: Row, ctx: FamilyContext, config: BuildConfig) -> None:
    """Leave those of the row's chat_template_kwargs that count (--chat-template-kwargs); the others are noted.

    Raises:
        Reject: bad_option.
    """
    if config.chat_template_kwargs == "ignore":
        if row.kwargs:
            row.notes |= Note.IGNORED_OPTIONS
        row.kwargs = {}
        return
    if not isinstance(row.kwargs, dict):
        raise Reject(RejectCode.BAD_OPTION, "chat_template_kwargs must be an object")
    known = {k: v for k, v in row.kwargs.items() if v is not None and k in ctx.attribute("row_options")}
    if len(known) < sum(value is not None for value in row.kwargs.values()):
        row.notes |= Note.IGNORED_OPTIONS
    row.kwargs = known


def _render(raw: Any, ctx: FamilyContext, config: BuildConfig, media_roots: MediaRoots, generate: bool) -> _Rendered:
    row = normalize(raw, parse_columns(config.columns))
    _apply_row_options(row, ctx, config)
    control = check_text(row, ctx, config)
    meta = _template(ctx, config.use_chat_template)
    row = prepare(row, media_roots.is_file, meta.agent_template)
    if surplus := surplus_tags(row):
        if config.surplus_tags == "reject":
            raise Reject(RejectCode.PLACEHOLDER_MISMATCH, surplus)
        row.notes |= Note.SURPLUS_TAGS
    loss = config.loss_scale if config.use_chat_template or config.loss_scale != "default" else "all"
    if any(row.media(m) for m in MODALITIES):
        with row_limit("a row's media"):
            found = find_media(row, ctx, config, media_roots)
    else:
        found = {m: [] for m in MODALITIES}
    order: dict[str, list[PlannedItem]] = {m: [] for m in MODALITIES}

    def place(modality: str, number: int) -> str:
        entry = found[modality][number]
        order[modality].append(entry.planned)
        if entry.track is None:
            return ctx.tag(modality, number + 1, plain=not config.use_chat_template)
        entry.planned.item.audio = len(order["audio"])
        order["audio"].append(entry.track)
        return ctx.tag("video_audio", number + 1)

    def boxes() -> list[Any]:
        if not row.objects or not row.images:
            return list(row.objects.get("bbox") or [])
        metas = [entry.planned.item.meta for entry in found["image"]]
        original = [(m.width, m.height) for m in metas]
        norm = config.norm_bbox or meta.norm_bbox
        resized = original if norm == "norm1000" else [_resized(ctx, m) for m in metas]
        return normalize_boxes(row.objects, original, resized, norm)

    references = [str(name) for name in row.objects.get("ref") or []]
    pieces = contexts(row, meta, parse_strategy(loss), default_system=config.system, generate=generate)
    runs = replace_tags(
        pieces,
        counts={m: len(found[m]) for m in MODALITIES},
        place=place,
        references=references,
        boxes=boxes,
        write_reference=lambda name: write_reference(name, config.bbox_format or meta.bbox_format),
        write_box=lambda box: write_box(box, config.bbox_format or meta.bbox_format),
    )
    for modality in MODALITIES:
        placed = sum(not p.item.meta.in_video for p in order[modality])
        if placed != len(found[modality]):
            raise Reject(
                RejectCode.PLACEHOLDER_MISMATCH,
                f"{len(found[modality])} {modality} items, but only {placed} places for them in the kept chat",
            )
    check_unicode(runs)
    return _Rendered(runs, order, control, row.notes, row.unread)


def _resized(ctx: FamilyContext, meta: MediaMeta) -> tuple[int, int]:
    size = getattr(ctx.cls, "resized_image", None)
    if size is None:
        raise Reject(
            RejectCode.BAD_OBJECTS,
            f"family {ctx.name!r} does not say the size images are resized to; use --norm-bbox norm1000",
        )
    result: tuple[int, int] = size(ctx, meta)
    return result


@lru_cache(maxsize=8)
def _layout(ctx: FamilyContext) -> tuple[dict[str, int], dict[str, tuple[int, int]], list[int]]:
    """Placeholder ids, how many tokens of each tag stand before and after it, and the ids of the suffix."""
    ids = {m: ctx.placeholder_id(m) for m in ctx.modalities}
    tags = {m: ctx.tag(m) for m in ctx.modalities}
    if "video" in tags and "video_audio" in ctx.cls.tags:  # type: ignore[attr-defined]
        tags["video_audio"] = ctx.tag("video_audio")
    frames = {}
    for name, text in tags.items():
        tokens = ctx.encoder.encode([text])[0]
        at = tokens.index(ids["video" if name == "video_audio" else name])
        frames[name] = (at, len(tokens) - at - 1)
    suffix = [token for text in ctx.template.suffix for token in ctx.encoder.encode([text])[0]]
    return ids, frames, suffix


def _assemble(entry: _Rendered, tokens: list[NDArray[np.int32]], ctx: FamilyContext, config: BuildConfig) -> PlannedRow:
    placeholders, frames, suffix = _layout(ctx)
    if not config.use_chat_template:
        suffix = ctx.encoder.encode(["".join(_template(ctx, False).suffix)])[0]
    ids = np.concatenate(tokens) if tokens else np.empty(0, np.int32)
    if not len(ids):
        raise Reject(RejectCode.EMPTY_ROW, "nothing is left of the row")
    weights = np.repeat(np.array([weight for _, weight in entry.runs], np.float32), [len(run) for run in tokens])
    label_turn_ends(ids, weights, suffix)
    weights[0] = 0.0
    length = len(ids)
    if any(entry.items.values()):
        ids, weights, length = _with_media(ids, weights, entry, placeholders, frames, ctx, config)
    elif length > config.row_limit:
        none = np.empty(0, np.int64)
        keep = _fit(none, none, length, [], Sample(ids, {}), ctx, config)
        ids, weights, length = ids[keep], weights[keep], int(keep.sum())
    if len(weights):
        # The reference clears the first label before it cuts. A row that was cut on the left would then begin with a
        # label that is predicted from the row before it in the bin, so it is cleared after the cut as well.
        weights[0] = 0.0
    if config.bin_length and length > config.bin_length:
        raise Reject(RejectCode.ROW_EXCEEDS_BIN, f"{length} tokens, the bin holds {config.bin_length}")
    borders = [0, *(np.flatnonzero(weights[1:] != weights[:-1]) + 1).tolist(), len(ids)]
    return PlannedRow(
        ids=ids,
        run_lengths=np.array([end - start for start, end in pairwise(borders)], np.int32),
        run_weights=weights[borders[:-1]],
        length=length,
        items=entry.items,
        control_tokens=entry.control_tokens,
        notes=entry.notes,
        unread=entry.unread,
        patches=_tower_work("patches", entry.items, ctx),
        audio_frames=_tower_work("audio_frames", entry.items, ctx),
    )


def _tower_work(unit: str, items: dict[str, list[PlannedItem]], ctx: FamilyContext) -> int:
    """What the towers that count in `unit` (patches, audio_frames) work on for a row."""
    counted = [m for m, modality in MODALITIES.items() if modality.work == unit]
    return sum(ctx.work(planned.item) for m in counted for planned in items[m])


def _with_media(
    ids: NDArray[np.int32], weights: NDArray[np.float32], entry: _Rendered, placeholders: dict[str, int],
    frames: dict[str, tuple[int, int]], ctx: FamilyContext, config: BuildConfig,
) -> tuple[NDArray[np.int32], NDArray[np.float32], int]:  # fmt: skip
    found: list[tuple[int, int, tuple[int, int]]] = []
    for modality, token in placeholders.items():
        places = np.flatnonzero(ids == token).tolist()
        items = [planned.item for planned in entry.items[modality] if not planned.item.meta.in_video]
        if len(places) != len(items):
            raise Reject(
                RejectCode.PLACEHOLDER_MISMATCH,
                f"{len(items)} {modality} items, but {len(places)} placeholders in the tokens",
            )
        for at, item in zip(places, items, strict=True):
            if item.audio is None:
                found.append((at, item.tokens, frames[modality]))
            else:
                sound = entry.items["audio"][item.audio].item.tokens
                found.append((at, item.tokens + sound, frames["video_audio"]))
    found.sort()
    where = np.array([f[0] for f in found], np.int64)
    sizes = np.array([f[1] for f in found], np.int64)
    length = len(ids) - len(found) + int(sizes.sum())
    if length > config.row_limit:
        sample = Sample(ids, {modality: [planned.item for planned in items] for modality, items in entry.items.items()})
        keep = _fit(where, sizes, length, [f[2] for f in found], sample, ctx, config)
        length = int(keep.sum()) - len(found) + int(sizes.sum())
        ids, weights = ids[keep], weights[keep]
    return ids, weights, length


def _fit(
    at: NDArray[np.int64], sizes: NDArray[np.int64], length: int, frames: list[tuple[int, int]], sample: Sample,
    ctx: FamilyContext, config: BuildConfig,
) -> NDArray[np.bool_]:  # fmt: skip
    if config.truncation == "raise":
        raise Reject(RejectCode.ROW_TOO_LONG, f"{length} tokens, the limit is {config.row_limit}")
    texts = text_tokens(sample.ids, ctx.expand(sample) if len(at) else [])[at]
    return kept_tokens(len(sample.ids), at, sizes, texts, config.row_limit, config.truncation, frames)


def label_turn_ends(ids: NDArray[np.int32], weights: NDArray[np.float32], suffix: list[int]) -> None:
    """Train the token that ends an answer inside the chat: `<|im_end|>` after a labeled run and before a later one.

    Source: ms-swift 3.9.3 base.py _add_dynamic_eos. Changes `weights` in place.
    """
    labeled = weights > 0
    change = np.flatnonzero(labeled[1:] != labeled[:-1]) + 1
    start = -1
    for at in change.tolist():
        if not labeled[at]:
            start = at
        elif start > 0 and at - start >= len(suffix) and ids[start : start + len(suffix)].tolist() == suffix:
            weights[start : start + len(suffix)] = 1.0


__all__ = ["PlannedItem", "PlannedRow", "label_turn_ends", "plan_rows", "unexpected"]
