"""Broken files of every format: each packs or is rejected with a code, and none ends the process or meets an unforeseen
exception.

The files are made from tests/golden/media with fixed seeds: cut off, bits flipped in header and body, under another
kind's name, empty, zeros, noise, and bombs whose headers promise far more than the file holds.
"""

import json
import random
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from omniprep.errors import Reject, RejectCode
from omniprep.media.fetch import MediaRoots
from omniprep.media.source import Source
from tests.reliability import codes, command, in_fork, run_cli, wait_for, warm

MEDIA = Path(__file__).parent / "golden" / "media"
KIND = {
    "image": ("rgb.jpg", "progressive.jpg", "rgb.png", "palette.png", "interlaced.png", "rgb16.png", "lossy.webp", "lossless.webp", "animated.gif",
              "animated.webp", "lzw.tiff", "cmyk.tiff", "rgb.bmp"),
    "audio": ("pcm24.wav", "u8.wav", "ulaw8k.wav", "stereo24.flac", "stereo.ogg", "mono.opus", "stereo.mp3", "tone.m4a", "mono.aiff"),
    "video": ("h264_25.mp4", "hevc.mp4", "vp9.webm", "h264.mkv", "mjpeg.avi", "sound25.mp4", "static.gif"),
}  # fmt: skip
LARGE = 400_000


def png_bomb(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(bytes(1 << 16))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


def wav_bomb(rate: int, data_bytes: int, channels: int = 1, bits: int = 16) -> bytes:
    block = channels * bits // 8
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, bits)
    return (
        b"RIFF"
        + struct.pack("<I", 0xFFFFFFFF)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + fmt
        + b"data"
        + struct.pack("<I", data_bytes)
        + bytes(2000)
    )


def bombs() -> Iterator[tuple[str, str, bytes]]:
    for size in ((1 << 31) - 1, 65535, 20000):
        yield "image", f"bomb{size}.png", png_bomb(size, size)
    yield "image", "zero.png", png_bomb(0, 10)
    yield "image", "thin.png", png_bomb(100000, 1)
    yield "image", "lzma.tiff", b"II*\0\x08\0\0\0" + b"\xff" * 500
    gif = bytearray((MEDIA / "static.gif").read_bytes())
    gif[6:10] = b"\xff\xff\xff\xff"
    yield "image", "bomb.gif", bytes(gif)
    bmp = bytearray((MEDIA / "rgb.bmp").read_bytes())
    for value in (0x7FFFFFFF, 0x80000000, 0):
        bmp[18:22] = struct.pack("<I", value)
        yield "image", f"bomb{value}.bmp", bytes(bmp)
    for rate in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
        yield "audio", f"rate{rate}.wav", wav_bomb(rate, 2000)
    yield "audio", "long.wav", wav_bomb(16000, 0xFFFFFFF0)
    yield "audio", "channels.wav", wav_bomb(16000, 2000, 65535)
    yield "audio", "nochannel.wav", wav_bomb(16000, 2000, 0)
    flac = bytearray((MEDIA / "stereo24.flac").read_bytes())
    flac[21:26] = b"\xff" * 5  # total samples
    yield "audio", "long.flac", bytes(flac)
    mp4 = (MEDIA / "h264_25.mp4").read_bytes()
    for box in (b"stts", b"stsz", b"stco", b"stsc", b"mdhd", b"tkhd", b"avcC", b"moov", b"trak"):
        at = mp4.find(box)
        if at > 0:
            yield "video", f"{box.decode()}.mp4", mp4[: at + 4] + b"\xff" * 12 + mp4[at + 16 :]
    text = "#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    yield "video", "playlist.mp4", text.encode()  # ffmpeg would open the files a playlist names
    yield "video", "concat.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "audio", "playlist.wav", text.encode()
    yield "image", "postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) run\n"
    yield "image", "svg.png", b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>"


def hostile_files() -> Iterator[tuple[str, str, bytes]]:
    """(kind it is used as, name, bytes), the same in every run."""
    rng = random.Random(4)
    for kind, names in KIND.items():
        for name in names:
            data = (MEDIA / name).read_bytes()[:LARGE]
            stem, suffix = name.split(".")
            for part in (0.02, 0.2, 0.5, 0.9, 0.999):
                yield kind, f"{stem}-cut{part}.{suffix}", data[: int(len(data) * part)]
            for number in range(5):
                broken = bytearray(data)
                region = min(len(broken), 200) if number < 2 else len(broken)
                for _ in range(3 if number < 2 else max(4, len(broken) // 2000)):
                    broken[rng.randrange(region)] ^= 1 << rng.randrange(8)
                yield kind, f"{stem}-flip{number}.{suffix}", bytes(broken)
            yield kind, f"{stem}-empty.{suffix}", b""
            yield kind, f"{stem}-noise.{suffix}", data[:16] + rng.randbytes(3000)
            other = {"image": "audio", "audio": "video", "video": "image"}[kind]
            yield other, f"{stem}-as-{other}.{suffix}", data
    for kind in KIND:
        for suffix in ("png", "wav", "mp4"):
            yield kind, f"zeros-{kind}.{suffix}", bytes(5000)
            yield kind, f"noise-{kind}.{suffix}", rng.randbytes(5000)
    yield from bombs()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with every file and a row for each."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = []
    for kind, name, data in hostile_files():
        (folder / name).write_bytes(data)
        rows.append(
            {
                "messages": [{"role": "user", "content": f"<{kind}>what?"}, {"role": "assistant", "content": "ok"}],
                f"{kind}s": [name],
            }
        )
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(rows) == len({p.name for p in folder.iterdir()}) - 1
    return folder, len(rows)


def test_at_least_300_files() -> None:
    made = [(kind, name, zlib.crc32(data)) for kind, name, data in hostile_files()]
    assert len(made) >= 300 and made == [(kind, name, zlib.crc32(data)) for kind, name, data in hostile_files()]


@pytest.mark.slow
def test_none_crashes_and_each_has_a_code(hostile: tuple[Path, int], tmp_path: Path, model_dir: Path) -> None:
    folder, count = hostile
    warm(model_dir)
    log = tmp_path / "log"
    args = command(
        [folder / "chats.jsonl"],
        model_dir,
        tmp_path / "out",
        "--bin-length",
        8192,
        "--shard-size",
        50_000_000,
        "--decode-timeout",
        60,
    )
    assert wait_for(in_fork(lambda: run_cli(args), log), 900) == 0, log.read_text()[-3000:]
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]["rows"]
    assert counts["read"] == count == counts["packed"] + counts["rejected"]
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    unforeseen = [
        r for r in rejects if r["code"] in ("internal_error", "decoder_crash", "decode_timeout", "decode_memory")
    ]
    assert not unforeseen, unforeseen
    assert all(r["message"] for r in rejects)
    print(count, "files,", counts, codes(tmp_path / "out"))


def test_a_sample_through_probe_and_decode(hostile: tuple[Path, int]) -> None:
    """The media layer alone, every third file: a Reject or a result, nothing else."""
    from omniprep.media.audio import decode_audio, probe_audio
    from omniprep.media.image import decode_image, probe_image
    from omniprep.media.video import probe_video, read_frames

    found: Counter[str] = Counter()
    for kind, name, _ in list(hostile_files())[::3]:
        source = Source(path=str(hostile[0] / name))
        inline = Source(data=(hostile[0] / name).read_bytes())
        for how in (source, inline):
            try:
                if kind == "image":
                    probe_image(how)
                    decode_image(how)
                elif kind == "audio":
                    probe_audio(how, 16000)
                    decode_audio(how, 16000)
                else:
                    facts = probe_video(how)
                    read_frames(how, facts, [0, facts.frames - 1])
                found["fine"] += 1
            except Reject as reject:
                found[str(RejectCode(reject.code))] += 1
    assert found["fine"] > 5 and found["bad_media"] > 20, found


def test_playlists_open_nothing(tmp_path: Path) -> None:
    """A text file that names a video outside the folder must not bring its pictures in, whatever it is called."""
    from omniprep.media.audio import decode_audio
    from omniprep.media.video import probe_video

    secret = tmp_path / "secret" / "sound25.mp4"
    secret.parent.mkdir()
    secret.write_bytes((MEDIA / "sound25.mp4").read_bytes())
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\n{secret}\n#EXT-X-ENDLIST\n"
    concat = f"ffconcat version 1.0\nfile '{secret}'\n"
    for text in (
        hls,
        "\ufeff" + hls,
        concat,
        "  \n" + hls,
        "plain words",
        "v=0\nc=IN IP4 127.0.0.1\nm=video 5000 RTP/AVP 96\n",
    ):
        path = tmp_path / "clip.mp4"
        path.write_text(text)
        for source in (Source(path=str(path)), Source(data=text.encode())):
            with pytest.raises(Reject) as video:
                probe_video(source)
            with pytest.raises(Reject) as audio:
                decode_audio(source, 16000)
            assert video.value.code == audio.value.code == "bad_media"


@pytest.mark.parametrize("container", ["mjpeg.avi", "mjpeg.mov"])
def test_an_mjpeg_frame_cut_short_is_rejected(container: str, tmp_path: Path) -> None:
    """Its missing part would be whatever the memory held: other bytes in each build."""
    import av

    from omniprep.media.video import probe_video

    name = tmp_path / container
    options = {"movflags": "faststart"} if container.endswith("mov") else {}
    with av.open(str(MEDIA / "mjpeg.avi")) as source, av.open(str(name), "w", options=options) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    assert probe_video(Source(path=str(name))).frames
    data = name.read_bytes()
    name.write_bytes(data[: len(data) * 4 // 5])
    with pytest.raises(Reject) as caught:
        probe_video(Source(path=str(name)))
    assert caught.value.code == RejectCode.DECODE_ERROR


def test_messages_of_decord_hold_no_time() -> None:
    from omniprep.media.guard import said

    error = RuntimeError("[08:45:29] /github/workspace/src/video/reader.cc:270: [a.mp4] Failed to measure duration")
    assert said(error) == "[a.mp4] Failed to measure duration"


def test_inline_nonsense() -> None:
    for named in (
        "data:image/png;base64,@@@",
        "data:image/png,xx",
        "data:",
        "A" * 300 + "=",
        "é" * 400,
        b"",
        bytearray(),
        {"bytes": b""},
    ):
        with pytest.raises(Reject):
            source = MediaRoots(".").locate(named)
            from omniprep.media.image import probe_image

            probe_image(source)
