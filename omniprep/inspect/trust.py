"""What a dataset may not decide: which checkpoint and which inputs are opened to encode its rows again.

`verify --deep` encodes rows again from the inputs that rows.parquet names, with the checkpoint that the manifest
names. Whoever built the dataset owns both; in a dataset that a stranger made they could be any file of this machine or
any host. So, without a flag:

- a checkpoint is opened if it is a folder (its config and tokenizer are data, and its code needs --trust-remote-code)
  or is in the cache of the Hub; it is never downloaded;
- a local input is opened if its size and the hash of a sample of its content (of datasets of earlier versions: its
  modification time in nanoseconds) are those that the build recorded, which a stranger does not know of a file of this
  machine;
- an input in a store is opened if the dataset itself was opened from the same store.

Everything else needs the flags --model and --input.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from omniprep import io
from omniprep.errors import OmniprepError, UsageError
from omniprep.shards.manifest import InputEntry, Manifest


def model_of_dataset(given: str | None, manifest: Manifest, uri: str) -> str:
    """A checkpoint on this machine for a dataset's tokens: the user's, else the build's, never downloaded."""
    if given:
        return given
    model = manifest.model
    if not model:
        raise UsageError(f"{uri}: the dataset names no checkpoint; give one with --model")
    if Path(model).is_dir():
        return model
    if folder := cached_folder(model):
        return folder
    raise UsageError(
        f"{uri}: built with the checkpoint {model!r:.200}, which is neither a folder here nor in the cache of the Hub; "
        "a dataset does not have it fetched: give --model"
    )


def cached_folder(model: str) -> str | None:
    """The folder of a Hub checkpoint in this machine's cache, or None; makes no request."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in ("config.json", "tokenizer.json"):
        try:
            path = try_to_load_from_cache(model, name)
        except HFValidationError:
            return None
        if isinstance(path, str):
            return os.path.dirname(path)
    return None


def input_refusal(source: str, manifest: Manifest, uri: str, named: Sequence[str]) -> str:
    """Why an input of a dataset is not opened, with the flag that opens it; empty if it may be opened.

    `named` are the values of --input: inputs, or folders and prefixes of them.
    """
    if any(_covers(name, source) for name in named):
        return ""
    entry = next((known for known in manifest.inputs if known.source == source), None)
    if entry is None:
        return f"it is no input that the manifest lists; --input {source} reads it anyway"
    if entry.given:
        if located_input(source, manifest, uri, named) != source or not _changed(source, entry):
            return ""
        return (
            f"a merge gave it this name; its build read {entry.given}, which is not here: --input FOLDER names the "
            "folder from which that name leads to it"
        )
    if not io.is_local(source):
        if not io.is_local(uri) and _store(uri) == _store(source):
            return ""
        return f"it is in a store that you did not name; --input {source} reads it"
    if entry.state_sha256 is not None:
        return _saved_changed(source, entry, manifest.config.split)
    return _changed(source, entry)


def located_input(source: str, manifest: Manifest, uri: str, named: Sequence[str]) -> str:
    """Where an input lies: under its name, but for one that a merge of datasets renamed.

    Such a one is looked for as it was given to its build, from here and from the folders that --input names; only a
    file that is still what that build read is taken, since other days have inputs of the same name.
    """
    entry = next((known for known in manifest.inputs if known.source == source), None)
    if entry is None or not entry.given:
        return source
    folders = [name for name in named if io.is_local(name) and io.is_local(entry.given)]
    for path in (source, entry.given, *(io.join(folder, entry.given) for folder in folders)):
        if not io.is_local(path):
            if (_store(uri) == _store(path) or any(_covers(name, path) for name in named)) and _has_mark(path, entry):
                return path
        elif entry.state_sha256 is not None:
            if not _saved_changed(path, entry, manifest.config.split):
                return path
        elif not _changed(path, entry):
            return path
    return source


def _has_mark(uri: str, entry: InputEntry) -> bool:
    """Whether an object is what the build read; False where it is gone."""
    try:
        return io.fingerprint(uri) == {"bytes": entry.bytes, "mark": entry.mark}
    except OSError:
        return False


def _covers(name: str, source: str) -> bool:
    """Whether --input NAME is the source, a folder or prefix of it (up to a slash), or the dataset it is a split of."""
    if io.is_local(name) != io.is_local(source):
        return False
    if io.is_local(name):
        name, source = (os.path.abspath(io.local_path(text)) for text in (name, source))
    return source == name or source.startswith((name.rstrip("/") + "/", name + ":"))


def _store(uri: str) -> str:
    """Protocol and bucket of a URI; of the Hub the repository (hf://datasets/ORG/NAME)."""
    protocol, _, rest = uri.partition("://")
    parts = rest.split("/")
    return f"{protocol}://{'/'.join(parts[:3] if protocol == 'hf' else parts[:1])}"


def _changed(source: str, entry: InputEntry) -> str:
    path = io.local_path(source)
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{os.strerror(error.errno or 0).lower()}; if it lies elsewhere now, build again from there"
    if not stat.S_ISREG(status.st_mode):
        return f"it is no regular file; --input {source} reads it"
    recorded = {"bytes": entry.bytes, "sample_sha256": entry.sample_sha256, "mtime_ns": entry.mtime_ns}
    try:
        if io.has_fingerprint(path, recorded):
            return ""
    except OSError as error:
        return os.strerror(error.errno or 0).lower()
    seen = "content" if entry.sample_sha256 is not None else "time"
    return f"its size or {seen} is not what it was when the dataset was built; --input {source} reads it anyway"


def _saved_changed(source: str, entry: InputEntry, split: str | None) -> str:
    from omniprep.rows import saved
    from omniprep.rows.inputs import find_inputs

    try:
        identity = saved.fingerprint(find_inputs((source,), split)[0].uri)
    except (OmniprepError, OSError) as error:
        return f"{error}; if it lies elsewhere now, build again from there"
    if identity != {"bytes": entry.bytes, "state_sha256": entry.state_sha256}:
        return f"it is not what it was when the dataset was built; --input {source} reads it anyway"
    return ""


def with_missing_flags(error: OmniprepError, manifest: Manifest, given: Sequence[str]) -> OmniprepError:
    """The same error, extended by the flags that the build was given and this command was not."""
    missing = [flag for flag in manifest.needed_flags if flag not in given]
    if not missing:
        return error
    advice = f"the dataset was built with {', '.join(missing)}: give that here too, if you trust who made it"
    return type(error)(f"{error}; {advice}")
