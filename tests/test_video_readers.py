"""PyAV in decord's place: the same frames, or decord decodes. Clips of every codec and oddity: tests/video_clips.py."""

import dataclasses
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omniprep.errors import Reject, RejectCode
from omniprep.media import conversion, video
from omniprep.media.access_units import parameters, parser
from omniprep.media.frames import UnprovenError, open_stream
from omniprep.media.packets import PacketTable
from omniprep.media.resample import resize
from omniprep.media.source import Source
from omniprep.media.video import ALONE, DECORD, PROVEN, VideoFacts, probe_video, read_frames
from tests.test_media_faults import in_a_child
from tests.video_clips import BT709, CLIPS, FILM_GRAIN, JPEG, TURNED, Clip, clip, joined, message

decord = pytest.importorskip("decord", reason="the reader of the reference, which others are held against")
decord.logging.set_level(decord.logging.FATAL)

FAST = (
    "H.264: B-frames, one group", "H.264: groups of 8", "H.264: many B-frames, pyramid",
    "H.264: Matroska with sound", "H.264: MP4 with sound", "H.264: AVI", "H.264: AVI with B-frames", "H.264: fragmented MP4",
    "H.264: variable rate", "H.264: key frames only", "H.264: no B-frames", "H.264: 4:4:4", "H.264: BT.709", "H.264: full range", "H.264: 720p",
    "H.264: rotated by 90", "H.264: rotated by 180", "H.264: rotated by 270",
    "HEVC: closed groups", "HEVC: one group", "HEVC: temporal layers", "HEVC: Matroska",
    "H.264: film grain halfway", "HEVC: film grain halfway",
)  # fmt: skip
"""Clips that PyAV decodes: a change that leaves them to decord would be slow, and nothing else would tell."""
DIFFERENT = (
    "H.264: 10 bits", "H.264: tiny", "H.264: open groups", "H.264: interlaced", "H.264: edit list that drops frames",
    "H.264: MPEG-TS", "VP9: WebM", "MPEG-4: AVI", "MJPEG: MOV", "H.264: turned halfway", "HEVC: turned halfway",
)  # fmt: skip
"""Clips that PyAV decodes otherwise, or is not known to decode as decord does."""


def source(name: str) -> Source:
    try:
        return Source(data=clip(name))
    except Exception as error:
        if type(error).__module__.startswith("av"):
            pytest.skip(f"this PyAV cannot make the clip: {error}")
        raise


def by_decord(data: bytes, indices: list[int]) -> np.ndarray | None:
    """What the reference reads; None where it fails."""
    try:
        frames: np.ndarray = decord.VideoReader(io.BytesIO(data), num_threads=1).get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError, AssertionError):
        return None
    return frames


def ours(file: Source, facts: VideoFacts, indices: list[int]) -> np.ndarray | None:
    try:
        return read_frames(file, facts, indices)
    except Reject:
        return None


def same(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    return first is second if first is None or second is None else np.array_equal(first, second)


def index_lists(frames: int) -> list[list[int]]:
    rng = random.Random(frames)
    some = [sorted(rng.choices(range(frames), k=count)) for count in (1, 2, 3, 4, 6, 9, 20)]
    return [[0], [frames - 1], list(range(frames)), list(range(frames - 1, -1, -max(1, frames // 4))), *some]


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_of_the_reference(name: str) -> None:
    """Whatever the gate decides, for any choice of frames: number, rate and pixels are decord's."""
    damage = "lost" in name or "flipped" in name

    def check() -> None:
        file = source(name)
        try:
            theirs = decord.VideoReader(io.BytesIO(clip(name)), num_threads=1)
            frames, fps = len(theirs), theirs.get_avg_fps()
        except (decord.DECORDError, RuntimeError, AssertionError):
            return  # what decord cannot read has tests of its own
        try:
            facts = probe_video(file)
        except Reject:
            assert damage or by_decord(clip(name), [0]) is None
            return
        assert (facts.frames, facts.fps) == (frames, fps)
        for indices in index_lists(facts.frames):
            first, second = ours(file, facts, indices), by_decord(clip(name), indices)
            # What decord's threads make of damage differs from one reading to the next.
            if not damage or (facts.reader == PROVEN and first is not None and second is not None):
                assert same(first, second), (facts, indices)

    source(name)  # skipped here where it cannot be made
    in_a_child(check)


@pytest.mark.parametrize("name", FAST)
def test_pyav_decodes_the_usual_videos(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And decord decodes none of their frames beyond the first."""
    file = source(name)
    facts = probe_video(file)
    assert facts.reader == PROVEN, facts.reason
    monkeypatch.setattr(video, "_read_by_decord", lambda *_: pytest.fail("decord was asked"))
    read_frames(file, facts, [0, facts.frames // 2, facts.frames - 1])


@pytest.mark.parametrize("name", DIFFERENT)
def test_decord_decodes_what_is_not_certain(name: str) -> None:
    facts = probe_video(source(name))
    assert facts.reader == DECORD and facts.reason


def test_other_colors_leave_a_video_to_decord(monkeypatch: pytest.MonkeyPatch) -> None:
    """A libswscale that rounds otherwise is seen on noise, even where the first frame is black."""
    file = source("H.264: groups of 8")
    rgb = conversion.Converter.rgb

    def brighter_above_200(self: Any, frame: Any) -> np.ndarray:
        pixels = rgb(self, frame).copy()
        pixels[pixels > 200] += 1
        return pixels

    conversion.unequal.cache_clear()
    monkeypatch.setattr(conversion.Converter, "rgb", brighter_above_200)
    try:
        facts = probe_video(file)
    finally:
        conversion.unequal.cache_clear()
    assert facts.reader == DECORD and "colors" in facts.reason


def test_a_first_frame_that_differs_leaves_a_video_to_decord(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video.DecordReader, "first", lambda self: np.zeros((96, 128, 3), np.uint8))
    facts = probe_video(source("H.264: groups of 8"))
    assert facts.reader == DECORD and "first frame" in facts.reason


def test_a_change_of_the_size_halfway_is_left_to_decord() -> None:
    """Two transport streams end to end: the plan sees the first one alone."""
    options = (("x264-params", "keyint=250"),)
    first = Clip(container="mpegts", frames=6, options=options).make()
    second = Clip(container="mpegts", frames=6, size=(64, 48), times=lambda n: 600 + 100 * n, options=options).make()
    file = Source(data=first + second)
    facts = probe_video(file)
    for indices in index_lists(facts.frames):
        assert same(ours(file, facts, indices), by_decord(file.read(), indices)), (facts, indices)


HEADERS_IN_PACKETS = (("x264-params", "keyint=12:repeat-headers=1"),)


@pytest.mark.parametrize(
    "second",
    [Clip(range=JPEG), Clip(matrix=BT709), Clip(size=(64, 48)), Clip(pixels="yuv444p")],
    ids=["range", "matrix", "size", "chroma"],
)
def test_other_parameters_halfway_are_left_to_decord(second: Clip) -> None:
    """Beginning with the plan: no wanted frame may show the change, and decord converts colors by what it saw before
    (from one reading to the next otherwise, so its frames cannot be compared).
    """
    first = Clip(options=HEADERS_IN_PACKETS)
    facts = probe_video(Source(data=joined(first, first)))
    assert facts.reader == PROVEN and facts.frames == 80, facts.reason
    facts = probe_video(Source(data=joined(first, dataclasses.replace(second, options=HEADERS_IN_PACKETS))))
    assert facts.reader == DECORD and facts.reason.startswith("several parameter sets"), facts.reason


@pytest.mark.parametrize("matrix", [8, 10], ids=["YCgCo", "BT.2020 constant luminance"])
def test_matrices_that_libswscale_refuses_are_left_to_decord(matrix: int) -> None:
    file = Source(data=Clip(matrix=matrix).make())
    facts = probe_video(file)
    assert facts.reader == DECORD and str(matrix) in facts.reason, facts.reason
    assert same(ours(file, facts, [0, 7]), by_decord(file.read(), [0, 7]))


def test_colors_that_change_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the packets not tell."""
    file, of, seen = source("H.264: groups of 8"), conversion.Colors.of, []
    facts = probe_video(file)

    def changing(frame: Any) -> conversion.Colors:
        seen.append(frame)
        return of(frame)._replace(matrix=BT709 if len(seen) > 1 else 2)

    monkeypatch.setattr(conversion.Colors, "of", changing)
    asked: list[Any] = []
    monkeypatch.setattr(video, "_read_by_decord", lambda *arguments: asked.append(arguments))
    read_frames(file, facts, [0, 20])
    assert len(seen) == 2 and len(asked) == 1


def test_an_avi_gives_the_frames_that_decord_gives() -> None:
    """It has no presentation times: decord's seek ends at the start of the file, and it counts on from there."""
    file = source("H.264: AVI")
    facts = probe_video(file)
    everything = read_frames(file, facts, range(facts.frames))
    assert np.array_equal(read_frames(file, facts, [8])[0], everything[0])
    assert np.array_equal(read_frames(file, facts, [0, 11])[1], everything[3])


@pytest.mark.parametrize("name", ["AV1: MP4", "AV1: WebM", "AV1: 10 bits"])
def test_what_decord_cannot_read_is_read_by_pyav(name: str) -> None:
    """Counted as decord would: a frame is a packet; the rate is the container's mean."""
    import av

    file = source(name)
    facts = probe_video(file)
    assert facts.reader == ALONE and (facts.frames, facts.fps) == (40, 10.0)
    with av.open(io.BytesIO(clip(name))) as container:
        converter = conversion.Converter()
        expected = [converter.rgb(frame) for frame in container.decode(video=0)]
    assert np.array_equal(read_frames(file, facts, [0, 7, 7, 39]), np.stack([expected[n] for n in (0, 7, 7, 39)]))


@pytest.mark.parametrize("name", FAST)
def test_a_machine_without_decord_counts_and_reads_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = source(name)
    with_decord = probe_video(file)
    monkeypatch.setattr(video, "backend", lambda: "pyav")
    facts = probe_video(file)
    assert facts == dataclasses.replace(with_decord, reader=ALONE)
    for indices in index_lists(facts.frames):
        assert same(ours(file, facts, indices), by_decord(clip(name), indices)), indices


@pytest.mark.parametrize("name", ["H.264: many B-frames, pyramid", "H.264: several slices", "HEVC: closed groups"])
def test_threads_of_a_decoder_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from omniprep.media.frames import VideoStream

    file = source(name)
    facts, made = probe_video(file), VideoStream.__init__
    expected = read_frames(file, facts, [3, 17, 38])

    def with_threads(self: VideoStream, *arguments: Any) -> None:
        made(self, *arguments)
        self.codec.thread_type, self.codec.thread_count = "AUTO", 4

    monkeypatch.setattr(VideoStream, "__init__", with_threads)
    assert np.array_equal(read_frames(file, facts, [3, 17, 38]), expected)


@pytest.mark.parametrize("size", [(64, 48), (200, 152), (128, 96)])
@pytest.mark.parametrize("name", ["H.264: groups of 8", "VP9: WebM", "AV1: MP4"])
def test_frames_resized_as_they_come_are_those_resized_together(name: str, size: tuple[int, int]) -> None:
    file = source(name)
    facts, indices = probe_video(file), [0, 5, 5, 30]
    assert np.array_equal(read_frames(file, facts, indices, size), resize(read_frames(file, facts, indices), size))


def test_packets_beyond_what_is_kept_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("H.264: groups of 8", "H.264: Matroska", "H.264: AVI", "AV1: WebM"):
        file = source(name)
        facts = probe_video(file)
        expected = read_frames(file, facts, [1, 20, 39])
        monkeypatch.setattr("omniprep.media.frames.KEPT_BYTES", 1000)
        assert np.array_equal(read_frames(file, facts, [1, 20, 39]), expected)
        monkeypatch.undo()


def test_packets_are_gone_through_once_for_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many groups of pictures hold wanted frames: a long video has hundreds."""
    opened: list[Source] = []
    open_source = Source.open
    monkeypatch.setattr(Source, "open", lambda self: (opened.append(self), open_source(self))[1])
    monkeypatch.setattr("omniprep.media.frames.KEPT_BYTES", 1000)
    for name in ("H.264: groups of 8", "HEVC: closed groups"):
        file = source(name)
        facts = probe_video(file)
        with open_stream(file) as stream:
            indices = range(0, facts.frames, 4)
            assert len(stream.table.runs(indices)) >= 5
            opened.clear()
            assert sum(1 for _ in stream.frames(indices, proven=True)) == len(indices)
        assert len(opened) == 1, name


def test_another_file_in_the_place_of_the_planned_one_is_rejected(tmp_path: Any) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip("H.264: groups of 8"))
    facts = probe_video(Source(path=str(path)))
    for other in ("H.264: one frame", "H.264: 720p", "MPEG-4: MP4", "AV1: MP4"):
        path.write_bytes(clip(other))
        for reader in (PROVEN, DECORD):
            planned = dataclasses.replace(
                facts, reader=reader, frames=facts.frames + (other in ("MPEG-4: MP4", "AV1: MP4"))
            )
            with pytest.raises(Reject) as caught:
                read_frames(Source(path=str(path)), planned, [0])
            assert caught.value.code == RejectCode.DECODE_MISMATCH, other


def in_packet_order(data: bytes) -> bytes:
    """An MP4 whose pictures have the times of their packets, as if none were reordered ("ctts" is what says so, "edts"
    takes the delay off).
    """
    assert data.count(b"ctts") == data.count(b"edts") == 1
    return data.replace(b"ctts", b"free").replace(b"edts", b"free")


@pytest.mark.parametrize("name", ["H.264: B-frames, one group", "H.264: many B-frames, pyramid", "HEVC: one group"])
def test_times_that_contradict_the_decoder_are_seen(name: str) -> None:
    """decord numbers pictures as they come out of the decoder, and leaves some out by their times: which ones, its
    threads decide, so nothing can be compared.
    """
    assert probe_video(source(name)).reader == PROVEN
    facts = probe_video(Source(data=in_packet_order(clip(name))))
    assert facts.reader == DECORD and "reorders" in facts.reason


def test_a_decoder_that_drops_a_frame_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    from omniprep.media.frames import VideoStream

    with open_stream(source("H.264: groups of 8")) as stream:
        decoded = VideoStream._decode_packet
        monkeypatch.setattr(
            VideoStream, "_decode_packet", lambda self, packet: (f for f in decoded(self, packet) if f.pts != 0)
        )
        with pytest.raises(UnprovenError):
            list(stream.frames([0], proven=True))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some bits flipped, or some bytes replaced."""
    changed, start, count = bytearray(data), rng.randrange(len(data)), rng.choice([1, 4, 50, 400])
    for offset in range(start, min(start + count, len(data))):
        changed[offset] = rng.randrange(256) if count > 1 else changed[offset] ^ 1 << rng.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("name", ["H.264: B-frames, one group", "H.264: Matroska", "HEVC: closed groups"])
def test_damage_gives_decords_frames_or_a_reject(name: str) -> None:
    """Two versions of FFmpeg conceal damage differently: PyAV never shows what it made up. decord's own errors come from
    a thread and may stay unseen, so that it rejects where PyAV did not need the damaged packet, and the reverse.
    """
    file = clip(name)

    def check(seed: int) -> Callable[[], None]:
        def compare() -> None:
            rng = random.Random(seed)
            data = damaged(file, rng)
            indices = sorted(rng.choices(range(40), k=5))
            try:
                facts = probe_video(Source(data=data))
            except Reject:
                return
            indices = [min(index, facts.frames - 1) for index in indices]
            if facts.reader == PROVEN:
                first, second = ours(Source(data=data), facts, indices), by_decord(data, indices)
                assert first is None or second is None or np.array_equal(first, second), (seed, indices)

        return compare

    for seed in range(12 if "CI" not in os.environ else 60):
        in_a_child(check(seed))


PEAK = """
import sys
from pathlib import Path
import numpy as np
from omniprep.media.resample import resize
from omniprep.media.source import Source
from omniprep.media.video import VideoFacts, read_frames
def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) >> 10
path, reader, frames = sys.argv[1], sys.argv[2], int(sys.argv[3])
facts = VideoFacts(frames, 10.0, 1280, 720, reader)
resize(np.zeros((1, 720, 1280, 3), np.uint8), (364, 196))  # what libraries take is no matter of the video
read_frames(Source(path=path), facts, [0, 1], (364, 196))
Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
before = status("VmRSS")
assert read_frames(Source(path=path), facts, range(frames), (364, 196)).shape == (frames, 196, 364, 3)
print(status("VmHWM") - before)
"""


def test_frames_that_grow_halfway_are_refused_before_they_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    options = (("x264-params", "keyint=250"),)
    small = Clip(container="mpegts", size=(64, 48), frames=6, options=options).make()
    large = Clip(container="mpegts", frames=6, times=lambda number: 600 + 100 * number, options=options).make()
    monkeypatch.setattr("omniprep.media.frames.MAX_FRAME_PIXELS", 100 * 80)  # between both
    monkeypatch.setattr("omniprep.media.frames.check_frame", lambda *_: None)  # the decoder itself has to refuse
    with open_stream(Source(data=small + large)) as stream, pytest.raises(Reject) as caught:
        for _, frame in stream.frames(range(12), proven=False):
            assert (frame.width, frame.height) == (64, 48)
    assert caught.value.code == RejectCode.DECODE_ERROR


def test_the_manifest_counts_who_decoded_what(omniprep: Callable[..., Any], model_dir: Path, tmp_path: Path) -> None:
    """Whatever the number of workers, shards are the same: here, with none and with two."""
    names = {"H.264: groups of 8": "pyav", "H.264: AVI": "pyav", "VP9: WebM": "decord", "AV1: MP4": "pyav alone"}
    rows = []
    for name in names:
        path = tmp_path / name.replace(": ", "-").replace(" ", "-")
        path.write_bytes(source(name).read())
        messages = [{"role": "user", "content": "<video>What is this?"}, {"role": "assistant", "content": "Blocks."}]
        rows.append(json.dumps({"messages": messages, "videos": [path.name]}))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    shards = set()
    for workers in (0, 2):
        out = tmp_path / f"out{workers}"
        done = omniprep(
            "build", tmp_path / "rows.jsonl", "--model", model_dir, "--bin-length", 2048, "--out", out, "--workers",
            workers, "--quiet",
        )  # fmt: skip
        assert done.code == 0, done.err
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["counts"]["rows"]["packed"] == 4
        assert manifest["video_readers"] == {"decord": 1, "pyav": 2, "pyav alone": 1}
        shards.add(json.dumps(manifest["shards"]))
    assert len(shards) == 1


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the high-water mark of memory is Linux's")
def test_a_large_video_is_never_held_whole(tmp_path: Path) -> None:
    """60 frames of 720p take 158 MiB before they are resized, 12 after; packets take what the file has. decord keeps
    the frames that it read, so it is left out.
    """
    path, frames = tmp_path / "large.mp4", 60
    options = (("preset", "ultrafast"), ("qp", "3"), ("tune", "zerolatency"))
    path.write_bytes(Clip(size=(1280, 720), frames=frames, options=options, noise=120).make())
    assert path.stat().st_size > 70 << 20
    assert probe_video(Source(path=str(path))).reader == PROVEN
    for reader in (PROVEN, ALONE):
        command = [sys.executable, "-c", PEAK, str(path), reader, str(frames)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < 100, (reader, done.stdout)  # MiB


def test_the_page_of_videos_names_every_clip() -> None:
    """The table of docs/fidelity.md is written by docs/make_video_table.py."""
    page = (Path(__file__).parent.parent / "docs" / "fidelity.md").read_text()
    rows = [
        line.split(" | ")
        for line in page.split("<!-- videos")[1].split("<!-- end")[0].splitlines()
        if line.startswith("| ")
    ][2:]
    named = [": ".join(filter(None, (row[0].removeprefix("| "), row[1].strip()))) for row in rows]
    assert named == list(CLIPS), "run python docs/make_video_table.py"
    by = {name: row[2] for name, row in zip(named, rows, strict=True)}
    assert {by[name] for name in FAST} == {"PyAV, in decord's place"} and {by[name] for name in DIFFERENT} == {"decord"}


# ---- packets


def test_units_tell_what_a_packet_holds() -> None:
    h264, hevc = parser("h264", b""), parser("hevc", b"")
    assert h264 is not None and hevc is not None and parser("mpeg4", None) is None

    def unit(*first_bytes: int) -> bytes:
        return b"\0\0\1" + bytes(first_bytes) + b"\xff\xff"

    for units in (h264(unit(0x65, 0x88)), h264(unit(0x67, 0) + unit(0x68, 0) + unit(0x65, 0x88))):
        assert units is not None and units.referenced and units.restart
    for second_slice, referenced in ((0x01, False), (0x41, True)):
        found = h264(unit(0x01, 0x9A) + unit(second_slice, 0x9A))
        assert found is not None and (found.referenced, found.restart) == (referenced, False)
    assert h264(unit(0x67, 0)) is None and h264(b"") is None  # no picture
    assert h264(unit(0x42, 0)) is None and h264(unit(0x74, 0)) is None  # a partition; a second view
    assert h264(unit(0xE5, 0)) is None  # the bit that is always 0
    trailing, key = hevc(unit(0 << 1, 2)), hevc(unit(19 << 1, 1))
    assert trailing is not None and (trailing.referenced, trailing.layer) == (False, 1)
    assert key is not None and key.restart and key.referenced
    assert hevc(unit((1 << 1) | 1, 1)) is None and hevc(unit(1 << 1, 0)) is None


def test_messages_are_understood_to_their_end() -> None:
    """A long one before, zeros and bytes that keep start codes apart within, several in a unit; or nothing is certain."""
    picture = b"\0\0\1\x65\x88"
    for codec, header, rest in (("h264", b"\x06", picture), ("hevc", b"\x4e\x01", b"\0\0\1\x26\x01\xff")):
        parse = parser(codec, b"")
        assert parse is not None

        def turned(unit: bytes, parse: Any = parse, rest: bytes = rest) -> bool:
            found = parse(b"\0\0\1" + unit + rest)
            assert found is not None
            return bool(found.turned)

        long = bytes([5, 255, 45]) + bytes([7]) * 300
        assert not turned(header + long + b"\x80") and turned(message(*TURNED, header))
        assert turned(header + long + message(*TURNED, b""))
        assert turned(header + bytes([255, 1, 4]) + b"\0\0\3\0\0\3\x2f" + message(*TURNED, b""))
        assert not turned(header + bytes([5, 4]) + b"\x2f\x2f\x2f\x2f\x80\0\0\0")
        assert not turned(message(*FILM_GRAIN, header))
        for broken in (bytes([5, 200, 1, 2]), bytes([5, 255, 255]), bytes([255, 255])):
            assert turned(header + broken + b"\x80")


def test_parameter_sets_of_headers_and_packets() -> None:
    first, second = b"\x67\x64\0\x1f\xac", b"\x67\x64\0\x1f\xad"

    def listed(*units: bytes) -> bytes:
        return b"".join(len(unit).to_bytes(2, "big") + unit for unit in units)

    for sets in ((first,), (first, second)):
        header = b"\x01\x64\0\x1f\xff" + bytes([0xE0 | len(sets)]) + listed(*sets) + b"\x01" + listed(b"\x68\xee")
        assert parameters("h264", header) == set(sets)
        assert parameters("h264", b"".join(b"\0\0\0\1" + unit for unit in sets) + b"\0\0\1\x68\xee") == set(sets)
    large = b"\x42\x01\x01"
    arrays = b"\x20\0\1" + listed(b"\x40\x01\x0c") + b"\x21\0\1" + listed(large)
    assert parameters("hevc", b"\x01" + bytes(21) + b"\x02" + arrays) == {large}
    for codec in ("h264", "hevc"):
        for length in range(40):  # cut short, or counts of what is not there
            parameters(codec, (b"\x01" + b"\xff" * 39)[:length])
    assert parameters("vp9", b"\x01") == set() == parameters("h264", None)
    parse = parser("h264", b"")
    assert parse is not None
    found = parse(b"\0\0\0\1" + first + b"\0\0\0\1\x68\xee\0\0\0\1\x65\x88")
    assert found is not None and found.parameters == (first,)


def test_lengths_that_lead_beyond_a_packet_are_seen() -> None:
    parse = parser("h264", b"\x01\x64\x00\x1f\xff")  # lengths of four bytes
    assert parse is not None
    whole = (2).to_bytes(4, "big") + b"\x65\x88"
    assert parse(whole) is not None and parse(whole + b"\0\0\0\x09\x41") is None and parse(whole + b"\0\0\0\0") is None


class Packet:
    def __init__(self, pts: int | None, dts: int | None, key: bool, data: bytes = b"\0\0\1\x65\x88") -> None:
        self.pts, self.dts, self.is_keyframe, self.data = pts, dts, key, data
        self.is_corrupt = self.is_discard = False

    def __bytes__(self) -> bytes:
        return self.data

    def has_sidedata(self, kind: str) -> bool:
        return False


def table(packets: list[Packet], container: str = "mov,mp4", codec: str = "h264") -> PacketTable:
    made = PacketTable(container, codec)
    for packet in packets:
        made.add(packet, parser("h264", b""))
    return made


def test_what_packets_do_not_prove() -> None:
    plain = [Packet(n, n, n % 4 == 0) for n in range(8)]
    assert table(plain).unproven() == ""
    assert table(plain, "flv").unproven() and not table(plain[:4], "flv").unproven()  # seeks of FLV are not known
    assert table([Packet(n, n, n == 2) for n in range(4)]).unproven()  # begins without a key frame
    assert table([Packet(0, 0, True), Packet(0, 1, False)]).unproven()
    assert table([Packet(0, 0, True), Packet(None, 1, False)]).unproven()
    open_group = [Packet(0, 0, True), Packet(3, 1, True), Packet(2, 2, False), Packet(4, 4, False)]
    assert "open" in table(open_group).unproven()
    crossing = [Packet(0, 0, True), Packet(4, 1, False), Packet(3, 2, True), Packet(5, 5, False)]
    assert "open" in table(crossing).unproven()
    late = [Packet(0, -3, True), Packet(1, -2, True), Packet(2, 2, True)]
    assert "delay" in table(late).unproven()
    recovery = [Packet(0, 0, True), Packet(1, 1, True, b"\0\0\1\x61\x88")]  # a key frame that is no IDR picture
    assert "anew" in table(recovery).unproven()
    grown = [Packet(n, None, n == 0) for n in range(8)] + [Packet(9, None, False), Packet(8, None, False)]
    assert "grows" in table(grown, "matroska,webm").unproven() and not table(grown).unproven()


def test_runs_begin_at_the_key_packet_before_a_frame() -> None:
    found = table([Packet(n, n, n % 4 == 0) for n in range(12)])
    assert [(run.first, run.wanted) for run in found.runs([1, 1, 3, 9])] == [(0, {1: [0, 1], 3: [2]}), (8, {9: [3]})]
    avi = table([Packet(None, n, n % 4 == 0) for n in range(12)], "avi")
    assert [(run.first, run.wanted) for run in avi.runs([1, 5, 6, 9])] == [(0, {1: [0, 1, 3], 2: [2]})]
