"""Media of a store, and parts of tars: read once however often they are opened, and large ones never held in memory."""

import errno
import io as std_io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omniprep import io
from omniprep.errors import OmniprepError, Reject, RejectCode
from omniprep.io.objects import ObjectPart
from omniprep.io.tar import members_of
from omniprep.media import decord_reader, remote
from omniprep.media import source as media_source
from omniprep.media.audio import decode_audio, probe_audio
from omniprep.media.source import Source
from omniprep.media.video import has_sound, probe_video, read_frames
from tests.media_files import video
from tests.video_clips import Clip, with_unit

LIMIT = 1000
"""Bytes above which media are "large" here."""


@pytest.fixture
def spoken() -> bytes:
    return video("mp4", frames=16, sound="aac")


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "large":
        make_large(monkeypatch)
    return str(request.param)


def make_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_source, "SPOOLED_BYTES", LIMIT)
    monkeypatch.setattr(decord_reader, "SPOOLED_BYTES", LIMIT)
    monkeypatch.setattr(remote, "FIRST_BYTES", LIMIT)
    monkeypatch.setattr(remote, "PIECE_BYTES", LIMIT)


@pytest.fixture(autouse=True)
def nothing_held() -> None:
    remote.remote_media.clear()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """(first byte, bytes) of everything that is read from a store."""
    made: list[tuple[int, int]] = []
    read = remote.read_object

    def read_object(uri: str, start: int, end: int, mark: str = "") -> ObjectPart:
        part = read(uri, start, end, mark)
        made.append((start, len(part.data)))
        return part

    monkeypatch.setattr(remote, "read_object", read_object)
    yield made


def stored(data: bytes, member: bool) -> Source:
    """The bytes as an object of a store, or as a member of a tar there."""
    if not member:
        io.write_atomic("memory://fetched/clip.mp4", data)
        return Source(uri="memory://fetched/clip.mp4")
    file = std_io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("before.bin", "clip.mp4", "after.bin"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, std_io.BytesIO(data if name == "clip.mp4" else bytes(len(data))))
    io.write_atomic("memory://fetched/media.tar", file.getvalue())
    found = {entry.name: entry for entry in members_of(std_io.BytesIO(file.getvalue()), "media.tar")}
    return Source(uri="memory://fetched/media.tar", member=found["clip.mp4"])


@pytest.mark.parametrize("member", [False, True], ids=["object", "member of a tar"])
@pytest.mark.parametrize(
    "use",
    [
        lambda source: (has_sound(source), probe_video(source), probe_audio(source, 16000, of_video=True)),
        lambda source: probe_audio(source, 16000),
        lambda source: decode_audio(source, 16000).tolist(),
        lambda source: read_frames(source, probe_video(Source(data=source.read())), [0, 3, 9]).tolist(),
    ],
    ids=["plan a video", "plan a sound", "decode a sound", "read frames"],
)
def test_a_store_is_read_once(
    use: Callable[[Source], Any], member: bool, size: str, spoken: bytes, reads: list[tuple[int, int]]
) -> None:
    """And gives what a local file gives."""
    expected = use(Source(data=spoken))
    source = stored(spoken, member)
    source.read()
    reads.clear()
    remote.remote_media.clear()
    with source.fetched() as local:
        once = sum(count for _, count in reads)
        # This store tells no ETag: the first bytes are read again with the rest, so that all are of one object.
        assert once == len(spoken) + (LIMIT if size == "large" else 0) and (len(reads) > 1) == (size == "large")
        assert max(count for _, count in reads) <= (LIMIT if size == "large" else len(spoken))
        assert (local.label, local.key, local.size()) == (source.label, source.key, len(spoken))
        assert local.head(20) == spoken[:20] and local.read() == spoken
        assert use(local) == expected
        assert sum(count for _, count in reads) == once
        assert isinstance(local.data, memoryview) == (size == "small")


def test_reading_by_itself_fetches_once(size: str, spoken: bytes, reads: list[tuple[int, int]]) -> None:
    """Though both open the file several times."""
    source = stored(spoken, member=False)
    for use in (probe_video, lambda source: decode_audio(source, 16000)):
        reads.clear()
        remote.remote_media.clear()
        use(source)
        assert sum(count for _, count in reads) == len(spoken) + (LIMIT if size == "large" else 0)


def test_an_object_that_changes_while_it_is_read_is_rejected(monkeypatch: pytest.MonkeyPatch, spoken: bytes) -> None:
    make_large(monkeypatch)
    source, read = stored(spoken, member=False), remote.read_object

    def read_object(uri: str, start: int, end: int, mark: str = "") -> ObjectPart:
        part = read(uri, start, end, mark)
        io.write_atomic(uri, spoken + b"more")
        return part

    monkeypatch.setattr(remote, "read_object", read_object)
    with pytest.raises(Reject) as caught, source.fetched():
        pass
    assert caught.value.code == RejectCode.DECODE_MISMATCH and "changed" in caught.value.message


def test_a_full_temporary_folder_is_no_fault_of_the_video(monkeypatch: pytest.MonkeyPatch, spoken: bytes) -> None:
    """Which would be rejected with its row; the build ends with a line that says what to do."""
    make_large(monkeypatch)
    source, without = stored(spoken, member=False), Source(data=spoken)

    class FullDisk(std_io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("TemporaryFile", "NamedTemporaryFile"):
        monkeypatch.setattr(media_source.tempfile, name, lambda **_: FullDisk())
    with pytest.raises(OmniprepError, match="No space left on device.*TMPDIR"):
        probe_video(source)
    with pytest.raises(OmniprepError, match="No space left on device.*TMPDIR"):
        probe_video(without)  # decord needs a name of it

    def no_folder(**_: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(media_source.tempfile, "TemporaryFile", no_folder)
    with pytest.raises(OmniprepError, match="No usable temporary directory.*TMPDIR"):
        probe_video(source)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the list of open files is Linux's")
def test_no_file_stays_open(monkeypatch: pytest.MonkeyPatch, spoken: bytes) -> None:
    make_large(monkeypatch)
    source = stored(spoken, member=False)
    facts = probe_video(source)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        read_frames(source, facts, [0, 5])
        probe_video(source)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("reopened", [True, False], ids=["by name", "by a second descriptor"])
def test_a_file_that_is_opened_twice_has_two_positions(
    reopened: bool, monkeypatch: pytest.MonkeyPatch, spoken: bytes
) -> None:
    """On systems without /proc a second descriptor shares the position, so bytes are read by their offset."""
    make_large(monkeypatch)
    if not reopened:
        monkeypatch.setattr(media_source.os.path, "exists", lambda path: not str(path).startswith("/proc"))
    with stored(spoken, member=False).fetched() as local, local.open() as first, local.open() as second:
        assert first.read(10) == second.read(10) == spoken[:10]
        assert (
            second.seek(-5, 2) == len(spoken) - 5 and first.read(10) == spoken[10:20] and second.read() == spoken[-5:]
        )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere decord opens no file by its descriptor")
def test_decord_holds_no_large_file_in_memory(monkeypatch: pytest.MonkeyPatch, spoken: bytes) -> None:
    """A part of a tar has no name: a copy on the disk gets one, where a small one is copied into memory."""
    decord = pytest.importorskip("decord", reason="the reader of the reference")
    opened: list[Any] = []
    reader = decord.VideoReader

    def watched(name: Any, **options: Any) -> Any:
        opened.append(name)
        return reader(name, **options)

    monkeypatch.setattr(decord, "VideoReader", watched)
    expected = read_frames(Source(data=spoken), probe_video(Source(data=spoken)), [0, 7])
    assert not isinstance(opened[0], str)
    opened.clear()
    make_large(monkeypatch)
    facts = probe_video(Source(data=spoken))
    assert [str(name).startswith("/dev/fd/") for name in opened if isinstance(name, str)] == [True]
    assert np.array_equal(read_frames(Source(data=spoken), facts, [0, 7]), expected)


def test_a_whole_build_of_a_remote_video(
    omniprep: Callable[..., Any], model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoken: bytes
) -> None:
    """With large objects, the shards of a build from a store are those of a local one."""
    row = b'{"messages":[{"role":"user","content":"<video>What?"},{"role":"assistant","content":"Noise."}],"videos":["clip.mp4"]}\n'
    (tmp_path / "clip.mp4").write_bytes(spoken)
    (tmp_path / "rows.jsonl").write_bytes(row)
    io.write_atomic("memory://fetched/clip.mp4", spoken)
    io.write_atomic("memory://fetched/rows.jsonl", row)
    make_large(monkeypatch)
    shards = set()
    for number, rows in enumerate((tmp_path / "rows.jsonl", "memory://fetched/rows.jsonl")):
        out = tmp_path / f"out{number}"
        done = omniprep(
            "build", rows, "--model", model_dir, "--bin-length", 2048, "--use-audio-in-video", "--out", out,
            "--workers", 0, "--quiet",
        )  # fmt: skip
        assert done.code == 0, done.err
        shards.add((out / "shards" / "00000.arrow").read_bytes())
    assert len(shards) == 1


PEAK = """
import os
import sys
from pathlib import Path
import numpy as np
from omniprep.io.objects import ObjectPart
from omniprep.io.tar import Member
from omniprep.media import remote
from omniprep.media.resample import resize
from omniprep.media.source import Source
from omniprep.media.video import PROVEN, probe_video, read_frames
def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) >> 10
kind, small, large = sys.argv[1:]
# A store that keeps nothing in this process.
path_of = {"memory://small": small, "memory://large": large}
def read_object(uri, start, end, mark=""):
    with open(path_of[uri], "rb") as file:
        return ObjectPart(os.pread(file.fileno(), end - start, start), os.path.getsize(path_of[uri]), "mark")
remote.read_object = read_object
def source(path):
    if kind == "object of a store":
        return Source(uri="memory://" + ("small" if path == small else "large"))
    if kind == "member of a tar":
        return Source(path=path, member=Member("clip.mp4", 0, os.path.getsize(path)))
    return Source(path=path)
def use(path):
    with source(path).fetched() as local:
        facts = probe_video(local)
    assert facts.reader == PROVEN, facts.reason
    assert read_frames(source(path), facts, range(0, facts.frames, 10), (56, 56)).shape[1:] == (56, 56, 3)
use(small)  # what libraries take is no matter of the video
Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
before = status("VmRSS")
use(large)
print(status("VmHWM") - before)
"""


def with_filler(path: Path, frames: int, filler: int) -> None:
    """An H.264 video whose packets each hold so many bytes of filler data, which decoders pass over."""
    unit = b"\x0c" + b"\xff" * (filler - 2) + b"\x80"
    data = Clip(frames=frames, options=(("x264-params", "keyint=30:scenecut=0"),)).make()
    with_unit(data, str(path), unit, lambda number: True)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the high-water mark of memory is Linux's")
@pytest.mark.parametrize("kind", ["file", "member of a tar", "object of a store"])
def test_a_video_of_200_mb_is_never_in_memory(kind: str, tmp_path: Path) -> None:
    """Planned and read: at most `KEPT_BYTES` of packets are kept, and `PIECE_BYTES` of a store."""
    small, large = tmp_path / "small.mp4", tmp_path / "large.mp4"
    with_filler(small, 60, 1 << 10)
    with_filler(large, 200, 1 << 20)
    assert large.stat().st_size > 200 << 20
    command = [sys.executable, "-c", PEAK, kind, str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 90, done.stdout  # MiB
