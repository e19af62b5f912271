"""Packed attention: the rows of a bin never see each other, whatever kernel computes it.

Four ways, chosen by `choose_attention`:
- flash_attention_2: its variable-length kernel, told the row borders by cu_seq_lens_q/k and max_length_q/k.
- sdpa: one call of torch's scaled_dot_product_attention for each row (`ROWS`, registered with transformers). The cost
  is the sum of the squared row lengths instead of the squared bin length, and no mask is made: a dense mask of a 32k
  bin is 1 GiB, and with one torch leaves its flash kernel. The result for a row is that of the row alone, bit for bit.
- flex_attention, eager: transformers makes the block mask from the text positions (first of the four rows of
  position_ids). transformers 5.23 does so only without attention mask and with use_cache=False, else it mixes rows
  without a word.

`ROWS` computes causal attention, sliding windows, grouped heads, scaling and dropout. Whatever else a model asks for
(soft caps, sinks, position biases, masks of image blocks or chunks) is refused by name: an argument that is ignored
would only show as a worse model. `row_mask` sees every mask that a model asks transformers to make, `row_attention`
every argument of its layers; isolation.py compares the outcome with the model's own forward pass.
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, masking_utils

from omniprep.errors import OmniprepError

__all__ = ["ROWS", "choose_attention", "use_row_attention", "uses_rows"]

ROWS = "omniprep_rows"

# Arguments that transformers' models hand through to their attention and that change no result: the borders, which
# `row_attention` has already, switches about outputs and caches, and the number of tokens for the loss.
NEUTRAL = frozenset(
    {
        "position_ids", "cache_position", "cu_seq_lens_k", "max_length_q", "max_length_k", "use_cache", "return_dict",
        "output_hidden_states", "output_router_logits", "logits_to_keep", "num_items_in_batch", "deterministic",
    }
)  # fmt: skip

# Queries of a row with a sliding window that are computed in one call: the mask of a call has at most
# QUERIES x (QUERIES + window) entries, 21 MB for a window of 4,096, whatever the length of the row.
QUERIES = 2048


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
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    row_lengths: Sequence[int] | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each row of a bin alone; an attention function as transformers calls it.

    Args:
        module: The attention layer.
        query: (1, heads, L, d).
        key: (1, key heads, L, d); with fewer heads than queries they are shared.
        value: As key.
        attention_mask: What `row_mask` gave: None, or a window.
        dropout: Probability of dropping a weight.
        scaling: Factor of the scores (default 1/sqrt(d)).
        is_causal: Whether a token sees only those before it (default: as the layer says).
        sliding_window: Tokens that a token sees, itself included (default: all before it).
        cu_seq_lens_q: int32 (R+1) row borders.
        row_lengths: The same as R host integers, where the caller has them (saves a device wait in every layer).
        others: What else the layer names; refused unless it is None, False or `NEUTRAL`.

    Returns:
        (1, L, heads, d), and None for the weights.

    Raises:
        OmniprepError: The model asks for something that is not computed here, or gives no borders.
    """
    for name, given in others.items():
        if name not in NEUTRAL and given is not None and given is not False:
            raise OmniprepError(refusal(type(module).__name__, getattr(module, "config", None), name))
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise OmniprepError(refusal(type(module).__name__, getattr(module, "config", None), "is_causal=False"))
    if row_lengths is None:
        if cu_seq_lens_q is None:
            raise OmniprepError(
                "packed attention got no row borders: the model does not pass cu_seq_lens_q to its layers"
            )
        row_lengths = cu_seq_lens_q.diff().tolist()
    if attention_mask is not None:
        if attention_mask.numel() != 1:
            raise OmniprepError(refusal(type(module).__name__, getattr(module, "config", None), "attention_mask"))
        masked = int(attention_mask)
        if sliding_window not in (None, masked):
            raise OmniprepError(
                f"{type(module).__name__} asks for a sliding window of {sliding_window} with a mask of one of {masked}"
            )
        sliding_window = masked
    if query.shape[0] != 1 or sum(row_lengths) != query.shape[2]:
        raise OmniprepError("packed attention takes one bin, whose rows fill it")
    out = [
        windowed_attention(q, k, v, dropout, scaling, sliding_window)
        if sliding_window is not None and q.shape[2] > sliding_window
        else scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        for q, k, v in zip(*(torch.split(x, list(row_lengths), 2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(out, 2).transpose(1, 2).contiguous(), None


def windowed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None, window: int
) -> torch.Tensor:
    """Causal attention of one row to the last `window` tokens, the token itself included; shapes as `row_attention`."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1:  # with a mask, torch's fast kernels do not take grouped heads
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    parts = []
    for first in range(0, query.shape[2], QUERIES):
        last, begin = min(first + QUERIES, query.shape[2]), max(first - window + 1, 0)
        of_query = torch.arange(first, last, device=query.device)[:, None]
        of_key = torch.arange(begin, last, device=query.device)[None]
        seen = (of_key <= of_query) & (of_key > of_query - window)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, first:last],
                key[:, :, begin:last],
                value[:, :, begin:last],
                attn_mask=seen,
                dropout_p=dropout,
                scale=scaling,
            )
        )
    return torch.cat(parts, 2)


def refusal(who: str, config: Any, what: str) -> str:
    """Why a model cannot train with `ROWS`, and with what it can."""
    kind = getattr(config, "model_type", "") or "unknown"
    return (
        f"{who} (model type {kind}) attends with {what}, which SDPA row by row does not compute: use --attn eager, "
        "or --attn flex_attention on a GPU"
    )


def row_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    config: Any = None,
    **hints: object,
) -> torch.Tensor | None:
    """The mask of a bin for `ROWS`; a mask function as transformers calls it.

    Args:
        batch_size: 1.
        q_length: L.
        kv_length: L.
        q_offset: 0.
        kv_offset: 0.
        mask_function: Which token sees which: all that a mask is.
        attention_mask: Must be None: a bin has no padding outside of its rows.
        config: Of the language model.
        hints: How to make a mask tensor (dtype, device, use_vmap, which masks may be left out); none is made here.

    Returns:
        None for causal attention, the window (1, 1, 1, 1) on the host for a sliding one.

    Raises:
        OmniprepError: Another mask, or padding, or a cache.
    """
    if attention_mask is not None or q_offset or kv_offset or q_length != kv_length or batch_size != 1:
        raise OmniprepError("packed attention takes one bin, without padding and without a cache")
    known = causal_window(mask_function)
    if known is None or not known[0]:
        name = getattr(mask_function, "__qualname__", repr(mask_function)).split(".")[0]
        raise OmniprepError(refusal("the model", config, f"a mask that is not plainly causal ({name})"))
    return None if known[1] is None else torch.tensor(known[1]).reshape(1, 1, 1, 1)


# Masks of transformers are closures, and say what they are by the code that made them. A closure that is none of
# these is another mask; where a version of transformers writes them otherwise, all masks are refused and none is lost.
_AND = masking_utils.and_masks(masking_utils.causal_mask_function).__code__
_WINDOW = masking_utils.sliding_window_overlay(1).__code__
_SAME_ROW = masking_utils.packed_sequence_mask_function(torch.zeros(1, 1)).__code__
_REMAPPED = masking_utils.remap_positions_for_packed_sequence(
    masking_utils.causal_mask_function, torch.zeros(1, 1)
).__code__


def causal_window(mask_function: Callable[..., Any]) -> tuple[bool, int | None] | None:
    """What a mask of transformers lets a token see, within its own row.

    Returns:
        Whether it is causal, and its window (None: no window); None where it is anything else.
    """
    if mask_function is masking_utils.causal_mask_function:
        return True, None
    code = getattr(mask_function, "__code__", None)
    cells = getattr(mask_function, "__closure__", None) or ()
    held = {} if code is None else dict(zip(code.co_freevars, (cell.cell_contents for cell in cells), strict=True))
    if code is _SAME_ROW:  # rows are kept apart in any case
        return False, None
    if code is _WINDOW:
        return False, int(held["sliding_window"])
    if code is _REMAPPED:  # positions within the row instead of within the bin: `row_attention` counts them so too
        return causal_window(held["mask_function"])
    if code is not _AND:
        return None
    parts = [causal_window(part) for part in held["mask_functions"]]
    if any(part is None for part in parts):
        return None
    windows = [part[1] for part in parts if part is not None and part[1] is not None]
    return any(part[0] for part in parts if part is not None), min(windows, default=None)


AttentionInterface.register(ROWS, row_attention)
AttentionMaskInterface.register(ROWS, row_mask)


def use_row_attention(model: PreTrainedModel, on: bool = True) -> None:
    """Let the language model of `model` attend row by row (training), or by plain SDPA again (generation)."""
    text = model.config.get_text_config()
    text._attn_implementation = ROWS if on else "sdpa"


def uses_rows(model: PreTrainedModel) -> bool:
    """Whether the language model of `model` attends row by row.

    It then needs no text positions (the first of the four rows of position_ids): transformers would make the borders of
    rows of them, and wait for the device for it.
    """
    return bool(model.config.get_text_config()._attn_implementation == ROWS)
