"""Planned row → arrays: media decoded and mapped, placeholders expanded, labels and m-rope ids made.

What was decoded is counted again and must give the tokens that the header promised (decode_mismatch otherwise), so a
plan is never silently wrong.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep.compiler.plan.probe import RATE, PlannedItem
from omniprep.compiler.plan.rows import PlannedRow
from omniprep.config import BuildConfig
from omniprep.errors import Reject, RejectCode
from omniprep.families.context import FamilyContext
from omniprep.families.errors import FamilyError, TokenCountMismatchError
from omniprep.families.registry import Decoded, MediaMeta, Sample, as_json
from omniprep.media.audio import decode_audio, decode_track
from omniprep.media.image import decode_image
from omniprep.media.video import open_video
from omniprep.shards.schema import Bin, Column
from omniprep.template.expand import expand

Array = NDArray[Any]
IGNORE = -100


@dataclass(slots=True)
class EncodedRow:
    """One row ready to be laid into a bin; `media` holds one array an item for each column."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    weights: NDArray[np.float32]
    position_ids: NDArray[np.int32] | None
    items: list[int]
    media: dict[str, list[Array]]


class MediaCache:
    """Mapped items seen lately, so that an image used by several rows of a shard is decoded once.

    Args:
        limit: Bytes kept.
    """

    def __init__(self, limit: int = 256 << 20) -> None:
        """Begin empty."""
        self._limit, self._size = limit, 0
        self._entries: OrderedDict[Any, dict[str, Array]] = OrderedDict()

    def get(self, key: Any) -> dict[str, Array] | None:
        """The mapped item of a key, or None."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: Any, entry: dict[str, Array]) -> None:
        """Keep a mapped item, dropping those unused for longest."""
        size = sum(a.nbytes for a in entry.values())
        if size > self._limit // 4:
            return
        self._entries[key] = entry
        self._size += size
        while self._size > self._limit:
            _, old = self._entries.popitem(last=False)
            self._size -= sum(a.nbytes for a in old.values())


def encode_planned(row: PlannedRow, ctx: FamilyContext, config: BuildConfig, cache: MediaCache) -> EncodedRow:
    """Encode one row.

    Raises:
        Reject: The media cannot be decoded, or differ from what their headers said.
    """
    media: dict[str, list[Array]] = {column.name: [] for column in ctx.columns}
    for modality in ctx.modalities:
        planned = row.items[modality]
        for position, item in enumerate(planned, 1):
            try:
                mapped = _mapped(item, ctx, config, cache)
            except Reject as reject:
                raise Reject(reject.code, f"{modality} {position} of {len(planned)}: {reject.message}") from reject
            except FamilyError as error:
                raise error.within(f"{modality} {position} of {len(planned)}") from error
            for column in ctx.columns:
                if column.modality == modality:
                    array = mapped[column.name]
                    media[column.name].append(array[0] if column.kind == "items" else array)
    with_media = any(row.items.values())
    sample = Sample(row.ids, {m: [p.item for p in row.items[m]] for m in row.items})
    ids, weights, is_media = expand(row.ids, row.weights(), ctx.expand(sample) if with_media else [])
    if len(ids) != row.length:
        raise TokenCountMismatchError(
            f"family {ctx.name!r}: the counters promised {row.length} tokens for a row, its expansion gives {len(ids)}"
        )
    labels = np.where((weights > 0) & ~is_media, ids, np.int32(IGNORE)).astype(np.int32, copy=False)
    positions = ctx.positions(Sample(ids, sample.items)) if with_media else None
    return EncodedRow(ids, labels, weights, positions, [len(row.items[m]) for m in ctx.modalities], media)


def _mapped(planned: PlannedItem, ctx: FamilyContext, config: BuildConfig, cache: MediaCache) -> dict[str, Array]:
    meta = planned.item.meta
    options = repr(sorted(meta.options.items()))
    key = (meta.kind, tuple(s.key for s in planned.sources), options, meta.in_video, meta.padded_to)
    mapped = cache.get(key)
    if mapped is None:
        decoded = _decode(planned, ctx, config)
        _check_meta(decoded.meta, planned, ctx)
        mapped = ctx.map_item(planned.item.modality, decoded)
        _check_units(mapped, planned, ctx)
        cache.put(key, mapped)
    return mapped


def _decode(planned: PlannedItem, ctx: FamilyContext, config: BuildConfig) -> Decoded:
    meta, source = planned.item.meta, planned.sources[0]
    rate = int(ctx.preprocessor.get("sampling_rate", RATE))
    if meta.kind == "image":
        image = decode_image(source, exif=config.exif, alpha=config.alpha)
        return Decoded(replace(meta, width=image.width, height=image.height), image=image)
    if meta.kind == "audio":
        decode = decode_track if meta.in_video else decode_audio
        wave = decode(source, rate, config.audio_decoder)
        return Decoded(replace(meta, samples=len(wave)), waveform=wave)
    if meta.sizes:
        alpha = "white" if config.alpha == "white" else "frames"
        images = [decode_image(s, exif=config.exif, alpha=alpha) for s in planned.sources]
        return Decoded(replace(meta, sizes=tuple(i.size for i in images)), images=images)
    reader = open_video(source, (meta.width, meta.height))
    facts = replace(meta, width=reader.width, height=reader.height, frames=reader.frames, fps=reader.fps)
    return Decoded(facts, frames=reader.read)


def _check_meta(actual: MediaMeta, planned: PlannedItem, ctx: FamilyContext) -> None:
    if actual == planned.item.meta:
        return
    label, before, after = planned.sources[0].label, as_json(planned.item.meta), as_json(actual)
    changed = {k: (before.get(k), after.get(k)) for k in {*before, *after} if before.get(k) != after.get(k)}
    facts = ", ".join(f"{k} {old} → {new}" for k, (old, new) in sorted(changed.items()))
    raise Reject(RejectCode.DECODE_MISMATCH, f"{label}: decoding differs from the header ({facts})")


def _check_units(mapped: dict[str, Array], planned: PlannedItem, ctx: FamilyContext) -> None:
    """Every declared column of the modality is there."""
    expected = {c.name for c in ctx.columns if c.modality == planned.item.modality}
    if missing := expected - mapped.keys():
        raise TokenCountMismatchError(
            f"family {ctx.name!r}: the {planned.item.modality} mapper gives no {sorted(missing)}"
        )


def make_bin(rows: list[EncodedRow], row_ids: list[int], columns: tuple[Column, ...], *, weighted: bool) -> Bin:
    """Lay rows end to end.

    Args:
        rows: At least one.
        row_ids: Number of each row in rows.parquet.
        columns: The family's columns.
        weighted: Whether loss weights are stored.
    """
    lengths = [len(row.input_ids) for row in rows]
    positions = None
    if any(row.position_ids is not None for row in rows):
        plain = (np.broadcast_to(np.arange(n, dtype=np.int32), (3, n)) for n in lengths)
        positions = np.concatenate(
            [p if row.position_ids is None else row.position_ids for row, p in zip(rows, plain, strict=True)], axis=1
        )
    return Bin(
        input_ids=np.concatenate([row.input_ids for row in rows]),
        labels=np.concatenate([row.labels for row in rows]),
        loss_scale=np.concatenate([row.weights for row in rows]) if weighted else None,
        position_ids=positions,
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        row_ids=np.array(row_ids, np.int32),
        row_items=np.array([row.items for row in rows], np.int32).reshape(len(rows), -1),
        media={column.name: [array for row in rows for array in row.media[column.name]] for column in columns},
    )
