"""One bin as plain data: its rows, where they came from, their text in trained and untrained pieces, their media.

This is what `inspect --json` prints and what the terminal view draws. Text is decoded a piece at a time, not a token
at a time, since a token of a byte-level vocabulary may be half a character.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omniprep.data.collate import cut_row
from omniprep.data.dataset import PackedDataset
from omniprep.errors import OmniprepError
from omniprep.families.guess import guess_model
from omniprep.inspect.trust import model_of_dataset

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "Media",
    "Piece",
    "Row",
    "Vocabulary",
    "describe_bin",
    "find_row",
    "load_vocabulary",
    "messages_of",
    "vocabulary_of",
]

_MESSAGE = re.compile(r"<\|im_start\|>([^\n]*)\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)
REPEATS = 4
"""So many equal special tokens in a row are a media span, shown once with their number."""


class Vocabulary:
    """Ids to text, with the tokenizer.json of a checkpoint; loads no transformers."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self.tokenizer = tokenizer
        self.special = np.array(sorted(self.tokenizer.get_added_tokens_decoder()), np.int64)
        """Ids that stand beside the byte-pair vocabulary, the media tokens among them."""

    def decode(self, ids: list[int]) -> str:
        """The text of some tokens, special ones included."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of tokens that are alike in being trained or not, and in being a media span or not."""

    text: str
    tokens: int
    trained: bool
    media: bool
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Media:
    """One media item: its modality and the integers that the shard holds for it."""

    modality: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a bin."""

    source: str
    line: int
    bin: int
    start: int
    tokens: int
    trained: int
    pieces: list[Piece]
    media: list[Media]

    def as_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def load_vocabulary(model: str) -> Vocabulary:
    """The vocabulary of a checkpoint that the user named (a folder or a Hub name).

    Raises:
        OmniprepError: The checkpoint or its tokenizer.json cannot be found, or is none.
    """
    path = Path(model) / "tokenizer.json"
    if not path.is_file():
        if Path(model).exists():
            raise OmniprepError(f"{path} is missing; name a checkpoint with --model")
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        from omniprep.hub.client import fault_of

        try:
            path = Path(hf_hub_download(model, "tokenizer.json"))
        except Exception as error:
            if fault_of(error) is None and not isinstance(error, (HFValidationError, LocalEntryNotFoundError, OSError)):
                raise
            raise OmniprepError(
                f"cannot get the tokenizer of {model!r}{guess_model(model)}; name a checkpoint with --model (a dataset "
                "remembers the one it was built with)"
            ) from error
    from tokenizers import Tokenizer

    try:
        return Vocabulary(Tokenizer.from_file(str(path)))
    except Exception as error:  # tokenizers raises nothing narrower for a file that is none
        raise OmniprepError(f"{path}: not a tokenizer that can be read: {error}") from error


def vocabulary_of(dataset: PackedDataset, model: str | None) -> Vocabulary:
    """The vocabulary that reads a dataset's tokens: of --model, else of the build's checkpoint where it is here.

    Raises:
        OmniprepError: Neither can be had. The dataset's own is never fetched (`omniprep.inspect.trust`).
    """
    return load_vocabulary(model_of_dataset(model, dataset.record, dataset.uri))


def find_row(dataset: PackedDataset, place: str) -> int:
    """Number in rows.parquet of `SOURCE:LINE`; SOURCE may be shortened to its end (images.jsonl:3).

    Raises:
        OmniprepError: No row, or several sources, of that name.
    """
    source, _, line = place.rpartition(":")
    if not source or not line.isdigit():
        raise OmniprepError(f"--row {place!r}: expected SOURCE:LINE, such as chats.jsonl:12")
    sources = np.asarray(dataset.rows["source"].to_pylist(), dtype=object)
    names = sorted(set(sources.tolist()))
    fitting = [name for name in names if name == source] or [name for name in names if name.endswith("/" + source)]
    if len(fitting) != 1:
        raise OmniprepError(f"--row {place!r}: {len(fitting) or 'no'} sources fit; there are: {', '.join(names[:8])}")
    found = np.flatnonzero((sources == fitting[0]) & (dataset.rows["line"].to_numpy() == int(line)))
    if len(found) == 0:
        raise OmniprepError(f"--row {place!r}: {fitting[0]} has no line {line}")
    return int(found[0])


def describe_bin(dataset: PackedDataset, number: int, vocabulary: Vocabulary) -> list[Row]:
    """The rows of one bin, in their order."""
    item = dataset[number]
    sources, lines = dataset.rows["source"], dataset.rows["line"]
    rows = []
    for position, row_id in enumerate(item["row_ids"].tolist()):
        cut = cut_row(item, position)
        rows.append(
            Row(
                source=sources[row_id].as_py(),
                line=lines[row_id].as_py(),
                bin=number,
                start=int(item["cu_seqlens"][position]),
                tokens=len(cut["input_ids"]),
                trained=int((cut["labels"] != -100).sum()),
                pieces=pieces_of(cut, vocabulary),
                media=media_of(cut),
            )
        )
    return rows


def pieces_of(cut: Mapping[str, Any], vocabulary: Vocabulary) -> list[Piece]:
    """Split one row where training begins or ends, where the weight changes, and around media spans."""
    ids, trained = cut["input_ids"], cut["labels"] != -100
    if len(ids) == 0:
        return []
    weights = cut.get("loss_scale")
    spans = _media_spans(ids, vocabulary.special)
    change = (trained[1:] != trained[:-1]) | (spans[1:] != spans[:-1]) | (spans[1:] & (ids[1:] != ids[:-1]))
    if weights is not None:
        change |= weights[1:] != weights[:-1]
    borders = [0, *(np.flatnonzero(change) + 1).tolist(), len(ids)]
    pieces = []
    for start, end in pairwise(borders):
        media = bool(spans[start])
        text = vocabulary.decode(ids[start : start + 1].tolist() if media else ids[start:end].tolist())
        weight = None if weights is None else float(weights[start])
        pieces.append(Piece(text, end - start, bool(trained[start]), media, weight))
    return pieces


def messages_of(pieces: list[Piece]) -> list[dict[str, str]]:
    """The messages of a row in ChatML; of other templates the whole text, with the role "text"."""
    text = "".join(f"[{piece.text} x {piece.tokens}]" if piece.media else piece.text for piece in pieces)
    found = [{"role": role, "content": content} for role, content in _MESSAGE.findall(text)]
    return found or [{"role": "text", "content": text}]


def _media_spans(ids: np.ndarray, special: np.ndarray) -> np.ndarray:
    """Whether each token stands in a run of `REPEATS` or more equal special tokens: bool (tokens,)."""
    borders = np.concatenate([[0], np.flatnonzero(ids[1:] != ids[:-1]) + 1, [len(ids)]])
    lengths = np.diff(borders)
    return np.repeat(lengths >= REPEATS, lengths) & np.isin(ids, special)


def media_of(cut: Mapping[str, Any]) -> list[Media]:
    """The media items of one row, with what the shard's items columns say of each."""
    found: list[Media] = []
    for column in cut["columns"]:
        if column.name not in cut:
            continue
        if column.kind == "items":
            new = [{column.name: value.tolist()} for value in cut[column.name]]
        elif column.load == "patches":
            step, names = int(column.params["patch_size"]), column.size_source()[0]
            new = [{"width": int(grid[-1]) * step, "height": int(grid[-2]) * step} for grid in cut[names]]
        else:
            continue
        known = [media for media in found if media.modality == column.modality]
        if not known:
            known = [Media(column.modality, {}) for _ in new]
            found += known
        for media, facts in zip(known, new, strict=True):
            media.facts.update(facts)
    return found
