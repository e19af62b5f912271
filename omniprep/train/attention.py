"""Packed attention: the rows of a bin never see each other, whatever kernel computes it.

Two attention functions of our own, as transformers calls them, each with borders of rows instead of a mask:
- `VARLEN`: one call of a variable-length kernel (varlen.py) for all rows of a bin, or for all windows, images and clips
  of a tower.
- `ROWS`: one call of torch's scaled_dot_product_attention for each row. The cost is the sum of the squared row lengths
  instead of the squared bin length, and no mask is made: a dense mask of a 32k bin is 1 GiB, and with one torch leaves
  its flash kernel. The result for a row is that of the row alone, bit for bit. Many short rows are many short kernels,
  so that a GPU has `VARLEN` where it can.

`VARLEN` and `ROWS` compute causal attention, sliding windows, grouped heads, scaling and, where the kernel does, soft
caps and dropout. Whatever else a model asks for (sinks, position biases, masks of image blocks or chunks) is refused by
name: an argument that is ignored would only show as a worse model. `row_mask` sees every mask that a model asks
transformers to make, the attention functions every argument of its layers; isolation.py compares the outcome with the
model's own forward pass.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, masking_utils

from omniprep.errors import OmniprepError
from omniprep.train.varlen import VarlenKernel, attend_segments

ROWS = "omniprep_rows"
VARLEN = "omniprep_flash_varlen"
"""Towers of transformers give borders to an attention whose name has "flash" in it, and loop over the others."""
KERNELS = ("varlen", "flash_attention_3", "flash_attention_2")
"""Names in `--attn` of the kernels of `VARLEN`, the preferred one first."""

# Arguments that transformers' models hand through to their attention and that change no result: the borders, which
# functions below read under one name, switches about outputs and caches, and the number of tokens for the loss.
NEUTRAL = frozenset(
    {
        "position_ids", "cache_position", "cu_seq_lens_k", "max_length_q", "max_length_k", "use_cache", "return_dict",
        "output_hidden_states", "output_router_logits", "logits_to_keep", "num_items_in_batch", "deterministic",
        "row_lengths",
    }
)  # fmt: skip

# Queries of a row with a sliding window that are computed in one call: the mask of a call has at most
# QUERIES x (QUERIES + window) entries, 21 MB for a window of 4,096, whatever the length of the row.
QUERIES = 2048


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | Tensor | None = None,
    *,
    kernel: VarlenKernel,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention within borders by one call of a kernel; an attention function as transformers calls it.

    It reads nothing of the module that differs between layers (such as layer_idx), so that one graph of torch.compile
    is that of all layers.

    Args:
        module: The attention layer, of a language model or of a tower.
        query: (1, heads, L, d).
        key: (1, key heads, L, d).
        value: As key.
        attention_mask: What `row_mask` gave: None, or a window.
        dropout: Probability of dropping a weight.
        scaling: Factor of the scores (default 1/sqrt(d)).
        is_causal: Whether a token sees only those before it (default: as the layer says).
        sliding_window: Tokens that a token sees, itself included (default: all of its row).
        softcap: Cap of the scores.
        cu_seq_lens_q: int32 (R+1) borders of the rows, or of a tower's windows, images or clips.
        max_length_q: The longest of them, or more: a number, or the first size of a tensor (compiling.py).
        kernel: Computes it.
        others: What else the layer names; refused unless it is None, False or `NEUTRAL`.

    Returns:
        (1, L, heads, d), and None for the weights.

    Raises:
        OmniprepError: The model asks for something that the kernel does not compute, or gives no borders.
    """
    asked = {"softcap": None if kernel.has_softcap else softcap, "dropout": None if kernel.has_dropout else dropout}
    window = common_window(module, attention_mask, sliding_window, others | asked, kernel.name)
    if window is not None and not kernel.has_window:
        raise OmniprepError(refusal(type(module).__name__, module.config, "a sliding window", kernel.name))
    if cu_seq_lens_q is None or max_length_q is None:
        raise OmniprepError("packed attention got no row borders: the model does not pass cu_seq_lens_q to its layers")
    if query.shape[0] != 1:
        raise OmniprepError("packed attention takes one bin, whose rows fill it")
    out = attend_segments(
        kernel,
        query,
        key,
        value,
        cu_seq_lens_q,
        max_length_q.shape[0] if isinstance(max_length_q, Tensor) else max_length_q,
        causal=getattr(module, "is_causal", True) if is_causal is None else is_causal,
        scale=scaling,
        window=window,
        softcap=softcap or 0.0,
        dropout=dropout,
    )
    return out, None


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    row_lengths: Sequence[int] | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Causal attention of each row of a bin alone, by SDPA; arguments, result and errors as `varlen_attention`.

    `row_lengths` are the borders as host integers, where the caller has them: that saves a device wait in every layer.
    """
    window = common_window(module, attention_mask, sliding_window, others, "sdpa")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise OmniprepError(refusal(type(module).__name__, getattr(module, "config", None), "is_causal=False", "sdpa"))
    if row_lengths is None:
        if cu_seq_lens_q is None:
            raise OmniprepError(
                "packed attention got no row borders: the model does not pass cu_seq_lens_q to its layers"
            )
        row_lengths = cu_seq_lens_q.diff().tolist()
    if query.shape[0] != 1 or sum(row_lengths) != query.shape[2]:
        raise OmniprepError("packed attention takes one bin, whose rows fill it")
    out = [
        windowed_attention(q, k, v, dropout, scaling, window)
        if window is not None and q.shape[2] > window
        else scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        for q, k, v in zip(*(torch.split(x, list(row_lengths), 2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(out, 2).transpose(1, 2).contiguous(), None


def common_window(
    module: nn.Module,
    attention_mask: Tensor | None,
    sliding_window: int | None,
    others: Mapping[str, object],
    kernel: str,
) -> int | None:
    """The window that a layer's mask and arguments agree on, once nothing else is asked for."""
    for name, given in others.items():
        off = given is None or given is False or (name in ("dropout", "softcap") and given == 0.0)
        if name not in NEUTRAL and not off:
            raise OmniprepError(refusal(type(module).__name__, getattr(module, "config", None), name, kernel))
    if attention_mask is None:
        return sliding_window
    if attention_mask.shape[:3] != (1, 1, 0):
        raise OmniprepError(refusal(type(module).__name__, getattr(module, "config", None), "attention_mask", kernel))
    masked = attention_mask.shape[3]
    if sliding_window not in (None, masked):
        raise OmniprepError(
            f"{type(module).__name__} asks for a sliding window of {sliding_window} with a mask of one of {masked}"
        )
    return masked


def windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int
) -> Tensor:
    """Causal attention of one row to the last `window` tokens, the token itself included; shapes as `row_attention`."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1:  # with a mask, torch's fast kernels do not take grouped heads
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    parts = []
    for first in range(0, query.shape[2], QUERIES):
        last, begin = min(first + QUERIES, query.shape[2]), max(first - window + 1, 0)
        query_position = torch.arange(first, last, device=query.device)[:, None]
        key_position = torch.arange(begin, last, device=query.device)[None]
        visible = (key_position <= query_position) & (key_position > query_position - window)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, first:last],
                key[:, :, begin:last],
                value[:, :, begin:last],
                attn_mask=visible,
                dropout_p=dropout,
                scale=scaling,
            )
        )
    return torch.cat(parts, 2)


def refusal(who: str, config: Any, what: str, kernel: str) -> str:
    """Why a model cannot train with an attention, and with which it can."""
    kind = getattr(config, "model_type", "") or "unknown"
    computed_by = "SDPA row by row" if kernel == "sdpa" else f"the kernel of --attn {kernel}"
    return (
        f"{who} (model type {kind}) attends with {what}, which {computed_by} does not compute: use --attn eager, "
        "or --attn flex_attention on a GPU"
    )


def row_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    config: Any = None,
    **hints: object,
) -> Tensor | None:
    """The mask of a bin for `ROWS` and `VARLEN`; a mask function as transformers calls it.

    No mask tensor is made: None is causal attention. A sliding window is a tensor without elements, (1, 1, 0, window):
    its shape is read without waiting for a device, and as a constant by torch.compile. Another mask, padding (a bin has
    none outside of its rows) or a cache is refused.
    """
    if attention_mask is not None or q_offset or kv_offset or q_length != kv_length or batch_size != 1:
        raise OmniprepError("packed attention takes one bin, without padding and without a cache")
    mask = causal_window(mask_function)
    if mask is None or not mask[0]:
        name = getattr(mask_function, "__qualname__", repr(mask_function)).split(".")[0]
        raise OmniprepError(refusal("the model", config, f"a mask that is not plainly causal ({name})", "sdpa"))
    return None if mask[1] is None else torch.empty(1, 1, 0, mask[1])


# Masks of transformers are closures: a mask is recognized by the code object of the function that made it. Any other
# code is another mask. Should a version of transformers write them otherwise, all masks are refused, none is ignored.
_AND = masking_utils.and_masks(masking_utils.causal_mask_function).__code__
_WINDOW = masking_utils.sliding_window_overlay(1).__code__
_SAME_ROW = masking_utils.packed_sequence_mask_function(torch.zeros(1, 1)).__code__
_REMAPPED = masking_utils.remap_positions_for_packed_sequence(
    masking_utils.causal_mask_function, torch.zeros(1, 1)
).__code__


def causal_window(mask_function: Callable[..., Any]) -> tuple[bool, int | None] | None:
    """Whether a mask of transformers is causal within a row, and its window or None; None for any other mask."""
    if mask_function is masking_utils.causal_mask_function:
        return True, None
    code = getattr(mask_function, "__code__", None)
    cells = getattr(mask_function, "__closure__", None) or ()
    variables = {} if code is None else dict(zip(code.co_freevars, (cell.cell_contents for cell in cells), strict=True))
    if code is _SAME_ROW:  # rows are kept apart in any case
        return False, None
    if code is _WINDOW:
        return False, int(variables["sliding_window"])
    if code is _REMAPPED:  # positions within the row instead of within the bin: `row_attention` counts them so too
        return causal_window(variables["mask_function"])
    if code is not _AND:
        return None
    parts = [causal_window(part) for part in variables["mask_functions"]]
    if any(part is None for part in parts):
        return None
    windows = [part[1] for part in parts if part is not None and part[1] is not None]
    return any(part[0] for part in parts if part is not None), min(windows, default=None)


AttentionInterface.register(ROWS, row_attention)
AttentionMaskInterface.register(ROWS, row_mask)
AttentionMaskInterface.register(VARLEN, row_mask)


def uses_borders(model: PreTrainedModel) -> bool:
    """Whether the language model of `model` attends within the borders of rows that it is given.

    It then needs no text positions (the first of the four rows of position_ids): transformers would make the borders of
    rows of them, and wait for the device for it.
    """
    return model.config.get_text_config()._attn_implementation in (ROWS, VARLEN)
