"""--split-by rows: a build of two datasets, DIR and DIR-eval, each of which is whole by itself.

Both are built from the same inputs by the same code, one after the other, and each plans only its own rows
(rows/parts.py). So whatever holds for a build holds for both: lease, receipts, kills, bytes. The price is that inputs
are read and parsed twice. The one for evaluation comes first: it is the smaller one, and what is wrong with options or
inputs shows there.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from omniprep import io
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, UsageError

if TYPE_CHECKING:
    from omniprep.shards.dataset import StoredDataset  # imports torch, which a plan does not need

_SUFFIX = "-eval"


def eval_folder(out: str) -> str:
    """The dataset for evaluation beside one that is trained on."""
    folder = out.rstrip("/")
    if not io.is_local(out) and "/" not in folder.partition(io.REMOTE_MARK)[2]:
        raise UsageError(f"{out}: --split-by needs a folder in the bucket, beside which FOLDER{_SUFFIX} can lie")
    return folder + _SUFFIX


def parts_of(config: BuildConfig) -> list[BuildConfig]:
    """The builds of a command, in the order of their running; one where rows are not split."""
    if not config.eval_fraction or config.part != "all":
        return [config]
    return [
        replace(config, part="eval", out=eval_folder(config.out) if config.out else ""),
        replace(config, part="train"),
    ]


def eval_dataset(dataset: "StoredDataset") -> "StoredDataset | None":
    """The dataset for evaluation that an append has to grow too; None where rows are not split.

    Raises:
        UsageError: The dataset is itself the one for evaluation.
        OmniprepError: There is none, or one of another split.
    """
    own = dataset.record.config
    if own.part == "all":
        return None
    if own.part == "eval":
        raise UsageError(
            f"{dataset.uri}: holds the rows for evaluation of a build with --split-by rows; append to the dataset that "
            "they were split from, and both grow"
        )
    from omniprep.shards.dataset import StoredDataset

    uri = eval_folder(dataset.uri)
    try:
        other = StoredDataset(uri)
    except OmniprepError as error:
        raise OmniprepError(
            f"{dataset.uri}: was built with --split-by rows, and an append grows {uri} too, which cannot be opened "
            f"({error}); of a repacked dataset, repack the one for evaluation into {uri} first, with the same options"
        ) from error
    if replace(other.record.config, part="train") != own:
        raise OmniprepError(f"{uri}: was built with other options than {dataset.uri}, so rows might be in both or none")
    return other
