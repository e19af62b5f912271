"""DeepSpeed ZeRO by name: `--deepspeed zero2`, or a file of one's own in transformers' form.

The names are ms-swift's. Values "auto" are filled in by transformers from the run's options. bf16 weights have float32
master copies in DeepSpeed's optimizer, unlike in a run without it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange

from omniprep.errors import OmniprepError

PRESETS = ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
_BUCKET = 200_000_000
_AUTO = {
    "reduce_bucket_size": 4096 * 4096,
    "stage3_prefetch_bucket_size": 4096 * 4096 * 9 // 10,
    "stage3_param_persistence_threshold": 10 * 4096,
}
"""What transformers fills in for a hidden size of 4096; it does not find that of a model whose language model is one
part of several, and gives up."""
_SHARDED = {
    **_AUTO,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_gather_16bit_weights_on_model_save": True,  # a checkpoint is whole weights, as in every other run
    "sub_group_size": 1_000_000_000,
}


def deepspeed_config(option: str) -> dict[str, Any]:
    """The configuration that `--deepspeed` stands for: one of `PRESETS`, or what a file holds."""
    if Path(option).is_file():
        return read_config(Path(option))
    if option not in PRESETS:
        raise OmniprepError(f"--deepspeed {option}: no such file, and none of {', '.join(PRESETS)}")
    stage, _, offload = option.removeprefix("zero").partition("_")
    zero: dict[str, Any] = {"stage": int(stage), "overlap_comm": True, "contiguous_gradients": True}
    zero |= _SHARDED if stage == "3" else {"reduce_bucket_size": _BUCKET, "allgather_bucket_size": _BUCKET}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if stage == "3":
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # --optimizer says which, with its groups of learning rates
        "bf16": {"enabled": "auto"},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "steps_per_print": 1 << 30,  # the run has a log of its own
    }


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file, its buckets' sizes filled in."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OmniprepError(f"--deepspeed {path}: not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise OmniprepError(f"--deepspeed {path}: not a DeepSpeed configuration")
    zero = config.get("zero_optimization", {})
    zero |= {name: number for name, number in _AUTO.items() if zero.get(name) == "auto"}
    return config


def is_shared_out(model: nn.Module) -> bool:
    """Whether ZeRO-3 shards the weights among the ranks."""
    return any(hasattr(p, "ds_id") for p in model.parameters())


def keep_names(model: PreTrainedModel) -> None:
    """See that weights which ZeRO-3 has loaded are saved under their original names.

    transformers 5.23 notes for saving which renamings a load has used; under ZeRO-3 it notes all that it knows, and
    would save `thinker.visual` as `thinker.thinker.model.thinker.visual`.
    """
    if is_shared_out(model):
        known = get_model_conversion_mapping(model, add_legacy=False)
        model._weight_conversions = [c for c in known if not isinstance(c, PrefixChange)]


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather the weights that ZeRO-3 shards, for the block; every rank must enter it. Does nothing without ZeRO-3."""
    if not is_shared_out(model):
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(list(model.parameters())):
        yield


def numel(parameter: nn.Parameter) -> int:
    """Weights of a parameter, those that ZeRO-3 keeps on other ranks included."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
