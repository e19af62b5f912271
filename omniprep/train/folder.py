"""The folder of a run: nothing of an earlier run is overwritten, or taken for this one's, unless it is asked for.

A run leaves checkpoints, logs, its options and a model in --out. Another run in the same folder would write its model
over the first one's and leave the first one's later checkpoints, which `--resume auto` then takes.
"""

import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from omniprep.errors import OmniprepError
from omniprep.train.checkpoint import COPIED, checkpoints, last_checkpoint
from omniprep.train.config import TrainConfig, parse_source
from omniprep.train.facts import FACTS

OPTIONS = "train_config.yaml"
"""Written when a run begins: a folder with it is a run's."""
BEGUN = (OPTIONS, FACTS, "runs")
"""What a run leaves before its first checkpoint: options, facts and logs."""
OF_OTHERS = ("*.py", "LICENSE*")
MODEL = (
    "model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "adapter_config.json",
    "config.json", "training_args.bin", "merged", *(pattern for pattern in COPIED if pattern not in OF_OTHERS),
)  # fmt: skip
"""What else lies in it: the trained model, an adapter, the merged model. Code and licences that came with the model are
left where they are: files of those names may be the user's."""


def prepare_folder(config: TrainConfig, checkpoint: Path | None) -> None:
    """Make --out ready, on the process that writes: nothing of others is overwritten."""
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise OmniprepError(f"--out {out}: a file of that name is there")
    sources = [config.model, *(parse_source(text)[0] for text in (*config.data, *config.eval_data))]
    if any(Path(source).is_dir() and out.is_dir() and out.samefile(source) for source in sources):
        raise OmniprepError(f"--out {out}: is the --model or a dataset of the run itself; choose another folder")
    if not out.is_dir():
        return
    left = leftovers(out)
    if checkpoint is not None and out.resolve() in checkpoint.resolve().parents:
        left = [path for path in checkpoints(out) if number(path) > number(checkpoint)]
        if left and not config.overwrite:
            raise OmniprepError(
                f"--resume {checkpoint}: the run has later checkpoints ({shown(left)}), which --resume auto would "
                "take: remove them by --overwrite, or choose another --out"
            )
    elif left and not (out / OPTIONS).is_file():
        raise OmniprepError(f"--out {out}: holds {shown(left)}, but no run of omniprep train: choose another")
    elif not config.overwrite and not only_begun(left):
        hint = "go on with it by --resume auto, " if last_checkpoint(out) is not None else ""
        raise OmniprepError(
            f"--out {out}: holds an earlier run ({shown(left)}): {hint}remove it by --overwrite, or choose another"
        )
    if config.overwrite:
        for path in left:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def leftovers(out: Path) -> list[Path]:
    """What a run would have written into a folder, and nothing else that lies there."""
    names = (*BEGUN, *MODEL)
    return sorted(
        path for path in out.iterdir() if is_checkpoint(path) or any(fnmatch(path.name, pattern) for pattern in names)
    )


def only_begun(left: Sequence[Path]) -> bool:
    """Whether a run has left no checkpoint and no model, so that there is nothing of it to lose."""
    return all(path.name in BEGUN or (is_checkpoint(path) and path not in checkpoints(path.parent)) for path in left)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is the folder of a checkpoint, a whole one or one that was cut short."""
    return path.is_dir() and path.name.startswith("checkpoint-") and path.name[11:].isdigit()


def number(checkpoint: Path) -> int:
    """The step of a checkpoint by its name; -1 where the name has none."""
    return int(checkpoint.name[11:]) if is_checkpoint(checkpoint) else -1


def shown(paths: Sequence[Path]) -> str:
    """Some names, at most three."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(path.name for path in paths[:3]) + more
