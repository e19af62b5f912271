"""`omniprep init-model`: a small random checkpoint of any family that can make one, so that all of omniprep runs
offline.

Those of the Qwen families (small_omni.py, small_models.py) have everything of the real ones but their knowledge:
vocabulary, token ids, processor settings, chat template and configuration keys. Only the widths and depths are small
(hidden size 64, two layers a tower, 20 million parameters, of which 19 million are the two embedding tables; 40 MB in
bfloat16). The files are those a real checkpoint has, in the form of transformers 4, which transformers 5 reads as well.
The same seed and the same torch give the same weights.
"""

from pathlib import Path

from omniprep.config import refuse_undecoded
from omniprep.errors import OmniprepError, UsageError


def init_model(path: str | Path, family: str = "qwen2_5_omni", *, seed: int = 0, plugins: tuple[str, ...] = ()) -> Path:
    """Make a small random-weight checkpoint of a family, by its `init_model` hook, in a folder without one."""
    from omniprep.families.loading import load_families, named_function
    from omniprep.families.registry import REGISTRY

    refuse_undecoded(str(path))
    load_families(plugins)
    hooks = {
        name: hook for name, record in REGISTRY.families.items() if (hook := getattr(record.cls, "init_model", ""))
    }
    if family not in hooks:
        REGISTRY.find(family, {})
        raise UsageError(f"no small model for family {family!r}; there is one for: {', '.join(sorted(hooks))}")
    make = named_function(family, "init_model", hooks[family])
    path = Path(path)
    if (path / "config.json").exists():
        raise OmniprepError(f"{path} holds a checkpoint already; choose another folder")
    path.mkdir(parents=True, exist_ok=True)
    make(path, seed)
    return path
