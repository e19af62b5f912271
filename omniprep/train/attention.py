"""Packed attention: the rows of a bin never see each other, whatever kernel computes it.

Four ways, chosen by `choose_attention`:
- flash_attention_2: its variable-length kernel, told the row borders by cu_seq_lens_q/k and max_length_q/k.
- sdpa: one call of torch's scaled_dot_product_attention for each row (`ROWS`, registered with transformers). The cost
  is the sum of the squared row lengths instead of the squared bin length, and no mask is made: a dense mask of a 32k
  bin is 1 GiB, and with one torch leaves its flash kernel. The result for a row is that of the row alone, bit for bit.
- flex_attention, eager: transformers makes the block mask from the text positions (first of the four rows of
  position_ids). transformers 5.23 does so only without attention mask and with use_cache=False, else it mixes rows
  without a word.

`check_isolation` proves it for the model at hand at the start of every run, since a mistake here only shows as a worse
model. The vision and audio towers keep images, windows and clips apart by their own cu_seqlens under every
implementation.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from omniprep.errors import OmniprepError

__all__ = ["ROWS", "check_isolation", "choose_attention", "use_row_attention"]

ROWS = "omniprep_rows"


def choose_attention(wanted: str, device: str, dtype: torch.dtype) -> str:
    """Resolve `--attn`.

    Args:
        wanted: auto, flash_attention_2, sdpa, flex_attention or eager.
        device: Device type, "cuda" or "cpu".
        dtype: Type of the weights.

    Returns:
        flash_attention_2, sdpa, flex_attention or eager.

    Raises:
        OmniprepError: The implementation cannot run here.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    installed = importlib.util.find_spec("flash_attn") is not None
    if wanted == "auto":
        return "flash_attention_2" if device == "cuda" and half and installed else "sdpa"
    if wanted == "flash_attention_2":
        if not installed:
            raise OmniprepError("--attn flash_attention_2: the package flash-attn is not installed; use --attn sdpa")
        if device != "cuda" or not half:
            raise OmniprepError("--attn flash_attention_2 needs a GPU and --dtype bfloat16; use --attn sdpa")
    if wanted == "flex_attention" and device != "cuda":
        raise OmniprepError("--attn flex_attention needs a GPU; use --attn sdpa")
    return wanted


def row_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    row_lengths: Sequence[int] | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each row of a bin alone; an attention function as transformers calls it.

    Args:
        module: The attention layer (unused).
        query: (1, heads, L, d).
        key: (1, key heads, L, d); with fewer heads than queries they are shared.
        value: As key.
        attention_mask: Must be None: the borders say all.
        dropout: Probability of dropping a weight.
        scaling: Factor of the scores (default 1/sqrt(d)).
        cu_seq_lens_q: int32 (R+1) row borders.
        row_lengths: The same as R host integers, where the caller has them (saves a device wait in every layer).

    Returns:
        (1, L, heads, d), and None for the weights.
    """
    if row_lengths is None:
        if cu_seq_lens_q is None:
            raise OmniprepError(
                "packed attention got no row borders: the model does not pass cu_seq_lens_q to its layers"
            )
        row_lengths = cu_seq_lens_q.diff().tolist()
    if attention_mask is not None or query.shape[0] != 1 or sum(row_lengths) != query.shape[2]:
        raise OmniprepError("packed attention takes one bin without attention mask, whose rows fill it")
    out = [
        scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        for q, k, v in zip(*(torch.split(x, list(row_lengths), 2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(out, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(ROWS, row_attention)


def use_row_attention(model: PreTrainedModel, on: bool = True) -> None:
    """Let the language model of `model` attend row by row (training), or by plain SDPA again (generation)."""
    text = model.config.get_text_config()
    text._attn_implementation = ROWS if on else "sdpa"


def check_isolation(model: torch.nn.Module, vocabulary: int) -> None:
    """Run two short rows as one bin, twice, with only the first row changed: the logits of the second must stay.

    Args:
        model: Takes the keyword arguments of `omniprep.collate` and gives `.logits`.
        vocabulary: Ids are taken below this.

    Raises:
        OmniprepError: The rows mix.
    """
    device = next(model.parameters()).device
    n = 8
    ids = torch.arange(2 * n, device=device) * 7919 % min(vocabulary, 50000)
    other = ids.clone()
    other[:n] = ids[:n].flip(0) + 1
    positions = torch.arange(n, device=device).repeat(2).expand(4, 1, -1)
    borders = torch.tensor([0, n, 2 * n], dtype=torch.int32, device=device)
    packed: dict[str, Any] = {
        "position_ids": positions,
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": n,
        "max_length_k": n,
        "use_cache": False,
    }
    training = model.training
    model.eval()
    with torch.no_grad():
        a, b = (model(input_ids=row[None], **packed).logits[0].float() for row in (ids, other))
    model.train(training)
    scale = float(a.abs().max())
    if torch.equal(a[:n], b[:n]) or float((a[n:] - b[n:]).abs().max()) > 1e-5 * scale:
        raise OmniprepError(
            "the rows of a bin see each other in this model's attention: choose another --attn, and please report it"
        )
