"""What a plan promises: rows, tokens, bins, bytes, and about how long encoding takes.

Counts are exact, but for rows that only decoding finds damaged. Bytes follow from the prices of
omniprep/compiler/costs.py: right to a tenth for raw pixels and for source, whose files are measured; for other codecs
they follow from the sizes of the files, to a third for photographs and to a factor of two for drawings and screens, of
which there are many kinds. Seconds are an order of magnitude, unless rows were timed
(compiler/plan/measure.py): they depend on the machine, and on how much larger the files are than what the model sees of
them.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omniprep.compiler.costs import encode_seconds, load_seconds, stored_bytes
from omniprep.compiler.output.manifest import count_verdicts, note_columns
from omniprep.modalities import MODALITIES

if TYPE_CHECKING:
    from omniprep.compiler.output.built_rows import Planned
    from omniprep.config import BuildConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The numbers of one plan."""

    filtered: int
    """Rows that --where leaves out; they are not among those read."""
    read: int
    packed: int
    codes: Counter[str]
    items: dict[str, int]
    preference: dict[str, int]
    """Rows by what they are to a preference objective; {} where none is anything."""
    tokens: int
    trained: int
    lengths: tuple[int, int, int, int, int]
    """Tokens of a row: least, median, 90 %, 99 %, greatest."""
    bins: int
    bin_length: int
    shards: int
    bytes: int
    load_seconds: float
    """One epoch's loading on one core, of pixels alone."""
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
    """The numbers of a plan; `timed` is what `omniprep.compiler.plan.measure` gives."""
    facts, kept = planned.rows.facts, planned.rows.packed
    columns = planned.rows.columns(kept)
    lengths = columns["length"]
    points = np.percentile(lengths, [0, 50, 90, 99, 100]).round().astype(int).tolist() if len(lengths) else [0] * 5
    return Estimate(
        filtered=planned.left_out["filtered"],
        read=len(planned.rows),
        packed=int(kept.sum()),
        codes=Counter(code for code in facts["code"] if code),
        items={name: int(columns[modality.column].sum()) for name, modality in MODALITIES.items()},
        preference=count_verdicts(facts["verdict"][kept]) if "verdict" in facts else {},
        tokens=int(lengths.sum()),
        trained=int(facts["trained"][kept].sum()),
        lengths=(points[0], points[1], points[2], points[3], points[4]),
        bins=planned.assignment.bins,
        bin_length=config.bin_length,
        shards=planned.assignment.shards,
        bytes=int(stored_bytes(columns, config.pixel_codec, planned.rows.unit_bytes).sum()),
        load_seconds=float(load_seconds(columns, config.pixel_codec, planned.rows.unit_bytes).sum()),
        patches=int(columns["patches"].sum()),
        audio_frames=int(columns["audio_frames"].sum()),
        core_seconds=timed[0] if timed else float(encode_seconds(columns).sum()),
        notes={name: int(noted[kept].sum()) for name, noted in note_columns(planned.rows).items()},
        unread=planned.unread(),
        timed=timed[1] if timed else 0,
    )
