"""Two datasets side by side on one page: counts, options, lengths, sources, rejects, packing, and how they differ.

Everything is read from manifests and tables; no shard is decoded, so two datasets of ten million rows take seconds.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from omniprep import io
from omniprep.report.assemble import assemble, resource
from omniprep.report.numbers import MOST_SOURCES, facts, length_edges, source_facts_of
from omniprep.report.page import options_of, stored_pixels
from omniprep.shards.dataset import StoredDataset

COMPARED_SECTIONS = {
    "counts": "Counts", "options": "Options", "lengths": "Lengths", "sources": "Sources", "rejects": "Rejects",
    "packing": "Packing",
}  # fmt: skip
FILL_POINTS = {"least full bin": 0, "1 % of the bins are below": 1, "10 % are below": 10, "median bin": 50}
BALANCED_RANKS = (2, 8, 32, 64)


Form = Literal["count", "share", "bytes", "number", "text"]


class Line(NamedTuple):
    """A value of both datasets; None where one of them has none."""

    name: str
    a: Any
    b: Any
    form: Form = "count"

    def differs(self) -> bool:
        """Whether the two have different values."""
        return bool(self.a != self.b)


def _line(name: str, values: Iterable[Any], form: Form = "count") -> Line:
    a, b = values
    return Line(name, a, b, form)


def collect_comparison(a: StoredDataset, b: StoredDataset) -> dict[str, Any]:
    """All that the page shows, as JSON types."""
    both = (a, b)
    numbers = [facts(dataset) for dataset in both]
    options = sorted(_options(both), key=lambda line: not line.differs())
    sources, source_counts = _sources(both)
    return {
        "names": names_of(a.uri, b.uri),
        "uris": [a.uri, b.uri],
        "totals": [entry["totals"] for entry in numbers],
        "counts": [line._asdict() for line in _counts(*numbers)],
        "options": [{**line._asdict(), "differs": line.differs()} for line in options],
        "lengths": _lengths(both),
        "quantiles": [line._asdict() for line in _quantiles(*numbers)],
        "sources": sources,
        "source_counts": source_counts,
        "rejects": [
            _line(code, (entry["rejected_by_code"].get(code, 0) for entry in numbers))._asdict()
            for code in _union(*(entry["rejected_by_code"] for entry in numbers))
        ],
        "packing": [line._asdict() for line in _packing(both, numbers)],
    }


def names_of(a: str, b: str) -> list[str]:
    """The shortest ends of two paths that differ; of equal paths the last name with a number."""
    ends = [uri.rstrip("/").split("/") for uri in (a, b)]
    for parts in range(1, max(map(len, ends)) + 1):
        names = ["/".join(end[-parts:]) for end in ends]
        if names[0] != names[1]:
            return names
    return [f"{names[0]} (1)", f"{names[1]} (2)"]


def _union(*names: Iterable[str]) -> list[str]:
    """Each name once, in the order of their first mention."""
    return list(dict.fromkeys(name for group in names for name in group))


def _counts(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Line]:
    totals = (a["totals"], b["totals"])
    lines = [
        _line(f"rows {name.replace('_', ' ')}", (t["rows"].get(name, 0) for t in totals))
        for name in _union(*(t["rows"] for t in totals))
    ]
    lines += [_line(name, (t[name] for t in totals)) for name in ("tokens", "trained")]
    lines.append(_line("trained share", (t["trained"] / max(t["tokens"], 1) for t in totals), "share"))
    items = _union(*(t["items"] for t in totals))
    lines += [_line(f"{name} items", (t["items"].get(name, 0) for t in totals)) for name in items]
    verdicts = _union(*(t["preference"] for t in totals))
    lines += [_line(f"preference: {name}", (t["preference"].get(name, 0) for t in totals)) for name in verdicts]
    lines += [_line(name.replace("_", " "), (t[name] for t in totals)) for name in ("bins", "bin_length", "shards")]
    lines.append(_line("fill", (t["fill"] for t in totals), "share"))
    lines.append(_line("size", (t["bytes"] for t in totals), "bytes"))
    lines.append(_line("bytes a token", (round(t["bytes"] / max(t["tokens"], 1), 1) for t in totals), "number"))
    rare = ("rows_without_labels", "rows_with_control_tokens")
    lines += [_line(name.replace("_", " "), (t[name] for t in totals)) for name in rare]
    notes = [_line(f"rows with {n.replace('_', ' ')}", (t["notes"][n] for t in totals)) for n in totals[0]["notes"]]
    return lines[: -len(rare)] + [line for line in lines[-len(rare) :] + notes if line.a or line.b]


def _options(both: tuple[StoredDataset, StoredDataset]) -> Iterable[Line]:
    """Options, then what else shaped the bytes."""
    options = [options_of(dataset) for dataset in both]
    for name in _union(*options):
        yield _line(f"--{name.replace('_', '-')}", (_option(given, name) for given in options), "text")
    manifests = [dataset.manifest for dataset in both]
    for name in ("family", "family_version", "omniprep", "tokenizer_sha256", "preprocessor_sha256"):
        yield _line(name.replace("_sha256", ", SHA-256").replace("_", " "), (m.get(name) for m in manifests), "text")
    stored = [stored_pixels(dataset.layout.columns) if len(dataset) else {} for dataset in both]
    for name in _union(*stored):
        yield _line(f"{name} stored as", (columns.get(name) for columns in stored), "text")
    versions = [manifest["versions"] for manifest in manifests]
    for name in _union(*versions):
        yield _line(f"version of {name}", (known.get(name) for known in versions), "text")
    changes = [", ".join(g.command for g in dataset.record.generations) or None for dataset in both]
    if any(changes):
        yield _line("changes", changes, "text")


def _option(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or None
    return None if value is None else str(value)


def _lengths(both: tuple[StoredDataset, StoredDataset]) -> list[dict[str, Any]]:
    """Rows by length, in the same steps for both."""
    lengths = [dataset.rows["length"].drop_null().to_numpy() for dataset in both]
    every = np.concatenate(lengths)
    if len(every) == 0:
        return []
    edges = length_edges(every)
    counts = [np.histogram(values, edges)[0].tolist() for values in lengths]
    return [
        {"from": start, "to": end - 1, "a": a, "b": b}
        for (start, end), a, b in zip(pairwise(edges.tolist()), *counts, strict=True)
    ]


def _quantiles(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Line]:
    known = [{**entry["lengths"]["quantiles"], "mean": entry["lengths"].get("mean")} for entry in (a, b)]
    return [_line(name, (points.get(name) for points in known)) for name in _union(*known)]


def _sources(both: tuple[StoredDataset, StoredDataset]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows and tokens of the largest sources of both, by name; and how many sources both have, or one alone."""
    sides = [{fact["source"]: fact for fact in source_facts_of(dataset)} for dataset in both]
    a, b = sides
    names = _union(a, b)
    names.sort(key=lambda name: -max(side[name]["tokens"] for side in sides if name in side))
    lines = []
    for name in names[:MOST_SOURCES]:
        known = [side.get(name) for side in sides]
        pairs = {column: [fact and fact[column] for fact in known] for column in ("rows", "rejected", "tokens")}
        lines.append({"source": name, **pairs})
    counts = {"shown": len(lines), "both": len(a.keys() & b.keys()), "a": len(a.keys() - b), "b": len(b.keys() - a)}
    return lines, counts


def _packing(both: tuple[StoredDataset, StoredDataset], numbers: list[dict[str, Any]]) -> Iterable[Line]:
    fills = [d.index["tokens"] / max(d.record.bin_length, 1) for d in both]
    for name, point in FILL_POINTS.items():
        yield _line(f"fill: {name}", (float(np.percentile(f, point)) if len(f) else None for f in fills), "share")
    rows = [d.index["rows"] for d in both]
    yield _line("rows of a bin, mean", (round(float(r.mean()), 2) if len(r) else None for r in rows), "number")
    balances = [{entry["ranks"]: entry["balanced"] for entry in number["bins"]["balance"]} for number in numbers]
    for ranks in BALANCED_RANKS:
        if any(ranks in known for known in balances):
            yield _line(f"most loaded of {ranks} ranks", (known.get(ranks) for known in balances), "number")


def write_comparison(uris: tuple[str, str], out: str) -> str:
    """Write the page that compares two finished datasets; its path."""
    data = collect_comparison(*(StoredDataset(uri) for uri in uris))
    html = assemble(data, resource("compare.html"), COMPARED_SECTIONS, ("elements.js", "compare.js"))
    io.write_atomic(out, html.encode(errors="replace"))
    return out
