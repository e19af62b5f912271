"""The quick half of the oracle, before a build plans: once for each checkpoint, family and set of versions.

What was found equal is remembered in the user's cache folder (`$XDG_CACHE_HOME/omniprep/checked`, else below
`~/.cache`), one small file a check, under a hash of all that the result depends on. A difference is never remembered.
"""

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniprep import io
from omniprep.compiler.oracle.processor import NoOracleError, quiet_transformers
from omniprep.compiler.output.manifest import versions
from omniprep.compiler.run.workers import single_threaded
from omniprep.errors import OmniprepError
from omniprep.families.context import FamilyContext
from omniprep.families.tokenizer_cache import cache_folder, checkpoint_folder, file_digest, shaping_files

if TYPE_CHECKING:
    from omniprep.compiler.oracle.trial import Trial


class FamilyDiffersError(OmniprepError):
    """A family makes another row of a dummy chat than the checkpoint's own processor."""


def check_family(ctx: FamilyContext, say: Callable[[str], None]) -> dict[str, Any]:
    """Hold a family against the checkpoint's processor, unless that was done before.

    Args:
        ctx: The family; its options do not matter (`family_without_options`).
        say: Shows a message.

    Returns:
        What the manifest says of it: "against", "rows" and "meant" (differences that are meant, with the reasons), or
        "not_compared" with the reason where the checkpoint has no processor of its own.

    Raises:
        FamilyDiffersError: A difference that is not meant.
    """
    path = cache_folder("checked") / f"{_identity(ctx)}.json"
    if path.is_file():
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            say(f"{path}: cannot be read, so family {ctx.name} is checked again")
    # These import torch, which a build that needs no check may not need either.
    from omniprep.compiler.oracle.trial import (
        chats_for,
        family_without_options,
        oracle_of,
        try_chats,
        unfounded_rejects,
    )

    family = family_without_options(ctx)
    # On one thread, as rows are encoded: torchvision rounds a few pixels otherwise with several, and torch's pool of
    # threads does not live in a process that was forked from one that used it (a driver in a fork would hang).
    with single_threaded(), quiet_transformers():
        try:
            oracle = oracle_of(family)
            chats = chats_for(family, oracle, quick=True)
            trials = list(try_chats(family, oracle, chats))
        except NoOracleError as error:
            say(f"family {ctx.name}: rows are not compared with a processor of the checkpoint: {error}")
            return {"not_compared": str(error)}
    if fault := first_fault(trials):
        raise FamilyDiffersError(f"family {ctx.name!r}: {fault}; {_advice(ctx)}")
    for trial in unfounded_rejects(chats, trials):
        raise FamilyDiffersError(
            f"family {ctx.name!r}: the dummy row {trial.chat!r} is rejected ({trial.rejected}), {oracle.name} takes "
            f"it; {_advice(ctx)}"
        )
    meant = {name: reason for trial in trials for name, reason in trial.comparison.meant.items()}
    result = {"against": oracle.name, "rows": len(trials), "meant": meant}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        io.write_atomic(str(path), json.dumps(result, ensure_ascii=False, indent=1).encode())
    except OSError as error:
        say(f"{path}: that family {ctx.name} was checked cannot be remembered: {error}")
    return result


def first_fault(trials: list["Trial"]) -> str:
    """The first difference that is not meant, with the row that shows it; empty where there is none."""
    return next((f"dummy row {trial.chat!r}: {fault}" for trial in trials for fault in trial.comparison.faults), "")


def _advice(ctx: FamilyContext) -> str:
    doctor = f"`omniprep doctor --model {ctx.spec.model}` shows all differences"
    if ctx.name == "hf":
        return f"{doctor}; please report them"
    return f"--family hf takes everything from the checkpoint's own processor, {doctor}"


def _identity(ctx: FamilyContext) -> str:
    """Hash of all that the check depends on: the checkpoint's files, the family's code, versions."""
    folder = checkpoint_folder(ctx.spec.model)
    modules = {inspect.getsourcefile(cls) for cls in type(ctx).__mro__ if cls.__module__.startswith("omniprep.")}
    content = {
        "family": ctx.name,
        "model": "" if folder else ctx.spec.model,
        "files": shaping_files(folder),
        "code": [file_digest(Path(path)) for path in sorted(map(str, modules))],
        "versions": {**versions(), **ctx.versions},
        "trust_remote_code": ctx.spec.trust_remote_code,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
