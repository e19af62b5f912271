"""A trained model on the Hub: the files that loaders read and a card, without the trainer's state."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.hub.files import LocalFile
from omniprep.hub.markup import as_code, front_matter, hub_name, repository_name
from omniprep.shards.typed import parse_json, parse_yaml

PUSHED = (
    "*.safetensors", "*.safetensors.index.json",
    "config.json", "generation_config.json", "configuration.json", "adapter_config.json", "*processor_config.json",
    "tokenizer*", "vocab.json", "merges.txt", "*.tiktoken", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "spk_dict.pt", "rows_config.json", "*.py", "LICENSE*",
)  # fmt: skip


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter (a dataset has a manifest)."""
    has_config = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    return has_config and not (folder / "manifest.json").is_file()


def model_files(folder: Path) -> list[str]:
    """Names of the files of a checkpoint that are pushed: weights, configs, tokenizer, processor."""
    names = (path.name for path in folder.iterdir() if not path.is_dir())
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in PUSHED))


def model_card(folder: Path, repo_id: str) -> str:
    """The text of README.md."""
    adapter = _json(folder / "adapter_config.json")
    options = _options(folder)
    public = hub_name(options.get("model") or adapter.get("base_model_name_or_path") or "")
    head: dict[str, Any] = {"library_name": "peft" if adapter else "transformers"}
    head |= {"base_model": public} if public else {}
    head["tags"] = ["omniprep", *(["lora"] if adapter else [])]
    what = "A LoRA adapter" if adapter else "A model"
    base_option = f" --base-model {public or 'BASE'}" if adapter else ""
    lines = [
        f"{front_matter(head)}# {repository_name(repo_id)}", "",
        f"{what} trained by `omniprep train` on packed multimodal chats.", "",
        *_facts(folder, options, public),
        "## Use it", "", "```bash", f"hf download {repo_id} --local-dir model/",
        f"omniprep infer chats.jsonl --model model/{base_option} --out answers.jsonl", "```", "",
    ]  # fmt: skip
    if adapter:
        lines += [f"With PEFT: `PeftModel.from_pretrained(base, {repo_id!r})`."]
    else:
        lines += [f"The layout is the base model's: transformers, ms-swift and vLLM load `{repo_id}` as they load it."]
    return "\n".join(lines) + "\n"


def _facts(folder: Path, options: dict[str, Any], base: str | None) -> list[str]:
    """A table of the run's facts: numbers as they are, texts as inline code, nothing else."""
    state = _last_state(folder)
    history = state.get("log_history")
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    evaluated = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    named = ("lora_rank", "lora_alpha") if options.get("lora") else ()
    chosen = ("learning_rate", "vit_lr", "aligner_lr", "schedule", "batch_size", "grad_accumulation", "seed", *named)
    facts = {"base model": base, "steps": state.get("global_step"), "epochs": state.get("epoch")}
    facts |= {"last loss": losses[-1] if losses else None, "evaluation loss": evaluated[-1] if evaluated else None}
    facts |= {name.replace("_", " "): options.get(name) for name in chosen}
    rows = [f"| {name} | {_value(value)} |" for name, value in facts.items() if value]
    return ["| | |", "| --- | --- |", *rows, ""] if rows else []


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{round(value, 6)}"
    return f"{value}" if isinstance(value, int) else as_code(value)


def _options(folder: Path) -> dict[str, Any]:
    """The options of the run, which are saved in its folder, above its checkpoints."""
    for path in (folder / "train_config.yaml", folder.parent / "train_config.yaml"):
        if path.is_file():
            options = parse_yaml(LocalFile(path.parent, path.name).read(), str(path))
            if not isinstance(options, dict):
                raise OmniprepError(f"{path}: expected options as 'name: value'")
            return options
    return {}


def _last_state(folder: Path) -> dict[str, Any]:
    """The Trainer's state of a checkpoint, or of the last one in a run's folder."""
    paths = [folder / "trainer_state.json", *folder.glob("checkpoint-*/trainer_state.json")]
    states = [_json(path) for path in paths]
    steps = [step if isinstance(step := state.get("global_step"), int) else -1 for state in states]
    return states[steps.index(max(steps))]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = parse_json(LocalFile(path.parent, path.name).read(), str(path))
    if not isinstance(content, dict):
        raise DamagedDataError(f"{path}: expected an object")
    return content
