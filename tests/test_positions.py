"""M-rope ids and the interleave of sound and frames equal transformers' own, on random layouts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerForConditionalGeneration as Thinker
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeThinkerModel as Thinker3

from omniprep.families.qwen3_omni import audio_tokens
from omniprep.families.qwen_omni_layout import Block, chunks, interleave, positions, to_bfloat16

IMAGE, VIDEO, AUDIO = 151655, 151656, 151646
VISION = (151652, 151653)
SOUND = (151647, 151648)


THINKER = SimpleNamespace(
    config=SimpleNamespace(
        image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=AUDIO, vision_start_token_id=VISION[0],
        audio_start_token_id=SOUND[0], position_id_per_seconds=25, seconds_per_chunk=2,
    ),
    spatial_merge_size=2,
)  # fmt: skip
THINKER.get_llm_pos_ids_for_vision = Thinker.get_llm_pos_ids_for_vision.__get__(THINKER)
THINKER.get_chunked_index = Thinker.get_chunked_index.__get__(THINKER)


THINKER3 = SimpleNamespace(
    config=SimpleNamespace(
        **{**vars(THINKER.config), "position_id_per_seconds": 13}, audio_config=SimpleNamespace(n_window=50)
    ),
    spatial_merge_size=2,
)
THINKER3.get_llm_pos_ids_for_vision = Thinker3.get_llm_pos_ids_for_vision.__get__(THINKER3)
RULES = {"qwen2_5_omni": (Thinker, THINKER, 25, 50), "qwen3_omni": (Thinker3, THINKER3, 13, None)}
both = pytest.mark.parametrize("family", RULES)


def frames_of(tokens: int, family: str) -> int:
    """A number of mel frames that gives this many audio tokens."""
    if family == "qwen3_omni":
        return tokens // 13 * 100 + (8 * (tokens % 13) - 7 if tokens % 13 else 0)
    return 4 * tokens - 1 if tokens else 0


def lay_out(family: str, parts: list[tuple[int, Block | None]], tail: int) -> tuple[list[int], list[int], list[Block]]:
    ids: list[int] = []
    starts, blocks = [], []
    for text, block in parts:
        ids += [100] * text
        if block is None:
            continue
        t, h, w = block.grid
        if block.kind == "audio":
            ids.append(SOUND[0])
            body, end = [AUDIO] * block.audio_tokens, [SOUND[1]]
        elif block.kind == "video_audio":
            ids += [VISION[0], SOUND[0]]
            flags = interleave(block, *RULES[family][2:], bfloat16=False)
            body, end = np.where(flags, VIDEO, AUDIO).tolist(), [SOUND[1], VISION[1]]
        else:
            ids.append(VISION[0])
            body, end = [IMAGE if block.kind == "image" else VIDEO] * (t * h * w), [VISION[1]]
        starts.append(len(ids))
        blocks.append(block)
        ids += body + end
    return ids + [101] * tail, starts, blocks


def reference(family: str, ids: list[int], blocks: list[Block], use_audio: bool) -> np.ndarray:
    cls, thinker, *_ = RULES[family]
    images = [b.grid for b in blocks if b.kind == "image"]
    videos = [b for b in blocks if b.kind.startswith("video")]
    frames = [frames_of(b.audio_tokens, family) for b in blocks if b.audio_tokens]
    grids = [
        torch.tensor([(t, 2 * h, 2 * w) for t, h, w in g]) if g else None for g in (images, [v.grid for v in videos])
    ]
    row = torch.tensor([ids])
    result, _ = cls.get_rope_index(
        thinker, row, grids[0], grids[1], torch.ones_like(row), use_audio,
        torch.tensor(frames) if frames else None, torch.tensor([v.seconds for v in videos]) if videos else None,
    )  # fmt: skip
    return result[:, 0].long().numpy()


SIDE = st.integers(1, 6)
AUDIO_BLOCK = st.integers(1, 160).map(lambda n: Block("audio", audio_tokens=n))
IMAGE_BLOCK = st.tuples(SIDE, SIDE).map(lambda s: Block("image", (1, *s)))
SECONDS = st.sampled_from([1.0, 0.5, 2.0, 1.04, 0.3333])
VIDEO_BLOCK = st.tuples(st.integers(1, 20), SIDE, SIDE, SECONDS).map(lambda s: Block("video", s[:3], s[3]))
SOUND_BLOCK = st.tuples(st.integers(1, 20), SIDE, SIDE, SECONDS, st.integers(1, 400)).map(
    lambda s: Block("video_audio", s[:3], s[3], s[4])
)


def rows(video: st.SearchStrategy[Block]) -> st.SearchStrategy[tuple[list[tuple[int, Block]], int]]:
    blocks = st.one_of(AUDIO_BLOCK, IMAGE_BLOCK, video)
    return st.tuples(st.lists(st.tuples(st.integers(0, 7), blocks), min_size=1, max_size=5), st.integers(0, 5))


@both
@settings(max_examples=120, deadline=None)
@given(row=rows(VIDEO_BLOCK))
def test_positions_equal_transformers(family: str, row: tuple[list[tuple[int, Block]], int]) -> None:
    ids, starts, blocks = lay_out(family, *row)
    if not any(b.kind in ("image", "video") for b in blocks):
        return
    ours = positions(len(ids), starts, blocks, *RULES[family][2:])
    assert np.array_equal(ours, reference(family, ids, blocks, use_audio=False))


@both
@settings(max_examples=120, deadline=None)
@given(row=rows(SOUND_BLOCK))
def test_positions_with_sound_equal_transformers(family: str, row: tuple[list[tuple[int, Block]], int]) -> None:
    ids, starts, blocks = lay_out(family, *row)
    if not any(b.kind in ("image", "video_audio") for b in blocks):
        return
    ours = positions(len(ids), starts, blocks, *RULES[family][2:])
    assert np.array_equal(ours, reference(family, ids, blocks, use_audio=True))


def slow_chunks(values: list[float], size: int) -> list[tuple[int, int]]:
    """The loop of get_chunked_index."""
    result, start, chunk = [], 0, 1
    for i, value in enumerate(values):
        if value >= chunk * size:
            result.append((start, i))
            start, chunk = i, chunk + 1
    return [*result, (start, len(values))]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 400), max_size=60).map(sorted), st.integers(1, 60))
def test_chunks_equal_the_loop(values: list[int], size: int) -> None:
    assert chunks(np.array(values), size) == slow_chunks(values, size)


@pytest.mark.parametrize("steps", [1, 2, 30, 150, 384])
def test_bfloat16_order_is_what_torch_computes(steps: int) -> None:
    """ms-swift casts the seconds of a grid step to the checkpoint's dtype before it multiplies."""
    block = Block("video_audio", (steps, 2, 3), 1.0, audio_tokens=25 * steps)
    times = torch.arange(steps).reshape(-1, 1, 1).expand(steps, 2, 3).reshape(-1)
    times = times * torch.tensor([1.0], dtype=torch.bfloat16)[0] * 25
    video, audio = slow_chunks(times.float().tolist(), 50), slow_chunks(list(range(25 * steps)), 50)
    expected: list[bool] = []
    for j in range(max(len(video), len(audio))):
        for pieces, flag in ((video, True), (audio, False)):
            if j < len(pieces):
                expected += [flag] * (pieces[j][1] - pieces[j][0])
    assert interleave(block, 25, 50, bfloat16=True).tolist() == expected


def test_rounding_to_bfloat16_equals_torch() -> None:
    values = np.random.default_rng(0).normal(0, 1e3, 10_000).astype(np.float32)
    assert np.array_equal(to_bfloat16(values), torch.from_numpy(values).bfloat16().float().numpy())


@pytest.mark.parametrize("steps", [1, 2, 30, 150])
def test_bfloat16_order_token_by_token_is_what_torch_computes(steps: int) -> None:
    """ms-swift compares scalar tensors, bfloat16 with int64: so the sound's index is rounded too."""
    block = Block("video_audio", (steps, 1, 2), 2.0, audio_tokens=26 * steps + 5)
    video = torch.arange(steps).reshape(-1, 1, 1).expand(steps, 1, 2).reshape(-1)
    video, audio = video * torch.tensor([2.0], dtype=torch.bfloat16)[0] * 13.0, torch.arange(block.audio_tokens)
    expected: list[bool] = []
    v = a = 0
    while v < len(video) and a < len(audio):
        expected.append(bool(video[v] <= audio[a]))
        v, a = v + expected[-1], a + (not expected[-1])
    expected += [True] * (len(video) - v) + [False] * (len(audio) - a)
    assert interleave(block, 13, None, bfloat16=True).tolist() == expected


def test_sound_tokens_equal_transformers() -> None:
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths

    frames = torch.arange(1, 30_001)
    assert [audio_tokens(n) for n in frames.tolist()] == _get_feat_extract_output_lengths(frames).tolist()
