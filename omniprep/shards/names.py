"""Names of the files of a dataset: what a manifest may name, what a push may read and a pull may write.

A dataset may come from anyone, and its manifest names its shards. Since a shard's path is accepted only in the form
that a build gives it, nothing outside the dataset's folder is reached.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from omniprep.errors import OmniprepError

REFERENCES = "reference_logps.parquet"
"""What `omniprep score` writes (references.py)."""
DATASET_FILES = ("index.parquet", "rows.parquet", "rejected.jsonl", REFERENCES, "report.html", "manifest.json")
"""The files beside the shards, in the order in which they are written and sent: the manifest last."""
# A number of five digits or more, then optionally a word that identifies the run that wrote the shard.
_SHARD = re.compile(r"shards/[0-9]{5,12}(?:-[0-9A-Za-z]{1,64})?\.arrow", re.ASCII)


def table_name(name: str, tag: str) -> str:
    """Name of a table, such as rows.parquet, while a change of the dataset is under way (rows-1f3a9c40.parquet)."""
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{tag}{dot}{suffix}" if tag else name


def is_shard_path(path: str) -> bool:
    """Whether a path is one that a build gives a shard, relative to the dataset: shards/00000.arrow."""
    return _SHARD.fullmatch(path) is not None


def is_dataset_file(path: str) -> bool:
    """Whether a path, relative to the dataset, is of a shard or one of `DATASET_FILES`."""
    return path in DATASET_FILES or is_shard_path(path)


def refuse_linked_folders(folder: Path, names: Iterable[str]) -> None:
    """Refuse a local dataset in which one of these folders (not itself) is a link.

    Writing or removing files below it would change files outside the dataset.
    """
    for name in names:
        if (folder / name).is_symlink():
            raise OmniprepError(
                f"{folder / name}: a symbolic link; omniprep writes to folders of its own, so remove it"
            )
