"""Push a dataset or a model to the Hub, and pull a dataset: commits in batches that resume, since what is there already
is not sent.

A file is there when the Hub's hash of it is ours: SHA-256 for large files (for shards it stands in the manifest, so
they are not read for it), git's SHA-1 for small ones. So a push that was stopped goes on, and a second push sends what
changed. Shards go first, manifest.json last: whoever reads in between sees the old dataset or the new one.
"""

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from omniprep import io
from omniprep.data.dataset import PackedDataset
from omniprep.errors import OmniprepError, UsageError
from omniprep.hub.card import card
from omniprep.hub.model import is_checkpoint, model_card, model_files
from omniprep.hub.preview import preview
from omniprep.look.describe import load_vocabulary
from omniprep.progress import Reporter
from omniprep.report.page import collect

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Part", "Pushed", "pull", "push"]

BATCH_FILES, BATCH_BYTES = 50, 5 << 30
ATTEMPTS = 8
FIRST_WAIT = 1.0
RETRIED = {408, 409, 412, 425, 429, 500, 502, 503, 504}
"""409 and 412: another commit came between ("A commit has happened since")."""
LAST = ("index.parquet", "rows.parquet", "rejected.jsonl", "report.html", "README.md", "manifest.json")
MODEL_LAST = ("model.safetensors.index.json", "README.md", "config.json", "adapter_config.json")
OURS = {
    "dataset": re.compile(r"(shards/.*\.arrow|preview/.*|plots/.*\.png)"),
    "model": re.compile(r"(model|adapter_model)[^/]*\.safetensors(\.index\.json)?"),
}
"""What a push may remove where the dataset or model no longer has it."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """A file to push: a local path, or its content."""

    name: str
    content: Path | bytes
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did, or would do."""

    url: str
    sent: tuple[Part, ...]
    same: int
    removed: tuple[str, ...]


def push(
    uri: str, repo_id: str, progress: Reporter, *, revision: str | None = None, private: bool = True,
    dry_run: bool = False, model: str | None = None, wait: float = FIRST_WAIT,
) -> Pushed:  # fmt: skip
    """Upload a finished dataset to the Hub, with its card and a preview; or a checkpoint, with its card.

    Args:
        uri: A local folder.
        repo_id: ORG/NAME.
        progress: Told of every batch.
        revision: Branch to push to; made where absent.
        private: Whether a new repository is private; one that exists stays as it is.
        dry_run: Only say what would be sent.
        model: Checkpoint whose tokenizer reads a dataset's preview (default: the build's).
        wait: Seconds before the first retry; doubled each time.

    Raises:
        OmniprepError: The Hub refuses, or cannot be reached after the retries.
    """
    if not io.is_local(uri):
        raise UsageError(f"{uri}: push takes a local folder; copy the dataset first")
    root = Path(io.local_path(uri))
    kind = "model" if is_checkpoint(root) else "dataset"
    parts = model_parts(root, repo_id) if kind == "model" else parts_of(uri, repo_id, model)
    api, branch = _api(), revision or "main"
    target = _Target(api, repo_id, kind, branch)
    with _told(repo_id):
        if not dry_run:
            _retry(lambda: api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True), progress, wait)
            if revision:
                _retry(
                    lambda: api.create_branch(repo_id, branch=revision, repo_type=kind, exist_ok=True), progress, wait
                )
        there = _retry(target.files, progress, wait)
        sent = tuple(part for part in parts if not _same(part, there.get(part.name)))
        names = {part.name for part in parts}
        removed = tuple(sorted(name for name in there if OURS[kind].fullmatch(name) and name not in names))
        url = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        done = Pushed(url, sent, len(parts) - len(sent), removed)
        if not dry_run and (sent or removed):
            _commit(target, done, progress, wait)
    return done


@dataclass(frozen=True, slots=True)
class _Target:
    """A branch of a repository."""

    api: "HfApi"
    repo_id: str
    kind: str
    branch: str

    def files(self) -> dict[str, Any]:
        """What is there, by name."""
        from huggingface_hub.hf_api import RepoFile

        try:
            tree = list(
                self.api.list_repo_tree(self.repo_id, recursive=True, revision=self.branch, repo_type=self.kind)
            )
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return {}
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def model_parts(folder: Path, repo_id: str) -> list[Part]:
    """All files of a pushed checkpoint, in the order in which they are sent: what names the weights comes last."""
    order = {name: place for place, name in enumerate(MODEL_LAST)}
    parts = [_of_bytes("README.md", model_card(folder, repo_id).encode())]
    for path in model_files(folder):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        parts.append(Part(path.name, path, path.stat().st_size, digest))
    return sorted(parts, key=lambda part: order.get(part.name, -1))


def parts_of(uri: str, repo_id: str, model: str | None = None) -> list[Part]:
    """All files of the pushed dataset, in the order in which they are sent."""
    from omniprep.report.plots import PLOTS, png

    dataset = PackedDataset(uri)
    vocabulary = load_vocabulary(model or dataset.manifest["model"])
    data = collect(dataset, vocabulary, shown=0)
    root = Path(io.local_path(uri))
    shards = [Part(s["path"], root / s["path"], s["bytes"], s["sha256"]) for s in dataset.manifest["shards"]]
    pictures = {name: image for name in PLOTS if name != "seconds" and (image := png(name, data))}
    made = {f"plots/{name}.png": image for name, image in pictures.items()}
    if len(dataset):
        made |= {f"preview/train.{suffix}": file for suffix, file in preview(dataset, vocabulary).items()}
    made["README.md"] = card(repo_id, data, pictures).encode()
    parts = [_of_bytes(name, content) for name, content in made.items()]
    parts += [_of_bytes(name, (root / name).read_bytes()) for name in LAST if (root / name).is_file()]
    order = {name: place for place, name in enumerate(LAST)}
    return shards + sorted(parts, key=lambda part: order.get(part.name, -1))


def pull(repo_id: str, out: str, *, revision: str | None = None) -> str:
    """Download a pushed dataset into a folder; what is there already is not fetched again.

    Raises:
        OmniprepError: There is no such dataset, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    patterns = ["manifest.json", "index.parquet", "rows.parquet", "rejected.jsonl", "report.html", "shards/*.arrow"]
    with _told(repo_id):
        snapshot_download(repo_id, repo_type="dataset", revision=revision, local_dir=out, allow_patterns=patterns)
    PackedDataset(out)
    return out


def _of_bytes(name: str, content: bytes) -> Part:
    return Part(name, content, len(content), hashlib.sha256(content).hexdigest())


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(library_name="omniprep")


def _same(part: Part, there: Any) -> bool:
    if there is None or there.size != part.size:
        return False
    if there.lfs is not None:
        return bool(there.lfs.sha256 == part.sha256)
    content = part.content if isinstance(part.content, bytes) else part.content.read_bytes()
    return bool(there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())


def _batches(parts: tuple[Part, ...]) -> Iterator[list[Part]]:
    batch: list[Part] = []
    for part in parts:
        full = len(batch) >= BATCH_FILES or sum(p.size for p in batch) + part.size > BATCH_BYTES
        last = {*LAST, *MODEL_LAST}
        if batch and (full or (part.name in last and batch[-1].name not in last)):
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch


def _commit(target: _Target, what: Pushed, progress: Reporter, wait: float) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    batches = list(_batches(what.sent)) or [[]]
    progress.start("push", sum(part.size for part in what.sent), "bytes")
    for number, batch in enumerate(batches, 1):

        def send(batch: list[Part] = batch, number: int = number) -> None:
            add: list[Any] = [CommitOperationAdd(part.name, part.content) for part in batch]
            if number == len(batches):
                add += [CommitOperationDelete(name) for name in what.removed]
            message = f"omniprep push ({number} of {len(batches)})"
            target.api.create_commit(
                target.repo_id, add, commit_message=message, repo_type=target.kind, revision=target.branch
            )

        _retry(send, progress, wait)
        progress.advance("push", sum(part.size for part in batch))
    progress.finish("push")


def _retry(call: Callable[[], T], progress: Reporter, wait: float) -> T:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except (HfHubHTTPError, httpx.TransportError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
            passing = status in RETRIED or "commit has happened since" in str(error) or status == 0
            if not passing or attempt == ATTEMPTS:
                raise
            pause = wait * 2 ** (attempt - 1) * (1 + random.random() / 4)
            after = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
            pause = max(pause, float(after)) if after.isdigit() else pause
            progress.message(f"the Hub says {status or type(error).__name__}; again in {pause:.0f} s")
            time.sleep(min(pause, 300))
    raise AssertionError("unreachable")


@contextmanager
def _told(repo_id: str) -> Iterator[None]:
    """Turn the Hub's refusals into one line."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = {401: "log in with `hf auth login`, or set HF_TOKEN", 403: "your token may not write there"}
        advice |= {404: "there is no such dataset or model, or your token may not see it"}
        text = advice.get(status, " ".join(str(error).split())[:300])
        raise OmniprepError(f"{repo_id}: the Hub says {status}: {text}") from error
    except (HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError) as error:
        raise OmniprepError(f"{repo_id}: {' '.join(str(error).split())[:300]}") from error
