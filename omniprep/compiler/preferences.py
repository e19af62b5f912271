"""Whether the rows of a build, or of an append, are all of one kind: pairs, rows with a verdict, or ordinary chats.

No objective trains on all three, and a table of which a few rows lack the rejected answer is more often damaged than
meant. So rows of other kinds than most are rejected unless a mixture is asked for, before anything is decoded.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omniprep.compiler.duplicates import take_out
from omniprep.compiler.pack import Rows
from omniprep.compiler.plan.file import PREFERENCE_FACTS
from omniprep.compiler.run.tasks import Receipt
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, RejectCode
from omniprep.printable import counted
from omniprep.rows.preference import Verdict
from omniprep.rows.split import Split, lines_before

if TYPE_CHECKING:
    from omniprep.shards.dataset import StoredDataset  # imports torch, which a plan does not need

_KINDS = {
    "pairs": ("pair of answers", "pairs of answers"),
    "verdicts": ("row with a label", "rows with a label"),
    "ordinary": ("row without either", "rows without either"),
}
_CODES = {"pairs": RejectCode.BAD_PREFERENCE, "verdicts": RejectCode.BAD_PREFERENCE, "ordinary": RejectCode.NO_PARTNER}
_ADVICE = (
    "--preference ignore takes all of them as ordinary rows, with the preferred answers; mixed takes each as it is"
)


def has_preferences(receipts: Sequence[Receipt], existing: "StoredDataset | None") -> bool:
    """Whether shards get the columns of preference rows.

    Args:
        receipts: Of the splits.
        existing: The dataset that is appended to, whose shards all have them or none.

    Raises:
        OmniprepError: There are preference rows, and it has no place for them.
    """
    found = sum(
        count
        for receipt in receipts
        for name, count in receipt["verdicts"].items()
        if name != Verdict.NONE.name.lower()
    )
    if existing is None:
        return found > 0
    held = "verdict" in existing.rows.column_names
    if found and not held:
        raise OmniprepError(
            f"{existing.uri}: holds ordinary rows, and these inputs have {counted(found, 'preference row')}: build "
            "those as a dataset of their own; omniprep repack merges both"
        )
    return held


@dataclass(frozen=True, slots=True)
class OtherKinds:
    """Rows that are of other kinds than most.

    Attributes:
        members: By kind the numbers of the rows that are rejected for it, rising.
        messages: By kind what rejected.jsonl says.
        text: What the build says of all of them.
    """

    members: dict[str, NDArray[np.int64]]
    messages: dict[str, str]
    text: str

    def __len__(self) -> int:
        """Number of these rows."""
        return sum(map(len, self.members.values()))

    def by_code(self) -> Counter[str]:
        """How many they are."""
        counts = Counter[str]()
        for kind, numbers in self.members.items():
            counts[str(_CODES[kind])] += len(numbers)
        return counts

    def rejects(self, part: slice) -> Iterator[tuple[int, str, str]]:
        """Number, code and message of those among some rows of the plan."""
        for kind, numbers in self.members.items():
            first, end = np.searchsorted(numbers, (part.start, part.stop))
            for number in numbers[first:end].tolist():
                yield number, str(_CODES[kind]), self.messages[kind]


def reject_other_kinds(
    config: BuildConfig, rows: Rows, splits: list[Split], receipts: Sequence[Receipt],
    existing: "StoredDataset | None",
) -> OtherKinds | None:  # fmt: skip
    """Take rows of other kinds than most out of the rows to pack, under --preference auto; None where there are none.

    Where nothing but ordinary rows is left, the plan has no columns of preferences any more. An append keeps the kinds
    that the dataset has.
    """
    verdicts = rows.facts.get("verdict")
    if config.preference != "auto" or verdicts is None:
        return None
    packed = rows.packed
    members = {
        "pairs": packed & (verdicts == Verdict.PAIR),
        "verdicts": packed & ((verdicts == Verdict.DESIRABLE) | (verdicts == Verdict.UNDESIRABLE)),
        "ordinary": packed & (verdicts == Verdict.NONE),
    }
    counts = {kind: int(chosen.sum()) for kind, chosen in members.items() if chosen.any()}
    kept = {max(counts, key=lambda kind: counts[kind])} if counts else set[str]()
    if existing is not None and existing.record.counts is not None:
        held = Counter(existing.record.counts.preference)
        there = {"pairs": held["pairs"], "verdicts": held["desirable"] + held["undesirable"]}
        there["ordinary"] = held["ordinary"]
        kept = {kind for kind, count in there.items() if count} or kept
    gone = {kind: np.flatnonzero(members[kind]) for kind in counts if kind not in kept}
    if not gone:
        return None
    before, parts, messages = lines_before(splits, [receipt["lines"] for receipt in receipts]), [], {}
    most = "the dataset holds " if existing is not None else "most rows are "
    most += " and ".join(_KINDS[kind][1] for kind in members if kind in kept)
    for kind, numbers in gone.items():
        messages[kind] = f"a {_KINDS[kind][0]}, where {most}: {_ADVICE}"
        first = int(numbers[0])
        split = int(rows.split[first])
        place = f"{splits[split].source}:{before[split] + rows.facts['line'][first] + 1}"
        parts.append(f"{counted(counts[kind], *_KINDS[kind])} (the first: {place})")
        take_out(rows, numbers, _CODES[kind])
    if existing is None and kept == {"ordinary"}:
        for name in PREFERENCE_FACTS:
            del rows.facts[name]
    text = f"rejected, since {most}: {' and '.join(parts)}. {_ADVICE[0].upper()}{_ADVICE[1:]}"
    return OtherKinds(gone, messages, text)
