"""Liger's Triton kernels for the parts of a model that they compute alike: RMS norms, SwiGLU layers and rotary
embeddings.

liger-kernel's own patching knows model types, not Qwen2.5-Omni's, and replaces the forward pass of the models that it
knows, which would undo that of `Packed`. So modules are found by their class and attributes, and functions by their
names in the modules of `ROTARY_MODULES`. The loss of the head is Liger's only where `--head-loss liger` says so: its
kernel reads a count of the targets from the device, twice a pass; `LossHead` (loss.py) never waits for the device.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from omniprep.errors import OmniprepError
from omniprep.train.config import TrainConfig

_TRANSFORMERS = "transformers.models"
ROTARY_MODULES = frozenset(
    f"{_TRANSFORMERS}.{name}.modeling_{name}"
    for name in (
        *("qwen2", "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3", "qwen3_moe"),
        *("qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe"),
    )
)
"""Modules whose `apply_rotary_pos_emb` rotates whole heads by halves, as Liger's kernel does. In transformers 5.23 that
includes m-rope: the three axes are put together before, once a forward pass."""

SWIGLU_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
"""All that a SwiGLU layer consists of. One that has more computes more: GLM-4V's patch merger has these four behind a
projection and a norm."""


def uses_liger(config: TrainConfig, device: torch.device) -> bool:
    """Whether a run uses Liger's kernels: with `--liger on`, or by "auto" on a GPU where they are installed."""
    if config.liger == "auto":
        if config.torch_compile:  # which fuses these parts itself
            return False
        return device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None
    return config.liger == "on"


def use_liger(model: nn.Module, *, required: bool = True) -> int:
    """Replace the forward pass of RMS norms and SwiGLU layers, and rotary embeddings; the number of modules."""
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
        parts = {part for part, _ in module.named_children()}
        if name.endswith("RMSNorm") and hasattr(module, "variance_epsilon") and not parts:
            module.forward = MethodType(norm, module)
        elif parts == SWIGLU_PARTS and is_silu(module):
            module.forward = MethodType(swiglu, module)
        else:
            continue
        replaced += 1
    use_liger_rotary({type(module).__module__ for module in model.modules()})
    if required and not replaced:
        raise OmniprepError(f"--liger: {type(model).__name__} has no part that the liger kernels compute")
    return replaced


def use_liger_rotary(modules: Iterable[str]) -> None:
    """Let functions of those `modules` that are in `ROTARY_MODULES` rotate by Liger's kernel on a GPU."""
    from liger_kernel.transformers import rope

    for name in ROTARY_MODULES.intersection(modules):
        module = sys.modules[name]
        for function in ("apply_rotary_pos_emb", "apply_rotary_pos_emb_vision"):
            kernel = getattr(rope, f"liger_{function.removeprefix('apply_')}", None)
            plain = getattr(module, function, None)
            if plain is not None and kernel is not None and not isinstance(plain, GpuFunction):
                setattr(module, function, GpuFunction(plain, kernel))


class GpuFunction:
    """A function that has a kernel for tensors on a GPU."""

    def __init__(self, plain: Callable[..., Any], kernel: Callable[..., Any]) -> None:
        self.plain, self.kernel = plain, kernel

    def __call__(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, **options: Any) -> Any:
        """By the kernel, or plainly."""
        return (self.kernel if query.is_cuda else self.plain)(query, key, cos, sin, **options)


def liger_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of hidden states (K, H) through a weight (words, H): float32 losses (K) and hits (K)."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    out = liger_fused_linear_cross_entropy(
        hidden, weight, targets, reduction="none", accum_dtype=torch.float32, return_token_accuracy=True
    )
    return out.loss, out.token_accuracy > 0


def is_silu(module: nn.Module) -> bool:
    """Whether the gate's activation is SiLU."""
    return "silu" in type(getattr(module, "act_fn", None)).__name__.lower()
