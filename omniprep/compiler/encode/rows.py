"""Planned row → bin: media decoded and mapped, placeholders expanded, labels and m-rope ids made.

What was decoded is counted again and must give the tokens that the header promised (decode_mismatch otherwise), so a
plan is never silently wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omniprep.compiler.encode.stored_items import (
    codec_columns,
    file_columns,
    picture_columns,
    read_files,
    stored_item,
)
from omniprep.compiler.plan.planned import PlannedRow
from omniprep.compiler.plan.probe import RATE
from omniprep.config import BuildConfig
from omniprep.errors import Reject, RejectCode
from omniprep.families.columns import stored_form
from omniprep.families.context import FamilyContext
from omniprep.families.errors import FamilyError, TokenCountMismatchError
from omniprep.families.kinds import Decoded, Item, MediaMeta, Sample, as_json
from omniprep.lru import BoundedCache
from omniprep.media.audio import decode_audio
from omniprep.media.image import decode_image
from omniprep.media.video import VideoFacts, read_frames
from omniprep.rows.preference import Verdict
from omniprep.shards.codecs.base import CompressedItem
from omniprep.shards.files import MediaFile, StoredItem
from omniprep.shards.schema import PREFERENCE_COLUMNS, Bin, Column, arrow_schema
from omniprep.shards.writer import companion_value
from omniprep.template.expand import expand
from omniprep.template.loss import parse_strategy

Array = NDArray[Any]
IGNORE = -100


Compress = Callable[[Column, Array, Array], CompressedItem]


@dataclass(frozen=True, slots=True)
class MappedItem:
    """The forward arguments of an item; and by column what is stored of it in their place (--pixel-codec source)."""

    arguments: dict[str, Any]
    """Arrays; or what `Compress` made of one."""
    stored: dict[str, StoredItem]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held: list[Any] = [*self.arguments.values(), *self.stored.values()]
        return sum(value.nbytes for value in held)


class MediaCache(BoundedCache[Any, MappedItem]):
    """Forward arguments of items seen lately, so that an image used by several rows of a shard is decoded once.

    Args:
        limit: Bytes kept. One item may take a quarter of them: a long video must not push out all images.
        compress: Called with a column whose codec compresses pictures, the units of an item and its size; what it gives
            stands for the units in the bin (`ShardFile.compress`). None: units stay arrays.
    """

    def __init__(self, limit: int = 256 << 20, compress: Compress | None = None) -> None:
        super().__init__(limit, lambda item: item.nbytes, limit // 4)
        self.compress = compress


def encode_planned(row: PlannedRow, ctx: FamilyContext, config: BuildConfig, cache: MediaCache) -> Bin:
    """Encode one row as a bin of its own; rejects media that do not decode or contradict their headers.

    A pair is a bin of two sequences, a verdict says what its row is (`Bin.chosen`); other rows say nothing of it.
    """
    if row.verdict == Verdict.NONE:
        return _encode_sequence(row, ctx, config, cache)
    sequences = [_encode_sequence(row, ctx, config, cache)]
    if row.rejected is None:
        return replace(
            sequences[0],
            pair_ids=np.full(1, -1, np.int32),
            chosen=np.full(1, row.verdict == Verdict.DESIRABLE, np.int32),
            shared_media=np.zeros(1, np.int32),
        )
    try:
        sequences.append(_encode_sequence(row.rejected, ctx, config, cache))
    except Reject as reject:
        raise Reject(reject.code, f"the rejected answer: {reject.message}") from reject
    shared = sum(1 << number for number, name in enumerate(ctx.modalities) if name in row.rejected.shared)
    return replace(
        make_bin(sequences, [0, 0]),
        pair_ids=np.zeros(2, np.int32),
        chosen=np.array([1, 0], np.int32),
        shared_media=np.array([0, shared], np.int32),
    )


def _encode_sequence(row: PlannedRow, ctx: FamilyContext, config: BuildConfig, cache: MediaCache) -> Bin:
    """One sequence, without the media that it shares with the preferred answer."""
    files: dict[str, list[StoredItem]] = {name: [] for name in file_columns(ctx, config.pixel_codec).values()}
    media: dict[str, list[Any]] = {column.name: [] for column in ctx.columns if column.name not in files}
    has_media = any(row.items.values())
    stored = [modality for modality in ctx.modalities if modality not in row.shared] if has_media else []
    for modality in stored:
        for number, mapped in enumerate(_map_items(modality, row.items[modality], ctx, config, cache)):
            for column in ctx.columns:
                if column.name in mapped.stored:
                    files[column.name].append(mapped.stored[column.name])
                elif column.modality == modality and (column.kind != "rows" or number == 0):
                    media[column.name].append(mapped.arguments[column.name])
    expansions = ctx.expand_row(Sample(row.ids, row.items)) if has_media else []
    ids, weights, is_media = expand(row.ids, np.repeat(row.run_weights, row.run_lengths), expansions)
    # The bin was planned with the length that headers promised. A family that expands to another must not go unnoticed.
    if len(ids) != row.length:
        raise TokenCountMismatchError(
            f"family {ctx.name!r}: the counters promised {row.length} tokens for a row, its expansion gives {len(ids)}"
        )
    # Media tokens are never predicted, not even in an answer that is trained.
    labels = np.where((weights > 0) & ~is_media, ids, np.int32(IGNORE)).astype(np.int32, copy=False)
    positions = ctx.row_positions(Sample(ids, row.items)) if has_media else None
    token_columns = [column for column in ctx.columns if column.kind == "tokens"]
    if token_columns:
        arrays = ctx.row_token_fields(Sample(ids, row.items))
        for column in token_columns:
            media[column.name] = [stored_form(ctx.name, column, arrays[column.name])]
    return Bin(
        input_ids=ids,
        labels=labels,
        loss_scale=weights if parse_strategy(config.loss_strategy).weighted else None,
        position_ids=positions,
        cu_seqlens=np.array([0, len(ids)], np.int32),
        row_ids=np.zeros(1, np.int32),
        row_items=np.array(
            [[0 if modality in row.shared else len(row.items[modality]) for modality in ctx.modalities]], np.int32
        ),
        media=media,
        files=files,
    )


def _map_items(
    modality: str, items: list[Item], ctx: FamilyContext, config: BuildConfig, cache: MediaCache
) -> list[MappedItem]:
    """The forward arguments of each item of a modality; rejects and faults say which one."""
    mapped, decoded = [], []
    for position, item in enumerate(items, 1):
        try:
            if ctx.by_row:
                decoded.append(_decode_checked(item, ctx, config))
            else:
                mapped.append(_map_item(item, ctx, config, cache))
        except Reject as reject:
            raise Reject(reject.code, f"{modality} {position} of {len(items)}: {reject.message}") from reject
        except FamilyError as error:
            raise error.within(f"{modality} {position} of {len(items)}") from error
    if decoded:
        mapped = [MappedItem(_stored(modality, arguments, ctx), {}) for arguments in ctx.mapped_row(modality, decoded)]
        for row_item in mapped:
            _compress(row_item, modality, ctx, config, cache)
    return mapped


def _compress(mapped: MappedItem, modality: str, ctx: FamilyContext, config: BuildConfig, cache: MediaCache) -> None:
    """Let the pictures of an item be compressed now, where the build is about to write them."""
    if cache.compress is None:
        return
    for column in picture_columns(ctx, config.pixel_codec):
        units = mapped.arguments.get(column.name)
        if column.modality == modality and units is not None:
            size = mapped.arguments.get(column.size_source()[0])
            mapped.arguments[column.name] = cache.compress(
                column, units, companion_value(column, units) if size is None else size
            )


def _stored(modality: str, arguments: dict[str, Array], ctx: FamilyContext) -> dict[str, Array]:
    """What a mapper gave for one item, as the shard holds it."""
    columns = {column.name: column for column in ctx.columns if column.modality == modality}
    return {name: stored_form(ctx.name, columns[name], array) for name, array in arguments.items() if name in columns}


def _map_item(item: Item, ctx: FamilyContext, config: BuildConfig, cache: MediaCache) -> MappedItem:
    """The forward arguments of an item, decoded unless the cache has them."""
    meta = item.meta
    options = repr(sorted(meta.options.items()))
    # All that a mapper sees beside the pixels or samples: the facts of the header follow from the bytes.
    key = (meta.kind, tuple(source.key for source in item.sources), options, meta.in_video, meta.padded_to)
    mapped = cache.get(key)
    if mapped is None:
        column = file_columns(ctx, config.pixel_codec).get(item.modality)
        files: tuple[MediaFile, ...] = ()
        if column is not None:
            item, files = read_files(item)
        arguments = ctx.map_item(item.modality, _decode_checked(item, ctx, config))
        mapped = MappedItem(_stored(item.modality, arguments, ctx), {})
        if column is not None:
            mapped.stored[column] = stored_item(item, files, mapped.arguments.pop(column), ctx, config)
        _compress(mapped, item.modality, ctx, config, cache)
        cache.put(key, mapped)
    return mapped


def _decode_checked(item: Item, ctx: FamilyContext, config: BuildConfig) -> Decoded:
    decoded = _decode(item, ctx, config)
    _check_meta(decoded.meta, item)
    return decoded


def _decode(item: Item, ctx: FamilyContext, config: BuildConfig) -> Decoded:
    meta, source, exif = item.meta, item.sources[0], config.exif or ctx.exif
    rate = int(ctx.audio_preprocessor.get("sampling_rate", RATE))
    if meta.kind == "image":
        image = ctx.load_image(source, exif=exif, alpha=config.alpha)
        return Decoded(replace(meta, width=image.width, height=image.height), image=image)
    if meta.kind == "audio":
        waveform = decode_audio(source, rate, config.audio_decoder, of_video=meta.in_video)
        return Decoded(replace(meta, samples=len(waveform)), waveform=waveform)
    if meta.sizes:  # given as a list of frames
        alpha = "white" if config.alpha == "white" else "frames"
        images = [decode_image(frame, exif=exif, alpha=alpha) for frame in item.sources]
        return Decoded(replace(meta, sizes=tuple(image.size for image in images)), images=images)
    facts = VideoFacts(meta.frames, meta.fps, meta.width, meta.height, meta.reader)
    return Decoded(meta, frames=partial(read_frames, source, facts))  # which rejects a video of other facts


def _check_meta(actual: MediaMeta, item: Item) -> None:
    """Reject an item whose decoded facts are not those of its header: its token count would be wrong."""
    if actual == item.meta:
        return
    before, after = as_json(item.meta), as_json(actual)
    changed = {k: (before.get(k), after.get(k)) for k in {*before, *after} if before.get(k) != after.get(k)}
    facts = ", ".join(f"{name} {old} → {new}" for name, (old, new) in sorted(changed.items()))
    label = item.sources[0].label
    raise Reject(RejectCode.DECODE_MISMATCH, f"{label}: decoding differs from the header ({facts})")


def shard_schema(ctx: FamilyContext, config: BuildConfig, *, preferences: bool = False) -> pa.Schema:
    """The schema of a build's shards; `preferences`: whether any of its rows is a preference row."""
    return arrow_schema(
        codec_columns(ctx, config),
        family=ctx.name,
        modalities=ctx.modalities,
        weighted=parse_strategy(config.loss_strategy).weighted,
        mrope=ctx.mrope,
        preferences=preferences,
    )


def make_bin(rows: list[Bin], row_ids: list[int], *, preferences: bool = False) -> Bin:
    """Lay rows end to end, at least one.

    Args:
        rows: Each as a bin of its own.
        row_ids: Their numbers in rows.parquet.
        preferences: Whether the shard has the columns of preference rows.
    """
    lengths = [length for row in rows for length in np.diff(row.cu_seqlens).tolist()]
    positions = None
    if any(row.position_ids is not None for row in rows):
        positions = np.concatenate([_positions(row) for row in rows], axis=1)
    weighted = rows[0].loss_scale is not None
    return Bin(
        input_ids=np.concatenate([row.input_ids for row in rows]),
        labels=np.concatenate([row.labels for row in rows]),
        loss_scale=np.concatenate([row.loss_scale for row in rows]) if weighted else None,
        position_ids=positions,
        cu_seqlens=np.cumsum([0, *lengths], dtype=np.int32),
        row_ids=np.repeat(np.array(row_ids, np.int32), [len(row.row_ids) for row in rows]),
        row_items=np.concatenate([row.row_items for row in rows]),
        **(_preferences(rows) if preferences else {}),
        media={name: [array for row in rows for array in row.media[name]] for name in rows[0].media},
        files={name: [item for row in rows for item in row.files[name]] for name in rows[0].files},
    )


def _positions(row: Bin) -> NDArray[np.int32]:
    """The m-rope rows (3, l) of a row or a pair; the plain range of each sequence where it has no others."""
    if row.position_ids is not None:
        return row.position_ids
    plain = np.concatenate([np.arange(length, dtype=np.int32) for length in np.diff(row.cu_seqlens).tolist()])
    return np.broadcast_to(plain, (3, len(plain)))


def _preferences(rows: list[Bin]) -> dict[str, NDArray[np.int32]]:
    """The columns of preference rows for rows laid end to end; ordinary ones have no partner and no verdict."""
    parts: dict[str, list[NDArray[np.int32]]] = {name: [] for name in PREFERENCE_COLUMNS}
    pairs = 0
    for row in rows:
        count = len(row.row_ids)
        numbers = np.full(count, -1, np.int32) if row.pair_ids is None else row.pair_ids
        parts["pair_ids"].append(np.where(numbers >= 0, numbers + pairs, numbers).astype(np.int32))
        parts["chosen"].append(np.full(count, -1, np.int32) if row.chosen is None else row.chosen)
        parts["shared_media"].append(np.zeros(count, np.int32) if row.shared_media is None else row.shared_media)
        pairs += int(numbers.max(initial=-1)) + 1
    return {name: np.concatenate(values) for name, values in parts.items()}
