"""Make the report page: collect the data, draw the plots, embed both with style and script into the template.

The page loads nothing: its Content-Security-Policy forbids the network and admits only the script whose hash it has.
Texts of the dataset are embedded as JSON (with `<` escaped) and set as text, never as markup, so a row that holds HTML
is shown and not run.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Literal

import numpy as np

from omniprep import io
from omniprep.config import BuildConfig
from omniprep.data.dataset import PackedDataset
from omniprep.errors import OmniprepError
from omniprep.inspect.vocabulary import Vocabulary, vocabulary_of
from omniprep.report.bins import browse, choose_bins, scan
from omniprep.report.numbers import facts, histogram, reject_facts
from omniprep.shards.schema import Column

SHOWN_BINS = 8


def collect(dataset: PackedDataset, vocabulary: Vocabulary | None, shown: int = SHOWN_BINS) -> dict[str, Any]:
    """All that the page shows, as JSON types."""
    manifest, has_bins = dataset.manifest, len(dataset) > 0
    sizes = scan(dataset, vocabulary) if has_bins else None
    if sizes is not None:
        for name in ("audio_seconds", "video_frames"):
            sizes[name] = histogram(sizes[name])
    config: dict[str, Any] = {"model": manifest.get("model", ""), **manifest["config"]}
    if flags := dataset.record.needed_flags:
        config["needed_flags"] = list(flags)
    return {
        "name": dataset.uri.rstrip("/").rsplit("/", 1)[-1] or dataset.uri,
        "family": manifest.get("family", ""),
        "model": manifest.get("model", ""),
        **facts(dataset),
        "rejects": reject_facts(dataset),
        "media": sizes,
        "seconds": manifest.get("seconds", {}),
        "config": config,
        "changed": _changed(config),
        "config_sha256": manifest.get("config_sha256", ""),
        "inputs": manifest.get("inputs", []),
        "versions": manifest.get("versions", {}),
        "pixels": _pixels(dataset.layout.columns) if has_bins else {},
        "decoded": vocabulary is not None,
        "browser": browse(dataset, choose_bins(dataset.index, shown), vocabulary) if has_bins else [],
    }


def _pixels(columns: Sequence[Column]) -> dict[str, str]:
    """Codecs of the columns of pixels, each with the library that wrote it; of source, the decoders that it needs."""
    return {
        column.params.get("codec", "raw"): str(column.params.get("codec_library", ""))
        for column in columns
        if column.picture
    }


def _changed(config: Mapping[str, Any]) -> list[str]:
    """Options of the build that differ from their defaults; the value that "auto" was resolved to does not count."""
    defaults = {field.name: field.default for field in dataclasses.fields(BuildConfig)}
    as_json = json.loads(json.dumps(defaults))
    return [n for n, value in config.items() if as_json.get(n) not in (value, "auto")]


def _default(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON type")


def _resource(name: str) -> str:
    return files("omniprep.report").joinpath(name).read_text(encoding="utf-8")


def page(data: dict[str, Any]) -> str:
    """The whole page as HTML."""
    script = _resource("app.js")
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), default=_default)
    parts = {
        "APP": script,
        "STYLE": _resource("style.css"),
        # Inside a script element only "<" could end the data or open a comment.
        "DATA": text.replace("<", "\\u003c"),
        "SCRIPT_HASH": f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'",
        **{f"plot-{name}": svg for name, svg in _plots(data).items()},
    }
    pieces = _resource("template.html").split("%%")
    return "".join(piece if number % 2 == 0 else parts[piece] for number, piece in enumerate(pieces))


def _plots(data: dict[str, Any]) -> dict[str, str]:
    try:
        from omniprep.report.plots import draw_all
    except ImportError:
        names = ("lengths", "sources", "shares", "images", "audio", "video", "fill", "cost", "seconds")
        note = "<p class=\"dim\">The plot needs matplotlib: pip install 'omniprep[report]', then omniprep report.</p>"
        return dict.fromkeys(names, note)
    return {name: svg or '<p class="dim">none</p>' for name, svg in draw_all(data).items()}


def write_report(
    uri: str, out: str | None = None, *, model: str | None = None, shown: int = SHOWN_BINS,
    vocabulary: Vocabulary | None = None, check_pixels: Literal["first", "always", "never"] = "first",
) -> tuple[str, str]:  # fmt: skip
    """Write the report of a finished dataset, `shown` bins in full; its path, and a remark or "".

    The remark says why no tokenizer could be loaded, so that tokens are shown as numbers; that of a given `model` must.
    """
    dataset = PackedDataset(uri, check_pixels=check_pixels)
    remark = ""
    try:
        vocabulary = vocabulary or vocabulary_of(dataset, model)
    except OmniprepError as error:
        if model:
            raise
        remark = f"tokens are shown as numbers: {error}"
    target = out or io.join(uri, "report.html")
    io.write_atomic(target, page(collect(dataset, vocabulary, shown)).encode(errors="replace"))
    return target, remark
