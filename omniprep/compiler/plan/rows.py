"""Raw rows → planned rows: token ids, loss weights and exact lengths, from text and media headers alone.

No media is decoded, except where no header gives an exact length (the sound of a video, m4a: compiler/plan/probe.py).
Rows are planned in chunks, so that the tokenizer gets the texts of many rows in one call.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from omniprep.compiler.costs import file_bytes, pixel_share
from omniprep.compiler.encode.stored_items import file_columns
from omniprep.compiler.isolate.deadline import row_deadline
from omniprep.compiler.plan.padding import with_pad_tokens
from omniprep.compiler.plan.probe import find_media, places_of
from omniprep.compiler.plan.rendered_rows import TokenizedRow, WholeText, render_row, tokenize_rows
from omniprep.compiler.plan.text_checks import check_text, check_unicode
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject, RejectCode, unexpected
from omniprep.families.context import FamilyContext
from omniprep.families.errors import FamilyError
from omniprep.families.kinds import Item, MediaMeta, Sample
from omniprep.media.fetch import MediaRoots
from omniprep.media.remote import ahead
from omniprep.modalities import MODALITIES
from omniprep.rows.columns import Note, parse_columns
from omniprep.rows.normalize import THOUGHTS, Row, normalize
from omniprep.template.chat import contexts, prepare, surplus_tags, without_roles
from omniprep.template.grounding import normalize_boxes, write_box, write_reference
from omniprep.template.loss import Pieces, parse_strategy
from omniprep.template.meta import TemplateMeta
from omniprep.template.tags import replace_tags
from omniprep.template.truncate import Placeholder, kept_tokens, text_tokens

T = TypeVar("T")
Ids = NDArray[np.int32]
Items = dict[str, list[Item]]
"""The media items of a row, by modality."""
Draft = tuple[Row, Pieces | WholeText, Items]
"""A row between template and tokenizer: text in runs of equal loss weight, or whole where the family has a renderer;
one placeholder, or stand-in, an item."""


@dataclass(slots=True)
class PlannedRow:
    """A row that will be packed: everything but the decoded media.

    `ids` hold one placeholder for each item; `run_lengths` and `run_weights` are the loss weights, run by run; `length`
    counts tokens after expansion; `patches` and `audio_frames` are the work of the model's towers, as the family counts
    it; `file_bytes` is of the files that --pixel-codec source keeps, `pixel_share` what delta makes of its
    pixels, of their bytes (omniprep/compiler/costs.py). `notes` and `unread` are what the build reports
    about the row (rows/columns.py). The plan file (compiler/plan/file.py) gives back what encoding needs: `ids`, the
    runs, `length` and `items`.
    """

    ids: Ids
    run_lengths: NDArray[np.int32]
    run_weights: NDArray[np.float32]
    length: int
    items: Items = field(default_factory=lambda: {modality: [] for modality in MODALITIES})
    control_tokens: bool = False
    notes: Note = field(default_factory=lambda: Note(0))
    unread: dict[str, str] = field(default_factory=dict)
    patches: int = 0
    audio_frames: int = 0
    file_bytes: int = 0
    pixel_share: float = 0.0


def plan_rows(
    raws: Iterable[Any], ctx: FamilyContext, config: BuildConfig, media_roots: MediaRoots, *, generate: bool = False
) -> list[PlannedRow | Reject]:
    """Plan a chunk of raw rows, in order; a row that cannot be used, or could not be read, gives its Reject.

    `generate` leaves the last answer open (inference). A FamilyError has the number of the row in the chunk as `row`.
    """
    rows = (
        raw if isinstance(raw, Reject) else _or_reject(number, _normalized, raw, ctx, config)
        for number, raw in enumerate(raws)
    )
    drafts = [
        row if isinstance(row, Reject) else _or_reject(number, _render, row, ctx, config, media_roots, generate)
        for number, row in enumerate(ahead(rows, partial(places_of, media_roots), whole=False))
    ]
    tokenized = _tokenized([draft[1] for draft in drafts if not isinstance(draft, Reject)], ctx, config)
    result: list[PlannedRow | Reject] = []
    for number, draft in enumerate(drafts):
        tokens = draft if isinstance(draft, Reject) else next(tokenized)
        planned = tokens if isinstance(tokens, Reject) else _or_reject(number, _assemble, draft, tokens, ctx, config)
        result.append(planned)
    return result


def _or_reject(number: int, function: Callable[..., T], *args: Any) -> T | Reject:
    """What `function` returns for row `number` of the chunk, or the row's reject.

    Faults of a family and of the build are raised: they concern every row.
    """
    try:
        return function(*args)
    except Reject as reject:
        return _without_traceback(reject)
    except RecursionError as error:
        return Reject(RejectCode.BAD_ROW, f"the row is nested too deeply ({error})")
    except FamilyError as error:
        error.row = number
        raise
    except OmniprepError:
        raise
    except Exception as error:
        return unexpected(error)


def _tokenized(
    texts: list[Pieces | WholeText], ctx: FamilyContext, config: BuildConfig
) -> Iterator[TokenizedRow | Reject]:
    """The tokens of each row; a text that the tokenizer cannot take costs its own row."""
    try:
        yield from list(_tokenize(texts, ctx, config))
    except OmniprepError:
        raise
    except Exception:  # the tokenizer does not name the text: each row is tried alone, and the one to blame is rejected
        for text in texts:
            try:
                yield from list(_tokenize([text], ctx, config))
            except Exception as error:
                yield unexpected(error)


def _tokenize(
    texts: list[Pieces | WholeText], ctx: FamilyContext, config: BuildConfig
) -> Iterator[TokenizedRow | Reject]:
    if ctx.renderer is not None:
        yield from tokenize_rows([text for text in texts if isinstance(text, WholeText)], ctx)
        return
    rows = [text for text in texts if not isinstance(text, WholeText)]
    ids = iter(ctx.encoder.arrays([text for pieces in rows for text, _ in pieces]))
    for pieces in rows:
        runs = [next(ids) for _ in pieces]
        row_ids = np.concatenate(runs) if runs else np.empty(0, np.int32)
        weights = np.repeat(np.array([weight for _, weight in pieces], np.float32), [len(run) for run in runs])
        if sum(weight > 0 for _, weight in pieces) > 1:  # or there is no answer inside the chat
            label_turn_ends(row_ids, weights, _turn_end(ctx, config.use_chat_template))
        yield TokenizedRow(row_ids, weights)


def _without_traceback(reject: Reject) -> Reject:
    """The same reject, without the stack frames that would keep the row's media in memory."""
    return Reject(reject.code, reject.message)


@lru_cache(maxsize=8)
def _template(ctx: FamilyContext, use_chat_template: bool) -> TemplateMeta:
    return ctx.template if use_chat_template else without_roles(ctx.template, ctx.special_tokens.eos_token)


def _apply_row_options(row: Row, ctx: FamilyContext, config: BuildConfig) -> None:
    """Keep the row's chat_template_kwargs that the family reads (--chat-template-kwargs); note others."""
    if config.chat_template_kwargs == "ignore":
        if row.kwargs:
            row.notes |= Note.IGNORED_OPTIONS
        row.kwargs = {}
        return
    if not isinstance(row.kwargs, dict):
        raise Reject(RejectCode.BAD_OPTION, "chat_template_kwargs must be an object")
    known = {k: v for k, v in row.kwargs.items() if v is not None and k in ctx.row_options}
    row.variables = {k: v for k, v in row.kwargs.items() if v is not None and k in ctx.template_variables}
    if len(known.keys() | row.variables) < sum(value is not None for value in row.kwargs.values()):
        row.notes |= Note.IGNORED_OPTIONS
    row.kwargs = known


def _drop_read_keys(row: Row) -> None:
    """Take what a renderer reads of messages from what nobody reads."""
    for name in ("tool_calls", *THOUGHTS):
        row.unread.pop(f"messages.{name}", None)
    if not row.unread:
        row.notes &= ~Note.UNREAD_COLUMNS


def _normalized(raw: Any, ctx: FamilyContext, config: BuildConfig) -> Row:
    return normalize(raw, parse_columns(config.columns), template_keys=ctx.renderer is not None)


def _render(row: Row, ctx: FamilyContext, config: BuildConfig, media_roots: MediaRoots, generate: bool) -> Draft:
    _apply_row_options(row, ctx, config)
    if ctx.renderer is not None:
        _drop_read_keys(row)
    row.control_tokens = check_text(row, ctx, config)
    template = _template(ctx, config.use_chat_template)
    row = prepare(row, media_roots.is_file, None if ctx.renderer else template.agent_template)
    if surplus := surplus_tags(row):
        if config.surplus_tags == "reject":
            raise Reject(RejectCode.PLACEHOLDER_MISMATCH, surplus)
        row.notes |= Note.SURPLUS_TAGS
    # Text without roles has no answers: all of it is trained, as the reference does where its template is off.
    loss_scale = config.loss_scale if config.use_chat_template or config.loss_scale != "default" else "all"
    if any(row.media.values()):
        with row_deadline("a row's media"):
            probed = find_media(row, ctx, config, media_roots)
    else:
        probed = {modality: [] for modality in MODALITIES}
    items: Items = {modality: [] for modality in MODALITIES}  # in the order of their tags

    def placeholder_text(modality: str, number: int) -> str:
        item, sound = probed[modality][number]
        items[modality].append(item)
        if sound is None:
            return ctx.tag(modality, number + 1, plain=not config.use_chat_template)
        item.audio = len(items["audio"])
        items["audio"].append(sound)
        return ctx.tag("video_audio", number + 1)

    bbox_format = config.bbox_format or template.bbox_format

    def box_texts() -> list[str]:
        boxes = row.objects.get("bbox") or []
        if row.objects and row.media["image"]:
            metas = [item.meta for item, _ in probed["image"]]
            original = [(meta.width, meta.height) for meta in metas]
            norm = config.norm_bbox or template.norm_bbox
            resized = original if norm == "norm1000" else [_resized(ctx, meta) for meta in metas]
            boxes = normalize_boxes(row.objects, original, resized, norm)
        return [write_box(box, bbox_format, template.box_tokens) for box in boxes]

    references = [
        write_reference(str(name), bbox_format, template.reference_tokens) for name in row.objects.get("ref") or []
    ]
    strategy = parse_strategy(loss_scale)
    if ctx.renderer is not None:
        items = {modality: [item for item, _ in entries] for modality, entries in probed.items()}
        row.references, row.boxes = references, box_texts()
        return row, render_row(row, ctx, config, strategy, items, generate=generate), items
    pieces = contexts(row, template, strategy, default_system=config.system, generate=generate)
    pieces = replace_tags(
        pieces,
        counts={modality: len(entries) for modality, entries in probed.items()},
        placeholder_text=placeholder_text,
        references=references,
        box_texts=box_texts,
    )
    for modality, entries in probed.items():
        placed = sum(not item.meta.in_video for item in items[modality])
        if placed != len(entries):  # a template without history keeps the last turn alone, and its tags
            raise Reject(
                RejectCode.PLACEHOLDER_MISMATCH,
                f"{len(entries)} {modality} items, but only {placed} places for them in the kept chat",
            )
    check_unicode([text for text, _ in pieces])
    return row, pieces, items


def _resized(ctx: FamilyContext, meta: MediaMeta) -> tuple[int, int]:
    # Of the class: a plug-in may have written it as a static method of (family, meta).
    size = ctx.cls.resized_image(ctx, meta)
    if size is None:
        raise Reject(
            RejectCode.BAD_OBJECTS,
            f"family {ctx.name!r} does not say the size images are resized to; use --norm-bbox norm1000",
        )
    return size


@lru_cache(maxsize=8)
def _turn_end(ctx: FamilyContext, use_chat_template: bool) -> list[int]:
    """Token ids of the template's suffix, which ends an answer."""
    suffix = _template(ctx, use_chat_template).suffix
    return [token for text in suffix for token in ctx.encoder.encode([text])[0]]


@lru_cache(maxsize=8)
def _wrapping(ctx: FamilyContext) -> dict[str, tuple[int, int]]:
    """How many tokens of each tag stand before and after its placeholder: vision_start and vision_end, and the like."""
    tags = {modality: ctx.tag(modality) for modality in ctx.modalities}
    if "video" in tags and "video_audio" in ctx.tags:
        tags["video_audio"] = ctx.tag("video_audio")
    wrapping = {}
    for name, text in tags.items():
        tokens = ctx.encoder.encode([text])[0]
        before = tokens.index(ctx.placeholder_id("video" if name == "video_audio" else name))
        wrapping[name] = (before, len(tokens) - before - 1)
    return wrapping


def _assemble(draft: Draft, tokens: TokenizedRow, ctx: FamilyContext, config: BuildConfig) -> PlannedRow:
    row, _, items = draft
    ids, weights, item_borders = tokens
    if not len(ids):
        raise Reject(RejectCode.EMPTY_ROW, "nothing is left of the row")
    weights[0] = 0.0  # nothing stands before the first token that it could be predicted from
    placeholders = _find_placeholders(ids, items, ctx) if any(items.values()) else []
    if item_borders:
        placeholders = _with_borders(placeholders, item_borders, ids, ctx)
    grown = sum(placeholder.size - 1 for placeholder in placeholders)  # by expansion
    if len(ids) + grown > config.row_limit:
        keep = _fit(ids, placeholders, items, ctx, config)
        ids, weights = ids[keep], weights[keep]
    if len(weights):
        # The reference clears the first label before it cuts. A row that was cut on the left would then begin with a
        # label that is predicted from the row before it in the bin, so it is cleared after the cut as well.
        weights[0] = 0.0
    ids, weights, length = with_pad_tokens(ids, weights, len(ids) + grown, ctx, config)
    if config.bin_length and length > config.bin_length:
        raise Reject(RejectCode.ROW_EXCEEDS_BIN, f"{length} tokens, the bin holds {config.bin_length}")
    # Weights are kept as runs: a chat has a few, where single weights would double the plan.
    borders = [0, *(np.flatnonzero(weights[1:] != weights[:-1]) + 1).tolist(), len(ids)]
    return PlannedRow(
        ids=ids,
        run_lengths=np.array([end - start for start, end in pairwise(borders)], np.int32),
        run_weights=weights[borders[:-1]],
        length=length,
        items=items,
        control_tokens=row.control_tokens,
        notes=row.notes,
        unread=row.unread,
        patches=_tower_work("patches", items, ctx),
        audio_frames=_tower_work("audio_frames", items, ctx),
        file_bytes=file_bytes(items, file_columns(ctx, config.pixel_codec)),
        pixel_share=pixel_share(items, ctx),
    )


def _tower_work(unit: str, items: Items, ctx: FamilyContext) -> int:
    """What the towers that count in `unit` (patches, audio_frames) work on for a row."""
    counted = [name for name, modality in MODALITIES.items() if modality.work == unit]
    return sum(ctx.work(item) for modality in counted for item in items[modality])


def _find_placeholders(ids: Ids, items: Items, ctx: FamilyContext) -> list[Placeholder]:
    """The placeholders of a row, in its order."""
    wrapping = {} if ctx.renderer else _wrapping(ctx)
    result = []
    for modality in ctx.modalities:
        indices = np.flatnonzero(ids == ctx.stand_in_id(modality)).tolist()
        own = [item for item in items[modality] if not item.meta.in_video]
        if len(indices) != len(own):
            raise Reject(
                RejectCode.PLACEHOLDER_MISMATCH,
                f"{len(own)} {modality} items, but {len(indices)} placeholders in the tokens",
            )
        for index, item in zip(indices, own, strict=True):
            if ctx.renderer is not None:
                result.append(Placeholder(index, item.tokens, 0, 0))
            elif item.audio is None:
                result.append(Placeholder(index, item.tokens, *wrapping[modality]))
            else:
                size = item.tokens + items["audio"][item.audio].tokens
                result.append(Placeholder(index, size, *wrapping["video_audio"]))
    return sorted(result)


def _with_borders(
    placeholders: list[Placeholder], borders: Sequence[tuple[int, int]], ids: Ids, ctx: FamilyContext
) -> list[Placeholder]:
    """The sentinels of a row with the text of their items, and a special token on each side of it (of the template)."""
    result = []
    for (index, size, _, _), (before, after) in zip(placeholders, borders, strict=True):
        left, right = index - before - 1, index + after + 1
        before += left >= 0 and int(ids[left]) in ctx.encoder.special_ids
        after += right < len(ids) and int(ids[right]) in ctx.encoder.special_ids
        result.append(Placeholder(index, size, before, after))
    return result


def _fit(
    ids: Ids, placeholders: list[Placeholder], items: Items, ctx: FamilyContext, config: BuildConfig
) -> NDArray[np.bool_]:
    """Which tokens of a row longer than the limit stay (--truncation)."""
    if config.truncation == "raise":
        length = len(ids) + sum(placeholder.size - 1 for placeholder in placeholders)
        raise Reject(RejectCode.ROW_TOO_LONG, f"{length} tokens, the limit is {config.row_limit}")
    texts = text_tokens(ids, ctx.expand_row(Sample(ids, items)) if placeholders else [])
    texts = texts[[placeholder.token_index for placeholder in placeholders]]
    return kept_tokens(len(ids), placeholders, texts, config.row_limit, config.truncation)


def label_turn_ends(ids: Ids, weights: NDArray[np.float32], suffix: list[int]) -> None:
    """Train the token that ends an answer inside the chat: `<|im_end|>` after a labeled run and before a later one.

    Source: ms-swift 3.9.3 base.py _add_dynamic_eos. Changes `weights` in place.
    """
    labeled = weights > 0
    answer_end = -1
    for border in (np.flatnonzero(labeled[1:] != labeled[:-1]) + 1).tolist():
        if not labeled[border]:
            answer_end = border
        elif answer_end > 0 and ids[answer_end:border][: len(suffix)].tolist() == suffix:
            weights[answer_end : answer_end + len(suffix)] = 1.0
