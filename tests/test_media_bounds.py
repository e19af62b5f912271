"""Small files that promise much: no header makes planning or decoding take memory for what the file does not hold.

Each is read in a process of its own, whose memory is measured; the most that any may add is `MOST`.
"""

import io
import json
import os
import resource
import struct
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from omniprep.errors import Reject
from omniprep.media.audio import decode_audio, probe_audio
from omniprep.media.image import decode_image, probe_image
from omniprep.media.mp4 import check_sample_counts
from omniprep.media.source import Source
from omniprep.media.video import probe_video, read_frames
from tests.media_files import sound, video

MOST = 500 << 20


def measured(read: Callable[[], object]) -> tuple[str, int]:
    """(code of the reject or "fine", bytes of memory that reading took at its peak) in a child process."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                read()
                code = "fine"
            except Reject as reject:
                code = str(reject.code)
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
            os.write(writing, json.dumps([code, peak]).encode())
            os._exit(0)
        except BaseException:
            os.write(writing, json.dumps([traceback.format_exc()[-3000:], 0]).encode())
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    assert not os.WIFSIGNALED(status), f"ended by signal {os.WTERMSIG(status)}"
    code, peak = json.loads(text)
    return code, peak


def quiet_matroska(rate: int, seconds: int) -> bytes:
    """A byte a sample, in a container whose sound libsndfile does not read."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as target:
        stream = target.add_stream("pcm_u8", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, rate * seconds), 128, np.uint8), "u8", "mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            target.mux(packet)
    return file.getvalue()


def wav(rate: int, data_bytes: int = 2000, channels: int = 1, kind: bytes = b"RIFF") -> bytes:
    block = 2 * channels
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, 16)
    head = kind + struct.pack("<I", 0xFFFFFFFF) + b"WAVE"
    if kind == b"RF64":
        head += b"ds64" + struct.pack("<IQQQI", 28, 1 << 50, 1 << 50, 1 << 49, 0)
    return head + b"fmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", data_bytes) + bytes(2000)


def sound_at(kind: str, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(2000, np.float32), rate, format=kind)
    return file.getvalue()


def long_flac(samples: int) -> bytes:
    data = bytearray(sound("FLAC"))
    at = data.index(b"fLaC") + 8 + 13
    data[at] = data[at] & 0xF0 | samples >> 32
    data[at + 1 : at + 5] = struct.pack(">I", samples & 0xFFFFFFFF)
    return bytes(data)


SOUNDS: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "matroska at 1 Hz": (lambda: quiet_matroska(1, 86_000), {"bad_media"}),
    "matroska at 99 Hz": (lambda: quiet_matroska(99, 1800), {"bad_media"}),
    "matroska at 100 Hz": (lambda: quiet_matroska(100, 1800), {"fine"}),
    "matroska at 1000 Hz": (lambda: quiet_matroska(1000, 180), {"fine"}),
    **{
        f"{kind} at {rate} Hz": (lambda kind=kind, rate=rate: sound_at(kind, rate), {"bad_media"})
        for kind in ("WAV", "AIFF", "CAF", "AU", "W64")
        for rate in (1, 99, 768_001, 2_000_000_000)
    },
    "flac at 1 Hz": (lambda: sound_at("FLAC", 1), {"bad_media"}),
    "wav at 0 Hz": (lambda: wav(0), {"bad_media"}),
    "wav at 4 GHz": (lambda: wav(0xFFFFFFFF), {"bad_media"}),
    "wav of 4 GiB": (lambda: wav(16000, 0xFFFFFFF0), {"fine"}),
    "wav of 1024 channels": (lambda: wav(16000, 2000, 1024), {"audio_too_short", "fine"}),
    "wav of 65535 channels": (lambda: wav(16000, 2000, 65535), {"bad_media", "audio_too_short", "decode_error"}),
    "rf64 of 2^49 frames": (lambda: wav(16000, kind=b"RF64"), {"fine", "audio_too_long", "bad_media", "audio_too_short"}),
    "flac of 2^35 samples": (lambda: long_flac(1 << 35), {"audio_too_long"}),
    "flac of 2^28 samples": (lambda: long_flac(1 << 28), {"decode_error"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds(name: str) -> None:
    make, codes = SOUNDS[name]
    source = Source(data=make())
    assert len(source.data or b"") < 1 << 20
    for decoder in ("ffmpeg", "pyav"):
        code, peak = measured(
            lambda decoder=decoder: (probe_audio(source, 16000, decoder), decode_audio(source, 16000, decoder))
        )
        assert code in codes and peak < MOST, (decoder, code, peak >> 20)


def tiff_with_tile(width: int, height: int) -> bytes:
    """A picture of 16x16 pixels in one tile of another size."""
    data = zlib.compress(bytes(1 << 16))
    tags = [
        (256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 4, 1, width), (323, 4, 1, height), (324, 4, 1, 200), (325, 4, 1, len(data)),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return head.ljust(200, b"\0") + data


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
        + chunk(b"IEND", b"")
    )


def patched(kind: str, at: int, value: bytes, size: tuple[int, int] = (32, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind)
    data = bytearray(file.getvalue())
    data[at : at + len(value)] = value
    return bytes(data)


def webp_canvas(width: int, height: int, flags: int = 2) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<IBBH", 10, flags, 0, 0) + canvas + b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    return b"RIFF" + struct.pack("<I", len(body)) + body + bytes(64)


def icon_of(inside: bytes) -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inside), 22) + inside


def jpeg(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "JPEG", progressive=True)
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc2") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg2000(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "JPEG2000")
    data = bytearray(file.getvalue())
    head, size = data.index(b"ihdr") + 4, data.index(b"\xff\x51") + 6
    data[head : head + 8] = struct.pack(">II", height, width)
    data[size : size + 8] = struct.pack(">II", width, height)
    return bytes(data)


LARGE = {"image_too_large", "bad_media"}
PICTURES: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "png": (lambda: png(20_000, 20_000), {"image_too_large"}),
    "png of 2^31": (lambda: png((1 << 31) - 1, (1 << 31) - 1), LARGE),
    "gif": (lambda: patched("GIF", 6, b"\xff\xff\xff\xff"), {"image_too_large"}),
    "bmp": (lambda: patched("BMP", 18, struct.pack("<II", 100_000, 100_000)), {"image_too_large"}),
    "webp canvas": (lambda: webp_canvas(16_000, 16_000), {"image_too_large"}),
    "webp canvas of 2^24": (lambda: webp_canvas(1 << 24, 255), {"image_too_large"}),
    "tiff tile": (lambda: tiff_with_tile(1 << 15, 1 << 14), {"image_too_large"}),
    "tiff tile of 2^31": (lambda: tiff_with_tile(1 << 31, 16), {"image_too_large"}),
    "icon": (lambda: icon_of(png(20_000, 20_000)), LARGE | {"decode_error"}),
    "jpeg": (lambda: jpeg(65_500, 65_500), {"image_too_large"}),
    "jpeg 2000": (lambda: jpeg2000(1 << 20, 1 << 20), LARGE),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str) -> None:
    make, codes = PICTURES[name]
    source = Source(data=make())
    code, peak = measured(lambda: (probe_image(source), decode_image(source)))
    assert code in codes and peak < MOST, (code, peak >> 20)


def with_samples(count: int, size: int = 1) -> bytes:
    """A video whose header promises `count` samples, each of `size` bytes, in one chunk."""
    data = bytearray(video("mp4"))
    at = data.index(b"stsz")
    data[at + 8 : at + 16] = struct.pack(">II", size, count)
    at = data.index(b"stsc")
    data[at + 16 : at + 20] = struct.pack(">I", count)
    return bytes(data)


def fragmented(count: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}) as target:
        stream = target.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for shade in range(8):
            for packet in stream.encode(
                av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * shade, np.uint8), "rgb24")
            ):
                target.mux(packet)
        for packet in stream.encode(None):
            target.mux(packet)
    data = bytearray(file.getvalue())
    at = data.index(b"trun")
    data[at + 4 : at + 12] = struct.pack(">II", 0, count)  # no flags: every sample as the defaults say
    return bytes(data)


def moved_into(box: bytes, data: bytes) -> bytes:
    """The file with its header behind a box of a kind that FFmpeg does not know."""
    return struct.pack(">I", 16) + box + bytes(8) + data


def id3_tag() -> bytes:
    return b"ID3\x04\0\0\0\0\0\x10" + bytes(16)


def mjpeg_of(width: int, height: int) -> bytes:
    data = bytearray(video("avi", "mjpeg"))
    at = 0
    while (at := data.find(b"\xff\xc0", at + 1)) > 0:
        data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def vp8_of(width: int, height: int) -> bytes:
    data = bytearray(video("webm"))
    at = data.index(b"\x9d\x01\x2a")
    data[at + 3 : at + 7] = struct.pack("<HH", width, height)
    return bytes(data)


VIDEOS: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "50 million samples": (lambda: with_samples(50_000_000), {"bad_media"}),
    "170 million samples": (lambda: with_samples(170_000_000), {"bad_media"}),
    "2^32 - 1 samples": (lambda: with_samples(0xFFFFFFFF), {"bad_media"}),
    "behind a box of another kind": (lambda: moved_into(b"free", with_samples(50_000_000)), {"bad_media"}),
    "behind an unknown box": (lambda: moved_into(b"abcd", with_samples(50_000_000)), {"bad_media"}),
    "behind an ID3 tag": (lambda: id3_tag() + with_samples(50_000_000), {"bad_media"}),
    "behind four zero bytes": (lambda: b"\0\0\0\4" + with_samples(50_000_000), {"bad_media"}),
    "a fragment of 50 million samples": (lambda: fragmented(50_000_000), {"bad_media"}),
    "frames of 65500x65500 (mjpeg)": (lambda: mjpeg_of(65_500, 65_500), {"bad_media", "decode_error", "image_too_large", "decode_mismatch"}),
    "frames of 16383x16383 (vp8)": (lambda: vp8_of(16_383, 16_383), {"bad_media", "decode_error", "image_too_large", "decode_mismatch"}),
}  # fmt: skip


@pytest.mark.parametrize("name", VIDEOS)
def test_videos(name: str) -> None:
    make, codes = VIDEOS[name]
    source = Source(data=make())

    def read() -> None:
        facts = probe_video(source)
        read_frames(source, facts, [0, facts.frames - 1])

    code, peak = measured(read)
    assert code in codes and peak < MOST, (code, peak >> 20)
    code, peak = measured(lambda: probe_audio(source, 16000))  # the same file, named as a sound
    assert code == "bad_media" and peak < MOST, (code, peak >> 20)


def test_honest_files_pass() -> None:
    for make in (
        lambda: with_samples(8, 300),
        lambda: fragmented(1),
        lambda: video("mov"),
        lambda: video("mp4", sound="aac"),
    ):
        code, _ = measured(lambda make=make: probe_video(Source(data=make())))
        assert code in ("fine", "decode_error"), code


@pytest.mark.parametrize("chunk", [17, 64, 1000])
def test_counts_of_samples_are_seen_across_the_pieces_of_a_box(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniprep.media.mp4._CHUNK_BYTES", chunk)
    for data in (with_samples(50_000_000), fragmented(50_000_000)):
        with pytest.raises(Reject, match="promises 50,000,000 samples"):
            check_sample_counts(io.BytesIO(data), "clip")
    check_sample_counts(io.BytesIO(with_samples(8)), "clip")


OF_300_MIB: dict[str, Callable[[], bytes]] = {
    "matroska": lambda: video("matroska"),
    "webm": lambda: video("webm"),
    "avi": lambda: video("avi"),
    "flv": lambda: video("flv"),
    "asf": lambda: video("asf", "msmpeg4v3"),
    "mpeg-ts": lambda: video("mpegts", "mpeg2video"),
    "mpeg-ps": lambda: video("vob", "mpeg2video"),
    "mp4 with unused room": lambda: box(b"ftyp", 16) + bytes(8) + box(b"free", 300 << 20),
    "mp4 of much media": lambda: box(b"ftyp", 16) + bytes(8) + box(b"mdat", 300 << 20),
}


def box(name: bytes, length: int) -> bytes:
    return struct.pack(">I4s", length, name)


@pytest.mark.parametrize("container", OF_300_MIB)
def test_large_files_of_every_container_pass(container: str, tmp_path: Path) -> None:
    """300 MiB: more than an MP4 may have of tables. Nothing of a file is held whole, whatever it is."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(OF_300_MIB[container]())
        file.truncate(301 << 20)
    with path.open("rb") as file:
        code, peak = measured(lambda: check_sample_counts(file, "clip"))
    assert code == "fine" and peak < 20 << 20, (code, peak >> 20)


def test_counts_of_sound_hold_no_samples() -> None:
    """Half an hour of m4a is counted in pieces: planning keeps none of its 150 MB."""
    data = video("mp4", sound="aac")
    code, peak = measured(lambda: probe_audio(Source(data=data), 16000))
    assert code == "fine" and peak < MOST
    long = quiet_matroska(8000, 3600)
    code, peak = measured(lambda: probe_audio(Source(data=long), 16000))
    assert code == "fine" and peak < 100 << 20, peak >> 20
