"""What counts as a change of an input: its size and a sample of its content, not its time."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from media_files import picture

from omniprep import PackedDataset, io
from omniprep.io.fingerprints import BLOCK_BYTES, WHOLE_BYTES, sample_offsets


def chats(folder: Path, name: str, rows: int = 6, *, pictures: bool = False) -> Path:
    lines = []
    for number in range(rows):
        message, more = f"Say {name} {number}", {}
        if pictures:
            (folder / f"{number}.png").write_bytes(picture("PNG", (56, 28 * (1 + number % 3))))
            message, more = f"<image>{message}", {"images": [f"{number}.png"]}
        row = {"messages": [{"role": "user", "content": message}, {"role": "assistant", "content": "well"}], **more}
        lines.append(json.dumps(row) + "\n")
    (folder / name).write_text("".join(lines))
    return folder / name


def touch(*paths: Path) -> None:
    for path in paths:
        os.utime(path, ns=(10**18, path.stat().st_mtime_ns + 10**10))


def build(omniprep: Any, model: Path, out: Path, *inputs: Path) -> Any:
    return omniprep(
        "build", *inputs, "--model", model, "--bin-length", 256, "--shard-size", "20KB", "--workers", 0, "--out", out
    )


def as_recorded_earlier(out: Path) -> None:
    """A dataset as earlier versions left it: inputs with a modification time, and no sample."""
    for path in (out / "manifest.json", out / "plan" / "build.json"):
        content = json.loads(path.read_text())
        for entry in content["inputs"]:
            del entry["sample_sha256"]
            entry["mtime_ns"] = os.stat(entry["source"]).st_mtime_ns
        path.write_text(json.dumps(content))


def test_every_byte_of_a_small_file_counts(tmp_path: Path) -> None:
    file = tmp_path / "a"
    data = bytearray(b"x" * 1000)
    file.write_bytes(data)
    before = io.fingerprint(str(file))
    touch(file)
    assert io.fingerprint(str(file)) == before and io.has_fingerprint(str(file), before)
    for place in (0, 500, 999):
        file.write_bytes(data[:place] + b"y" + data[place + 1 :])
        assert io.fingerprint(str(file)) != before and not io.has_fingerprint(str(file), before)
    file.write_bytes(data + b"x")
    assert io.fingerprint(str(file)) != before


@pytest.mark.parametrize("size", [WHOLE_BYTES, WHOLE_BYTES + 1, 3 * WHOLE_BYTES + 77])
def test_head_tail_and_blocks_of_a_large_file_count(tmp_path: Path, size: int) -> None:
    file = tmp_path / "a"
    file.write_bytes(bytes(size))
    before = io.fingerprint(str(file))
    offsets = sample_offsets(size)
    assert offsets[0] == 0 and offsets[-1] + BLOCK_BYTES == size
    seen = {0, size - 1, *offsets, *(offset + BLOCK_BYTES - 1 for offset in offsets)}
    for place in sorted(seen):
        with file.open("r+b") as handle:
            handle.seek(place)
            handle.write(b"y")
            handle.flush()
            assert io.fingerprint(str(file)) != before, place
            handle.seek(place)
            handle.write(b"\0")
    assert io.fingerprint(str(file)) == before
    with file.open("ab") as handle:
        handle.write(b"\0")
    assert io.fingerprint(str(file)) != before


def test_what_lies_between_the_blocks_is_not_seen(tmp_path: Path) -> None:
    """docs/reliability.md says so; a change of the size is always seen."""
    file = tmp_path / "a"
    file.write_bytes(bytes(4 * WHOLE_BYTES))
    before = io.fingerprint(str(file))
    with file.open("r+b") as handle:
        handle.seek(BLOCK_BYTES)
        handle.write(b"y")
    assert io.fingerprint(str(file)) == before


def test_a_touch_keeps_a_finished_build(tmp_path: Path, model_dir: Path, omniprep: Any) -> None:
    first, out = chats(tmp_path, "a.jsonl", pictures=True), tmp_path / "out"
    assert build(omniprep, model_dir, out, first).code == 0
    manifest = (out / "manifest.json").read_bytes()
    touch(first, *tmp_path.glob("*.png"))
    again = build(omniprep, model_dir, out, first)
    assert again.code == 0 and "nothing to do" in again.err
    assert (out / "manifest.json").read_bytes() == manifest
    deep = omniprep("verify", out, "--deep", "--quiet")
    assert deep.code == 0, deep.err
    text = first.read_text()
    first.write_text(text.replace("well", "good"))  # of the same size
    changed = build(omniprep, model_dir, out, first)
    assert changed.code == 1 and "a.jsonl was changed" in changed.err
    assert "size or content" in omniprep("verify", out, "--deep", "--quiet").err


def test_a_touch_keeps_what_a_killed_build_had_done(tmp_path: Path, model_dir: Path, omniprep: Any) -> None:
    """Inputs and media: what is planned stays planned, and the shard that was not written is."""
    first, out = chats(tmp_path, "a.jsonl", 12, pictures=True), tmp_path / "out"
    assert build(omniprep, model_dir, out, first).code == 0
    shards = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    assert len(shards) > 1
    plans = {path: path.stat().st_mtime_ns for path in (out / "plan").glob("split-*")}
    last = sorted(shards)[-1]
    for path in (out / "manifest.json", out / "shards" / last, out / "receipts" / last.replace(".arrow", ".json")):
        path.unlink()
    touch(first, *tmp_path.glob("*.png"))
    assert build(omniprep, model_dir, out, first).code == 0
    assert {path.name: path.read_bytes() for path in (out / "shards").iterdir()} == shards
    assert {path: path.stat().st_mtime_ns for path in (out / "plan").glob("split-*")} == plans


def test_a_touch_of_what_was_appended(tmp_path: Path, model_dir: Path, omniprep: Any) -> None:
    first, second, out = chats(tmp_path, "a.jsonl"), chats(tmp_path, "b.jsonl"), tmp_path / "out"
    assert build(omniprep, model_dir, out, first).code == 0
    assert omniprep("append", out, second, "--quiet").code == 0
    touch(first, second)
    again = omniprep("append", out, first, second)
    assert again.code == 0 and "nothing to do" in again.err
    second.write_text(second.read_text().replace("well", "good"))
    changed = omniprep("append", out, first, second)
    assert changed.code == 1 and "b.jsonl: was changed since" in changed.err


def test_what_earlier_versions_recorded_holds_on(tmp_path: Path, model_dir: Path, omniprep: Any) -> None:
    first, second, out = chats(tmp_path, "a.jsonl"), chats(tmp_path, "b.jsonl"), tmp_path / "out"
    assert build(omniprep, model_dir, out, first).code == 0
    as_recorded_earlier(out)
    again = build(omniprep, model_dir, out, first)
    assert again.code == 0 and "nothing to do" in again.err
    assert omniprep("verify", out, "--deep", "--quiet").code == 0
    done = omniprep("append", out, first, second)
    assert done.code == 0 and "a.jsonl: " in done.err and "left out" in done.err
    assert PackedDataset(str(out)).counts["rows"]["read"] == 12
    touch(first)  # all that is known of it is its time
    assert "size or time" in omniprep("verify", out, "--deep", "--quiet").err
    touched = omniprep("append", out, first)
    assert touched.code == 1 and "was changed since" in touched.err
