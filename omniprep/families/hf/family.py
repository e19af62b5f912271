"""Any chat model of transformers that has a processor with a fast tokenizer and a chat template.

Nothing here names a model. What the processor takes, what each item becomes in the text and which tensors it gives is
learned from the processor itself when the family is made (study.py), so a row equals
`processor.apply_chat_template(messages, tokenize=True, return_dict=True)`, or the family says why it cannot be made.
Families that are written by hand are faster and are preferred for the checkpoints that they answer for.
"""

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import OmniprepError, Reject, RejectCode
from omniprep.families.base import Family
from omniprep.families.checkpoint import checkpoint_file
from omniprep.families.columns import blank_image
from omniprep.families.errors import DummyError, TokenCountMismatchError
from omniprep.families.hf.counting import Counter
from omniprep.families.hf.examples import blank, example_metas
from omniprep.families.hf.forms import split_items, to_numpy
from omniprep.families.hf.pictures import load_as_processor
from omniprep.families.hf.pixels import PIXEL_SETTINGS, WITHOUT_ARITHMETIC, as_bytes
from omniprep.families.hf.positions import Skeleton
from omniprep.families.hf.processor import (
    TokenTypes,
    check_processor,
    check_uncut,
    item_tags,
    one_line,
    part_of,
    processor_name,
    settings_of,
    tensors_of_tokens,
    usable_options,
)
from omniprep.families.hf.runner import Runner, Unusable
from omniprep.families.hf.study import MediaFacts, study
from omniprep.families.kinds import Array, Decoded, Field, MediaMeta, Sample
from omniprep.families.records import FamilyRecord, FamilySpec
from omniprep.families.registry import REGISTRY
from omniprep.families.rowwise import Metas
from omniprep.families.tokenizer_cache import SpecialTokens
from omniprep.media.source import Source
from omniprep.modalities import MODALITIES
from omniprep.rows.normalize import Row
from omniprep.template.chat_renderer import render_chat
from omniprep.template.identity import tokenizer_sha256
from omniprep.template.jinja import ChatTemplate
from omniprep.template.loss import Strategy
from omniprep.template.rendered import Rendered
from omniprep.template.tokens import Encoder


@REGISTRY.register_family("hf", requires=["transformers>=4.57"])
class HF(Family):
    """The family that a checkpoint's own processor makes."""

    exif = "apply"

    def __init__(self, record: FamilyRecord, spec: FamilySpec, config: dict[str, Any]) -> None:
        """Learn the checkpoint's processor."""
        super().__init__(record, spec, config)
        if "audio" in self.facts:  # sounds are resampled to what the processor itself asks for
            self.audio_preprocessor = {**self.audio_preprocessor, "sampling_rate": self.runner.rate}

    def renderer(self, row: Row, strategy: Strategy, *, generate: bool = False) -> Rendered:
        """A row by the checkpoint's own chat template."""
        if self.has_processor and isinstance(self.runner.of_text, Reject) and not any(row.media.values()):
            raise Reject(RejectCode.PROCESSOR_REFUSED, f"a row without media: {self.runner.of_text.message}")
        return self._with_ends(render_chat(self, row, strategy, generate=generate))

    def _with_ends(self, rendered: Rendered) -> Rendered:
        """What the processor itself writes around a chat's text."""
        if not self.has_processor or self._ends == ("", ""):
            return rendered
        before, after = self._ends
        shift = len(before)
        return replace(
            rendered,
            text=before + rendered.text + after,
            weights=tuple(span._replace(start=span.start + shift, end=span.end + shift) for span in rendered.weights),
            items=tuple(span._replace(start=span.start + shift, end=span.end + shift) for span in rendered.items),
        )

    @cached_property
    def _ends(self) -> tuple[str, str]:
        """What it writes around a chat, which may begin with bos already, where its template writes that."""
        if isinstance(self.runner.of_text, Reject):
            return "", ""
        chat = [{"role": role, "content": [{"type": "text", "text": "x"}]} for role in ("user", "assistant")]
        text = self.processor.apply_chat_template(chat, tokenize=False)
        written = self.runner.written((text,), {})
        if text not in written:
            raise Unusable(f"{type(self.processor).__name__} changes the text of a chat")
        before, _, after = written.partition(text)
        return before, after

    def options(self) -> dict[str, Any]:  # type: ignore[override]
        """Arguments of the processor's parts that a build may set; None: as the checkpoint has it."""
        check_processor(self.processor, self.spec.model)
        return dict.fromkeys(usable_options(self.processor))

    def limits(self) -> dict[str, int | None]:  # type: ignore[override]
        """Modality → most items of a row, as far as the processor says."""
        with one_line(self.spec.model):
            assert self.chat  # a checkpoint without a chat template is refused before anything is tried
            if self.has_processor:
                check_uncut(self.runner)
            return {modality: facts.limit for modality, facts in self.facts.items()}

    def placeholders(self) -> dict[str, str]:  # type: ignore[override]
        """What the chat template writes for an item, and the processor replaces."""
        return {modality: self.runner.tags[modality].token for modality in self.facts}

    def by_row(self) -> bool:  # type: ignore[override]
        """Whether items of a row depend on each other, of any modality."""
        return any(facts.dependent for facts in self.facts.values())

    def fields(self) -> dict[str, Field]:  # type: ignore[override]
        """The tensors that the processor gives."""
        fields = {name: Field("text", "token", dtype="int64") for name in sorted(self._token_names)}
        for modality, facts in self.facts.items():
            for name, form in facts.forms.items():
                pixels = facts.pixels.get(name)
                params: dict[str, Any] = {} if pixels is None else dict(pixels)
                if form.layout == "flat" and form.pad:
                    params["pad_value"] = form.pad
                if pixels is None and (form.dtype == "bfloat16" or form.stored not in ("", form.dtype)):
                    params["forward_dtype"] = form.dtype
                fields[name] = Field(
                    modality,
                    form.layout,
                    dtype="uint8" if pixels is not None else form.stored or form.dtype,
                    shape=form.shape,
                    sizes=params.pop("sizes", None),
                    load="array" if pixels is None else "affine",
                    join="list" if form.is_list else "concat",
                    batch_axis=form.batch_axis,
                    params=params,
                )
        return fields

    @cached_property
    def encoder(self) -> Encoder:
        """Batched tokenization by `tokenizer`."""
        return Encoder(self.tokenizer.backend_tokenizer)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer as the processor has it, which may have added tokens to it."""
        return self.processor.tokenizer if self.has_processor else self.processor

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """The tokens that the processor's tokenizer has names for."""
        return SpecialTokens.of(self.tokenizer)

    @cached_property
    def tokenizer_sha256(self) -> str:
        """Hash of what the processor's tokenizer does."""
        return tokenizer_sha256(self.encoder.backend)

    @cached_property
    def runner(self) -> Runner:
        """The processor, ready to be run on items."""
        return Runner(self.processor, item_tags(self.processor), settings_of(self.processor, vars(self.opt)))

    @cached_property
    def facts(self) -> dict[str, MediaFacts]:
        """What was learned of each modality that the processor takes and its chat template writes."""
        facts: dict[str, MediaFacts] = {}
        if not self.has_processor:
            return facts
        taken: dict[str, str] = {}
        for modality in MODALITIES:
            if part_of(self.processor, modality) is None:
                continue
            if modality not in self.runner.tags:
                self.unusable[modality] = "the chat template writes nothing for it"
                continue
            try:
                learned = study(self.runner, modality, self._token_names)
            except Unusable as error:
                self.unusable[modality] = str(error)
                continue
            if shared := taken.keys() & learned.forms.keys():
                name = sorted(shared)[0]
                self.unusable[modality] = f"its tensor {name!r} is that of {taken[name]} items too"
                continue
            taken |= dict.fromkeys(learned.forms, modality)
            facts[modality] = learned
        if self.unusable and not facts:
            reasons = "; ".join(f"{modality}: {reason}" for modality, reason in self.unusable.items())
            raise OmniprepError(f"model {self.spec.model!r}: no family can be made of its processor: {reasons}")
        return facts

    @property
    def has_processor(self) -> bool:
        """Whether the checkpoint has a processor; one that takes text alone has a tokenizer."""
        return getattr(self.processor, "tokenizer", None) is not None

    @cached_property
    def unusable(self) -> dict[str, str]:
        """Modality → why the processor's items of it cannot be taken."""
        return {}

    @cached_property
    def _token_names(self) -> frozenset[str]:
        return tensors_of_tokens(self.runner) if self.has_processor else frozenset()

    @cached_property
    def counter(self) -> Counter:
        """Texts and tokens of items, remembered by their sizes."""
        return Counter(self.runner, self.facts, lambda text: len(self.encoder.encode([text])[0]))

    @cached_property
    def chat(self) -> ChatTemplate:
        """The checkpoint's chat template."""
        adds = self.has_processor and self.runner.adds_special_tokens
        return ChatTemplate(self.processor, name=self.spec.model, add_special_tokens=adds, stops=self._stops())

    def _stops(self) -> list[str]:
        settings = checkpoint_file(self.spec.model, "generation_config.json") or {}
        ends = settings.get("eos_token_id") or []
        return [self.tokenizer.decode([number]) for number in (ends if isinstance(ends, list) else [ends])]

    def item_texts(self, items: Metas) -> dict[str, list[str]]:
        """What each item's token becomes."""
        return {modality: [one.text for one in counted] for modality, counted in self.counter.row(items).items()}

    def count_row(self, items: Metas) -> dict[str, list[int]]:
        """Tokens of each item's text alone."""
        return {modality: [one.tokens for one in counted] for modality, counted in self.counter.row(items).items()}

    def count_tokens(self, modality: str, meta: MediaMeta) -> int:
        """Tokens of an item's text alone."""
        return self.counter.row({modality: [meta]})[modality][0].tokens

    def load_image(self, source: Source, *, exif: str, alpha: str) -> Any:
        """An image as the processor's own loader reads it; as other families do where the build asks for it."""
        if exif == "apply" and alpha == "drop":
            return load_as_processor(self.processor, source)
        return super().load_image(source, exif=exif, alpha=alpha)

    def map_item(self, modality: str, decoded: Decoded) -> dict[str, Array]:
        """The tensors of one item."""
        return self.mapped_row(modality, [decoded])[0]

    def map_row(self, modality: str, items: list[Decoded]) -> list[dict[str, Array]]:
        """The tensors of the items of a row."""
        facts = self.facts[modality]
        if not facts.dependent and len(items) > 1:
            return [mapped for item in items for mapped in self.map_row(modality, [item])]
        settings = {PIXEL_SETTINGS[modality]: WITHOUT_ARITHMETIC} if facts.pixels else {}
        inputs = [self.runner.as_input(item.meta, _content(item)) for item in items]
        outcome = facts.run(self.runner, inputs, settings)
        expected = [one.text for one in self.counter.row({modality: [item.meta for item in items]})[modality]]
        if outcome.texts[modality] != expected:
            raise TokenCountMismatchError(
                f"family {self.name!r}: the processor gives an item another text than a blank one of its size"
            )
        mapped: list[dict[str, Array]] = [{} for _ in items]
        for name, form in facts.forms.items():
            value = outcome.tensors[name]
            if facts.pixels:
                value = as_bytes(to_numpy(value)) if name in facts.pixels else value
            for arguments, array in zip(mapped, split_items(value, form, len(items)), strict=True):
                arguments[name] = array
        return mapped

    @cached_property
    def token_types(self) -> TokenTypes:
        """Arrays of one value a token, by the rule that the processor follows."""
        outcomes = [] if isinstance(self.runner.of_text, Reject) else [self.runner.of_text]
        for modality in self.facts:
            meta = example_metas(modality)[0]
            outcomes.append(self.runner.run({modality: [self.runner.as_input(meta, blank(meta))]}))
        return TokenTypes(self.runner.processor, self._token_names, outcomes)

    def token_fields(self, sample: Sample) -> dict[str, Array]:
        """What the processor gives for each token of a row, beside its id."""
        return {name: self.token_types.of(name, sample.ids) for name in self._token_names}

    @property
    def mrope(self) -> bool:
        """Whether the model takes positions on three axes."""
        return self.skeleton.has_positions

    @cached_property
    def skeleton(self) -> Skeleton:
        """The model without weights, which computes positions."""
        return Skeleton(self.config, self.spec.model, self.processor, trust_remote_code=self.spec.trust_remote_code)

    def positions(self, sample: Sample) -> NDArray[np.int32] | None:
        """M-rope ids by the model's own get_rope_index."""
        if not self.mrope:
            return None
        metas = {modality: [item.meta for item in sample.items[modality]] for modality in self.facts}
        vectors: dict[str, list[Any]] = {}
        for counted in self.counter.row({m: row for m, row in metas.items() if row}).values():
            for one in counted:
                for name, value in one.vectors.items():
                    vectors.setdefault(name, []).append(value)
        return self.skeleton.positions(sample.ids, vectors, self.token_fields(sample))

    def dummy_data(self, bin_length: int, counts: dict[str, int]) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
        """A chat with as many items as were asked for and the processor takes."""
        media: dict[str, list[Any]] = {}
        for modality, number in counts.items():
            if modality not in self.facts:
                raise DummyError(f"family {self.name!r}: {self.unusable.get(modality) or f'takes no {modality}'}")
            most = self.facts[modality].limit
            media[modality] = [_dummy(modality)] * (number if most is None else min(number, most))
        tags = "".join(f"<{modality}>" * len(items) for modality, items in media.items())
        return [{"role": "user", "content": f"{tags}hi"}, {"role": "assistant", "content": "ok"}], media

    @property
    def versions(self) -> dict[str, str]:
        """The family's version, and the processor that rows are those of."""
        return {**super().versions, "reference": f"{processor_name(self.processor)}.apply_chat_template"}


def _content(item: Decoded) -> Any:
    if item.meta.kind == "image":
        return item.image
    if item.meta.kind == "audio":
        return item.waveform
    if item.images:
        frames = np.stack([np.asarray(image) for image in item.images])
        return lambda indices: frames[indices]
    return item.frames


def _dummy(modality: str) -> Any:
    if modality == "image":
        return blank_image(64, 64)
    if modality == "audio":
        return blank(MediaMeta(kind="audio", samples=16_000))
    return [blank_image(64, 64)] * 4
