"""Liger's Triton kernels for the parts of a model that they compute alike: RMS norms and SwiGLU layers.

liger-kernel's own patching knows model types, not Qwen2.5-Omni's, and puts a forward pass of its own over that of the
models it knows, which is not ours; so modules are found by what they are. The loss is not Liger's: ours needs no logits
either (loss.py), and weights tokens.
"""

import importlib.util
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from omniprep.errors import OmniprepError
from omniprep.train.config import TrainConfig

__all__ = ["use_liger", "uses_liger"]


def uses_liger(config: TrainConfig, device: torch.device) -> bool:
    """Whether a run computes by liger's kernels: where it is told, or on a GPU where they are installed."""
    if config.liger == "auto":
        return device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None
    return config.liger == "on"


def use_liger(model: nn.Module, *, required: bool = True) -> int:
    """Replace the forward pass of every RMS norm and SwiGLU layer; the number of modules.

    Args:
        model: The model.
        required: Whether a model without such parts is refused.

    Raises:
        OmniprepError: The model has none, and must.
    """
    from liger_kernel.transformers.functional import liger_rms_norm, liger_swiglu

    def norm(self: Any, hidden_states: Tensor) -> Tensor:
        # Casts as Llama's norm does: float32 within, the weight multiplied in the model's type. Not in place: the
        # gradient may have other readers.
        result: Tensor = liger_rms_norm(hidden_states, self.weight, self.variance_epsilon, 0.0, "llama", False)
        return result

    def swiglu(self: Any, hidden_state: Tensor) -> Tensor:
        result: Tensor = self.down_proj(liger_swiglu(self.gate_proj(hidden_state), self.up_proj(hidden_state)))
        return result

    replaced = 0
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = MethodType(norm, module)
        elif all(hasattr(module, part) for part in ("gate_proj", "up_proj", "down_proj")) and is_silu(module):
            module.forward = MethodType(swiglu, module)
        else:
            continue
        replaced += 1
    if required and not replaced:
        raise OmniprepError(f"--liger: {type(model).__name__} has no part that the liger kernels compute")
    return replaced


def is_silu(module: nn.Module) -> bool:
    """Whether the gate's activation is SiLU."""
    return "silu" in type(getattr(module, "act_fn", None)).__name__.lower()
