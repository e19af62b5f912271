"""What planning makes of a row: token ids, loss weights, media items; of a preference pair for both of its answers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omniprep.compiler.costs import file_bytes, pixel_share
from omniprep.compiler.encode.stored_items import file_columns
from omniprep.config import BuildConfig
from omniprep.errors import Reject, RejectCode
from omniprep.families.context import FamilyContext
from omniprep.families.kinds import Item
from omniprep.modalities import MODALITIES
from omniprep.rows.columns import Note
from omniprep.rows.preference import Verdict

Ids = NDArray[np.int32]
Items = dict[str, list[Item]]
"""The media items of a row, by modality."""


@dataclass(slots=True)
class PlannedRow:
    """A row that will be packed: everything but the decoded media.

    `ids` hold one placeholder for each item; `run_lengths` and `run_weights` are the loss weights, run by run; `length`
    counts tokens after expansion; `patches` and `audio_frames` are the work of the model's towers, as the family counts
    it; `file_bytes` is of the files that --pixel-codec source keeps, `pixel_share` what delta makes of its
    pixels, of their bytes (omniprep/compiler/costs.py). `notes` and `unread` are what the build reports
    about the row (rows/columns.py).

    Of a pair this is the preferred answer, and `rejected` the other. Of that, `shared` names the modalities whose items
    are those of the preferred one, and which a shard holds once. `file_bytes` and `pixel_share` of the preferred one
    are of both; `repeated_patches` and `repeated_frames` are the work of the rejected answer on shared items;
    `other_prompt`: what stands before the first trained token differs from answer to answer.

    The plan file (compiler/plan/file.py) gives back what encoding needs: `ids`, the runs, `length`, `items`, `verdict`,
    `rejected` and `shared`.
    """

    ids: Ids
    run_lengths: NDArray[np.int32]
    run_weights: NDArray[np.float32]
    length: int
    items: Items = field(default_factory=lambda: {modality: [] for modality in MODALITIES})
    control_tokens: bool = False
    notes: Note = field(default_factory=lambda: Note(0))
    unread: dict[str, str] = field(default_factory=dict)
    patches: int = 0
    audio_frames: int = 0
    file_bytes: int = 0
    pixel_share: float = 0.0
    verdict: Verdict = Verdict.NONE
    rejected: "PlannedRow | None" = None
    shared: frozenset[str] = frozenset()
    repeated_patches: int = 0
    repeated_frames: int = 0
    other_prompt: bool = False

    @property
    def sequences(self) -> "tuple[PlannedRow, ...]":
        """What the row becomes in its bin: itself, and behind it the rejected answer of a pair."""
        return (self,) if self.rejected is None else (self, self.rejected)

    @property
    def trained(self) -> int:
        """Labeled tokens of this sequence."""
        return int(self.run_lengths[self.run_weights > 0].sum())

    def total(self, name: Literal["length", "patches", "audio_frames", "trained"]) -> int:
        """A number of the row: of both answers together where it is a pair."""
        return sum(int(getattr(sequence, name)) for sequence in self.sequences)

    def stored_items(self) -> Iterator[tuple[bool, str, Item]]:
        """The items that its shard holds: whether each is of the rejected answer alone, and its modality."""
        for rejected, sequence in enumerate(self.sequences):
            for modality, items in sequence.items.items():
                if modality not in sequence.shared:
                    yield from ((bool(rejected), modality, item) for item in items)


def tower_work(unit: str, items: Items, ctx: FamilyContext, modalities: frozenset[str] | None = None) -> int:
    """What the towers that count in `unit` (patches, audio_frames) work on for a row (or its items of `modalities`)."""
    counted = [
        name
        for name, modality in MODALITIES.items()
        if modality.work == unit and (modalities is None or name in modalities)
    ]
    return sum(ctx.work(item) for modality in counted for item in items[modality])


def with_verdict(row: PlannedRow, verdict: Verdict) -> PlannedRow:
    """A row whose answer is desirable or not; refused where nothing of the answer is left."""
    if not row.trained:
        raise Reject(RejectCode.EMPTY_ANSWER, "no token of the answer is trained (--truncation may have cut it off)")
    row.verdict = verdict
    return row


def pair_of(preferred: PlannedRow, rejected: PlannedRow, ctx: FamilyContext, config: BuildConfig) -> PlannedRow:
    """Both answers as one row, which stays together in its bin."""
    for what, row in (("preferred", preferred), ("rejected", rejected)):
        if not row.trained:
            raise Reject(
                RejectCode.EMPTY_ANSWER,
                f"no token of the {what} answer is trained (--truncation may have cut it off)",
            )
    shared = frozenset(name for name, items in rejected.items.items() if items and _same(items, preferred.items[name]))
    same_media = all(name in shared or not (items or preferred.items[name]) for name, items in rejected.items.items())
    if same_media and np.array_equal(preferred.ids, rejected.ids):
        raise Reject(RejectCode.SAME_ANSWERS, "the preferred and the rejected answer have the same tokens")
    length = preferred.length + rejected.length
    if config.bin_length and length > config.bin_length:
        raise Reject(
            RejectCode.PAIR_EXCEEDS_BIN,
            f"the two answers have {preferred.length} and {rejected.length} tokens with their prompts, together "
            f"{length}; the bin holds {config.bin_length}",
        )
    preferred.verdict, preferred.rejected, rejected.shared = Verdict.PAIR, rejected, shared
    preferred.notes |= rejected.notes
    preferred.unread |= rejected.unread
    preferred.control_tokens |= rejected.control_tokens
    preferred.other_prompt = not np.array_equal(_prompt(preferred), _prompt(rejected))
    preferred.repeated_patches = tower_work("patches", rejected.items, ctx, shared)
    preferred.repeated_frames = tower_work("audio_frames", rejected.items, ctx, shared)
    stored: Items = {modality: [] for modality in MODALITIES}
    for _, modality, item in preferred.stored_items():
        stored[modality].append(item)
    preferred.file_bytes = file_bytes(stored, file_columns(ctx, config.pixel_codec))
    preferred.pixel_share = pixel_share(stored, ctx)
    return preferred


def _prompt(row: PlannedRow) -> Ids:
    """The tokens in front of the first trained one."""
    return row.ids[: int(row.run_lengths[: int(np.argmax(row.run_weights > 0))].sum())]


def _same(items: list[Item], others: list[Item]) -> bool:
    """Whether the items of two answers give the same arrays: the same bytes, seen alike."""
    return len(items) == len(others) and all(
        (one.meta, one.tokens, one.audio) == (other.meta, other.tokens, other.audio)
        and (
            one.sources == other.sources
            or [source.key for source in one.sources] == [source.key for source in other.sources]
        )
        for one, other in zip(items, others, strict=True)
    )
