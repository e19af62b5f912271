"""Counts items from their headers: the processor is run on an empty item of the same size, and remembers the result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omniprep.families.hf.examples import blank
from omniprep.families.hf.forms import Form
from omniprep.families.hf.runner import Outcome, Runner
from omniprep.families.hf.study import MediaFacts, is_small
from omniprep.families.kinds import MediaMeta
from omniprep.families.rowwise import Metas
from omniprep.lru import BoundedCache

REMEMBERED = 64 << 20
"""Bytes of texts that are remembered: some ten thousand sizes of images of a thousand tokens."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What an item becomes.

    Attributes:
        text: In place of its token.
        tokens: Of this text alone.
        vectors: The item's small tensors (grids, sizes), which positions depend on; torch tensors with one entry.
    """

    text: str
    tokens: int
    vectors: dict[str, Any] = field(default_factory=dict)


class Counter:
    """Texts, tokens and small tensors of the items of rows."""

    def __init__(self, runner: Runner, facts: Mapping[str, MediaFacts], tokens_of: Callable[[str], int]) -> None:
        """Take what was learned of each modality, and a function that counts the tokens of a text."""
        self._runner, self._facts, self._tokens_of = runner, facts, tokens_of
        self._known: BoundedCache[Any, list[Counted]] = BoundedCache(REMEMBERED, _size)
        self._taken: set[tuple[tuple[str, int], ...]] = set()

    def row(self, items: Metas) -> dict[str, list[Counted]]:
        """The items of a row.

        Raises:
            Reject: processor_refused: the processor does not take one of them, or so many, or such together.
        """
        self._check_numbers(items)
        result: dict[str, list[Counted]] = {}
        for modality, metas in items.items():
            if not metas:
                result[modality] = []
            elif self._facts[modality].dependent:
                result[modality] = self._of(modality, tuple(metas))
            else:
                result[modality] = [one for meta in metas for one in self._of(modality, (meta,))]
        return result

    def _of(self, modality: str, metas: tuple[MediaMeta, ...]) -> list[Counted]:
        key = (
            modality,
            *((meta.width, meta.height, meta.frames, meta.fps, meta.samples, meta.sizes[:1]) for meta in metas),
        )
        counted = self._known.get(key)
        if counted is None:
            counted = self._run(modality, metas)
            self._known.put(key, counted)
        return counted

    def _run(self, modality: str, metas: Sequence[MediaMeta]) -> list[Counted]:
        facts = self._facts[modality]
        if facts.shapes_only:
            outcome = facts.run(self._runner, [self._runner.without_values(meta) for meta in metas])
        else:
            outcome = facts.run(self._runner, [self._runner.as_input(meta, blank(meta)) for meta in metas])
        texts = outcome.texts[modality]
        return [
            Counted(text, self._tokens_of(text), _vectors(outcome, modality, facts.forms, number))
            for number, text in enumerate(texts)
        ]

    def _check_numbers(self, items: Metas) -> None:
        """Run the processor's own checks of how many items a row may have, once for each number of items."""
        numbers = tuple((modality, len(metas)) for modality, metas in items.items() if metas)
        if sum(number for _, number in numbers) < 2 or numbers in self._taken:
            return
        row = {
            modality: [self._runner.as_input(meta, blank(meta)) for meta in _alike(modality, number)]
            for modality, number in numbers
        }
        self._runner.run(row)
        self._taken.add(numbers)


def _alike(modality: str, number: int) -> list[MediaMeta]:
    """As many small items of one size."""
    meta = MediaMeta(kind=modality, width=96, height=64, frames=36, fps=2.0, samples=16_000)
    return [meta] * number


def _vectors(outcome: Outcome, modality: str, forms: Mapping[str, Form], number: int) -> dict[str, Any]:
    vectors = {}
    for name, form in forms.items():
        value = outcome.tensors[name]
        if not is_vector(value, form):
            continue
        alone = len(outcome.texts[modality]) == 1
        rest = slice(0, None if number == 0 else 0)  # the first item of a row has what cannot be told apart
        vectors[name] = value if alone else value[number : number + 1] if form.per_item else value[rest]
    return vectors


def is_vector(value: Any, form: Form) -> bool:
    """Whether a tensor has a small entry for each item, which positions may ask for."""
    return form.layout != "row" and not form.is_list and not form.batch_axis and is_small(value)


def _size(counted: list[Counted]) -> int:
    return sum(len(one.text) + 500 for one in counted)
