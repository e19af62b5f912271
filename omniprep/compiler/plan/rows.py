"""Raw rows → planned rows: token ids, loss weights and exact lengths, from text and media headers alone.

No media is decoded, except where no header gives an exact length (the sound of a video, m4a: compiler/plan/probe.py).
Rows are planned in chunks, so that the tokenizer gets the texts of many rows in one call.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from omniprep.compiler.costs import file_bytes, pixel_share
from omniprep.compiler.encode.stored_items import file_columns
from omniprep.compiler.isolate.deadline import row_deadline
from omniprep.compiler.plan.padding import with_pad_tokens
from omniprep.compiler.plan.placeholders import find_placeholders, fit, with_borders
from omniprep.compiler.plan.planned import Ids, Items, PlannedRow, pair_of, tower_work, with_verdict
from omniprep.compiler.plan.probe import Probed, find_media, places_of
from omniprep.compiler.plan.rendered_rows import TokenizedRow, WholeText, render_row, tokenize_rows
from omniprep.compiler.plan.text_checks import check_text, check_unicode
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject, RejectCode, unexpected
from omniprep.families.context import FamilyContext
from omniprep.families.errors import FamilyError
from omniprep.families.kinds import MediaMeta
from omniprep.media.fetch import MediaRoots
from omniprep.media.remote import ahead
from omniprep.modalities import MODALITIES
from omniprep.rows.chat import THOUGHTS
from omniprep.rows.columns import Note, parse_columns
from omniprep.rows.normalize import Row, normalize
from omniprep.rows.preference import Verdict, item_columns, split_answers
from omniprep.template.chat import contexts, prepare, surplus_tags, without_roles
from omniprep.template.grounding import normalize_boxes, write_box, write_reference
from omniprep.template.loss import Pieces, parse_strategy
from omniprep.template.meta import TemplateMeta
from omniprep.template.tags import replace_tags

T = TypeVar("T")


class Draft(NamedTuple):
    """A row between template and tokenizer."""

    row: Row
    text: Pieces | WholeText
    """In runs of equal loss weight, or whole where the family has a renderer; one placeholder, or stand-in, an item."""
    items: Items
    probed: Probed


@dataclass(frozen=True, slots=True)
class _Answer:
    """One chat that a raw row gives: itself, or one of the two answers of a pair."""

    number: int
    """Of the row in the chunk."""
    row: Row | Reject
    verdict: Verdict = Verdict.NONE
    rejected: bool = False


def plan_rows(
    raws: Iterable[Any], ctx: FamilyContext, config: BuildConfig, media_roots: MediaRoots, *, generate: bool = False
) -> list[PlannedRow | Reject]:
    """Plan a chunk of raw rows, in order; a row that cannot be used, or could not be read, gives its Reject.

    `generate` leaves the last answer open (inference). A FamilyError has the number of the row in the chunk as `row`.
    """
    answers = (answer for number, raw in enumerate(raws) for answer in _answers(number, raw, ctx, config))
    drafts: list[tuple[_Answer, Draft | Reject]] = []
    for answer in ahead(answers, lambda answer: places_of(media_roots, answer.row), whole=False):
        preferred = drafts[-1][1] if answer.rejected else None
        drafts.append((answer, _drafted(answer, preferred, ctx, config, media_roots, generate)))
    tokenized = _tokenized([draft.text for _, draft in drafts if not isinstance(draft, Reject)], ctx, config)
    result: list[PlannedRow | Reject] = []
    for answer, draft in drafts:
        tokens = draft if isinstance(draft, Reject) else next(tokenized)
        planned: PlannedRow | Reject
        if isinstance(draft, Reject):
            planned = draft
        elif isinstance(tokens, Reject):
            planned = tokens
        else:
            planned = _or_reject(answer.number, _assemble, draft, tokens, ctx, config)
        if not answer.rejected:
            if isinstance(planned, PlannedRow) and answer.verdict in (Verdict.DESIRABLE, Verdict.UNDESIRABLE):
                planned = _or_reject(answer.number, with_verdict, planned, answer.verdict)
            result.append(planned)
        elif isinstance(result[-1], PlannedRow):
            if isinstance(planned, PlannedRow):
                planned = _or_reject(answer.number, pair_of, result[-1], planned, ctx, config)
            result[-1] = planned
    return result


def _drafted(
    answer: _Answer, preferred: Draft | Reject | None, ctx: FamilyContext, config: BuildConfig, media_roots: MediaRoots,
    generate: bool,
) -> Draft | Reject:  # fmt: skip
    """The draft of an answer; that of a rejected one follows the draft of the preferred one, with which it may fail."""
    if isinstance(preferred, Reject):
        return preferred
    draft: Draft | Reject
    if isinstance(answer.row, Reject):
        draft = answer.row
    else:
        render = partial(_render, verdict=answer.verdict, preferred=preferred, generate=generate)
        draft = _or_reject(answer.number, render, answer.row, ctx, config, media_roots)
    if answer.rejected and isinstance(draft, Reject):  # a message may look like one of the row's own answer
        return Reject(draft.code, f"the rejected answer: {draft.message}")
    return draft


def _answers(number: int, raw: Any, ctx: FamilyContext, config: BuildConfig) -> Iterator[_Answer]:
    """The chats of a raw row, or why there are none."""
    columns = parse_columns(config.columns)
    split = raw if isinstance(raw, Reject) else _or_reject(number, split_answers, raw, config.preference, columns)
    if isinstance(split, Reject):
        yield _Answer(number, split)
        return
    if split.renamed:
        columns = item_columns(columns)
    read = partial(normalize, template_keys=ctx.renderer is not None, dataset_path=split.dataset_path)
    row = _or_reject(number, read, split.preferred, columns)
    if not isinstance(row, Reject) and split.unread:
        row.unread |= split.unread
        row.notes |= Note.UNREAD_COLUMNS
    yield _Answer(number, row, split.verdict)
    if split.rejected is not None and not isinstance(row, Reject):
        row = _or_reject(number, read, split.rejected, columns)
        yield _Answer(number, row, split.verdict, rejected=True)


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


def _render(
    row: Row, ctx: FamilyContext, config: BuildConfig, media_roots: MediaRoots, *, verdict: Verdict,
    preferred: Draft | None, generate: bool,
) -> Draft:  # fmt: skip
    """The text and media of a row; those that the `preferred` answer of its pair has too are not looked for again."""
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
    loss_scale = config.loss_strategy if verdict == Verdict.NONE else config.preference_loss_strategy
    if not config.use_chat_template and loss_scale == "default":
        loss_scale = "all"
    if preferred is not None and row.media == preferred.row.media and row.kwargs == preferred.row.kwargs:
        probed = {
            modality: [(replace(item), sound and replace(sound)) for item, sound in entries]
            for modality, entries in preferred.probed.items()
        }
    elif any(row.media.values()):
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
        return Draft(row, render_row(row, ctx, config, strategy, items, generate=generate), items, probed)
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
    return Draft(row, pieces, items, probed)


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


def _assemble(draft: Draft, tokens: TokenizedRow, ctx: FamilyContext, config: BuildConfig) -> PlannedRow:
    row, items = draft.row, draft.items
    ids, weights, item_borders = tokens
    if not len(ids):
        raise Reject(RejectCode.EMPTY_ROW, "nothing is left of the row")
    weights[0] = 0.0  # nothing stands before the first token that it could be predicted from
    placeholders = find_placeholders(ids, items, ctx) if any(items.values()) else []
    if item_borders:
        placeholders = with_borders(placeholders, item_borders, ids, ctx)
    grown = sum(placeholder.size - 1 for placeholder in placeholders)  # by expansion
    if len(ids) + grown > config.row_limit:
        keep = fit(ids, placeholders, items, ctx, config)
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
        patches=tower_work("patches", items, ctx),
        audio_frames=tower_work("audio_frames", items, ctx),
        file_bytes=file_bytes(items, file_columns(ctx, config.pixel_codec)),
        pixel_share=pixel_share(items, ctx),
    )


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
