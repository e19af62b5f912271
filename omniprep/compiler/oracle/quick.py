"""The quick half of the oracle, before a build plans: once for each checkpoint, family and set of versions.

What was found equal is remembered in the user's cache folder (`$XDG_CACHE_HOME/omniprep/checked`, else below
`~/.cache`), one small file a check, under a hash of all that the result depends on. A difference is never remembered.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from omniprep import io
from omniprep.compiler.oracle.processor import NoOracleError, quiet_transformers
from omniprep.compiler.oracle.trial import (
    Trial,
    chats_for,
    family_without_options,
    oracle_of,
    try_chats,
    unfounded_rejects,
)
from omniprep.compiler.output.manifest import versions
from omniprep.compiler.run.workers import single_threaded
from omniprep.errors import OmniprepError
from omniprep.families.checkpoint import SHAPING_SUFFIXES, FileState, file_state
from omniprep.families.context import FamilyContext


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
    path = _cache_folder() / f"{_identity(ctx)}.json"
    if path.is_file():
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            say(f"{path}: cannot be read, so family {ctx.name} is checked again")
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


def first_fault(trials: list[Trial]) -> str:
    """The first difference that is not meant, with the row that shows it; empty where there is none."""
    return next((f"dummy row {trial.chat!r}: {fault}" for trial in trials for fault in trial.comparison.faults), "")


def _advice(ctx: FamilyContext) -> str:
    doctor = f"`omniprep doctor --model {ctx.spec.model}` shows all differences"
    if ctx.name == "hf":
        return f"{doctor}; please report them"
    return f"--family hf takes everything from the checkpoint's own processor, {doctor}"


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "omniprep" / "checked"


def _identity(ctx: FamilyContext) -> str:
    """Hash of all that the check depends on: the checkpoint's files, the family's code, versions."""
    folder = _checkpoint_folder(ctx.spec.model)
    files = sorted(path for path in folder.iterdir() if path.suffix in SHAPING_SUFFIXES) if folder else []
    modules = {inspect.getsourcefile(cls) for cls in type(ctx).__mro__ if cls.__module__.startswith("omniprep.")}
    content = {
        "family": ctx.name,
        "model": "" if folder else ctx.spec.model,
        "files": {path.name: _file_digest(path) for path in files if path.is_file()},
        "code": [_file_digest(Path(path)) for path in sorted(map(str, modules))],
        "versions": {**versions(), **ctx.versions},
        "trust_remote_code": ctx.spec.trust_remote_code,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    return _content_digest(str(path), file_state(path))


@lru_cache(maxsize=256)
def _content_digest(path: str, state: FileState) -> str:
    """SHA-256 of a file, read again only once it was changed: the 11 MB of a tokenizer take 7 ms a build."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _checkpoint_folder(model: str) -> Path | None:
    """The folder of a checkpoint's files; of a Hub name that of its snapshot in the cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None
