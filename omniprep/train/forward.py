"""How a model is called for the losses of some targets: models that train here compute them within their forward pass,
so that whatever shards weights has the whole output head there; others give logits.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omniprep.data.loss import logits_loss
from omniprep.data.prefetch import moved
from omniprep.train.any_class import AnyPacked
from omniprep.train.vision_text import Packed


def touches_towers(model: nn.Module) -> bool:
    """Whether a model can run its towers where a bin has no media."""
    return "touch_towers" in dir(type(model))


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardPass:
    """What the forward pass of a model takes and gives.

    Attributes:
        fused: Whether it gives the losses of `targets`; else logits.
        takes_numbers: Whether it takes the `BinNumbers` of a batch; else the lengths of rows alone.
    """

    fused: bool
    takes_numbers: bool

    @classmethod
    def of(cls, model: nn.Module) -> "ForwardPass":
        """That of a model, not wrapped by PEFT."""
        fused = touches_towers(model) or isinstance(model, AnyPacked)
        return cls(fused=fused, takes_numbers=isinstance(model, Packed))

    def losses(
        self, model: nn.Module, kwargs: dict[str, Any], positions: Tensor, targets: Tensor, numbers: Any,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Losses (K) in float32 and hits (K) of targets (K) at positions (K); `model` may be wrapped."""
        positions, targets = positions.to(device), targets.to(device)
        if self.fused:
            if self.takes_numbers:
                kwargs["numbers"] = moved(numbers, device)
            else:  # a model of any class, or of a plug-in's own
                kwargs["row_lengths"] = numbers.row_lengths
            out = model(**kwargs, logits_to_keep=positions, targets=targets)
            return out.losses, out.correct
        logits = model(**kwargs).logits[0]
        return logits_loss(logits[positions], targets)
