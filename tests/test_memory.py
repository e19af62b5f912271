"""Rows of 200 MB: a Ray worker, and the driver, stay below 1.5 GiB, and every row is packed or rejected with a code.

What is measured is the kernel's high-water mark of resident memory (VmHWM), which is no matter of speed.
"""

import base64
import gc
import io as _io
import json
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omniprep.compiler.output import built_rows
from omniprep.compiler.plan.split_task import CHUNK_BYTES, row_chunks
from omniprep.errors import DamagedDataError
from omniprep.garbage import collect_seldom, collect_young
from omniprep.report.rejects import BLOCK_BYTES, ROW_BYTES, read_rejects, reject_examples
from omniprep.rows.sources import RawRow
from omniprep.rows.split import Split
from tests.reliability import command
from tests.test_resume_kill import descendants

LIMIT = 1536 << 20
SIDE = 7000  # 147 MB of pixels, 196 MB as base64


def chat(kind: str, item: str) -> dict[str, Any]:
    # One letter beyond Latin-1: a text of the whole line would take two or four bytes a letter.
    messages = [{"role": "user", "content": f"<{kind}>what? 中😀"}, {"role": "assistant", "content": "noise"}]
    return {"messages": messages, f"{kind}s": [item]}


def picture(seed: int) -> bytes:
    data = _io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, "BMP")
    return data.getvalue()


def write_rows(folder: Path) -> Path:
    """Inline: two good pictures, one cut off in the middle, one that is no picture. In files: a picture, 19 minutes of
    sound."""
    good, other = picture(0), picture(1)
    inline = [good, good[: len(good) // 2], other, b"no picture at all " * (8 << 20)]
    (folder / "large.bmp").write_bytes(good)
    sound = struct.pack(
        "<4sI8sIHHIIHH4sI", b"RIFF", 200_000_036, b"WAVEfmt ", 16, 1, 2, 44100, 176400, 4, 16, b"data", 200_000_000
    )
    (folder / "long.wav").write_bytes(sound + bytes(200_000_000))
    with (folder / "large.jsonl").open("w") as file:
        for data in inline:
            row = chat("image", "data:image/bmp;base64," + base64.b64encode(data).decode())
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.write(json.dumps(chat("image", "large.bmp")) + "\n" + json.dumps(chat("audio", "long.wav")) + "\n")
    return folder / "large.jsonl"


def high_water(pid: int) -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def is_worker(pid: int) -> bool:
    try:
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.slow
def test_rows_of_200_mb(tmp_path: Path, model_dir: Path) -> None:
    path = write_rows(tmp_path)
    args = command([path], model_dir, tmp_path / "out", "--bin-length", 4096, "--max-pixels", 1_000_000, "--workers", 1)
    peaks = {"driver": 0, "worker": 0}
    with (tmp_path / "log").open("w") as log:
        build = subprocess.Popen([sys.executable, "-m", "omniprep", *args], stdout=log, stderr=log)
        while build.poll() is None:
            peaks["driver"] = max(peaks["driver"], high_water(build.pid))
            peaks["worker"] = max([peaks["worker"], *(high_water(p) for p in descendants(build.pid) if is_worker(p))])
            time.sleep(0.1)
    assert build.returncode == 0, (tmp_path / "log").read_text()
    print({name: f"{peak >> 20} MiB" for name, peak in peaks.items()})
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    assert counts["rows"] == {"read": 6, "packed": 3, "rejected": 3}
    assert counts["rejected_by_code"] == {"audio_too_long": 1, "bad_media": 1, "decode_error": 1}, counts
    rejected = [json.loads(line)["line"] for line in (tmp_path / "out" / "rejected.jsonl").open()]
    assert rejected == [2, 4, 6]
    assert 0 < peaks["driver"] < LIMIT and 0 < peaks["worker"] < LIMIT, peaks


class Content:
    """What a row holds, as far as it can be watched."""


def test_no_row_of_an_earlier_chunk_is_held_while_the_next_is_read() -> None:
    earlier: list[weakref.ref[Content]] = []

    def rows() -> Iterator[RawRow]:
        for line in range(4):
            assert [ref for ref in earlier if ref() is not None] == []
            content = Content()
            earlier.append(weakref.ref(content))
            yield RawRow(line, content, CHUNK_BYTES)
            del content

    for chunk in row_chunks(rows()):
        chunk.clear()  # as who plans them does
        del chunk
    assert len(earlier) == 4


def test_rejected_rows_are_read_again_up_to_the_last_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes behind it would be read beside it."""
    given: list[int] = []

    def read_split(*_: object, **more: object) -> Iterator[RawRow]:
        for line in range(5):
            given.append(line)
            yield RawRow(line, {"line": line}, 1)

    monkeypatch.setattr(built_rows, "read_split", read_split)
    wanted = {line: {"row": line, "code": "decode_error", "message": ""} for line in (0, 2)}
    again = built_rows._read_again(Split("x.jsonl", "lines", 0, 9, "x.jsonl", ""), wanted, 1 << 20)
    assert [(row, bytes(raw)) for row, _, _, raw in again] == [(0, b'{"line": 0}'), (2, b'{"line": 2}')]
    assert given == [0, 1, 2]


def test_the_report_holds_the_beginning_of_a_reject_alone(tmp_path: Path) -> None:
    size, path = 16 << 20, tmp_path / "rejected.jsonl"
    with path.open("w") as file:
        for line in (1, 2, 3):
            head = {"source": "x.jsonl", "line": line, "code": "bad_media", "message": "no picture"}
            file.write(json.dumps(head)[:-1] + ', "row": "' + str(line) * size + '"}\n')
    tracemalloc.start()
    examples = reject_examples(str(path), {"bad_media": 3})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [example["line"] for example in examples] == [1, 2, 3]
    assert examples[2]["row"].startswith('"333') and examples[2]["row"].endswith(f"… ({size + 2:,} bytes)")
    assert peak < size // 2, peak / size


def test_rejects_are_read_on_from_where_the_next_line_begins(tmp_path: Path) -> None:
    """Rows shorter and longer than what is shown and than a block, and a file whose last line has no end."""
    path = tmp_path / "rejected.jsonl"
    rows = ["x" * size for size in (0, 3, ROW_BYTES, 5000, BLOCK_BYTES - 70, BLOCK_BYTES, 3 * BLOCK_BYTES + 1, 2)]
    lines = [
        json.dumps({"source": "ä.jsonl", "line": number, "code": "bad_media", "message": "no", "row": row})
        for number, row in enumerate(rows)
    ]
    path.write_text("\n".join(lines) + "\n")
    read = list(read_rejects(str(path)))
    ends = [sum(len(line) + 1 for line in lines[: number + 1]) for number in range(len(lines))]
    assert [(reject["line"], end) for reject, end in read] == list(enumerate(ends))
    for row, (reject, _) in zip(rows, read, strict=True):
        whole = json.dumps(row)
        shown = whole if len(whole) <= ROW_BYTES else f"{whole[:ROW_BYTES]}… ({len(whole):,} bytes)"
        assert reject["row"] == shown
    assert list(read_rejects(str(path), ends[4])) == read[5:]


def test_a_file_without_rejects_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "rejected.jsonl"
    path.write_bytes(b"x" * (5 * BLOCK_BYTES))
    with pytest.raises(DamagedDataError, match="a line that no build wrote"):
        list(read_rejects(str(path)))


def test_cycles_are_searched_for_when_asked_although_seldom_by_themselves() -> None:
    before = gc.get_threshold()
    try:
        collect_seldom()
        content, faults = Content(), []
        held = weakref.ref(content)
        faults.append((faults, content))  # as an exception whose frames hold it
        del content, faults
        assert held() is not None
        collect_young()
        assert held() is None
    finally:
        gc.set_threshold(*before)
