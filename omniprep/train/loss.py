"""The loss of each predicted token, in memory that does not grow with the vocabulary times the bin.

The reference (ms-swift 3.9.3 trainers.py:307-408): cross entropy on float32 logits of labels shifted by one, times
loss_scale where the strategy is weighted, summed and divided by the number of labelled tokens (not by the sum of the
weights), over all ranks and accumulation steps. Here the division is the trainer's; this file gives the terms of the
sum.

Logits are made for at most `CHUNK` positions at once, and made again in the backward pass: 1024 positions of 152,064
words are 0.6 GB in float32; a 32k bin with every token labeled would need 20 GB, and as much again for the gradient.
`LossHead` goes over them as few times as it can (largest, exponentials, sum; then exponentials, gradient), about half
the work of cross_entropy and argmax on the CPU.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

__all__ = ["CHUNK", "LossHead", "TokenLoss", "logits_loss", "make_loss_head", "predicted", "token_loss"]

CHUNK = 1024


@dataclass
class TokenLoss(ModelOutput):  # type: ignore[misc]
    """What a forward pass with targets gives.

    Attributes:
        losses: float32 (K) cross entropy of each target.
        correct: bool (K), whether the target was the likeliest token.
    """

    losses: Tensor | None = None
    correct: Tensor | None = None


def predicted(labels: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Where a bin is learned from.

    Args:
        labels: (L) ids, -100 where nothing is learned; the first of each row is -100, so no row predicts the next.
        scale: float (L) loss weights of the tokens, if weighted.

    Returns:
        positions (K) whose next token is labelled, the targets (K) there, their weights (K) or None.
    """
    positions = (labels[1:] != -100).nonzero()[:, 0]
    return positions, labels[positions + 1], None if scale is None else scale[positions + 1]


def logits_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (K) in float32 and hits (K) of logits (K, words)."""
    logits = logits.float()
    return cross_entropy(logits, targets, reduction="none"), logits.detach().argmax(-1) == targets


class _Losses(torch.autograd.Function):
    """Cross entropy of hidden states (K, H) through a weight (words, H): float32 losses (K) and hits (K)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        parts = []
        for states, ids in zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True):
            logits = (states @ weight.T).float()
            picked, top = logits.gather(1, ids[:, None])[:, 0], logits.amax(-1)
            total = logits.sub_(top[:, None]).exp_().sum(-1).log_().add_(top)
            parts.append((total - picked, picked >= top, total))
        losses, hits, totals = (torch.cat(list(part)) for part in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, targets, totals)
        ctx.mark_non_differentiable(hits)
        return losses, hits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden, weight, targets, totals = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            wrong = (hidden[part] @ weight.T).float().sub_(totals[part, None]).exp_()
            wrong[torch.arange(len(wrong), device=wrong.device), targets[part]] -= 1
            wrong = wrong.mul_(gradient[part, None]).to(hidden.dtype)
            of_hidden[part] = wrong @ weight
            if of_weight is not None:
                of_weight += wrong.T @ hidden[part]
        return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None


class LossHead(nn.Linear):
    """An output head that gives losses where it is told the targets, and logits elsewhere.

    The losses are made within `forward`, so that whatever shards weights has the whole weight there.
    """

    def forward(self, input: Tensor, targets: Tensor | None = None) -> Any:
        """Logits (…, words) of hidden states (…, H); with targets (K), a `TokenLoss` of states (K, H)."""
        if targets is None:
            return super().forward(input)
        kind = input.device.type
        weight = self.weight
        if torch.is_autocast_enabled(kind):
            input, weight = (x.to(torch.get_autocast_dtype(kind)) for x in (input, weight))
        with torch.autocast(kind, enabled=False):
            return TokenLoss(*_Losses.apply(input, weight, targets))


def make_loss_head(head: nn.Module | None) -> None:
    """Turn a plain output head into a `LossHead`, in place."""
    if type(head) is nn.Linear and getattr(head, "bias", None) is None:
        head.__class__ = LossHead


def token_loss(hidden: Tensor, head: nn.Module, targets: Tensor) -> TokenLoss:
    """Losses of hidden states (K, H) through the output head."""
    if isinstance(head, LossHead):
        result: TokenLoss = head(hidden, targets)
        return result
    parts = [
        checkpoint(lambda h, t: logits_loss(head(h), t), states, ids, use_reentrant=False)
        for states, ids in zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True)
    ]
    return TokenLoss(torch.cat([loss for loss, _ in parts]), torch.cat([hit for _, hit in parts]))
