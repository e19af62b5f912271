"""Qwen2.5-Omni as a trainable module: the thinker alone, fed with what `omniprep.collate` gives.

The talker and the vocoder (token2wav) never train, so they are not even loaded (3.5 GB less for the 7B; ZeRO-3 cannot
build them); `omniprep.train.checkpoint` copies their tensors into the saved checkpoint as they were. The forward pass
differs from that of transformers (modeling_qwen2_5_omni.Qwen2_5OmniThinkerModel.forward) in three ways, the result
being the same:
- images and videos go through the vision tower in one call, so that every rank makes the same calls and sharded weights
  cannot hang (ms-swift's _post_encode does so too);
- `touch_towers` runs the smallest possible image and clip, times zero, where a bin has none, for the same reason;
- logits are made only where a token is predicted: for 32k tokens and 152k words they would be 10 GB in bf16.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers import Qwen2_5OmniForConditionalGeneration as Omni
from transformers.modeling_outputs import CausalLMOutputWithPast

from omniprep.errors import OmniprepError
from omniprep.train.attention import uses_borders
from omniprep.train.loss import TokenLoss, token_loss
from omniprep.train.vision_text import refuse_arguments

__all__ = ["Qwen2_5OmniForConditionalGeneration", "load_model", "load_thinker"]

Thinker = TypeVar("Thinker", bound=nn.Module)


class Qwen2_5OmniForConditionalGeneration(Omni):  # type: ignore[misc]  # the name is kept: it is saved
    """The thinker of Qwen2.5-Omni under the module names of the whole model."""

    _no_split_modules: ClassVar[list[str]] = [
        "Qwen2_5OmniDecoderLayer",
        "Qwen2_5OmniVisionBlock",
        "Qwen2_5OmniAudioEncoderLayer",
    ]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^talker\.", r"^token2wav\."]
    accepts_loss_kwargs = True
    touch_towers = False
    """Run a zero-weighted image and clip in every forward pass that has none."""
    never_used = ("thinker.model.audio_tower.audio_bos_eos_token",)
    """Weights that no forward pass reads; gradients of them would be waited for in vain."""

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the thinker."""
        return self.thinker.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The output head of the thinker."""
        return self.thinker.lm_head

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        input_features: Tensor | None = None,
        feature_attention_mask: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        row_lengths: Sequence[int] | None = None,
        logits_to_keep: Tensor | None = None,
        targets: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **unused: Any,
    ) -> CausalLMOutputWithPast | TokenLoss:
        """One bin.

        Args:
            input_ids: (1, L).
            position_ids: (4, 1, L): text positions, then the three m-rope rows.
            pixel_values: (patches, 1176) of all images.
            image_grid_thw: int64 (images, 3).
            pixel_values_videos: As for images.
            video_grid_thw: As for images.
            input_features: (clips, 128, T) spectrograms.
            feature_attention_mask: (clips, T).
            cu_seq_lens_q: int32 (R+1) row borders.
            cu_seq_lens_k: The same.
            max_length_q: The longest row.
            max_length_k: The same.
            row_lengths: The rows' lengths on the host, if known.
            logits_to_keep: (K) positions to predict from (default: all).
            targets: (K) the ids to predict there; with them the result is a `TokenLoss`, without a logit left.
            attention_mask: (1, L) for a plain forward pass of one row; None for bins.
            unused: Arguments that PEFT and transformers always name; they must be None or off (use_cache may be on:
                there is no cache here in any case).

        Returns:
            Logits (1, K, words), or the losses of the targets.

        Raises:
            OmniprepError: An argument that this forward pass does not compute with, such as labels.
        """
        refuse_arguments(type(self).__name__, unused)
        thinker = self.thinker.model
        embeds = thinker.get_input_embeddings()(input_ids)
        embeds = self._see(input_ids, embeds, pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw)
        embeds = self._hear(input_ids, embeds, input_features, feature_attention_mask)
        if row_lengths is None and cu_seq_lens_q is not None:
            row_lengths = cu_seq_lens_q.diff().tolist()
        if position_ids is not None and len(position_ids) == 4 and uses_borders(self):
            position_ids = position_ids[1:]
        hidden = thinker.language_model(
            inputs_embeds=embeds,
            position_ids=position_ids,
            attention_mask=attention_mask,
            use_cache=False,
            cu_seq_lens_q=cu_seq_lens_q,
            cu_seq_lens_k=cu_seq_lens_k,
            max_length_q=max_length_q,
            max_length_k=max_length_k,
            row_lengths=row_lengths,
        ).last_hidden_state
        if logits_to_keep is not None:
            hidden = hidden[:, logits_to_keep]
        if targets is not None:
            return token_loss(hidden[0], self.thinker.lm_head, targets)
        return CausalLMOutputWithPast(logits=self.thinker.lm_head(hidden))

    def plain_forward(self, **kwargs: Any) -> Any:
        """The thinker's own forward pass."""
        return self.thinker(**kwargs)

    def generate(self, **kwargs: Any) -> Tensor:
        """The thinker's own `generate`: text only, (B, L + new) ids."""
        ids: Tensor = self.thinker.generate(**kwargs)
        return ids

    def _see(
        self,
        input_ids: Tensor,
        embeds: Tensor,
        images: Tensor | None,
        image_grid: Tensor | None,
        videos: Tensor | None,
        video_grid: Tensor | None,
    ) -> Tensor:
        """Put the vision tower's output into the embeddings (1, L, H) at image and video placeholders."""
        tower, config = self.thinker.model.visual, self.thinker.config
        given = [(p, g) for p, g in ((images, image_grid), (videos, video_grid)) if p is not None and g is not None]
        if not given:
            if not self.touch_towers:
                return embeds
            grid = torch.tensor([[1, 2, 2]], device=embeds.device)
            patch = tower.config
            width = patch.in_channels * patch.temporal_patch_size * patch.patch_size**2
            blank = torch.zeros(4, width, dtype=tower.dtype, device=embeds.device)
            return embeds + tower(blank, grid_thw=grid).pooler_output.mean().to(embeds.dtype) * 0
        pixels = torch.cat([p for p, _ in given]).to(tower.dtype)
        seen = tower(pixels, grid_thw=torch.cat([g for _, g in given])).pooler_output.to(embeds.dtype)
        image_mask = (input_ids == config.image_token_id)[..., None]
        of_images = (
            0 if image_grid is None or images is None else int(image_grid.prod(-1).sum()) // tower.spatial_merge_unit
        )
        if of_images:
            embeds = embeds.masked_scatter(image_mask, seen[:of_images])
        if of_images < len(seen):
            embeds = embeds.masked_scatter((input_ids == config.video_token_id)[..., None], seen[of_images:])
        return embeds

    def _hear(self, input_ids: Tensor, embeds: Tensor, features: Tensor | None, mask: Tensor | None) -> Tensor:
        """Put the audio tower's output into the embeddings (1, L, H) at audio placeholders."""
        tower = self.thinker.model.audio_tower
        if features is None or mask is None:
            if not self.touch_towers:
                return embeds
            blank = torch.zeros(tower.num_mel_bins, 4, dtype=embeds.dtype, device=embeds.device)
            heard = tower(blank, feature_lens=torch.tensor([4], device=embeds.device)).last_hidden_state
            return embeds + heard.mean().to(embeds.dtype) * 0
        heard = self.thinker.model.get_audio_features(features, mask, return_dict=True).last_hidden_state
        audio_mask = (input_ids == self.thinker.config.audio_token_id)[..., None]
        return embeds.masked_scatter(audio_mask, heard.to(embeds.dtype))


def load_model(path: str, dtype: torch.dtype, attn_implementation: str) -> Qwen2_5OmniForConditionalGeneration:
    """Load the thinker of a Qwen2.5-Omni checkpoint (hook of the family).

    Args:
        path: Folder or Hub name.
        dtype: Type of the weights.
        attn_implementation: transformers' name, for the language model and the towers.

    Raises:
        OmniprepError: A checkpoint of the thinker alone.
    """
    return load_thinker(Qwen2_5OmniForConditionalGeneration, path, dtype, attn_implementation)


def load_thinker(kind: type[Thinker], path: str, dtype: torch.dtype, attn_implementation: str) -> Thinker:
    """Load the thinker of a whole checkpoint as one of our classes; arguments and errors as `load_model`."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if not hasattr(config, "thinker_config"):
        raise OmniprepError(f"model {path!r}: holds the thinker alone; give the whole model, whose names it keeps")
    config.enable_audio_output = False
    # Not kind.from_pretrained: that one insists on the talker's speakers.
    load = PreTrainedModel.from_pretrained.__func__
    model = load(kind, path, config=config, dtype=dtype, attn_implementation=attn_implementation)
    assert isinstance(model, kind)
    return model
