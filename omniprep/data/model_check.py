"""Whether a model is one that the batches of a dataset are for.

All classes of transformers take any keyword argument, so a model of another family, or a class without the towers,
would train on a part of the batch and never say so. `check_model` compares the model with what the build wrote down,
and the arguments that its forward pass names with those that the batches have.
"""

import inspect
import re
from typing import Any

from torch import nn
from torch.nn.modules.module import _forward_unimplemented

from omniprep.data.dataset import PackedDataset
from omniprep.errors import OmniprepError

OPTIONAL = ("use_cache", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""Arguments that a class may lack: without a cache it needs no `use_cache`, and the borders are for kernels which get
them through `**kwargs`; rows are kept apart by their positions, which every class must take."""
_WRAPPERS = ("torch.nn.parallel", "torch.distributed", "deepspeed")
"""Packages of modules that hold the user's model as `module`."""


def check_model(dataset: PackedDataset, model: nn.Module) -> frozenset[str]:
    """Refuse a model that would fail on the batches of a dataset, or leave a part of them out.

    Args:
        dataset: Its `collate`, or `omniprep.loader`, makes the batches.
        model: What will get them, wrapped (DDP, FSDP, PEFT, torch.compile) or not.

    Returns:
        Names of a batch that its class does not take and does not need; `omniprep.loader(model=...)` leaves them out.

    Raises:
        OmniprepError: The model is of another family or class than the dataset was built for; it is a whole whose part
            trains (of the omni models, the thinker); or its forward pass takes no argument of that name.
    """
    bare = unwrapped(model)
    kind = type(bare).__name__
    if type(bare).forward is _forward_unimplemented:
        thinker = ": give its part that trains, model.thinker" if hasattr(bare, "thinker") else ""
        raise OmniprepError(f"{kind} has no forward pass of its own{thinker}")
    _check_type(dataset, bare)
    parameters = inspect.signature(type(bare).forward).parameters.values()
    any_keyword = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    if any_keyword and len(parameters) == 2:
        return frozenset()  # forward(self, **batch): a wrapper of the user's own, which names nothing to compare with
    taken = forward_names(bare, type(bare))
    if missing := sorted(batch_names(dataset) - taken):
        media = [column.modality for column in dataset.layout.columns if column.name in missing]
        what = f" (of {', '.join(dict.fromkeys(media))})" if media else ""
        raise OmniprepError(
            f"the forward pass of {kind} takes no {', '.join(missing)}{what}, which the batches of {dataset.uri} have: "
            "give the class that the checkpoint is loaded as to train, with its towers and its head"
        )
    return frozenset() if any_keyword else frozenset(OPTIONAL) - taken


def batch_names(dataset: PackedDataset) -> frozenset[str]:
    """Arguments that the batches of a dataset may have and that must not be lost."""
    names = {"input_ids", "labels", "position_ids"}
    for column in dataset.layout.columns:
        if column.load != "none":
            names |= {column.name, *([column.params["mask"]] if "mask" in column.params else ())}
    return frozenset(names)


def unwrapped(model: Any) -> Any:
    """The user's own model within the wrappers of torch, PEFT and DeepSpeed."""
    while True:
        inner = getattr(model, "_orig_mod", None)  # torch.compile
        if inner is None and hasattr(model, "get_base_model"):  # PEFT
            inner = model.get_base_model()
        if inner is None and type(model).__module__.startswith(_WRAPPERS):
            inner = getattr(model, "module", None)
        if inner is None or inner is model:
            return model
        model = inner


def forward_names(model: nn.Module, cls: type[nn.Module]) -> frozenset[str]:
    """Names that a class's forward pass takes, itself or for the model within it or its towers.

    All classes of transformers take any keyword (`**kwargs`), so that one which nobody reads would be lost.
    """
    functions = [cls.forward]
    base = getattr(model, "base_model", model)
    if base is not model:
        functions.append(type(base).forward)
    for owner in (cls, type(base)):
        functions += [getattr(owner, n) for n in dir(owner) if re.fullmatch(r"get_\w+_(features|embeddings|tokens)", n)]
    return frozenset(
        name
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    )


def _check_type(dataset: PackedDataset, model: Any) -> None:
    found = getattr(getattr(model, "config", None), "model_type", "")
    if not isinstance(found, str) or not found:
        return  # no model of transformers: its forward pass is all there is to compare
    built = dataset.record.model_types
    if built:
        fits = found in built
    else:  # built before manifests said so
        from omniprep.families.loading import load_families
        from omniprep.families.registry import REGISTRY

        load_families()
        record = REGISTRY.families.get(dataset.layout.family)
        built = record.model_types if record is not None else ()
        fits = not built or any(found == name or found.startswith(f"{name}_") for name in built)
    if not fits:
        raise OmniprepError(
            f"{dataset.uri} was built for family {dataset.layout.family!r} (model type {' or '.join(built)}), this "
            f"{type(model).__name__} is of model type {found!r}: build the dataset with --model of this checkpoint, or "
            "give the model that it was built for"
        )
