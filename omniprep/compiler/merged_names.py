"""Names of the inputs of merged datasets: one that two datasets have for different files gets a prefix in each.

Days that were built in folders of their own all have an input `part.jsonl`. In the merged dataset they are
`day1/part.jsonl` and `day2/part.jsonl`: the prefix is the end of the dataset's own path, as many of its parts as tell
all datasets with such a name apart (`a/packed` and `b/packed` where the last part is the same). Names that are in one
dataset alone stay, and so does a name that stands for the same file in several, such as two choices of one dataset's
rows: then no line may be in two of them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pyarrow as pa

from omniprep.compiler.output.folder import is_same_input
from omniprep.compiler.output.ownfiles import canonical
from omniprep.errors import OmniprepError
from omniprep.shards.dataset import StoredDataset


def refuse_repeated(datasets: Sequence[StoredDataset]) -> None:
    """Refuse a dataset that is given twice, under whatever name, and one that is a copy of another."""
    places = [canonical(dataset.uri) for dataset in datasets]
    shards = [[shard.sha256 for shard in dataset.record.shards] for dataset in datasets]
    for first, second in combinations(range(len(datasets)), 2):
        if places[first] == places[second]:
            raise OmniprepError(
                f"{datasets[second].uri}: this dataset is given twice, as two of the datasets; name it once"
            )
        if shards[first] == shards[second]:
            raise OmniprepError(
                f"{datasets[second].uri}: its shards are those of {datasets[first].uri}, so every row would be there "
                "twice; name one of them"
            )


def merged_names(datasets: Sequence[StoredDataset]) -> list[dict[str, str]]:
    """The new name of each input that needs one, for each dataset.

    Raises:
        OmniprepError: No part of the datasets' paths tells them apart without giving two inputs one name.
    """
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for number, dataset in enumerate(datasets):
        for source in dataset.row_keys[0]:
            holders[source].append(number)
    files = {source: _first_of_file(source, numbers, datasets) for source, numbers in holders.items()}
    clashing = {source: firsts for source, firsts in files.items() if len(set(firsts.values())) > 1}
    names: list[dict[str, str]] = [{} for _ in datasets]
    if not clashing:
        return names
    concerned = sorted({number for firsts in clashing.values() for number in firsts})
    parts = {number: canonical(datasets[number].uri).replace("\\", "/").strip("/").split("/") for number in concerned}
    kept = {source for source in holders if source not in clashing}
    for depth in range(1, max(map(len, parts.values())) + 1):
        prefixes = {number: "/".join(path[-depth:]) for number, path in parts.items()}
        given = {
            (number, source): f"{prefixes[first]}/{source.lstrip('/')}"
            for source, firsts in clashing.items()
            for number, first in firsts.items()
        }
        distinct = {(first, source) for source, firsts in clashing.items() for first in firsts.values()}
        if len(set(given.values())) == len(distinct) and not kept.intersection(given.values()):
            for (number, source), name in given.items():
                names[number][source] = name
            return names
    raise OmniprepError(
        f"{', '.join(clashing)}: inputs of this name are in several of the datasets, and their folders do not tell "
        "them apart; move one of the datasets"
    )


def _first_of_file(source: str, numbers: Sequence[int], datasets: Sequence[StoredDataset]) -> dict[int, int]:
    """For each dataset that has an input of a name, the first that has the same file, by what manifests keep of it."""
    entries = {number: _input_entry(datasets[number], source) for number in numbers}
    return {
        number: next(first for first in numbers if first == number or is_same_input(entries[first], entries[number]))
        for number in numbers
    }


def _input_entry(dataset: StoredDataset, source: str) -> dict[str, Any] | None:
    listed = dataset.manifest.get("inputs", ())
    return next((entry for entry in listed if entry["source"] == source), None)


def names_of_one_file(datasets: Sequence[StoredDataset], renamed: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Names in the result that stand for the file of another one there, with that other name.

    So it is where a dataset is merged again with one that it holds under a new name, or where one build was given a
    path that another wrote differently (`./part.jsonl`).
    """
    files: defaultdict[str, list[tuple[str, Mapping[str, Any]]]] = defaultdict(list)
    first_name: dict[str, str] = {}
    for dataset, names in zip(datasets, renamed, strict=True):
        for entry in dataset.manifest.get("inputs", ()):
            name, given = names.get(entry["source"], entry["source"]), entry.get("given") or entry["source"]
            there = files[canonical(given)]
            found = {**entry, "source": given}  # where the file lies, if its content has to be looked at
            known = next((other for other, before in there if is_same_input(before, found)), None)
            if known is None:
                there.append((name, found))
            elif known != name:
                first_name[name] = known
    return first_name


def renamed_table(table: pa.Table, names: Mapping[str, str]) -> pa.Table:
    """rows.parquet as it was read, its sources under their new names."""
    if not names:
        return table
    column = table["source"].combine_chunks()
    texts = [names.get(text, text) for text in column.dictionary.to_pylist()]
    renamed = pa.DictionaryArray.from_arrays(column.indices, pa.array(texts, pa.string()))
    return table.set_column(table.column_names.index("source"), "source", renamed)


def renamed_input(entry: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """An entry of the manifest's `inputs` under its new name; `given` keeps that under which it was read."""
    if entry["source"] not in names:
        return dict(entry)
    return {**entry, "source": names[entry["source"]], "given": entry.get("given") or entry["source"]}
