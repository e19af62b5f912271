"""The numbers of a report that need no shard: from manifest.json, index.parquet, rows.parquet and rejected.jsonl.

All results are JSON types. Tables are read as columns, so ten million rows take seconds and some hundred megabytes.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omniprep.modalities import KINDS, media_counts, row_kinds
from omniprep.packing.balance import epoch_order
from omniprep.rows.columns import Note
from omniprep.shards.dataset import StoredDataset

MOST_SOURCES = 40


def totals(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The counts at the head of the page, from a manifest as JSON types."""
    counts = manifest["counts"]
    return {
        "rows": counts["rows"],
        "tokens": counts["tokens"],
        "trained": counts.get("labeled_tokens", 0),
        "bins": counts["bins"],
        "bin_length": manifest["bin_length"],
        "fill": manifest["fill"],
        "shards": len(manifest["shards"]),
        "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
        "items": counts.get("items", {}),
        "rows_without_labels": counts.get("rows_without_labels", 0),
        "rows_with_control_tokens": counts.get("rows_with_control_tokens", 0),
        "preference": counts.get("preference", {}),
        "notes": {str(n.name).lower(): counts.get(f"rows_with_{str(n.name).lower()}", 0) for n in Note},
        "unread_columns": counts.get("unread_columns", {}),
    }


def facts(dataset: StoredDataset) -> dict[str, Any]:
    """The numbers that the tables of a dataset give; what `omniprep stats` prints."""
    rows, index = dataset.rows, dataset.index
    kinds = row_kinds(media_counts(rows))
    packed = rows["length"].is_valid().to_numpy()
    return {
        "totals": totals({**dataset.manifest, "counts": dataset.counts}),
        "lengths": length_histogram(rows["length"].drop_null().to_numpy(), kinds[packed]),
        "sources": largest(source_facts(rows, kinds)),
        "rejected_by_code": dataset.counts["rejected_by_code"],
        "bins": {
            "cost": histogram(index["cost"].round(1)),
            "fill": histogram((index["tokens"] / max(dataset.record.bin_length, 1) * 100).round(3)),
            "rows": histogram(index["rows"]),
            "balance": balance(index["cost"]),
        },
    }


def histogram(values: np.ndarray, *, most: int = 24) -> dict[str, Any]:
    """Edges and counts of at most `most` equal bins from the minimum to the maximum.

    If there are fewer than `most` integers in that range, each is counted by itself ("each").
    """
    if len(values) == 0:
        return {"edges": [], "counts": []}
    low, high = float(values.min()), float(values.max())
    if low == high:
        return {"edges": [low, high], "counts": [len(values)]}
    if np.issubdtype(values.dtype, np.integer) and high - low < most:
        edges = np.arange(int(low), int(high) + 2)
        return {"edges": edges.tolist(), "counts": np.histogram(values, edges)[0].tolist(), "each": True}
    counts, edges = np.histogram(values, bins=most, range=(low, high))
    return {"edges": [round(float(edge), 3) for edge in edges], "counts": counts.tolist()}


def length_histogram(lengths: np.ndarray, kinds: np.ndarray) -> dict[str, Any]:
    """Rows by length in steps of the square root of two, stacked by kind of row."""
    if len(lengths) == 0:
        return {"edges": [], "series": {}, "quantiles": {}}
    edges = length_edges(lengths)
    series = {}
    for number, kind in enumerate(KINDS):
        chosen = lengths[kinds == number]
        if len(chosen):
            series[kind] = np.histogram(chosen, edges)[0].tolist()
    points = np.percentile(lengths, [0, 50, 90, 99, 100]).round().astype(int).tolist()
    return {
        "edges": edges.tolist(),
        "series": series,
        "quantiles": dict(zip(("min", "median", "90 %", "99 %", "max"), points, strict=True)),
        "mean": round(float(lengths.mean()), 1),
    }


def length_edges(lengths: np.ndarray) -> np.ndarray:
    """Borders of steps of the square root of two that hold all lengths; int64, at least two."""
    low, high = np.floor(2 * np.log2(max(lengths.min(), 1))), np.ceil(2 * np.log2(max(lengths.max(), 2) + 1))
    edges = np.unique(np.round(2 ** (np.arange(low, high + 1) / 2)).astype(np.int64))
    edges[-1] = max(edges[-1], int(lengths.max()) + 1)
    return edges


def source_facts_of(dataset: StoredDataset) -> list[dict[str, Any]]:
    """`source_facts` of a dataset."""
    return source_facts(dataset.rows, row_kinds(media_counts(dataset.rows)))


def source_facts(rows: pa.Table, kinds: np.ndarray) -> list[dict[str, Any]]:
    """Rows, rejects, removed rows and tokens of each input, tokens also by kind of row; the largest inputs first."""
    column = rows["source"].unify_dictionaries().combine_chunks()
    names, codes = column.dictionary.to_pylist(), column.indices.to_numpy(zero_copy_only=False)
    lengths = rows["length"].fill_null(0).to_numpy()
    packed = rows["length"].is_valid().to_numpy()
    trained = rows["trained"].to_numpy() if "trained" in rows.column_names else np.zeros(len(codes), np.int64)
    size = len(names)
    sums = np.bincount(codes * len(KINDS) + kinds, lengths, size * len(KINDS)).reshape(size, -1).astype(np.int64)
    read = np.bincount(codes, minlength=size)
    removed = np.asarray(pc.equal(rows["status"].cast(pa.string()), "removed").to_numpy(), bool)
    kept = np.bincount(codes, packed, size).astype(np.int64)
    gone = np.bincount(codes, removed, size).astype(np.int64)
    learned = np.bincount(codes, trained * packed, size).astype(np.int64)
    facts = [
        {
            "source": name,
            "rows": int(read[n]),
            "rejected": int(read[n] - kept[n] - gone[n]),
            "removed": int(gone[n]),
            "tokens": int(sums[n].sum()),
            "trained": int(learned[n]),
            "by_kind": {kind: int(value) for kind, value in zip(KINDS, sums[n], strict=True) if value},
        }
        for n, name in enumerate(names)
    ]
    facts.sort(key=lambda fact: (-fact["tokens"], fact["source"]))
    return facts


def largest(facts: list[dict[str, Any]], most: int = MOST_SOURCES) -> list[dict[str, Any]]:
    """The first `most` of the facts of inputs, and a sum of the others."""
    if len(facts) <= most:
        return facts
    others = facts[most:]
    by_kind: Counter[str] = Counter()
    for fact in others:
        by_kind.update(fact["by_kind"])
    sums = {name: sum(fact[name] for fact in others) for name in ("rows", "rejected", "removed", "tokens", "trained")}
    return [*facts[:most], {"source": f"{len(others):,} more inputs", **sums, "by_kind": dict(by_kind)}]


def balance(costs: np.ndarray, ranks: tuple[int, ...] = (2, 8, 32, 64)) -> list[dict[str, Any]]:
    """Cost of a step's most loaded rank over the mean of its ranks, in the order of BinSampler and in random order."""
    results = []
    for world in ranks:
        steps = len(costs) // world
        if steps == 0:
            continue
        ratios = []
        for weights in (costs, None):
            order = epoch_order(len(costs), 0, 0, weights)[: steps * world]
            step = costs[order].reshape(steps, world)
            ratios.append(float((step.max(axis=1) / step.mean(axis=1)).mean()))
        results.append({"ranks": world, "steps": steps, "balanced": round(ratios[0], 3), "random": round(ratios[1], 3)})
    return results
