"""Proof, at the start of every run, that the model computes on a bin what it computes on each of its rows alone.

A mistake in packed attention only shows as a worse model, so three things are tried with the weights at hand:
- two short rows as one bin, twice, with only the first changed: the second must not notice;
- a text row, longer than every window in the configuration (where a bin can hold one that long), against the model's
  own forward pass, with transformers' eager attention and without anything of packing, which with classes that
  nobody wrote a path for is called with what AutoProcessor gives, positions left to the class;
- a row of each modality, taken from the data, likewise: pictures may have masks of their own;
- the same rows, one of each modality that follows another with it, and the last row of the first bin, within their
  bins, as they lie between other rows in training.

The first and the second cost some forward passes of 64 tokens, or of twice the window; the third those of the
shortest rows of each modality in the first bins; the fourth one forward pass for each of these bins.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from omniprep.data import PackedDataset, stack, to_model
from omniprep.data.loss import LOSS_FIELDS
from omniprep.errors import OmniprepError
from omniprep.shards.cut import cut_row
from omniprep.train.attention_choice import own_attention
from omniprep.train.mixers import evaluating

SHORT = 64  # tokens of the text row where the configuration has no window
COMPARED = 64  # positions of a row that are compared, at most: their logits are 40 MB for 152,064 words
EAGER = 4096  # longest row that eager attention computes: its scores take 64 MB a head; SDPA makes none
SEARCHED = 8  # bins looked through for a modality before the table of rows is read
# Median distance of logits, relative to their length, that rounding explains. Rounding differs between kernels; in 16
# bits it may be several times this in deep models, so there the model's own kernels are compared with each other
# (`check_rows`).
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}
MOST_ROUNDING = 0.2
LOWEST = -1e30  # logits below it are of words that cannot be

Row = Mapping[str, Any]


@contextmanager
def failures_named(model: Any, what: str) -> Iterator[None]:
    """Refuse a model whose forward pass raises on a bin or a row, in one line."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        if isinstance(error, (OmniprepError, torch.OutOfMemoryError)):
            raise
        reason = " ".join(str(error).split())[:200]
        raise OmniprepError(
            f"{type(model).__name__} fails on {what}, so that it cannot train on this dataset: "
            f"{type(error).__name__}: {reason}"
        ) from error


def check_isolation(model: Any, vocabulary: int, *, mrope: bool = True) -> None:
    """Run two short rows as one bin, twice, with only the first row changed: the logits of the second must stay."""
    device = next(model.parameters()).device
    n = 8
    ids = text_ids(2 * n, vocabulary, device)
    other = ids.clone()
    other[:n] = ids[:n].flip(0) + 1
    packed = {"position_ids": position_ids([n, n], device, mrope), **borders([n, n], device), "use_cache": False}
    with evaluating(model):
        a, b = (model(input_ids=row[None], **packed).logits[0].float() for row in (ids, other))
    scale = float(a.abs().max())
    if torch.equal(a[:n], b[:n]) or float((a[n:] - b[n:]).abs().max()) > 1e-5 * scale:
        raise OmniprepError(
            "the rows of a bin see each other in this model's attention: choose another --attn, and please report it"
        )


def check_rows(model: Any, rows: Mapping[str, Row]) -> None:
    """Compare rows, each as a bin of its own, with the model's own forward pass (`plain_forward` of a wrapper)."""
    with evaluating(model):
        for what, row in rows.items():
            positions = compared_positions(model, row)
            with failures_named(model, f"{what} as a bin"):
                ours = logits_at(model, row, positions)
            compare_with_plain(model, row, positions, ours, f"{what} of a bin")


def check_bins(model: Any, chosen: Mapping[str, "ChosenRow"], device: torch.device, dtype: torch.dtype) -> None:
    """Compare rows within their bins with the model's own forward pass on each alone."""
    by_bin: dict[tuple[int, int], list[tuple[str, ChosenRow]]] = {}
    for what, row in chosen.items():
        by_bin.setdefault((id(row.dataset), row.bin), []).append((what, row))
    with evaluating(model):
        for entries in by_bin.values():
            item = entries[0][1].dataset[entries[0][1].bin]
            rows = [to_model(stack([cut_row(item, row.number)]), device, dtype) for _, row in entries]
            positions = [compared_positions(model, row) for row in rows]
            starts = [int(item["cu_seqlens"][row.number]) for _, row in entries]
            wanted = torch.cat([start + each for start, each in zip(starts, positions, strict=True)])
            with failures_named(model, f"a bin of {len(item['cu_seqlens']) - 1} rows with {rows_media(item)}"):
                packed = logits_at(model, to_model(stack([item]), device, dtype), wanted)
            found = torch.split(packed, [len(each) for each in positions])
            for (what, _), alone, each, ours in zip(entries, rows, positions, found, strict=True):
                compare_with_plain(model, alone, each, ours, f"{what} between the other rows of its bin")


def compare_with_plain(model: Any, row: Row, positions: Tensor, ours: Tensor, what: str) -> None:
    """Refuse logits (K, words) of a row at some positions that are not those of the model's own forward pass on it."""
    with failures_named(model, f"{what}, by its own forward pass"):
        theirs = plain_logits(model, row, positions)
    allowed = ROUNDING.get(computing_type(model), 2e-2)
    difference = distance(ours, theirs)
    if difference > allowed and allowed > ROUNDING[torch.float32]:
        # Language model and towers by other kernels than a moment ago, where there are several.
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], True):
            rounding = distance(plain_logits(model, row, positions, "sdpa"), theirs)
        allowed = max(allowed, min(4 * rounding, MOST_ROUNDING))
    if not difference <= allowed:
        raise OmniprepError(
            f"{type(model).__name__} computes something else on {what} than its own forward pass on the row alone "
            f"(logits differ by {difference:.2g} of their size, rounding is {allowed:.2g}): use --attn eager, and "
            "please report it"
        )


def check_losses(model: Any, rows: Mapping[str, Row]) -> None:
    """See that the losses of targets, which training takes, are the cross entropy of the logits compared before."""
    with evaluating(model):
        for what, row in rows.items():
            positions = compared_positions(model, row)
            targets = positions % 100  # any words
            expected = cross_entropy(logits_at(model, row, positions), targets, reduction="none")
            arguments = {k: v for k, v in row.items() if k not in LOSS_FIELDS} | {"use_cache": False}
            losses = model(**arguments, logits_to_keep=positions, targets=targets).losses
            difference = float((losses - expected).abs().max() / expected.abs().max())
            if not difference <= 10 * ROUNDING.get(computing_type(model), 2e-2):
                raise OmniprepError(
                    f"the losses of {type(model).__name__} on {what} are not those of its logits (they differ by "
                    f"{difference:.2g}): please report it"
                )


def check_replaced(model: Any, rows: Mapping[str, Row], replace: Callable[[], object], option: str) -> None:
    """Replace parts of a model by kernels that compute the same, and see that logits differ by rounding alone."""
    with evaluating(model):
        before = [logits_at(model, row, compared_positions(model, row)) for row in rows.values()]
    replace()
    allowed = 10 * ROUNDING[torch.float32] if computing_type(model) == torch.float32 else MOST_ROUNDING
    with evaluating(model):
        for (what, row), expected in zip(rows.items(), before, strict=True):
            difference = distance(logits_at(model, row, compared_positions(model, row)), expected)
            if not difference <= allowed:
                raise OmniprepError(
                    f"{type(model).__name__} computes something else on {what} with {option} (logits differ by "
                    f"{difference:.2g} of their size): use --no-{option.removeprefix('--')}, and please report it"
                )


def computing_type(model: torch.nn.Module) -> torch.dtype:
    """The type that a model's layers compute in: autocast's, where that is on, or that of the weights."""
    weights = next(model.parameters())
    kind = weights.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights.dtype


def text_row(model: Any, vocabulary: int, longest: int, *, mrope: bool = True) -> dict[str, Any]:
    """A row of text that is longer than every window in the configuration, as `omniprep.collate` gives it.

    `longest` is the longest row that training can meet; a window that none exceeds hides nothing.
    """
    device = next(model.parameters()).device
    reach = max((w for w in windows(model.config.get_text_config().to_dict()) if w < longest), default=0)
    length = min(max(2 * reach, SHORT), max(longest, 2))
    return {
        "input_ids": text_ids(length, vocabulary, device)[None],
        "position_ids": position_ids([length], device, mrope),
        **borders([length], device),
    }


def media_rows(
    datasets: Sequence[PackedDataset], device: torch.device, dtype: torch.dtype
) -> dict[str, dict[str, Any]]:
    """A short row of each modality that the datasets have, as `omniprep.collate` gives it."""
    return {
        what: to_model(stack([cut_row(row.dataset[row.bin], row.number)]), device, dtype)
        for what, row in chosen_rows(datasets).items()
    }


def chosen_rows(datasets: Sequence[PackedDataset]) -> dict[str, "ChosenRow"]:
    """`shortest_rows` under the names that errors have for them."""
    return {f"a row with {modality}": row for modality, row in shortest_rows(datasets).items()}


def shortest_rows(datasets: Sequence[PackedDataset]) -> dict[str, "ChosenRow"]:
    """Modality → the shortest row with it in the first bins; the same on every rank."""
    chosen: dict[str, ChosenRow] = {}
    for dataset in datasets:
        shown = set()
        for number in range(min(SEARCHED, len(dataset))):
            shown |= choose_rows(dataset, number, chosen)
        for modality in sorted(set(dataset.layout.modalities) - shown):
            late = bin_with(dataset, modality)
            if late is not None:
                choose_rows(dataset, late, chosen)
    return chosen


def rows_media(item: Mapping[str, Any]) -> str:
    """The modalities in a bin, in words."""
    counts = np.asarray(item["row_items"]).sum(0)
    return " and ".join(m for m, count in zip(item["modalities"], counts, strict=True) if count) or "text alone"


def filler_rows(datasets: Sequence[PackedDataset]) -> dict[str, dict[str, Any]]:
    """Modality → a short row with it, as a bin of its own (`Batcher.fillers`)."""
    return {
        modality: cut_row(row.dataset[row.bin], row.number) for modality, row in sorted(shortest_rows(datasets).items())
    }


def last_rows(datasets: Sequence[PackedDataset]) -> dict[str, "ChosenRow"]:
    """The last row of the first bin: whatever leaks from row to row has gone through all others."""
    if not datasets or not len(datasets[0]):
        return {}
    lengths = np.diff(datasets[0][0]["cu_seqlens"])
    return {"the last row": ChosenRow(int(lengths[-1]), datasets[0], 0, len(lengths) - 1)}


def later_rows(datasets: Sequence[PackedDataset]) -> dict[str, "ChosenRow"]:
    """For each modality, a row with it that another row with it precedes in its bin, under the name that errors have.

    What a class counts from the first item of its call (Molmo's indices of patches) is right in the first row alone.
    """
    chosen: dict[str, ChosenRow] = {}
    for dataset in datasets:
        for number in range(min(SEARCHED, len(dataset))):
            choose_later(dataset, number, chosen)
        for modality in dataset.layout.modalities:
            late = bin_with(dataset, modality, rows=2) if later_name(modality) not in chosen else None
            if late is not None:
                choose_later(dataset, late, chosen)
    return chosen


def later_name(modality: str) -> str:
    """What errors call a row of `later_rows`."""
    return f"a later row with {modality}"


def choose_later(dataset: PackedDataset, number: int, chosen: dict[str, "ChosenRow"]) -> None:
    """Put the last row of a bin with each modality into `chosen`, where an earlier row has it and none is chosen."""
    item, modalities = dataset[number], dataset.layout.modalities
    lengths = np.diff(item["cu_seqlens"])
    counts = np.asarray(item["row_items"]).reshape(len(lengths), len(modalities))
    for m, modality in enumerate(modalities):
        rows = np.flatnonzero(counts[:, m]).tolist()
        if len(rows) > 1:
            chosen.setdefault(later_name(modality), ChosenRow(int(lengths[rows[-1]]), dataset, number, rows[-1]))


class ChosenRow(NamedTuple):
    """The row that stands for a modality."""

    tokens: int
    dataset: PackedDataset
    bin: int
    number: int
    """Which row of the bin."""


def choose_rows(dataset: PackedDataset, number: int, chosen: dict[str, ChosenRow]) -> set[str]:
    """Put the rows of a bin into `chosen` where they are the shortest of their modality; the bin's modalities."""
    item, modalities = dataset[number], dataset.layout.modalities
    lengths = np.diff(item["cu_seqlens"])
    counts = np.asarray(item["row_items"]).reshape(len(lengths), len(modalities))
    shown = set()
    for m, modality in enumerate(modalities):
        for row in np.flatnonzero(counts[:, m]).tolist():
            shown.add(modality)
            if modality not in chosen or lengths[row] < chosen[modality].tokens:
                chosen[modality] = ChosenRow(int(lengths[row]), dataset, number, row)
    return shown


def bin_with(dataset: PackedDataset, modality: str, rows: int = 1) -> int | None:
    """The first bin with so many rows of a modality, by the table of rows; None where there is none."""
    counts = dataset.record.counts
    if counts is None or not counts.items.get(modality):
        return None
    table = dataset.rows
    packed = (table[f"{modality}s"].to_numpy() > 0) & table["bin"].is_valid().to_numpy()
    bins, numbers = np.unique(table["bin"].to_numpy()[packed], return_counts=True)
    enough = bins[numbers >= rows]
    return int(enough[0]) if len(enough) else None


def windows(config: Mapping[Any, Any]) -> Iterator[int]:
    """Every number of a language model's configuration that may bound what a token sees."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from windows(value)
        elif ("window" in str(name) or "chunk" in str(name)) and isinstance(value, int) and not isinstance(value, bool):
            yield value


def text_ids(length: int, vocabulary: int, device: torch.device) -> Tensor:
    """Ids (length) without a pattern that attention could rely on; below 50,000, where no control token stands."""
    return torch.arange(length, device=device) * 7919 % min(vocabulary, 50000)


def borders(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Row borders as `omniprep.collate` gives them."""
    edges = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    longest = max(lengths)
    return {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": longest, "max_length_k": longest}


def position_ids(lengths: Sequence[int], device: torch.device, mrope: bool) -> Tensor:
    """Positions of rows of text as `omniprep.collate` gives them: (4, 1, L), or (1, L) without m-rope."""
    plain = torch.cat([torch.arange(length, device=device) for length in lengths])
    return plain.expand(4, 1, -1) if mrope else plain[None]


def compared_positions(model: Any, row: Row) -> Tensor:
    """Positions (K) of a row at which a difference would show: beyond the largest window, where it has one."""
    length = int(row["input_ids"].shape[1])
    first = max((w for w in windows(model.config.get_text_config().to_dict()) if w < length), default=0)
    positions = torch.linspace(first, length - 1, min(COMPARED, length - first)).round().long()
    return positions.to(row["input_ids"].device)


def logits_at(forward: Any, row: Row, positions: Tensor) -> Tensor:
    """Logits (K, words) in float32 at some positions of a row."""
    arguments = {k: v for k, v in row.items() if k not in LOSS_FIELDS} | {"use_cache": False}
    logits: Tensor
    if "logits_to_keep" in inspect.signature(getattr(forward, "forward", forward)).parameters:
        logits = forward(**arguments, logits_to_keep=positions).logits[0]
    else:
        logits = forward(**arguments).logits[0][positions]
    return logits.float()


def plain_logits(model: Any, row: Row, positions: Tensor, attention: str = "eager") -> Tensor:
    """Logits (K, words) of the model's own forward pass on a row alone, as transformers would run it.

    `attention` is eager, which is how a model is defined, or sdpa, which a model may not have: it is eager again then.
    """
    packing = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    alone = {k: v for k, v in row.items() if k not in packing}
    wanted = "sdpa" if row["input_ids"].shape[1] > EAGER else attention
    for name in (wanted, "eager") if model._supports_sdpa else ("eager",):
        try:
            with own_attention(model, name):
                return logits_at(getattr(model, "plain_forward", model), alone, positions)
        except ValueError as error:  # transformers' SDPA refuses soft caps so
            if name == "eager" or isinstance(error, OmniprepError):
                raise
    raise AssertionError("eager attention was not tried")


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Median over positions of the distance between logits (K, words), relative to the length of theirs.

    The median, since in a mixture of experts rounding sends single tokens to other experts. Words that a class never
    lets a token be have the lowest number there is, or minus infinity, in both.
    """
    barred = (theirs < LOWEST) & (ours < LOWEST)
    ours, theirs = ours.masked_fill(barred, 0), theirs.masked_fill(barred, 0)
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).median())
