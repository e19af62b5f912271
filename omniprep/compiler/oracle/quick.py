"""The quick half of the oracle, before a build plans: once for each checkpoint, family and set of versions.

What was found equal is remembered in the user's cache folder (`$XDG_CACHE_HOME/omniprep/checked`, else below
`~/.cache`), one small file a check, under a hash of all that the result depends on. A difference is never remembered.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniprep import io
from omniprep.child_process import call_in_child
from omniprep.compiler.oracle.processor import NoOracleError, quiet_transformers
from omniprep.compiler.output.manifest import versions
from omniprep.compiler.run.workers import single_threaded
from omniprep.errors import OmniprepError
from omniprep.families.context import FamilyContext, FamilySpec, resolve
from omniprep.families.tokenizer_cache import checkpoint_folder, file_digest, shaping_files
from omniprep.user_cache import cache_folder

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
    result = _compare_apart(ctx, say)
    if result is None:
        result = _compare(ctx, say)
    if "not_compared" in result:
        return result
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        io.write_atomic(str(path), json.dumps(result, ensure_ascii=False, indent=1).encode())
    except OSError as error:
        say(f"{path}: that family {ctx.name} was checked cannot be remembered: {error}")
    return result


def _compare_apart(ctx: FamilyContext, say: Callable[[str], None]) -> dict[str, Any] | None:
    """As `_compare`, in a process of its own: transformers, torch and the processor are 900 MiB, which a driver then
    never holds. None where it must be done here: transformers is imported by now, or the family was registered by this
    process alone.
    """
    origin = ctx.record.origin
    is_known = origin.startswith(("omniprep.families.", "entry point ")) or origin in {
        f"--plugin {path}" for path in ctx.spec.plugins
    }
    if "transformers" in sys.modules or not is_known:
        return None
    answer = call_in_child(f"{__name__}:compare_in_child", {"spec": asdict(ctx.spec)})
    if answer is None:
        return None
    content = json.loads(answer)
    for line in content["said"]:
        say(line)
    if "differs" in content:
        raise FamilyDiffersError(content["differs"])
    return dict(content["result"])


def compare_in_child(argument: dict[str, Any]) -> bytes:
    """The child of `_compare_apart`: what came of it, as JSON."""
    said: list[str] = []
    answer: dict[str, Any] = {"said": said}
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in argument["spec"].items()
    }
    try:
        answer["result"] = _compare(resolve(FamilySpec(**fields)), said.append)
    except FamilyDiffersError as error:
        answer["differs"] = str(error)
    return json.dumps(answer).encode()


def _compare(ctx: FamilyContext, say: Callable[[str], None]) -> dict[str, Any]:
    """The result of `check_family`, afresh."""
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
    return {"against": oracle.name, "rows": len(trials), "meant": meant}


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
