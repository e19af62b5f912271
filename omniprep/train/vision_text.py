"""Models of transformers on bins as they are: one wrapper for the Qwen families.

`load_model` takes the class that the checkpoint names and puts `Packed` in front of it. What that changes:
- images and videos go through the vision tower in one call, clips through the audio tower in one, and what comes out is
  copied to the placeholders by indices that the reader made (`BinNumbers`), so that no step waits for the device;
- `touch_towers` runs the smallest possible media, times zero, where a bin has none, so that every rank of a job makes
  the same calls and none waits for the others' gradients or shards of weights;
- borders of rows reach the language model alone: towers have borders of their own under the same names;
- logits are made only where a token is predicted: for 32k tokens and 152k words they would be 10 GB in bf16.
"""

from collections.abc import Mapping
from copy import copy
from types import MethodType
from typing import Any, ClassVar, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from omniprep.data.host_numbers import BinNumbers, map_tensors
from omniprep.errors import OmniprepError
from omniprep.train.attention import uses_borders
from omniprep.train.audio_input import audio_states
from omniprep.train.loss import TokenLoss, token_loss
from omniprep.train.tower_numbers import TowerGeometry, audio_numbers, bin_numbers, tower_geometry, vision_numbers

_BORDERS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "row_lengths", "use_cache")


class Packed:
    """Goes before a transformers class in the bases of a model; that class has `model` and `lm_head`."""

    touch_towers = False
    """Run zero-weighted media in every forward pass that has none (several ranks)."""
    accepts_loss_kwargs = True
    never_used: ClassVar[tuple[str, ...]] = ()
    mrope = True
    """Whether the language model takes the three m-rope rows of position_ids."""
    model: Any
    lm_head: nn.Module
    _geometry: TowerGeometry | None = None
    _blank_inputs: tuple[torch.device, dict[str, Any]] | None = None

    def core(self) -> tuple[Any, nn.Module]:
        """The module that holds towers and language model, and the output head."""
        return self.model, self.lm_head

    @property
    def geometry(self) -> TowerGeometry:
        """Of the towers, for the numbers of batches."""
        if self._geometry is None:
            core, _ = self.core()
            self._geometry = tower_geometry(core, core.config)
        return self._geometry

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
        attention_mask: Tensor | None = None,
        numbers: BinNumbers | None = None,
        logits_to_keep: Tensor | None = None,
        targets: Tensor | None = None,
        **unused: Any,
    ) -> CausalLMOutputWithPast | TokenLoss:
        """Logits (1, K, words) of one bin at `logits_to_keep` (K), by default all; or the `TokenLoss` of `targets` (K).

        position_ids: (4, 1, L), text positions and the three m-rope rows; (1, L) for models without m-rope.
        pixel_values: (patches, C * T * patch_size**2) of all images or videos, with grids int64 (items, 3).
        input_features: (clips, 128, T) spectrograms, with their mask (clips, T).
        cu_seq_lens_q: int32 (R+1) row borders; max_length_q is the longest row.
        attention_mask: (1, L) for a plain forward pass of one row; None for bins.
        numbers: What the reader knows of the batch; without it, it is read from the device, which waits.
        unused: Arguments that PEFT and transformers always name. Any that is neither None nor off is refused (use_cache
            may be on: there is no cache here in any case).
        """
        refuse_arguments(type(self).__name__, unused)
        core, head = self.core()
        pixels = [x for x in (pixel_values, pixel_values_videos) if x is not None]
        if numbers is None:
            numbers = self.count_numbers(
                input_ids, image_grid_thw, video_grid_thw, feature_attention_mask, cu_seq_lens_q
            )
        embeds = core.get_input_embeddings()(input_ids)
        # Always pictures before sound before text: the order of the calls must be the same on every rank, too.
        embeds, deepstack = self.add_visual(core, embeds, pixels, (image_grid_thw, video_grid_thw), numbers)
        embeds = self.add_audio(core, embeds, input_features, feature_attention_mask, numbers)
        if (
            position_ids is not None
            and len(position_ids) == 4
            and self.mrope
            and uses_borders(cast(PreTrainedModel, self))
        ):
            position_ids = position_ids[1:]
        hidden = core.language_model(
            inputs_embeds=embeds,
            position_ids=position_ids,
            attention_mask=attention_mask,
            use_cache=False,
            cu_seq_lens_q=cu_seq_lens_q,
            cu_seq_lens_k=cu_seq_lens_k,
            max_length_q=max_length_q,
            max_length_k=max_length_k,
            row_lengths=None if cu_seq_lens_q is None else numbers.row_lengths,
            **deepstack,
        ).last_hidden_state
        if logits_to_keep is not None:
            hidden = hidden.index_select(1, logits_to_keep)
        if targets is not None:
            return token_loss(hidden[0], head, targets)
        return CausalLMOutputWithPast(logits=head(hidden))

    def count_numbers(
        self,
        input_ids: Tensor,
        image_grid: Tensor | None,
        video_grid: Tensor | None,
        audio_mask: Tensor | None,
        borders: Tensor | None,
    ) -> BinNumbers:
        """The numbers of a batch that came without them; arguments as `forward`. Waits for the device."""
        batch: dict[str, Any] = {
            "input_ids": input_ids,
            "image_grid_thw": image_grid,
            "video_grid_thw": video_grid,
            "feature_attention_mask": audio_mask,
            "cu_seq_lens_q": torch.tensor([0, input_ids.numel()], dtype=torch.int32) if borders is None else borders,
        }
        numbers = bin_numbers(map_tensors(batch, Tensor.cpu), self.geometry)
        moved: BinNumbers = map_tensors(numbers, lambda tensor: tensor.to(input_ids.device))
        return moved

    def bare(self) -> Any:
        """The model as the class behind this one, on the same modules."""
        bare = copy(self)
        bare.__class__ = type(self).__mro__[2]
        return bare

    def plain_forward(self, **kwargs: Any) -> Any:
        """The forward pass of the class behind this one."""
        return self.bare().forward(**kwargs)

    def generate(self, **kwargs: Any) -> Tensor:
        """Token ids, generated by the class behind this one with its own forward pass: the one here keeps no cache."""
        return cast(Tensor, self.bare().generate(**kwargs))

    def add_visual(
        self,
        core: Any,
        embeds: Tensor,
        pixels: list[Tensor],
        grids: tuple[Tensor | None, Tensor | None],
        numbers: BinNumbers,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Put the vision tower's output into the embeddings (1, L, H) at image and video placeholders.

        Also gives further arguments of the language model: features for its first layers (DeepStack).
        """
        visual = getattr(core, "visual", None)
        if visual is None:
            return embeds, {}
        if not pixels:
            if not self.touch_towers:
                return embeds, {}
            nothing = visual(**self._blanks(core, embeds.device)["visual"])
            # Only of what is used of pictures too: ZeRO-3 compares the modules of the backward pass between ranks.
            used = [nothing.pooler_output, *(getattr(nothing, "deepstack_features", None) or ())]
            zero = torch.stack([part.float().mean() for part in used]).sum() * 0
            return embeds + zero.to(embeds.dtype), {}
        given = {} if numbers.vision is None else numbers.vision.arguments
        grid = torch.cat([grid for grid in grids if grid is not None])
        encoded = visual(torch.cat(pixels).to(visual.dtype), grid_thw=grid, **given)
        assert numbers.visual_index is not None
        embeds = put_at(embeds, numbers.visual_index, encoded.pooler_output)
        deep = getattr(encoded, "deepstack_features", None)
        if not deep:
            return embeds, {}
        return embeds, {"visual_pos_masks": numbers.visual_index, "deepstack_visual_embeds": deep}

    def add_audio(
        self, core: Any, embeds: Tensor, features: Tensor | None, mask: Tensor | None, numbers: BinNumbers
    ) -> Tensor:
        """Put the audio tower's output into the embeddings (1, L, H) at audio placeholders."""
        if getattr(core, "audio_tower", None) is None:
            return embeds
        if features is None or mask is None:
            if not self.touch_towers:
                return embeds
            blank = self._blanks(core, embeds.device)["audio"]
            return embeds + audio_states(core, **blank).mean().to(embeds.dtype) * 0
        assert numbers.audio is not None and numbers.audio_index is not None
        return put_at(embeds, numbers.audio_index, audio_states(core, features, mask, numbers.audio))

    def _blanks(self, core: Any, device: torch.device) -> dict[str, Any]:
        """The smallest media that the towers take, on the device; made once, since copies from the host would wait."""
        if self._blank_inputs is None or self._blank_inputs[0] != device:
            blanks: dict[str, Any] = {}
            if (visual := getattr(core, "visual", None)) is not None:
                side, patch = visual.spatial_merge_size, visual.config
                width = patch.in_channels * patch.temporal_patch_size * patch.patch_size**2
                blanks["visual"] = {
                    "hidden_states": torch.zeros(side * side, width, dtype=visual.dtype),
                    "grid_thw": torch.tensor([[1, side, side]]),
                    **(vision_numbers([(1, side, side)], self.geometry).arguments if self.geometry.merge_size else {}),
                }
            if (audio := getattr(core, "audio_tower", None)) is not None:
                # Chunked towers take 4 frames, which are one token; that of Qwen2-Audio takes 30 s in any case.
                frames = 4 if self.geometry.n_window else 2 * audio.config.max_source_positions
                blanks["audio"] = {
                    "features": torch.zeros(1, audio.config.num_mel_bins, frames, dtype=audio.dtype),
                    "mask": torch.ones(1, frames, dtype=torch.int64),
                    "numbers": audio_numbers((frames,), frames, self.geometry),
                }
            self._blank_inputs = device, map_tensors(blanks, lambda tensor: tensor.to(device))
        return self._blank_inputs[1]


def put_at(embeds: Tensor, index: Tensor, states: Tensor) -> Tensor:
    """Embeddings (1, L, H) with `states` (n, H) at the positions `index` (n)."""
    return embeds.index_copy(1, index, states.to(embeds.dtype)[None])


def refuse_arguments(who: str, given: Mapping[str, Any]) -> None:
    """Refuse arguments of a forward pass that would be ignored: they must be None or off."""
    for name, value in given.items():
        if name not in ("use_cache", "return_dict") and value is not None and value is not False:
            raise OmniprepError(
                f"the forward pass of {who} does not take {name}: it gives logits, or the losses of `targets`"
            )


def _without_borders(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {k: v for k, v in kwargs.items() if k not in _BORDERS}


def _plain_positions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    positions = kwargs.get("position_ids")
    if positions is not None and positions.ndim == 3 and len(positions) == 4:
        kwargs = {**kwargs, "position_ids": positions[0]}
    return args, kwargs


def has_mrope(config: Any) -> bool:
    """Whether a model's language model rotates by three axes, and so takes all four rows of position_ids."""
    return "mrope_section" in str(config.get_text_config().to_dict())


def take_plain_positions(model: PreTrainedModel) -> None:
    """Let a class of transformers without m-rope take position_ids as bins have them: the first of the four rows."""
    if not has_mrope(model.config):
        # Within the class: PEFT calls the forward function of the outermost module, past its hooks.
        model.base_model.register_forward_pre_hook(_plain_positions, with_kwargs=True)


def keep_borders(core: Any, *, mrope: bool) -> None:
    """Keep borders of rows from the towers of a model, and from a language model without m-rope its three axes."""
    for tower in (getattr(core, "visual", None), getattr(core, "audio_tower", None)):
        if tower is not None:
            tower.register_forward_pre_hook(_without_borders, with_kwargs=True)
    if not mrope:
        core.language_model.register_forward_pre_hook(_plain_positions, with_kwargs=True)


def prepare_core(core: Any, *, mrope: bool) -> None:
    """Make towers and language model of a class of transformers ready for `Packed`, or refuse them."""
    if not hasattr(core, "language_model"):
        raise OmniprepError(
            f"{type(core).__name__} has no part `language_model`: the hook vision_text:load_model cannot train it"
        )
    keep_borders(core, mrope=mrope)
    text = core.language_model
    if hasattr(text, "_deepstack_process"):
        text._deepstack_process = MethodType(add_deep_features, text)


def add_deep_features(text: Any, hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
    """Add features of the vision tower (n, H) to hidden states (1, L, H) at positions (n).

    In place of the language model's own method, which finds the positions of a mask anew in each layer and waits for
    them; a bool mask, from the model's own forward pass, goes to that method.
    """
    if visual_pos_masks.dtype == torch.bool:
        plain: Tensor = type(text)._deepstack_process(text, hidden_states, visual_pos_masks, visual_embeds)
        return plain
    states = hidden_states[0].index_select(0, visual_pos_masks) + visual_embeds.to(hidden_states.dtype)
    return put_at(hidden_states, visual_pos_masks, states)


def model_class(architectures: Any) -> type[PreTrainedModel] | None:
    """The class of transformers that a config.json names first; None for anything that is no model."""
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    model_class = getattr(transformers, name, None) if isinstance(name, str) else None
    return model_class if isinstance(model_class, type) and issubclass(model_class, PreTrainedModel) else None


def load_model(path: str, dtype: torch.dtype, attn_implementation: str) -> PreTrainedModel:
    """Load a checkpoint as the class that it names, ready for bins (hook of the families)."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    base = model_class(config.architectures)
    if base is None:
        raise OmniprepError(f"model {path!r}: transformers has no model {config.architectures!r:.100}")
    packed = type(base.__name__, (Packed, base), {"__module__": base.__module__})
    load = PreTrainedModel.from_pretrained.__func__
    model = load(packed, path, config=config, dtype=dtype, attn_implementation=attn_implementation)
    model.mrope = has_mrope(config)
    prepare_core(model.model, mrope=model.mrope)
    return cast(PreTrainedModel, model)
