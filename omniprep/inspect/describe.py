"""Rows as people read them: where a row came from, its text in trained and untrained pieces, its media.

What `inspect`, `sample`, the report and the Hub's preview show of a row is made here. Text is decoded a piece at a
time, not a token at a time, since a token of a byte-level vocabulary may be half a character.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from omniprep.errors import OmniprepError
from omniprep.inspect.media import media_of
from omniprep.inspect.vocabulary import Vocabulary
from omniprep.shards.cut import cut_row
from omniprep.shards.dataset import StoredDataset
from omniprep.template.chat import CHATML_MESSAGE

REPEATS = 4
"""So many equal special tokens in succession are a media span, shown once with their number."""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A packed row: where it came from, and what the shard holds of it."""

    source: str
    line: int
    bin: int
    start: int
    """First token in the bin."""
    arrays: dict[str, Any]
    """The row cut out of its bin (`omniprep.shards.cut.cut_row`); of a pair one answer."""
    verdict: str = ""
    """preferred or rejected of a pair, desirable or undesirable of a row with a label, "" of an ordinary row."""
    pair: int | None = None
    """Number of its pair in the bin."""

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.arrays["input_ids"])

    @property
    def trained(self) -> int:
        """Number of tokens with a label."""
        return int((self.arrays["labels"] != -100).sum())

    def as_json(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """As `inspect --json` prints it."""
        facts = {name: getattr(self, name) for name in ("source", "line", "bin", "start", "tokens", "trained")}
        if self.verdict:
            facts["verdict"] = self.verdict
        if self.pair is not None:
            facts["pair"] = self.pair
        media = [{"modality": item.modality, "facts": item.facts} for item in media_of(self.arrays)]
        return {**facts, "pieces": [asdict(piece) for piece in pieces_of(self.arrays, vocabulary)], "media": media}


def rows_of_bin(dataset: StoredDataset, number: int) -> list[StoredRow]:
    """The rows of one bin, in their order; their arrays are views of one buffer.

    The two answers of a pair are neighbors, the preferred one first (`pairs_together`).
    """
    item = dataset[number]
    sources, lines = dataset.rows["source"], dataset.rows["line"]
    starts = item["cu_seqlens"].tolist()
    return [
        StoredRow(
            sources[row_id].as_py(), lines[row_id].as_py(), number, starts[position], cut_row(item, position),
            *_verdict(item, position),
        )
        for position, row_id in enumerate(item["row_ids"].tolist())
    ]  # fmt: skip


def _verdict(item: Mapping[str, Any], position: int) -> tuple[str, int | None]:
    """What a row of a bin is to a preference objective, and the number of its pair."""
    if "chosen" not in item or item["chosen"][position] < 0:
        return "", None
    pair, chosen = int(item["pair_ids"][position]), bool(item["chosen"][position])
    if pair >= 0:
        return "preferred" if chosen else "rejected", pair
    return "desirable" if chosen else "undesirable", None


def pairs_together(rows: Iterable[StoredRow]) -> list[tuple[StoredRow, ...]]:
    """Rows of a bin as they came: (preferred, rejected) of a pair, else (row,)."""
    together: list[tuple[StoredRow, ...]] = []
    for row in rows:
        if row.verdict == "rejected" and together:
            together[-1] = (*together[-1], row)
        else:
            together.append((row,))
    return together


def packed_rows(dataset: StoredDataset, number: int) -> tuple[StoredRow, ...]:
    """A row by its number in rows.parquet, of a pair both answers; the error has the code where it was rejected."""
    row = dataset.rows.slice(number, 1).to_pylist()[0]
    item = dataset.stored_row(number)
    starts = (item["cu_seqlens"] + (row["start"] or 0)).tolist()
    return tuple(
        StoredRow(
            row["source"], row["line"], row["bin"], starts[position], cut_row(item, position),
            *_verdict(item, position),
        )
        for position in range(len(item["row_ids"]))
    )  # fmt: skip


def find_row(dataset: StoredDataset, name: str) -> int:
    """Number in rows.parquet of `SOURCE:LINE`; SOURCE may be shortened to its end (images.jsonl:3)."""
    source, _, line = name.rpartition(":")
    if not source or not line.isdigit():
        raise OmniprepError(f"--row {name!r}: expected SOURCE:LINE, such as chats.jsonl:12")
    sources = sorted(dataset.rows["source"].unique().to_pylist())
    matching = [known for known in sources if known == source] or [s for s in sources if s.endswith("/" + source)]
    if len(matching) != 1:
        known = ", ".join(sources[:8])
        raise OmniprepError(f"--row {name!r}: {len(matching) or 'no'} sources fit; there are: {known}")
    return dataset.row_number(matching[0], int(line))


class TokenRun(NamedTuple):
    """Tokens start .. end of a row that are alike: all trained or none, of one weight, text or one media span."""

    start: int
    end: int
    trained: bool
    media: bool
    weight: float | None


def token_runs(
    arrays: Mapping[str, Any], special: np.ndarray, repeats: int = REPEATS, text_breaks: np.ndarray | None = None
) -> list[TokenRun]:
    """Split a row where training begins or ends, where the weight changes, and around media spans.

    A span is `repeats` equal `special` tokens in succession. Text is also split after a token of `text_breaks` (L-1,).
    """
    ids, trained, weights = arrays["input_ids"], arrays["labels"] != -100, arrays.get("loss_scale")
    if len(ids) == 0:
        return []
    differs = ids[1:] != ids[:-1]
    edges = np.concatenate([[0], np.flatnonzero(differs) + 1, [len(ids)]])
    lengths = np.diff(edges)
    media = np.repeat(lengths >= repeats, lengths) & np.isin(ids, special)
    splits = (trained[1:] != trained[:-1]) | (media[1:] != media[:-1]) | (media[1:] & differs)
    if weights is not None:
        splits |= weights[1:] != weights[:-1]
    if text_breaks is not None:
        splits |= ~media[1:] & text_breaks
    runs = []
    for start, end in pairwise([0, *(np.flatnonzero(splits) + 1).tolist(), len(ids)]):
        weight = None if weights is None else float(weights[start])
        runs.append(TokenRun(start, end, bool(trained[start]), bool(media[start]), weight))
    return runs


@dataclass(frozen=True, slots=True)
class Piece:
    """A token run as text; of a media span the text of one token."""

    text: str
    tokens: int
    trained: bool
    media: bool
    weight: float | None = None


def pieces_of(arrays: Mapping[str, Any], vocabulary: Vocabulary) -> list[Piece]:
    """The text of a row, split where it is alike."""
    ids = arrays["input_ids"]
    return [
        Piece(
            vocabulary.decode(ids[run.start : run.start + 1 if run.media else run.end].tolist()),
            run.end - run.start, run.trained, run.media, run.weight,
        )
        for run in token_runs(arrays, vocabulary.special)
    ]  # fmt: skip


def messages_of(pieces: list[Piece]) -> list[dict[str, str]]:
    """The messages of a row in ChatML; of other templates what the model is given (role prompt) and what it learns to
    write (assistant), and a text that has only one of both with the role text.
    """
    texts = [f"[{piece.text} x {piece.tokens}]" if piece.media else piece.text for piece in pieces]
    if messages := [{"role": role, "content": content} for role, content in CHATML_MESSAGE.findall("".join(texts))]:
        return messages
    if len({piece.trained for piece in pieces if not piece.media}) < 2:
        return [{"role": "text", "content": "".join(texts)}]
    for piece, text in zip(pieces, texts, strict=True):
        role = "assistant" if piece.trained else "prompt"
        if messages and (piece.media or messages[-1]["role"] == role):
            messages[-1]["content"] += text
        else:
            messages.append({"role": role, "content": text})
    return messages
