"""The folder of a build: what may lie in it, whether it is this very build, and what a broken disk looks like to the
user.

plan/build.json is the first file written and the last removed, so a folder that holds anything of a build also says
which.
"""

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from omniprep import io
from omniprep.build.lease import NAME as LEASE
from omniprep.build.manifest import describe_inputs, tokenizer_hash, versions
from omniprep.config import BuildConfig, shaping
from omniprep.errors import OmniprepError, UsageError
from omniprep.families.context import FamilyContext
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import Split, find_splits
from omniprep.template.loss import parse_strategy

FOLDERS = ("receipts", "shards", "plan")
RESULTS = ("manifest.json", "index.parquet", "rows.parquet", "rejected.jsonl", "report.html")

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


@contextmanager
def told(out: str) -> Iterator[None]:
    """Turn a fault of disk or store into one line that says what to do; what is finished stays.

    Raises:
        OmniprepError: For every OSError in the block.
    """
    try:
        yield
    except OSError as error:
        what = _DISK.get(error.errno or 0, str(error.strerror or error))
        where = error.filename if isinstance(error.filename, str) else out
        remote = not io.is_local(out)
        if remote:
            what = str(error.strerror or error)
        text = f"{out}: {what}" if where == out else f"{out}: {what} ({where})"
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENOENT) or (remote and error.errno == errno.EACCES):
            raise OmniprepError(text) from error
        raise OmniprepError(f"{text}. What is finished stays: the same command again goes on from here") from error


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
    splits = find_splits(found)
    return Listed(splits, describe_inputs(splits))


def describe(config: BuildConfig, ctx: FamilyContext, listed: Listed) -> dict[str, Any]:
    """What makes this build this build: options, inputs, versions, tokenizer."""
    parse_strategy(config.loss_scale)
    this = {
        "config": shaping(config),
        "inputs": listed.inputs,
        "versions": {**versions(), **ctx.versions},
        "tokenizer_sha256": tokenizer_hash(ctx),
    }
    return json.loads(json.dumps(this))


def finished(config: BuildConfig, this: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest, where this build is done already.

    Raises:
        OmniprepError: The folder holds another build.
    """
    done = io.join(config.out, "manifest.json")
    if config.overwrite or not io.exists(done):
        return None
    check_same(config.out, this)
    return json.loads(io.read_bytes(done))


def prepare(config: BuildConfig, this: dict[str, Any]) -> None:
    """Make the folder, or check that what lies there is this very build. The lease is held.

    Raises:
        OmniprepError: It holds something else.
    """
    out = config.out
    if config.overwrite:
        for name in (*RESULTS, *FOLDERS):
            io.remove(io.join(out, name))
    state = io.join(out, "plan", "build.json")
    if io.exists(state):
        check_same(out, this)
        sweep(out)
        return
    if any(name not in (*FOLDERS, LEASE) for name in io.list_folder(out)) or any(
        not name.endswith(".tmp") for folder in FOLDERS for name in io.list_folder(io.join(out, folder))
    ):
        raise OmniprepError(f"{out}: the folder is not empty and holds no omniprep build; choose another --out")
    for name in FOLDERS:
        io.make_folder(io.join(out, name))
    sweep(out)
    io.write_atomic(state, json.dumps(this, indent=1).encode())


def sweep(out: str) -> None:
    """Remove what killed runs left half-written (local folders only: stores show no half-written objects)."""
    if not io.is_local(out):
        return
    for folder in (out, *(io.join(out, name) for name in FOLDERS)):
        for name in io.list_folder(folder):
            if name.endswith(".tmp"):
                io.remove(io.join(folder, name))


def check_same(out: str, now: dict[str, Any]) -> None:
    """Compare a build with the one that the folder holds.

    Raises:
        OmniprepError: They differ; names every difference.
    """
    state = io.join(out, "plan", "build.json")
    try:
        before = json.loads(io.read_bytes(state))
    except FileNotFoundError:
        raise OmniprepError(f"{out}: holds a dataset that no build can go on with; choose another --out") from None
    except ValueError as error:
        raise OmniprepError(f"{state}: is damaged ({error}); --overwrite begins anew") from error
    changes = []
    for key in ("config", "versions"):
        old, new = before[key], now[key]
        names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        dashes = "--" if key == "config" else ""
        changes += [f"{dashes}{name.replace('_', '-')}: {old.get(name)} → {new.get(name)}" for name in names]
    changes += _changed_inputs(before["inputs"], now["inputs"])
    if before["tokenizer_sha256"] != now["tokenizer_sha256"]:
        changes.append("the tokenizer of --model was changed")
    if changes:
        raise OmniprepError(
            f"{out} holds a build with other options or inputs ({'; '.join(changes)}); "
            "give another --out, or --overwrite to begin anew"
        )


def _changed_inputs(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> Iterator[str]:
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
