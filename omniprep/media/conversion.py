"""Colors of video frames: YUV to RGB by libswscale, as decord's filter graph does it.

Two builds of libswscale may round differently (10 bits a channel differ by 206 of 255 between those of PyAV 18 and
decord 0.6, odd widths and heights in the last columns). What a conversion does to a pixel depends on the pixel format,
the size, the matrix and the range. So each combination is tried once in a process: a frame of noise is stored without
loss in a file in memory, and what decord makes of it must be, byte for byte, what PyAV makes of it.
"""

import io
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

FULL_RANGE = 2
"""libavutil's AVCOL_RANGE_JPEG."""
_FORMATS = {
    "yuv420p": ("yuv420p", "rawvideo"), "yuvj420p": ("yuv420p", "rawvideo"),
    "yuv422p": ("yuv422p", "rawvideo"), "yuvj422p": ("yuv422p", "rawvideo"),
    "yuv444p": ("yuv444p", "ffv1"), "yuvj444p": ("yuv444p", "ffv1"),
}  # fmt: skip
"""Formats that are tried: what they are without the range in their name, and a codec that stores them as they are."""


class Colors(NamedTuple):
    """What the conversion of a frame depends on; matrix and range by FFmpeg's numbers."""

    format: str
    width: int
    height: int
    matrix: int
    range: int
    interlaced: bool

    @classmethod
    def of(cls, frame: Any) -> "Colors":
        """Those of a frame of PyAV."""
        return cls(
            frame.format.name,
            frame.width,
            frame.height,
            int(frame.colorspace),
            int(frame.color_range),
            bool(frame.interlaced_frame),
        )


class Turner:
    """Turns frames as their display matrix says, as decord does before it converts them (threaded_decoder.cc)."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._kind: tuple[object, ...] = ()

    def upright(self, frame: Any) -> Any:
        """The frame, turned by 90, 180 or 270 degrees; other angles stay, as in decord."""
        filters = _TURNS.get(-frame.rotation % 360)
        if filters is None:
            return frame
        kind = (frame.format.name, frame.width, frame.height, filters)
        if kind != self._kind:
            self._graph, self._kind = _filter_graph(frame, filters), kind
        self._graph.vpush(frame)
        turned = self._graph.vpull()
        turned.colorspace, turned.color_range = frame.colorspace, frame.color_range
        return turned


_TURNS = {90: ("clock",), 180: ("clock", "clock"), 270: ("cclock",)}
"""Directions of FFmpeg's transpose filter by the angle, clockwise."""


def _filter_graph(frame: Any, turns: tuple[str, ...]) -> Any:
    from av.filter import Graph

    graph = Graph()
    last = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    for direction in turns:
        turn = graph.add("transpose", f"dir={direction}")
        last.link_to(turn)
        last = turn
    last.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


class Converter:
    """Makes RGB of frames; keeps libswscale's tables between frames of one kind."""

    def __init__(self) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        self._reformatter: Any = VideoReformatter()
        # decord's filter scales with the default of the filter, bicubic. One thread: a worker has one core.
        self._options: dict[str, Any] = {"format": "rgb24", "interpolation": Interpolation.BICUBIC, "threads": 1}

    def rgb(self, frame: Any) -> Pixels:
        """Pixels (H, W, 3) of a frame; a view of its memory where rows lie end to end."""
        plane = self._reformatter.reformat(frame, **self._options).planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : 3 * frame.width]
        return np.ascontiguousarray(rows).reshape(frame.height, frame.width, 3)


@lru_cache(maxsize=4096)
def unequal(colors: Colors) -> str:
    """Why PyAV's conversion cannot stand for decord's; "" where both gave the same bytes for noise."""
    import av

    if colors.format not in _FORMATS:
        return f"pixel format {colors.format}"
    if colors.interlaced:
        return "interlaced frames"
    frame = av.VideoFrame(colors.width, colors.height, colors.format)
    noise = np.random.default_rng(0)
    for plane in frame.planes:
        plane.update(noise.integers(0, 256, plane.buffer_size, np.uint8).tobytes())
    frame.colorspace, frame.color_range = colors.matrix, colors.range
    try:
        theirs = _by_decord(_stored(frame, colors))
    except (av.FFmpegError, RuntimeError) as error:  # RuntimeError: decord's own errors
        return f"noise cannot be stored as {colors.format}: {type(error).__name__}"
    try:
        same = np.array_equal(theirs, Converter().rgb(frame))
    except av.FFmpegError as error:  # newer builds of libswscale refuse some matrices, YCgCo among them
        return f"libswscale refuses matrix {colors.matrix}: {error.strerror}"
    return "" if same else f"other colors for {colors.width}x{colors.height} {colors.format}"


def _stored(frame: Any, colors: Colors) -> bytes:
    """A Matroska file of one frame, without loss."""
    import av

    name, codec = _FORMATS[colors.format]
    plain = av.VideoFrame(colors.width, colors.height, name)
    for target, plane in zip(plain.planes, frame.planes, strict=True):
        target.update(bytes(plane))
    plain.pts = 0
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream: Any = container.add_stream(codec, rate=1)
        stream.width, stream.height, stream.pix_fmt = colors.width, colors.height, name
        full = colors.format != name or colors.range == FULL_RANGE
        stream.codec_context.colorspace = colors.matrix
        stream.codec_context.color_range = FULL_RANGE if full else colors.range
        container.mux(stream.encode(plain))
        container.mux(stream.encode(None))
    return file.getvalue()


def _by_decord(file: bytes) -> Pixels:
    import decord

    pixels: Pixels = decord.VideoReader(io.BytesIO(file), num_threads=1)[0].asnumpy()
    return pixels
