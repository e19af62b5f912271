"""Tokenizers as transformers makes them, remembered so that the next command need import neither it nor torch.

transformers builds a fast tokenizer from several files of a checkpoint by rules that change with its version, and its
import takes longer than planning a small input. So a process of its own makes it, once a checkpoint (`make_apart`):
this process never holds transformers, torch and a second tokenizer, 600 MiB. What that process made is kept in the
user's cache folder (`$XDG_CACHE_HOME/omniprep/tokenizers`, else below `~/.cache`) as the tokenizers library writes it,
under a hash of all that it was made of: the checkpoint's files (of a Hub name also the commit) and the versions that
shape bytes. Only what reads back exactly as it was written is used or kept. Not kept and not used: tokenizers of a
checkpoint's own code, and any once transformers was imported, since a plug-in may have changed its classes; its import
is paid by then anyway.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniprep import io
from omniprep.child_process import call_in_child
from omniprep.user_cache import cache_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHAPING_SUFFIXES = {".json", ".jinja", ".py", ".model", ".txt"}
"""Of the files of a checkpoint that its processor and tokenizer are made of; weights are not."""
PACKAGES = ("omniprep", "transformers", "tokenizers", "huggingface_hub", "sentencepiece", "protobuf", "tiktoken")
"""Packages that a tokenizer is read or converted by."""
MODULES = ("tokenizer_cache", "tokenizer_child", "checkpoint")
"""Our modules that decide what is kept, beside this one."""
FileState = tuple[str, int, int, int, int]
"""Name, inode, size, and times of the content and of the inode in ns."""
KEPT = 8
"""Tokenizers in the cache folder, of 5 to 20 MB each; those used longest ago are removed."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The tokens that a transformers tokenizer has names for; None where it has none."""

    eos_token: str | None
    eos_token_id: int | None
    pad_token_id: int | None
    unk_token: str | None
    unk_token_id: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> "SpecialTokens":
        """Those of a transformers tokenizer."""
        return cls(**{name: getattr(tokenizer, name) for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class StoredTokenizer:
    """A tokenizer of the tokenizers library with what transformers knows of it beside."""

    backend: "Tokenizer"
    special_tokens: SpecialTokens
    sha256: str
    """As `omniprep.template.identity.tokenizer_sha256`."""


def stored_tokenizer(model: str) -> StoredTokenizer | None:
    """The tokenizer of a checkpoint as transformers makes it: the remembered one, or made by a process of its own.

    None where this process must make it: transformers may have been changed here, or the tokenizers library cannot
    write that tokenizer, or it cannot be made at all, which transformers itself then says.
    """
    if "transformers" in sys.modules:
        return None
    return _read(model) or _make_apart(model)


def is_new(model: str) -> bool:
    """Whether a checkpoint that is here has no tokenizer in the cache, so that the next command has it made."""
    try:
        path = _path(model)
    except (OSError, ValueError):  # no folder, and no name that the Hub could have: who reads the checkpoint says so
        return False
    return path is not None and not path.exists()


def _read(model: str) -> StoredTokenizer | None:
    """The tokenizer that is kept for what the checkpoint is now."""
    if (path := _path(model)) is None:
        return None
    try:
        tokenizer = _loaded(path.read_bytes())
        os.utime(path)  # what is used is removed last
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, or damaged: it is made again, and written over
    return tokenizer


def _loaded(content: bytes) -> StoredTokenizer:
    """A tokenizer from the bytes of its file; ValueError, KeyError or TypeError where they are damaged."""
    from tokenizers import Tokenizer

    head, _, text = content.partition(b"\n")
    facts = json.loads(head)
    if hashlib.sha256(text).hexdigest() != facts["content_sha256"]:
        raise ValueError("not the content that was written")
    special_tokens = SpecialTokens(**facts["special_tokens"])
    return StoredTokenizer(Tokenizer.from_buffer(text), special_tokens, facts["tokenizer_sha256"])


def _make_apart(model: str) -> StoredTokenizer | None:
    """Have a process make the tokenizer, and keep it; a cache folder that cannot be written only costs time."""
    content = call_in_child("omniprep.families.tokenizer_child:write_tokenizer", {"model": model, "hides_torch": True})
    if content is None:
        return None
    tokenizer = _loaded(content)
    if tokenizer.backend.to_str().encode() != content.partition(b"\n")[2]:
        return None  # it does not read back as it was written
    if (path := _path(model)) is None:
        return tokenizer
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        io.write_atomic(str(path), content)
        by_use = sorted(path.parent.glob("*.tokenizer"), key=lambda kept: kept.stat().st_mtime_ns, reverse=True)
        for old in by_use[KEPT:]:
            old.unlink(missing_ok=True)
    except OSError:
        return tokenizer
    return tokenizer


def checkpoint_folder(model: str) -> Path | None:
    """The folder of a checkpoint's files; of a Hub name that of its snapshot in the cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def shaping_files(folder: Path | None) -> dict[str, str]:
    """Name → SHA-256 of the files that a checkpoint's processor and tokenizer are made of."""
    files = sorted(path for path in folder.iterdir() if path.suffix in SHAPING_SUFFIXES) if folder else []
    return {path.name: file_digest(path) for path in files if path.is_file()}


def file_state(path: Path) -> FileState:
    """What tells that a file changed. The time of the inode counts too: no program can set it back."""
    status = path.stat()
    return path.name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read again only once it was changed: the 11 MB of a tokenizer take 7 ms a build."""
    return _content_digest(str(path), file_state(path))


@lru_cache(maxsize=256)
def _content_digest(path: str, state: FileState) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _path(model: str) -> Path | None:
    """Where the tokenizer of a checkpoint is remembered; None where the checkpoint has no tokenizer.json here."""
    folder = checkpoint_folder(model)
    files = shaping_files(folder)
    if folder is None or "tokenizer.json" not in files:
        return None
    content = {
        "files": files,
        # A file that a snapshot lacks may only not have been downloaded, but of one commit that does not change.
        "commit": "" if folder == Path(model) else folder.name,
        "versions": {name: _version(name) for name in PACKAGES},
        "code": [file_digest(Path(__file__).with_name(f"{name}.py")) for name in MODULES],
    }
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return cache_folder("tokenizers") / f"{name}.tokenizer"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
