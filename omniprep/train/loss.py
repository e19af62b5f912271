"""The loss of each predicted token, in memory that does not grow with the vocabulary times the bin.

The reference (ms-swift 3.9.3 trainers.py:307-408): cross entropy on float32 logits of labels shifted by one, times
loss_scale where the strategy is weighted, summed and divided by the number of labelled tokens (not by the sum of the
weights), over all ranks and accumulation steps. Here the division is the trainer's; this file gives the terms of the
sum.

Logits are made for at most `CHUNK` positions at once and made again in the backward pass: 4096 positions of 152,064
words are 2.5 GB in float32; a 32k bin with every token labelled would need 20 GB, twice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

__all__ = ["CHUNK", "TokenLoss", "logits_loss", "predicted", "token_loss"]

CHUNK = 4096


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


def token_loss(hidden: Tensor, head: nn.Module, targets: Tensor) -> TokenLoss:
    """Losses of hidden states (K, H) through the output head, `CHUNK` at a time."""

    def part(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return logits_loss(head(states), ids)

    if len(targets) <= CHUNK:
        return TokenLoss(*part(hidden, targets))
    parts = [
        checkpoint(part, states, ids, use_reentrant=False)
        for states, ids in zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True)
    ]
    return TokenLoss(torch.cat([loss for loss, _ in parts]), torch.cat([hit for _, hit in parts]))
