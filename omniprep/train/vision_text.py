"""Models of transformers on bins as they are: one wrapper for the Qwen families whose whole model is tower and language
model.

`load_model` takes the class that the checkpoint names and puts `Packed` in front of it. What that changes: borders of
rows are kept from the towers (which have borders of their own under the same names), logits are made only where a token
is predicted, and `touch_towers` runs the smallest possible media, times zero, where a bin has none, so that ranks of a
job never wait for each other's gradients.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from omniprep.errors import OmniprepError
from omniprep.train.loss import TokenLoss, token_loss

__all__ = ["Packed", "load_model"]

_BORDERS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "row_lengths", "use_cache")


class Packed:
    """Goes before a transformers class in the bases of a model; that class has `model` and `lm_head`."""

    touch_towers = False
    """Run zero-weighted media in every forward pass that has none (several ranks)."""
    accepts_loss_kwargs = True
    never_used: ClassVar[tuple[str, ...]] = ()
    model: Any
    lm_head: nn.Module

    def forward(
        self,
        input_ids: Tensor,
        row_lengths: Sequence[int] | None = None,
        logits_to_keep: Tensor | None = None,
        targets: Tensor | None = None,
        **arguments: Any,
    ) -> CausalLMOutputWithPast | TokenLoss:
        """One bin.

        Args:
            input_ids: (1, L).
            row_lengths: The rows' lengths on the host, if known.
            logits_to_keep: (K) positions to predict from (default: all).
            targets: (K) the ids to predict there; with them the result is a `TokenLoss`.
            arguments: What else `omniprep.collate` gives, as the model's own forward pass takes it.

        Returns:
            Logits (1, K, words), or the losses of the targets.
        """
        borders = arguments.get("cu_seq_lens_q")
        if row_lengths is None and borders is not None:
            row_lengths = borders.diff().tolist()
        arguments.pop("labels", None)
        arguments["use_cache"] = False
        hidden = self.model(input_ids=input_ids, row_lengths=row_lengths, **arguments).last_hidden_state
        if self.touch_towers:
            hidden = hidden + self._touched(arguments).to(hidden.dtype)
        if logits_to_keep is not None:
            hidden = hidden[:, logits_to_keep]
        if targets is not None:
            return token_loss(hidden[0], self.lm_head, targets)
        return CausalLMOutputWithPast(logits=self.lm_head(hidden))

    def _touched(self, arguments: dict[str, Any]) -> Tensor:
        """Zero, through every tower that the arguments do not use."""
        zero = torch.zeros((), device=next(self.lm_head.parameters()).device)
        visual, ears = getattr(self.model, "visual", None), getattr(self.model, "audio_tower", None)
        if (
            visual is not None
            and arguments.get("pixel_values") is None
            and arguments.get("pixel_values_videos") is None
        ):
            merge = visual.spatial_merge_size
            blank = zero.new_zeros(
                merge * merge, math.prod(visual.patch_embed.proj.weight.shape[1:]), dtype=visual.dtype
            )
            seen = visual(blank, grid_thw=torch.tensor([[1, merge, merge]], device=zero.device))
            zero = zero + sum(part.float().sum() for part in _tensors(seen)) * 0
        if ears is not None and arguments.get("input_features") is None:
            frames = 2 * ears.config.max_source_positions
            blank = zero.new_zeros(1, ears.config.num_mel_bins, frames, dtype=ears.dtype)
            heard = self.model.multi_modal_projector(ears(blank).last_hidden_state)
            zero = zero + heard.float().sum() * 0
        return zero


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _without_borders(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {k: v for k, v in kwargs.items() if k not in _BORDERS}


def _plain_positions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    positions = kwargs.get("position_ids")
    if positions is not None and positions.ndim == 3:
        kwargs = {**kwargs, "position_ids": positions[0]}
    return args, kwargs


def load_model(path: str, dtype: torch.dtype, attn_implementation: str) -> PreTrainedModel:
    """Load a checkpoint as the class that it names, ready for bins (hook of the families).

    Args:
        path: Folder or Hub name.
        dtype: Type of the weights.
        attn_implementation: transformers' name, for the language model and the towers.

    Raises:
        OmniprepError: transformers has no such class.
    """
    config = AutoConfig.from_pretrained(path)
    name = (config.architectures or ["none named"])[0]
    base = getattr(transformers, name, None)
    if base is None:
        raise OmniprepError(f"model {path!r}: transformers has no class {name!r}")
    packed = type(name, (Packed, base), {"__module__": base.__module__})
    load = PreTrainedModel.from_pretrained.__func__
    model = load(packed, path, config=config, dtype=dtype, attn_implementation=attn_implementation)
    towers = [getattr(model.model, tower, None) for tower in ("visual", "audio_tower")]
    for tower in towers:
        if tower is not None:
            tower.register_forward_pre_hook(_without_borders, with_kwargs=True)
    if "mrope_section" not in str(config.get_text_config().to_dict()):
        model.model.language_model.register_forward_pre_hook(_plain_positions, with_kwargs=True)
    return cast(PreTrainedModel, model)
