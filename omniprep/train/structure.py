"""What the parts of any model of transformers are, by its own structure: language model, towers, aligners, head.

For families that name no modules (`register_model_arch`). The language model is what `get_decoder()` gives; every
other child of the modules around it takes media: an aligner by its name, or where it is too small for a tower.
"""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from omniprep.errors import OmniprepError
from omniprep.train.freeze import Parts, under

ALIGNER = re.compile(
    r"projector|projection|merger|connector|align|adapter|resampler|qformer|perceiver|bridge|mlp1|embed_vision|"
    r"embed_audio|downsampl"
)
"""Names of modules between a tower and a language model in transformers' classes."""
MEDIA_INPUTS = frozenset({"pixel_values", "input_features", "input_values", "input_audio_embeds", "audio_values"})
"""`main_input_name` of towers."""


def find_decoder(model: PreTrainedModel) -> nn.Module:
    """The language model without its head, which gets the embeddings of a bin; refuses models that have none."""
    kind = f"{type(model).__name__} (model type {getattr(model.config, 'model_type', '') or 'unknown'})"
    if getattr(model.config, "is_encoder_decoder", False):
        raise OmniprepError(
            f"{kind} is an encoder with a decoder: the tokens of a row are not one sequence, so that rows cannot be "
            "packed; train it row by row with another trainer"
        )
    decoder: Any = model
    for _ in range(4):  # wrappers within wrappers: at most three in transformers
        inner = decoder.get_decoder() if hasattr(decoder, "get_decoder") else decoder
        if inner is None or inner is decoder:
            break
        decoder = inner
    if decoder is model or not isinstance(decoder, nn.Module):
        raise OmniprepError(f"{kind} does not say which of its modules is the language model (get_decoder)")
    crossing = [name for name, _ in decoder.named_modules() if re.search(r"cross_?att", name)]
    if crossing:
        raise OmniprepError(
            f"{kind} attends to its media by cross-attention ({crossing[0]}), which has no borders of rows: rows of a "
            "bin would see each other's media, so that it cannot train on bins"
        )
    return decoder


def derive_parts(model: PreTrainedModel) -> Parts:
    """Module prefixes of the parts of a loaded model."""
    decoder = find_decoder(model)
    names = {module: name for name, module in model.named_modules()}
    inner = names[decoder]
    head = model.get_output_embeddings()
    towers: list[str] = []
    aligner: list[str] = []
    for name, module in around(model, inner):
        if module is head or module is model.get_input_embeddings() or not any(True for _ in module.parameters()):
            continue
        (aligner if is_aligner(name, module) else towers).append(name)
    for child, module in decoder.named_children():  # towers among the embeddings of a language model
        if any(getattr(m, "main_input_name", "") in MEDIA_INPUTS for m in module.modules()):
            towers.append(f"{inner}.{child}")
    for prefix in towers:
        tower = model.get_submodule(prefix)
        aligner += [f"{prefix}.{name}" for name, _ in tower.named_modules() if name and is_topmost_aligner(name)]
    aligner += [name for name, _ in own_parameters(model, inner)]
    return Parts(language_model=(inner,), towers=tuple(towers), aligner=tuple(aligner), generator=())


def around(model: nn.Module, inner: str) -> Iterator[tuple[str, nn.Module]]:
    """The children of all modules that the module `inner` lies in, but for those modules and itself."""
    holder, path = model, ""
    for step in inner.split("."):
        for name, child in holder.named_children():
            if name != step:
                yield f"{path}{name}", child
        holder, path = holder.get_submodule(step), f"{path}{step}."


def own_parameters(model: nn.Module, inner: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Weights that lie in the modules around `inner` themselves, such as the embedding of a line's end in a picture."""
    holder, path = model, ""
    for step in inner.split("."):
        yield from ((f"{path}{name}", p) for name, p in holder.named_parameters(recurse=False))
        holder, path = holder.get_submodule(step), f"{path}{step}."


def is_aligner(name: str, module: nn.Module) -> bool:
    """Whether a module next to the language model is no tower: by its name, or since it holds no model of its own."""
    if ALIGNER.search(name.rpartition(".")[2]):
        return True
    return not any(isinstance(m, (PreTrainedModel, nn.ModuleList)) for m in module.modules())


def is_topmost_aligner(name: str) -> bool:
    """Whether the last part of a name within a tower, and none before it, is that of an aligner."""
    *before, last = name.split(".")
    names = re.compile("merger|projector|connector")  # a tower's own layers have adapters and projections
    return bool(names.search(last)) and not any(names.search(part) for part in before)


def describe_parts(model: nn.Module, parts: Parts) -> str:
    """Which modules were found to be what, and which of them have weights that train: one line."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def state(prefixes: tuple[str, ...]) -> str:
        states = [f"{p} ({'trains' if any(under(n, [p]) for n in trained) else 'frozen'})" for p in prefixes]
        return ", ".join(states) or "none"

    return (
        f"parts of {type(model).__name__}: language model {state(parts.language_model)}; towers {state(parts.towers)}; "
        f"aligners {state(parts.aligner)}"
    )
