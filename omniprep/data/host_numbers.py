"""Numbers that a forward pass needs on the host (lengths, grids, borders); reader processes compute them.

A tensor on the device cannot be read without waiting for everything queued before it: one step of an image bin waited
113 times, for lengths of rows and windows, for grids, and for which tokens are placeholders. All of that follows from
the bin's integers, which the reader process holds in host memory; `omniprep.train.tower_numbers` makes these records of
them. `collate` gives none of this: its dict is what a class of transformers takes as it stands.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

Grid = tuple[int, int, int]
Leaf = TypeVar("Leaf")
HOST = {"host": True}
"""Metadata of fields whose tensors stay in host memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionNumbers:
    """For one call of the vision tower with all images of a batch, then all its videos.

    P patches in S segments of full attention (a frame each) and W windows.
    """

    arguments: Mapping[str, Tensor | int]
    """Keyword arguments of the tower by which a class of transformers (5.23, `vision_utils`) takes what it would
    compute itself: position_ids int64 (P, 2), cu_seqlens int32 (S+1), max_seqlen (int); with windows also window_index
    int64 (P / merged patches), cu_window_seqlens int32 (W+1), max_window_seqlen (int); with interpolated position
    embeddings interp_indices int64 (P, 4), interp_weights float32 (P, 4). Tensors go to the device."""
    segment_lengths: tuple[int, ...]
    """Patches of each segment of full attention: `cu_seqlens` as host integers (sum P)."""
    window_lengths: tuple[int, ...] = ()
    """Patches of each window: `cu_window_seqlens` as host integers (sum P); empty for towers without windows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioNumbers:
    """For one call of the audio tower with all clips of a batch.

    A tower of Qwen2.5-Omni or Qwen3-Omni takes clips in chunks of a fixed number of frames; that of Qwen2-Audio takes
    whole clips, padded to 30 s, and has neither `arguments` nor segments.
    """

    arguments: Mapping[str, Tensor | int] = field(default_factory=dict)
    """Keyword arguments of the tower, as for `VisionNumbers`: feature_lens int64 (clips), chunk_lengths int64 (chunks),
    valid_indices int64 (V), cu_seqlens int32 (segments+1), max_seqlen (int), Qwen2.5-Omni also pool_indices int64.
    Tensors go to the device; `padded_feature`, which belongs to them, is made there with `chunk_index`."""
    segment_lengths: tuple[int, ...] = ()
    """States of each segment of attention: `cu_seqlens` as host integers (sum V)."""
    chunk_frames: int = 0
    """Frames of a chunk (2 * n_window): the clips, padded to a multiple of it, are C chunks each."""
    longest_chunk: int = 0
    """Frames of the longest chunk that is there, which all are cut or padded to."""
    chunk_index: Tensor | None = None
    """int64 (chunks): which of the clips * C chunks hold frames that count. Goes to the device."""
    output_index: Tensor | None = None
    """int64 (audio tokens), Qwen2-Audio: which states of the tower's output, clips end to end, stand for a token. Goes
    to the device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BinNumbers:
    """The numbers of one batch: one or several bins laid end to end, L tokens in R rows."""

    row_lengths: tuple[int, ...]
    """Tokens of each row (sum L)."""
    max_row_length: int
    """Tokens of the longest row."""
    cu_seqlens: Tensor = field(metadata=HOST)
    """int32 (R+1): borders of the rows, from 0 to L. Stays in host memory; the batch's `cu_seq_lens_q` is its copy on
    the device."""
    image_grids: tuple[Grid, ...] = ()
    """(frames, height, width) of each image in patches."""
    video_grids: tuple[Grid, ...] = ()
    """The same of each video."""
    audio_lengths: tuple[int, ...] = ()
    """Spectrogram frames of each clip that count, without padding."""
    image_index: Tensor | None = None
    """int64: positions in the batch of the image placeholder tokens, ascending, for `index_copy`; None where there are
    none. Goes to the device."""
    video_index: Tensor | None = None
    """The same of the video placeholders."""
    audio_index: Tensor | None = None
    """The same of the audio placeholders."""
    visual_index: Tensor | None = None
    """The same of the image placeholders and then those of videos: the order in which the vision tower gives them."""
    vision: VisionNumbers | None = None
    """Of the images and videos; None without any, and for models of which no numbers are made."""
    audio: AudioNumbers | None = None
    """Of the clips; None likewise."""


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """`value` with `function` of every tensor of its dicts and records; tensors of `HOST` fields stay as they are."""
    return map_leaves(value, Tensor, function)


def map_leaves(value: Any, kind: type[Leaf], function: Callable[[Leaf], Any]) -> Any:
    """As `map_tensors`, for values of a type; dicts and records must hold them, lists and tuples are not searched."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, Mapping):
        return {name: map_leaves(part, kind, function) for name, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        changed = {
            f.name: map_leaves(getattr(value, f.name), kind, function)
            for f in fields(value)
            if not f.metadata.get("host")
        }
        return replace(value, **changed)
    return value
