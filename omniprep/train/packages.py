"""Packages that `omniprep train` and `infer` need, checked before any of them is imported.

Names, versions and the command that installs a package are those of `omniprep doctor` (doctor/machine.py), which reads
them from omniprep's own metadata.
"""

import importlib.util

from omniprep.doctor.machine import packages
from omniprep.errors import OmniprepError
from omniprep.train.config import TrainConfig


def check_packages(config: TrainConfig) -> None:
    """Refuse options whose packages are absent or too old; names the command that installs them."""
    reports = [name for name in config.report_to if name != "none"]
    needed = {"torch": "training", "transformers": "training", "accelerate": "training"}
    needed |= {"peft": "--lora"} if config.lora else {}
    needed |= {"tensorboard": "--report-to tensorboard"} if "tensorboard" in reports else {}
    require_packages(needed)
    others = {"liger_kernel": "--liger"} if config.liger == "on" else {}
    others |= {"liger_kernel": "--head-loss liger"} if config.head_loss == "liger" else {}
    others |= {"deepspeed": "--deepspeed"} if config.deepspeed else {}
    others |= {name: f"--report-to {name}" for name in reports if name != "tensorboard"}
    for package, what in others.items():
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            raise OmniprepError(f"{what} needs the package {name}: pip install {name}")


def require_packages(needed: dict[str, str]) -> None:
    """Refuse to go on without `needed` packages (name → what needs it) that omniprep's own metadata names."""
    # A package may be asked for twice: by omniprep itself, and in a newer version by an extra.
    for finding in packages():
        if finding.name in needed and finding.state != "ok":
            what = finding.text.split(";")[0]
            raise OmniprepError(f"{needed[finding.name]} needs {finding.name} ({what}): {finding.fix}")
