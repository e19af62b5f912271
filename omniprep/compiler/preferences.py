"""Whether the rows of a build, or of an append, are all of one kind: pairs, rows with a verdict, or ordinary chats.

No objective trains on all three, and a table of which a few rows lack the rejected answer is more often damaged than
meant. So a mixture is refused unless it is asked for, before anything is decoded.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from omniprep.compiler.output.built_rows import lines_before
from omniprep.compiler.pack import Rows
from omniprep.compiler.run.tasks import Receipt
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError
from omniprep.printable import counted
from omniprep.rows.preference import Verdict
from omniprep.rows.split import Split

if TYPE_CHECKING:
    from omniprep.shards.dataset import StoredDataset  # imports torch, which a plan does not need

_KINDS = {
    "pairs": ("pair of answers", "pairs of answers"),
    "verdicts": ("row with a label", "rows with a label"),
    "ordinary": ("row without either", "rows without either"),
}


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


def check_preferences(
    config: BuildConfig, rows: Rows, splits: list[Split], receipts: Sequence[Receipt],
    existing: "StoredDataset | None",
) -> None:  # fmt: skip
    """Refuse rows of several kinds under --preference auto; the error names the first row of the rarest kind."""
    if config.preference != "auto" or "verdict" not in rows.facts:
        return
    verdicts, packed = rows.facts["verdict"], rows.packed
    members = {
        "pairs": packed & (verdicts == Verdict.PAIR),
        "verdicts": packed & ((verdicts == Verdict.DESIRABLE) | (verdicts == Verdict.UNDESIRABLE)),
        "ordinary": packed & (verdicts == Verdict.NONE),
    }
    counts = Counter({kind: int(chosen.sum()) for kind, chosen in members.items()})
    before = Counter[str]()
    if existing is not None and existing.record.counts is not None:
        held = existing.record.counts.preference
        before["pairs"], before["ordinary"] = held.get("pairs", 0), held.get("ordinary", 0)
        before["verdicts"] = held.get("desirable", 0) + held.get("undesirable", 0)
    kinds = [kind for kind in members if counts[kind] + before[kind]]
    if len(kinds) < 2:
        return
    rarest = min((kind for kind in kinds if counts[kind]), key=lambda kind: counts[kind], default="")
    if not rarest:
        return  # nothing of these inputs is packed
    first = int(np.flatnonzero(members[rarest])[0])
    split = int(rows.split[first])
    line = lines_before(splits, [receipt["lines"] for receipt in receipts])[split] + rows.facts["line"][first] + 1
    shown = " and ".join(counted(counts[kind], *_KINDS[kind]) for kind in kinds if counts[kind])
    there = f", and {existing.uri} has other rows already" if existing is not None and before else ""
    raise OmniprepError(
        f"the inputs hold {shown} (the first {_KINDS[rarest][0]}: {splits[split].source}:{line}){there}. Choose: "
        "--preference pairs or kto rejects the other rows, mixed takes all of them, ignore trains on the preferred "
        "answers as on ordinary ones"
    )
