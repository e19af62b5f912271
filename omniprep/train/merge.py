"""A LoRA adapter merged into its model: a whole checkpoint that any loader takes."""

from pathlib import Path
from typing import Any

import torch

from omniprep.errors import OmniprepError
from omniprep.train.checkpoint import complete, source_folder
from omniprep.train.model import load_base


def merge_lora(model: str, adapter: Path, out: Path, ctx: Any, dtype: torch.dtype) -> None:
    """Write `model` with an adapter merged into its weights."""
    from peft import PeftModel

    if not (adapter / "adapter_config.json").is_file():
        raise OmniprepError(f"{adapter}: no LoRA adapter there (adapter_config.json is missing)")
    merged = PeftModel.from_pretrained(load_base(ctx, model, dtype, "sdpa"), str(adapter)).merge_and_unload()
    out.mkdir(parents=True, exist_ok=True)
    merged.save_pretrained(out)
    complete(out, source_folder(model), tuple(ctx.arch.generator), dtype)
