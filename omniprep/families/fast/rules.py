"""Counting by arithmetic: what a processor's part would say of an item of a size, without running it.

Of what a part returns (grids, numbers of tiles) only that is computed which the text of an item depends on; the text is
then written by the processor's own `replace_image_token` or `replace_audio_token`. A rule is held against the processor
itself when the family is made, under the build's options; where it differs, the processor counts, and one line says so.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from omniprep.errors import Reject
from omniprep.families.hf.counting import Counted, Counter, is_vector
from omniprep.families.hf.family import HF
from omniprep.families.hf.processor import KWARGS, part_of, part_settings, tokens_of_items
from omniprep.families.hf.runner import Runner
from omniprep.families.hf.study import MediaFacts
from omniprep.families.kinds import MediaMeta
from omniprep.lru import BoundedCache
from omniprep.printable import say
from omniprep.template.tokens import Encoder

Rule = Callable[[Sequence[MediaMeta]], Mapping[str, Any]]
"""Header facts of an item, or of a row's items where they depend on each other → what the part would return of them, as
far as texts depend on it. Numpy arrays with one entry an item are also kept for positions (grids, sizes)."""
LEAST_SIDE, MOST_ASPECT = 32, 50
"""Smaller and thinner images, which processors refuse or round in ways of their own, are left to the processor."""
CHECKED_SIZES = (
    *((32, 32), (33, 47), (112, 113), (224, 224), (336, 900), (449, 448), (640, 480), (480, 641)),
    *((1000, 21 * 32), (1600, 33), (1920, 1080), (1333, 2001), (4032, 3024), (700, 7001)),
)
"""(width, height) of images that a rule is held against; those above `MOST_BLANK` pixels only where the processor can
be run on tensors without values."""
MOST_BLANK = 1 << 20
CHECKED_SAMPLES = (1, 1_601, 16_000, 479_999, 480_161)
"""Sounds: some features of silence each, so they are few. At 16 kHz the last needs a second window of 30 s."""
REMEMBERED = 1 << 14
"""Texts whose tokens are remembered with runs of one token cut to one: as many as there are forms of tiles."""


class RunTokens:
    """Tokens of texts in which one added token stands again and again.

    Added tokens are cut out of a text before anything else, so a run of one is as many tokens as it has copies, and the
    rest of the text has the tokens that it has around a single copy.
    """

    def __init__(self, encoder: Encoder, repeated: Sequence[str]) -> None:
        """Take the tokenizer, and those of its added tokens that items are made of."""
        self._encoder = encoder
        self._runs = re.compile("(" + "|".join(map(re.escape, repeated)) + r")\1+") if repeated else None
        self._known: BoundedCache[str, int] = BoundedCache(REMEMBERED)

    def count(self, text: str) -> int:
        """Tokens of a text."""
        dropped = 0

        def cut(run: re.Match[str]) -> str:
            nonlocal dropped
            dropped += len(run[0]) // len(run[1]) - 1
            return run[1]

        short = text if self._runs is None else self._runs.sub(cut, text)
        tokens = self._known.get(short)
        if tokens is None:
            tokens = self._known.put(short, len(self._encoder.encode([short])[0]))
        return tokens + dropped


class RuleCounter(Counter):
    """Counts by rules where there are any, by the processor elsewhere."""

    def __init__(
        self,
        runner: Runner,
        facts: Mapping[str, MediaFacts],
        tokens_of: Callable[[str], int],
        rules: Mapping[str, Rule],
    ) -> None:
        """Take what `Counter` takes, and the rule of each modality that has one."""
        super().__init__(runner, facts, tokens_of)
        self._rules = dict(rules)
        self._kwargs = {modality: runner.merged(modality)[KWARGS[modality]] for modality in rules}

    def _run(self, modality: str, metas: Sequence[MediaMeta]) -> list[Counted]:
        if modality not in self._rules or not all(map(_is_usual, metas)):
            return super()._run(modality, metas)
        return self._by_rule(modality, metas)

    def _by_rule(self, modality: str, metas: Sequence[MediaMeta]) -> list[Counted]:
        import torch

        given = self._rules[modality](metas)
        write = getattr(self._runner.processor, f"replace_{modality}_token")
        texts = [write(given, number, **self._kwargs[modality]) for number in range(len(metas))]
        forms = self._facts[modality].forms
        tensors = {
            name: value
            for name, array in given.items()
            if name in forms
            and isinstance(array, np.ndarray)
            and is_vector(value := torch.from_numpy(array), forms[name])
        }
        return [
            Counted(text, self._tokens_of(text), {name: value[number : number + 1] for name, value in tensors.items()})
            for number, text in enumerate(texts)
        ]

    def fault(self, modality: str, encoder: Encoder) -> str:
        """What the rule of a modality gives otherwise than the processor itself; "" for nothing."""
        try:
            for metas in self._checked(modality):
                expected = super()._run(modality, metas)
                for meta, given, wanted in zip(metas, self._by_rule(modality, metas), expected, strict=True):
                    size = f"{meta.samples} samples" if modality == "audio" else f"{meta.width}x{meta.height} pixels"
                    if given.text != wanted.text or given.tokens != len(encoder.encode([wanted.text])[0]):
                        return f"{given.tokens} tokens where the processor gives {wanted.tokens}, for {size}"
                    if not _same_vectors(given.vectors, wanted.vectors):
                        return f"{given.vectors} where the processor gives {wanted.vectors}, for {size}"
        except Reject as reject:
            return reject.message
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # A rule reads a part's attributes as one version of transformers has them.
            return f"{type(error).__name__}: {error}"
        return ""

    def _checked(self, modality: str) -> list[list[MediaMeta]]:
        facts = self._facts[modality]
        if modality == "audio":
            return [[MediaMeta(kind="audio", samples=samples)] for samples in CHECKED_SAMPLES]
        metas = [
            MediaMeta(kind=modality, width=width, height=height)
            for width, height in CHECKED_SIZES
            if facts.shapes_only or width * height <= MOST_BLANK
        ]
        rows = [[meta] for meta in metas]
        return [*rows, metas[:2], metas[2:5]] if facts.dependent else rows


class CountedByRule(HF):
    """A family that says of some modalities what their items become, by arithmetic."""

    def rules(self) -> Mapping[str, Rule]:
        """By modality, the rule that counts it."""
        raise NotImplementedError

    @cached_property
    def counter(self) -> Counter:
        """Texts and tokens of items, by the family's rules as far as they hold."""
        runs = RunTokens(self.encoder, tokens_of_items(self.processor))
        rules = {modality: rule for modality, rule in self.rules().items() if modality in self.facts}
        while rules:
            fault, modality = self._first_fault(rules, runs)
            if not fault:
                return RuleCounter(self.runner, self.facts, runs.count, rules)
            say(
                f"family {self.name!r}: its arithmetic does not hold for this checkpoint ({fault}); {modality} "
                "items are counted by running the processor, which is exact and slower"
            )
            del rules[modality]
        return super().counter

    def _first_fault(self, rules: Mapping[str, Rule], runs: RunTokens) -> tuple[str, str]:
        for modality in rules:
            if not hasattr(self.runner.processor, f"replace_{modality}_token"):
                return "this version of transformers writes no text of one item alone", modality
            fault = RuleCounter(self.runner, self.facts, runs.count, rules).fault(modality, self.encoder)
            if fault:
                return fault, modality
        return "", ""

    def part(self, modality: str) -> Any:
        """The image processor or feature extractor."""
        return part_of(self.processor, modality)

    def settings(self, modality: str) -> dict[str, Any]:
        """The arguments that a part works with under the build's options."""
        known = self._settings.get(modality)
        if known is None:
            known = self._settings[modality] = part_settings(self.runner, modality)
        return known

    @cached_property
    def _settings(self) -> dict[str, dict[str, Any]]:
        return {}


def _is_usual(meta: MediaMeta) -> bool:
    """Whether a rule is asked about an item at all."""
    if meta.kind != "image":
        return True
    least, most = sorted((meta.width, meta.height))
    return least >= LEAST_SIDE and most <= MOST_ASPECT * least


def _same_vectors(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and left[name].tolist() == right[name].tolist() for name in left
    )
