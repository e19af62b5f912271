"""Checkpoints in the layout of the one that training began with, complete, and the position in the data.

transformers' save_pretrained already writes the tensors under their original names (`thinker.model.layers…`).
`complete` adds what it leaves out: the tensors that were never loaded (the talker, copied from the source checkpoint),
config.json as it was (only dtype and architecture may change), and the processor, tokenizer, chat template, generation
config and spk_dict.pt of the source. A LoRA adapter is left as PEFT writes it.
"""

import json
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file

from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.shards.typed import parse_json

POSITION = "data_state.json"
WEIGHTS = ("adapter_model.safetensors", "*.safetensors", "*.bin")
"""Files of weights; the first kind that a folder has counts."""
GENERATOR = "model-generator.safetensors"
COPIED = (
    "tokenizer*", "vocab.json", "merges.txt", "*.tiktoken", "special_tokens_map.json", "added_tokens.json",
    "chat_template*",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "generation_config.json",
    "configuration.json", "spk_dict.pt", "*.py", "LICENSE*",
)  # fmt: skip


def source_folder(model: str) -> Path:
    """The folder of a checkpoint; a Hub name is looked up in the local cache (and fetched where it is not there)."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model))


def weights_hash(folder: Path) -> str:
    """XXH3-128 of a checkpoint's weights: of every byte of their files (10 GB/s and more), by their names.

    Raises:
        OmniprepError: There are no files of weights.
    """
    files = next((found for kind in WEIGHTS if (found := sorted(folder.glob(kind)))), None)
    if files is None:
        raise OmniprepError(f"{folder}: no weights there ({', '.join(WEIGHTS)})")
    digest = xxhash.xxh3_128()
    for path in files:
        digest.update(f"{path.name}:{path.stat().st_size}\n".encode())
        with path.open("rb", buffering=0) as file:
            while block := file.read(16 << 20):
                digest.update(block)
    return digest.hexdigest()


def complete(
    folder: Path, source: Path, generator: Iterable[str], dtype: torch.dtype, saved_files: Iterable[str] = ()
) -> None:
    """Make a whole checkpoint of a folder that save_pretrained filled: tensors of `generator` were not loaded.

    `saved_files` are patterns of more files that are copied.
    """
    patterns = (*COPIED, *saved_files)
    for path in source.iterdir():
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in patterns):
            shutil.copyfile(path, folder / path.name)
    config = json.loads((source / "config.json").read_text())
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    config[key] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    _copy_tensors(folder, source, tuple(f"{prefix}." for prefix in generator))


def _copy_tensors(folder: Path, source: Path, prefixes: tuple[str, ...]) -> None:
    """Copy the source's tensors under these prefixes into a shard of their own, and name it in the index."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefixes)}  # noqa: SIM118
    if not tensors or not prefixes:
        return
    save_file(tensors, folder / GENERATOR, metadata={"format": "pt"})
    index_path = folder / "model.safetensors.index.json"
    index: dict[str, Any]
    if index_path.is_file():
        index = json.loads(index_path.read_text())
    else:
        with safe_open(folder / "model.safetensors", "pt") as file:
            names = list(file.keys())
        # Named after the module that was trained (model-thinker.safetensors), where all of it lies in one.
        modules = {name.partition(".")[0] for name in names}
        trained = f"model-{modules.pop() if len(modules) == 1 else 'trained'}.safetensors"
        (folder / "model.safetensors").rename(folder / trained)
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, trained)}
    index["weight_map"] |= dict.fromkeys(tensors, GENERATOR)
    index["metadata"]["total_size"] = sum(
        path.stat().st_size for path in {folder / name for name in index["weight_map"].values()}
    )
    index_path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_position(folder: Path, state: dict[str, Any]) -> None:
    """Write the position in the data: the last file of a checkpoint, so that one without it is not whole."""
    (folder / POSITION).write_text(json.dumps(state, indent=2) + "\n")


def read_position(folder: Path) -> dict[str, Any]:
    """The position in the data of a checkpoint; an OmniprepError where it is incomplete or not omniprep's."""
    path = folder / POSITION
    if not path.is_file():
        raise OmniprepError(f"--resume {folder}: not a whole checkpoint of omniprep train ({POSITION} is missing)")
    try:
        state = parse_json(path.read_bytes(), POSITION)
    except DamagedDataError as error:
        raise OmniprepError(f"--resume {folder}: damaged: {error}") from error
    kinds: dict[str, tuple[type, ...]] = {
        "position": (int,), "sizes": (list,), "shares": (list, type(None)), "seed": (int,)
    }  # fmt: skip
    if not isinstance(state, dict) or not all(isinstance(state.get(name), kind) for name, kind in kinds.items()):
        raise OmniprepError(f"--resume {folder}: {POSITION} is damaged: it has no {', '.join(kinds)}")
    return state


def last_checkpoint(run: Path) -> Path | None:
    """The last whole checkpoint of a run, or None."""
    return next(reversed(checkpoints(run)), None)


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, the earliest first."""
    whole = [p for p in run.glob("checkpoint-*") if (p / POSITION).is_file() and p.name[11:].isdigit()]
    return sorted(whole, key=lambda p: int(p.name[11:]))
