"""Bins with images and videos, of classes whose videos stand on the token of images (GLM-4.1V and those after it).

Such a class counts its image features against every such token, those of videos too, and raises. It computes rows with
images or rows with videos alone, so here its own towers compute the features, which are put on their tokens before the
forward pass; which token is whose the processor says (`mm_token_type_ids`).
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

KINDS = {"image": 1, "video": 2}
"""Modality → its number in `mm_token_type_ids` (transformers' ProcessorMixin.create_mm_token_type_ids)."""


def with_features_placed(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the class's forward pass, with embeddings in place of ids and media where it needs that."""
    own = {kind: own_arguments(model, kind, arguments) for kind in KINDS}
    ids, types = arguments.get("input_ids"), arguments.get("mm_token_type_ids")
    token = getattr(model.config, "image_token_id", None)
    if ids is None or types is None or token is None or not all(own.values()):
        return dict(arguments)
    placed = {kind: (types == number) & (ids == token) for kind, number in KINDS.items()}
    if not bool(placed["video"].any()):
        return dict(arguments)
    embeddings: Tensor = model.get_input_embeddings()(ids)
    for kind, places in placed.items():
        features = getattr(model.model, f"get_{kind}_features")(**own[kind], return_dict=True).pooler_output
        features = torch.cat(list(features)) if isinstance(features, list | tuple) else features
        if len(features) != int(places.sum()):
            raise ValueError(f"{len(features)} features of {kind} items for {int(places.sum())} tokens")
        embeddings = embeddings.masked_scatter(places[..., None], features.to(embeddings.dtype))
    media = {name for given in own.values() for name in given}
    rest = {name: value for name, value in arguments.items() if name not in media and name != "input_ids"}
    return {**rest, "inputs_embeds": embeddings}


def own_arguments(model: Any, kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors that the tower of a modality takes; empty where there are none, or the class has no such method."""
    method = getattr(getattr(model, "model", None), f"get_{kind}_features", None)
    if method is None:
        return {}
    names = inspect.signature(inspect.unwrap(method)).parameters
    return {name: value for name, value in arguments.items() if name in names and name not in OF_ALL}


OF_ALL = frozenset({"input_ids", "position_ids", "use_cache", "mm_token_type_ids", "attention_mask", "kwargs"})
