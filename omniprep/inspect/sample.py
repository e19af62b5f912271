"""Rows of a dataset written back for people: a line of JSON a row, and the media as the model sees them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omniprep.data.collate import cut_row
from omniprep.data.dataset import PackedDataset
from omniprep.errors import OmniprepError
from omniprep.inspect.describe import find_row, media_of, messages_of, pieces_of, vocabulary_of
from omniprep.inspect.pictures import rebuild
from omniprep.modalities import KINDS, MEDIA_COLUMNS, row_kinds
from omniprep.report.bins import spectrogram_picture
from omniprep.shards.content import item_sizes
from omniprep.shards.names import refuse_linked_folders

__all__ = ["write_sample"]


def write_sample(
    uri: str, out: Path, *, count: int = 20, places: Sequence[str] = (), kinds: Sequence[str] = (), seed: int = 0,
    model: str | None = None,
) -> int:  # fmt: skip
    """Write chosen rows to `out`/rows.jsonl and their media to `out`/media.

    Args:
        uri: The dataset.
        out: A folder; made where absent.
        count: Rows drawn at random, where no `places` are given.
        places: SOURCE:LINE of rows.
        kinds: Only rows of these kinds.
        seed: Seed of the draw.
        model: Checkpoint whose tokenizer reads the tokens (default: the build's).

    Returns:
        Rows written.

    Raises:
        OmniprepError: No such row, or one that was rejected.
    """
    dataset = PackedDataset(uri)
    vocabulary = vocabulary_of(dataset, model)
    numbers = [find_row(dataset, place) for place in places] or _draw(dataset, count, kinds, seed)
    refuse_linked_folders(out, ["media"])
    (out / "media").mkdir(parents=True, exist_ok=True)
    (out / "rows.jsonl").unlink(missing_ok=True)  # a link that lies there is replaced, not written through
    with (out / "rows.jsonl").open("x", encoding="utf-8") as file:
        for number in numbers:
            row = dataset.rows.slice(number, 1).to_pylist()[0]
            if row["bin"] is None:
                raise OmniprepError(f"{row['source']}:{row['line']} was rejected: {row['code']} (see rejected.jsonl)")
            item = dataset[row["bin"]]
            cut = cut_row(item, int(np.searchsorted(item["cu_seqlens"], row["start"])))
            pieces = pieces_of(cut, vocabulary)
            files = _write_media(cut, out, number)
            media = [{"modality": m.modality, **m.facts, "files": f} for m, f in zip(media_of(cut), files, strict=True)]
            text = "".join(f"{p.text}*{p.tokens}" if p.media else p.text for p in pieces)
            line = {name: row[name] for name in ("source", "line", "bin", "start", "length")}
            content = {**line, "messages": messages_of(pieces), "media": media}
            content |= {"text": text, "pieces": [asdict(piece) for piece in pieces]}
            file.write(json.dumps(content, ensure_ascii=False) + "\n")
    return len(numbers)


def _draw(dataset: PackedDataset, count: int, kinds: Sequence[str], seed: int) -> list[int]:
    fitting = dataset.rows["bin"].is_valid().to_numpy()
    if kinds:
        numbers = [KINDS.index(kind) for kind in kinds]
        fitting = fitting & np.isin(row_kinds([dataset.rows[name] for name in MEDIA_COLUMNS]), numbers)
    found = np.flatnonzero(fitting)
    chosen = np.random.default_rng(seed).permutation(found)[:count]
    return sorted(chosen.tolist())


def _write_media(cut: dict[str, Any], out: Path, number: int) -> list[list[str]]:
    """The files of each media item, in the order of `media_of`; names are relative to `out`."""
    files: dict[str, list[list[str]]] = {}
    for column in cut["columns"]:
        if column.name not in cut or column.load not in ("patches", "mel"):
            continue
        sizes = item_sizes(column, cut)
        unit = column.unit if column.load == "mel" else 1
        parts = np.split(cut[column.name], np.cumsum(sizes)[:-1] * unit)
        written = []
        for place, part in enumerate(parts):
            if column.load == "mel":
                images = [spectrogram_picture(part.reshape(column.unit, -1))]
            else:
                grid = cut[column.size_source()[0]][place].tolist()
                images = [Image.fromarray(frame) for frame in rebuild(part, tuple(grid), column.params)]
            names = []
            for at, image in enumerate(images):
                frame = f"-{at:03d}" if len(images) > 1 else ""
                names.append(f"media/{number:08d}-{column.modality}{place}{frame}.png")
                (out / names[-1]).unlink(missing_ok=True)
                image.save(out / names[-1])
            written.append(names)
        files[column.modality] = written
    order = [media.modality for media in media_of(cut)]
    taken = dict.fromkeys(files, 0)
    result = []
    for modality in order:
        result.append(files.get(modality, [[]] * len(order))[taken.get(modality, 0)])
        taken[modality] = taken.get(modality, 0) + 1
    return result
