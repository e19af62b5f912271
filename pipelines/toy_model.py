"""A model for the toy family (toy_family.py), as a second plug-in: only training needs it.

omniprep train packed/ --model DIR --plugin pipelines/toy_family.py --plugin pipelines/toy_model.py --out run/
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel, Qwen2Config, Qwen2Model
from transformers.modeling_outputs import CausalLMOutputWithPast

from omniprep.registry import REGISTRY, ModelArch

PATCH = 32 * 32 * 3


class ToyConfig(Qwen2Config):
    """A Qwen2 with an image token."""

    model_type = "toy_vl"
    image_token_id = 0


class ToyVLModel(PreTrainedModel, GenerationMixin):
    """Qwen2 layers, and a linear map from a square of 32x32 pixels to an embedding."""

    config_class = ToyConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["Qwen2DecoderLayer"]

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.visual = nn.Linear(PATCH, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        pixels: Tensor | None = None,
        image_hw: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **borders: Any,
    ) -> CausalLMOutputWithPast:
        """One bin: what `omniprep.collate` gives; `borders` are those of its rows, for the attention."""
        embeds = self.model.embed_tokens(input_ids)
        if pixels is not None:
            seen = self.visual(pixels.to(embeds.dtype) / 255)
            embeds = embeds.masked_scatter((input_ids == self.config.image_token_id)[..., None], seen)
        hidden = self.model(
            inputs_embeds=embeds,
            position_ids=position_ids,  # (1, L) from `collate`, as the family has no m-rope
            attention_mask=attention_mask,
            **borders,
        ).last_hidden_state
        return CausalLMOutputWithPast(logits=self.lm_head(hidden))


def load_model(path: str, dtype: torch.dtype, attn_implementation: str) -> ToyVLModel:
    """Load a checkpoint (the hook that `omniprep train` calls)."""
    return ToyVLModel.from_pretrained(path, dtype=dtype, attn_implementation=attn_implementation)


ToyVL = REGISTRY.families["toy_vl"].cls
ToyVL.load_model = staticmethod(load_model)
REGISTRY.register_model_arch(ModelArch(language_model=("model",), vision_tower=("visual",)))(ToyVL)
