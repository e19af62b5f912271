"""The folder of a build or a repack: what may lie in it, whether it is this very one, and what a broken disk looks like
to the user.

plan/build.json is the first file written and the last removed, so a folder that holds anything of a build also says
which. Nothing is ever removed but files whose names a build writes (`OWN`): whatever else lies there is the user's.
"""

import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniprep import io
from omniprep.build.built import describe_inputs
from omniprep.build.lease import NAME as LEASE
from omniprep.build.manifest import tokenizer_hash, versions
from omniprep.config import BuildConfig, shaping
from omniprep.errors import OmniprepError, UsageError, unforeseen
from omniprep.families.context import FamilyContext
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import Split, find_splits
from omniprep.template.loss import parse_strategy

FOLDERS = ("receipts", "shards", "plan")
RESULTS = ("manifest.json", "index.parquet", "rows.parquet", "rejected.jsonl", "report.html")
OWN = {
    "receipts": re.compile(r"\d{5,}\.json"),
    "shards": re.compile(r"\d{5,}\.arrow"),
    "plan": re.compile(
        r"split-\d{6,}\.(arrow|json)|(plan|encode)-\d{6,}\.begun|(placement|bins)\.arrow|(plan|repack|build)\.json"
    ),
}
"""Names that a build or a repack gives to its files, by folder; plan/repack.json is of earlier versions."""
STATE = ("plan", "build.json")

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
        if _is_inside(config.out, uri):
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
    """The manifest, where this build is done already.

    Raises:
        OmniprepError: The folder holds another build, or its manifest cannot be read.
    """
    done = io.join(config.out, "manifest.json")
    if config.overwrite or not io.exists(done):
        return None
    check_same(config.out, this)
    try:
        manifest: dict[str, Any] = json.loads(io.read_bytes(done))
        if not {"counts", "shards", "config"} <= manifest.keys():
            raise ValueError("it is no manifest")
    except (ValueError, AttributeError) as error:
        raise OmniprepError(f"{done}: is damaged ({error}); remove this file, and the same command goes on") from error
    return manifest


def prepare(config: BuildConfig, this: dict[str, Any]) -> None:
    """Make the folder, or check that what lies there is this very build. The lease is held.

    With --overwrite the files of the build before are removed, and nothing else.

    Raises:
        OmniprepError: It holds something else.
    """
    out = config.out
    state = io.join(out, *STATE)
    if config.overwrite:
        _refuse_foreign(out)
        _remove_own(out)
    elif io.exists(state):
        check_same(out, this)
        sweep(out)
        return
    else:
        _refuse_foreign(out, fresh=True)
    for name in FOLDERS:
        io.make_folder(io.join(out, name))
    sweep(out)
    io.write_atomic(state, json.dumps(this, indent=1).encode())


def _refuse_foreign(out: str, *, fresh: bool = False) -> None:
    """Stop before anything is removed or written where a folder holds files and none of them says that a build wrote
    them.

    Args:
        out: The folder.
        fresh: Files of another build are refused too (no --overwrite).
    """
    states = [io.join(out, *STATE), io.join(out, "plan", "repack.json")]
    if any(io.exists(uri) for uri in states) or _is_manifest(io.join(out, "manifest.json")):
        if fresh:
            raise OmniprepError(
                f"{out}: holds a dataset that no build can go on with; choose another --out, or --overwrite"
            )
        return
    top = [name for name in io.list_folder(out) if name not in (*FOLDERS, LEASE) and not name.endswith(".tmp")]
    inner = [
        f"{folder}/{name}"
        for folder in FOLDERS
        for name in io.list_folder(io.join(out, folder))
        if not name.endswith(".tmp")
    ]
    if found := [*top, *inner]:
        raise OmniprepError(
            f"{out}: the folder is not empty ({found[0]}) and holds no omniprep build; choose another --out"
        )


def _is_manifest(uri: str) -> bool:
    """Whether a file is the manifest of a dataset, which may have been pulled or copied without its plan."""
    if not io.exists(uri):
        return False
    try:
        manifest = json.loads(io.read_bytes(uri))
    except ValueError:
        return False
    return isinstance(manifest, dict) and {"format", "shards", "counts"} <= manifest.keys()


def _remove_own(out: str) -> None:
    """Remove the files of a build: the manifest first, so that no reader takes the rest for a dataset, and
    plan/build.json last, so that what is left after a kill still says whose it is.
    """
    for name in RESULTS:
        io.remove(io.join(out, name))
    for folder, pattern in OWN.items():
        names = [name for name in io.list_folder(io.join(out, folder)) if pattern.fullmatch(name)]
        for name in sorted(names, key=lambda name: (folder, name) == STATE):
            io.remove(io.join(out, folder, name))


def refuse_overlap(out: str, sources: Iterable[str]) -> None:
    """Refuse an --out that is one of the datasets that are read, lies in one, or holds one, however they are written.

    Raises:
        UsageError: It is.
    """
    for source in sources:
        if _is_inside(out, source) and _is_inside(source, out):
            raise UsageError(f"--out is one of the datasets ({source}); choose another --out")
        if _is_inside(out, source):
            raise UsageError(f"{source}: this dataset lies in --out; choose another --out")
        if _is_inside(source, out):
            raise UsageError(f"--out lies in the dataset {source}; choose another --out")


def _is_inside(folder: str, uri: str) -> bool:
    """Whether a place is a folder or lies in it, links followed."""
    if any(name.startswith(("http://", "https://")) for name in (folder, uri)):
        return False  # nothing is ever written there
    outer, inner = io.canonical(folder), io.canonical(uri)
    if inner == outer or inner.startswith(outer.rstrip("/") + "/"):
        return True
    if not (io.is_local(outer) and io.is_local(inner)):
        return False
    try:
        whole = os.stat(io.local_path(outer))
    except OSError:  # there is no such folder yet, so nothing is in it
        return False
    for parent in (path := Path(io.local_path(inner)), *path.parents):
        try:  # the same folder under two names: a bind mount, or letters whose case the file system ignores
            if os.path.samestat(whole, parent.stat()):
                return True
        except OSError:  # does not exist yet
            continue
    return False


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
    state = io.join(out, *STATE)
    try:
        before = json.loads(io.read_bytes(state))
        if not {"config", "versions", "inputs", "tokenizer_sha256"} <= before.keys():
            raise ValueError("it does not say what was built")
    except FileNotFoundError:
        raise OmniprepError(
            f"{out}: holds a dataset that no build can go on with; choose another --out, or --overwrite"
        ) from None
    except (ValueError, AttributeError) as error:
        raise OmniprepError(f"{state}: is damaged ({error}); --overwrite begins anew") from error
    changes = []
    if (was := before.get("command", "build")) != now["command"]:
        changes.append(f"it was made by omniprep {was}")
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
