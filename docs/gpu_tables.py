"""The tables of docs/training.md that come from a GPU: what benchmarks/gpu.py measured, and memory as reckoned."""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "gpu.json"
OTHER_CARD = ROOT / "benchmarks" / "results" / "gpu_h100.json"
"""Quick runs on an H100, of tables whose names begin with "h100_"."""
Rows = list[dict[str, Any]]


def steps(result: dict[str, Any]) -> Rows:
    """A step of each variant."""
    return [
        {
            f"a step on one {result['device']}": row["what"],
            "ms": f"{row['step_ms']:,.0f}",
            "tokens/s": f"{row['tokens_per_s']:,}",
            "MFU": f"{row['mfu']:.1%}",
            "peak GiB": f"{row['peak_gib']:.1f}",
            "checkpointing": row.get("checkpointing", ""),
        }
        for row in result["rows"]
        if row["part"] == "steps" and "step_ms" in row
    ]


def training(result: dict[str, Any]) -> Rows:
    """What a newcomer asks of training on this card: speed, use of the card, memory."""
    models = {"full": "3B, all weights of the language model", "lora": "3B, LoRA"}
    models["full, sound bin"] = "3B, all weights, audio instead of images"
    rows = {row["what"]: row for row in result["rows"] if row["part"] == "steps"}
    return [
        {
            f"one {result['device']}, bins of 16,384 tokens": text,
            "tokens/s": f"{rows[what]['tokens_per_s']:,}",
            "MFU": f"{rows[what]['mfu']:.1%}",
            "GPU busy": f"{rows[f'{what}, profile']['busy']:.1%}" if f"{what}, profile" in rows else "",
            "waiting for data": f"{rows[what]['data_wait_ms'] / rows[what]['step_ms']:.2%}",
            "peak GiB": f"{rows[what]['peak_gib']:.0f}",
        }
        for what, text in models.items()
        if "step_ms" in rows.get(what, {})
    ]


def goals(result: dict[str, Any]) -> Rows:
    """What was to be reached, and what was. Steps of one goal that reached the same figure share a line."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for check in result["checks"]:
        goal, _, step = check["goal"].partition(" (")
        figures = (f"{check['value']:,}", f"{check['limit']:,}", "yes" if check["reached"] else "no")
        lines.setdefault((goal, *figures), []).append(step.removesuffix(")"))
    return [
        {
            "goal": f"{goal} ({steps[0]})" if len(steps) == 1 and steps[0] else goal,
            "steps": "" if len(steps) == 1 else f"all {len(steps)}",
            "measured": measured,
            "limit": limit,
            "reached": reached,
        }
        for (goal, measured, limit, reached), steps in lines.items()
    ]


def attention(result: dict[str, Any]) -> Rows:
    """Forward and backward pass by length of rows, a line for each way."""
    ways: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        if row["part"] == "attention" and "both_ms" in row:
            way, lengths = row["what"].split(", ", 1)
            mask = f" (mask {row['mask_ms']:.1f})" if "mask_ms" in row else ""
            ways.setdefault(way, {"attention": way})[lengths] = f"{row['forward_ms']:.2f} / {row['both_ms']:.2f}{mask}"
    return list(ways.values())


def loader(result: dict[str, Any]) -> Rows:
    """Milliseconds a bin by codec, a column for each number of readers."""
    codecs: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        if row["part"] == "loader" and "ms_a_bin" in row:
            codec, readers = row["what"].split(", ", 1)
            codecs.setdefault(codec, {"codec": codec})[readers] = f"{row['ms_a_bin']:.1f}"
    return list(codecs.values())


def dry_run(result: dict[str, Any]) -> Rows:
    """The peak that the dry run foretells and the one that training reaches."""
    return [
        {
            "run": row["what"],
            "dry run, GiB": f"{row['dry_run_gib']:.2f}",
            "training, GiB": f"{row['training_gib']:.2f}",
            "off by": f"{row['off']:+.2%}",
        }
        for row in result["rows"]
        if row["part"] == "memory" and "off" in row
    ]


def loops(result: dict[str, Any]) -> Rows:
    """A loop of one's own beside the trainer, both with checkpointing."""
    rows = [row for row in result["rows"] if row["part"] == "loops" and "step_ms" in row]
    rows += [row for row in result["rows"] if row["part"] == "steps" and row["what"] == "full, checkpointing"]
    names = {
        "full, checkpointing": "`omniprep train`",
        "omniprep's attention": "plain loop, `omniprep.packed_attention`",
    }
    return [
        {
            f"a step on one {result['device']}": names.get(row["what"], row["what"]),
            "ms": f"{row['step_ms']:,.0f}",
            "tokens/s": f"{row['tokens_per_s']:,}",
            "peak GiB": f"{row['peak_gib']:.1f}",
        }
        for row in rows
    ]


def classes(result: dict[str, Any]) -> Rows:
    """Classes of other families by the attention that was chosen for them."""
    names = {"omniprep_flash_varlen": "`varlen`", "omniprep_rows": "row by row"}
    ways: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        if row["part"] == "classes" and "attention" in row:
            ways.setdefault(names.get(row["attention"], row["attention"]), []).append(row)
    return [
        {
            "attention chosen": way,
            "types": ", ".join(sorted(row["what"] for row in rows)),
            "largest difference of a loss": f"{max(row['worst_loss'] for row in rows):.1%}",
        }
        for way, rows in ways.items()
    ]


def memory() -> Rows:
    """Reckoned peaks in GiB by bin length, and the longest bin of each card."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from memory_table import rows

    return [
        {key: f"{value:,}" if isinstance(value, int) else str(value) for key, value in row.items()} for row in rows()
    ]


def gpu_rows(name: str) -> Rows:
    """The rows of a table by its name after "gpu_"; none where nothing was measured."""
    if name == "memory":
        return memory()
    path = OTHER_CARD if name.startswith("h100_") else RESULT
    if not path.exists():
        return []
    tables = {
        "steps": steps, "goals": goals, "attention": attention, "loader": loader, "dry_run": dry_run,
        "training": training, "loops": loops, "classes": classes,
    }  # fmt: skip
    return tables[name.removeprefix("h100_")](json.loads(path.read_text()))
