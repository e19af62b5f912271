"""torch's variable-length attention kernel, which needs a GPU, computed row by row in plain torch on the CPU.

One operator with a backward pass, as the kernel is one: opaque to torch.compile, so that graphs can be counted. In
front of it stand the signatures that `varlen_attn` has had: 2.10 (`is_causal`), 2.11 (`window_size`, grouped heads as
they are), 2.14 (grouped heads only with `enable_gqa`).
"""

from itertools import pairwise

import torch
from torch import Tensor

CALLS: list[list[int]] = []
"""Borders of every call, for tests that count them."""


def segments(q, k, v, borders, longest, is_causal, scale, left, right):
    """Of each segment its tokens, its heads as (heads, tokens, d) with keys repeated, and its weights."""
    assert borders.dtype == torch.int32 and borders[-1] == len(q) == len(k)
    assert int(borders.diff().max()) <= longest
    assert q.shape[-1] == k.shape[-1] == v.shape[-1] <= 256 and q.shape[-1] % 8 == 0
    for start, end in pairwise(borders.tolist()):
        q_row, k_row, v_row = (x[start:end].transpose(0, 1) for x in (q, k, v))
        k_row, v_row = (x.repeat_interleave(q.shape[1] // k.shape[1], 0) for x in (k_row, v_row))
        at = torch.arange(end - start)
        ahead = at[None] - at[:, None]
        seen = torch.ones_like(ahead, dtype=torch.bool)
        if right >= 0 or is_causal:
            seen &= ahead <= max(right, 0)
        if left >= 0:
            seen &= ahead >= -left
        scores = (q_row @ k_row.transpose(1, 2) * scale).masked_fill(~seen, float("-inf"))
        yield slice(start, end), q_row, k_row, v_row, scores.softmax(-1)


@torch.library.custom_op("omniprep_tests::varlen", mutates_args={})
def varlen(
    q: Tensor, k: Tensor, v: Tensor, borders: Tensor, longest: int, is_causal: bool, scale: float, left: int, right: int
) -> Tensor:
    CALLS.append(borders.tolist())
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for row, _, _, v_row, weights in segments(q, k, v, borders, longest, is_causal, scale, left, right):
        out[row] = (weights @ v_row).transpose(0, 1)
    return out


@torch.library.custom_op("omniprep_tests::varlen_backward", mutates_args={})
def varlen_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, borders: Tensor, longest: int, is_causal: bool, scale: float,
    left: int, right: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    for row, q_row, k_row, v_row, weights in segments(q, k, v, borders, longest, is_causal, scale, left, right):
        of_out = grad[row].transpose(0, 1)
        of_weights = of_out @ v_row.transpose(1, 2)
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
        parts = (of_scores @ k_row, of_scores.transpose(1, 2) @ q_row, weights.transpose(1, 2) @ of_out)
        for whole, part, heads in zip(grads, parts, (q.shape[1], k.shape[1], v.shape[1]), strict=True):
            whole[row] = part.unflatten(0, (heads, -1)).sum(1).transpose(0, 1)
    return tuple(grads)


@varlen.register_fake
def _(q, k, v, borders, longest, is_causal, scale, left, right):
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@varlen_backward.register_fake
def _(grad, q, k, v, borders, longest, is_causal, scale, left, right):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def backward(ctx, grad):
    return (*varlen_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options), *(None,) * 6)


varlen.register_autograd(backward, setup_context=keep)


def varlen_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert cu_seq_q is cu_seq_k and max_q is max_k
    return varlen(query, key, value, cu_seq_q, max_q, is_causal, query.shape[-1] ** -0.5, -1, -1)


def varlen_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert cu_seq_q is cu_seq_k and max_q is max_k
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return varlen(query, key, value, cu_seq_q, max_q, window_size == (-1, 0), scale, *window_size)


def varlen_2_14(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError("Expect query and key/value to have the same number of heads")
    return varlen_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


VERSIONS = {"2.10": varlen_2_10, "2.11": varlen_2_11, "2.14": varlen_2_14}


def compute_on_cpu() -> bool:
    """Give the operators of the torch that is installed this reference as their kernel on the CPU; whether it has them.

    Then `torch.nn.attention.varlen.varlen_attn` itself runs, with its own signature, checks and autograd.
    """
    try:
        from torch.nn.attention import varlen as installed
    except ImportError:
        return False

    @installed._varlen_attn.register_kernel("cpu")
    def _(q, k, v, borders, borders_k, longest, longest_k, is_causal=False, scale=None, window_size=None, *rest):
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        left, right = window_size or (-1, -1)
        out = varlen(q, k, v, borders, longest, is_causal, scale, left, right)
        return out, q.new_zeros(q.shape[1], len(q), dtype=torch.float), torch.zeros(2, dtype=torch.uint64)

    @installed._varlen_attn_backward.register_kernel("cpu")
    def _(
        grad, q, k, v, out, lse, borders, borders_k, longest, longest_k, is_causal, rng, scale=None, window_size=None
    ):
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        left, right = window_size or (-1, -1)
        return varlen_backward(grad.contiguous(), q, k, v, borders, longest, is_causal, scale, left, right)

    return True
