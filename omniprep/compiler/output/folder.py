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
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import date
from typing import Any

from omniprep import io
from omniprep.compiler.output.built_rows import describe_inputs
from omniprep.compiler.output.manifest import versions
from omniprep.compiler.output.ownfiles import (
    FOLDERS,
    RESULTS,
    STATE,
    canonical,
    is_inside,
    refuse_foreign,
    remove_own,
    remove_results,
    sweep,
)
from omniprep.config import BuildConfig, shaping
from omniprep.errors import DamagedDataError, OmniprepError, UsageError, unforeseen
from omniprep.families.context import FamilyContext
from omniprep.rows import saved
from omniprep.rows.inputs import Input, find_inputs
from omniprep.rows.sources import find_splits
from omniprep.rows.split import Split
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
    errno.ENAMETOOLONG: "the name is too long for the file system; choose another --out",
    errno.ENOENT: "a file or folder vanished",
}


_NOT_BY_WAITING = (errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG)
"""Faults of a name, which the same command will meet again."""
_GOES_ON = "What is finished stays: the same command again goes on from here"


@contextmanager
def os_errors_as_one_line(out: str) -> Iterator[None]:
    """Turn what ends a build (disk, store, memory, the unforeseen) into one line that says what to do."""
    try:
        yield
    except OmniprepError:
        raise
    except MemoryError as error:
        raise OmniprepError(f"{out}: the memory ran out ({error or 'no size is given'}). {_GOES_ON}") from error
    except OSError as error:
        remote = not io.is_local(out)
        reason = str(error.strerror or error)
        if not remote:
            reason = _DISK.get(error.errno or 0, reason)
        path = error.filename if isinstance(error.filename, str) else out
        if not remote and error.errno == errno.ENOENT and io.local_path(out).startswith(path.rstrip("/")):
            reason = "no folder can be made here; choose another --out"
        text = f"{out}: {reason}" if path == out else f"{out}: {reason} ({path})"
        if error.errno in _NOT_BY_WAITING or (remote and error.errno == errno.EACCES):
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
    """Find the inputs of a build, and what tells that one changed; `say` takes a line for each folder and glob."""
    inputs = find_inputs(config.inputs, config.split, say)
    if config.split and not any(entry.split for entry in inputs):
        raise UsageError(f"--split {config.split}: none of the inputs has splits")
    inputs = _files_once(inputs, say)
    splits = find_splits(inputs, seed=config.seed, say=say, where=config.where or "")
    return Listed(splits, describe_inputs(splits))


def _files_once(inputs: list[Input], say: Callable[[str], None]) -> list[Input]:
    """Leave out inputs that are another one by a second name (`./a.jsonl`, a link): each row would be there twice."""
    first: dict[tuple[str, str, str], Input] = {}
    for entry in inputs:
        uri = entry.uri or entry.source
        # A repository on the Hub, and a URL, have one spelling.
        place = uri if saved.is_repository(uri) or uri.startswith(("http://", "https://")) else canonical(uri)
        known = first.setdefault((place, entry.split, entry.version), entry)
        if known is entry:
            continue
        if entry.draw is not None or known.draw is not None:
            raise UsageError(
                f"{entry.source}: is {known.source} by another name, and #N draws of each file once; give it once"
            )
        say(f"{entry.source}: is {known.source} by another name; left out")
    return list(first.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildIdentity:
    """What makes a build (or repack) this one: plan/build.json holds it, and a run with another one is refused."""

    command: str = "build"
    config: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]
    versions: Mapping[str, str]
    tokenizer_sha256: str
    generation: str = ""
    """Part of the names of its files, in stores; hexadecimal, so that no name leads out of the folder."""

    def __post_init__(self) -> None:
        """Refuse what no build writes."""
        if self.generation.strip("0123456789abcdef"):
            raise UsageError(f"generation: expected hexadecimal digits, found {shown(self.generation)}")
        for entry in self.inputs:
            if not isinstance(entry.get("source"), str):
                raise UsageError(f"inputs: expected an object with a source, found {shown(entry)}")

    def is_of(self, manifest: dict[str, Any]) -> bool:
        """Whether a manifest is of this build and not of another one, whose run wrote it late."""
        chosen: Mapping[str, Any] = {}
        if self.command == "repack":
            sources = [entry.get("sha256") for entry in manifest.get("repacked_from", ())]
            same_inputs = sources == [entry["sha256"] for entry in self.inputs]
            chosen = manifest.get("chosen") or {}
        else:
            listed = manifest["inputs"] if isinstance(manifest.get("inputs"), list) else []
            same_inputs = len(listed) == len(self.inputs) and all(
                isinstance(old, dict) and old.get("source") == new["source"] and is_same_input(old, new)
                for old, new in zip(listed, self.inputs, strict=True)
            )
        return same_inputs and {**manifest["config"], **chosen} == self.config

    def differences(self, now: "BuildIdentity") -> Iterator[str]:
        """What another identity has otherwise, for a message."""
        if self.command != now.command:
            yield f"it was made by omniprep {self.command}"
        for dashes, before, after in (("--", self.config, now.config), ("", self.versions, now.versions)):
            for name in sorted({*before, *after}):
                if before.get(name) != after.get(name):
                    yield f"{dashes}{name.replace('_', '-')}: {before.get(name)} → {after.get(name)}"
        yield from _changed_inputs(self.inputs, now.inputs)
        if self.tokenizer_sha256 != now.tokenizer_sha256:
            yield "the tokenizer of --model was changed"


def build_identity(config: BuildConfig, ctx: FamilyContext, listed: Listed) -> BuildIdentity:
    """The identity of a build: options, inputs, versions, tokenizer; refuses an input that lies in --out."""
    parse_strategy(config.loss_strategy)
    for uri in dict.fromkeys(split.uri for split in listed.splits):
        if is_inside(config.out, uri):
            raise UsageError(f"{uri}: this input lies in --out; choose another --out")
    return BuildIdentity(
        config=shaping(config),
        inputs=tuple(listed.inputs),
        versions={**versions(), **ctx.versions},
        tokenizer_sha256=ctx.tokenizer_sha256,
    )


def with_template_date(config: BuildConfig, ctx: FamilyContext) -> BuildConfig:
    """The options with the day for a chat template that writes the date: that of the build that the folder holds, which
    this run goes on with, else today.
    """
    if config.template_date is not None or not ctx.reads_date:
        return config
    try:
        began = None if config.overwrite else read_identity(config.out).config.get("template_date")
    except FileNotFoundError:
        began = None
    return replace(config, template_date=began or date.today().isoformat())


def finished(config: BuildConfig, identity: BuildIdentity) -> dict[str, Any] | None:
    """The manifest, where this build is done and its tables are there; OmniprepError for another build's."""
    path = io.join(config.out, "manifest.json")
    if config.overwrite or not set(RESULTS) - {"report.html"} <= set(io.list_folder(config.out)):
        return None
    check_same(config.out, identity)
    try:
        manifest = parse_json(io.read_bytes(path), path)
        if not isinstance(manifest, dict) or not {"counts", "shards", "config"} <= manifest.keys():
            raise DamagedDataError(f"{path}: it is no manifest")
    except FileNotFoundError:  # another run begins anew at this moment, and its lease says so
        return None
    except DamagedDataError as error:
        raise OmniprepError(f"{error}: the file is damaged; remove it, and the same command goes on") from error
    return manifest if identity.is_of(manifest) or is_changed(manifest) else None


def is_changed(manifest: Mapping[str, Any]) -> bool:
    """Whether rows were appended to a dataset, or removed from it, since its build: a build of the same folder has
    nothing to do then, and must never begin anew, which would bring removed rows back.
    """
    return bool(manifest.get("generations"))


def read_identity(out: str) -> BuildIdentity:
    """The identity that the folder of a build, perhaps a stranger's, holds; FileNotFoundError without one."""
    uri = io.join(out, *STATE)
    try:
        return typed_record(BuildIdentity, parse_json(io.read_bytes(uri), uri), uri)
    except DamagedDataError as error:
        raise OmniprepError(f"{error}: the file is damaged; --overwrite begins anew") from error


def generation_of(out: str) -> str:
    """The generation of the build that a folder holds."""
    return read_identity(out).generation


def prepare(config: BuildConfig, identity: BuildIdentity, token: str) -> str:
    """Make the folder, or check that it holds this very build; the generation of the files that the run writes.

    The lease is held. With --overwrite the files of the build before are removed, and nothing else. A new generation is
    named after `token`, the run's.
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
        check_same(out, identity)
        path = io.join(out, "manifest.json")
        if io.exists(path) and is_changed(_as_object(parse_json(io.read_bytes(path), path))):
            raise OmniprepError(
                f"{out}: rows were appended or removed since it was built, and one of its tables is gone; copy or pull "
                "it again, or begin anew with --overwrite"
            )
        io.remove(path)  # it is of another build, or its tables are gone
        sweep(out)
        return generation_of(out)
    else:
        refuse_foreign(out, fresh=True)
    for name in FOLDERS:
        io.make_folder(io.join(out, name))
    sweep(out)
    content = {entry.name: getattr(identity, entry.name) for entry in fields(identity)} | {"generation": generation}
    io.write_atomic(state, json.dumps(content).encode())  # for programs: indenting it would take 1 ms of a build's 16
    return generation


def _as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def check_same(out: str, identity: BuildIdentity) -> None:
    """Compare a build with the one that the folder holds; OmniprepError names every difference."""
    try:
        before = read_identity(out)
    except FileNotFoundError:
        raise OmniprepError(
            f"{out}: holds a dataset that no build can go on with; choose another --out, or --overwrite"
        ) from None
    if changes := list(before.differences(identity)):
        raise OmniprepError(
            f"{out} holds a build with other options or inputs ({'; '.join(changes)}); {_way_on(out, before, identity)}"
        )


def _way_on(out: str, before: BuildIdentity, now: BuildIdentity) -> str:
    """What to do where a folder holds another build: rows of new inputs need not cost those that are there."""
    same_otherwise = replace(before, inputs=(), config={**before.config, "inputs": ()}) == replace(
        now, inputs=(), config={**now.config, "inputs": ()}, generation=before.generation
    )
    anew = "give another --out, or --overwrite to begin anew"
    if before.command != now.command or not same_otherwise:
        return anew
    known = {entry["source"]: entry for entry in before.inputs}
    added = [entry["source"] for entry in now.inputs if entry["source"] not in known]
    changed = [e["source"] for e in now.inputs if e["source"] in known and not is_same_input(known[e["source"]], e)]
    if changed:
        return (
            "a changed input cannot be appended: put its new rows into a file of their own for omniprep append, or "
            "--overwrite to begin anew"
        )
    if not added:
        return anew
    names = " ".join(shlex.quote(name) for name in added[:3]) + (" ..." if len(added) > 3 else "")
    return (
        f"omniprep append {shlex.quote(out)} {names} adds them; or build them alone with another --out and train on "
        "both folders, or --overwrite to begin anew"
    )


def is_same_input(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> bool:
    """Whether an input is what was recorded of it, by this version or an earlier one (omniprep/io/fingerprints.py)."""
    if before is None or now is None:
        return before is now
    if "mtime_ns" in before and "sample_sha256" in now:
        return io.has_fingerprint(now["source"], before)
    # What a merge calls it says nothing of its content, and neither do the rows that were drawn of it.
    names = {"source": "", "given": "", "drawn_rows": None, "drawn_sha256": None}
    return {**before, **names} == {**now, **names}


def _changed_inputs(before: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    old, new = ({entry["source"]: entry for entry in inputs} for inputs in (before, now))
    for source in dict.fromkeys([*old, *new]):
        if not is_same_input(old.get(source), new.get(source)):
            change = "is new" if source not in old else "is gone" if source not in new else "was changed"
            yield f"input {source} {change}"


def check_unchanged(out: str, listed: Listed) -> None:
    """Refuse inputs that changed since the build began to read them; the error names them."""
    if changes := list(_changed_inputs(listed.inputs, describe_inputs(listed.splits))):
        raise OmniprepError(
            f"{'; '.join(changes)} while it was read; begin anew with --overwrite ({out} holds rows of both)"
        )
