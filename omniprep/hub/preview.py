"""The `preview` config of a pushed dataset: a small table that the Hub's viewer shows as chats with thumbnails.

It is pushed twice. `datasets` takes one builder for all configs of a repository, that of its first config, so the
preview is an Arrow file as the shards are; the Parquet file beside it is for everything else that reads tables.
"""

import io as memory
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from omniprep.inspect.describe import StoredRow, messages_of, packed_rows, pieces_of
from omniprep.inspect.media import media_of
from omniprep.inspect.pictures import few
from omniprep.inspect.vocabulary import Vocabulary
from omniprep.modalities import KINDS, media_counts, row_kinds
from omniprep.report.scan import spread
from omniprep.shards.dataset import StoredDataset

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
        "feature": {"role": {"dtype": "string", "_type": "Value"}, "content": {"dtype": "string", "_type": "Value"}},
        "_type": "List",
    },
    "thumbnail": {"_type": "Image"},
}
"""What `datasets` makes of the columns; the viewer draws an Image feature."""


def preview(dataset: StoredDataset, vocabulary: Vocabulary, most: int = ROWS) -> dict[str, bytes]:
    """The files by their suffix (arrow, parquet): at most `most` rows, of every kind about as many, in input order."""
    rows = dataset.rows
    kinds = row_kinds(media_counts(rows))
    packed = rows["bin"].is_valid().to_numpy()
    by_kind = [np.flatnonzero(packed & (kinds == kind)) for kind in range(len(KINDS))]
    by_kind = sorted((numbers for numbers in by_kind if len(numbers)), key=len)
    chosen: set[int] = set()
    for position, numbers in enumerate(by_kind):  # the rarest first, so that the others share what it leaves
        share = (most - len(chosen)) // (len(by_kind) - position)
        chosen.update(numbers[spread(len(numbers), share)].tolist())
    lines = [_line(packed_rows(dataset, number), KINDS[kinds[number]], vocabulary) for number in sorted(chosen)]
    schema, features = _SCHEMA, _FEATURES
    if dataset.layout.preferences:
        for name in ("verdict", "rejected_messages"):
            kind = "messages" if name == "rejected_messages" else "kind"
            schema = schema.append(pa.field(name, schema.field(kind).type))
            features = {**features, name: _FEATURES[kind]}
    table = pa.Table.from_pylist(lines, schema=schema)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet, arrow = memory.BytesIO(), memory.BytesIO()
    pq.write_table(table, parquet, compression="zstd", row_group_size=50)
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table)
    return {"arrow": arrow.getvalue(), "parquet": parquet.getvalue()}


def _line(rows: Sequence[StoredRow], kind: str, vocabulary: Vocabulary) -> dict[str, Any]:
    """A row, or both answers of a pair; columns that the schema lacks are dropped."""
    row = rows[0]
    frames = next((item.frames() for item in media_of(row.arrays) if item.has_pixels), None)
    return {
        "source": row.source,
        "line": row.line,
        "kind": kind,
        "tokens": sum(part.tokens for part in rows),
        "trained": sum(part.trained for part in rows),
        "verdict": "pair" if len(rows) > 1 else row.verdict,
        "rejected_messages": messages_of(pieces_of(rows[1].arrays, vocabulary)) if len(rows) > 1 else [],
        "messages": messages_of(pieces_of(row.arrays, vocabulary)),
        "thumbnail": None if frames is None else {"bytes": _thumbnail(frames), "path": None},
    }


def _thumbnail(frames: np.ndarray) -> bytes:
    image = Image.fromarray(few(frames))
    image.thumbnail((THUMBNAIL[0] * (2 if len(frames) > 1 else 1), THUMBNAIL[1]))
    target = memory.BytesIO()
    image.save(target, format="JPEG", quality=80)
    return target.getvalue()
