"""The modalities: one line of a table each, and the kind of a row by the modalities that it holds.

A new modality is a line here, a decoder in omniprep/media/ and a family that takes it. The order is that of media
columns in shards and of columns in rows.parquet.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Modality:
    """What is known of a modality before any item of it is read."""

    column: str
    """Of raw rows, and of rows.parquet, where it counts items."""
    work: Literal["patches", "audio_frames"]
    """Column of rows.parquet that counts what a tower works on."""
    bytes: int
    """A unit of work in a shard: a patch of an image (14 x 14 x 3) or of a video (two frames of that), before
    --pixel-codec; an audio frame (128 mel bands in bfloat16). Families with larger patches take more."""
    seconds: float
    """Of one core to decode and encode a unit of work, about (benchmarks/results/build.json). A video is decoded up to
    the last frame that is taken; films of an hour take far longer. An audio frame is 10 ms of sound."""
    color: str
    """In plots; the dark theme's twin is in report/style.css."""
    sentinel: int
    """Stands for an item in the ids of a plan, where the family's text is written by a renderer; no token has it."""


MODALITIES: dict[str, Modality] = {
    "image": Modality(column="images", work="patches", bytes=588, seconds=4e-6, color="#b07aa1", sentinel=-1),
    "audio": Modality(column="audios", work="audio_frames", bytes=256, seconds=19e-6, color="#2a9d8f", sentinel=-2),
    "video": Modality(column="videos", work="patches", bytes=1176, seconds=15e-6, color="#e9a23b", sentinel=-3),
}
MEDIA_COLUMNS = tuple(modality.column for modality in MODALITIES.values())
KINDS = ("text", *MODALITIES, "mixed")
"""What a row holds: text alone, one modality besides, or several."""


def row_kinds(counts: "ArrayLike") -> "NDArray[np.int64]":
    """The kind of each row, (rows,), an index into `KINDS`, of its items by modality (modalities, rows)."""
    import numpy as np  # here: the command line offers `KINDS`, and --help must not wait for numpy

    present = np.asarray(counts) > 0
    modalities = len(present)
    alone = np.arange(1, modalities + 1) @ present
    return np.where(present.sum(axis=0) > 1, modalities + 1, alone)


def media_counts(table: "pa.Table") -> list[Any]:
    """Items by modality of each row of a rows.parquet; a table of other makers may lack a column."""
    import numpy as np

    none = np.zeros(len(table), np.int64)
    return [table[name] if name in table.column_names else none for name in MEDIA_COLUMNS]
