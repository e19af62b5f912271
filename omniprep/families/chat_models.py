"""The multimodal chat models of transformers, and what came of trying each: for `omniprep families --all`.

chat_models.json holds the trials of one version of transformers (docs/make_chat_models.py makes it: a small random
checkpoint of each type, its rows built and held against its own processor, trained on, its packed logits held against
its own forward pass). What the installed version has beside them, or names no processor for, is found live.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omniprep.families.records import FamilyRecord
from omniprep.families.registry import REGISTRY

TRIALS = Path(__file__).with_name("chat_models.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatModel:
    """A type of transformers, and what came of its trial.

    Attributes:
        model_type: As in config.json.
        model_class: The class of transformers.
        family: That which answers for its checkpoints.
        modalities: Those that were tried.
        steps: "yes" or "no" for whether its rows are built, equal the processor's, and train as rows alone do.
        reason: Why not; "" for a type that is exact.
    """

    model_type: str
    model_class: str
    family: str
    modalities: tuple[str, ...] = ()
    steps: tuple[tuple[str, str], ...] = ()
    reason: str = ""


@cache
def chat_models() -> dict[str, str]:
    """Model type → class of every model of the installed transformers that takes text and media and writes text."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    mappings = ("MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES")
    found: dict[str, str | tuple[str, ...]] = {}
    for mapping in mappings:
        found = {**getattr(modeling_auto, mapping, {}), **found}
    # Decoders that read sound stand beside the encoder-decoders of text; those with a processor are meant.
    for model_type, name in getattr(modeling_auto, "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", {}).items():
        if model_type in PROCESSOR_MAPPING_NAMES:
            found.setdefault(model_type, name)
    return {model_type: name if isinstance(name, str) else name[0] for model_type, name in sorted(found.items())}


def tried_models() -> Iterator[ChatModel]:
    """Every type of the installed transformers, in the order of their names."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    record = json.loads(TRIALS.read_text(encoding="utf-8"))
    trials = {trial["model_type"]: trial for trial in record["trials"]}
    for model_type, model_class in chat_models().items():
        family = family_for(model_type, model_class)
        trial = trials.get(model_type)
        if trial is not None:
            steps = tuple((step, trial[step]) for step in ("builds", "equals", "trains"))
            reason = trial["reason"]
        elif model_type not in PROCESSOR_MAPPING_NAMES:
            steps, reason = (), "transformers names no processor for it"
        else:
            steps, reason = (), f"not tried: new since transformers {record['transformers']}"
        yield ChatModel(
            model_type=model_type,
            model_class=model_class,
            family=family.name if family else "hf",
            modalities=tuple(trial["modalities"]) if trial else (),
            steps=steps,
            reason=reason,
        )


def family_for(model_type: str, model_class: str) -> FamilyRecord | None:
    """The registered family that answers for a type, if one is written for it."""
    return next(
        (
            family
            for family in REGISTRY.families.values()
            if model_class in family.hf_architectures or model_type in family.model_types
        ),
        None,
    )


def describe_all() -> list[str]:
    """The lines of `omniprep families --all`."""
    import transformers

    record = json.loads(TRIALS.read_text(encoding="utf-8"))
    models = list(tried_models())
    exact = [model for model in models if model.steps and not model.reason]
    lines = [
        f"transformers {transformers.__version__}: {len(models)} multimodal chat models; tried with "
        f"{record['transformers']}: {len(exact)} exact",
        "exact: rows equal those of AutoProcessor bit by bit, packed logits those of each row alone, and it trains",
        "",
    ]
    wide = max(len(model.model_type) for model in models)
    for model in models:
        result = model.reason or "exact"
        media = ", ".join(model.modalities) or "-"
        lines.append(f"{model.model_type:{wide}}  {model.family:15}  {media:20}  {result}")
    return [
        *lines,
        "",
        "a checkpoint of your own: omniprep doctor --model CHECKPOINT tries it",
    ]
