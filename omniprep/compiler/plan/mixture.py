"""What training on a mixture of the planned inputs would mean: passes through each, tokens and hours of an epoch.

Each part of the mixture is packed as a dataset of its own, as the trainer is given it (`omniprep train a/:2 b/:1`), so
its bins are those that a build of it alone would have; the arithmetic is the trainer's (packing/mixing.py).
"""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omniprep.compiler.pack import Rows, assign_bins
from omniprep.errors import UsageError, did_you_mean
from omniprep.packing.mixing import bin_shares

if TYPE_CHECKING:
    from omniprep.compiler.output.built_rows import Planned
    from omniprep.config import BuildConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class MixturePart:
    """One dataset of a mixture."""

    name: str
    weight: float | None
    rows: int
    tokens: int
    bins: int
    drawn: float
    """Bins of it in an epoch."""

    @property
    def passes(self) -> float:
        """How often an epoch goes through it."""
        return self.drawn / self.bins

    @property
    def epoch_tokens(self) -> float:
        """Tokens of it in an epoch."""
        return self.tokens * self.passes


def mixture_parts(
    planned: "Planned", config: "BuildConfig", given: Sequence[tuple[str, float | None]]
) -> list[MixturePart]:
    """The parts of a mixture.

    Args:
        planned: The plan of all inputs.
        config: Its options.
        given: Name (or pattern) of the inputs of each part, and its weight; each input belongs to just one part.

    Raises:
        UsageError: An input in no part or in two, a name that no input has, a part without rows to pack.
    """
    sources = list(dict.fromkeys(split.source for split in planned.splits))
    part_of: dict[str, int] = {}
    for number, (name, _) in enumerate(given):
        fitting = [source for source in sources if source == name or fnmatch.fnmatchcase(source, name)]
        if not fitting:
            raise UsageError(f"--mixture {name}: no input has this name{did_you_mean(name, sources)}")
        for source in fitting:
            if source in part_of:
                raise UsageError(f"--mixture: {source} is in {given[part_of[source]][0]} and in {name}")
            part_of[source] = number
    if missing := [source for source in sources if source not in part_of]:
        raise UsageError(f"--mixture: {missing[0]} is in no part; give it one, such as --mixture {missing[0]}:1.0")
    numbers = np.array([part_of[split.source] for split in planned.splits])[planned.rows.split]
    sizes = []
    for number, (name, _) in enumerate(given):
        rows = _subset(planned.rows, numbers == number)
        if not rows.packed.any():
            raise UsageError(f"--mixture {name}: none of its {len(rows):,} rows is packed")
        tokens = int(rows.facts["length"].sum(dtype=np.int64))
        sizes.append((int(rows.packed.sum()), tokens, assign_bins(rows, config).bins))
    shares = bin_shares([weight for _, weight in given], [tokens / bins for _, tokens, bins in sizes])
    total = sum(bins for _, _, bins in sizes)
    return [
        MixturePart(
            name=name,
            weight=weight,
            rows=rows,
            tokens=tokens,
            bins=bins,
            drawn=bins if shares is None else shares[number] * total,
        )
        for number, ((name, weight), (rows, tokens, bins)) in enumerate(zip(given, sizes, strict=True))
    ]


def _subset(rows: Rows, chosen: NDArray[np.bool_]) -> Rows:
    facts = {name: values[chosen] for name, values in rows.facts.items()}
    return replace(rows, split=rows.split[chosen], within=rows.within[chosen], facts=facts)
