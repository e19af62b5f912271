"""Models of transformers on bins as they are: one wrapper for the Qwen families that have a class of their own there.

`load_model` takes the class that the checkpoint names and puts `Packed` in front of it. What that changes:
- borders of rows are kept from the towers (which have borders of their own under the same names);
- images and videos go through the vision tower in one call, and `touch_towers` runs the smallest possible media, times
  zero, where a bin has none, so that every rank of a job makes the same calls and none waits for the others' gradients
  or shards of weights;
- logits are made only where a token is predicted.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from omniprep.errors import OmniprepError
from omniprep.train.attention import uses_borders
from omniprep.train.loss import TokenLoss, token_loss

__all__ = ["Packed", "keep_borders", "load_model", "model_class", "refuse_arguments", "take_plain_positions"]

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

    def core(self) -> tuple[Any, nn.Module]:
        """The module that holds towers and language model, and the output head."""
        return self.model, self.lm_head

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
        core, head = self.core()
        borders = arguments.get("cu_seq_lens_q")
        if row_lengths is None and borders is not None:
            row_lengths = borders.diff().tolist()
        refuse_arguments(type(self).__name__, {name: arguments.pop(name, None) for name in ("labels", "loss_scale")})
        arguments["use_cache"] = False
        positions = arguments.get("position_ids")
        if positions is not None and len(positions) == 4 and self.mrope and uses_borders(cast(PreTrainedModel, self)):
            arguments["position_ids"] = positions[1:]
        # Always pictures before sound before text: the order of the calls must be the same on every rank, too.
        seen = _see(core, arguments)
        zero = self._touched(core, arguments, seen) if self.touch_towers else None
        hidden = core(input_ids=input_ids, row_lengths=row_lengths, **arguments).last_hidden_state
        if zero is not None:
            hidden = hidden + zero.to(hidden.device, hidden.dtype)
        if logits_to_keep is not None:
            hidden = hidden[:, logits_to_keep]
        if targets is not None:
            return token_loss(hidden[0], head, targets)
        return CausalLMOutputWithPast(logits=head(hidden))

    def bare(self) -> Any:
        """The model as the class behind this one, on the same modules."""
        bare = copy(self)
        bare.__class__ = type(self).__mro__[2]
        return bare

    def plain_forward(self, **kwargs: Any) -> Any:
        """The forward pass of the class behind this one."""
        return self.bare().forward(**kwargs)

    def generate(self, **kwargs: Any) -> Tensor:
        """Token ids, from transformers' own generation: that of the class behind this one, with its own forward pass,
        since the one here keeps no cache.
        """
        return cast(Tensor, self.bare().generate(**kwargs))

    def _touched(self, core: Any, arguments: dict[str, Any], seen: bool) -> Tensor:
        """Zero, through every tower that the arguments do not use."""
        visual, ears = getattr(core, "visual", None), getattr(core, "audio_tower", None)
        zero = torch.zeros((), device=next(core.parameters()).device)
        if visual is not None and not seen:
            merge = visual.spatial_merge_size
            patch = visual.config
            width = patch.in_channels * patch.temporal_patch_size * patch.patch_size**2
            blank = zero.new_zeros(merge * merge, width, dtype=visual.dtype)
            nothing = visual(blank, grid_thw=torch.tensor([[1, merge, merge]], device=zero.device))
            zero = zero + sum(part.float().sum() for part in _tensors(nothing)) * 0
        if ears is not None and arguments.get("input_features") is None:
            zero = zero + self.heard_nothing(core, ears, zero).float().sum() * 0
        return zero

    def heard_nothing(self, core: Any, ears: Any, zero: Tensor) -> Tensor:
        """What the audio tower makes of the shortest clip that it takes, as the language model would get it."""
        frames = 2 * ears.config.max_source_positions
        blank = zero.new_zeros(1, ears.config.num_mel_bins, frames, dtype=ears.dtype)
        heard: Tensor = core.multi_modal_projector(ears(blank).last_hidden_state)
        return heard


def _see(core: Any, arguments: dict[str, Any]) -> bool:
    """Put what the vision tower makes of all pictures, in one call, in the place of their pixels; whether there are
    any.
    """
    names = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
    pictures = {
        kind: (arguments.pop(pixels), arguments[grid])
        for kind, (pixels, grid) in names.items()
        if arguments.get(pixels) is not None
    }
    if not pictures:
        return False
    visual = core.visual
    pixels = torch.cat([p for p, _ in pictures.values()]).to(visual.dtype)
    seen = visual(pixels, grid_thw=torch.cat([g for _, g in pictures.values()]))
    sizes = [int(g.prod(-1).sum()) // visual.spatial_merge_size**2 for _, g in pictures.values()]
    deeper = [torch.split(part, sizes) for part in getattr(seen, "deepstack_features", None) or ()]
    arguments["mm_encoder_outputs"] = {
        kind: SimpleNamespace(pooler_output=(part,), deepstack_features=[(layer[n],) for layer in deeper])
        for n, (kind, part) in enumerate(zip(pictures, torch.split(seen.pooler_output, sizes), strict=True))
    }
    return True


def refuse_arguments(who: str, given: Mapping[str, Any]) -> None:
    """Refuse arguments of a forward pass that would be ignored.

    Raises:
        OmniprepError: One of them is neither None nor off.
    """
    for name, value in given.items():
        if name not in ("use_cache", "return_dict") and value is not None and value is not False:
            raise OmniprepError(
                f"the forward pass of {who} does not take {name}: it gives logits, or the losses of `targets`"
            )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


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


def model_class(architectures: Any) -> type[PreTrainedModel] | None:
    """The class of transformers that a config.json names first; None for anything that is no model."""
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


def load_model(path: str, dtype: torch.dtype, attn_implementation: str) -> PreTrainedModel:
    """Load a checkpoint as the class that it names, ready for bins (hook of the families).

    Args:
        path: Folder or Hub name.
        dtype: Type of the weights.
        attn_implementation: transformers' name, for the language model and the towers.

    Raises:
        OmniprepError: transformers has no such class.
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    base = model_class(config.architectures)
    if base is None:
        raise OmniprepError(f"model {path!r}: transformers has no model {config.architectures!r:.100}")
    packed = type(base.__name__, (Packed, base), {"__module__": base.__module__})
    load = PreTrainedModel.from_pretrained.__func__
    model = load(packed, path, config=config, dtype=dtype, attn_implementation=attn_implementation)
    model.mrope = has_mrope(config)
    keep_borders(model.model, mrope=model.mrope)
    return cast(PreTrainedModel, model)
