"""Frames of a video by decord, the reference's reader."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.media.container import check_container
from omniprep.media.guard import library_faults
from omniprep.media.source import SPOOLED_BYTES, Source, device_name, named

Frames = NDArray[np.uint8]
BATCH_BYTES = 16 << 20
"""Most bytes of frames that are asked of decord at once: it holds them all before the first is resized."""
# libavutil's AVERROR_DECODER_NOT_FOUND, which decord puts into its message as a number.
_NO_DECODER = "-1128613112"


class NoDecoderError(Exception):
    """decord has no decoder for the pictures."""


class DecordReader:
    """A video opened by decord."""

    def __init__(self, source: Source, checked: bool) -> None:
        """Open a video.

        Args:
            source: The file.
            checked: Whether it passed `check_container` just before.
        """
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        self._source = source
        with ExitStack() as stack:
            file = stack.enter_context(source.open())
            if not checked:
                check_container(file, source, "a video")
            # /dev/fd/N has no suffix: decord cannot restrict FFmpeg's formats, which would take `v%d.png` for a pattern
            # of file names. A file in memory has no such name: decord copies it into its own memory, so a large one
            # goes to the disk. It is opened by name just once, so the copy may go away then.
            large = file.seek(0, 2) > SPOOLED_BYTES
            file.seek(0)
            name: Any = stack.enter_context(named(file)) if large else device_name(file) or file
            with _decord_faults(source):
                # One thread, because a worker has one core.
                self._reader: Any = decord.VideoReader(name, num_threads=1)
                self.frames, self.fps = len(self._reader), float(self._reader.get_avg_fps())

    def first(self) -> Frames:
        """Frame 0, (H, W, 3)."""
        with _decord_faults(self._source):
            frame: Frames = self._reader[0].asnumpy()
        return frame

    def at(self, index: int) -> Frames:
        """A frame (H, W, 3) that decord seeks to."""
        with _decord_faults(self._source):
            frame: Frames = self._reader[index].asnumpy()
        return frame

    def keys(self) -> list[int]:
        """Numbers of key packets."""
        keys: list[int] = self._reader.get_key_indices()
        return keys

    def starts(self) -> NDArray[np.float32]:
        """Presentation times of all frames in seconds, sorted; about -3e17 where the container has none."""
        starts: NDArray[np.float32] = self._reader.get_frame_timestamp(range(self.frames))[:, 0]
        return starts

    def batches(self, indices: Sequence[int], frame_bytes: int) -> Iterator[tuple[list[list[int]], Frames]]:
        """(places in `indices` of each frame, frames (n, H, W, 3)), `BATCH_BYTES` at a time.

        decord reads indices in order, from where it stands, and each different one once; so do batches of them.
        """
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(index, []).append(place)
        different, step = list(places), max(1, BATCH_BYTES // max(frame_bytes, 1))
        for start in range(0, len(different), step):
            batch = different[start : start + step]
            with _decord_faults(self._source):
                frames: Frames = self._reader.get_batch(batch).asnumpy()
            yield [places[index] for index in batch], frames


@contextmanager
def _decord_faults(source: Source) -> Iterator[None]:
    """As `library_faults`; raises `NoDecoderError` where decord has no decoder for the pictures."""
    try:
        with library_faults(source.label, RejectCode.DECODE_ERROR):
            yield
    except Reject as reject:
        if _NO_DECODER in reject.message:
            raise NoDecoderError(source.label) from reject
        raise
