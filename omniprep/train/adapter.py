"""An adapter given as --model: the checkpoint under it, and what is checked before PEFT reads it."""

from pathlib import Path
from typing import Any

from omniprep.errors import OmniprepError
from omniprep.inspect.trust import cached_folder
from omniprep.shards.typed import parse_json


def base_and_adapter(model: str, base_model: str | None) -> tuple[str, Path | None]:
    """The checkpoint, and the adapter on it if `--model` is one; `base_model` is --base-model."""
    run = Path(model)
    if not (run / "adapter_config.json").is_file():
        if run.is_dir() and not (run / "config.json").is_file():
            raise OmniprepError(
                f"--model {run}: neither a checkpoint (config.json) nor an adapter (adapter_config.json)"
            )
        return model, None
    adapter = adapter_config(run / "adapter_config.json")
    if base_model:
        return base_model, run
    named = adapter.get("base_model_name_or_path")
    if not named or not isinstance(named, str):
        raise OmniprepError(f"--model {run} is an adapter that names no base model: give --base-model")
    base = named if Path(named).is_dir() else cached_folder(named)
    if base is None:
        raise OmniprepError(
            f"--model {run} is an adapter on {named!r:.200}, which is neither a folder here nor in the cache of the "
            "Hub; an adapter does not have it fetched: give --base-model"
        )
    return base, run


def adapter_config(path: Path) -> dict[str, Any]:
    """The configuration of a LoRA adapter, from anyone; refused where PEFT would import a module of its choice."""
    content = parse_json(path.read_bytes(), str(path))
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        raise OmniprepError(f"{path}: not the configuration of a LoRA adapter")
    # Without these PEFT takes the folder's name for a repository of the Hub.
    if not (path.parent / "adapter_model.safetensors").is_file():
        raise OmniprepError(f"{path.parent}: an adapter without weights (adapter_model.safetensors is missing)")
    if content.get("megatron_config") is not None:  # then PEFT imports the module that "megatron_core" names
        raise OmniprepError(f"{path}: adapters for Megatron, which import code by name, are not loaded")
    return content
