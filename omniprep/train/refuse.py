"""What must fit before a model may train on a dataset, checked before anything is loaded."""

import json
from collections.abc import Collection, Sequence
from typing import Any

from omniprep.data import PackedDataset
from omniprep.data.arguments import registered_loader
from omniprep.errors import OmniprepError
from omniprep.shards.schema import LOADS
from omniprep.train.config import TrainConfig


def check_datasets(datasets: Sequence[PackedDataset], ctx: Any) -> None:
    """Refuse datasets that the model would silently learn nonsense from.

    Raises:
        OmniprepError: Another family, tokenizer, layout or normalization of pixels, a dataset with no bin or nothing to
            learn, a loader that nothing registers, bins longer than the model's positions, or a tokenizer with more
            tokens than the model has embeddings.
    """
    words = text_config(ctx.config).get("vocab_size")
    if words is not None and len(ctx.tokenizer) > words:
        raise OmniprepError(
            f"the model has embeddings for {words} tokens, its tokenizer {len(ctx.tokenizer)}: resize them first"
        )
    for dataset in datasets:
        manifest, uri = dataset.manifest, dataset.uri
        if not len(dataset):
            raise OmniprepError(f"{uri}: the dataset has no bin")
        if dataset.layout.family != ctx.name:
            raise OmniprepError(
                f"{uri} was built for family {dataset.layout.family!r}, the model is of family {ctx.name!r}"
            )
        built, ours = manifest.get("tokenizer_sha256"), ctx.tokenizer_sha256
        if built is not None and built != ours:
            raise OmniprepError(
                f"{uri} was built with another tokenizer ({built[:12]}, of {manifest.get('model')}) than the model's "
                f"({ours[:12]}): build it with this --model"
            )
        if (manifest.get("counts") or {}).get("labeled_tokens") == 0:
            raise OmniprepError(f"{uri}: no token of it is labeled, so there is nothing to learn (rows need answers)")
        for column in dataset.layout.columns:
            if column.load not in LOADS:
                registered_loader(column)
        if names := other_params(dataset, ctx):
            raise OmniprepError(
                f"{uri} was built for a checkpoint with other {names} than this --model: build it with this one"
            )
        positions = text_config(ctx.config).get("max_position_embeddings")
        if positions is not None and dataset.record.bin_length > positions:
            raise OmniprepError(
                f"{uri} has bins of {dataset.record.bin_length} tokens, the model has {positions} positions: "
                f"omniprep repack --bin-length {positions}"
            )
        if dataset.layout != datasets[0].layout:
            raise OmniprepError(
                f"{uri} has other columns or loss weights than {datasets[0].uri}: build both with the same options"
            )


def other_params(dataset: PackedDataset, ctx: Any) -> str:
    """Which parameters of media (mean, patch_size …) the dataset has otherwise than the checkpoint; "" for none.

    A loader is told by its version: its module has another name after any change of a plug-in's text.
    """
    # As JSON has them, which the shards' parameters have been through: lists, not tuples.
    ours = {column.name: json.loads(json.dumps(column.params)) for column in ctx.columns}
    different = [
        f"{name} of {column.name} ({value}, not {ours[column.name][name]})"
        for column in dataset.layout.columns
        if column.name in ours
        for name, value in column.params.items()
        if name in ours[column.name] and ours[column.name][name] != value and name != "loader"
    ]
    return ", ".join(different)


def check_family(ctx: Any, config: TrainConfig) -> None:
    """Refuse options that a family cannot follow whose own hook loads a model of which it does not name the modules.

    Of a class of transformers without a hook the modules are found (structure.py).
    """
    has_hook = bool(getattr(getattr(ctx, "cls", ctx), "load_model", ""))
    if has_hook and ctx.modalities and not ctx.arch.vision_tower and config.freeze_vit:
        raise OmniprepError(
            f"family {ctx.name!r} takes {', '.join(ctx.modalities)} but names no tower, so that --freeze-vit would "
            "freeze nothing: register one by @REGISTRY.register_model_arch(ModelArch(vision_tower=...)), or train "
            "everything by --no-freeze-vit --no-freeze-aligner"
        )


def check_ranks(model: str, trained: Collection[str], config: TrainConfig) -> None:
    """Refuse several ranks for a model that runs towers with weights that train only where a bin has media.

    A rank whose bin has no media would skip collective operations in which the other ranks wait for it.
    """
    if config.fsdp or config.deepspeed or {"tower", "aligner"} & set(trained):
        raise OmniprepError(
            f"{model} runs its towers only where a bin has media: several ranks would wait for each other forever. "
            "Train with frozen towers and without --fsdp and --deepspeed, or give the family a load_model hook whose "
            "model runs its towers in every pass (docs/families.md)"
        )


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config.json, however deep it lies."""
    for key in ("thinker_config", "text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), dict):
            return text_config(config[key])
    return config
