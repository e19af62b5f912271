"""Bytes stored against the tensors that ms-swift's collator holds for the same rows, in bfloat16; by kind and codec.

ms-swift's side is reckoned from its shapes (and checked by benchmarks/build.py's rival): 1,176 values a patch of images
and videos, spectrograms of 300 s for every clip, ids and labels and three rows of positions as int64. Every codec's
dataset is read back and compared with raw, bit by bit. Decoding is timed where the loader does it: of source, of the
files, without the comparison that a first reading makes.

    python benchmarks/storage.py --model CHECKPOINT [--data FOLDER] [--screens FOLDER] [--codecs raw,delta,source]
"""

import argparse
import json
import os
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from corpus import make
from record import leave_out_report, load_kernels, record

from omniprep.bars import reporter
from omniprep.compiler.build import build
from omniprep.config import BuildConfig
from omniprep.data import PackedDataset

ROWS = {"text": 200, "image": 12, "audio": 6, "video": 4}
CLIP = 128 * 30_000


def reference_bytes(ds: PackedDataset) -> int:
    """What ms-swift's collator would hold, media in bfloat16."""
    total = 0
    for item in (ds[i] for i in range(len(ds))):
        total += len(item["input_ids"]) * 5 * 8
        total += sum(len(item[name]) * 1176 * 2 for name in ("pixel_values", "pixel_values_videos") if name in item)
        total += len(item.get("audio_frames", ())) * CLIP * 2
    return total


def dataset(model: str, path: Path, codec: str, out: Path) -> tuple[PackedDataset, float]:
    options = BuildConfig(
        inputs=(str(path),), model=model, bin_length=32768, out=str(out), workers=0, pixel_codec=codec
    )
    begin = time.process_time()
    with reporter(quiet=True) as progress:
        build(options, progress)
    return PackedDataset(out), time.process_time() - begin


def loading(ds: PackedDataset) -> float:
    """CPU seconds to read every bin."""
    times = []
    for _ in range(4):
        begin = time.process_time()
        for i in range(len(ds)):
            ds[i]
        times.append(time.process_time() - begin)
    return min(times[1:])


def equal(ours: dict[str, Any], raw: dict[str, Any]) -> bool:
    names = [name for name in raw if isinstance(raw[name], np.ndarray)]
    return all(np.array_equal(ours[name], raw[name]) for name in names)


def file_bytes(path: Path) -> int:
    """Bytes of the media of some rows."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = {name for row in rows for kind in ("images", "audios", "videos") for name in row.get(kind, ())}
    return sum((path.parent / name).stat().st_size for name in names)


def screens(folder: Path, pictures: Path, number: int) -> Path:
    files = [f for f in sorted(pictures.rglob("*")) if f.suffix == ".png"][:number]
    chat = {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "A picture."}]}
    folder.mkdir(parents=True)
    lines = []
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
        lines.append(json.dumps({**chat, "images": [file.name]}))
    path = folder / "screen.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--data", type=Path, default=os.environ.get("OMNIPREP_BENCH_DATA"))
    screenshots = Path(__file__).resolve().parent.parent / "docs"
    parser.add_argument("--screens", type=Path, default=screenshots, help="folder with .png screenshots below it")
    installed = "raw,delta,source,webp" + (",jxl" if find_spec("pillow_jxl") else "")
    parser.add_argument("--codecs", default=installed, help="raw first")
    options = parser.parse_args()
    if not options.model:
        print("skipped: needs --model (OMNIPREP_BENCH_MODEL)")
        return
    load_kernels()
    leave_out_report()
    rows = []
    totals: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory(prefix="omniprep-storage-") as name:
        folder = Path(name)
        files = make(folder / "corpus", ROWS, options.data)
        files["screen"] = screens(folder / "screens", options.screens, 12)
        for kind, path in files.items():
            raw: PackedDataset | None = None
            for codec in options.codecs.split(","):
                if codec != "raw" and kind in ("text", "audio"):
                    continue
                ds, _ = dataset(options.model, path, codec, folder / f"{kind}-{codec}")
                raw = raw or ds
                assert all(equal(ds[i], raw[i]) for i in range(len(ds))), (kind, codec)
                stored = sum(shard["bytes"] for shard in ds.manifest["shards"])
                tokens, reference = int(ds.index["tokens"].sum()), reference_bytes(ds)
                for counted in options.codecs.split(",") if kind in ("text", "audio") else [codec]:
                    if kind != "screen":
                        total = totals.setdefault(counted, [0, 0, 0])
                        totals[counted] = [a + b for a, b in zip(total, (stored, tokens, reference), strict=True)]
                media = file_bytes(path)
                row = facts(kind, codec, stored, tokens, reference)
                row["source_bytes_a_token"] = round(media / tokens, 1) if media else ""
                row["loaded_tokens_per_second"] = round(tokens / loading(ds))
                rows.append(row)
    rows += [facts("all", codec, *total) for codec, total in totals.items()]
    record("storage", rows, corpus=ROWS, goal={"raw": 0.25, "lossless": 0.10})


def facts(kind: str, codec: str, stored: int, tokens: int, reference: int) -> dict[str, Any]:
    return {
        "rows": kind,
        "codec": codec,
        "bytes_a_token": round(stored / tokens, 1),
        "bf16_bytes_a_token": round(reference / tokens, 1),
        "of_bf16": round(stored / reference, 4),
    }


if __name__ == "__main__":
    main()
