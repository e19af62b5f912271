"""Tokenizers as transformers makes them, remembered so that the next command need import neither it nor torch.

transformers builds a fast tokenizer from several files of a checkpoint by rules that change with its version, and its
import takes longer than planning a small input. What it made is therefore kept in the user's cache folder
(`$XDG_CACHE_HOME/omniprep/tokenizers`, else below `~/.cache`) as the tokenizers library writes it, under a hash of all
that it was made of: the checkpoint's files (of a Hub name also the commit) and the versions that shape bytes. Only what
reads back exactly as it was written is kept. Not kept and not used: tokenizers of a checkpoint's own code, and any once
transformers was imported, since a plug-in may have changed its classes; its import is paid by then anyway.
"""

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniprep import io
from omniprep.template.identity import tokenizer_sha256

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHAPING_SUFFIXES = {".json", ".jinja", ".py", ".model", ".txt"}
"""Of the files of a checkpoint that its processor and tokenizer are made of; weights are not."""
PACKAGES = ("omniprep", "transformers", "tokenizers", "huggingface_hub", "sentencepiece", "protobuf", "tiktoken")
"""Packages that a tokenizer is read or converted by."""
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


def read_tokenizer(model: str) -> StoredTokenizer | None:
    """The tokenizer of a checkpoint, if it was remembered and is still what transformers would make."""
    if "transformers" in sys.modules or (path := _path(model)) is None:
        return None
    from tokenizers import Tokenizer

    try:
        head, _, text = path.read_bytes().partition(b"\n")
        facts = json.loads(head)
        if hashlib.sha256(text).hexdigest() != facts["content_sha256"]:
            return None  # damaged: transformers makes it again, and it is written over
        os.utime(path)  # what is used is removed last
        special_tokens = SpecialTokens(**facts["special_tokens"])
        return StoredTokenizer(Tokenizer.from_buffer(text), special_tokens, facts["tokenizer_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_tokenizer(model: str, tokenizer: Any) -> None:
    """Remember a tokenizer that transformers made; a cache folder that cannot be written only costs time."""
    if (path := _path(model)) is None:
        return
    backend = tokenizer.backend_tokenizer
    try:
        written = backend.to_str()
        if type(backend).from_str(written).to_str() != written:
            return
    except Exception:  # tokenizers raises nothing narrower for parts in Python, which it cannot write
        return
    text = written.encode()
    facts = {
        "content_sha256": hashlib.sha256(text).hexdigest(),
        "special_tokens": asdict(SpecialTokens.of(tokenizer)),
        "tokenizer_sha256": tokenizer_sha256(backend),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        io.write_atomic(str(path), json.dumps(facts).encode() + b"\n" + text)
        by_use = sorted(path.parent.glob("*.tokenizer"), key=lambda kept: kept.stat().st_mtime_ns, reverse=True)
        for old in by_use[KEPT:]:
            old.unlink(missing_ok=True)
    except OSError:
        return


def cache_folder(name: str) -> Path:
    """A folder of omniprep's in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "omniprep" / name


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
        "code": [file_digest(Path(__file__)), file_digest(Path(__file__).with_name("checkpoint.py"))],
    }
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return cache_folder("tokenizers") / f"{name}.tokenizer"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
