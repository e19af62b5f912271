"""Frames of a video by PyAV: packets that no wanted frame needs stay undecoded, frames are resized as they come.

`scan` reads the packets of a file without decoding any (3 ms for 250 of them). `VideoStream.frames` then decodes the
runs of packets that the wanted frames need: each from the key packet before them on, without pictures that no other
one refers to. That takes 0.5 times as long as decoding all of them, on films with B-frames.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import cached_property
from typing import Any

from omniprep.errors import Reject, RejectCode
from omniprep.media.access_units import Parser, parameters, parser
from omniprep.media.container import open_container
from omniprep.media.ffmpeg_errors import counted_errors
from omniprep.media.guard import library_faults
from omniprep.media.packets import PacketTable, Run, sequential_runs
from omniprep.media.source import Source

MAX_FRAMES = 10_000_000
MAX_SECONDS = 24 * 3600
MAX_FRAME_PIXELS = 1 << 26
"""Largest frame: twice 8K (33 million). A decoder holds up to 17 frames at once, whatever the file's size."""
KEPT_BYTES = 32 << 20
"""Most bytes of packets that are kept between `scan` and decoding; the packets of longer videos are read again."""


_Numbered = Iterator[tuple[int, Any]]
"""Packets with their numbers, from the first one that was not asked for yet."""


class UnprovenError(Exception):
    """A frame for which it is not certain that decord gives the same; decord has to read the video."""


def check_frame(width: int, height: int, label: str) -> None:
    """Reject a frame that would fill the memory (image_too_large)."""
    if width * height > MAX_FRAME_PIXELS:
        raise Reject(
            RejectCode.IMAGE_TOO_LARGE, f"{label}: frames of {width}x{height} pixels, more than {MAX_FRAME_PIXELS:,}"
        )


class VideoStream:
    """The video stream of an open file, whose packets are scanned once; `open_stream` makes one."""

    def __init__(self, container: Any, source: Source) -> None:
        self._container, self._source = container, source
        streams = container.streams.video
        if not streams:
            raise Reject(RejectCode.NO_VIDEO_STREAM, f"{source.label}: there is no video stream in the file")
        self.stream = container.streams.best("video") or streams[0]
        self.codec: Any = self.stream.codec_context
        if self.codec is None:
            raise Reject(
                RejectCode.DECODE_ERROR, f"{source.label}: neither decord nor PyAV has a decoder for the pictures"
            )
        check_frame(self.codec.width, self.codec.height, source.label)
        self.codec.thread_type = "NONE"  # a worker has one core
        # A stream may grow its frames halfway; the decoder then refuses before it allocates them.
        options = {"max_pixels": str(MAX_FRAME_PIXELS), "err_detect": "explode"}
        self._parse: Parser | None = parser(self.codec.name, self.codec.extradata)
        if self._parse is not None:
            # decord's FFmpeg adds no film grain to H.264 and HEVC; newer ones do unless it is to be reported. That of
            # AV1 is part of its standard.
            options["export_side_data"] = "film_grain"
        self.codec.options = options
        self._kept: list[Any] | None = []
        self._read = False

    @property
    def fps(self) -> float:
        """Mean frames a second, by the container."""
        return float(self.stream.average_rate or self.stream.guessed_rate or 0)

    def unproven(self) -> str:
        """Why it is not certain, before any frame is decoded, that decord gives the same; "" where it is."""
        if len(self._container.streams.video) > 1:
            return "several video streams"
        if self._parse is None:
            return f"codec {self.codec.codec.canonical_name}"
        if reason := self.table.unproven():
            return reason
        if self.table.timed and self.table.in_order and self.codec.has_b_frames:
            return "the decoder reorders pictures, their times do not"  # decord counts them as they come out
        return ""

    def _packets(self) -> Generator[Any, None, None]:
        """The packets of the stream from the first on; kept ones, or those of the file opened anew."""
        if self._kept:
            yield from self._kept
            return
        with ExitStack() as stack:
            container, stream = self._container, self.stream
            if self._read:  # seeking to the start fails in some containers
                file = stack.enter_context(self._source.open())
                container = stack.enter_context(open_container(file, self._source, "a video"))
                stream = container.streams[self.stream.index]
            self._read = True
            with library_faults(self._source.label, RejectCode.DECODE_ERROR):
                yield from (packet for packet in container.demux(stream) if packet.size)

    @cached_property
    def table(self) -> PacketTable:
        """All packets; rejects too many, and an MJPEG frame that is cut short."""
        known = parameters(self.codec.name, self.codec.extradata)
        table = PacketTable(self._container.format.name, self.codec.name, parameters=known)
        total = 0
        for packet in self._packets():
            table.add(packet, self._parse)
            if len(table) > MAX_FRAMES:
                raise Reject(RejectCode.VIDEO_TOO_LONG, f"{self._source.label}: more than {MAX_FRAMES:,} frames")
            total += packet.size
            if self._kept is not None and total <= KEPT_BYTES:
                self._kept.append(packet)
            else:
                self._kept = None
        # MJPEG is the only codec here without error concealment: the missing part of a frame would show whatever was in
        # the memory, different in each build.
        if self.codec.name == "mjpeg" and table.cut_short:
            raise Reject(RejectCode.DECODE_ERROR, f"{self._source.label}: a frame is cut short")
        return table

    def frames(self, indices: Sequence[int], proven: bool) -> Iterator[tuple[list[int], Any]]:
        """(places in `indices`, frame of PyAV) for each different index, as they are decoded.

        Args:
            indices: Numbers of frames, as decord counts them.
            proven: Raise `UnprovenError` where decord may give another frame; else a frame is the one that comes out
                of the decoder at its number, and the last one stands for those behind it.
        """
        reason = self.unproven()
        if proven and reason:
            raise UnprovenError(reason)
        with closing(self._packets()) as packets:  # which are gone through once for all runs
            numbered = enumerate(packets)
            if reason:
                yield from self._counted(sequential_runs(len(self.table), indices)[0], numbered, fill=True)
                return
            with counted_errors() if proven else nullcontext(lambda: 0) as errors:
                before = errors()
                for run in self.table.runs(indices):
                    if self.table.timed:
                        yield from self._timed(run, numbered, proven)
                    else:
                        yield from self._counted(run, numbered, fill=not proven)
                    if errors() != before:
                        raise UnprovenError("the decoder reports damage")

    def _timed(self, run: Run, packets: _Numbered, proven: bool) -> Iterator[tuple[list[int], Any]]:
        """Frames of a run that are known by their time."""
        by_time = {self.table.presentation[number]: places for number, places in run.wanted.items()}
        latest = None
        for frame in self._decode(packets, run.first, run.last, run.wanted if self.table.may_skip else None):
            if proven and latest is not None and (frame.pts is None or frame.pts <= latest):
                raise UnprovenError("frames do not come out by their times")  # decord counts them as they come
            latest, places = frame.pts, by_time.pop(frame.pts, None)
            if places is not None:
                yield places, frame
        if by_time:
            raise self._missing(proven)

    def _counted(self, run: Run, packets: _Numbered, fill: bool) -> Iterator[tuple[list[int], Any]]:
        """Frames of a run that are known by their number among those that come out."""
        wanted, number, frame = dict(run.wanted), -1, None
        for number, frame in enumerate(self._decode(packets, run.first, len(self.table) - 1, None)):
            if number in wanted:
                yield wanted.pop(number), frame
            if not wanted:
                return
        if frame is None or not fill:
            raise self._missing(proven=not fill)
        for places in wanted.values():
            yield places, frame

    def _missing(self, proven: bool) -> Exception:
        if proven:
            return UnprovenError("a frame does not come out of the decoder")
        return Reject(RejectCode.DECODE_ERROR, f"{self._source.label}: a frame does not come out of the decoder")

    def _decode(self, packets: _Numbered, first: int, last: int, wanted: dict[int, list[int]] | None) -> Iterator[Any]:
        """Frames of the packets `first` to `last`, up to which `packets` is gone through.

        Only `wanted` ones and those that they may need, where given.
        """
        self.codec.flush_buffers()
        referenced, skipping = self.table.referenced, False
        for number, packet in packets:
            if number < first:
                continue
            skip = wanted is not None and not referenced[number] and number not in wanted
            if skip is not skipping:
                self.codec.skip_frame, skipping = ("NONREF" if skip else "DEFAULT"), skip
            yield from self._decode_packet(packet)
            if number == last:
                break
        self.codec.skip_frame = "DEFAULT"
        yield from self._decode_packet(None)

    def _decode_packet(self, packet: Any) -> Iterator[Any]:
        with library_faults(self._source.label, RejectCode.DECODE_ERROR):
            frames = self.codec.decode(packet)
        for frame in frames:
            check_frame(frame.width, frame.height, self._source.label)
            if frame.is_corrupt:  # what stands for the missing part differs between versions of FFmpeg
                raise Reject(RejectCode.DECODE_ERROR, f"{self._source.label}: a frame is damaged")
            yield frame


@contextmanager
def open_stream(source: Source) -> Iterator[VideoStream]:
    """Open a file's video stream; rejects as `check_container`."""
    with ExitStack() as stack:
        file = stack.enter_context(source.open())
        container = stack.enter_context(open_container(file, source, "a video"))
        yield VideoStream(container, source)
