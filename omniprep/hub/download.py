"""Pull a dataset from the Hub: the files that the format knows and no others, manifest.json last.

Files that the folder has already are compared by the Hub's hashes and not fetched again. A file that differs is removed
before its first byte is fetched, since huggingface_hub returns an old file when a connection fails.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from omniprep.errors import OmniprepError
from omniprep.hub.client import FIRST_PAUSE, hub_errors_as_one_line, refuse_offline, retry
from omniprep.hub.files import LocalFile, is_same
from omniprep.progress import Reporter
from omniprep.shards.dataset import StoredDataset
from omniprep.shards.names import is_dataset_file, refuse_linked_folders

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

WORKERS = 8
"""Files that are fetched at once; huggingface_hub's own default."""


def pull(repo_id: str, out: str, progress: Reporter, *, revision: str | None = None, pause: float = FIRST_PAUSE) -> str:
    """Download a pushed dataset into a folder, which is returned; `revision` is a branch, tag or commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    refuse_offline("pull")
    api = HfApi(library_name="omniprep")
    folder = Path(out)
    with hub_errors_as_one_line(repo_id):
        # One commit for all files: a push that comes between must not mix two datasets.
        info = retry(lambda: api.repo_info(repo_id, repo_type="dataset", revision=revision), progress, pause,
                     connected=False)  # fmt: skip
        commit = info.sha
        tree = retry(
            lambda: list(api.list_repo_tree(repo_id, repo_type="dataset", revision=commit, recursive=True)),
            progress, pause,
        )  # fmt: skip
        files = [entry for entry in tree if isinstance(entry, RepoFile) and is_dataset_file(entry.path)]
        names = {entry.path for entry in files}
        refuse_linked_folders(folder, sorted({str(PurePosixPath(name).parent) for name in names} - {"."}))
        if missing := sorted({"manifest.json", "index.parquet"} - names):
            raise OmniprepError(f"{repo_id}: holds no {missing[0]}, so it is no dataset that omniprep pushed")
        wanted = [entry for entry in files if not _have(folder, entry)]
        if wanted:
            # Readers must not see the old manifest beside new shards.
            (folder / "manifest.json").unlink(missing_ok=True)
            manifest = next(entry for entry in files if entry.path == "manifest.json")
            wanted = [*(entry for entry in wanted if entry is not manifest), manifest]
        progress.start("pull", sum(entry.size for entry in wanted), "bytes")

        def fetch(entry: "RepoFile") -> None:
            (folder / entry.path).unlink(missing_ok=True)

            def request() -> str:
                return api.hf_hub_download(repo_id, entry.path, repo_type="dataset", revision=commit, local_dir=folder)

            retry(request, progress, pause)
            if not _have(folder, entry):
                raise OmniprepError(f"{folder / entry.path}: not what the Hub has; pull again")
            progress.advance("pull", entry.size)

        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(fetch, wanted[:-1]))
        for entry in wanted[-1:]:
            fetch(entry)
        progress.finish("pull")
    dataset = StoredDataset(out)
    if absent := [shard["path"] for shard in dataset.manifest["shards"] if shard["path"] not in names]:
        raise OmniprepError(f"{repo_id}: lacks {absent[0]}, which its manifest names; push it again")
    return out


def _have(folder: Path, entry: "RepoFile") -> bool:
    """Whether a local file has the content that the Hub lists; a link never counts as one."""
    path, file = folder / entry.path, LocalFile(folder, entry.path)
    if path.is_symlink() or not path.is_file():
        return False
    return is_same(entry, file.size(), file.sha256, file.read)
