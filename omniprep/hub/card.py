"""The card of a pushed dataset: a README.md with the numbers, the plots, the config and how to load it."""

from collections.abc import Iterable, Mapping
from typing import Any

from omniprep.hub.markup import as_code, as_json_block, front_matter, hub_name, repository_name
from omniprep.modalities import MODALITIES
from omniprep.progress import size

PLOT_TITLES = {
    "lengths": "Length of the rows",
    "sources": "Tokens by source",
    "shares": "Tokens by modality",
    "images": "Image sizes, as the model sees them",
    "audio": "Audio, seconds",
    "video": "Video, frames",
    "fill": "Fill of the bins",
}
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def card(repo_id: str, data: Mapping[str, Any], plots: Iterable[str]) -> str:
    """The text of README.md; texts of `data` (from `omniprep.report.page.collect`) may be anyone's."""
    totals = data["totals"]
    rows = totals["rows"]
    removed = f", {rows['removed']:,} removed" if rows.get("removed") else ""
    left_out = f", {rows['filtered']:,} left out by --where" if rows.get("filtered") else ""
    items = {name: count for name, count in totals["items"].items() if count}
    pictures = "\n".join(f"![{PLOT_TITLES[name]}](plots/{name}.png)" for name in plots if name in PLOT_TITLES)
    sources = "\n".join(
        f"| {as_code(s['source'])} | {s['rows']:,} | {s['rejected']:,} | {s['tokens']:,} |" for s in data["sources"]
    )
    rejects = "\n".join(
        f"| {as_code(c['code'])} | {c['count']:,} | {c['doc'].replace('|', '/')} |" for c in data["rejects"]["codes"]
    )
    config = {name: value for name, value in data["config"].items() if value not in (None, [], False)}
    model = hub_name(data["model"])
    if model is None:  # a folder on the machine that built it
        config.pop("model", None)
    versions = ", ".join(as_code(f"{name} {version}") for name, version in data["versions"].items())
    pixels = "; ".join(_codec(name, library) for name, library in data["pixels"].items())
    return f"""{_head(rows["packed"], items)}
# {repository_name(repo_id)}

Multimodal chats compiled for {as_code(data["family"])} by omniprep: tokens, labels, m-rope positions and media are in
packed bins of {totals["bin_length"]:,} tokens that a trainer only has to copy.

| | |
| --- | --- |
| rows | {rows["packed"]:,} packed, {rows["rejected"]:,} rejected{removed} of {rows["read"]:,} read{left_out} |
| tokens | {totals["tokens"]:,}, {100 * totals["trained"] / max(totals["tokens"], 1):.1f} % trained |
| bins | {totals["bins"]:,} of {totals["bin_length"]:,} tokens, {100 * totals["fill"]:.2f} % full |
| media | {", ".join(f"{count:,} {as_code(name)}" for name, count in items.items()) or "none"} |
| pixels | {pixels or "none"} |
| shards | {totals["shards"]:,}, {size(totals["bytes"])} |
| model | tokenizer and settings of {as_code(model) if model else "a local checkpoint"} |

## Load it

```python
from omniprep import BinSampler, PackedDataset, collate

ds = PackedDataset("hf://datasets/{repo_id}")   # or the folder that `omniprep pull {repo_id} --out DIR` makes
batch = collate([ds[0]])                        # the keyword arguments of the model's forward
```

```bash
omniprep train hf://datasets/{repo_id} --model {model or "MODEL"} --out run/
```

`datasets.load_dataset("{repo_id}", "preview")` gives some rows as chats with thumbnails,
`"packed"` the bins as they are stored.

{pictures}

## Sources

| source | rows | rejected | tokens |
| --- | ---: | ---: | ---: |
{sources}
{_rejects(rejects)}
## Config

{as_json_block(config)}

{versions}
"""


def _codec(name: str, library: str) -> str:
    """How pixels are stored, and what reading them needs."""
    if name == "raw":
        return "as they are"
    if name != "source":
        return f"{as_code(name)}, lossless, written by {as_code(library)}"
    return (
        f"{as_code(name)}, the images' and videos' own files, decoded when they are read: exact with "
        f"{as_code(library)}, where other versions give other pixels an error; `omniprep repack --pixel-codec delta` "
        "makes them independent of it"
    )


def _rejects(lines: str) -> str:
    return f"\n## Rejected rows\n\n| code | rows | meaning |\n| --- | ---: | --- |\n{lines}\n" if lines else ""


def _head(rows: int, items: Mapping[str, int]) -> str:
    label = next((text for limit, text in _SIZES if rows < limit), "n>10M")
    return front_matter(
        {
            "configs": [
                {"config_name": "preview", "default": True, "data_files": "preview/*.arrow"},
                {"config_name": "packed", "data_files": "shards/*.arrow"},
            ],
            # The names of other modalities are for a plug-in to choose, and stay in the table.
            "tags": ["omniprep", "packed", *(name for name in MODALITIES if name in items)],
            "size_categories": [label],
        }
    )
