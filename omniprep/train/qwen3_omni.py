"""Qwen3-Omni as a trainable module: the thinker alone, under the module names of the whole model.

As with Qwen2.5-Omni (qwen2_5_omni.py) talker and vocoder (code2wav) never train, are not loaded, and their tensors are
copied into the saved checkpoint. The forward pass is `Packed`'s (vision_text.py). The router's balancing loss is that
of the checkpoint's configuration, which has it off.
"""

from typing import ClassVar

import torch
from transformers import Qwen3OmniMoeForConditionalGeneration as Omni

from omniprep.train.qwen2_5_omni import Thinker, load_thinker


class Qwen3OmniMoeForConditionalGeneration(Thinker, Omni):  # type: ignore[misc]  # the name is kept: it is saved
    """The thinker of Qwen3-Omni under the module names of the whole model."""

    _no_split_modules: ClassVar[list[str]] = [
        "Qwen3OmniMoeThinkerTextDecoderLayer",
        "Qwen3OmniMoeVisionBlock",
        "Qwen3OmniMoeAudioEncoderLayer",
    ]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^talker\.", r"^code2wav\."]


def load_model(path: str, dtype: torch.dtype, attn_implementation: str) -> Qwen3OmniMoeForConditionalGeneration:
    """Load the thinker of a Qwen3-Omni checkpoint (hook of the family)."""
    return load_thinker(Qwen3OmniMoeForConditionalGeneration, path, dtype, attn_implementation)
