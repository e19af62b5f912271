"""A trained model on the Hub: the files that loaders read, and a card; not the trainer's state."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

__all__ = ["WEIGHTS", "is_checkpoint", "model_card", "model_files"]

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PUSHED = (
    *WEIGHTS,
    "config.json", "generation_config.json", "configuration.json", "adapter_config.json", "*processor_config.json",
    "tokenizer*", "vocab.json", "merges.txt", "*.tiktoken", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "spk_dict.pt", "*.py", "LICENSE*",
)  # fmt: skip


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter (a dataset has a manifest)."""
    here = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    return here and not (folder / "manifest.json").is_file()


def model_files(folder: Path) -> list[str]:
    """Names of the files of a checkpoint that are pushed: weights, configs, tokenizer, processor."""
    names = (path.name for path in folder.iterdir() if not path.is_dir())
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in PUSHED))


def model_card(folder: Path, repo_id: str) -> str:
    """The text of README.md."""
    adapter = _json(folder / "adapter_config.json")
    saved = next(
        (f / "train_config.yaml" for f in (folder, folder.parent) if (f / "train_config.yaml").is_file()), None
    )
    options: dict[str, Any] = yaml.safe_load(saved.read_text(encoding="utf-8")) if saved else {}
    base = options.get("model") or adapter.get("base_model_name_or_path") or ""
    public = base if base.count("/") == 1 and not Path(base).exists() else ""  # a folder of this machine says nothing
    lines = ["---", f"library_name: {'peft' if adapter else 'transformers'}"]
    lines += [f"base_model: {public}"] if public else []
    lines += ["tags:", "- omniprep", *(["- lora"] if adapter else []), "---", f"# {repo_id.split('/')[-1]}", ""]
    what = "A LoRA adapter" if adapter else "A model"
    lines += [f"{what} trained by `omniprep train` on packed multimodal chats.", "", *_facts(folder, options, public)]
    base_option = f" --base-model {public or 'BASE'}" if adapter else ""
    lines += ["## Use it", "", "```bash", f"hf download {repo_id} --local-dir model/"]
    lines += [f"omniprep infer chats.jsonl --model model/{base_option} --out answers.jsonl", "```", ""]
    if adapter:
        lines += [f"With PEFT: `PeftModel.from_pretrained(base, {repo_id!r})`."]
    else:
        lines += [f"The layout is the base model's: transformers, ms-swift and vLLM load `{repo_id}` as they load it."]
    return "\n".join(lines) + "\n"


def _facts(folder: Path, options: dict[str, Any], base: str) -> list[str]:
    """A table of what is known of the run."""
    state = _last_state(folder)
    losses = [entry["loss"] for entry in state.get("log_history", []) if "loss" in entry]
    evaluated = [entry["eval_loss"] for entry in state.get("log_history", []) if "eval_loss" in entry]
    named = ("lora_rank", "lora_alpha") if options.get("lora") else ()
    chosen = ("learning_rate", "vit_lr", "aligner_lr", "schedule", "batch_size", "grad_accumulation", "seed", *named)
    facts = {"base model": base, "steps": state.get("global_step"), "epochs": state.get("epoch")}
    facts |= {"last loss": losses[-1] if losses else None, "evaluation loss": evaluated[-1] if evaluated else None}
    facts |= {name.replace("_", " "): options.get(name) for name in chosen}
    rows = [
        f"| {name} | {round(value, 6) if isinstance(value, float) else value} |"
        for name, value in facts.items()
        if value
    ]
    return ["| | |", "| --- | --- |", *rows, ""] if rows else []


def _short(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def _options(folder: Path) -> dict[str, Any]:
    """The options of the run, which are saved in its folder, above its checkpoints."""
    for path in (folder / "train_config.yaml", folder.parent / "train_config.yaml"):
        if path.is_file():
            options: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
            return options
    return {}


def _last_state(folder: Path) -> dict[str, Any]:
    """The Trainer's state of a checkpoint, or of the last one in a run's folder."""
    found = [folder / "trainer_state.json", *folder.glob("checkpoint-*/trainer_state.json")]
    states = [_json(path) for path in found]
    return max(states, key=lambda state: int(state.get("global_step", -1)))


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
