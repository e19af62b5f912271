"""How the rows of a run were encoded, kept with the run: `infer` needs the dataset no more, wherever it is called.

RUN/rows_config.json, the same in every checkpoint of the run and in RUN/merged, holds the options of the build that
shape a row (system prompt, pixel limits, frames a second, loss strategy, family …) and nothing else of it. A run, like
a dataset, may come from a stranger: options that run code, reach the network or open folders are not part of it, are
refused where a file has them, and count only when they stand on the command line. What is kept of them is that they
were given, so that `infer` can ask for them.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniprep import io
from omniprep.cli.options import check_values
from omniprep.config import BuildConfig
from omniprep.errors import DamagedDataError, OmniprepError, UsageError
from omniprep.families.loading import checkpoint_file

__all__ = ["FACTS", "RowFacts", "facts_of_manifest", "one_of", "read_facts", "write_facts"]

FACTS = "rows_config.json"
FORMAT = 1
TRUSTED = ("plugin", "trust_remote_code", "allow_http", "media_root")
"""Options that only a command line may give."""
NOT_OF_ROWS = frozenset(
    {
        "inputs", "split", "model", "out", "workers", "ray_address", "seed", "overwrite", "on_error", "max_error_rate",
        "max_line_bytes", "decode_timeout", "decode_memory", "shard_size", "pixel_codec", "max_bin_patches",
        "max_bin_audio_frames",
    }
)  # fmt: skip
"""Options that a row's tokens and media do not depend on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFacts:
    """How the rows of a dataset were encoded.

    Attributes:
        dataset: Its URI; of a local one only the name of its folder, since runs are shared.
        options: Options of `BuildConfig` that shape rows, none of `TRUSTED`.
        given: Which of `TRUSTED` the build had, by name.
    """

    dataset: str
    options: Mapping[str, Any]
    given: tuple[str, ...] = ()


def facts_of_manifest(uri: str, manifest: Mapping[str, Any]) -> RowFacts:
    """The facts of a dataset.

    Args:
        uri: Its folder.
        manifest: Content of its manifest.json, from anyone.

    Raises:
        OmniprepError: It holds no options of a build, or values that they cannot have.
    """
    where, config = io.join(uri, "manifest.json"), manifest.get("config")
    if not isinstance(config, dict):
        raise DamagedDataError(f"{where}: holds no options of a build ('config')")
    # A later version of omniprep may have written options that this one does not know.
    known = {field.name for field in dataclasses.fields(BuildConfig)} - NOT_OF_ROWS - set(TRUSTED)
    options = {name: value for name, value in config.items() if name in known}
    if options.get("family") is None and isinstance(manifest.get("family"), str):
        options["family"] = manifest["family"]
    given = tuple(name for name in TRUSTED if config.get(name))
    name = Path(io.local_path(uri)).resolve().name if io.is_local(uri) else uri
    return RowFacts(dataset=name, options=checked_options(where, options), given=given)


def write_facts(folder: Path, facts: Sequence[RowFacts]) -> None:
    """Write `FACTS` into the folder of a run, a checkpoint or a merged model."""
    content = {"format": FORMAT, "datasets": [dataclasses.asdict(entry) for entry in facts]}
    (folder / FACTS).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_facts(model: str) -> list[RowFacts] | None:
    """What a model says about its rows; None where it is no run of `omniprep train`.

    Args:
        model: Folder or Hub name.

    Raises:
        OmniprepError: It is a run that keeps nothing about its rows, or its file is damaged.
    """
    folder, path = Path(model), Path(model) / FACTS
    if not folder.is_dir():
        content = checkpoint_file(model, FACTS)
        return None if content is None else facts_of_content(f"{FACTS} of {model}", content)
    if not path.is_file():
        runs = [f for f in (folder, folder.parent) if (f / "train_config.yaml").is_file()]
        if not runs or (runs[0] != folder and not (folder.name == "merged" or folder.name.startswith("checkpoint-"))):
            return None
        raise OmniprepError(
            f"--model {folder}: a run that does not keep how its rows were encoded ({FACTS} is missing): give the "
            "dataset that it was trained on by --like DATASET"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DamagedDataError(f"{path}: not a JSON file ({' '.join(str(error).split())[:200]})") from error
    return facts_of_content(str(path), content)


def facts_of_content(where: str, content: Any) -> list[RowFacts]:
    """The datasets of a `FACTS` file, from anyone; at least one.

    Raises:
        OmniprepError: Not of this form, or it holds options that only a command line may give.
    """
    entries = content.get("datasets") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(entries, list) or not entries:
        raise DamagedDataError(f"{where}: not of format {FORMAT}; give the dataset by --like DATASET")
    return [entry_of(where, entry) for entry in entries]


def entry_of(where: str, entry: Any) -> RowFacts:
    """One dataset of the file, from anyone.

    Raises:
        OmniprepError: Not of this form, or it holds options that only a command line may give.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("options"), dict):
        raise DamagedDataError(f"{where}: a dataset without options")
    options, given = entry["options"], entry.get("given")
    if forbidden := sorted(set(options) & (set(TRUSTED) | NOT_OF_ROWS)):
        raise OmniprepError(
            f"{where}: holds {', '.join(map(repr, forbidden))}, which no run may set: options that run code, reach the "
            "network or open folders are given on the command line"
        )
    if not isinstance(entry.get("dataset"), str) or not isinstance(given, list):
        raise DamagedDataError(f"{where}: a dataset without its name")
    kept = tuple(name for name in TRUSTED if name in given)
    return RowFacts(dataset=entry["dataset"], options=checked_options(where, options), given=kept)


def checked_options(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a build takes, of the right types.

    Raises:
        OmniprepError: Of the wrong type, unknown, or with values that no build can use.
    """
    try:
        values = check_values(BuildConfig, where, {k: v for k, v in options.items() if v is not None})
        BuildConfig(**values)
    except UsageError as error:  # of a file and not of the command line
        text = str(error)
        raise DamagedDataError(text if text.startswith(where) else f"{where}: {text}") from error
    return values


def one_of(facts: Sequence[RowFacts]) -> RowFacts:
    """The facts by which rows are encoded, where a run had several datasets.

    Raises:
        OmniprepError: They were built with different options, so that a row has no one meaning.
    """
    first = facts[0]
    for other in facts[1:]:
        # Lengths may differ: `repack` changes them without a change to any row.
        names = sorted((first.options.keys() | other.options.keys()) - {"bin_length", "max_length"})
        differing = [name for name in names if first.options.get(name) != other.options.get(name)]
        if differing:
            raise OmniprepError(
                f"the run was trained on datasets that were built with other options ({', '.join(differing)}): "
                f"choose one by --like: {', '.join(entry.dataset for entry in facts)}"
            )
    return first
