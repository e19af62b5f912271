"""What a plan promises: rows, tokens, bins, bytes, and about how long encoding takes.

Counts are exact, but for rows that only decoding finds damaged. Bytes are within a tenth or so. Seconds are an order of
magnitude: the rates below were measured on one core (2.5 GHz Xeon) with the demonstration data, and depend most on how
much larger the files are than what the model sees of them.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from omniprep.build.packstage import FRAME_BYTES, PATCH_BYTES, TOKEN_BYTES

if TYPE_CHECKING:
    from omniprep.build.run import Planned
    from omniprep.config import BuildConfig

__all__ = ["Estimate", "estimate"]

TOKEN_SECONDS = 2e-6
IMAGE_PATCH_SECONDS = 12e-6
VIDEO_PATCH_SECONDS = 200e-6
"""A video is decoded up to the last frame that is taken, so most of it is frames that nobody sees."""
FRAME_SECONDS = 36e-6
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

    @property
    def fill(self) -> float:
        """Share of the bins' room that tokens take."""
        return self.tokens / max(self.bins * self.bin_length, 1)


def estimate(planned: "Planned", config: "BuildConfig") -> Estimate:
    """The numbers of a plan."""
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
        core_seconds=tokens * TOKEN_SECONDS
        + (patches - moving) * IMAGE_PATCH_SECONDS
        + moving * VIDEO_PATCH_SECONDS
        + frames * FRAME_SECONDS,
    )
