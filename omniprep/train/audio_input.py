"""What a model's audio tower makes of the clips of a batch, with the sizes that the reader made of them.

The towers' own ways wait for the device several times: they select frames by a mask, split clips by lengths that lie on
the device, and check a mask's values. Here every selection is by an index from `AudioNumbers`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.masking_utils import create_bidirectional_mask

from omniprep.data.host_numbers import AudioNumbers


def audio_states(core: Any, features: Tensor, mask: Tensor, numbers: AudioNumbers) -> Tensor:
    """States (audio tokens, H) of clips, end to end."""
    tower = core.audio_tower
    features = features.to(tower.dtype)
    if numbers.output_index is None:
        chunks = cut_chunks(features * mask[:, None], numbers)
        states: Tensor = tower(None, padded_feature=chunks, **numbers.arguments).last_hidden_state
        return states
    states = tower(features, attention_mask=clip_mask(tower, mask)).last_hidden_state
    projected: Tensor = core.multi_modal_projector(states.flatten(0, 1).index_select(0, numbers.output_index))
    return projected


def cut_chunks(features: Tensor, numbers: AudioNumbers) -> Tensor:
    """The chunks of clips (clips, mel bins, T) that hold frames that count: (chunks, mel bins, longest chunk)."""
    assert numbers.chunk_index is not None
    whole = pad(features, (0, -features.shape[2] % numbers.chunk_frames))
    chunks = whole.reshape(*whole.shape[:2], -1, numbers.chunk_frames).transpose(1, 2).flatten(0, 1)
    return chunks.index_select(0, numbers.chunk_index)[..., : numbers.longest_chunk]


def clip_mask(tower: Any, mask: Tensor) -> Tensor | None:
    """The mask of Qwen2-Audio's tower, by which no state sees those after a clip's end.

    Source: transformers 5.23, modeling_qwen2_audio.Qwen2AudioModel.forward.
    """
    states = (mask.sum(-1, keepdim=True) - 1) // 2 + 1  # after the convolution of stride 2
    length = (mask.shape[1] - 2) // 2 + 1
    counts = torch.arange(length, device=mask.device) < states
    if tower.config._attn_implementation == "sdpa":  # create_bidirectional_mask would look whether all of it is true
        return counts[:, None, None].expand(-1, 1, length, -1)
    blank = torch.zeros(len(mask), length, 1, dtype=tower.dtype, device=mask.device)
    made: Tensor | None = create_bidirectional_mask(tower.config, blank, counts.long())
    return made
