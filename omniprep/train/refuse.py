"""What must fit before a model may train on a dataset, checked before anything is loaded."""

from collections.abc import Sequence
from typing import Any

from omniprep.data import PackedDataset
from omniprep.errors import OmniprepError

__all__ = ["check_datasets"]


def check_datasets(datasets: Sequence[PackedDataset], ctx: Any) -> None:
    """Refuse datasets that the model would silently learn nonsense from.

    Args:
        datasets: Their manifests and layouts are read.
        ctx: Family context of the model's checkpoint.

    Raises:
        OmniprepError: Another family, tokenizer or layout, an empty dataset, bins longer than the model's positions, or
            a tokenizer with more tokens than the model has embeddings.
    """
    words = text_config(ctx.config).get("vocab_size")
    if words is not None and len(ctx.tokenizer) > words:
        raise OmniprepError(
            f"the model has embeddings for {words} tokens, its tokenizer {len(ctx.tokenizer)}: resize them first"
        )
    for dataset in datasets:
        manifest, where = dataset.manifest, dataset.uri
        if not len(dataset):
            raise OmniprepError(f"{where}: the dataset has no bin")
        if dataset.layout.family != ctx.name:
            raise OmniprepError(
                f"{where} was built for family {dataset.layout.family!r}, the model is of family {ctx.name!r}"
            )
        built, ours = manifest.get("tokenizer_sha256"), ctx.tokenizer_sha256
        if built is not None and built != ours:
            raise OmniprepError(
                f"{where} was built with another tokenizer ({built[:12]}, of {manifest.get('model')}) than the model's "
                f"({ours[:12]}): build it with this --model"
            )
        positions = text_config(ctx.config).get("max_position_embeddings")
        if positions is not None and dataset.record.bin_length > positions:
            raise OmniprepError(
                f"{where} has bins of {manifest['bin_length']} tokens, the model has {positions} positions: "
                f"omniprep repack --bin-length {positions}"
            )
        if dataset.layout != datasets[0].layout:
            raise OmniprepError(
                f"{where} has other columns or loss weights than {datasets[0].uri}: build both with the same options"
            )


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config.json, however deep it lies."""
    for key in ("thinker_config", "text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), dict):
            return text_config(config[key])
    return config
