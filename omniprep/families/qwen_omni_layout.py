"""Where the tokens of Qwen2.5-Omni's media go: the interleave of sound and frames, and m-rope position ids.

Sources: transformers modeling_qwen2_5_omni.get_rope_index and get_chunked_index; ms-swift 3.9.3 template/qwen.py
_get_new_tokens_use_audio_in_video. No model, no Python loop over tokens. Two traps are kept on purpose: the next
position is the maximum of the *last piece* plus one, and ms-swift computes the interleave with the seconds of a grid
step cast to the checkpoint's dtype (bfloat16), the positions with float32.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]


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


def chunks(values: NDArray[np.floating] | Int, size: int) -> list[tuple[int, int]]:
    """(start, end) of chunks: a new one opens where a value reaches the next multiple of `size`, at most one a token.

    Args:
        values: Non-decreasing, one a token.
        size: Width of a chunk in position ids.
    """
    result, start, after = [], 0, 0
    edge = size
    while True:
        cut = max(int(np.searchsorted(values, edge, side="left")), after)
        if cut >= len(values):
            result.append((start, len(values)))
            return result
        result.append((start, cut))
        start, after, edge = cut, cut + 1, edge + size


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round float32 to the nearest bfloat16 (half to even), kept as float32."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def interleave(block: Block, per_second: int, chunk: int, *, bfloat16: bool) -> NDArray[np.bool_]:
    """Order of a video_audio block's tokens: True where a video token stands, False for audio.

    Args:
        block: The block.
        per_second: Position ids a second (25).
        chunk: Position ids a chunk (50).
        bfloat16: Compute time as ms-swift does, in bfloat16 after each product.
    """
    t, h, w = block.grid
    steps = np.arange(t, dtype=np.float32)
    if bfloat16:
        # torch: int64 tensor * bfloat16 scalar tensor -> bfloat16; then * int -> bfloat16
        seconds = to_bfloat16(np.array([block.seconds], np.float32))[0]
        times = to_bfloat16(to_bfloat16(to_bfloat16(steps) * seconds) * np.float32(per_second))
    else:
        times = np.floor(steps * np.float32(block.seconds) * np.float32(per_second))
    video = chunks(np.repeat(times, h * w), chunk)
    audio = chunks(np.arange(block.audio_tokens), chunk)
    order = np.empty(t * h * w + block.audio_tokens, dtype=bool)
    at = 0
    for j in range(max(len(video), len(audio))):
        for pieces, is_video in ((video, True), (audio, False)):
            if j < len(pieces):
                length = pieces[j][1] - pieces[j][0]
                order[at : at + length] = is_video
                at += length
    return order


def _vision(grid: tuple[int, int, int], times: Int, base: int) -> Int:
    t, h, w = grid
    result = np.empty((3, t, h, w), np.int64)
    result[0] = times[:, None, None]
    result[1] = np.arange(h)[None, :, None]
    result[2] = np.arange(w)[None, None, :]
    return result.reshape(3, -1) + base


def _times(block: Block, per_second: int) -> Int:
    steps = np.arange(block.grid[0], dtype=np.float32)
    return (steps * np.float32(block.seconds) * np.float32(per_second)).astype(np.int64)


def _body(block: Block, base: int, per_second: int, chunk: int) -> tuple[list[Int], int]:
    """The pieces of a block's body, and the maximum of the last one."""
    if block.kind == "audio":
        piece = np.broadcast_to(np.arange(base, base + block.audio_tokens), (3, block.audio_tokens))
        return [piece], base + block.audio_tokens - 1
    times = np.zeros(block.grid[0], np.int64) if block.kind == "image" else _times(block, per_second)
    video = _vision(block.grid, times, base)
    if block.kind != "video_audio":
        return [video], int(video.max())
    audio = np.broadcast_to(np.arange(base, base + block.audio_tokens), (3, block.audio_tokens))
    video_chunks = chunks(video[0] - base, chunk)
    audio_chunks = chunks(audio[0] - base, chunk)
    pieces = []
    for j in range(max(len(video_chunks), len(audio_chunks))):
        for whole, cuts in ((video, video_chunks), (audio, audio_chunks)):
            if j < len(cuts):
                pieces.append(whole[:, cuts[j][0] : cuts[j][1]])
    return pieces, int(pieces[-1].max())


def positions(
    length: int, starts: list[int], blocks: list[Block], per_second: int = 25, chunk: int = 50
) -> NDArray[np.int32]:
    """M-rope ids int32 (3, L): temporal, height, width.

    Args:
        length: L, tokens of the row.
        starts: Index of the first placeholder token of each block, in reading order.
        blocks: The blocks, in the same order.
        per_second: Position ids a second.
        chunk: Position ids a chunk of interleaved sound.
    """
    pieces: list[Int] = []
    cursor = base = 0
    for start, block in zip(starts, blocks, strict=True):
        marks = 2 if block.kind == "video_audio" else 1
        text = start - marks - cursor
        if text:
            pieces.append(np.broadcast_to(np.arange(base, base + text), (3, text)))
            base += text
        mark = np.full((3, marks), base, np.int64)  # two opening tokens share one position
        pieces.append(mark)
        body, last = _body(block, base + 1, per_second, chunk)
        pieces += body
        base = last + 1
        pieces.append(np.full((3, marks), base, np.int64))
        base += 1
        cursor = start + sum(piece.shape[1] for piece in body) + marks
    rest = length - cursor
    pieces.append(np.broadcast_to(np.arange(base, base + rest), (3, rest)))
    return np.concatenate(pieces, axis=1, dtype=np.int32, casting="unsafe")
