"""The media of a row: found, probed by their headers, counted; nothing is decoded that a header tells exactly."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from omniprep.compiler.costs import image_bits, video_bits
from omniprep.config import BuildConfig
from omniprep.errors import Reject, RejectCode, UsageError
from omniprep.families.context import FamilyContext
from omniprep.families.errors import FamilyError
from omniprep.families.kinds import Item, MediaMeta
from omniprep.media.audio import probe_audio
from omniprep.media.fetch import MediaRoots
from omniprep.media.image import read_header
from omniprep.media.remote import Place
from omniprep.media.source import Source
from omniprep.media.video import MAX_READ_BYTES, has_sound, probe_video
from omniprep.modalities import MODALITIES
from omniprep.rows.normalize import Row

RATE = 16_000


Probed = dict[str, list[tuple[Item, Item | None]]]
"""The media of a row by modality, in order: each item, and the sound of a video where that is taken."""


@dataclass(frozen=True, slots=True)
class _Setting:
    """What every item of a row is probed with; `options` are the row's own limits."""

    ctx: FamilyContext
    config: BuildConfig
    media_roots: MediaRoots
    options: dict[str, int | float]

    def item(self, sources: list[Source], meta: MediaMeta) -> Item:
        """An item of one modality, counted where its own facts suffice."""
        counted_later = self.ctx.by_row or (meta.kind == "audio" and self.ctx.pads_clips)  # by find_media's end
        return Item(meta.kind, meta, 0 if counted_later else self.ctx.count(meta.kind, meta), sources=sources)


def places_of(media_roots: MediaRoots, row: Row | Reject) -> list[Place]:
    """The media of a row that lie in a store, as far as that is known before they are looked for."""
    if isinstance(row, Reject):
        return []
    return [place for media in row.media.values() for medium in media for place in media_roots.places(medium)]


def find_media(row: Row, ctx: FamilyContext, config: BuildConfig, media_roots: MediaRoots) -> Probed:
    """Locate, probe and count the media of a row; rejects an item, or a limit of the row, that cannot be used."""
    options = {name: _row_option(name, value) for name, value in row.kwargs.items()}
    setting = _Setting(ctx, config, media_roots, options)
    limits = item_limits(ctx, config.limit_mm_per_row)
    probed: Probed = {}
    for modality in MODALITIES:
        media = row.media[modality]
        if media and modality not in ctx.modalities:
            raise Reject(RejectCode.UNSUPPORTED_MODALITY, f"family {ctx.name!r} takes no {modality}")
        most = limits.get(modality)
        if most is not None and len(media) > most:
            raise Reject(RejectCode.TOO_MANY_ITEMS, f"{len(media)} {modality} items, the limit is {most}")
        probed[modality] = []
        for position, medium in enumerate(media, 1):
            try:
                probed[modality].append(_probe(medium, modality, setting))
            except Reject as reject:
                raise Reject(reject.code, f"{modality} {position} of {len(media)}: {reject.message}") from reject
            except FamilyError as error:
                raise error.within(f"{modality} {position} of {len(media)}") from error
    if ctx.pads_clips:
        _pad_clips(probed, ctx)
    if ctx.by_row:
        _count_row(probed, ctx)
    return probed


def _count_row(probed: Probed, ctx: FamilyContext) -> None:
    """Count all items of a row together, each sound of a video after the audio items."""
    items = {modality: [item for item, _ in entries] for modality, entries in probed.items()}
    items["audio"] += [sound for entries in probed.values() for _, sound in entries if sound is not None]
    present = {modality: row_items for modality, row_items in items.items() if row_items}
    counts = ctx.row_counts({modality: [item.meta for item in row_items] for modality, row_items in present.items()})
    for modality, row_items in present.items():
        for item, tokens in zip(row_items, counts[modality], strict=True):
            item.tokens = tokens


_LEAST = {"fps": 1e-6, "video_start": 0.0, "video_end": 0.0}
"""Least values of a row's limits that are no counts of pixels or frames, which are 1 at least."""
_MOST = 2**53
"""Whole numbers beyond it have no exact float; no picture has as many pixels."""


def _row_option(name: str, value: Any) -> int | float:
    """A limit of the row's own (chat_template_kwargs), or the reject bad_option."""
    least = _LEAST.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= _MOST:
        raise Reject(
            RejectCode.BAD_OPTION,
            f"chat_template_kwargs: {name} must be a number of at least {least:g} (and 2^53 at most)",
        )
    return value


def _pad_clips(probed: Probed, ctx: FamilyContext) -> None:
    """Record in every clip of a row, the sound of a video too, how long the longest is; then count its tokens."""
    clips = []
    for modality in ("audio", "video"):
        for position, (item, sound) in enumerate(probed[modality], 1):
            clip = item if modality == "audio" else sound
            if clip is not None:
                clips.append((f"{modality} {position} of {len(probed[modality])}", clip))
    longest = max((clip.meta.samples for _, clip in clips), default=0)
    for name, clip in clips:
        clip.meta = replace(clip.meta, padded_to=longest)
        if ctx.by_row:
            continue
        try:
            clip.tokens = ctx.count("audio", clip.meta)
        except Reject as reject:
            raise Reject(reject.code, f"{name}: {reject.message}") from reject


@lru_cache(maxsize=32)
def item_limits(ctx: FamilyContext, given: tuple[str, ...]) -> dict[str, int | None]:
    """Most items of a row by modality (None: no limit): the lower of the family's and --limit-mm-per-row."""
    limits: dict[str, int | None] = dict(ctx.limits)
    for text in given:
        modality, _, number = text.partition("=")
        if modality not in MODALITIES or not number.isdigit():
            raise UsageError(f"--limit-mm-per-row {text!r}: write it as image=8; modalities: {', '.join(MODALITIES)}")
        if modality not in limits:
            raise UsageError(
                f"--limit-mm-per-row {text!r}: family {ctx.name!r} takes no {modality}; it takes {', '.join(limits)}"
            )
        most = limits[modality]
        limits[modality] = int(number) if most is None else min(most, int(number))
    return limits


def _probe(medium: Any, modality: str, setting: _Setting) -> tuple[Item, Item | None]:
    """An item with its token count, and the sound of a video where that is taken too."""
    if modality == "video" and isinstance(medium, list | tuple):
        return _probe_frames(list(medium), setting), None
    config, options = setting.config, setting.options
    source = setting.media_roots.locate(medium)
    rate = int(setting.ctx.audio_preprocessor.get("sampling_rate", RATE))
    if modality == "image":
        header = read_header(source, exif=config.exif or setting.ctx.exif)
        meta = MediaMeta(kind="image", width=header.width, height=header.height, options=options)
        item = setting.item([source], meta)
        item.lossless_bits = image_bits(header)
        return item, None
    if modality == "audio":
        samples = probe_audio(source, rate, config.audio_decoder)
        return setting.item([source], MediaMeta(kind="audio", samples=samples, options=options)), None
    with source.fetched() as local:
        with_sound = config.use_audio_in_video and has_sound(local)
        video = probe_video(local)
        samples = probe_audio(local, rate, config.audio_decoder, of_video=True) if with_sound else 0
    meta = MediaMeta(
        kind="video",
        width=video.width,
        height=video.height,
        frames=video.frames,
        fps=video.fps,
        reader=video.reader,
        options=options,
    )
    sound = None
    if with_sound:
        sound = setting.item([source], MediaMeta(kind="audio", samples=samples, in_video=True, options=options))
    elif config.use_audio_in_video and config.silent_video == "reject":
        raise Reject(
            RejectCode.NO_AUDIO_TRACK,
            f"{source.label}: the video has no sound; --silent-video skip-audio takes it as pictures alone",
        )
    item = setting.item([source], meta)
    item.lossless_bits = video_bits(meta, None if source.uri else source.size())  # a store would be asked once more
    return item, sound


def _probe_frames(frames: list[Any], setting: _Setting) -> Item:
    """A video given as a list of images."""
    config = setting.config
    if config.use_audio_in_video and config.silent_video == "reject":
        raise Reject(
            RejectCode.NO_AUDIO_TRACK,
            "a list of frames has no sound; --silent-video skip-audio takes it as pictures alone",
        )
    if not frames:
        raise Reject(RejectCode.VIDEO_TOO_SHORT, "the list of frames is empty")
    sources = [setting.media_roots.locate(frame) for frame in frames]
    headers = [read_header(source, exif=config.exif or setting.ctx.exif) for source in sources]
    sizes = tuple((header.width, header.height) for header in headers)
    total = 3 * sum(width * height for width, height in sizes)
    if total > MAX_READ_BYTES:  # the encoder holds all of them until they are resized
        raise Reject(
            RejectCode.IMAGE_TOO_LARGE,
            f"{len(sizes)} frames are {total >> 20:,} MiB of pixels, the limit is {MAX_READ_BYTES >> 20:,}",
        )
    width, height = sizes[0]
    fps = getattr(setting.ctx.opt, "fps", None) or 0.0  # families without the option take frames as they are
    meta = MediaMeta(
        kind="video", width=width, height=height, frames=len(sizes), fps=fps, sizes=sizes, options=setting.options
    )
    item = setting.item(sources, meta)
    item.lossless_bits = sum(map(image_bits, headers)) / len(headers)
    return item
