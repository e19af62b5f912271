"""Rows of any chat model of transformers as its own processor makes them, and several of them as one bin."""

import re
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor

AUDIO_RATE = 16000


def media_of(processor: Any) -> tuple[str, ...]:
    """What a processor takes: image, audio or both."""
    has_audio = any(hasattr(processor, name) for name in ("feature_extractor", "audio_processor"))
    return (*(("image",) if hasattr(processor, "image_processor") else ()), *(("audio",) if has_audio else ()))


def item(modality: str, number: int) -> dict[str, Any]:
    """A picture or a sound of noise, each number of another size."""
    rng = np.random.default_rng(number)
    if modality == "image":
        height, width = ((60, 90), (150, 70), (224, 224), (90, 300))[number % 4]
        return {"type": "image", "image": Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))}
    return {"type": "audio", "audio": rng.normal(size=(AUDIO_RATE // 2) * (1 + number % 3)).astype(np.float32)}


def make_row(processor: Any, items: list[dict[str, Any]], words: int) -> dict[str, torch.Tensor]:
    """Arguments of a forward pass of one row: media, a question of some words, an answer."""
    question = [*items, {"type": "text", "text": " ".join(f"word {n}" for n in range(words))}]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [{"type": "text", "text": "an answer of several words"}]},
    ]
    made = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    return {k: v for k, v in made.items() if k != "attention_mask" and isinstance(v, torch.Tensor)}


def rows_of(model: str, lengths: tuple[int, ...] = (5, 90, 1), *, pairs: bool = True) -> list[dict[str, torch.Tensor]]:
    """Rows with no, one and (`pairs`) two items of each modality that a processor takes, and long text."""
    processor = AutoProcessor.from_pretrained(model)
    rows = [make_row(processor, [], lengths[1])]
    for modality in media_of(processor):
        rows += [make_row(processor, [item(modality, n)], lengths[0]) for n in range(2)]
        if pairs:
            rows.append(make_row(processor, [item(modality, 2), item(modality, 3)], lengths[2]))
    rows.append(make_row(processor, [], lengths[2]))
    return rows


def one_bin(rows: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Rows end to end: tokens and per-token arrays along the tokens, media one after the other."""
    lengths = [row["input_ids"].shape[1] for row in rows]
    out: dict[str, Any] = {"row_lengths": tuple(lengths)}
    for name in dict.fromkeys(name for row in rows for name in row):
        parts = [row[name] for row in rows if name in row]
        if name == "position_ids":
            out[name] = torch.cat(parts, -1)
        elif all(name in row and row[name].shape == row["input_ids"].shape for row in rows):
            out[name] = torch.cat(parts, 1)
        else:
            out[name] = laid_out(name, parts)
    edges = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    return out | {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": max(lengths)}


def laid_out(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """Media of several rows: along the first axis, or along the second where the first is a batch of rows (Idefics)."""
    first = parts[0]
    in_rows = all(part.shape[0] == 1 for part in parts) and first.ndim in (4, 5) and re.search("pixel", name)
    counts = {part.shape[1] for part in parts if part.ndim > 1}
    if in_rows and len(counts) > 1 and first.ndim == 5 and first.shape[2] != 3:
        raise AssertionError(f"{name}: {[tuple(p.shape) for p in parts]}")
    if any(part.shape[1:] != first.shape[1:] for part in parts):
        largest = [max(part.shape[d] for part in parts) for d in range(1, first.ndim)]
        gaps = [[n for d in reversed(range(1, p.ndim)) for n in (0, largest[d - 1] - p.shape[d])] for p in parts]
        parts = [torch.nn.functional.pad(part, gap) for part, gap in zip(parts, gaps, strict=True)]
    return torch.cat(parts)


def row_slices(lengths: tuple[int, ...]) -> list[slice]:
    """Where each row of a bin lies."""
    return [slice(start, end) for start, end in pairwise([0, *np.cumsum(lengths).tolist()])]
