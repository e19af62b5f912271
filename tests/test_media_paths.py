"""What a row names is the file that is read, in the plan and in the encode: no link that is swapped in, no pattern, no
list of other files.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omniprep.compiler.plan.file import to_batch, write_plan
from omniprep.compiler.plan.reader import PlanReader
from omniprep.compiler.plan.rows import PlannedRow
from omniprep.errors import Reject
from omniprep.families.kinds import Item, MediaMeta
from omniprep.media.audio import decode_audio, probe_audio
from omniprep.media.fetch import MediaRoots
from omniprep.media.image import decode_image, probe_image
from omniprep.media.source import Source
from omniprep.media.video import PROVEN, VideoFacts, probe_video, read_frames
from tests.conftest import Result
from tests.media_files import picture, sound, video

READ: dict[str, Callable[[Source], object]] = {
    "image": lambda source: (probe_image(source), decode_image(source)),
    "audio": lambda source: (probe_audio(source, 16000), decode_audio(source, 16000)),
    "sound of a video": lambda source: decode_audio(source, 16000, of_video=True),
    "video": lambda source: read_frames(source, probe_video(source), [0]),
    "video of a plan": lambda source: read_frames(source, VideoFacts(8, 8.0, 64, 48, PROVEN), [0]),
    "bytes": lambda source: source.read(),
}
CONTENT = {
    "image": picture("PNG"),
    "audio": sound("WAV"),
    **dict.fromkeys(("sound of a video", "video", "video of a plan", "bytes"), video("mp4", sound="aac")),
}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """(the allowed folder with sub/ in it, a private one beside it)."""
    inside, private = tmp_path / "in", tmp_path / "private"
    (inside / "sub").mkdir(parents=True)
    private.mkdir()
    return inside, private


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("swap", ["folder", "file"])
def test_a_link_swapped_in_after_the_plan_leads_nowhere(folders: tuple[Path, Path], kind: str, swap: str) -> None:
    inside, private = folders
    (inside / "sub" / "a").write_bytes(CONTENT[kind])
    (private / "a").write_bytes(CONTENT[kind])
    source = MediaRoots(str(inside)).locate("sub/a")
    READ[kind](source)
    if swap == "folder":
        (inside / "sub").rename(inside / "old")
        (inside / "sub").symlink_to(private)
    else:
        (inside / "sub" / "a").unlink()
        (inside / "sub" / "a").symlink_to(private / "a")
    with pytest.raises(Reject) as caught:
        READ[kind](source)
    assert caught.value.code == "media_outside_root"


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize(("name", "opens"), [("sub/a", 1), ("link/a", 2)])
def test_a_link_swapped_in_while_a_file_is_opened_leads_nowhere(
    folders: tuple[Path, Path], kind: str, name: str, opens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the allowed folder and what is below it: the worst moment. A path with a link in it is resolved
    first, after which the folder is opened a second time.
    """
    inside, private = folders
    (inside / "sub" / "a").write_bytes(CONTENT[kind])
    (inside / "link").symlink_to("sub")
    (private / "a").write_bytes(CONTENT[kind])
    source = MediaRoots(str(inside)).locate(name)
    real, left = os.open, [opens]

    def open_and_swap(path: str, *args: int, **options: int) -> int:
        handle = real(path, *args, **options)
        if path == os.path.realpath(inside):
            left[0] -= 1
            if left[0] == 0:
                (inside / "sub").rename(inside / "old")
                (inside / "sub").symlink_to(private)
        return handle

    monkeypatch.setattr(os, "open", open_and_swap)
    with pytest.raises(Reject) as caught:
        READ[kind](source)
    assert (inside / "sub").is_symlink() and caught.value.code == "media_outside_root"


def test_links_inside_the_folder_are_followed(folders: tuple[Path, Path]) -> None:
    inside, _ = folders
    (inside / "sub" / "a.png").write_bytes(CONTENT["image"])
    (inside / "link.png").symlink_to(inside / "sub" / "a.png")
    (inside / "other").symlink_to("sub")
    for name in ("sub/a.png", "link.png", "other/a.png", "sub/../other/a.png"):
        assert probe_image(MediaRoots(str(inside)).locate(name)) == (48, 32)
    root = inside.parent / "rootlink"
    root.symlink_to(inside)
    assert probe_image(MediaRoots(".", (str(root),)).locate("other/a.png")) == (48, 32)


def test_files_that_go_or_change_their_kind_are_rejects(folders: tuple[Path, Path]) -> None:
    inside, _ = folders
    path = inside / "sub" / "a.png"
    path.write_bytes(CONTENT["image"])
    source = MediaRoots(str(inside)).locate("sub/a.png")
    path.unlink()
    with pytest.raises(Reject, match="media_not_found"):
        probe_image(source)
    os.mkfifo(path)
    with pytest.raises(Reject, match="a device, pipe or socket"):
        probe_image(source)  # and it does not hang
    path.unlink()
    path.mkdir()
    with pytest.raises(Reject, match="a folder"):
        probe_image(source)


def test_the_plan_keeps_the_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source = Source(path=str(folders[0] / "a.png"), root=str(folders[0]))
    meta = MediaMeta(kind="image", width=3, height=4)
    item = Item("image", meta, 1, sources=[source, Source(data=b"x")])
    row = PlannedRow(np.array([1], np.int32), np.array([1], np.int32), np.array([1], np.float32), length=1)
    row.items["image"].append(item)
    os.makedirs(tmp_path / "plan")
    write_plan(str(tmp_path / "plan" / "split-000000.arrow"), [to_batch([0], [row], [None])])
    (tmp_path / "plan" / "split-000000.json").write_text(json.dumps({"chunks": [1]}))
    read = PlanReader(str(tmp_path)).read(0, 0).items["image"][0].sources
    assert (read[0].path, read[0].root, read[1].root) == (source.path, source.root, None)


def test_a_build_does_not_read_what_is_swapped_in(
    folders: tuple[Path, Path], tmp_path: Path, model_dir: Path, omniprep: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The whole command: planned with the checked file, encoded after its folder became a link."""
    inside, private = folders
    Image.new("RGB", (64, 64), (200, 200, 200)).save(inside / "sub" / "a.png")
    Image.new("RGB", (64, 64), (1, 2, 3)).save(private / "a.png")
    row = {
        "messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "ok"}],
        "images": ["sub/a.png"],
    }
    text = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ok"}]}
    (inside / "c.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(text))
    from omniprep.families import rowwise

    real = rowwise.decode_image

    def decode(source: Source, **options: str) -> Image.Image:
        if not (inside / "sub").is_symlink():
            (inside / "sub").rename(inside / "old")
            (inside / "sub").symlink_to(private)
        return real(source, **options)

    monkeypatch.setattr(rowwise, "decode_image", decode)
    done = omniprep(
        "build", inside / "c.jsonl", "--model", model_dir, "--bin-length", 512, "--out", tmp_path / "out", "--workers",
        0, "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [r["code"] for r in rejected] == ["media_outside_root"]


# ---- names that a demuxer could take for something else


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with eight pictures that an image2 pattern would find, and a video that lists would name."""
    for number in range(8):
        Image.new("RGB", (64, 48), (number * 30, 0, 0)).save(tmp_path / f"v{number}.png")
    (tmp_path / "secret.mp4").write_bytes(video("mp4", sound="aac"))
    return tmp_path


NAMES = ["v%d.png", "v%01d.png", "v*.png", "v[0-9].png", "v?.png", "concat:v0.png|v1.png", "subfile,,start,0,end,0,,:v0.png", "file:v0.png",
         "async:v1.png", "data:v.mp4", "pipe:0", "x.m3u8", "x.ffconcat", "x.mpd", "x.sdp", "x.idx", "http:x.mp4"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", ["png", "gif", "list", "mp4"])
def test_a_name_is_no_pattern_and_no_protocol(beside: Path, name: str, content: str) -> None:
    """The frames are those of the file itself, whatever it is called."""
    data = {
        "png": picture("PNG", (64, 48)),
        "gif": picture("GIF", (64, 48), frames=3),
        "list": b"ffconcat version 1.0\nfile secret.mp4\n",
        "mp4": video("mp4", frames=4),
    }[content]
    (beside / name).write_bytes(data)
    source = Source(path=str(beside / name), root=str(beside))
    try:
        frames = probe_video(source).frames
    except Reject as reject:
        assert reject.code in ("bad_media", "decode_error", "no_video_stream") and content != "mp4", reject
    else:
        assert frames == {"png": 1, "gif": 3, "mp4": 4}[content]
    for decoder in ("ffmpeg", "pyav"):
        with pytest.raises(Reject):
            decode_audio(source, 16000, decoder, of_video=True)


LISTS = {
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "hls behind bytes": b"\n\n#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1.0,\nsecret.mp4\n" + bytes(200),
    "concat": b"ffconcat version 1.0\nfile secret.mp4\n",
    "concat without a version": b"file secret.mp4\n",
    "dash": b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><Period/></MPD>" + bytes(100),
    "imf": b"<?xml version='1.0'?><CompositionPlaylist/>" + bytes(100),
    "sdp": b"v=0\r\nc=IN IP4 127.0.0.1\r\nm=video 5000 RTP/AVP 96\r\n",
    "vobsub": b"# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\n",
    "pls": b"[playlist]\nFile1=secret.mp4\n",
    "asx": b"<asx version='3.0'><entry><ref href='secret.mp4'/></entry></asx>",
    "smil": b"<smil><body><video src='secret.mp4'/></body></smil>",
    "quicktime link": b"[Reference]\nRef1=secret.mp4\n",
}


@pytest.mark.parametrize("name", ["x.mp4", "x.m3u8", "x.mpd", "x.wav", "x"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_files_is_no_media(beside: Path, kind: str, name: str) -> None:
    (beside / name).write_bytes(LISTS[kind])
    for source in (Source(path=str(beside / name)), Source(data=LISTS[kind])):
        for read in ("video", "video of a plan", "audio", "sound of a video", "image"):
            with pytest.raises(Reject) as caught:
                READ[read](source)
            assert caught.value.code == "bad_media", caught.value


def test_reading_by_file_gives_the_frames_of_reading_by_name(tmp_path: Path) -> None:
    """decord through /dev/fd, as bytes and as named by its own caller: the same frames."""
    decord = pytest.importorskip("decord", reason="the reader of the reference")
    for container in ("mp4", "mov", "avi", "matroska", "webm", "mpegts", "flv"):
        path = tmp_path / f"clip.{container}"
        path.write_bytes(video(container))
        theirs = decord.VideoReader(str(path), num_threads=1)
        expected = theirs.get_batch(range(len(theirs))).asnumpy()
        for source in (
            Source(path=str(path)),
            Source(path=str(path), root=str(tmp_path)),
            Source(data=path.read_bytes()),
        ):
            facts = probe_video(source)
            assert facts.fps == theirs.get_avg_fps()
            assert np.array_equal(read_frames(source, facts, range(facts.frames)), expected), container
