"""What is learned of a processor before it is used: by trying it on examples, each rule proved on all of them.

Per modality: how many items a row may have; whether what an item becomes depends on its neighbors; that its text
follows from its size alone; how the tensors are made of items (forms.py); and whether the floats of pixels follow from
bytes, so that bytes can be stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omniprep.errors import Reject
from omniprep.families.hf.examples import blank, example_metas, noise
from omniprep.families.hf.forms import (
    Form,
    join_units,
    learn_form,
    learn_row_form,
    same,
    same_values,
    split_items,
    to_numpy,
)
from omniprep.families.hf.pixels import learn_pixels
from omniprep.families.hf.runner import Example, Outcome, Runner, Unusable, WidenedTag

MOST_SMALL = 256
"""Values of an item's grids, sizes and times."""


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """What is known of one modality of a processor.

    Attributes:
        limit: Most items of a row (None: no limit was met).
        dependent: Whether items of a row depend on each other.
        forms: Of each tensor that items of this modality give.
        pixels: By tensor, the params of the arithmetic that makes its floats of stored bytes; {} where floats are
            stored.
        in_parts: Whether the processor's own steps for the modality give what a whole call gives.
        shapes_only: Whether the processor can be run on tensors without values (torch's meta device) to count.
    """

    modality: str
    limit: int | None
    dependent: bool
    forms: dict[str, Form]
    pixels: dict[str, dict[str, Any]] = field(default_factory=dict)
    shapes_only: bool = False
    in_parts: bool = False

    def run(
        self, runner: Runner, items: Sequence[Any], settings: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Outcome:
        """Items of the modality through the processor, by the shorter way where both agree."""
        if self.in_parts:
            return runner.run_part(self.modality, items, settings)
        return runner.run({self.modality: items}, settings)


def study(runner: Runner, modality: str, token_names: frozenset[str]) -> MediaFacts:
    """Learn one modality.

    Args:
        runner: Of the processor.
        modality: Which one.
        token_names: Tensors that have one value a token; they are no item's.

    Raises:
        Unusable: The processor takes no such item, or no rule holds for what it gives.
    """
    examples = _examples(runner, modality)
    _check_blank(runner, examples)
    _check_contexts(runner, examples[0] if modality == "audio" else min(examples, key=_pixels_of))
    names = _fill_absent(runner, modality, examples, token_names)
    row, joined, limit = _together(runner, modality, examples)
    if joined is not None and (more := sorted(joined.tensors.keys() - {*names, *token_names})):
        raise Unusable(f"{_name(runner)} gives {more[0]!r} for several {modality} items, but for none alone")
    forms = _single_forms(names, examples) if joined is None else _forms(names, row, joined)
    # A processor that takes items of one size together, but not of several, is asked about every row as a whole.
    alike = len(row) > 1 and len({id(example) for example in row}) == 1 and len(examples) > 1
    dependent = joined is not None and (forms is None or alike)
    if joined is not None and dependent:
        forms = _row_forms(names, examples, row, joined)
    if forms is None:
        raise Unusable(f"how {_name(runner)} puts several {modality} items into its tensors follows no known rule")
    # The largest has millions of pixels and nothing that the others have not.
    pixels = learn_pixels(runner, modality, sorted(examples, key=_pixels_of)[: max(1, len(examples) - 1)], forms)
    for params in pixels.values():
        if "sizes" in params:  # one vector an item then, which the shard's other column refers to
            grid = params["sizes"].removeprefix("prod(").removesuffix(")")
            forms[grid] = replace(forms[grid], layout="item")
    return MediaFacts(
        modality,
        limit,
        dependent,
        forms,
        pixels,
        shapes_only=_shapes_only(runner, modality, examples),
        in_parts=_in_parts(runner, modality, examples),
    )


def _pixels_of(example: Example) -> int:
    return example.meta.width * example.meta.height * max(1, example.meta.frames)


def _name(runner: Runner) -> str:
    return type(runner.processor).__name__


def _examples(runner: Runner, modality: str) -> list[Example]:
    """The examples that the processor takes; Unusable with its own words where it takes none."""
    examples, refusal = [], None
    for number, meta in enumerate(example_metas(modality)):
        try:
            item = runner.as_input(meta, noise(meta, number))
            examples.append(Example(meta, item, _run_widening(runner, modality, item)))
        except Reject as reject:
            refusal = refusal or reject
    if not examples:
        assert refusal is not None
        raise Unusable(f"{_name(runner)} takes no {modality}: {refusal.message}")
    return examples


def _fill_absent(runner: Runner, modality: str, examples: Sequence[Example], token_names: frozenset[str]) -> list[str]:
    """The names of the tensors; those that only some items give (tiles of large pictures) are empty for the others."""
    given = [{k: v for k, v in example.outcome.tensors.items() if k not in token_names} for example in examples]
    names = list(dict.fromkeys(name for tensors in given for name in tensors))
    for name in names:
        present = [tensors[name] for tensors in given if name in tensors]
        if len(present) < len(examples):
            runner.optional.setdefault(modality, {})[name] = present[0][:0]
            for example in examples:
                example.outcome.tensors.setdefault(name, present[0][:0])
    return names


def _run_widening(runner: Runner, modality: str, item: Any) -> Outcome:
    try:
        return runner.run({modality: [item]})
    except WidenedTag:
        runner.widen(modality)
        return runner.run({modality: [item]})


def _check_blank(runner: Runner, examples: Sequence[Example]) -> None:
    """Hold the text and the shapes of blank items against those of noise: headers must be enough to count."""
    for example in examples:
        outcome = runner.run({example.meta.kind: [runner.as_input(example.meta, blank(example.meta))]})
        shapes = {name: _shape(value) for name, value in example.outcome.tensors.items()}
        if (
            outcome.texts != example.outcome.texts
            or {name: _shape(value) for name, value in outcome.tensors.items()} != shapes
        ):
            raise Unusable(f"what {_name(runner)} makes of a {example.meta.kind} depends on more than its size")


CONTEXTS = (("a", "b"), (" a ", " b "), ("\n", "\n\n"), ("", ""), ("<b>", "</b>"), ("a.", "\nB "))
"""Texts before and after an item."""


def _check_contexts(runner: Runner, example: Example) -> None:
    """Hold what the processor writes for an item beside other texts, and beside itself, against its text alone."""
    modality, tag = example.meta.kind, runner.tags[example.meta.kind]
    text = tag.before + example.text() + tag.after
    first, last = runner.ends
    item = _cheapest(runner, example)
    for before, after in CONTEXTS:
        if runner.written((before, after), {modality: [item]}) != first + before + text + after + last:
            raise Unusable(f"{_name(runner)} changes the text around {modality} items")
    try:
        alike = runner.run({modality: [item] * 2}).texts[modality]
        side_by_side = runner.written(("a", "", "b"), {modality: [item] * 2})
    except Reject:  # one item a row
        return
    if side_by_side != first + "a" + "".join(tag.before + one + tag.after for one in alike) + "b" + last:
        raise Unusable(f"{_name(runner)} changes the text between {modality} items side by side")


def _cheapest(runner: Runner, example: Example) -> Any:
    """An item that gives the same text: one without values where the processor takes it, since texts alone count."""
    modality = example.meta.kind
    if modality == "audio":
        return example.item
    try:
        item = runner.without_values(example.meta)
        same_text = runner.run({modality: [item]}).texts == example.outcome.texts
    except (Reject, NotImplementedError):
        return example.item
    return item if same_text else example.item


def _shape(value: Any) -> Any:
    return [_shape(part) for part in value] if isinstance(value, list) else tuple(getattr(value, "shape", ()))


def _together(
    runner: Runner, modality: str, examples: Sequence[Example]
) -> tuple[list[Example], Outcome | None, int | None]:
    """All examples in one row, or as many as it takes, or one of them again and again; and the most items of a row."""
    most = max(len(examples), 2 if modality == "video" else 3)
    for some in (examples, examples[:1]):
        for count in range(most, 1, -1):
            row = [some[number % len(some)] for number in range(count)]
            try:
                outcome = runner.run({modality: [example.item for example in row]})
            except Reject:
                continue
            return row, outcome, None if count == most else count
    return [], None, 1


def _forms(names: Sequence[str], row: Sequence[Example], joined: Outcome) -> dict[str, Form] | None:
    """Forms by which the joined row is made of its items alone; None where it is not."""
    if joined.texts[row[0].meta.kind] != [example.text() for example in row]:
        return None
    forms = {}
    for name in names:
        form = learn_form([example.outcome.tensors[name] for example in row], joined.tensors.get(name))
        if form is None or name not in joined.tensors:
            return None
        forms[name] = form
    return forms


def _single_forms(names: Sequence[str], examples: Sequence[Example]) -> dict[str, Form] | None:
    forms = {name: learn_form([example.outcome.tensors[name] for example in examples], None) for name in names}
    return None if None in forms.values() else {name: form for name, form in forms.items() if form is not None}


def _row_forms(
    names: Sequence[str], examples: Sequence[Example], row: Sequence[Example], joined: Outcome
) -> dict[str, Form] | None:
    """Forms of rows as a whole, from rows of one item and the joined one."""
    outcomes, counts = [*(example.outcome for example in examples), joined], [1] * len(examples) + [len(row)]
    forms = {}
    for name in names:
        if any(name not in outcome.tensors for outcome in outcomes):
            return None
        form = learn_row_form([outcome.tensors[name] for outcome in outcomes], counts)
        if form is None:
            return None
        for outcome, count in zip(outcomes, counts, strict=True):
            if not _gives_back(outcome.tensors[name], form, count):
                return None
        forms[name] = form
    return forms


def _gives_back(value: Any, form: Form, count: int) -> bool:
    """Whether the items of a row, joined again, are the row's tensor."""
    arrays, whole = split_items(value, form, count), to_numpy(value)
    if form.layout == "row":
        return same(arrays[0], whole)
    target = whole[0] if form.batch_axis else whole
    return same(join_units(arrays, form.pad).astype(target.dtype), target)


def _in_parts(runner: Runner, modality: str, examples: Sequence[Example]) -> bool:
    """Whether the processor's own steps for the modality give what its whole call gives."""
    if not runner.has_parts:
        return False
    for example in examples:
        try:
            outcome = runner.run_part(modality, [example.item])
        except Reject:
            return False
        if outcome.texts[modality] != [example.text()] or outcome.tensors.keys() != example.outcome.tensors.keys() - {
            name for name, value in example.outcome.tensors.items() if _is_token_tensor(value, example.outcome)
        }:
            return False
        for name, value in outcome.tensors.items():
            if not same_values(value, example.outcome.tensors[name]):
                return False
    return True


def _is_token_tensor(value: Any, outcome: Outcome) -> bool:
    return tuple(getattr(value, "shape", ())) == (1, len(outcome.ids))


def _shapes_only(runner: Runner, modality: str, examples: Sequence[Example]) -> bool:
    """Whether tensors without values are enough to know the text and the small tensors of images or videos."""
    if modality == "audio":
        return False
    for example in examples:
        try:
            outcome = runner.run({modality: [runner.without_values(example.meta)]})
        except (Reject, NotImplementedError):
            return False
        small = {name: value for name, value in example.outcome.tensors.items() if is_small(value)}
        if outcome.texts != example.outcome.texts or any(
            not is_small(outcome.tensors.get(name)) or not same(to_numpy(outcome.tensors[name]), to_numpy(value))
            for name, value in small.items()
        ):
            return False
    return True


def is_small(value: Any) -> bool:
    """Whether a tensor is a grid, a size or the like, which positions may ask for."""
    return hasattr(value, "numel") and value.device.type == "cpu" and value.numel() <= MOST_SMALL
