"""The `preview` config of a pushed dataset: a small table that the Hub's viewer shows as chats with thumbnails.

It is pushed twice. `datasets` takes one builder for all configs of a repository, that of its first config, so the
preview is an Arrow file as the shards are; the Parquet file beside it is for everything else that reads tables.
"""

import io as memory
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from omniprep.data.collate import cut_row
from omniprep.data.dataset import PackedDataset
from omniprep.inspect.describe import Vocabulary, messages_of, pieces_of
from omniprep.inspect.pictures import few, pictures_of
from omniprep.modalities import KINDS, MEDIA_COLUMNS, row_kinds
from omniprep.report.bins import spread

__all__ = ["preview"]

ROWS = 200
THUMBNAIL = (384, 256)
_CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("line", pa.int64()),
        ("kind", pa.string()),
        ("tokens", pa.int64()),
        ("trained", pa.int64()),
        ("messages", _CHAT),
        ("thumbnail", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ]
)
_FEATURES = {
    "source": {"dtype": "string", "_type": "Value"},
    "line": {"dtype": "int64", "_type": "Value"},
    "kind": {"dtype": "string", "_type": "Value"},
    "tokens": {"dtype": "int64", "_type": "Value"},
    "trained": {"dtype": "int64", "_type": "Value"},
    "messages": {
        "feature": {
            "role": {"dtype": "string", "_type": "Value"},
            "content": {"dtype": "string", "_type": "Value"},
        },
        "_type": "List",
    },
    "thumbnail": {"_type": "Image"},
}
"""What `datasets` makes of the columns; the viewer draws an Image feature."""


def preview(dataset: PackedDataset, vocabulary: Vocabulary, most: int = ROWS) -> dict[str, bytes]:
    """The files by their suffix (arrow, parquet): at most `most` rows, of every kind about as many, in input order."""
    rows = dataset.rows
    kinds = row_kinds([rows[name] for name in MEDIA_COLUMNS])
    packed = rows["bin"].is_valid().to_numpy()
    chosen: set[int] = set()
    present = [np.flatnonzero(packed & (kinds == number)) for number in range(len(KINDS))]
    present = sorted((found for found in present if len(found)), key=len)
    for place, found in enumerate(present):
        share = (most - len(chosen)) // (len(present) - place)
        chosen.update(found[spread(len(found), share)].tolist())
    numbers = sorted(chosen)
    places = rows.select(["source", "line", "bin", "start"]).take(pa.array(numbers, pa.int64())).to_pylist()
    lines: dict[int, dict[str, Any]] = {}
    for at in sorted(range(len(numbers)), key=lambda n: places[n]["bin"]):  # a bin is read once
        lines[at] = _line(dataset, places[at], KINDS[kinds[numbers[at]]], vocabulary)
    table = pa.Table.from_pylist([lines[at] for at in range(len(numbers))], schema=_SCHEMA)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": _FEATURES}})})
    parquet, arrow = memory.BytesIO(), memory.BytesIO()
    pq.write_table(table, parquet, compression="zstd", row_group_size=50)
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table)
    return {"arrow": arrow.getvalue(), "parquet": parquet.getvalue()}


def _line(dataset: PackedDataset, place: dict[str, Any], kind: str, vocabulary: Vocabulary) -> dict[str, Any]:
    item = dataset[place["bin"]]
    cut = cut_row(item, int(np.searchsorted(item["cu_seqlens"], place["start"])))
    pictures = pictures_of(cut)
    return {
        "source": place["source"],
        "line": place["line"],
        "kind": kind,
        "tokens": len(cut["input_ids"]),
        "trained": int((cut["labels"] != -100).sum()),
        "messages": messages_of(pieces_of(cut, vocabulary)),
        "thumbnail": {"bytes": _thumbnail(pictures[0][1]), "path": None} if pictures else None,
    }


def _thumbnail(frames: np.ndarray) -> bytes:
    image = Image.fromarray(few(frames))
    image.thumbnail((THUMBNAIL[0] * (2 if len(frames) > 1 else 1), THUMBNAIL[1]))
    target = memory.BytesIO()
    image.save(target, format="JPEG", quality=80)
    return target.getvalue()
