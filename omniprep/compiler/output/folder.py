"""The folder of a build or a repack: what may lie in it, whether it is this very one, and what a broken disk looks like
to the user.

plan/build.json is the first file written and the last removed, so a folder that holds anything of a build also says
which. Nothing is ever removed but files whose names a build writes (compiler/output/ownfiles.py): whatever else lies
there is the user's.

A store cannot rename, so a run that lost its lease might still send an object under a name that the next run uses too.
So a build that begins anew over another one in a store gives its plans, receipts and shards names of its own: the
`generation`, which plan/build.json holds (shards/00000-1f3a9c40.arrow; the manifest names them). The old ones are
removed when the manifest is written. Local folders, and the first build in a folder, have the generation "".
"""

import errno
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from omniprep import io
from omniprep.compiler.output.built_rows import describe_inputs
from omniprep.compiler.output.manifest import tokenizer_hash, versions
from omniprep.compiler.output.ownfiles import (
    FOLDERS,
    RESULTS,
    STATE,
    is_inside,
    refuse_foreign,
    remove_own,
    remove_results,
    sweep,
)
from omniprep.config import BuildConfig, shaping
from omniprep.errors import DamagedDataError, OmniprepError, UsageError, unforeseen
from omniprep.families.context import FamilyContext
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import Split, find_splits
from omniprep.shards.typed import parse_json, shown, typed_record
from omniprep.template.loss import parse_strategy

_DISK = {
    errno.ENOSPC: "no space is left; free some",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; remount it or choose another --out",
    errno.EACCES: "no permission to write; give it, or choose another --out",
    errno.EPERM: "no permission to write; give it, or choose another --out",
    errno.EIO: "the disk or store reports an input/output error",
    errno.ENOTDIR: "is a file, a folder is needed",
    errno.EEXIST: "is a file, a folder is needed",
    errno.ENOENT: "a file or folder vanished",
}


_GOES_ON = "What is finished stays: the same command again goes on from here"


@contextmanager
def told(out: str) -> Iterator[None]:
    """Turn what ends a build into one line that says what to do; what is finished stays.

    Raises:
        OmniprepError: For every fault of disk, store or memory, and for what nobody foresaw.
    """
    try:
        yield
    except OmniprepError:
        raise
    except MemoryError as error:
        raise OmniprepError(f"{out}: the memory ran out ({error or 'no size is told'}). {_GOES_ON}") from error
    except OSError as error:
        what = _DISK.get(error.errno or 0, str(error.strerror or error))
        where = error.filename if isinstance(error.filename, str) else out
        remote = not io.is_local(out)
        if remote:
            what = str(error.strerror or error)
        text = f"{out}: {what}" if where == out else f"{out}: {what} ({where})"
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENOENT) or (remote and error.errno == errno.EACCES):
            raise OmniprepError(text) from error
        raise OmniprepError(f"{text}. {_GOES_ON}") from error
    except Exception as error:  # in this process only: workers.py does the same for those of Ray
        raise unforeseen(out, error) from error


@dataclass(frozen=True, slots=True)
class Listed:
    """The inputs as they were found, once."""

    splits: list[Split]
    inputs: list[dict[str, Any]]


def list_inputs(config: BuildConfig, say: Callable[[str], None] = lambda text: None) -> Listed:
    """Find the inputs of a build, and what tells that one changed.

    Args:
        config: The options.
        say: Told how many files each folder and glob gave.

    Raises:
        UsageError: --split names a split, and no input has splits.
    """
    found = find_inputs(config.inputs, config.split, say)
    if config.split and not any(entry.split for entry in found):
        raise UsageError(f"--split {config.split}: none of the inputs has splits")
    splits = find_splits(found, seed=config.seed, say=say)
    return Listed(splits, describe_inputs(splits))


def describe(config: BuildConfig, ctx: FamilyContext, listed: Listed) -> dict[str, Any]:
    """What makes this build this build: options, inputs, versions, tokenizer."""
    parse_strategy(config.loss_scale)
    for uri in dict.fromkeys(split.uri for split in listed.splits):
        if is_inside(config.out, uri):
            raise UsageError(f"{uri}: this input lies in --out; choose another --out")
    this = {
        "command": "build",
        "config": shaping(config),
        "inputs": listed.inputs,
        "versions": {**versions(), **ctx.versions},
        "tokenizer_sha256": tokenizer_hash(ctx),
    }
    return json.loads(json.dumps(this))


def finished(config: BuildConfig, this: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest, where this build is done already and its tables are there.

    Raises:
        OmniprepError: The folder holds another build, or its manifest cannot be read.
    """
    done = io.join(config.out, "manifest.json")
    if config.overwrite or not set(RESULTS) - {"report.html"} <= set(io.list_folder(config.out)):
        return None
    check_same(config.out, this)
    try:
        manifest = parse_json(io.read_bytes(done), done)
        if not isinstance(manifest, dict) or not {"counts", "shards", "config"} <= manifest.keys():
            raise DamagedDataError(f"{done}: it is no manifest")
    except FileNotFoundError:  # another run begins anew at this moment, and its lease says so
        return None
    except DamagedDataError as error:
        raise OmniprepError(f"{error}: the file is damaged; remove it, and the same command goes on") from error
    return manifest if _is_of(manifest, this) else None


def _is_of(manifest: dict[str, Any], this: dict[str, Any]) -> bool:
    """Whether a manifest is of this build and not of another one, whose run wrote it late."""
    if this["command"] == "repack":
        sources = [entry.get("sha256") for entry in manifest.get("repacked_from", ())]
        if sources != [entry["sha256"] for entry in this["inputs"]]:
            return False
        chosen = manifest.get("chosen")
    else:
        chosen = {}
        if manifest.get("inputs") != this["inputs"]:
            return False
    return {**manifest["config"], **(chosen or {})} == this["config"]


@dataclass(frozen=True, slots=True)
class BuildState:
    """plan/build.json: what makes a build this build (`describe`), as a folder holds it."""

    config: Mapping[str, Any]
    versions: Mapping[str, str]
    inputs: tuple[Mapping[str, Any], ...]
    tokenizer_sha256: str
    command: str = "build"
    generation: str = ""
    """Part of the names of its files, in stores; hexadecimal, so that no name leads out of the folder."""

    def __post_init__(self) -> None:
        """Refuse what no build writes."""
        if self.generation.strip("0123456789abcdef"):
            raise UsageError(f"generation: expected hexadecimal digits, found {shown(self.generation)}")
        for entry in self.inputs:
            if not isinstance(entry.get("source"), str):
                raise UsageError(f"inputs: expected an object with a source, found {shown(entry)}")


def read_state(out: str) -> BuildState:
    """What the folder of a build says of itself; the folder may have come from anybody.

    Raises:
        FileNotFoundError: It says nothing.
        OmniprepError: plan/build.json is damaged.
    """
    uri = io.join(out, *STATE)
    try:
        return typed_record(BuildState, parse_json(io.read_bytes(uri), uri), uri)
    except DamagedDataError as error:
        raise OmniprepError(f"{error}: the file is damaged; --overwrite begins anew") from error


def generation_of(out: str) -> str:
    """The generation of the build that a folder holds."""
    return read_state(out).generation


def prepare(config: BuildConfig, this: dict[str, Any], token: str) -> str:
    """Make the folder, or check that what lies there is this very build. The lease is held.

    With --overwrite the files of the build before are removed, and nothing else.

    Args:
        config: The options.
        this: What `describe` gives.
        token: Of the run; a new generation is named after it.

    Returns:
        The generation of the files that the run writes.

    Raises:
        OmniprepError: It holds something else.
    """
    out, generation = config.out, ""
    state = io.join(out, *STATE)
    if config.overwrite:
        refuse_foreign(out)
        if io.is_local(out):
            remove_own(out)
        else:
            remove_results(out)
            if any(io.list_folder(io.join(out, folder)) for folder in FOLDERS):
                generation = token[:8]
    elif io.exists(state):
        check_same(out, this)
        io.remove(io.join(out, "manifest.json"))  # it is of another build, or its tables are gone
        sweep(out)
        return generation_of(out)
    else:
        refuse_foreign(out, fresh=True)
    for name in FOLDERS:
        io.make_folder(io.join(out, name))
    sweep(out)
    io.write_atomic(state, json.dumps({**this, "generation": generation}, indent=1).encode())
    return generation


def check_same(out: str, now: dict[str, Any]) -> None:
    """Compare a build with the one that the folder holds.

    Raises:
        OmniprepError: They differ; names every difference.
    """
    try:
        before = read_state(out)
    except FileNotFoundError:
        raise OmniprepError(
            f"{out}: holds a dataset that no build can go on with; choose another --out, or --overwrite"
        ) from None
    changes = []
    if before.command != now["command"]:
        changes.append(f"it was made by omniprep {before.command}")
    for key, old in (("config", before.config), ("versions", before.versions)):
        new = now[key]
        names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        dashes = "--" if key == "config" else ""
        changes += [f"{dashes}{name.replace('_', '-')}: {old.get(name)} → {new.get(name)}" for name in names]
    changes += _changed_inputs(before.inputs, now["inputs"])
    if before.tokenizer_sha256 != now["tokenizer_sha256"]:
        changes.append("the tokenizer of --model was changed")
    if changes:
        raise OmniprepError(
            f"{out} holds a build with other options or inputs ({'; '.join(changes)}); "
            "give another --out, or --overwrite to begin anew"
        )


def _changed_inputs(before: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    old, new = ({entry["source"]: entry for entry in side} for side in (before, now))
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            what = "was changed" if name in old and name in new else "is new" if name in new else "is gone"
            yield f"input {name} {what}"


def check_unchanged(out: str, listed: Listed) -> None:
    """Compare the inputs with what they were when the build began to read them.

    Raises:
        OmniprepError: They were changed meanwhile; names them.
    """
    if changes := list(_changed_inputs(listed.inputs, describe_inputs(listed.splits))):
        raise OmniprepError(
            f"{'; '.join(changes)} while it was read; begin anew with --overwrite ({out} holds rows of both)"
        )
