"""The report of a dataset: collect what it shows, draw the plots, put the page together."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from omniprep import io
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError
from omniprep.inspect.vocabulary import Vocabulary, vocabulary_of
from omniprep.report.assemble import assemble, fill, resource, shortened
from omniprep.report.bins import browse, choose_bins
from omniprep.report.numbers import facts, histogram
from omniprep.report.rejects import reject_facts
from omniprep.report.rows import ROW_KINDS
from omniprep.report.scan import scan
from omniprep.shards.dataset import StoredDataset
from omniprep.shards.schema import Column

SHOWN_BINS = 8
MOST_LISTED, MOST_COLUMNS = 100, 40
"""Inputs and changes, and columns that were not read, that a page lists; a dataset may have a million inputs."""
NAME_CHARS = 300
"""Of the name of an input or a column in such a list: 100 of them take 30 KB."""
SECTIONS = {
    "lengths": "Lengths", "sources": "Sources", "media": "Media", "packing": "Packing", "rejects": "Rejects",
    "browser": "Rows", "config": "Config",
}  # fmt: skip


def collect(dataset: StoredDataset, vocabulary: Vocabulary | None, shown: int = SHOWN_BINS) -> dict[str, Any]:
    """All that the page shows, as JSON types."""
    manifest, has_bins = dataset.manifest, len(dataset) > 0
    sizes = scan(dataset, vocabulary) if has_bins else None
    found: dict[str, int] = {}
    if sizes is not None:
        found = sizes.pop("found")
        for name in ("audio_seconds", "video_frames"):
            sizes[name] = histogram(sizes[name])
    with_sound = dataset.record.config.use_audio_in_video
    chosen = choose_bins(dataset.rows, len(dataset), shown, found, with_sound=with_sound)
    numbers = facts(dataset)
    unread = list(numbers["totals"]["unread_columns"].items())
    numbers["totals"]["unread_columns"] = {
        shortened(name, NAME_CHARS): column for name, column in unread[:MOST_COLUMNS]
    }
    for fact in numbers["sources"]:
        fact["source"] = shortened(fact["source"], NAME_CHARS)
    config = options_of(dataset)
    return {
        "name": name_of(dataset),
        "family": manifest.get("family", ""),
        "model": manifest.get("model", ""),
        **numbers,
        "rejects": reject_facts(dataset),
        "media": sizes,
        "seconds": manifest.get("seconds", {}),
        "config": config,
        "changed": _changed(config),
        "config_sha256": manifest.get("config_sha256", ""),
        "inputs": _inputs(dataset),
        "generations": _generations(dataset),
        "versions": manifest.get("versions", {}),
        "pixels": _pixels(dataset.layout.columns) if has_bins else {},
        "stored": stored_pixels(dataset.layout.columns) if has_bins else {},
        "decoded": vocabulary is not None,
        "kinds": ROW_KINDS,
        "browser": browse(dataset, chosen, vocabulary),
    }


def name_of(dataset: StoredDataset) -> str:
    """The last name of a dataset's path."""
    return dataset.uri.rstrip("/").rsplit("/", 1)[-1] or dataset.uri


def options_of(dataset: StoredDataset) -> dict[str, Any]:
    """The options of the build that shaped the rows, and the flags of trust that it needed."""
    config: dict[str, Any] = {"model": dataset.record.model, **dataset.manifest["config"]}
    if flags := dataset.record.needed_flags:
        config["needed_flags"] = list(flags)
    return config


def _pixels(columns: Sequence[Column]) -> dict[str, str]:
    """Codecs of the columns of pixels, each with the library that wrote it; of source, the decoders that it needs."""
    return {
        column.params.get("codec", "raw"): str(column.params.get("codec_library", ""))
        for column in columns
        if column.picture
    }


def stored_pixels(columns: Sequence[Column]) -> dict[str, str]:
    """How each column of pixels is stored, such as "delta, zstd 1.5.7"."""
    return {
        column.name: ", ".join(f"{codec}, {library}" if library else codec for codec, library in codecs)
        for column in columns
        if (codecs := _pixels([column]).items())
    }


def _inputs(dataset: StoredDataset) -> list[dict[str, Any]]:
    """The first inputs, and how many more there are."""
    inputs = dataset.record.inputs
    listed: list[dict[str, Any]] = [
        {"source": shortened(entry.source, NAME_CHARS), "bytes": entry.bytes} for entry in inputs[:MOST_LISTED]
    ]
    if rest := inputs[MOST_LISTED:]:
        listed.append({"source": f"{len(rest):,} more inputs", "bytes": sum(entry.bytes or 0 for entry in rest)})
    return listed


def _generations(dataset: StoredDataset) -> list[dict[str, Any]]:
    """What was done to the dataset since it was built, the last changes where there were many."""
    listed = []
    for change in dataset.record.generations[-MOST_LISTED:]:
        names = [name.rsplit("/", 1)[-1] for name in change.inputs[:3]]
        more = [f"{len(change.inputs) - 3:,} more"] if len(change.inputs) > 3 else []
        inputs = shortened(", ".join(names + more), NAME_CHARS)
        listed.append({**dataclasses.asdict(change), "inputs": inputs})
    return listed


def _changed(config: Mapping[str, Any]) -> list[str]:
    """Options of the build that differ from their defaults; the value that "auto" was resolved to does not count."""
    defaults = {field.name: field.default for field in dataclasses.fields(BuildConfig)}
    as_json = json.loads(json.dumps(defaults))
    return [n for n, value in config.items() if as_json.get(n) not in (value, "auto")]


def page(data: dict[str, Any], *, served: bool = False) -> str:
    """The whole page as HTML: with bins in it, or, where `served`, with a browser that asks its server for them."""
    rows = "served" if served else "embedded"
    plots = {f"plot-{name}": svg for name, svg in _plots(data).items()}
    main = fill(resource("report.html"), {"BINS": resource(f"{rows}.html"), **plots})
    scripts = ("elements.js", "chat.js", "report.js", f"{rows}.js")
    return assemble({**data, "served": served}, main, SECTIONS, scripts, served=served)


def _plots(data: dict[str, Any]) -> dict[str, str]:
    try:
        from omniprep.report.plots import draw_all
    except ImportError:
        names = ("lengths", "sources", "shares", "images", "audio", "video", "fill", "cost", "seconds")
        note = "<p class=\"dim\">The plot needs matplotlib: pip install 'omniprep[report]', then omniprep report.</p>"
        return dict.fromkeys(names, note)
    return {name: svg or '<p class="dim">none</p>' for name, svg in draw_all(data).items()}


def vocabulary_or_remark(dataset: StoredDataset, model: str | None) -> tuple[Vocabulary | None, str]:
    """The vocabulary of a dataset, or None and why there is none, so that tokens are shown as numbers; that of a given
    `model` must be there.
    """
    try:
        return vocabulary_of(dataset, model), ""
    except OmniprepError as error:
        if model:
            raise
        return None, f"tokens are shown as numbers: {error}"


def write_report(
    uri: str, out: str | None = None, *, model: str | None = None, shown: int = SHOWN_BINS,
    vocabulary: Vocabulary | None = None, check_pixels: Literal["first", "always", "never"] = "first",
) -> tuple[str, str]:  # fmt: skip
    """Write the report of a finished dataset, `shown` bins in full; its path, and a remark or ""."""
    dataset = StoredDataset(uri, check_pixels=check_pixels)
    remark = ""
    if vocabulary is None:
        vocabulary, remark = vocabulary_or_remark(dataset, model)
    target = out or io.join(uri, "report.html")
    io.write_atomic(target, page(collect(dataset, vocabulary, shown)).encode(errors="replace"))
    return target, remark
