"""What is wrong with a media file is told by name, each fault of a decoder costs its row alone, and none of our own is
taken for a damaged file.

The fuzzers cut, flip and splice real small files (tests/media_files.py) and let each through probe and decode: a result,
or a reject with the code of a damaged file. `make test-slow` runs them for minutes.
"""

import errno
import faulthandler
import io
import os
import signal
import struct
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from omniprep.errors import Reject, RejectCode
from omniprep.media.audio import decode_audio, probe_audio
from omniprep.media.fetch import MediaRoots
from omniprep.media.guard import library_faults, said
from omniprep.media.image import decode_image, probe_image
from omniprep.media.recognize import describe
from omniprep.media.source import Source
from omniprep.media.video import probe_video, read_frames
from tests.media_files import PICTURES, SOUNDS, VIDEOS, picture, sound, video

DAMAGE = {
    "bad_media", "decode_error", "decode_mismatch", "image_too_large", "audio_too_short", "audio_too_long", "bad_audio",
    "no_video_stream", "video_too_long", "media_too_large",
}  # fmt: skip
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>403 Forbidden</body></html>"
HEIC = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(3000)
EMF = struct.pack("<II", 1, 108) + bytes(32) + b" EMF" + bytes(200)
WMF = b"\xd7\xcd\xc6\x9a" + bytes(300)


def read_image(source: Source) -> None:
    size = probe_image(source)
    assert decode_image(source).size == size or source.label


def read_audio(source: Source) -> None:
    probe_audio(source, 16000)
    decode_audio(source, 16000)


def read_video(source: Source) -> None:
    facts = probe_video(source)
    read_frames(source, facts, [0, min(facts.frames - 1, 30)])


READERS: dict[str, Callable[[Source], None]] = {"image": read_image, "audio": read_audio, "video": read_video}


def rejected(kind: str, source: Source) -> Reject:
    with pytest.raises(Reject) as caught:
        READERS[kind](source)
    return caught.value


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (LFS, "Git LFS pointer"),
        (HTML, "HTML page"),
        (b"\n\n  " + HTML.lower(), "HTML page"),
        (b'{"error": "rate limited"}', "JSON text"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML text"),
        (b"<?xml version='1.0'?>\n<!-- x --><svg width='9' height='9'/>", "SVG"),
        (b"plain words, nothing else\n", "a text file"),
        ("ein Satz mit Umläuten: öäü".encode(), "a text file"),
        (HEIC, "HEIC"),
        (EMF, "WMF or EMF"),
        (WMF, "WMF or EMF"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(50), "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"PK\x03\x04" + bytes(100), "ZIP"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (bytes(4000), "zero bytes"),
        (b"#EXTM3U\n#EXTINF:1,\nx.ts\n", "playlist"),
    ],
)  # fmt: skip
def test_what_is_no_media_is_called_by_its_name(kind: str, data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "file.jpg").write_bytes(data)
    for source in (Source(path=str(tmp_path / "file.jpg")), Source(data=data)):
        reject = rejected(kind, source)
        assert reject.code == "bad_media", reject
        assert words in reject.message and "0x" not in reject.message and "<_io" not in reject.message


@pytest.mark.parametrize("kind", READERS)
def test_an_empty_file_is_called_empty(kind: str, tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"")
    reject = rejected(kind, Source(path=str(tmp_path / "none")))
    assert reject.code == "bad_media" and "empty" in reject.message


def test_media_of_another_kind_are_called_by_their_kind() -> None:
    assert "JPEG picture, not audio" in rejected("audio", Source(data=picture("JPEG"))).message
    assert "WAV sound, not an image" in rejected("image", Source(data=sound("WAV"))).message
    assert "MP4" in rejected("image", Source(data=video())).message
    assert rejected("video", Source(data=sound("WAV"))).code == "no_video_stream"


def test_a_flac_of_a_pipe_says_so() -> None:
    """Its header has 0 for the number of samples, which means unknown: 0.5 s are not "longer than 24 hours"."""
    data = bytearray(sound("FLAC"))
    at = data.index(b"fLaC") + 8 + 13  # STREAMINFO: the low 4 bits of byte 13, then 4 bytes
    data[at] &= 0xF0
    data[at + 1 : at + 5] = bytes(4)
    reject = rejected("audio", Source(data=bytes(data)))
    assert reject.code == "bad_media" and "does not say how long" in reject.message


@pytest.mark.parametrize("stray", ["._", ".AppleDouble"])
def test_a_resource_fork_in_the_working_folder_is_told(
    stray: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libsndfile reads it in place of every MP3 without a tag; FFmpeg's samples would differ from the reference's."""
    monkeypatch.chdir(tmp_path)
    source = Source(data=sound("MP3"))
    read_audio(source)
    if stray == ".AppleDouble":
        (tmp_path / stray).mkdir()
    else:
        (tmp_path / stray).write_bytes(b"")
    reject = rejected("audio", source)
    assert reject.code == "decode_error" and stray in reject.message


LONG_PATH = "/mnt/data/" + "folder/" * 30 + "gone.jpg"


@pytest.mark.parametrize(
    "named",
    [LONG_PATH, LONG_PATH[:-4], LONG_PATH[:-4] + "x", LONG_PATH[1:], "C:\\" + "data\\" * 50 + "a.png", "../" * 80 + "a", "photos-" * 40 + ".wav"],
)  # fmt: skip
def test_a_long_path_that_is_absent_is_not_called_base64(named: str) -> None:
    with pytest.raises(Reject) as caught:
        source = MediaRoots(".").locate(named)
        probe_image(source)
    assert caught.value.code in ("media_not_found", "bad_media")
    assert "no such file" in caught.value.message or "names no file" in caught.value.message
    assert named[:20] in caught.value.message


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("a\0.png", "NUL"),
        ("a\0" + "x" * 300, "NUL"),
        ("photo_\ud83d.png", "surrogate"),
        ("\udce9" * 300, "surrogate"),
        ("folder", "a folder, not a file"),
        ("pipe.png", "a device, pipe or socket, not a file"),
        ("x" * 190, "no such file"),
        ("x/" * 90 + "a.png", "no such file"),
        ("y" * 5000 + ".png", ""),
        ("/dev/zero", "a device, pipe or socket, not a file"),
    ],
)
def test_odd_paths_are_rejects_that_say_why(named: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(Reject) as caught:
        probe_image(MediaRoots(str(tmp_path)).locate(named))
    assert caught.value.code in ("media_not_found", "bad_media", "bad_base64")
    assert words in caught.value.message
    caught.value.message.encode()  # can be written


def test_base64_of_a_picture_is_still_read() -> None:
    import base64

    text = base64.b64encode(picture("PNG")).decode()
    for named in (text, f"data:image/png;base64,{text}", "\n".join(text[i : i + 76] for i in range(0, len(text), 76))):
        assert probe_image(MediaRoots(".").locate(named)) == (48, 32)


# ---- faults of libraries and of our own


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("division by zero"), struct.error("unpack"), zlib.error("-3"), AttributeError("x"), RuntimeError("y"),
     NotImplementedError("mode"), UnicodeDecodeError("ascii", b"\xff", 0, 1, "ordinal"), AssertionError(), KeyError(3), RecursionError()],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_whatever_a_library_raises_rejects_the_row(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    source = compile("def broken(*args, **options):\n    raise error", "/site-packages/library.py", "exec")
    names: dict[str, Any] = {"error": error}
    exec(source, names)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", names["broken"])
    with pytest.raises(Reject) as caught:
        decode_image(Source(data=picture("PNG")))
    assert caught.value.code == "decode_error" and caught.value.__cause__ is error


def test_our_own_defects_are_not_taken_for_damaged_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception raised in a frame of omniprep goes through, even from below the library's frames."""

    def defect(self: object, buffer: object) -> int:
        raise ZeroDivisionError("ours")

    import omniprep.media.source as module

    code = defect.__code__.replace(co_filename=module.__file__)
    source = Source(data=memoryview(picture("PNG")))
    with source.open() as file:
        file_class = type(file.raw)
    monkeypatch.setattr(file_class, "readinto", type(defect)(code, {"ZeroDivisionError": ZeroDivisionError}))
    with pytest.raises(ZeroDivisionError, match="ours"):
        probe_image(source)


def test_messages_of_libraries_hold_nothing_of_the_process() -> None:
    for text in ("Error opening <_io.BytesIO object at 0x7f00f2cab3d0>: unknown", "Invalid data: '/dev/fd/7'"):
        message = said(OSError(text))
        assert "0x7f" not in message and "/dev/fd/7" not in message and "the file" in message
    with pytest.raises(Reject, match=r"x.png: \[Errno 22\] Error"), library_faults("x.png", RejectCode.BAD_MEDIA):
        raise_in_library()


def raise_in_library() -> None:
    raise OSError(errno.EINVAL, "Error")


# ---- fuzzers

FILES: dict[str, list[Callable[[], bytes]]] = {
    "image": [lambda kind=kind: picture(kind) for kind in PICTURES]
    + [lambda: picture("GIF", frames=3), lambda: picture("WEBP", frames=3), lambda: picture("PNG", frames=3)]
    + [lambda: picture("TIFF", mode="CMYK"), lambda: picture("PNG", mode="P"), lambda: picture("JPEG", mode="L")],
    "audio": [lambda kind=kind: sound(kind, frames=2000) for kind in SOUNDS]
    + [lambda: sound("WAV", "MS_ADPCM", frames=2000), lambda: sound("AIFF", "FLOAT", frames=2000, channels=2)],
    "video": [lambda kind=kind: video(kind) for kind in VIDEOS]
    + [lambda: video("avi", "mjpeg"), lambda: video("mp4", sound="aac"), lambda: video("matroska", sound="libopus")],
}


@st.composite
def damaged(draw: st.DrawFn, kind: str) -> bytes:
    """A real file, cut, with bits flipped, numbers overwritten, and parts of another spliced in."""
    data = bytearray(draw(st.sampled_from(FILES[kind]))())
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        # Headers are where sizes stand: most damage is done there.
        at = draw(st.integers(0, min(len(data), 400) - 1) | st.integers(0, len(data) - 1))
        match draw(st.sampled_from(("flip", "number", "cut", "splice", "repeat", "drop"))):
            case "flip":
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "number":
                width = draw(st.sampled_from((1, 2, 4, 8)))
                value = draw(
                    st.sampled_from((0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63))
                )
                data[at : at + width] = (value % (1 << 8 * width)).to_bytes(
                    width, draw(st.sampled_from(("little", "big")))
                )
            case "cut":
                del data[at:]
            case "splice":
                other = draw(st.sampled_from(FILES[kind]))()
                data[at : at + 50] = other[at : at + 50]
            case "repeat":
                data[at:at] = data[at : at + 30]
            case "drop":
                del data[at : at + draw(st.integers(1, 40))]
    return bytes(data)


def check_one(kind: str, data: bytes) -> None:
    if not data:
        return
    try:
        READERS[kind](Source(data=data))
    except Reject as reject:
        assert str(reject.code) in DAMAGE, reject
        assert "0x7f" not in reject.message and reject.message.isprintable(), reject.message


def in_a_child(check: Callable[[], None]) -> None:
    """Damaged videos end the process now and then (segmentation faults of decord's FFmpeg of 2018): a build's worker is
    isolated for that (decoder_crash), and so is each example here. What Python raises must be right all the same.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            faulthandler.disable()  # pytest's: a crash is no news here
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.alarm(30)
            check()
            os._exit(0)
        except BaseException:
            os.write(writing, traceback.format_exc()[-4000:].encode())
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said_there = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) != signal.SIGALRM, "reading did not end within 30 s"
    else:
        assert os.WEXITSTATUS(status) == 0, said_there


QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
LONG = settings(max_examples=4000, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@example(EMF)
@example(WMF)
@given(damaged("image"))
def test_damaged_pictures(data: bytes) -> None:
    check_one("image", data)


@QUICK
@given(damaged("audio"))
def test_damaged_sounds(data: bytes) -> None:
    check_one("audio", data)


@QUICK
@given(damaged("video"))
def test_damaged_videos(data: bytes) -> None:
    in_a_child(lambda: check_one("video", data))


ROW_CODES = DAMAGE | {"aspect_ratio", "video_too_short", "bad_video_option", "no_audio_track", "row_too_long"}


def check_in_a_row(kind: str, data: bytes, model: Path) -> None:
    """The same through a whole row: what the family counts and maps of such a file, with the sound of videos too."""
    from omniprep.compiler.encode.rows import MediaCache, encode_planned
    from omniprep.compiler.options import family_of
    from omniprep.compiler.plan.rows import plan_rows
    from omniprep.compiler.run.workers import single_threaded
    from omniprep.config import BuildConfig

    config = BuildConfig(
        model=str(model), bin_length=100_000, video_max_pixels=100_352, use_audio_in_video=kind == "video"
    )
    ctx = family_of(config)
    row = {
        "messages": [{"role": "user", "content": f"<{kind}>q"}, {"role": "assistant", "content": "a"}],
        f"{kind}s": [{"bytes": data or b"0"}],
    }
    with single_threaded():  # as workers do it; and a forked child has no threads to wait for
        planned = plan_rows([row], ctx, config, MediaRoots("."))[0]
        if not isinstance(planned, Reject):
            try:
                encode_planned(planned, ctx, config, MediaCache(0))
            except Reject as reject:
                planned = reject
    assert not isinstance(planned, Reject) or str(planned.code) in ROW_CODES, planned


@QUICK
@given(data=damaged("image"))
def test_damaged_pictures_in_rows(data: bytes, model_dir: Path) -> None:
    check_in_a_row("image", data, model_dir)


@QUICK
@given(data=damaged("audio"))
def test_damaged_sounds_in_rows(data: bytes, model_dir: Path) -> None:
    check_in_a_row("audio", data, model_dir)


@pytest.fixture(scope="module")
def loaded_model(model_dir: Path) -> Path:
    """The model, with the family and its libraries in this process, so that no child loads them anew."""
    check_in_a_row("image", picture("PNG"), model_dir)
    return model_dir


@pytest.mark.slow
@settings(LONG, max_examples=1000)
@given(data=damaged("video"))
def test_damaged_videos_in_rows(data: bytes, loaded_model: Path) -> None:
    in_a_child(lambda: check_in_a_row("video", data, loaded_model))


@pytest.mark.slow
@settings(LONG, max_examples=1000)
@given(data=damaged("image") | damaged("audio"), kind=st.sampled_from(("image", "audio")))
def test_damaged_media_in_rows_for_minutes(data: bytes, kind: str, model_dir: Path) -> None:
    check_in_a_row(kind, data, model_dir)


@pytest.mark.slow
@LONG
@given(damaged("image"))
def test_damaged_pictures_for_minutes(data: bytes) -> None:
    check_one("image", data)


@pytest.mark.slow
@LONG
@given(damaged("audio"))
def test_damaged_sounds_for_minutes(data: bytes) -> None:
    check_one("audio", data)


@pytest.mark.slow
@settings(LONG, max_examples=1500)
@given(damaged("video"))
def test_damaged_videos_for_minutes(data: bytes) -> None:
    in_a_child(lambda: check_one("video", data))


def test_first_bytes_of_real_files_are_known() -> None:
    for make in (*FILES["image"], *FILES["audio"], *FILES["video"]):
        head = make()[:512]
        if head[:2] in (b"P6", b".s", b"ri") or head[:4] in (b"\0\0\1\0", b".snd") or head[:1] == b"G":
            continue  # PPM, AU, W64, ICO, MPEG-TS: too weak a mark, or too rare, to name
        assert describe(head) is not None, head[:16]
    assert describe(b"\x00\x01\x02\xfe\xfd") is None
    assert describe(b"") == "an empty file"


def test_a_picture_is_never_opened_with_a_format_that_is_not_named() -> None:
    """Pillow alone would take these; TGA, PCD and IM have no signature, and EPS starts a program."""
    for kind in ("TGA", "PCX", "EPS", "SGI", "IM", "DDS"):
        file = io.BytesIO()
        Image.new("RGB", (40, 30), (9, 8, 7)).save(file, kind)
        assert rejected("image", Source(data=file.getvalue())).code == "bad_media", kind


def test_a_flac_that_is_cut_is_said_to_be() -> None:
    """libsndfile says "Internal psf_fseek() failed." of it; the reference fails too."""
    whole = sound("FLAC")
    for size in (100, len(whole) // 2, len(whole) - 100):
        assert "cut or damaged" in rejected("audio", Source(data=whole[:size])).message


def test_messages_hold_no_number_of_an_open_file(tmp_path: Path) -> None:
    """It differs from run to run, and rejected.jsonl must not."""
    (tmp_path / "a.wav").write_bytes(bytes(range(1, 200)) * 9)
    with open(os.devnull, "rb"):
        first = rejected("audio", Source(path=str(tmp_path / "a.wav"))).message
    assert first == rejected("audio", Source(path=str(tmp_path / "a.wav"))).message
    assert first.endswith("not audio that can be read (Invalid data found when processing input)")


def test_pictures_of_other_formats_are_told_what_is_read() -> None:
    data = io.BytesIO()
    Image.new("RGB", (30, 20)).save(data, "PCX")
    assert "JPEG, PNG, WebP" in rejected("image", Source(data=data.getvalue())).message


def test_objects_that_name_no_file_are_told_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(Reject, match=r"an object with 'array', 'sampling_rate'; it needs bytes, path or url"):
        MediaRoots(str(tmp_path)).locate({"array": [0.5], "sampling_rate": 16000})


def test_a_scheme_that_nobody_knows_is_named(tmp_path: Path) -> None:
    """And a path with the mark of one in it is a path."""
    with pytest.raises(Reject, match="weird:// is no kind of store that is known") as caught:
        MediaRoots(str(tmp_path)).locate("weird://x/a.png")
    assert caught.value.code == "media_not_found"
    with pytest.raises(Reject) as caught:
        MediaRoots(str(tmp_path)).locate("s3://x/a.png")
    assert caught.value.code == "media_outside_root"
    (tmp_path / "odd:").mkdir()
    (tmp_path / "odd:" / "a.png").write_bytes(b"picture")
    for name in ("./odd://a.png", f"{tmp_path}/odd://a.png"):
        assert MediaRoots(str(tmp_path)).locate(name).read() == b"picture"


def test_a_sound_ends_where_the_reference_stops_reading() -> None:
    """libsndfile's read ends at a damaged part of an MP3, and another one goes on behind it: samples were counted that
    decoding does not give, and the row was rejected (decode_mismatch).
    """
    whole = sound("MP3", frames=24_000)
    for at in range(0, len(whole) - 200, 13):
        source = Source(data=whole[:at] + b"\xff" * 200 + whole[at + 200 :])
        try:
            samples = decode_audio(source, 16000)
        except Reject:
            continue
        assert probe_audio(source, 16000) == len(samples)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 1 << 40, 17])
def test_a_box_that_is_longer_than_its_file(tmp_path: Path, length: int) -> None:
    """No seek takes 2**63: it was an OSError of our own."""
    whole = video("mp4")
    box = struct.pack(">I4sQ", 1, b"free", length)
    first = struct.unpack(">I", whole[:4])[0]
    (tmp_path / "a.mp4").write_bytes(whole[:first] + box + whole[first:])
    for source in (Source(path=str(tmp_path / "a.mp4")), Source(data=(tmp_path / "a.mp4").read_bytes())):
        try:
            read_video(source)
        except Reject as reject:
            assert reject.code in DAMAGE
