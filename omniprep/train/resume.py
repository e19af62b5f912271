"""Going on with a run: from where, and whether it is the same run.

data_state.json in a checkpoint says what the run was of: its data by content, its model, its options. The optimizer and
the schedule go on as they were saved, so an option of theirs that is given otherwise would be ignored: it is refused.
Other options may change (a longer run, another number of ranks); each change is said.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omniprep.data import PackedDataset
from omniprep.errors import OmniprepError
from omniprep.shards.manifest import content_hash
from omniprep.train.checkpoint import last_checkpoint, read_position
from omniprep.train.config import DEFAULTS, TrainConfig

KEPT = (
    "learning_rate", "vit_lr", "aligner_lr", "weight_decay", "adam_beta2", "optimizer", "schedule", "warmup", "lora",
    "lora_rank", "lora_alpha", "target_regex", "freeze_llm", "freeze_vit", "freeze_aligner", "weight_by",
    "eval_fraction", "objective",
)  # fmt: skip
"""Options that the weights, the optimizer, the schedule or the choice of bins in a checkpoint already hold."""
ADAMW = {"auto", "adamw_torch", "adamw_torch_fused"}
"""Values of --optimizer with the same states, and the same result but for rounding."""
FREE = (
    "max_steps", "epochs", "batch_size", "grad_accumulation", "max_grad_norm", "lora_dropout", "dtype", "amp", "attn",
    "model", "lora_dtype", "beta", "loss_type", "label_smoothing", "rpo_alpha", "desirable_weight",
    "undesirable_weight", "orpo_nll",
)  # fmt: skip
"""Options that may change from here on, and change the result."""


def find_checkpoint(config: TrainConfig) -> Path | None:
    """The checkpoint to go on from, or None."""
    if config.resume is None:
        return None
    checkpoint = last_checkpoint(Path(config.out)) if config.resume == "auto" else Path(config.resume)
    if checkpoint is not None:
        read_position(checkpoint)
        _refuse_pickles(checkpoint, config)
    return checkpoint


def _refuse_pickles(checkpoint: Path, config: TrainConfig) -> None:
    """Refuse a checkpoint from elsewhere whose files run code when they are loaded.

    The state of DeepSpeed (global_step*/) and the index of torch's sharded checkpoints (.metadata, written under FSDP)
    are pickles, read by their own libraries. All else that a resumed run loads is safetensors, JSON, or read by torch
    with weights_only. Checkpoints in --out are this user's own.
    """
    inside = checkpoint.resolve().is_relative_to(Path(config.out).resolve())
    if inside or config.trust_remote_code:
        return
    for pattern in ("**/.metadata", "global_step*/**/*.pt", "**/*.pkl"):
        if pickled := next(checkpoint.glob(pattern), None):
            raise OmniprepError(
                f"--resume {checkpoint}: {pickled.relative_to(checkpoint)} runs code of whoever wrote it when it is "
                "loaded; where you trust them, pass --trust-remote-code"
            )


def identity(config: TrainConfig, datasets: Sequence[PackedDataset], ctx: Any) -> dict[str, Any]:
    """What a run is of, as JSON types, for data_state.json."""
    options = config.to_dict()
    return {
        "data": [content_hash(dataset.manifest) for dataset in datasets],
        "config": hashlib.sha256(json.dumps(ctx.config, sort_keys=True).encode()).hexdigest(),
        "options": {name: options[name] for name in (*KEPT, *FREE)},
    }


def changes(checkpoint: Path, now: dict[str, Any]) -> list[str]:
    """What is otherwise than when a checkpoint was written: a line each, refused where it may not be."""
    state = read_position(checkpoint)
    before = state.get("options")
    if before is None:
        return [f"--resume {checkpoint}: it does not say what it was trained with, so nothing is compared but the data"]
    if state.get("config") != now["config"]:
        raise OmniprepError(f"--resume {checkpoint}: made with a model of another config.json: --model changed")
    if state.get("data") != now["data"]:
        raise OmniprepError(f"--resume {checkpoint}: made with other data: the content of --data changed")
    otherwise = {
        name: f"--{name.replace('_', '-')} was {before.get(name, DEFAULTS[name])}, is {value}"
        for name, value in now["options"].items()
        if before.get(name, DEFAULTS[name]) != value and not {before.get(name), value} <= ADAMW
    }
    if fixed := [otherwise[name] for name in KEPT if name in otherwise]:
        raise OmniprepError(
            f"--resume {checkpoint}: {'; '.join(fixed)}: the checkpoint goes on with what it has; give the same, or "
            "begin a new run with the checkpoint as --model"
        )
    return [f"--resume {checkpoint}: {text}" for text in otherwise.values()]
