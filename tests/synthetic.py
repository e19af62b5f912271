"""Small datasets made with the writer alone: no model, no media files, every kind of column."""

import json
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from omniprep.compiler.costs import bin_cost
from omniprep.packing import pack, rows_by_bin
from omniprep.shards.index import IndexEntry, write_index, write_rows
from omniprep.shards.schema import Bin, Column, arrow_schema
from omniprep.shards.writer import ShardWriter

MODALITIES = ("image", "audio", "video")
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PATCHES = {"mean": MEAN, "std": STD, "patch_size": 14, "temporal_patch_size": 2}
COLUMNS = (
    Column(name="image_grid_thw", modality="image", kind="items", shape=(3,)),
    Column(name="video_grid_thw", modality="video", kind="items", shape=(3,)),
    Column(
        name="pixel_values",
        modality="image",
        kind="flat",
        dtype="uint8",
        shape=(588,),
        sizes="prod(image_grid_thw)",
        load="patches",
        params=PATCHES,
    ),
    Column(
        name="pixel_values_videos",
        modality="video",
        kind="flat",
        dtype="uint8",
        shape=(1176,),
        sizes="prod(video_grid_thw)",
        load="patches",
        params=PATCHES,
    ),
    Column(name="audio_frames", modality="audio", kind="items", load="none"),
    Column(
        name="input_features",
        modality="audio",
        kind="flat",
        dtype="bfloat16",
        shape=(128,),
        sizes="audio_frames",
        load="mel",
        params={"mask": "feature_attention_mask", "pad_to": None},
    ),
)


class Draws:
    """Random integers from the raw stream of PCG64, which numpy keeps: golden bytes follow from these."""

    def __init__(self, *key: int) -> None:
        self.raw = np.random.PCG64(np.random.SeedSequence(list(key)))

    def integers(self, low: int, high: int, shape: tuple[int, ...] = (), dtype: type = np.int64) -> np.ndarray:
        values = self.raw.random_raw(int(np.prod(shape))) if shape else np.asarray(self.raw.random_raw())
        return (low + values % np.uint64(high - low)).astype(dtype).reshape(shape)


def make_row(number: int, length: int, seed: int = 0) -> dict:
    """A row whose content follows from its number: every third has images, every fourth a clip, every fifth a video."""
    rng = Draws(seed, number)
    media: dict[str, list[np.ndarray]] = {c.name: [] for c in COLUMNS}
    for _ in range(1 + number % 2 if number % 3 == 0 else 0):
        grid = np.array([1, 2 * rng.integers(1, 4), 2 * rng.integers(1, 4)])
        media["image_grid_thw"].append(grid)
        media["pixel_values"].append(rng.integers(0, 256, (grid.prod(), 588), np.uint8))
    if number % 5 == 0:
        grid = np.array([2, 2, 4])
        media["video_grid_thw"].append(grid)
        media["pixel_values_videos"].append(rng.integers(0, 256, (16, 1176), np.uint8))
    if number % 4 == 0:
        frames = int(rng.integers(3, 40))
        media["audio_frames"].append(np.array(frames))
        media["input_features"].append(rng.integers(0, 0x4000, (128, frames), np.uint16))
    labels = rng.integers(0, 150_000, (length,), np.int32)
    labels[0] = -100
    plain = not (media["image_grid_thw"] or media["video_grid_thw"])
    base = np.arange(length, dtype=np.int32)
    return {
        "input_ids": rng.integers(0, 150_000, (length,), np.int32),
        "labels": labels,
        "loss_scale": rng.integers(0, 5, (length,), np.float32) / 4,
        "position_ids": np.stack([base, base if plain else base // 2, base if plain else base // 3]),
        "plain": plain,
        "items": [len(media["image_grid_thw"]), len(media["audio_frames"]), len(media["video_grid_thw"])],
        "media": media,
    }


def make_bin(rows: list[dict], row_ids: list[int], weighted: bool = False) -> Bin:
    """Rows, end to end."""
    return Bin(
        input_ids=np.concatenate([r["input_ids"] for r in rows]),
        labels=np.concatenate([r["labels"] for r in rows]),
        loss_scale=np.concatenate([r["loss_scale"] for r in rows]) if weighted else None,
        position_ids=None if all(r["plain"] for r in rows) else np.concatenate([r["position_ids"] for r in rows], 1),
        cu_seqlens=np.cumsum([0, *(len(r["input_ids"]) for r in rows)]).astype(np.int32),
        row_ids=np.array(row_ids, np.int32),
        row_items=np.array([r["items"] for r in rows], np.int32),
        media={c.name: [m for r in rows for m in r["media"][c.name]] for c in COLUMNS},
    )


def write_bins(
    folder: Path,
    bins: Iterable[Bin],
    columns: Sequence[Column],
    *,
    family: str,
    modalities: Sequence[str],
    weighted: bool = False,
    preferences: bool = False,
    bins_per_shard: int = 1 << 30,
    costs: Sequence[float] | None = None,
    **manifest: Any,
) -> None:
    """Write a finished dataset of these bins, but for rows.parquet.

    Args:
        folder: Made.
        bins: In their order; one is held at a time.
        columns: Of the media.
        family, modalities, weighted, preferences: As in `arrow_schema`.
        bins_per_shard: Bins of a file.
        costs: Of the bins (default: their tokens).
        manifest: More of manifest.json.
    """
    schema = arrow_schema(
        tuple(columns), family=family, modalities=tuple(modalities), weighted=weighted, preferences=preferences
    )
    (folder / "shards").mkdir(parents=True)
    entries: list[IndexEntry] = []
    shards = []
    left = iter(bins)
    for first in left:
        path, before = f"shards/{len(shards):05d}.arrow", len(entries)
        with ShardWriter(str(folder / path), schema) as writer:
            for item in chain([first], islice(left, bins_per_shard - 1)):
                entry = writer.write(item)
                tokens = len(item.input_ids)
                entries.append(
                    IndexEntry(
                        shard=len(shards),
                        offset=entry.offset,
                        length=entry.length,
                        tokens=tokens,
                        rows=len(np.unique(item.row_ids)),
                        patches=sum(len(p) for p in item.media.get("pixel_values", ())),
                        audio_frames=sum(int(f) for f in item.media.get("audio_frames", ())),
                        cost=float(tokens if costs is None else costs[len(entries)]),
                        checksum=entry.checksum,
                    )
                )
        info = writer.close()
        shards.append({"path": path, "bins": len(entries) - before, "bytes": info.bytes, "sha256": info.sha256})
    write_index(str(folder / "index.parquet"), entries)
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "shards": shards, **manifest}))


def make_dataset(
    folder: Path,
    n_rows: int = 60,
    bin_length: int = 256,
    bins_per_shard: int = 4,
    weighted: bool = False,
    seed: int = 0,
) -> list[dict]:
    """Write a finished dataset; row i has source "a.jsonl" or "b.jsonl" and is rejected where i % 13 == 12."""
    lengths = np.clip(np.exp(np.random.default_rng(seed).normal(4, 0.7, n_rows)).astype(np.int64), 8, bin_length)
    rows = [make_row(i, int(length), seed) for i, length in enumerate(lengths)]
    kept = np.array([i for i in range(n_rows) if i % 13 != 12])
    bins = pack(lengths[kept], bin_length, seed)
    order, offsets = rows_by_bin(bins, seed)
    no_media = np.zeros(len(bins), np.int64)
    costs = bin_cost({"length": lengths[kept], "patches": no_media, "audio_frames": no_media}, bins)
    ids = [kept[order[offsets[b] : offsets[b + 1]]].tolist() for b in range(len(costs))]
    starts = {row: int(lengths[numbers[:at]].sum()) for numbers in ids for at, row in enumerate(numbers)}
    made = (make_bin([rows[i] for i in numbers], numbers, weighted) for numbers in ids)
    write_bins(
        folder, made, COLUMNS, family="synthetic", modalities=MODALITIES, weighted=weighted,
        bins_per_shard=bins_per_shard, costs=costs, bin_length=bin_length,
    )  # fmt: skip
    place = {int(row): (int(bins[k]), starts[int(row)], int(lengths[row])) for k, row in enumerate(kept)}
    columns = {
        "source": [f"{'ab'[i % 2]}.jsonl" for i in range(n_rows)],
        "line": [i // 2 + 1 for i in range(n_rows)],
        "status": ["packed" if i in place else "rejected" for i in range(n_rows)],
        "code": [None if i in place else "bad_json" for i in range(n_rows)],
        **{
            name: [place[i][k] if i in place else None for i in range(n_rows)]
            for k, name in enumerate(("bin", "start", "length"))
        },
    }
    write_rows(str(folder / "rows.parquet"), [pa.table(columns)])
    return rows
