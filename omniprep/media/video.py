"""Videos: number of frames, frame rate and size; frames at chosen indices, resized as they are decoded.

What a video becomes is what decord 0.6 makes of it, the reference's reader. PyAV decodes it where it is certain that
the frames are the same, in half the time: `probe_video` compares both on each file (docs/fidelity.md says what, and why
that suffices). decord decodes all others. PyAV alone decodes what decord has no decoder for, such as AV1, and every
video on machines without decord; the manifest counts those.
"""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.media.container import open_container
from omniprep.media.conversion import Colors, Converter, Turner, unequal
from omniprep.media.decord_reader import DecordReader, NoDecoderError
from omniprep.media.frames import MAX_FRAMES, MAX_SECONDS, UnprovenError, VideoStream, check_frame, open_stream
from omniprep.media.guard import library_faults
from omniprep.media.packets import has_times
from omniprep.media.resample import FrameResizer
from omniprep.media.source import Source

Frames = NDArray[np.uint8]
MAX_READ_BYTES = 8 << 30
"""Most bytes of the frames of one video, after they are resized; 768 frames of 1080p have 4.5 GiB."""
DECORD, PROVEN, ALONE = "decord", "pyav", "pyav alone"
"""Who decodes a video: decord; PyAV in its place, with the same frames; PyAV, because decord cannot."""
_NO_TIMES = -1e12
"""Seconds. decord's times are far below where a container has none."""


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a plan keeps of a video; sizes are in pixels, `frames` is their number as decord counts them."""

    frames: int
    fps: float
    width: int
    height: int
    reader: str
    """`DECORD`, `PROVEN` or `ALONE`."""
    reason: str = ""
    """Why PyAV does not decode in decord's place; not part of a plan."""


def backend() -> str:
    """The library that says what videos are on this machine: "decord" or "pyav"."""
    return "decord" if importlib.util.find_spec("decord") is not None else "pyav"


def probe_video(source: Source) -> VideoFacts:
    """The facts of a video; rejects bad_media, no_video_stream, media_not_found and decode_error."""
    with source.fetched() as local, local.open() as file, open_container(file, local, "a video") as container:
        _check_streams(container, local)
        facts = _probe(container, local)
    if facts.frames <= 0:
        raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: the video has no frames")
    if not math.isfinite(facts.fps) or facts.fps <= 0:
        raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: the video has no frame rate")
    return facts


def has_sound(source: Source) -> bool:
    """Whether a video has sound; rejects one without pictures, or with too many."""
    with source.open() as file, open_container(file, source, "a video") as container:
        _check_streams(container, source)
        return bool(container.streams.audio)


def read_frames(
    source: Source, facts: VideoFacts, indices: Sequence[int], size: tuple[int, int] | None = None
) -> Frames:
    """Frames (T, H, W, 3), RGB, at the indices.

    Each frame is resized to `size` (width, height) when it is decoded, as by `resize`, so that only resized ones are
    held. Rejects decode_mismatch where the file is not the one of the facts.
    """
    if not indices:
        raise ValueError("no frames are asked for")
    height, width = size[::-1] if size else (facts.height, facts.width)
    check_frame(facts.width, facts.height, source.label)
    total = len(indices) * width * height * 3
    if total > MAX_READ_BYTES:
        raise Reject(
            RejectCode.IMAGE_TOO_LARGE,
            f"{source.label}: {len(indices)} frames of {width}x{height} pixels are {total >> 20:,} MiB, the limit is "
            f"{MAX_READ_BYTES >> 20:,}; use fewer frames (--fps-max-frames) or a smaller video",
        )
    resizer = FrameResizer((facts.width, facts.height), (width, height), len(indices))
    with source.fetched() as local:
        if facts.reader == DECORD or (facts.reader == PROVEN and not _read_proven(local, facts, indices, resizer)):
            _read_by_decord(local, facts, indices, resizer)
        elif facts.reader == ALONE:
            with open_stream(local) as stream:
                _put_frames(stream, facts, local, indices, resizer)
    return resizer.frames()


def _check_streams(container: Any, source: Source) -> None:
    """Reject a video without pictures, or with too many, before a decoder opens it."""
    if not container.streams.video:
        raise Reject(RejectCode.NO_VIDEO_STREAM, f"{source.label}: there is no video stream in the file")
    with library_faults(source.label, RejectCode.BAD_MEDIA):
        stream = container.streams.video[0]
        if stream.frames > MAX_FRAMES or (container.duration or 0) > MAX_SECONDS * 1_000_000:
            raise Reject(
                RejectCode.VIDEO_TOO_LONG, f"{source.label}: longer than {MAX_SECONDS} s or {MAX_FRAMES} frames"
            )
        codec = stream.codec_context  # None where PyAV has no decoder
        if codec:
            check_frame(codec.width, codec.height, source.label)


# ---- who decodes


def _probe(container: Any, source: Source) -> VideoFacts:
    """The facts as decord says, and whether PyAV may decode in its place."""
    if backend() == "pyav":
        return _probe_alone(VideoStream(container, source))
    codec = container.streams.video[0].codec_context
    if codec is not None and codec.name == "mjpeg":
        VideoStream(container, source).table  # noqa: B018 - rejects a frame that is cut short
    try:
        reader = DecordReader(source, checked=True)
        pixels, reason = _first_by_pyav(container, source, reader)
        # Last, since from here on decord's thread decodes ahead until the reader is gone: 5 ms of 15 for a small video.
        first = reader.first()
    except NoDecoderError:
        return _probe_alone(VideoStream(container, source))
    if not reason and not np.array_equal(first, pixels):
        reason = "another first frame than decord's"
    if not reason and len(keys := reader.keys()) > 1 and not has_times(container.format.name):
        reason = "" if np.array_equal(reader.at(keys[1]), first) else "seeks that do not end at the start of the file"
    height, width = first.shape[:2]
    return VideoFacts(reader.frames, reader.fps, width, height, DECORD if reason else PROVEN, reason)


def _first_by_pyav(container: Any, source: Source, reader: DecordReader) -> tuple[Frames, str]:
    """Frame 0, or an empty one and what keeps PyAV from decoding in decord's place."""
    nothing = np.empty((0, 0, 3), np.uint8)
    try:
        stream = VideoStream(container, source)
        if reason := stream.unproven() or _other_packets(stream, reader):
            return nothing, reason
        frame = Turner().upright(next(frame for _, frame in stream.frames([0], proven=True)))
        if reason := unequal(Colors.of(frame)):
            return nothing, reason
        return Converter().rgb(frame), ""
    except UnprovenError as error:
        return nothing, str(error)
    except Reject as reject:  # decord reads what PyAV cannot
        return nothing, reject.message.removeprefix(f"{source.label}: ")


def _other_packets(stream: VideoStream, reader: DecordReader) -> str:
    """How the packets of PyAV differ from those that decord tells; "" where they do not."""
    table = stream.table
    if len(table) != reader.frames or table.keys != reader.keys():
        return "other packets than decord's"
    starts = reader.starts()
    same = np.array_equal(starts, _seconds(stream)) if table.timed else (starts < _NO_TIMES).all()
    return "" if same else "other times than decord's"


def _seconds(stream: VideoStream) -> NDArray[np.float32]:
    """Presentation times as decord computes them."""
    table, base = stream.table, stream.stream.time_base
    start, factor = stream.stream.start_time or 0, base.numerator / base.denominator
    return np.array([((table.presentation[number] or 0) - start) * factor for number in table.order], np.float32)


def _probe_alone(stream: VideoStream) -> VideoFacts:
    """The facts by PyAV: as decord would say, frames are the packets of the stream."""
    for _, first in stream.frames([0], proven=False) if len(stream.table) else ():
        frame = Turner().upright(first)
        return VideoFacts(len(stream.table), stream.fps, frame.width, frame.height, ALONE, stream.unproven())
    return VideoFacts(0, 0.0, 0, 0, ALONE)


# ---- reading


def _read_proven(source: Source, facts: VideoFacts, indices: Sequence[int], resizer: FrameResizer) -> bool:
    """Read by PyAV; False where a frame is not certain to be decord's, such as one behind a change of the size."""
    try:
        with open_stream(source) as stream:
            _put_frames(stream, facts, source, indices, resizer)
    except UnprovenError:
        return False
    except Reject as reject:
        if reject.code != RejectCode.DECODE_ERROR:
            raise
        return False
    return True


def _put_frames(
    stream: VideoStream, facts: VideoFacts, source: Source, indices: Sequence[int], resizer: FrameResizer
) -> None:
    proven = facts.reader == PROVEN
    if len(stream.table) != facts.frames:
        raise _changed(source, f"frames {facts.frames} → {len(stream.table)}")
    turner, converter, colors = Turner(), Converter(), None
    for places, decoded in stream.frames(indices, proven):
        with library_faults(source.label, RejectCode.DECODE_ERROR):
            frame = turner.upright(decoded)
        if (frame.width, frame.height) != (facts.width, facts.height):
            if proven:
                raise UnprovenError("frames of several sizes")
            raise _changed_size(source, facts, frame.width, frame.height)
        if proven and (now := Colors.of(frame)) != colors:
            reason = unequal(now) if colors is None else "colors that change"
            if reason:
                raise UnprovenError(reason)
            colors = now
        with library_faults(source.label, RejectCode.DECODE_ERROR):
            pixels = converter.rgb(frame)
        resizer.put(places, pixels)


def _read_by_decord(source: Source, facts: VideoFacts, indices: Sequence[int], resizer: FrameResizer) -> None:
    try:
        reader = DecordReader(source, checked=False)  # the file may have been replaced since the plan
        if (reader.frames, reader.fps) != (facts.frames, facts.fps):
            raise _changed(source, f"frames, fps {facts.frames}, {facts.fps} → {reader.frames}, {reader.fps}")
        for batch, frames in reader.batches(indices, facts.width * facts.height * 3):
            height, width = frames.shape[1:3]
            if (width, height) != (facts.width, facts.height):
                raise _changed_size(source, facts, width, height)
            for places, frame in zip(batch, frames, strict=True):
                resizer.put(places, frame)
    except NoDecoderError as error:
        raise _changed(source, "decord has no decoder for it now") from error


def _changed(source: Source, change: str) -> Reject:
    return Reject(RejectCode.DECODE_MISMATCH, f"{source.label}: decoding differs from the header ({change})")


def _changed_size(source: Source, facts: VideoFacts, width: int, height: int) -> Reject:
    return _changed(source, f"width, height {facts.width}, {facts.height} → {width}, {height}")
