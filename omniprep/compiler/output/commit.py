"""How a finished dataset becomes another one, readable at every moment: `append` and `remove` end here.

Its tables and its manifest are several files, which no file system replaces at once. So the new tables are written
beside the old ones under names of their own, then the manifest that names them (`tables`): with that one file the
dataset has changed. The tables are then copied to their usual names, and a manifest without `tables` ends it. A run
that was killed between leaves a whole dataset, old or new; the next change finishes what it left (`recover`).
"""

import json
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from omniprep import io
from omniprep.compiler.output.manifest import write_manifest
from omniprep.compiler.output.ownfiles import OWN, STATE
from omniprep.errors import DamagedDataError
from omniprep.shards.names import REFERENCES, table_name
from omniprep.shards.typed import parse_json

TABLES = ("index.parquet", "rows.parquet", "rejected.jsonl")


def read_plain_manifest(out: str) -> dict[str, Any]:
    """manifest.json as it was written; `read_manifest` has checked it before."""
    path = io.join(out, "manifest.json")
    manifest = parse_json(io.read_bytes(path), path)
    if not isinstance(manifest, dict):
        raise DamagedDataError(f"{path}: expected an object")
    return manifest


def commit(out: str, manifest: dict[str, Any], tag: str, tables: Mapping[str, Callable[[str], None]]) -> None:
    """Replace the tables and the manifest of a dataset.

    Args:
        out: Its folder, whose lease is held.
        manifest: The new manifest.
        tag: Part of the names of the new tables until they have their own.
        tables: Writes each of `TABLES`, given its URI.
    """
    for name in TABLES:
        tables[name](io.join(out, table_name(name, tag)))
    write_manifest(out, {**manifest, "tables": tag})
    _settle(out, manifest, tag)


def recover(out: str) -> None:
    """End a change that was killed after its manifest was written, and remove what one left that was killed before."""
    manifest = read_plain_manifest(out)
    tag = manifest.pop("tables", "")
    if tag:
        _settle(out, manifest, str(tag))
    for name in io.list_folder(out):
        for table in TABLES:
            stem, _, suffix = table.partition(".")
            if name.startswith(f"{stem}-") and name.endswith(f".{suffix}"):
                io.remove(io.join(out, name))


def _settle(out: str, manifest: dict[str, Any], tag: str) -> None:
    """Give the tables of a change their usual names."""
    for name in TABLES:
        source = io.join(out, table_name(name, tag))
        with io.open_input(source) as old, io.atomic_writer(io.join(out, name)) as new:
            shutil.copyfileobj(old, new, 8 << 20)
    write_manifest(out, manifest)
    io.remove(io.join(out, REFERENCES))  # of the bins as they were, and of rows that may be removed
    for name in TABLES:
        io.remove(io.join(out, table_name(name, tag)))


def next_tag(manifest: Mapping[str, Any]) -> str:
    """The tag of the next change's files: its number, so that the same changes give the same names anywhere."""
    return f"{max(len(manifest.get('generations', ())), 1):08x}"


def add_generation(before: dict[str, Any], entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The generations of a dataset with one more; the first is its build."""
    generations = list(before.get("generations", ()))
    if not generations:
        generations.append(
            {
                "command": "repack" if "repacked_from" in before else "build",
                "rows": before["counts"]["rows"],
                "tokens": before["counts"]["tokens"],
                "bins": before["counts"]["bins"],
                "fill": before.get("fill", 0.0),
                "inputs": [given["source"] for given in before.get("inputs", ())],
            }
        )
    return [*generations, entry]


def json_facts(value: Any) -> Any:
    """A value as JSON reads it back, so that it compares equal to one from a file."""
    return json.loads(json.dumps(value))


def remove_plans(out: str) -> None:
    """Remove the plans of a finished dataset, which hold the texts of its rows; plan/build.json stays."""
    for name in io.list_folder(io.join(out, "plan")):
        if OWN["plan"].fullmatch(name) and ("plan", name) != STATE:
            io.remove(io.join(out, "plan", name))
