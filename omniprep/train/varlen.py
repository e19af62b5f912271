"""Variable-length attention kernels: all rows of a bin, or all windows, images and clips of a tower, in one call.

Three packages have such a kernel, with the same layout, (tokens, heads, d), and the same borders (cu_seqlens), but with
other arguments: torch itself (`torch.nn.attention.varlen`, from 2.10 on), flash-attn 2 and flash-attn 3. Each is behind
a `VarlenKernel` here. What a kernel takes is read from its signature, not from a version: torch 2.10 has `is_causal`
and no window, 2.11 `window_size` and grouped heads as they are, 2.14 wants `enable_gqa=True` for these.
"""

import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

HALF_TYPES = (torch.float16, torch.bfloat16)
"""Types that the kernels compute in."""
LARGEST_HEAD = 256
"""Values of a head, at most: the largest tile that any of the kernels is compiled for."""
_HEAD_MULTIPLE = 8  # the kernels read 16 bytes at once; other heads are padded with zeros, which changes no score


class Scores(NamedTuple):
    """How scores become weights; fields as the arguments of `attend_segments`."""

    causal: bool
    scale: float
    window: int | None
    softcap: float
    dropout: float


@dataclass(frozen=True, kw_only=True, slots=True)
class VarlenKernel:
    """A kernel behind one set of arguments."""

    name: str
    """As `--attn` names it."""
    attend: Callable[..., Tensor]
    """Of (query, key, value, borders, longest, scores)."""
    has_window: bool
    has_softcap: bool
    has_dropout: bool


def find_kernel(name: str) -> VarlenKernel | None:
    """A kernel by its name in `--attn`; None where its package is not installed."""
    finders = {"varlen": _torch_kernel, "flash_attention_2": _flash_attn_2, "flash_attention_3": _flash_attn_3}
    return finders[name]()


def attend_segments(
    kernel: VarlenKernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: Tensor,
    longest: int,
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    softcap: float = 0.0,
    dropout: float = 0.0,
) -> Tensor:
    """Attention within segments that lie end to end.

    Args:
        kernel: Computes it.
        query: (1, heads, L, d); computed in autocast's type, or in that of `value`.
        key: (1, key heads, L, d); with fewer heads than queries they are shared.
        value: As key.
        borders: int32 (segments+1), from 0 to L.
        longest: Tokens of the longest segment, or more.
        causal: Whether a token sees only those before it.
        scale: Factor of the scores (default: 1/sqrt(d)).
        window: Tokens that a token sees, itself included (default: all of its segment).
        softcap: Scores s become softcap * tanh(s / softcap); 0: not.
        dropout: Probability of dropping a weight.

    Returns:
        (1, L, heads, d).
    """
    width, value_width = query.shape[-1], value.shape[-1]
    scale = 1 / math.sqrt(width) if scale is None else scale
    padded = -(-max(width, value_width) // _HEAD_MULTIPLE) * _HEAD_MULTIPLE
    computed = value.dtype  # under autocast rotary embeddings leave queries and keys in float32
    if torch.is_autocast_enabled(query.device.type):
        computed = torch.get_autocast_dtype(query.device.type)
    query, key, value = query.to(computed), key.to(computed), value.to(computed)
    tokens = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    if not width == value_width == padded:
        tokens = [pad(tensor, (0, padded - tensor.shape[-1])) for tensor in tokens]
    out = kernel.attend(*tokens, borders, longest, Scores(causal, scale, window, softcap, dropout))
    return out[..., :value_width][None]


def _torch_kernel() -> VarlenKernel | None:
    """Torch's own kernel, which is flash-attention 2."""
    function = _imported("torch.nn.attention.varlen", "varlen_attn")
    if function is None:
        return None
    parameters = inspect.signature(function).parameters
    wants_grouping, has_window = "enable_gqa" in parameters, "window_size" in parameters
    has_scale = "scale" in parameters

    def attend(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, scores: Scores) -> Tensor:
        causal, scale, window, *_ = scores  # it has neither soft caps nor dropout
        options: dict[str, Any] = {}
        if wants_grouping:
            options["enable_gqa"] = query.shape[1] != key.shape[1]
        if not has_window:
            options["is_causal"] = causal
        elif causal:
            options["window_size"] = (-1 if window is None else window - 1, 0)
        elif window is not None:
            options["window_size"] = (window - 1, window - 1)
        elif wants_grouping:
            # (-1, -1) would let torch 2.14 take cuDNN, which plans anew, for 98 ms, for each longest segment that it
            # has not seen. A window as long as the longest segment is the same attention by flash-attention.
            options["window_size"] = (longest, longest)
        if has_scale:
            options["scale"] = scale
        else:
            query = query * (scale * math.sqrt(query.shape[-1]))
        out: Tensor = function(query, key, value, borders, borders, longest, longest, **options)
        return out

    return VarlenKernel(name="varlen", attend=attend, has_window=has_window, has_softcap=False, has_dropout=False)


def _flash_attn_2() -> VarlenKernel | None:
    return _flash_attn("flash_attention_2", "flash_attn")


def _flash_attn_3() -> VarlenKernel | None:
    return _flash_attn("flash_attention_3", "flash_attn_interface")


def _flash_attn(name: str, module: str) -> VarlenKernel | None:
    """A kernel of the package flash-attn."""
    function = _imported(module, "flash_attn_varlen_func")
    if function is None:
        return None
    parameters = inspect.signature(function).parameters
    has_softcap, has_dropout = "softcap" in parameters, "dropout_p" in parameters
    has_window = "window_size" in parameters

    def attend(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, scores: Scores) -> Tensor:
        causal, scale, window, softcap, dropout = scores
        options: dict[str, Any] = {"causal": causal, "softmax_scale": scale}
        if window is not None:
            options["window_size"] = (window - 1, 0 if causal else window - 1)
        if softcap:
            options["softcap"] = softcap
        if dropout:
            options["dropout_p"] = dropout
        out: Any = function(query, key, value, borders, borders, longest, longest, **options)
        result: Tensor = out[0] if isinstance(out, tuple) else out  # early versions of 3 also give the log-sum-exp
        return result

    return VarlenKernel(
        name=name, attend=attend, has_window=has_window, has_softcap=has_softcap, has_dropout=has_dropout
    )


def _imported(module: str, function: str) -> Any:
    """A function of a package, or None where either is absent."""
    try:
        return getattr(importlib.import_module(module), function, None)
    except ImportError:
        return None
