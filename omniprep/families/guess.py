"""Which checkpoint a wrong name may have meant: a folder beside it, one in the local cache, or one that people use."""

import os
from collections.abc import Iterator
from pathlib import Path

from omniprep.errors import did_you_mean

KNOWN = (
    *(f"Qwen/Qwen2.5-Omni-{size}" for size in ("7B", "3B")),
    *(f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B", "32B", "72B")),
    *(f"Qwen/Qwen2-VL-{size}-Instruct" for size in ("2B", "7B", "72B")),
    *(f"Qwen/Qwen3-VL-{size}-Instruct" for size in ("2B", "4B", "8B", "32B")),
    *("Qwen/Qwen2-Audio-7B-Instruct", "Qwen/Qwen2-Audio-7B"),
    *(f"Qwen/Qwen3-Omni-30B-A3B-{kind}" for kind in ("Instruct", "Thinking", "Captioner")),
    *(
        "Qwen/Qwen3.5-27B",
        "Qwen/Qwen3.5-35B-A3B",
        "zai-org/GLM-4.1V-9B-Thinking",
        "zai-org/GLM-4.5V",
        "zai-org/GLM-4.6V",
    ),
    *(f"llava-hf/llava-onevision-qwen2-{size}-ov-hf" for size in ("0.5b", "7b")),
    *(f"OpenGVLab/InternVL3-{size}-hf" for size in ("1B", "8B")),
    *(f"google/gemma-3-{size}-it" for size in ("4b", "12b", "27b")),
    *("google/gemma-4-E2B-it", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", "nvidia/audio-flamingo-3-hf"),
)
"""Hub names of the built-in families; only a hint, any other may be given."""


def guess_model(model: str) -> str:
    """The words "; did you mean 'Qwen/Qwen2.5-Omni-7B'?" where a checkpoint of a like name is near, else nothing."""
    if model in KNOWN:
        return ""
    path = Path(model)
    if inside := _checkpoints(path):
        return f"; did you mean {str(path / inside[-1])!r}?"
    beside = did_you_mean(path.name, _checkpoints(path.parent), "" if model == path.name else str(path.parent))
    return beside or did_you_mean(model, [*_cached(), *KNOWN])


def _checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder."""
    entries = sorted(folder.iterdir())[:1000] if folder.is_dir() else []
    return [entry.name for entry in entries if (entry / "config.json").is_file()]


def _cached() -> Iterator[str]:
    home = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
    for folder in sorted(Path(home).expanduser().glob("models--*--*")):
        yield folder.name.removeprefix("models--").replace("--", "/", 1)
