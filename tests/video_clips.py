"""Small videos of every codec, container and oddity that the reading of frames has to get right; none is stored.

`CLIPS` names them, CODEC: property; each is made on demand by PyAV's encoders, the same bytes for the same version of PyAV.
"""

import io
import itertools
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np

JPEG, MPEG = 2, 1
"""libavutil's numbers of the full and the limited range."""
BT709, BT601 = 1, 6


@dataclass(frozen=True)
class Clip:
    """What a video is made of."""

    codec: str = "libx264"
    container: str = "mp4"
    size: tuple[int, int] = (128, 96)
    frames: int = 40
    rate: int = 10
    pixels: str = "yuv420p"
    options: tuple[tuple[str, str], ...] = ()
    format_options: tuple[tuple[str, str], ...] = ()
    times: Callable[[int], int] = lambda number: number * 100
    """Presentation time of a frame, milliseconds."""
    shift: int = 0
    """Milliseconds that are taken from all times after encoding: an edit list drops what comes before 0."""
    matrix: int | None = None
    range: int | None = None
    rotation: int = 0
    sound: bool = False
    streams: int = 1
    noise: int = 4
    """Most that a value is changed by at random."""
    change: Callable[[bytes], bytes] = field(default=lambda data: data)
    """What is done to the file."""

    def make(self) -> bytes:
        """The file."""
        return self.change(_encode(self))


def pictures(size: tuple[int, int], count: int, noise: int) -> Iterator[np.ndarray]:
    """Frames that differ everywhere: blocks that wander over a drifting gradient, and a little noise."""
    width, height = size
    rng = np.random.default_rng(width * height)
    blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    for number in range(count):
        base = np.stack([across * 2 + 9 * number, down * 3 + 5 * number, across + down + 7 * number], -1)
        frame = (base % 256).astype(np.uint8)
        moved = np.roll(blocks, (3 * number, 5 * number), (0, 1))[:height, :width]
        frame[height // 4 : 3 * height // 4] = moved[height // 4 : 3 * height // 4]
        change = rng.integers(-noise, noise + 1, frame.shape, np.int16)
        yield (frame + change).clip(0, 255).astype(np.uint8)


def _encode(clip: Clip) -> bytes:
    whole = clip.container == "avi" or clip.codec in ("mpeg1video", "mpeg2video")  # which take whole frames as times
    base = Fraction(1, clip.rate if whole else 1000)
    with tempfile.TemporaryDirectory() as folder:  # "faststart" reads the file again, by its name
        path = Path(folder) / "clip"
        with av.open(str(path), "w", format=clip.container, options=dict(clip.format_options)) as target:
            _fill(target, clip, base)
        return path.read_bytes()


def _fill(target: Any, clip: Clip, base: Fraction) -> None:
    streams: list[Any] = []
    for _ in range(clip.streams):
        stream: Any = target.add_stream(clip.codec, rate=clip.rate, options=dict(clip.options))
        stream.width, stream.height = clip.size
        stream.pix_fmt = clip.pixels
        stream.codec_context.time_base = base
        if clip.matrix is not None:
            stream.codec_context.colorspace = clip.matrix
        if clip.range is not None:
            stream.codec_context.color_range = clip.range
        if clip.rotation:
            stream.set_display_rotation(clip.rotation)
        streams.append(stream)
    voice: Any = (
        target.add_stream("pcm_s16le" if clip.container == "avi" else "aac", rate=16000) if clip.sound else None
    )
    packets: list[Any] = []
    for stream in streams:
        for number, picture in enumerate(pictures(clip.size, clip.frames, clip.noise)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=clip.pixels)
            if clip.matrix is not None:
                frame.colorspace = clip.matrix
            if clip.range is not None:
                frame.color_range = clip.range
            frame.pts, frame.time_base = int(clip.times(number) * base.denominator / 1000), base
            packets += stream.encode(frame)
        packets += stream.encode(None)
    if voice is not None:
        samples = np.zeros((1, 16000 * clip.frames // 10), np.int16)
        sound = av.AudioFrame.from_ndarray(samples, "s16", "mono")
        sound.sample_rate = 16000
        resampler = av.AudioResampler(voice.format.name, "mono", 16000, voice.codec_context.frame_size or 1024)
        for part in itertools.chain(resampler.resample(sound), resampler.resample(None)):
            packets += voice.encode(part)
        packets += voice.encode(None)
    packets.sort(key=lambda packet: (packet.dts or 0) * packet.time_base)
    for packet in packets:
        if clip.shift and packet.stream is not voice:
            ticks = int(Fraction(clip.shift, 1000) / packet.time_base)
            packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
        target.mux(packet)


def _options(**options: object) -> tuple[tuple[str, str], ...]:
    return tuple((name.replace("_", "-"), str(value)) for name, value in options.items())


def _x264(text: str) -> tuple[tuple[str, str], ...]:
    return (("x264-params", text),)


def _x265(text: str) -> tuple[tuple[str, str], ...]:
    return (("x265-params", f"log-level=none:{text}"),)


def _tail_lost(data: bytes) -> bytes:
    """Without its last fifth."""
    return data[: len(data) * 4 // 5]


def _flipped(data: bytes) -> bytes:
    """Bits flipped in the middle of the pictures."""
    start = data.find(b"mdat") + 4 if b"mdat" in data else len(data) // 4
    damaged, middle = bytearray(data), start + (len(data) - start) // 2
    for offset in range(middle, middle + 60, 7):
        damaged[offset] ^= 0x55
    return bytes(damaged)


def _first_key_lost(data: bytes) -> bytes:
    """A transport stream without its first quarter."""
    return data[len(data) // 4 // 188 * 188 :]


def _edit_in_the_middle(data: bytes) -> bytes:
    """An MP4 whose edit list begins half a second into the media, as cutting programs write."""
    offset = data.find(b"elst")
    version, flags, count = struct.unpack_from(">B3sI", data, offset + 4)
    assert (version, count) == (0, 1), (version, flags, count)
    changed = bytearray(data)
    scale = struct.unpack_from(">I", data, data.find(b"mdhd") + 16)[0]
    struct.pack_into(">i", changed, offset + 16, struct.unpack_from(">i", data, offset + 16)[0] + scale // 2)
    return bytes(changed)


def _bits(*fields: tuple[int, int]) -> bytes:
    """Whole numbers, each in so many bits, padded with zeros."""
    text = "".join(format(value, f"0{count}b") for value, count in fields)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[start : start + 8], 2) for start in range(0, len(text), 8))


def _exp_golomb(number: int) -> tuple[int, int]:
    """A whole number of either sign in the code of H.264 9.1.1, as value and bits."""
    mapped = (2 * number if number > 0 else 1 - 2 * number) if number else 1
    return mapped, 2 * mapped.bit_length() - 1


FILM_GRAIN = 19, _bits(
    (0, 10), (4, 3),  # added to the luma alone
    (0, 8), (2, 3), (0, 8), (255, 8), *map(_exp_golomb, (120, 10, 10)), _exp_golomb(1), (1, 1),
)  # fmt: skip
TURNED = 47, _bits((0, 3), (1 << 15, 16), _exp_golomb(1), (0, 1), (1, 1))
"""Types and contents of two messages: film grain of the one model that FFmpeg knows; a turn by 180 degrees."""


def message(kind: int, payload: bytes, header: bytes) -> bytes:
    """A unit with one message (SEI)."""
    unit, zeros = bytearray(header), 0
    for byte in bytes([kind, len(payload)]) + payload + b"\x80":
        if zeros >= 2 and byte <= 3:  # or it would look like a start code
            unit.append(3)
            zeros = 0
        unit.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(unit)


def with_unit(data: bytes, target: str | io.BytesIO, unit: bytes, is_before: Callable[[int], bool]) -> None:
    """Write the first stream of a video as an MP4 with `unit` before the picture of each packet whose number (from 0)
    `is_before` is true of.
    """
    prefix = len(unit).to_bytes(4, "big") + unit
    with av.open(io.BytesIO(data)) as source, av.open(target, "w", format="mp4") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            copy = av.Packet((prefix if is_before(number) else b"") + bytes(packet))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.duration, copy.is_keyframe, copy.stream = packet.duration, packet.is_keyframe, stream
            container.mux(copy)


def _halfway(unit: bytes) -> Callable[[bytes], bytes]:
    """An MP4 with a unit more before the picture of packet 20."""

    def change(data: bytes) -> bytes:
        file = io.BytesIO()
        with_unit(data, file, unit, lambda number: number == 20)
        return file.getvalue()

    return change


def joined(first: Clip, second: Clip) -> bytes:
    """A Matroska file of one clip behind the other, whose parameter sets lie in the packets."""
    file, start = io.BytesIO(), 0
    with av.open(file, "w", format="matroska") as target:
        stream: Any = None
        for part in (first, second):
            with av.open(io.BytesIO(part.make())) as source:
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                for packet in (p for p in source.demux(video=0) if p.size):
                    copy = av.Packet(bytes(packet))
                    copy.pts, copy.dts, copy.time_base = packet.pts + start, packet.dts + start, packet.time_base
                    copy.is_keyframe, copy.stream = packet.is_keyframe, stream
                    target.mux(copy)
                start += int(Fraction(part.frames, part.rate) / packet.time_base)
    return file.getvalue()


_uneven: Callable[[int], int] = lambda number: number * 100 + (37 * number) % 80  # noqa: E731
_slowing: Callable[[int], int] = lambda number: number * number * 10 + number  # noqa: E731
_FRONT = (("movflags", "faststart"),)

CLIPS: dict[str, Clip] = {
    "H.264: B-frames, one group": Clip(),
    "H.264: groups of 8": Clip(options=_x264("keyint=8:min-keyint=8:scenecut=0")),
    "H.264: groups of 2": Clip(options=_x264("keyint=2:min-keyint=1:scenecut=0")),
    "H.264: key frames only": Clip(options=_x264("keyint=1")),
    "H.264: no B-frames": Clip(options=_x264("bframes=0:keyint=12")),
    "H.264: many B-frames, pyramid": Clip(frames=60, options=_x264("bframes=8:b-pyramid=normal:keyint=24:b-adapt=0")),
    "H.264: B-frames without pyramid": Clip(options=_x264("bframes=3:b-pyramid=none:keyint=16:b-adapt=0")),
    "H.264: open groups": Clip(options=_x264("open-gop=1:keyint=8:min-keyint=8:scenecut=0:bframes=3:b-adapt=0")),
    "H.264: intra refresh": Clip(options=_x264("intra-refresh=1:keyint=10")),
    "H.264: baseline": Clip(options=(("profile", "baseline"),)),
    "H.264: several slices": Clip(options=_x264("slices=4:keyint=16")),
    "H.264: weighted, CAVLC": Clip(options=_x264("weightp=2:weightb=1:cabac=0:ref=5:keyint=16")),
    "H.264: Matroska": Clip(container="matroska", options=_x264("keyint=8:min-keyint=8")),
    "H.264: Matroska with sound": Clip(container="matroska", options=_x264("keyint=8:min-keyint=8"), sound=True),
    "H.264: MOV": Clip(container="mov", options=_x264("keyint=8")),
    "H.264: MP4 with sound": Clip(options=_x264("keyint=8"), sound=True),
    "H.264: AVI": Clip(container="avi", options=_x264("keyint=8:bframes=0")),
    "H.264: AVI with sound": Clip(container="avi", options=_x264("keyint=8:bframes=0"), sound=True),
    "H.264: AVI with B-frames": Clip(container="avi", options=_x264("keyint=16:bframes=2:b-adapt=0")),
    "H.264: MPEG-TS": Clip(container="mpegts", options=_x264("keyint=8")),
    "H.264: FLV": Clip(container="flv", options=_x264("keyint=8")),
    "H.264: fragmented MP4": Clip(
        options=_x264("keyint=8"), format_options=(("movflags", "frag_keyframe+empty_moov+default_base_moof"),)
    ),
    "H.264: rotated by 90": Clip(rotation=90),
    "H.264: rotated by 180": Clip(rotation=180),
    "H.264: rotated by 270": Clip(rotation=270),
    "H.264: variable rate": Clip(times=_uneven, options=_x264("keyint=8")),
    "H.264: slowing down": Clip(times=_slowing, options=_x264("keyint=8")),
    "H.264: edit list that drops frames": Clip(shift=700),
    "H.264: edit list that begins later": Clip(change=_edit_in_the_middle),
    "H.264: one frame": Clip(frames=1),
    "H.264: two frames": Clip(frames=2),
    "H.264: odd width": Clip(size=(129, 96), pixels="yuv444p"),
    "H.264: size that is no multiple of 16": Clip(size=(130, 98)),
    "H.264: tiny": Clip(size=(16, 16)),
    "H.264: 720p": Clip(size=(1280, 720), frames=6),
    "H.264: 4:2:2": Clip(pixels="yuv422p"),
    "H.264: 4:4:4": Clip(pixels="yuv444p"),
    "H.264: 10 bits": Clip(pixels="yuv420p10le"),
    "H.264: interlaced": Clip(options=_x264("tff=1")),
    "H.264: BT.601": Clip(matrix=BT601, range=MPEG),
    "H.264: BT.709": Clip(matrix=BT709, range=MPEG),
    "H.264: full range": Clip(pixels="yuvj420p", range=JPEG),
    "H.264: full range, BT.709": Clip(pixels="yuvj420p", matrix=BT709, range=JPEG),
    "H.264: two video streams": Clip(streams=2),
    "H.264: tail lost, MP4": Clip(format_options=_FRONT, change=_tail_lost),
    "H.264: tail lost, Matroska": Clip(container="matroska", change=_tail_lost),
    "H.264: tail lost, MPEG-TS": Clip(container="mpegts", change=_tail_lost),
    "H.264: bits flipped, MP4": Clip(change=_flipped),
    "H.264: bits flipped, Matroska": Clip(container="matroska", change=_flipped),
    "H.264: first key frame lost": Clip(container="mpegts", options=_x264("keyint=12"), change=_first_key_lost),
    "H.264: film grain halfway": Clip(change=_halfway(message(*FILM_GRAIN, b"\x06"))),
    "H.264: turned halfway": Clip(change=_halfway(message(*TURNED, b"\x06"))),
    "HEVC: open groups (x265's own choice)": Clip("libx265", options=_x265("keyint=8:min-keyint=8")),
    "HEVC: one group": Clip("libx265", options=_x265("keyint=250")),
    "HEVC: closed groups": Clip("libx265", options=_x265("keyint=8:min-keyint=8:open-gop=0")),
    "HEVC: temporal layers": Clip(
        "libx265", options=_x265("keyint=16:open-gop=0:temporal-layers=3:b-adapt=0:bframes=7")
    ),
    "HEVC: Matroska": Clip("libx265", container="matroska", options=_x265("keyint=8:open-gop=0")),
    "HEVC: 10 bits": Clip("libx265", pixels="yuv420p10le", options=_x265("keyint=250")),
    "HEVC: full range, BT.709": Clip("libx265", matrix=BT709, range=JPEG, options=_x265("keyint=250")),
    "HEVC: rotated by 90": Clip("libx265", rotation=90, options=_x265("keyint=250")),
    "HEVC: film grain halfway": Clip(
        "libx265", options=_x265("keyint=250"), change=_halfway(message(*FILM_GRAIN, b"\x4e\x01"))
    ),
    "HEVC: turned halfway": Clip(
        "libx265", options=_x265("keyint=250"), change=_halfway(message(*TURNED, b"\x4e\x01"))
    ),
    "HEVC: tail lost": Clip("libx265", format_options=_FRONT, options=_x265("keyint=250"), change=_tail_lost),
    "VP9: WebM": Clip("libvpx-vp9", container="webm", options=_options(g=8, cpu_used=5, deadline="realtime")),
    "VP9: hidden references": Clip(
        "libvpx-vp9", container="webm", options=_options(auto_alt_ref=1, lag_in_frames=16, cpu_used=4, deadline="good")
    ),
    "VP9: MP4": Clip("libvpx-vp9", options=_options(cpu_used=5, deadline="realtime")),
    "VP9: 10 bits": Clip(
        "libvpx-vp9", container="webm", pixels="yuv420p10le", options=_options(cpu_used=5, deadline="realtime")
    ),
    "VP9: 4:4:4": Clip("libvpx-vp9", container="webm", pixels="yuv444p", options=_options(cpu_used=5)),
    "VP9: variable rate": Clip("libvpx-vp9", container="webm", times=_uneven, options=_options(g=8, cpu_used=5)),
    "VP9: tail lost": Clip("libvpx-vp9", container="webm", options=_options(cpu_used=5), change=_tail_lost),
    "VP8: WebM": Clip(
        "libvpx", container="webm", options=_options(g=8, cpu_used=5, deadline="realtime", auto_alt_ref=0)
    ),
    "VP8: hidden references": Clip(
        "libvpx", container="webm", options=_options(auto_alt_ref=1, lag_in_frames=16, deadline="good", cpu_used=4)
    ),
    "AV1: MP4": Clip("libsvtav1", options=_options(preset=12, g=8)),
    "AV1: WebM": Clip("libsvtav1", container="webm", options=_options(preset=12)),
    "AV1: 10 bits": Clip("libsvtav1", pixels="yuv420p10le", options=_options(preset=12)),
    "MPEG-4: MP4": Clip("mpeg4", options=_options(g=8, bf=2)),
    "MPEG-4: AVI": Clip("mpeg4", container="avi", options=_options(g=8)),
    "MPEG-2: MPEG-TS": Clip(
        "mpeg2video", container="mpegts", rate=25, times=lambda n: 40 * n, options=_options(g=8, bf=2)
    ),
    "MPEG-1: MPEG-TS": Clip("mpeg1video", container="mpegts", rate=25, times=lambda n: 40 * n, options=_options(g=8)),
    "MJPEG: AVI": Clip("mjpeg", container="avi", pixels="yuvj420p"),
    "MJPEG: MOV": Clip("mjpeg", container="mov", pixels="yuvj420p"),
    "MS-MPEG-4: AVI": Clip("msmpeg4", container="avi"),
    "WMV2: ASF": Clip("wmv2", container="asf"),
    "H.263: FLV": Clip("flv", container="flv"),
    "ProRes: MOV": Clip("prores_ks", container="mov", pixels="yuv422p10le"),
    "FFV1: Matroska": Clip("ffv1", container="matroska"),
    "GIF": Clip("gif", container="gif", pixels="rgb8"),
}


@cache
def clip(name: str) -> bytes:
    """The file of a name in `CLIPS`."""
    return CLIPS[name].make()
