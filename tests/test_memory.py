"""Rows of 200 MB: a Ray worker, and the driver, stay below 1.5 GiB, and every row is packed or rejected with a code.

What is measured is the kernel's high-water mark of resident memory (VmHWM), which is no matter of speed.
"""

import base64
import io as _io
import json
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.reliability import command
from tests.test_resume_kill import descendants

pytestmark = pytest.mark.slow
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
