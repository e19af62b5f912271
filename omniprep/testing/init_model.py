"""`omniprep init-model`: a small random checkpoint of any chat model, so that all of omniprep runs offline.

Those of the Qwen families (small_omni.py, small_models.py) have everything of the real ones but their knowledge:
vocabulary, token ids, processor settings, chat template and configuration keys. Only the widths and depths are small
(hidden size 64, two layers a tower, 20 million parameters, of which 19 million are the two embedding tables; 40 MB in
bfloat16). The files are those a real checkpoint has, in the form of transformers 4, which transformers 5 reads as well.

Those of all other types of transformers (small_chat.py) have a vocabulary learned from a few sentences: about 1 MB.
The same seed and the same torch give the same weights.
"""

from functools import partial
from pathlib import Path

from omniprep.config import refuse_undecoded
from omniprep.errors import OmniprepError, UsageError, did_you_mean

_SUFFIXES = (".json", ".jinja", ".model", ".pt", ".safetensors", ".txt")
"""Of files of a checkpoint, which an init-model that was stopped may have left."""


def init_model(path: str | Path, family: str = "qwen2_5_omni", *, seed: int = 0, plugins: tuple[str, ...] = ()) -> Path:
    """Make a small random-weight checkpoint in a folder without one.

    Args:
        path: The folder.
        family: A family with an `init_model` hook, or a model type of transformers.
        seed: Of the random numbers.
        plugins: Files that register families.
    """
    from omniprep.families.loading import load_families, named_function
    from omniprep.families.registry import REGISTRY

    refuse_undecoded(str(path))
    load_families(plugins)
    hooks = {
        name: hook for name, record in REGISTRY.families.items() if (hook := getattr(record.cls, "init_model", ""))
    }
    if family in hooks:
        make = named_function(family, "init_model", hooks[family])
    else:
        make = partial(write_model_type, model_type=known_type(family, sorted(hooks)))
    path = Path(path)
    if (path / "config.json").exists():
        raise OmniprepError(f"{path} holds a checkpoint already; choose another folder")
    if path.is_dir() and any(entry.suffix not in _SUFFIXES for entry in path.iterdir()):
        raise OmniprepError(f"{path} holds other files; choose an empty or a new folder")
    path.mkdir(parents=True, exist_ok=True)
    make(path, seed)
    return path


def known_type(family: str, hooks: list[str]) -> str:
    """The model type that a family's name is, or that the family answers to; UsageError where transformers has none."""
    from omniprep.families.chat_models import chat_models
    from omniprep.families.registry import REGISTRY
    from omniprep.testing.chat_recipes import RECIPES

    record = REGISTRY.families.get(family)
    known = chat_models()
    found = next((name for name in (family, *(record.model_types if record else ())) if name in known), None)
    if found is None:
        hint = did_you_mean(family, [*hooks, *known])
        names = ", ".join(sorted({*hooks, *RECIPES} - {family}))
        raise UsageError(
            f"no small model for family {family!r}{hint.rstrip('?')}; there is one for {names}, and for most chat "
            "models of transformers, by their model_type"
        )
    return found


def write_model_type(path: Path, seed: int, model_type: str) -> None:
    """The small checkpoint of a model type of transformers."""
    from omniprep.testing.chat_recipes import RECIPES
    from omniprep.testing.small_chat import Recipe, write_chat_model

    write_chat_model(path, seed, model_type, RECIPES.get(model_type, Recipe()))
