"""Which files of a folder are a build's: what --overwrite may remove, what is refused, what killed runs left behind."""

import os
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from omniprep import io
from omniprep.compiler.output.fence import RUN
from omniprep.compiler.output.holder import LEASE
from omniprep.errors import DamagedDataError, OmniprepError, UsageError
from omniprep.rows.table_folders import CATALOG
from omniprep.shards.names import REFERENCES
from omniprep.shards.typed import parse_json

FOLDERS = ("receipts", "shards", "plan")
RESULTS = ("manifest.json", "index.parquet", "rows.parquet", "rejected.jsonl", "report.html")
_TAG = r"(?P<tag>-[0-9a-f]{8})?"
OWN = {
    "receipts": re.compile(rf"\d{{5,}}{_TAG}\.json"),
    "shards": re.compile(rf"\d{{5,}}{_TAG}\.arrow"),
    "plan": re.compile(
        rf"(split-\d{{6,}}|(plan|encode)-\d{{6,}}|placement|bins|plan|repack|build|append|progress){_TAG}\.(arrow|json|begun)"
    ),
}
"""Names that a build or a repack gives to its files, by folder; plan/repack.json is of earlier versions."""
STATE = ("plan", "build.json")
APPEND_STATE = ("plan", "append.json")
"""What an append that is under way appends."""


def refuse_foreign(out: str, *, fresh: bool = False) -> None:
    """Refuse to change a folder whose files no build wrote; with `fresh` (no --overwrite) those of others too."""
    states = [io.join(out, *STATE), io.join(out, "plan", "repack.json")]
    if any(io.exists(uri) for uri in states) or _is_manifest(io.join(out, "manifest.json")):
        if fresh:
            raise OmniprepError(
                f"{out}: holds a dataset that no build can go on with; choose another --out, or --overwrite"
            )
        return
    foreign = [name for name in io.list_folder(out) if name not in (*FOLDERS, LEASE) and not name.endswith(".tmp")]
    foreign += [
        f"{folder}/{name}"
        for folder in FOLDERS
        for name in io.list_folder(io.join(out, folder))
        if not name.endswith(".tmp")
    ]
    if foreign:
        raise OmniprepError(
            f"{out}: the folder is not empty ({foreign[0]}) and holds no omniprep build; choose another --out"
        )


def _is_manifest(uri: str) -> bool:
    """Whether a file is the manifest of a dataset, which may have been pulled or copied without its plan."""
    if not io.exists(uri):
        return False
    try:
        manifest = parse_json(io.read_bytes(uri), uri)
    except DamagedDataError:
        return False
    return isinstance(manifest, dict) and {"format", "shards", "counts"} <= manifest.keys()


def remove_own(out: str) -> None:
    """Remove the files of a build: the manifest first, so that no reader takes the rest for a dataset, and
    plan/build.json last, so that what is left after a kill still says whose it is.
    """
    remove_results(out)
    for folder, pattern in OWN.items():
        names = [name for name in io.list_folder(io.join(out, folder)) if pattern.fullmatch(name)]
        for name in sorted(names, key=lambda name: (folder, name) == STATE):
            io.remove(io.join(out, folder, name))


def remove_results(out: str) -> None:
    """Remove the manifest, and then the tables that it speaks of, and what `omniprep score` computed."""
    for name in (*RESULTS, REFERENCES):
        io.remove(io.join(out, name))


def remove_tagged(out: str, tag: str, folders: Iterable[str] = FOLDERS) -> None:
    """Remove the files that a change of a dataset wrote under names with its tag."""
    for folder in folders:
        for name in io.list_folder(io.join(out, folder)):
            match = OWN[folder].fullmatch(name)
            if match and match["tag"] == f"-{tag}":
                io.remove(io.join(out, folder, name))


def stale_objects(out: str, generation: str) -> list[str]:
    """Plans, receipts and shards of other generations, in a store; removed once the manifest names those of this one.

    They are listed before that: what is listed is older than this run, so no later one can be using it. What a manifest
    names that is there now is not stale: shards of appends have tags of their own.
    """
    stale: list[str] = []
    named = _named_shards(out) if not io.is_local(out) else set()
    for folder, pattern in OWN.items() if not io.is_local(out) else ():
        for name in io.list_folder(io.join(out, folder)):
            match = pattern.fullmatch(name)
            if f"{folder}/{name}" in named:
                continue
            if match and (folder, name) != STATE and (match["tag"] or "").removeprefix("-") != generation:
                stale.append(io.join(out, folder, name))
    return stale


def _named_shards(out: str) -> set[str]:
    """Paths of the shards that a dataset's manifest names, where that says that it was changed since its build."""
    uri = io.join(out, "manifest.json")
    try:
        manifest = parse_json(io.read_bytes(uri), uri)
    except (FileNotFoundError, DamagedDataError):
        return set()
    if not isinstance(manifest, dict) or not manifest.get("generations"):
        return set()
    return {str(entry.get("path")) for entry in manifest.get("shards", ()) if isinstance(entry, dict)}


def refuse_overlap(out: str, sources: Iterable[str]) -> None:
    """Refuse an --out that is a dataset that is read, lies in one or holds one, however they are written."""
    for source in sources:
        if is_inside(out, source) and is_inside(source, out):
            raise UsageError(f"--out is one of the datasets ({source}); choose another --out")
        if is_inside(out, source):
            raise UsageError(f"{source}: this dataset lies in --out; choose another --out")
        if is_inside(source, out):
            raise UsageError(f"--out lies in the dataset {source}; choose another --out")


def canonical(uri: str) -> str:
    """One spelling for each file or folder: absolute, without links, `..` and doubled slashes, a store's main protocol
    (s3 for s3a). Two URIs of the same file may differ in all of these.
    """
    if uri.startswith(CATALOG):  # a name of a table, not of a file
        return uri
    if io.is_local(uri):
        return os.path.realpath(io.local_path(uri))
    fs, path = io.filesystem(uri)
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    if protocol in ("file", "local"):
        return os.path.realpath(path)
    return f"{protocol}{io.REMOTE_MARK}{posixpath.normpath('/' + path).lstrip('/')}"


def is_inside(folder: str, uri: str) -> bool:
    """Whether a URI is a folder or lies in it, links followed."""
    if any(name.startswith(("http://", "https://", CATALOG)) for name in (folder, uri)):
        return False  # nothing is ever written there
    outer, inner = canonical(folder), canonical(uri)
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
            # Folders of other runs are gone since the lease was taken; the one that is left is our own.
            if name.endswith(".tmp") and not RUN.fullmatch(name):
                io.remove(io.join(folder, name))
