"""Qwen2.5-Omni as a trainable module: the thinker alone, fed with what `omniprep.collate` gives.

The talker and the vocoder (token2wav) never train, so they are not even loaded (3.5 GB less for the 7B; ZeRO-3 cannot
build them); `omniprep.train.checkpoint` copies their tensors into the saved checkpoint as they were. The forward pass
is `Packed`'s (vision_text.py).
"""

from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers import Qwen2_5OmniForConditionalGeneration as Omni

from omniprep.errors import OmniprepError
from omniprep.train.vision_text import Packed, prepare_core


class Thinker(Packed):
    """`Packed` for a thinker under the module names of the whole model."""

    thinker: Any

    def core(self) -> tuple[Any, nn.Module]:
        """The thinker's towers and language model, and its head."""
        return self.thinker.model, self.thinker.lm_head

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the thinker."""
        embedding: nn.Module = self.thinker.get_input_embeddings()
        return embedding

    def get_output_embeddings(self) -> nn.Module:
        """The output head of the thinker."""
        head: nn.Module = self.thinker.lm_head
        return head

    def plain_forward(self, **kwargs: Any) -> Any:
        """The thinker's own forward pass."""
        return self.thinker(**kwargs)

    def generate(self, **kwargs: Any) -> Tensor:
        """The thinker's own `generate`: text only, (B, L + new) ids."""
        ids: Tensor = self.thinker.generate(**kwargs)
        return ids


Model = TypeVar("Model", bound=Thinker)


class Qwen2_5OmniForConditionalGeneration(Thinker, Omni):  # type: ignore[misc]  # the name is kept: it is saved
    """The thinker of Qwen2.5-Omni under the module names of the whole model."""

    _no_split_modules: ClassVar[list[str]] = [
        "Qwen2_5OmniDecoderLayer",
        "Qwen2_5OmniVisionBlock",
        "Qwen2_5OmniAudioEncoderLayer",
    ]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^talker\.", r"^token2wav\."]
    never_used: ClassVar[tuple[str, ...]] = ("thinker.model.audio_tower.audio_bos_eos_token",)
    """Weights that no forward pass reads; gradients of them would be waited for in vain."""


def load_model(path: str, dtype: torch.dtype, attn_implementation: str) -> Qwen2_5OmniForConditionalGeneration:
    """Load the thinker of a Qwen2.5-Omni checkpoint (hook of the family)."""
    return load_thinker(Qwen2_5OmniForConditionalGeneration, path, dtype, attn_implementation)


def load_thinker(kind: type[Model], path: str, dtype: torch.dtype, attn_implementation: str) -> Model:
    """Load the thinker of a whole checkpoint as one of our classes; arguments and errors as `load_model`."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if not hasattr(config, "thinker_config"):
        raise OmniprepError(f"model {path!r}: holds the thinker alone; give the whole model, whose names it keeps")
    config.enable_audio_output = False
    # Not kind.from_pretrained: that one insists on the talker's speakers.
    load = PreTrainedModel.from_pretrained.__func__
    model = load(kind, path, config=config, dtype=dtype, attn_implementation=attn_implementation)
    assert isinstance(model, kind)
    prepare_core(model.thinker.model, mrope=True)
    return model
