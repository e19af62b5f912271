"""The loss of each predicted token, in memory that does not grow with the vocabulary times the bin.

What the loss is stands in data/loss.py: the weighted sum over the labelled tokens divided by their number, here over
all ranks and accumulation steps. The division is the trainer's; this file gives the terms of the sum.

Logits are made for at most `CHUNK` positions at once, and made again in the backward pass: 1024 positions of 152,064
words are 0.6 GB in float32; a 32k bin with every token labeled would need 20 GB, and as much again for the gradient.
`LossHead` goes over them as few times as it can (largest, exponentials, sum; then exponentials, gradient), about half
the work of cross_entropy and argmax on the CPU.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from omniprep.data.loss import CHUNK, logits_loss

__all__ = ["LossHead", "TokenLoss", "make_loss_head", "token_loss"]


@dataclass
class TokenLoss(ModelOutput):  # type: ignore[misc]
    """What a forward pass with targets gives.

    Attributes:
        losses: float32 (K) cross entropy of each target.
        correct: bool (K), whether the target was the likeliest token.
    """

    losses: Tensor | None = None
    correct: Tensor | None = None


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
