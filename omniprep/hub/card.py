"""The card of a pushed dataset: README.md with the numbers, the plots, the config and how to load it."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from omniprep.progress import size

__all__ = ["card"]

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
    """The text of README.md.

    Args:
        repo_id: ORG/NAME.
        data: What `omniprep.report.page.collect` gives.
        plots: Names of the plots that are pushed beside it, as plots/NAME.png.
    """
    totals = data["totals"]
    rows = totals["rows"]
    items = {name: count for name, count in totals["items"].items() if count}
    pictures = "\n".join(f"![{PLOT_TITLES[name]}](plots/{name}.png)" for name in plots if name in PLOT_TITLES)
    sources = "\n".join(
        f"| `{_cell(s['source'])}` | {s['rows']:,} | {s['rejected']:,} | {s['tokens']:,} |" for s in data["sources"]
    )
    rejects = "\n".join(f"| `{c['code']}` | {c['count']:,} | {_cell(c['doc'])} |" for c in data["rejects"]["codes"])
    config = {name: value for name, value in data["config"].items() if value not in (None, [], False)}
    return f"""{_head(rows["packed"], items)}
# {repo_id.split("/")[-1]}

Multimodal chats compiled for `{data["family"]}` by omniprep: tokens, labels, m-rope positions and media are in packed
bins of {totals["bin_length"]:,} tokens that a trainer only has to copy.

| | |
| --- | --- |
| rows | {rows["packed"]:,} packed, {rows["rejected"]:,} rejected of {rows["read"]:,} read |
| tokens | {totals["tokens"]:,}, {100 * totals["trained"] / max(totals["tokens"], 1):.1f} % trained |
| bins | {totals["bins"]:,} of {totals["bin_length"]:,} tokens, {100 * totals["fill"]:.2f} % full |
| media | {", ".join(f"{count:,} {name}" for name, count in items.items()) or "none"} |
| shards | {totals["shards"]:,}, {size(totals["bytes"])} |
| model | tokenizer and settings of `{data["model"]}` |

## Load it

```python
from omniprep import BinSampler, PackedDataset, collate

ds = PackedDataset("hf://datasets/{repo_id}")   # or the folder that `omniprep pull {repo_id} --out DIR` makes
batch = collate([ds[0]])                        # the keyword arguments of the model's forward
```

```bash
omniprep train hf://datasets/{repo_id} --model {data["model"]} --out run/
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

```json
{json.dumps(config, ensure_ascii=False, indent=1)}
```

{", ".join(f"{name} {version}" for name, version in data["versions"].items())}
"""


def _rejects(lines: str) -> str:
    return f"\n## Rejected rows\n\n| code | rows | meaning |\n| --- | ---: | --- |\n{lines}\n" if lines else ""


def _head(rows: int, items: Mapping[str, int]) -> str:
    tags = ["omniprep", "packed", *(f"{name}" for name in items)]
    label = next((text for limit, text in _SIZES if rows < limit), "n>10M")
    lines = [
        "---",
        "configs:",
        "- config_name: preview",
        "  default: true",
        "  data_files: preview/*.arrow",
        "- config_name: packed",
        "  data_files: shards/*.arrow",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "size_categories:",
        f"- {label}",
        "---",
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("`", "'")
