"""Videos: frame count and rate from the container, frames at chosen indices.

decord where it is installed (the reader the reference uses), else PyAV; readers give slightly different pixels, so the
manifest names the one used. Only asked-for frames are returned; a reader is opened once for facts and frames.
"""

import importlib.util
import math
import re
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.media.container import refuse_lists
from omniprep.media.fetch import Source

Frames = NDArray[np.uint8]
MAX_FRAMES = 10_000_000
MAX_SECONDS = 24 * 3600


class VideoReader(Protocol):
    """An opened video."""

    frames: int
    fps: float
    width: int
    height: int

    def read(self, indices: list[int]) -> Frames:
        """Frames (T, H, W, 3), RGB, at the indices."""
        ...


def backend() -> str:
    """What reads videos here: "decord" or "pyav"."""
    return "decord" if importlib.util.find_spec("decord") is not None else "pyav"


def open_video(source: Source, size: tuple[int, int] | None = None) -> VideoReader:
    """Open a video.

    Args:
        source: Where it is.
        size: (width, height) where the plan knows them and found the streams good: no frame is decoded to learn them,
            but frames of another size are rejected when they are read.

    Raises:
        Reject: bad_media, no_video_stream, media_not_found, decode_error.
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
    """Whether the file has sound; a file without pictures is rejected here, before a decoder sees it."""
    import av

    refuse_lists(source)
    try:
        with av.open(source.path or source.open()) as container:
            if not container.streams.video:
                raise Reject(RejectCode.NO_VIDEO_STREAM, f"{source.label}: there is no video stream in the file")
            stream = container.streams.video[0]
            if stream.frames > MAX_FRAMES or (container.duration or 0) > MAX_SECONDS * 1_000_000:
                raise Reject(
                    RejectCode.VIDEO_TOO_LONG, f"{source.label}: longer than {MAX_SECONDS} s or {MAX_FRAMES} frames"
                )
            sound = bool(container.streams.audio)
            # What is missing of an MJPEG frame stays as the memory was: the only codec here without concealment.
            codec = stream.codec_context  # None where PyAV knows no decoder
            if codec and codec.name == "mjpeg" and any(packet.is_corrupt for packet in container.demux(stream)):
                raise Reject(RejectCode.DECODE_ERROR, f"{source.label}: a frame is cut short")
            return sound
    except FileNotFoundError as error:
        raise Reject(RejectCode.MEDIA_NOT_FOUND, f"{source.label}: no such file") from error
    except (av.FFmpegError, ValueError, MemoryError, OSError) as error:
        raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: {error}") from error


class _Decord:
    def __init__(self, source: Source, size: tuple[int, int] | None = None) -> None:
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        self._label = source.label
        try:
            # One thread: a worker has one core, and the shard's bytes must not depend on their number.
            self._reader: Any = decord.VideoReader(source.path or source.open(), num_threads=1)
            self.frames, self.fps = len(self._reader), float(self._reader.get_avg_fps())
            first: tuple[int, int] = self._reader[0].shape[1::-1] if size is None and self.frames else (0, 0)
            self.width, self.height = size or first
        except (decord.DECORDError, RuntimeError, StopIteration, IndexError) as error:
            raise Reject(RejectCode.DECODE_ERROR, f"{self._label}: {_first_line(error)}") from error

    def read(self, indices: list[int]) -> Frames:
        import decord

        try:
            frames: Frames = self._reader.get_batch(indices).asnumpy()
        except (decord.DECORDError, RuntimeError, StopIteration, IndexError) as error:
            raise Reject(RejectCode.DECODE_ERROR, f"{self._label}: {_first_line(error)}") from error
        height, width = frames.shape[1:3]
        if (width, height) != (self.width, self.height):
            change = f"width, height {self.width}, {self.height} → {width}, {height}"
            raise Reject(RejectCode.DECODE_MISMATCH, f"{self._label}: decoding differs from the header ({change})")
        return frames


class _PyAV:
    def __init__(self, source: Source) -> None:
        self._source = source
        self.width = self.height = self.frames = 0
        self.fps = 0.0
        for frame, stream in self._decode():
            if not self.frames:
                self.width, self.height = frame.width, frame.height
                self.fps = float(stream.average_rate or stream.guessed_rate or 0)
            self.frames += 1

    def _decode(self) -> Any:
        import av

        try:
            with av.open(self._source.path or self._source.open()) as container:
                stream = container.streams.video[0]
                stream.thread_type = "NONE"
                for frame in container.decode(stream):
                    yield frame, stream
        except (av.FFmpegError, ValueError, MemoryError) as error:
            raise Reject(RejectCode.DECODE_ERROR, f"{self._source.label}: {error}") from error

    def read(self, indices: list[int]) -> Frames:
        wanted, last = set(indices), max(indices)
        kept: dict[int, Frames] = {}
        for number, (frame, _) in enumerate(self._decode()):
            if number in wanted:
                kept[number] = frame.to_ndarray(format="rgb24")
            if number == last:
                break
        if missing := wanted - kept.keys():
            raise Reject(RejectCode.DECODE_ERROR, f"{self._source.label}: frame {min(missing)} cannot be decoded")
        return np.stack([kept[i] for i in indices])


def _first_line(error: Exception) -> str:
    """The message without the time and the source line that decord writes before it: the same in each run."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return re.sub(r"^\[[\d:]+\] \S+:\d+: *", "", line)[:300]
