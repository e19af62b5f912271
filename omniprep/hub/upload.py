"""Push a dataset or a model to the Hub, in batches of commits that leave out what the Hub has already.

A file is not sent if the Hub lists the same hash of it: SHA-256 for large files (that of shards is in the manifest, so
they are not read for it), git's SHA-1 for small ones. So a push that was stopped resumes, and a second push sends what
changed. Shards go first, manifest.json last: whoever reads in between sees the old dataset or the new one.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from omniprep import io
from omniprep.errors import DamagedDataError, OmniprepError, UsageError
from omniprep.hub.card import card
from omniprep.hub.client import FIRST_PAUSE, hub_errors_as_one_line, refuse_offline, retry, within
from omniprep.hub.files import LocalFile, is_same
from omniprep.hub.model import is_checkpoint, model_card, model_files
from omniprep.hub.preview import preview
from omniprep.inspect.vocabulary import vocabulary_of
from omniprep.io.hub_faults import fault_of
from omniprep.printable import counted
from omniprep.progress import Reporter
from omniprep.report.page import collect
from omniprep.shards.dataset import StoredDataset
from omniprep.shards.manifest import read_manifest
from omniprep.shards.names import DATASET_FILES, is_shard_path

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

BATCH_FILES, BATCH_BYTES = 50, 5 << 30
GLANCE_SECONDS = 5.0
"""How long a dry run waits for the Hub before it lists all files instead."""
LAST = (*DATASET_FILES[:-1], "README.md", DATASET_FILES[-1])
MODEL_LAST = ("model.safetensors.index.json", "README.md", "config.json", "adapter_config.json")
REMOVABLE = {
    "dataset": re.compile(r"(shards/.*\.arrow|preview/.*|plots/.*\.png)"),
    "model": re.compile(r"(model|adapter_model)[^/]*\.safetensors(\.index\.json)?"),
}
"""Files that a push removes from the Hub when the dataset or model no longer has them."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file to push: one of the folder, or one made for the push."""

    name: str
    content: LocalFile | bytes
    size: int
    sha256: str

    def is_on_hub(self, entry: "RepoFile") -> bool:
        """Whether the Hub has it with this content."""
        content = self.content
        read = content.read if isinstance(content, LocalFile) else lambda: content
        return is_same(entry, self.size, lambda: self.sha256, read)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did, or would do."""

    url: str
    sent: tuple[Part, ...]
    same: int
    """Files that the Hub had already."""
    removed: tuple[str, ...]
    remark: str = ""
    """Of a dry run: why nothing was compared with the Hub; empty if it was."""


def push(
    uri: str, repo_id: str, progress: Reporter, *, revision: str | None = None, private: bool = True,
    dry_run: bool = False, model: str | None = None, check_pixels: Literal["first", "always", "never"] = "first",
    pause: float = FIRST_PAUSE,
) -> Pushed:  # fmt: skip
    """Upload a finished dataset to the Hub, with its card and a preview; or a checkpoint, with its card.

    Args:
        uri: A local folder.
        repo_id: ORG/NAME.
        progress: Shows bytes sent and every retry.
        revision: Branch to push to; created if absent.
        private: Whether a new repository is private; one that exists stays as it is.
        dry_run: Only say what would be sent. Asks the Hub once what it has; without an answer lists all files.
        model: Checkpoint whose tokenizer reads a dataset's preview (default: the build's).
        check_pixels: As `omniprep.PackedDataset` takes it, for the preview.
        pause: Seconds before the first retry of a request; doubled each time.

    Raises:
        OmniprepError: The Hub refuses, or cannot be reached after the retries; or the folder holds links.
    """
    from huggingface_hub import HfApi

    if not io.is_local(uri):
        raise UsageError(f"{uri}: push takes a local folder; copy the dataset first")
    with hub_errors_as_one_line(repo_id):
        _check_repo_id(repo_id)
    root = Path(io.local_path(uri))
    kind = "model" if is_checkpoint(root) else "dataset"
    if kind == "dataset":
        read_manifest(uri)  # before the network is asked: there may be nothing to send
    if not dry_run:
        refuse_offline("push", ", or list what would be sent with --dry-run")
    parts = model_parts(root, repo_id) if kind == "model" else parts_of(uri, repo_id, progress, model, check_pixels)
    api = HfApi(library_name="omniprep")
    target = _Target(api, repo_id, kind, revision or "main")
    remark = ""
    with hub_errors_as_one_line(repo_id):
        if dry_run:
            on_hub, remark = _list_once(target)
        else:
            retry(
                lambda: api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True),
                progress, pause, connected=False,
            )  # fmt: skip
            if revision:
                retry(
                    lambda: api.create_branch(repo_id, branch=revision, repo_type=kind, exist_ok=True), progress, pause
                )
            on_hub = retry(target.files, progress, pause)
        sent = tuple(part for part in parts if not (part.name in on_hub and part.is_on_hub(on_hub[part.name])))
        names = {part.name for part in parts}
        removed = tuple(sorted(name for name in on_hub if REMOVABLE[kind].fullmatch(name) and name not in names))
        url = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        result = Pushed(url, sent, len(parts) - len(sent), removed, remark)
        if not dry_run and (sent or removed):
            _commit(target, result, progress, pause)
    return result


def _check_repo_id(repo_id: str) -> None:
    """Refuse a name that the Hub would refuse (HFValidationError), before anything is prepared."""
    from huggingface_hub import hf_hub_url

    if repo_id.count("/") != 1:
        raise UsageError(f"{repo_id!r}: write the repository as ORG/NAME")
    hf_hub_url(repo_id, "README.md")  # checks the name without a request


def _list_once(target: "_Target") -> tuple[dict[str, "RepoFile"], str]:
    """What the Hub has, for a dry run, and a remark if the Hub could not be asked.

    A wrong token or a repository that may not be seen is an error here too: the push would meet it.
    """
    nothing_compared = "all files are listed, without those that the Hub may have already"
    if constants.HF_HUB_OFFLINE:
        return {}, f"HF_HUB_OFFLINE is set: {nothing_compared}"
    try:
        # A single request without the retries that huggingface_hub makes of the next one.
        within(GLANCE_SECONDS, target.ask)
        return target.files(), ""
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return {}, ""
    except Exception as error:
        fault = fault_of(error)
        if fault is None or not fault.passing:
            raise
        reason = f"{target.api.endpoint} does not answer" if fault.status is None else f"the Hub says {fault.status}"
        return {}, f"{reason}: {nothing_compared}"


@dataclass(frozen=True, slots=True)
class _Target:
    """A branch of a repository."""

    api: "HfApi"
    repo_id: str
    kind: str
    branch: str

    def ask(self) -> None:
        """One short request, which fails if the repository is absent or may not be seen."""
        self.api.repo_info(self.repo_id, repo_type=self.kind, revision=self.branch, timeout=GLANCE_SECONDS - 1)

    def files(self) -> dict[str, "RepoFile"]:
        """The files of the branch, by name."""
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
    order = {name: position for position, name in enumerate(MODEL_LAST)}
    parts = [_of_bytes("README.md", model_card(folder, repo_id).encode())]
    for name in model_files(folder):
        file = LocalFile(folder, name)
        parts.append(Part(name, file, file.size(), file.sha256()))
    return sorted(parts, key=lambda part: order.get(part.name, -1))


def parts_of(
    uri: str, repo_id: str, progress: Reporter, model: str | None = None,
    check_pixels: Literal["first", "always", "never"] = "first",
) -> list[Part]:  # fmt: skip
    """All files of the pushed dataset, in the order in which they are sent.

    Raises:
        DamagedDataError: A shard has another size than the manifest says, or a path that no build gives a shard.
    """
    dataset = StoredDataset(uri, check_pixels=check_pixels)
    if dataset.record.tables:
        raise OmniprepError(f"{uri}: an append or a removal was killed at its end; run it again, and then push")
    if removed := dataset.record.counted(uri).rows.removed:
        progress.message(
            f"{uri}: {counted(removed, 'row was', 'rows were')} removed; the head of {repo_id} will hold none, but "
            "its history keeps what was pushed before (HfApi().super_squash_history drops it)"
        )
    vocabulary = vocabulary_of(dataset, model)
    data = collect(dataset, vocabulary, shown=0)
    root = Path(io.local_path(uri))
    shards = [_shard(root, entry) for entry in dataset.manifest["shards"]]
    pictures = _plots(data, progress)
    made = {f"plots/{name}.png": image for name, image in pictures.items()}
    if len(dataset):
        made |= {f"preview/train.{suffix}": file for suffix, file in preview(dataset, vocabulary).items()}
    made["README.md"] = card(repo_id, data, pictures).encode()
    made |= {name: LocalFile(root, name).read() for name in DATASET_FILES if os.path.lexists(root / name)}
    order = {name: position for position, name in enumerate(LAST)}
    return shards + sorted(
        (_of_bytes(name, content) for name, content in made.items()), key=lambda part: order.get(part.name, -1)
    )


def _shard(root: Path, entry: dict[str, Any]) -> Part:
    path = entry["path"]
    if not is_shard_path(path):
        raise DamagedDataError(f"{root}: manifest.json names {path!r} as a shard; a push sends no such file")
    file = LocalFile(root, path)
    if (size := file.size()) != entry["bytes"]:
        raise DamagedDataError(
            f"{root / path}: {size:,} bytes, written as {entry['bytes']:,}; omniprep verify {root} says more"
        )
    return Part(path, file, size, entry["sha256"])


def _plots(data: dict[str, Any], progress: Reporter) -> dict[str, bytes]:
    """The card's plots by name; none where matplotlib is not installed."""
    try:
        from omniprep.report.plots import PLOTS, png
    except ModuleNotFoundError as error:
        progress.message(f"the card gets no plots: {error.name} is not installed (pip install 'omniprep[report]')")
        return {}
    return {name: image for name in PLOTS if name != "seconds" and (image := png(name, data))}


def _of_bytes(name: str, content: bytes) -> Part:
    return Part(name, content, len(content), hashlib.sha256(content).hexdigest())


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


def _commit(target: _Target, change: Pushed, progress: Reporter, pause: float) -> None:
    batches = list(_batches(change.sent)) or [[]]
    progress.start("push", sum(part.size for part in change.sent), "bytes")
    for number, batch in enumerate(batches, 1):
        removed = change.removed if number == len(batches) else ()  # last: until then readers see the old manifest
        message = f"omniprep push ({number} of {len(batches)})"
        tries = 0

        def send(batch: list[Part] = batch, removed: tuple[str, ...] = removed, message: str = message) -> None:
            nonlocal tries
            tries += 1
            if tries > 1 and removed:
                # The last try may have been committed though its answer was lost, and the Hub refuses to remove twice.
                on_hub = target.files()
                removed = tuple(name for name in removed if name in on_hub)
            _create_commit(target, batch, removed, message)

        retry(send, progress, pause)
        progress.advance("push", sum(part.size for part in batch))
    progress.finish("push")


def _create_commit(target: _Target, batch: list[Part], removed: tuple[str, ...], message: str) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    with ExitStack() as stack:
        operations: list[Any] = []
        for part in batch:
            content = part.content
            opened = content if isinstance(content, bytes) else stack.enter_context(content.pinned())
            operations.append(CommitOperationAdd(part.name, opened))
        operations += [CommitOperationDelete(name) for name in removed]
        target.api.create_commit(
            target.repo_id, operations, commit_message=message, repo_type=target.kind, revision=target.branch
        )
