"""The loss of each predicted token, in memory that does not grow with the vocabulary times the bin.

data/loss.py says what the loss is: the weighted sum over the labeled tokens divided by their number, here over
all ranks and accumulation steps. The division is the trainer's; this file gives the terms of the sum.

Logits are made for at most `CHUNK` positions at once, and made again in the backward pass: 1024 positions of 152,064
words are 0.6 GB in float32; a 32k bin with every token labeled would need 20 GB, and as much again for the gradient.
`LossHead` passes over them as few times as it can (largest, exponentials, sum; then exponentials, gradient), about half
the work of cross_entropy and argmax on the CPU.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from omniprep.data.loss import CHUNK, logits_loss
from omniprep.errors import OmniprepError
from omniprep.train.liger import liger_losses


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
    """`torch_losses`, with logits that are made again in the backward pass."""

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


def torch_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of hidden states (K, H) through a weight (words, H): float32 losses (K) and hits (K)."""
    losses, hits = _Losses.apply(hidden, weight, targets)
    return losses, hits


class LossHead(nn.Linear):
    """An output head that gives losses where it gets targets, and logits elsewhere.

    The losses are made within `forward`, so that whatever shards weights has the whole weight there.
    """

    by_liger = False
    """Whether the losses are computed by liger-kernel (`--head-loss`)."""

    def forward(self, input: Tensor, targets: Tensor | None = None) -> Any:
        """Logits (…, words) of hidden states (…, H); with targets (K), a `TokenLoss` of states (K, H)."""
        if targets is None:
            return super().forward(input)
        kind = input.device.type
        weight = self.weight
        if torch.is_autocast_enabled(kind):
            input, weight = (x.to(torch.get_autocast_dtype(kind)) for x in (input, weight))
        with torch.autocast(kind, enabled=False):
            # Liger's kernel divides by the number of targets; bins without any fill up the last step of an epoch.
            losses = liger_losses if self.by_liger and len(targets) else torch_losses
            return TokenLoss(*losses(input, weight, targets))


def make_loss_head(head: nn.Module | None, kernel: str = "torch") -> None:
    """Turn a plain output head into a `LossHead`, in place; refuse a kernel (`--head-loss`) that fails on it."""
    if type(head) is nn.Linear and getattr(head, "bias", None) is None:
        head.__class__ = LossHead
    if kernel == "liger":
        if not isinstance(head, LossHead):
            raise OmniprepError(f"--head-loss liger: the output head is no plain linear layer ({type(head).__name__})")
        check_liger_losses(head.weight.device)
        head.by_liger = True


def check_liger_losses(device: torch.device) -> None:
    """Hold Liger's losses of weighted tokens against ours: early versions have gradients without weights."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 32, generator=generator).to(device) for n in (24, 64))
    targets, scale = torch.arange(24, device=device) % 64, torch.arange(24, device=device) / 12
    results = []
    for function in (torch_losses, liger_losses):
        inputs = [tensor.detach().requires_grad_() for tensor in (hidden, weight)]
        losses, _ = function(inputs[0], inputs[1], targets)
        results.append((losses.detach(), *torch.autograd.grad((losses * scale).sum(), inputs)))
    if not all(torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2) for ours, theirs in zip(*results, strict=True)):
        raise OmniprepError(
            "--head-loss liger: this version of liger-kernel gives other gradients of weighted losses than ours: "
            "pip install -U liger-kernel, or --head-loss torch"
        )


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
