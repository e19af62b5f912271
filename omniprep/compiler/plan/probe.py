"""The media of a row: found, probed by their headers, counted; nothing is decoded that a header tells exactly."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from omniprep.config import BuildConfig
from omniprep.errors import Reject, RejectCode, UsageError
from omniprep.families.context import FamilyContext
from omniprep.families.errors import FamilyError
from omniprep.families.registry import Item, MediaMeta
from omniprep.media.audio import count_sound_of_video, probe_audio
from omniprep.media.fetch import MediaRoots
from omniprep.media.image import probe_image
from omniprep.media.source import Source
from omniprep.media.video import MAX_READ_BYTES, check_streams, open_video
from omniprep.modalities import MODALITIES
from omniprep.rows.normalize import Row

RATE = 16_000


@dataclass(slots=True)
class PlannedItem:
    """A media item: what it is, and where its bytes are (one source; a video given as frames has one for each)."""

    item: Item
    sources: list[Source]


@dataclass(slots=True)
class Found:
    """An item with its token count; `track` is the sound of a video, where that is taken too."""

    planned: PlannedItem
    track: PlannedItem | None = None


def find_media(row: Row, ctx: FamilyContext, config: BuildConfig, media_roots: MediaRoots) -> dict[str, list[Found]]:
    """The media of a row by modality, in the order of its columns.

    Raises:
        Reject: An item cannot be found, read or used, there are too many, or the row's own limits are no numbers.
    """
    options = {name: _row_option(name, value) for name, value in row.kwargs.items()}
    limits = item_limits(ctx, config.limit_mm_per_row)
    result: dict[str, list[Found]] = {}
    for modality in MODALITIES:
        named = row.media(modality)
        if named and modality not in ctx.modalities:
            raise Reject(RejectCode.UNSUPPORTED_MODALITY, f"family {ctx.name!r} takes no {modality}")
        most = limits.get(modality)
        if most is not None and len(named) > most:
            raise Reject(RejectCode.TOO_MANY_ITEMS, f"{len(named)} {modality} items, the limit is {most}")
        result[modality] = []
        for position, what in enumerate(named, 1):
            try:
                result[modality].append(_probe(what, modality, options, ctx, config, media_roots))
            except Reject as reject:
                raise Reject(reject.code, f"{modality} {position} of {len(named)}: {reject.message}") from reject
            except FamilyError as error:
                raise error.within(f"{modality} {position} of {len(named)}") from error
    if ctx.attribute("pads_clips"):
        _pad_clips(result, ctx)
    return result


_LEAST = {"fps": 1e-6, "video_start": 0.0, "video_end": 0.0}
"""Least values of a row's limits that are no counts of pixels or frames, which are 1 at least."""
_MOST = 2**53
"""Whole numbers beyond it have no exact float; no picture has as many pixels."""


def _row_option(name: str, value: Any) -> int | float:
    """A limit of the row's own (chat_template_kwargs).

    Raises:
        Reject: bad_option.
    """
    least = _LEAST.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= _MOST:
        raise Reject(
            RejectCode.BAD_OPTION,
            f"chat_template_kwargs: {name} must be a number of at least {least:g} (and 2^53 at most)",
        )
    return value


def _pad_clips(found: dict[str, list[Found]], ctx: FamilyContext) -> None:
    """Tell each clip of a row, a video's sound too, how long the longest is, and count it."""
    clips = [("audio", n, len(found["audio"]), entry.planned.item) for n, entry in enumerate(found["audio"], 1)]
    clips += [
        ("video", n, len(found["video"]), entry.track.item)
        for n, entry in enumerate(found["video"], 1)
        if entry.track is not None
    ]
    longest = max((item.meta.samples for *_, item in clips), default=0)
    for modality, position, of, item in clips:
        item.meta = replace(item.meta, padded_to=longest)
        try:
            item.tokens = ctx.count("audio", item.meta)
        except Reject as reject:
            raise Reject(reject.code, f"{modality} {position} of {of}: {reject.message}") from reject


@lru_cache(maxsize=32)
def item_limits(ctx: FamilyContext, given: tuple[str, ...]) -> dict[str, int | None]:
    """Most items of a row by modality (None: no limit): the lower of the family's limit and --limit-mm-per-row.

    Raises:
        UsageError: A limit that is not MODALITY=NUMBER, or of a modality that the family does not support.
    """
    limits: dict[str, int | None] = dict(ctx.attribute("limits"))
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


def _probe(
    what: Any, modality: str, options: dict[str, Any], ctx: FamilyContext, config: BuildConfig, media_roots: MediaRoots
) -> Found:
    if modality == "video" and isinstance(what, list | tuple):
        return _probe_frames(list(what), options, ctx, config, media_roots)
    source = media_roots.locate(what)
    rate = int(ctx.preprocessor.get("sampling_rate", RATE))
    track = None
    if modality == "image":
        width, height = probe_image(source, exif=config.exif)
        meta = MediaMeta(kind="image", width=width, height=height, options=options)
    elif modality == "audio":
        meta = MediaMeta(kind="audio", samples=probe_audio(source, rate, config.audio_decoder), options=options)
    else:
        sound = check_streams(source) if config.use_audio_in_video else False
        reader = open_video(source)
        meta = MediaMeta(
            kind="video",
            width=reader.width,
            height=reader.height,
            frames=reader.frames,
            fps=reader.fps,
            options=options,
        )
        if config.use_audio_in_video and sound:
            samples = count_sound_of_video(source, rate, config.audio_decoder)
            track = _planned(
                "audio", MediaMeta(kind="audio", samples=samples, in_video=True, options=options), [source], ctx
            )
        elif config.use_audio_in_video and config.silent_video == "reject":
            raise Reject(
                RejectCode.NO_AUDIO_TRACK,
                f"{source.label}: the video has no sound; --silent-video skip-audio takes it as pictures alone",
            )
    return Found(_planned(modality, meta, [source], ctx), track)


def _probe_frames(
    frames: list[Any], options: dict[str, Any], ctx: FamilyContext, config: BuildConfig, media_roots: MediaRoots
) -> Found:
    if config.use_audio_in_video and config.silent_video == "reject":
        raise Reject(
            RejectCode.NO_AUDIO_TRACK,
            "a list of frames has no sound; --silent-video skip-audio takes it as pictures alone",
        )
    if not frames:
        raise Reject(RejectCode.VIDEO_TOO_SHORT, "the list of frames is empty")
    sources = [media_roots.locate(frame) for frame in frames]
    sizes = tuple(probe_image(source, exif=config.exif) for source in sources)
    width, height = sizes[0]
    total = 3 * sum(w * h for w, h in sizes)
    if total > MAX_READ_BYTES:  # the encoder holds all of them until they are resized
        raise Reject(
            RejectCode.IMAGE_TOO_LARGE,
            f"{len(sizes)} frames are {total >> 20:,} MiB of pixels, the limit is {MAX_READ_BYTES >> 20:,}",
        )
    meta = MediaMeta(
        kind="video", width=width, height=height, frames=len(sizes), fps=ctx.opt.fps, sizes=sizes, options=options
    )
    return Found(_planned("video", meta, sources, ctx))


def _planned(modality: str, meta: MediaMeta, sources: list[Source], ctx: FamilyContext) -> PlannedItem:
    later = modality == "audio" and ctx.attribute("pads_clips")  # counted when the whole row is known
    return PlannedItem(Item(modality, meta, 0 if later else ctx.count(modality, meta)), sources)
