"""`omniprep doctor`."""

import sys
import tempfile
from pathlib import Path

import click

from omniprep.cli.command import Command


@click.command(
    name="doctor",
    cls=Command,
    examples=(
        "omniprep doctor",
        "omniprep doctor --model Qwen/Qwen2.5-Omni-7B",
        "omniprep doctor --plugin my_family.py --model CHECKPOINT",
    ),
)
@click.option("--model", help="Checkpoint to try (default: a small random one of every family that can make one).")
@click.option("--family", help="Model family.  [default: found from the checkpoint]")
@click.option("--plugin", multiple=True, help="Python file that registers model families.")
def doctor(model: str | None, family: str | None, plugin: tuple[str, ...]) -> None:
    """Print versions and families, and send dummy rows through every family.

    For each modality: the tokens that the counter promises from the header, those of the expansion, and the tensors.
    Exits 1 where they disagree.
    """
    from omniprep.doctor import small_checkpoint, try_family, versions
    from omniprep.errors import OmniprepError
    from omniprep.families.context import load_families, resolve_family
    from omniprep.media.video import backend
    from omniprep.registry import REGISTRY

    for name, version in {**versions(), "video reader": backend()}.items():
        print(f"{name:16} {version}")
    load_families(plugin)
    faults = 0
    with tempfile.TemporaryDirectory(prefix="omniprep-doctor-") as folder:
        if model is not None:
            chosen = [(resolve_family(model, family, plugin).record, model)]
        else:
            records = [record for name, record in REGISTRY.families.items() if family in (None, name)]
            chosen = [(record, "") for record in records]
        for record, checkpoint in chosen:
            print(f"\nfamily {record.name} {record.version} ({record.origin})")
            try:
                path = checkpoint or small_checkpoint(record, Path(folder) / record.name)
                if path is None:
                    print("  not tried: give a checkpoint with --model")
                    continue
                trials = try_family(resolve_family(str(path), record.name, plugin), Path(folder))
            except OmniprepError as error:
                print(f"  FAULT {error}")
                faults += 1
                continue
            for trial in trials:
                counts = f"counter {trial.counter} = expansion {trial.expansion}: {trial.tensors}"
                print(f"  {trial.what:24} {'FAULT ' + trial.fault if trial.fault else 'ok  ' + counts}")
                faults += bool(trial.fault)
    if faults:
        print(f"{faults} faults", file=sys.stderr)
        sys.exit(1)
