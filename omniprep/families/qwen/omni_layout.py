"""Where the tokens of the media of Qwen2.5-Omni and Qwen3-Omni go: the interleave of sound and frames, and m-rope
position ids.

Sources: transformers modeling_qwen2_5_omni and modeling_qwen3_omni_moe get_rope_index, get_chunked_index; ms-swift
3.9.3 template/qwen.py _get_new_tokens_use_audio_in_video. No model, no Python loop over tokens. Three traps are kept on
purpose: the next position is the maximum of the *last piece* plus one; ms-swift computes the interleave with the
seconds of a grid step cast to the checkpoint's dtype (bfloat16), and torch rounds what such a number is compared with
to bfloat16 too (650 becomes 648); positions are float32, and Qwen3-Omni's are compared with what precedes them added.

Qwen2.5-Omni takes frames and sound chunk by chunk, and gives the two tokens that open (or close) a video with sound one
position. Qwen3-Omni has no chunks (`chunk` None): token by token, whichever is earlier, frames first; its two tokens
have two positions.
"""

from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]
Series = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Block:
    """One media block of a row, in reading order."""

    kind: str
    """image, audio, video, or video_audio (a video with its sound)."""
    grid: tuple[int, int, int] = (1, 1, 1)
    """(t, h, w) in merged tokens; unused for audio."""
    seconds: float = 1.0
    """Seconds between two temporal grid steps."""
    audio_tokens: int = 0


def chunks(values: NDArray[np.floating] | Int, size: int, *, bfloat16: bool = False) -> list[tuple[int, int]]:
    """(start, end) of chunks: a new one opens where a value reaches the next multiple of `size`, at most one a token.

    Multiples are rounded to bfloat16 where the values are, as torch does (`tensor >= 650` compares with 648).
    """
    pieces, start, first_cut = [], 0, 0
    edge = size
    while True:
        limit = to_bfloat16(np.array([edge], np.float32))[0] if bfloat16 else edge
        cut = max(int(np.searchsorted(values, limit, side="left")), first_cut)
        if cut >= len(values):
            pieces.append((start, len(values)))
            return pieces
        pieces.append((start, cut))
        start, first_cut, edge = cut, cut + 1, edge + size


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round float32 to the nearest bfloat16 (half to even), kept as float32."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def merge(video: NDArray[np.floating], audio: NDArray[np.floating] | Int) -> NDArray[np.bool_]:
    """Two ascending series as one: True where one of the first stands; of equal values the first's goes first."""
    order = np.zeros(len(video) + len(audio), dtype=bool)
    order[np.arange(len(video)) + np.searchsorted(audio, video, side="left")] = True
    return order


def interleave(block: Block, per_second: int, chunk: int | None, *, bfloat16: bool) -> NDArray[np.bool_]:
    """Order of a video_audio block's tokens: True where a video token stands, False for audio.

    In chunks of `chunk` position ids, or token by token; `bfloat16` computes time as ms-swift does.
    """
    t, h, w = block.grid
    steps = np.arange(t, dtype=np.float32)
    if bfloat16:
        # torch: int64 tensor * bfloat16 scalar tensor -> bfloat16; then * int -> bfloat16
        seconds = to_bfloat16(np.array([block.seconds], np.float32))[0]
        times = to_bfloat16(to_bfloat16(to_bfloat16(steps) * seconds) * np.float32(per_second))
    else:
        times = steps * np.float32(block.seconds) * np.float32(per_second)
    if chunk is None:
        sound = np.arange(block.audio_tokens, dtype=np.float32)
        # torch compares a bfloat16 scalar with an int64 scalar as bfloat16
        return merge(np.repeat(times, h * w), to_bfloat16(sound) if bfloat16 else sound)
    video = chunks(np.repeat(times, h * w), chunk, bfloat16=bfloat16)
    audio = chunks(np.arange(block.audio_tokens), chunk)
    lengths, is_video = [], []
    for pair in zip_longest(video, audio, fillvalue=(0, 0)):
        lengths += [end - start for start, end in pair]
        is_video += [True, False]
    return np.repeat(is_video, lengths)


def _count(size: int) -> Series:
    return np.arange(size, dtype=np.float32)


def _vision(grid: tuple[int, int, int], times: Series, base: np.float32) -> Series:
    t, h, w = grid
    result = np.empty((3, t, h, w), np.float32)
    result[0] = times[:, None, None]
    result[1] = np.arange(h)[None, :, None]
    result[2] = np.arange(w)[None, None, :]
    return result.reshape(3, -1) + base


def _times(block: Block, per_second: int, chunk: int | None) -> Series:
    """Temporal positions of the frames, from 0: whole numbers where there are chunks, else as they come."""
    if block.kind == "image":
        return np.zeros(block.grid[0], np.float32)
    times: Series = _count(block.grid[0]) * np.float32(block.seconds) * np.float32(per_second)
    return times if chunk is None else np.floor(times)


def _merged(video: Series, audio: Series) -> tuple[list[Series], np.float32]:
    """Frames and sound token by token; the last piece is what is left of one when the other has ended.

    The model compares positions with their start added, where float32 may round a frame's fraction to a whole number.
    """
    order = merge(video[0], audio[0])
    whole = np.empty((3, len(order)), np.float32)
    whole[:, order], whole[:, ~order] = video, audio
    last = int(np.flatnonzero(order != order[-1])[-1]) + 1 if order.any() and not order.all() else 0
    return [whole], whole[:, last:].max()


def _body(block: Block, base: np.float32, per_second: int, chunk: int | None) -> tuple[list[Series], np.float32]:
    """The pieces of a block's body, and the maximum of the last one."""
    audio = np.broadcast_to(base + _count(block.audio_tokens), (3, block.audio_tokens))
    if block.kind == "audio":
        return [audio], audio[0, -1]
    video = _vision(block.grid, _times(block, per_second, chunk), base)
    if block.kind != "video_audio":
        return [video], video.max()
    if chunk is None:
        return _merged(video, audio)
    video_chunks = chunks(video[0] - base, chunk)
    audio_chunks = chunks(audio[0] - base, chunk)
    pieces = []
    for pair in zip_longest(video_chunks, audio_chunks):
        for series, piece in zip((video, audio), pair, strict=True):
            if piece is not None:
                pieces.append(series[:, piece[0] : piece[1]])
    return pieces, pieces[-1].max()


def positions(
    length: int, starts: list[int], blocks: list[Block], per_second: int = 25, chunk: int | None = 50
) -> NDArray[np.int32]:
    """M-rope ids int32 (3, L): temporal, height, width; `starts` are the first placeholder tokens of the blocks.

    Qwen3-Omni's are fractions where a grid step is no whole number of ids; they are summed in float32, as the model
    does, and cut at the very end.
    """
    pieces: list[Series] = []
    cursor, base = 0, np.float32(0)
    for start, block in zip(starts, blocks, strict=True):
        marks = 2 if block.kind == "video_audio" else 1
        text = start - marks - cursor
        if text:
            pieces.append(np.broadcast_to(base + _count(text), (3, text)))
            base += np.float32(text)
        mark = _count(marks) if chunk is None else np.zeros(marks, np.float32)
        pieces.append(np.broadcast_to(base + mark, (3, marks)))
        body, last = _body(block, base + mark[-1] + np.float32(1), per_second, chunk)
        pieces += body
        pieces.append(np.broadcast_to(last + np.float32(1) + mark, (3, marks)))
        base = last + mark[-1] + np.float32(2)
        cursor = start + sum(piece.shape[1] for piece in body) + marks
    rest = length - cursor
    pieces.append(np.broadcast_to(base + _count(rest), (3, rest)))
    return np.concatenate(pieces, axis=1, dtype=np.int32, casting="unsafe")
