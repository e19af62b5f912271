"""The host half of loading: bins become contiguous tensors, media still as they are stored.

`stack` is what DataLoader workers run; `to_model` finishes on the device; `collate` is both. One bin is not copied,
apart from its few kilobytes of integers, which the model wants as int64: its media tensors look into the buffer that
the bin was read into. Several bins are laid end to end, as one longer bin, which copies their media once. What a media
column becomes is said by its `Column.load`, never by its name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from omniprep.data.arguments import needs_shapes, to_model
from omniprep.errors import OmniprepError
from omniprep.shards.codecs import without_codec
from omniprep.shards.content import item_shapes, item_sizes
from omniprep.shards.pairs import batch_pairs
from omniprep.shards.reader import BufferPool
from omniprep.shards.schema import Column

Arrays = Mapping[str, Any]

_POOL = BufferPool()  # for the media of several bins: fresh pages would cost more than the copy


def collate(
    bins: Sequence[Arrays], device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Arguments of the model's forward for some bins laid end to end.

    Args:
        bins: Items of a PackedDataset; L tokens and R rows together.
        device: Where the tensors go (default: the host).
        dtype: Type of the media (default: float32, to the bit what the processor makes).

    Returns:
        input_ids, labels: int64 (1, L). position_ids: int64 (4, 1, L), positions in the row first, then the three
        m-rope rows; (1, L), positions in the row, for families without m-rope (Qwen2-Audio). loss_scale: float32
        (1, L), where the dataset is weighted; the labels are then `omniprep.data.loss.WeightedLabels`, whose loss is
        `omniprep.weighted_loss`. cu_seq_lens_q, cu_seq_lens_k: int32 (R+1,), borders of the rows; max_length_q,
        max_length_k: the longest row (int). Of a dataset of preference rows also pair_ids and chosen, int64 (R,): the
        number of each row's pair in the batch (-1: it has no partner), and whether it is the preferred answer (1), the
        rejected one (0), or has no verdict (-1), and reference_logps, float32 (R,), where `omniprep score` has stored
        them; the labels are then `omniprep.data.loss.PreferenceLabels`, from which
        no ordinary loss is made. use_cache: False, since with a cache transformers looks for no borders
        and lets the rows see each other. Media, where there are any: grids int64 (items, 3); pixel_values,
        pixel_values_videos (patches, 1176); input_features (clips, 128, frames) with its mask int64 (clips, frames).

    Raises:
        OmniprepError: There are no bins, or they are not of one kind: of two families, some weighted and some not, or
            with media that are stored or normalized in different ways.
    """
    return to_model(stack(bins), device, dtype)


def stack(bins: Sequence[Arrays]) -> dict[str, Any]:
    """Host tensors of some bins laid end to end, media as stored: uint8 patches, bfloat16 spectrograms.

    Args:
        bins: Items of a PackedDataset, of one dataset or of alike ones; pixel codecs may differ.

    Raises:
        OmniprepError: As `collate`.

    Returns:
        As `collate`, but for the media, and with what `to_model` needs beside them: the declarations of the columns
        under "columns", shapes of items, where a column's join needs them, under "item_shapes".
    """
    check_alike(bins)
    lengths = np.concatenate([np.diff(b["cu_seqlens"]) for b in bins])
    borders = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=borders[1:])
    cu_seq_lens, longest = torch.from_numpy(borders), int(lengths.max(initial=0))
    stacked: dict[str, Any] = {
        "input_ids": _tokens(bins, "input_ids", np.int64),
        "labels": _tokens(bins, "labels", np.int64),
        "position_ids": _positions(bins, borders, lengths),
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
        "use_cache": False,
        "columns": bins[0]["columns"],
    }
    if "loss_scale" in bins[0]:
        stacked["loss_scale"] = _tokens(bins, "loss_scale", np.float32)
    if bins[0]["layout"].preferences:
        pair_ids, chosen = batch_pairs(bins)
        stacked |= {"pair_ids": torch.from_numpy(pair_ids), "chosen": torch.from_numpy(chosen)}
        if all("reference_logps" in b for b in bins):
            stacked["reference_logps"] = torch.from_numpy(np.concatenate([b["reference_logps"] for b in bins]))
    for column in bins[0]["columns"]:
        holding = [b for b in bins if column.name in b]
        if column.load == "none" or not holding:
            continue
        if column.load == "mel":
            stacked[column.name], stacked[column.params["mask"]] = _padded(column, holding)
        elif column.kind == "tokens":
            stacked[column.name] = _tensor(column, np.concatenate([b[column.name] for b in holding])[None])
        else:
            stacked[column.name] = _joined(column, [b[column.name] for b in holding])
        if needs_shapes(column):
            shapes = tuple(shape for b in holding for shape in item_shapes(column, b))
            stacked.setdefault("item_shapes", {})[column.name] = shapes
    return stacked


def check_alike(bins: Sequence[Arrays]) -> None:
    """Raise where bins cannot be laid end to end: what one forward pass does is said by the first of them."""
    if not bins:
        raise OmniprepError("collate and stack take at least one bin")
    first = bins[0]["layout"]
    for layout in (item["layout"] for item in bins[1:]):
        if layout is first or without_codec(layout) == without_codec(first):
            continue
        if layout.family != first.family:
            what = f"of two families, {first.family!r} and {layout.family!r}"
        elif layout.preferences != first.preferences:
            what = "of a dataset of preference rows and of one of ordinary rows"
        elif layout.weighted != first.weighted:
            what = "of a dataset with loss weights (--loss-scale) and of one without"
        else:
            what = "of datasets whose media are stored or normalized in different ways"
        raise OmniprepError(f"these bins cannot be one batch: they are {what}; give each its own loader")


def _tokens(bins: Sequence[Arrays], name: str, dtype: type[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([b[name] for b in bins], dtype=dtype)[None])


def _positions(bins: Sequence[Arrays], borders: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    plain = np.arange(borders[-1]) - np.repeat(borders[:-1].astype(np.int64), lengths)
    if not bins[0]["layout"].mrope:
        return torch.from_numpy(plain[None])
    positions = np.empty((4, 1, len(plain)), np.int64)
    positions[:] = plain
    start = 0
    for item in bins:
        end = start + len(item["input_ids"])
        if "position_ids" in item:
            positions[1:, 0, start:end] = item["position_ids"]
        start = end
    return torch.from_numpy(positions)


def _joined(column: Column, parts: list[np.ndarray]) -> torch.Tensor:
    if column.kind != "flat":
        values = np.concatenate(parts)
        return _tensor(column, values.astype(np.int64) if values.dtype == np.int32 else values)
    if len(parts) == 1:
        return _tensor(column, parts[0])
    # This copy takes 5 ms for a bin of 28 MB (raw pixels, two bins a batch), where the step takes 2 s. Reading the bins
    # so that their pixels lie end to end saved it at the price of a second reader, and gained nothing with a codec.
    joined = _POOL.take(sum(part.nbytes for part in parts)).view(parts[0].dtype).reshape(-1, *parts[0].shape[1:])
    return _tensor(column, np.concatenate(parts, out=joined))


def _padded(column: Column, bins: Sequence[Arrays]) -> tuple[torch.Tensor, torch.Tensor]:
    """Spectrograms (clips, height, frames) padded to the longest or to `pad_to` frames, and their mask.

    Padded with zeros, or by their last frame where `pad` is "edge"; `valid` names the column of the frames that count,
    where more than those are stored.
    """
    sizes = [item_sizes(column, b) for b in bins]
    frames = np.concatenate(sizes)
    longest = max(int(frames.max()), column.params.get("pad_to") or 0)
    features = np.zeros((len(frames), column.unit, longest), bins[0][column.name].dtype)
    clip = 0
    for item, counts in zip(bins, sizes, strict=True):
        start = 0
        for count in counts.tolist():
            end = start + count * column.unit
            features[clip, :, :count] = item[column.name][start:end].reshape(column.unit, count)
            if column.params.get("pad") == "edge":
                features[clip, :, count:] = features[clip, :, count - 1 : count]
            start, clip = end, clip + 1
    valid = np.concatenate([b[column.params["valid"]] for b in bins]) if column.params.get("valid") else frames
    mask = (np.arange(longest) < valid[:, None]).astype(np.int64)
    return _tensor(column, features), torch.from_numpy(mask)


def _tensor(column: Column, values: np.ndarray) -> torch.Tensor:
    if column.dtype == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)
