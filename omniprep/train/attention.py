"""Packed attention: the rows of a bin never see each other, whatever kernel computes it.

Two attention functions of our own, as transformers calls them, each with borders of rows instead of a mask:
- `VARLEN`: one call of a variable-length kernel (varlen.py) for all rows of a bin, or for all windows, images and clips
  of a tower.
- `ROWS`: one call of torch's scaled_dot_product_attention for each row. The cost is the sum of the squared row lengths
  instead of the squared bin length, and no mask is made: a dense mask of a 32k bin is 1 GiB, and with one torch leaves
  its flash kernel. The result for a row is that of the row alone, bit for bit. Many short rows are many short kernels,
  so that a GPU has `VARLEN` where it can.

Attention that is more than causal with a window is computed row by row too, some queries at a time, whatever `--attn`
says (`Scores`): masks of any rule (masks.py: tokens of an image that see each other, chunks, prompts), masks and biases
that a model makes itself, soft caps, sinks. An argument that changes the result of a layer and is none of these (a mask
of heads) is refused by name: ignored, it would only show as a worse model. Whether it does is asked of the model's own
definition, its `eager_attention_forward`. isolation.py compares the outcome with the model's own forward pass.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as dropped
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from omniprep.errors import OmniprepError
from omniprep.train.masks import Rule, row_mask, tower_mask
from omniprep.train.varlen import VarlenKernel, attend_segments

ROWS = "omniprep_rows"
VARLEN = "omniprep_flash_varlen"
TOWERS = "omniprep_flash_towers"
"""`VARLEN` for towers, whose masks are others. Towers of transformers give borders to an attention whose name has
"flash" in it, and loop over the others."""
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
# Arguments that change a result even where eager attention does not name them: it reads some off the module.
DECISIVE = frozenset({"head_mask", "layer_head_mask", "alibi", "indices", "output_attentions"})

# Queries of a row with a mask that are computed in one call: the mask of a call has at most
# QUERIES x (QUERIES + window) entries, 21 MB for a window of 4,096, whatever the length of the row.
QUERIES = 2048
# Likewise where the scores themselves are made, for soft caps and sinks: 32 heads of a row of 8,192 take 256 MB.
SCORED = 256


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
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    sinks: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | Tensor | None = None,
    row_lengths: Sequence[int] | None = None,
    *,
    kernel: VarlenKernel,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention within borders by one call of a kernel; an attention function as transformers calls it.

    It reads nothing of the module that differs between layers (such as layer_idx), so that one graph of torch.compile
    is that of all layers. What the kernel does not compute is computed by `row_attention`.

    Args:
        module: The attention layer, of a language model or of a tower.
        query: (1, heads, L, d).
        key: (1, key heads, L, d).
        value: As key.
        attention_mask: What `row_mask` gave: None, a window or a rule; or a mask (1, 1 or heads, L, L) of the model's.
        dropout: Probability of dropping a weight.
        scaling: Factor of the scores (default 1/sqrt(d)).
        is_causal: Whether a token sees only those before it (default: as the layer says).
        sliding_window: Tokens that a token sees, itself included (default: all of its row).
        softcap: Cap of the scores.
        s_aux: (heads) a score that takes part in the softmax of each query and has no value (attention sinks).
        position_bias: (1, 1 or heads, L, L) what is added to the scores.
        sinks: (1, heads, L, 1) as s_aux, with another score for each query.
        cu_seq_lens_q: int32 (R+1) borders of the rows, or of a tower's windows, images or clips; by default those that
            the wrapper of any class holds (any_class.py).
        max_length_q: The longest of them, or more: a number, or the first size of a tensor (compiling.py).
        row_lengths: The borders as host integers, where the caller has them: that saves a device wait in every layer.
        kernel: Computes it.
        others: What else the layer names; refused unless it changes nothing (`check_arguments`).

    Returns:
        (1, L, heads, d), and None for the weights.

    Raises:
        OmniprepError: The model asks for something that is not computed, or gives no borders.
    """
    check_arguments(module, others)
    window = plain_window(attention_mask, sliding_window, module)
    if (
        isinstance(window, Tensor)
        or s_aux is not None
        or position_bias is not None
        or sinks is not None
        or (softcap and not kernel.has_softcap)
        or (dropout and not kernel.has_dropout)
        or (window is not None and not kernel.has_window)
    ):
        return row_attention(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, sliding_window, softcap, s_aux,
            position_bias, sinks, cu_seq_lens_q, row_lengths,
        )  # fmt: skip
    borders: RowBorders | None = getattr(module, "row_borders", None)
    if cu_seq_lens_q is None and borders is not None and borders.lengths is not None:
        cu_seq_lens_q, max_length_q = borders.edges, max(borders.lengths)
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
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    sinks: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    row_lengths: Sequence[int] | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention of each row of a bin alone, by SDPA; arguments, result and errors as `varlen_attention`."""
    check_arguments(module, others)
    window = plain_window(attention_mask, sliding_window, module)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if not causal and isinstance(window, int):
        raise OmniprepError(refusal(module, "a sliding window to both sides"))
    lengths = lengths_of_rows(module, cu_seq_lens_q, row_lengths)
    if query.shape[0] != 1 or sum(lengths) != query.shape[2]:
        raise OmniprepError("packed attention takes one bin, whose rows fill it")
    total = query.shape[2]
    if position_bias is not None and (position_bias.ndim != 4 or position_bias.shape[2:] != (total, total)):
        raise OmniprepError(refusal(module, f"a position_bias of shape {tuple(position_bias.shape)}"))
    if s_aux is not None:
        sinks = s_aux.reshape(1, -1, 1, 1).expand(-1, -1, total, -1)
    if sinks is not None and sinks.shape != (1, query.shape[1], total, 1):
        raise OmniprepError(refusal(module, f"sinks of shape {tuple(sinks.shape)}"))
    out, start = [], 0
    for q, k, v in zip(*(torch.split(x, list(lengths), 2) for x in (query, key, value)), strict=True):
        end = start + q.shape[2]
        seen = visible_tokens(window, start, q.shape[2], causal=causal)
        bias = None if position_bias is None else position_bias[:, :, start:end, start:end]
        sink = None if sinks is None else sinks[:, :, start:end]
        out.append(attend_row(q, k, v, seen, Scores(scaling, dropout, softcap or None, sink, bias), causal=causal))
        start = end
    return torch.cat(out, 2).transpose(1, 2).contiguous(), None


@dataclass(slots=True)
class RowBorders:
    """The borders of the bin that a model computes, for attention layers that get none from their model.

    One is shared by all modules of a language model, as `row_borders` (any_class.py). Layers that are computed again in
    the backward pass read it too, before the next bin is put in.
    """

    edges: Tensor | None = None
    lengths: tuple[int, ...] | None = None


def lengths_of_rows(
    module: nn.Module, cu_seq_lens_q: Tensor | None, row_lengths: Sequence[int] | None
) -> Sequence[int]:
    """The lengths of rows, segments or clips: as given, or those that the module shares (`RowBorders`)."""
    if row_lengths is not None:
        return row_lengths
    if cu_seq_lens_q is not None:
        lengths: list[int] = cu_seq_lens_q.diff().tolist()
        return lengths
    borders: RowBorders | None = getattr(module, "row_borders", None)
    if borders is None or borders.lengths is None:
        raise OmniprepError("packed attention got no row borders: the model does not pass cu_seq_lens_q to its layers")
    return borders.lengths


def check_arguments(module: nn.Module, others: Mapping[str, object]) -> None:
    """Refuse what a layer asks its attention for and what would change the result."""
    for name, given in others.items():
        if given is None or given is False or name in NEUTRAL:
            continue
        if name not in DECISIVE and is_ignored_by_eager(module, name):
            continue
        raise OmniprepError(refusal(module, name))


def is_ignored_by_eager(module: nn.Module, name: str) -> bool:
    """Whether a model's own definition of its attention takes an argument and does nothing with it."""
    eager = getattr(sys.modules.get(type(module).__module__), "eager_attention_forward", None)
    code = getattr(eager, "__code__", None)
    if code is None or not code.co_flags & inspect.CO_VARKEYWORDS:
        return False
    return name not in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] and name not in code.co_consts


def plain_window(attention_mask: Tensor | None, sliding_window: int | None, module: nn.Module) -> int | Tensor | None:
    """The window of causal attention, None for none; or the mask itself, where it is another.

    A mask that says more than a window holds the window too: then the argument says nothing of its own, as in
    transformers' eager attention.
    """
    if attention_mask is None:
        return sliding_window
    if attention_mask.ndim != 4:
        raise OmniprepError(refusal(module, f"attention_mask of shape {tuple(attention_mask.shape)}"))
    masked = attention_mask.shape[3]
    if attention_mask.shape[2] or hasattr(attention_mask, "rule"):
        return attention_mask
    if not masked:
        raise OmniprepError(
            f"the mask of {type(module).__name__} has lost its rule on the way from the model to this layer: use "
            "--attn eager, without --torch-compile"
        )
    if sliding_window not in (None, masked):
        raise OmniprepError(
            f"{type(module).__name__} asks for a sliding window of {sliding_window} with a mask of one of {masked}"
        )
    return masked


class Scores(NamedTuple):
    """How the scores of a row become weights; fields as the arguments of `varlen_attention`."""

    scaling: float | None
    dropout: float
    softcap: float | None
    sinks: Tensor | None
    """Of this row alone, as `bias`."""
    bias: Tensor | None


class Seen(NamedTuple):
    """What the queries of a row see.

    `mask` gives, for queries (Q, 1) and keys (1, K) of the row, what SDPA takes as a mask: bool (Q, K), or numbers that
    are added to the scores. None: nothing but what `causal` says. `back` and `ahead` bound it, as in `Rule`.
    """

    mask: Callable[[Tensor, Tensor], Tensor] | None
    back: int | None
    ahead: Callable[[], int | None]


def visible_tokens(window: int | Tensor | None, start: int, length: int, *, causal: bool) -> Seen:
    """What a row sees that begins at `start` of the bin, by what `plain_window` gave."""
    if window is None or (isinstance(window, int) and length <= window):
        return Seen(None, None, lambda: 0 if causal else None)
    if isinstance(window, int):
        return Seen(lambda q, k: (k <= q) & (k > q - window), window - 1, lambda: 0)
    rule: Rule | None = getattr(window, "rule", None)
    if rule is not None:
        sees = rule.sees
        return Seen(lambda q, k: sees(q + start, k + start, start), rule.back, rule.furthest_ahead)
    row = window[:, :, start : start + length, start : start + length]  # made by the model itself, for the whole bin
    return Seen(
        lambda q, k: row[:, :, int(q[0]) : int(q[-1]) + 1, int(k[0, 0]) : int(k[0, -1]) + 1], None, lambda: None
    )


def attend_row(query: Tensor, key: Tensor, value: Tensor, seen: Seen, scores: Scores, *, causal: bool) -> Tensor:
    """Attention of one row: (1, heads, L, d) of queries (1, heads, L, d) and of keys and values with as many heads."""
    length = query.shape[2]
    made = scores.softcap is not None or scores.sinks is not None  # scores that SDPA does not make
    if seen.mask is None and not made and scores.bias is None:
        return scaled_dot_product_attention(
            query, key, value, dropout_p=scores.dropout, is_causal=causal, scale=scores.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
    shared = query.shape[1] // key.shape[1]
    if shared > 1:  # with a mask, torch's fast kernels do not take grouped heads
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    step = SCORED if made else QUERIES
    # How far blocks reach may have to be asked of the device: only where it saves something.
    ahead = seen.ahead() if length > step else None
    parts = []
    for first in range(0, length, step):
        last = min(first + step, length)
        begin = 0 if seen.back is None else max(first - seen.back, 0)
        end = length if ahead is None else min(last + ahead, length)
        query_position = torch.arange(first, last, device=query.device)[:, None]
        key_position = torch.arange(begin, end, device=query.device)[None]
        if seen.mask is not None:
            visible = seen.mask(query_position, key_position)
        else:
            visible = (key_position <= query_position) if causal else (key_position >= 0).expand(last - first, -1)
        if scores.bias is not None:
            bias = scores.bias[:, :, first:last, begin:end]
            lowest = torch.finfo(bias.dtype).min
            visible = bias.masked_fill(~visible, lowest) if visible.dtype == torch.bool else bias + visible
        if visible.dtype != torch.bool:
            visible = visible.to(query.dtype)
        q, k, v = query[:, :, first:last], key[:, :, begin:end], value[:, :, begin:end]
        if not made:
            parts.append(
                scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=scores.dropout, scale=scores.scaling)
            )
            continue
        sinks = None if scores.sinks is None else scores.sinks[:, :, first:last]
        if torch.is_grad_enabled():  # scores of a whole row would be kept for the backward pass
            parts.append(checkpoint(scored_attention, q, k, v, visible, sinks, scores, use_reentrant=False))
        else:
            parts.append(scored_attention(q, k, v, visible, sinks, scores))
    return torch.cat(parts, 2)


def scored_attention(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, sinks: Tensor | None, how: Scores
) -> Tensor:
    """Attention with soft caps and sinks, as transformers' eager functions compute it, to the softmax in float32."""
    scaling = query.shape[-1] ** -0.5 if how.scaling is None else how.scaling
    scores = query @ key.transpose(2, 3) * scaling
    if how.softcap is not None:
        scores = torch.tanh(scores / how.softcap) * how.softcap
    if visible.dtype == torch.bool:
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    else:
        scores = scores + visible
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)], -1)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype)[..., : key.shape[2]]
    return dropped(weights, how.dropout) @ value


def refusal(module: nn.Module, what: str) -> str:
    """Why a model cannot train with this attention, and with which it may."""
    kind = getattr(getattr(module, "config", None), "model_type", "") or "unknown"
    return (
        f"{type(module).__name__} (model type {kind}) attends with {what}, which is not computed row by row: use "
        "--attn eager, or --attn flex_attention on a GPU"
    )


AttentionInterface.register(ROWS, row_attention)
AttentionMaskInterface.register(ROWS, row_mask)
AttentionMaskInterface.register(VARLEN, row_mask)
AttentionMaskInterface.register(TOWERS, tower_mask)


def uses_borders(model: PreTrainedModel) -> bool:
    """Whether the language model of `model` attends within the borders of rows that it is given.

    It then needs no text positions (the first of the four rows of position_ids): transformers would make the borders of
    rows of them, and wait for the device for it.
    """
    return model.config.get_text_config()._attn_implementation in (ROWS, VARLEN)
