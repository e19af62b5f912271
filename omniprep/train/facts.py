"""How the rows of a run were encoded, kept with the run, so that `infer` does not need the dataset.

RUN/rows_config.json, the same in every checkpoint of the run and in RUN/merged, holds for each dataset the options that
shape rows (`RowOptions`: system prompt, pixel limits, frames a second, loss strategy, family …). A run, like a dataset,
may come from a stranger: that record has no field for what runs code, reaches the network or opens folders, which is
taken from the command line alone. A file that holds such an option all the same is refused; which of these flags a
build was given is kept by name, so that `infer` can ask for them.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniprep import io
from omniprep.config import BuildConfig, RowOptions, row_options_as_json
from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.families.checkpoint import checkpoint_file
from omniprep.shards.manifest import TRUST_FLAGS, Manifest
from omniprep.shards.typed import parse_json, typed_record

FACTS = "rows_config.json"
FORMAT = 1
FORBIDDEN = {f.name for f in dataclasses.fields(BuildConfig)} - {f.name for f in dataclasses.fields(RowOptions)}
"""Options of a build that are no `RowOptions`: trust, folders, and how it is run."""
NOT_OF_ROWS = frozenset(
    {
        "bin_length", "max_length", "seed", "split", "max_line_bytes", "shard_size", "pixel_codec", "max_bin_patches",
        "max_bin_audio_frames",
    }
)  # fmt: skip
"""`RowOptions` by which two datasets may differ (`repack` changes them) without another meaning of any row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFacts:
    """How the rows of a dataset were encoded."""

    dataset: str
    """Its URI; of a local one only the name of its folder, since runs are shared."""
    options: RowOptions
    needed_flags: tuple[str, ...] = ()
    """Flags that the build was given and that no file can give, such as --plugin."""


def facts_of_manifest(uri: str, manifest: Manifest) -> RowFacts:
    """The facts of a dataset."""
    name = Path(io.local_path(uri)).resolve().name if io.is_local(uri) else uri
    family = manifest.config.family or manifest.family or None
    options = dataclasses.replace(manifest.config, family=family)
    return RowFacts(dataset=name, options=options, needed_flags=manifest.needed_flags)


def write_facts(folder: Path, facts: Sequence[RowFacts]) -> None:
    """Write `FACTS` into the folder of a run, a checkpoint or a merged model."""
    datasets = [
        {
            "dataset": entry.dataset,
            "options": row_options_as_json(entry.options),
            "needed_flags": list(entry.needed_flags),
        }
        for entry in facts
    ]
    text = json.dumps({"format": FORMAT, "datasets": datasets}, indent=1, ensure_ascii=False)
    (folder / FACTS).write_text(text + "\n", encoding="utf-8")


def read_facts(model: str) -> list[RowFacts] | None:
    """What a model says about its rows; None where it is no run of `omniprep train`."""
    folder, path = Path(model), Path(model) / FACTS
    if not folder.is_dir():
        content = checkpoint_file(model, FACTS)
        return None if content is None else facts_of_content(f"{FACTS} of {model}", content)
    if not path.is_file():
        above = folder.name == "merged" or folder.name.startswith("checkpoint-")
        if not any((f / "train_config.yaml").is_file() for f in ((folder, folder.parent) if above else (folder,))):
            return None
        raise OmniprepError(
            f"--model {folder}: a run that does not keep how its rows were encoded ({FACTS} is missing): give the "
            "dataset that it was trained on by --like DATASET"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedDataError(f"{path}: {error.strerror or error}") from error
    return facts_of_content(str(path), parse_json(data, str(path)))


def facts_of_content(where: str, content: Any) -> list[RowFacts]:
    """The datasets of a `FACTS` file, from anyone; refused where it holds options of the command line."""
    entries = content.get("datasets") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(entries, list) or not entries:
        raise DamagedDataError(f"{where}: not of format {FORMAT}; give the dataset by --like DATASET")
    for entry in entries:
        options = entry.get("options") if isinstance(entry, dict) else None
        if isinstance(options, dict) and (refused := sorted(FORBIDDEN & options.keys())):
            raise OmniprepError(
                f"{where}: holds {', '.join(map(repr, refused))}, which no run may set: options that run code, reach "
                "the network or open folders are given on the command line"
            )
    facts = [typed_record(RowFacts, entry, where) for entry in entries]
    # Names of flags are shown to the user: only those of known flags.
    known = TRUST_FLAGS.values()
    return [dataclasses.replace(f, needed_flags=tuple(n for n in known if n in f.needed_flags)) for f in facts]


def one_of(facts: Sequence[RowFacts]) -> RowFacts:
    """The facts by which rows are encoded; refused where a run's datasets give a row no one meaning."""
    first = facts[0]
    names = [field.name for field in dataclasses.fields(RowOptions) if field.name not in NOT_OF_ROWS]
    for other in facts[1:]:
        differing = [name for name in names if getattr(first.options, name) != getattr(other.options, name)]
        if differing:
            raise OmniprepError(
                f"the run was trained on datasets that were built with other options ({', '.join(differing)}): "
                f"choose one by --like: {', '.join(entry.dataset for entry in facts)}"
            )
    return first
