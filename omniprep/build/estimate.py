"""What a plan promises: rows, tokens, bins, bytes, and about how long encoding takes.

Counts are exact, but for rows that only decoding finds damaged. Bytes are within a tenth or so. Seconds are an order of
magnitude, unless rows were timed (omniprep/build/measure.py): they depend on the machine, and on how much larger the
files are than what the model sees of them. The rates below follow from benchmarks/results/build.json, CPU time of whole
builds on one core of the machine named there: text rows take 2.6 µs a token; of image rows (4 patches a token) 35 µs a
token, of audio rows (4 frames a token) 98 µs and of video rows (4 patches a token, 6 to 10 s of 640x360 and 1280x720)
173 µs.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omniprep.build.manifest import note_columns
from omniprep.build.packstage import FRAME_BYTES, PATCH_BYTES, TOKEN_BYTES

if TYPE_CHECKING:
    from omniprep.build.run import Planned
    from omniprep.config import BuildConfig

__all__ = ["Estimate", "estimate"]

TOKEN_SECONDS = 2.6e-6
IMAGE_PATCH_SECONDS = 8e-6
VIDEO_PATCH_SECONDS = 43e-6
"""A video is decoded up to the last frame that is taken; films of an hour take far longer."""
FRAME_SECONDS = 24e-6
"""A frame of a spectrogram, 10 ms of sound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The numbers of one plan."""

    read: int
    packed: int
    codes: Counter[str]
    items: dict[str, int]
    tokens: int
    trained: int
    lengths: tuple[int, int, int, int, int]
    """Tokens of a row: least, median, 90 %, 99 %, greatest."""
    bins: int
    bin_length: int
    shards: int
    bytes: int
    patches: int
    audio_frames: int
    core_seconds: float
    """Encoding on one core."""
    notes: dict[str, int]
    """Rows by what is noted of them, such as surplus_tags."""
    unread: dict[str, list[Any]]
    """Columns that nobody reads: rows of each, and the option that reads it."""
    timed: int = 0
    """Rows that were encoded here to know it; 0: it follows from the rates of another machine."""

    @property
    def fill(self) -> float:
        """Share of the bins' room that tokens take."""
        return self.tokens / max(self.bins * self.bin_length, 1)


def estimate(planned: "Planned", config: "BuildConfig", timed: tuple[float, int] | None = None) -> Estimate:
    """The numbers of a plan; `timed` is what `omniprep.build.measure` gives."""
    facts, kept = planned.rows.facts, planned.rows.packed
    lengths = facts["length"][kept].astype(np.int64)
    tokens = int(lengths.sum())
    patches, frames, trained = (int(facts[name][kept].sum()) for name in ("patches", "audio_frames", "trained"))
    moving = int(facts["patches"][kept & (facts["videos"] > 0)].sum())
    points = np.percentile(lengths, [0, 50, 90, 99, 100]).round().astype(int).tolist() if len(lengths) else [0] * 5
    return Estimate(
        read=len(planned.rows),
        packed=int(kept.sum()),
        codes=Counter(code for code in facts["code"] if code),
        items={name: int(facts[f"{name}s"][kept].sum()) for name in ("image", "audio", "video")},
        tokens=tokens,
        trained=trained,
        lengths=(points[0], points[1], points[2], points[3], points[4]),
        bins=planned.placement.bins,
        bin_length=config.bin_length,
        shards=len(planned.placement.shard_bins) - 1,
        bytes=tokens * TOKEN_BYTES + patches * PATCH_BYTES + frames * FRAME_BYTES,
        patches=patches,
        audio_frames=frames,
        core_seconds=timed[0]
        if timed
        else tokens * TOKEN_SECONDS
        + (patches - moving) * IMAGE_PATCH_SECONDS
        + moving * VIDEO_PATCH_SECONDS
        + frames * FRAME_SECONDS,
        notes={name: int(noted[kept].sum()) for name, noted in note_columns(planned.rows).items()},
        unread=planned.unread,
        timed=timed[1] if timed else 0,
    )
