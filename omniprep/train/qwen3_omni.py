"""Qwen3-Omni as a trainable module: the thinker alone, under the module names of the whole model.

As with Qwen2.5-Omni (qwen2_5_omni.py) talker and vocoder (code2wav) never train, are not loaded, and their tensors are
copied into the saved checkpoint. The forward pass is `Packed`'s (vision_text.py). The router's balancing loss is that
of the checkpoint's configuration, which has it off.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Qwen3OmniMoeForConditionalGeneration as Omni

from omniprep.train.qwen2_5_omni import load_thinker
from omniprep.train.vision_text import Packed, keep_borders

__all__ = ["Qwen3OmniMoeForConditionalGeneration", "load_model"]


class Qwen3OmniMoeForConditionalGeneration(Packed, Omni):  # type: ignore[misc]  # the name is kept: it is saved
    """The thinker of Qwen3-Omni under the module names of the whole model."""

    _no_split_modules: ClassVar[list[str]] = [
        "Qwen3OmniMoeThinkerTextDecoderLayer",
        "Qwen3OmniMoeVisionBlock",
        "Qwen3OmniMoeAudioEncoderLayer",
    ]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^talker\.", r"^code2wav\."]

    def core(self) -> tuple[Any, nn.Module]:
        """The thinker's towers and language model, and its head."""
        return self.thinker.model, self.thinker.lm_head

    def heard_nothing(self, core: Any, ears: Any, zero: Tensor) -> Tensor:
        """The audio tower on one frame."""
        blank = zero.new_zeros(ears.config.num_mel_bins, 1, dtype=ears.dtype)
        heard: Tensor = ears(blank, feature_lens=torch.ones(1, dtype=torch.long, device=blank.device)).last_hidden_state
        return heard

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the thinker."""
        return self.thinker.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The output head of the thinker."""
        return self.thinker.lm_head

    def plain_forward(self, **kwargs: Any) -> Any:
        """The thinker's own forward pass."""
        return self.thinker(**kwargs)

    def generate(self, **kwargs: Any) -> Tensor:
        """The thinker's own `generate`: text only, (B, L + new) ids."""
        ids: Tensor = self.thinker.generate(**kwargs)
        return ids


def load_model(path: str, dtype: torch.dtype, attn_implementation: str) -> Qwen3OmniMoeForConditionalGeneration:
    """Load the thinker of a Qwen3-Omni checkpoint (hook of the family).

    Args:
        path: Folder or Hub name.
        dtype: Type of the weights.
        attn_implementation: transformers' name, for the language model and the towers.

    Raises:
        OmniprepError: A checkpoint of the thinker alone.
    """
    model = load_thinker(Qwen3OmniMoeForConditionalGeneration, path, dtype, attn_implementation)
    keep_borders(model.thinker.model, mrope=True)
    return model
