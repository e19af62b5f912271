"""Videos: number of frames, frame rate and size; frames at chosen indices.

Read by decord where it is installed, as in the reference, else by PyAV. Their pixels differ slightly, so the manifest
names the one used. Both get the open file, never its name (omniprep/media/source.py, omniprep/media/container.py).
"""

import importlib.util
import math
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.media.container import check_container, open_container
from omniprep.media.guard import library_faults
from omniprep.media.source import Source, device_name

Frames = NDArray[np.uint8]
MAX_FRAMES = 10_000_000
MAX_SECONDS = 24 * 3600
MAX_FRAME_PIXELS = 1 << 26
"""Largest frame: twice 8K (33 million). A decoder holds up to 17 frames at once, whatever the file's size."""
MAX_READ_BYTES = 8 << 30
"""Most bytes of the frames of one video, before they are resized; 768 frames of 1080p have 4.5 GiB."""
# libavutil's AVERROR_DECODER_NOT_FOUND, which decord puts into its message as a number.
_NO_DECODER = "-1128613112"


class VideoReader(Protocol):
    """An open video; sizes are in pixels, `frames` is their number."""

    frames: int
    fps: float
    width: int
    height: int

    def read(self, indices: list[int]) -> Frames:
        """Frames (T, H, W, 3), RGB, at the indices."""
        ...


def backend() -> str:
    """The library that reads videos on this machine: "decord" or "pyav"."""
    return "decord" if importlib.util.find_spec("decord") is not None else "pyav"


def open_video(source: Source, size: tuple[int, int] | None = None) -> VideoReader:
    """Open a video; rejects bad_media, no_video_stream, media_not_found and decode_error.

    With a planned `size` no frame is decoded to learn it, but `read` rejects frames of another one.
    """
    if size is None:
        check_streams(source)
    reader: VideoReader = _Decord(source, size) if backend() == "decord" else _PyAV(source)
    if reader.frames <= 0:
        raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: the video has no frames")
    if not math.isfinite(reader.fps) or reader.fps <= 0:
        raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: the video has no frame rate")
    return reader


def check_streams(source: Source) -> bool:
    """Whether a video has sound; rejects one without pictures, or with too many, before a decoder opens it."""
    with source.open() as file, open_container(file, source, "a video") as container:
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
                _check_frame(codec.width, codec.height, source)
            # MJPEG is the only codec here without error concealment: the missing part of a frame would show whatever
            # was in the memory, different in each build.
            if codec and codec.name == "mjpeg" and any(packet.is_corrupt for packet in container.demux(stream)):
                raise Reject(RejectCode.DECODE_ERROR, f"{source.label}: a frame is cut short")
            return bool(container.streams.audio)


def _check_frame(width: int, height: int, source: Source) -> None:
    if width * height > MAX_FRAME_PIXELS:
        raise Reject(
            RejectCode.IMAGE_TOO_LARGE,
            f"{source.label}: frames of {width}x{height} pixels, more than {MAX_FRAME_PIXELS:,}",
        )


def _check_read(frames: int, width: int, height: int, source: Source) -> None:
    """Reject frames that are too large together, before the reader allocates them."""
    _check_frame(width, height, source)
    if frames * width * height * 3 > MAX_READ_BYTES:
        raise Reject(
            RejectCode.IMAGE_TOO_LARGE,
            f"{source.label}: {frames} frames of {width}x{height} pixels are {frames * width * height * 3 >> 20:,} "
            f"MiB, the limit is {MAX_READ_BYTES >> 20:,}; use fewer frames (--fps-max-frames) or a smaller video",
        )


def _check_size(reader: VideoReader, width: int, height: int, source: Source) -> None:
    if (width, height) != (reader.width, reader.height):
        change = f"width, height {reader.width}, {reader.height} → {width}, {height}"
        raise Reject(RejectCode.DECODE_MISMATCH, f"{source.label}: decoding differs from the header ({change})")


class _Decord:
    """A video opened by decord."""

    def __init__(self, source: Source, size: tuple[int, int] | None = None) -> None:
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        self._source = source
        with source.open() as file:
            if size is not None:
                check_container(file, source, "a video")  # again: the file may have been replaced since the plan
            file.seek(0)
            # /dev/fd/N has no suffix: decord cannot restrict FFmpeg's formats, which would take `v%d.png` for a pattern
            # of file names. A file in memory has no such name; decord copies it.
            name: Any = device_name(file) or file
            with _decord_faults(source):
                # One thread, because a worker has one core.
                self._reader: Any = decord.VideoReader(name, num_threads=1)
                self.frames, self.fps = len(self._reader), float(self._reader.get_avg_fps())
                first: tuple[int, int] = self._reader[0].shape[1::-1] if size is None and self.frames else (0, 0)
                self.width, self.height = size or first

    def read(self, indices: list[int]) -> Frames:
        _check_read(len(indices), self.width, self.height, self._source)
        with _decord_faults(self._source):
            frames: Frames = self._reader.get_batch(indices).asnumpy()
        height, width = frames.shape[1:3]
        _check_size(self, width, height, self._source)
        return frames


@contextmanager
def _decord_faults(source: Source) -> Iterator[None]:
    """As `library_faults`; where decord has no decoder for the pictures, the reject says what to do."""
    try:
        with library_faults(source.label, RejectCode.DECODE_ERROR):
            yield
    except Reject as reject:
        if _NO_DECODER not in reject.message:
            raise
        with source.open() as file, open_container(file, source, "a video") as container:
            codec = container.streams.video[0].codec_context
            name = "its codec" if codec is None else codec.codec.canonical_name.upper()  # such as AV1
        raise Reject(
            reject.code,
            f"{source.label}: decord, which reads the videos, has no decoder for {name}; convert it to H.264: "
            "ffmpeg -i OLD -c:v libx264 NEW.mp4",
        ) from reject


class _PyAV:
    """A video opened by PyAV, which decodes all frames to count them: headers of some containers do not say."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.width = self.height = self.frames = 0
        self.fps = 0.0
        with source.open() as file, closing(self._decode(file)) as frames:
            for frame, stream in frames:
                if not self.frames:
                    self.width, self.height = frame.width, frame.height
                    self.fps = float(stream.average_rate or stream.guessed_rate or 0)
                self.frames += 1

    def _decode(self, file: BinaryIO) -> Generator[tuple[Any, Any], None, None]:
        with open_container(file, self._source, "a video") as container:
            stream: Any = container.streams.video[0]
            with library_faults(self._source.label, RejectCode.DECODE_ERROR):
                stream.thread_type = "NONE"
                for frame in container.decode(stream):
                    _check_frame(frame.width, frame.height, self._source)
                    yield frame, stream

    def read(self, indices: list[int]) -> Frames:
        _check_read(len(indices), self.width, self.height, self._source)
        wanted, last = set(indices), max(indices)
        pictures: dict[int, Frames] = {}
        with self._source.open() as file, closing(self._decode(file)) as frames:
            for number, (frame, _) in enumerate(frames):
                if number in wanted:
                    _check_size(self, frame.width, frame.height, self._source)
                    with library_faults(self._source.label, RejectCode.DECODE_ERROR):
                        pictures[number] = frame.to_ndarray(format="rgb24")
                if number == last:
                    break
        if missing := wanted - pictures.keys():
            raise Reject(RejectCode.DECODE_ERROR, f"{self._source.label}: frame {min(missing)} cannot be decoded")
        return np.stack([pictures[i] for i in indices])
