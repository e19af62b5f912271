"""The prompts of a built dataset as a file: chats with their media, or token ids and media for vLLM."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omniprep.config import Trust, build_config
from omniprep.errors import OmniprepError, UsageError
from omniprep.export.chats import SkippedChat, chat_lines
from omniprep.inspect.trust import model_of_dataset, with_missing_flags
from omniprep.shards.dataset import StoredDataset
from omniprep.shards.manifest import TRUST_FLAGS

PromptForm = Literal["chats", "tokens"]
_SUFFIXES = {"chats": ".jsonl", "tokens": ".parquet"}
_LINES_A_GROUP = 64
"""Rows of a row group: with ten pictures of 1 MB each, 640 MB are held."""


@dataclass(slots=True)
class ExportedPrompts:
    """What was written, and which packed rows have no prompt."""

    written: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """Reason → SOURCE:LINE of each row."""

    def skip(self, row: str, reason: str) -> None:
        """Take note of a row without a prompt."""
        self.skipped.setdefault(reason, []).append(row)

    def messages(self) -> list[str]:
        """A line for each reason, with its first row."""
        return [f"{len(rows):,} rows have no prompt: {reason} ({rows[0]})" for reason, rows in self.skipped.items()]


def export_prompts(
    dataset: str | os.PathLike[str], out: str | os.PathLike[str], form: PromptForm = "chats", *,
    model: str | None = None, inputs: Sequence[str] = (), trust: Trust | None = None,
    check_pixels: Literal["first", "always", "never"] = "first", done: Callable[[int], None] = lambda count: None,
) -> ExportedPrompts:  # fmt: skip
    """Write a prompt for each packed row: its chat up to its last answer, and that answer.

    Args:
        dataset: A finished dataset.
        out: File to write; it must not exist. .jsonl for chats, .parquet for tokens.
        form: "chats": messages and media of the inputs, which must be as they were when the dataset was built.
            "tokens": token ids and media of the shards (`omniprep.read_prompts` reads them for vLLM).
        model: For tokens: checkpoint whose tokenizer and settings are taken (default: the build's, if it is here).
        inputs: For chats: inputs, or folders of them, that are read even if they changed.
        trust: What lets code run and opens folders (default: nothing).
        check_pixels: As of `omniprep.PackedDataset`.
        done: Called with 1 after each row.

    Raises:
        OmniprepError: No row has a prompt; the family has none in this form; an input is not what it was.
    """
    target, opened = Path(out), StoredDataset(dataset, check_pixels=check_pixels)
    if form not in _SUFFIXES:
        raise UsageError(f"prompts are 'chats' or 'tokens', not {form!r}")
    if target.suffix != _SUFFIXES[form]:
        raise UsageError(f"--out {target}: prompts as {form} are a {_SUFFIXES[form]} file")
    if target.exists():
        raise UsageError(f"--out {target} exists; name another file, or remove it")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"--out {target}: no such folder")
    trust = trust or Trust()
    result = ExportedPrompts()
    lines = _chats(opened, trust, inputs, result) if form == "chats" else _tokens(opened, trust, model, result)
    write = _write_json if form == "chats" else _write_parquet
    with _replaced(target) as part:
        write(part, _counted(lines, result, done))
        if not result.written:
            reasons = "; ".join(result.messages()) or "it has no packed rows"
            raise OmniprepError(f"{opened.uri}: no row gives a prompt: {reasons}")
    return result


def _chats(dataset: StoredDataset, trust: Trust, inputs: Sequence[str], result: ExportedPrompts) -> Iterator[Any]:
    for line in chat_lines(dataset, trust, inputs):
        if isinstance(line, SkippedChat):
            result.skip(f"{line.source}:{line.line}", line.reason)
            yield None
        else:
            yield line


def _tokens(dataset: StoredDataset, trust: Trust, model: str | None, result: ExportedPrompts) -> Iterator[Any]:
    from omniprep.compiler.options import family_of
    from omniprep.export.tokens import PromptCutter

    record = dataset.record
    config = build_config(record.config, trust, model=model_of_dataset(model, record, dataset.uri))
    try:
        ctx = family_of(config)
    except OmniprepError as error:
        raise with_missing_flags(
            error, record, [flag for name, flag in TRUST_FLAGS.items() if getattr(trust, name)]
        ) from error
    for line in PromptCutter(ctx, dataset).lines(dataset):
        if isinstance(line, tuple):
            row, reason = line
            result.skip(f"{row.source}:{row.line}", str(reason))
            yield None
        else:
            yield line


def _counted(
    lines: Iterable[dict[str, Any] | None], result: ExportedPrompts, done: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line is not None:
            result.written += 1
            yield line
        done(1)


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A path beside the file, renamed to it when all is written; nothing is left of it after an error."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _write_json(path: Path, lines: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, lines: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from omniprep.data.prompts import PROMPT_SCHEMA

    group: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, PROMPT_SCHEMA) as writer:
        for line in lines:
            group.append(line)
            if len(group) == _LINES_A_GROUP:
                writer.write_table(pa.Table.from_pylist(group, PROMPT_SCHEMA))
                group.clear()
        if group:
            writer.write_table(pa.Table.from_pylist(group, PROMPT_SCHEMA))
