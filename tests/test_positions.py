"""M-rope ids and the interleave of sound and frames equal transformers' own, on random layouts."""

import functools
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerForConditionalGeneration as Thinker
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeThinkerModel as Thinker3

from omniprep.families.qwen.omni_layout import Block, chunks, interleave, positions, to_bfloat16
from omniprep.families.qwen.qwen2_vl import video_times
from omniprep.families.qwen.qwen3_omni import audio_tokens

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


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 400), max_size=60).map(sorted), st.integers(1, 60))
def test_chunks_equal_the_loop(values: list[int], size: int) -> None:
    assert chunks(np.array(values), size) == loop_chunks(len(values), lambda i, edge: values[i] >= edge, size)


MOST_STEPS = 384
# Seconds of a grid step: 1 and 2 are what the reference gives (2 over its processors' fps), the others are
# --video-timing actual for videos of 30 and 23.976 frames a second, --fps 3 and --fps 0.3, a video of 29.97 cut to fit.
STEP_SECONDS = [
    1.0,
    2.0,
    2.0 / (14 / 210 * 30),
    2.0 / (46 / 553 * 23.976023976),
    2 / 3,
    2.0 / 0.3,
    2.0 / (8 / 121 * 29.97),
]
PRECISIONS = {"reference": torch.bfloat16, "actual": torch.float32}
timings = pytest.mark.parametrize("timing", PRECISIONS)


class TorchOrder:
    """ms-swift's own expressions (template/qwen.py) on scalar tensors, each of which is computed once.

    The times of a longer video begin with those of a shorter one, so one walk serves all lengths.
    """

    def __init__(self, seconds: float, per_second: float, dtype: torch.dtype) -> None:
        self.times = torch.arange(MOST_STEPS) * torch.tensor([seconds]).to(dtype)[0] * per_second
        self.sound = torch.arange(MOST_STEPS * 30)
        assert self.times.dtype == dtype
        self.reaches = functools.cache(lambda step, edge: bool(self.times[step] >= edge))
        self.not_after = functools.cache(lambda step, token: bool(self.times[step] <= self.sound[token]))

    def chunked(self, steps: int, side: int, audio: int) -> list[bool]:
        """Qwen2.5-Omni: chunks of 50 position ids."""
        video_chunks = loop_chunks(steps * side, lambda i, edge: self.reaches(i // side, edge), 50)
        audio_chunks = loop_chunks(audio, lambda i, edge: i >= edge, 50)
        res: list[bool] = []
        for j in range(max(len(video_chunks), len(audio_chunks))):
            if j < len(video_chunks):
                res += [True] * (video_chunks[j][1] - video_chunks[j][0])
            if j < len(audio_chunks):
                res += [False] * (audio_chunks[j][1] - audio_chunks[j][0])
        return res

    def by_token(self, steps: int, side: int, audio: int) -> list[bool]:
        """Qwen3-Omni: whichever is earlier."""
        res: list[bool] = []
        v = a = 0
        while v < steps * side and a < audio:
            res.append(self.not_after(v // side, a))
            v, a = v + res[-1], a + (not res[-1])
        return res + [True] * (steps * side - v) + [False] * (audio - a)


def loop_chunks(length: int, reaches: Callable[[int, int], bool], size: int) -> list[tuple[int, int]]:
    """The loop of get_chunked_index."""
    result, start, chunk = [], 0, 1
    for i in range(length):
        if reaches(i, chunk * size):
            result.append((start, i))
            start, chunk = i, chunk + 1
    return [*result, (start, length)]


@timings
@pytest.mark.parametrize("seconds", STEP_SECONDS)
@pytest.mark.parametrize(("per_second", "chunk"), [(25, 50), (13, None)], ids=list(RULES))
def test_the_order_of_every_length_is_what_torch_computes(
    timing: str, seconds: float, per_second: int, chunk: int | None
) -> None:
    """Each length of 1 to 384 grid steps; sound as long as the frames, and shorter and longer by some seconds."""
    reference = TorchOrder(seconds, per_second if chunk else float(per_second), PRECISIONS[timing])
    expected = reference.chunked if chunk else reference.by_token
    for steps in range(1, MOST_STEPS + 1):
        sound = round(steps * seconds * per_second) + (0, -37, 60)[steps % 3]
        sound = min(max(sound, 1), len(reference.sound))
        block = Block("video_audio", (steps, 1, 2), seconds, audio_tokens=sound)
        ours = interleave(block, per_second, chunk, bfloat16=timing == "reference")
        assert ours.tolist() == expected(steps, 2, sound), f"{steps} grid steps"


def test_the_reference_rounds_the_edges_of_chunks() -> None:
    """Step 26 of a video stands at 650 ids: in bfloat16 it is 648, and so is the edge of the 14th chunk."""
    assert (torch.tensor(648.0).bfloat16() >= 650).item()
    times = np.array([625.0, 648.0, 676.0], np.float32)
    assert chunks(times, 650, bfloat16=True) == [(0, 1), (1, 3)] and chunks(times, 650) == [(0, 2), (2, 3)]


@both
@settings(max_examples=60, deadline=None)
@given(
    fps=st.sampled_from([30.0, 15.0, 7.5, 3.0, 25.0]) | st.floats(0.2, 60), steps=st.integers(1, 60), text=st.integers(0, 3000), sound=st.integers(1, 900)
)  # fmt: skip
def test_positions_of_real_timings_equal_transformers(
    family: str, fps: float, steps: int, text: int, sound: int
) -> None:
    """Fractions of seconds behind long text: Qwen3-Omni compares float32 sums, which may round to whole numbers."""
    block = Block("video_audio", (steps, 1, 2), 2.0 / fps, audio_tokens=sound)
    ids, starts, blocks = lay_out(family, [(text, block), (2, Block("image", (1, 2, 2)))], 3)
    ours = positions(len(ids), starts, blocks, *RULES[family][2:])
    assert np.array_equal(ours, reference(family, ids, blocks, use_audio=True))


def test_rounding_to_bfloat16_equals_torch() -> None:
    values = np.random.default_rng(0).normal(0, 1e3, 10_000).astype(np.float32)
    assert np.array_equal(to_bfloat16(values), torch.from_numpy(values).bfloat16().float().numpy())


@settings(max_examples=200, deadline=None)
@given(
    fps=st.sampled_from([1.0, 2.0, 0.5, 4.0, 30000 / 1001, 4 / 121 * 29.97]) | st.floats(0.02, 60),
    steps=st.integers(1, 384), per_second=st.sampled_from([2, 4, 25]),
)  # fmt: skip
def test_times_of_qwen2_5_vl_equal_transformers(fps: float, steps: int, per_second: int) -> None:
    seconds = 2.0 / fps
    # transformers 4.57 (get_rope_index): the seconds are cast to the type of the range, int64.
    cast = torch.as_tensor(seconds, dtype=torch.arange(steps).dtype)
    before = (torch.arange(steps) * cast * per_second).long()
    assert video_times(steps, seconds, per_second, whole=True).tolist() == before.tolist()
    interval = per_second * torch.tensor([seconds])[0]
    now = Qwen2_5_VLModel.get_vision_position_ids(None, 0, torch.tensor([steps, 1, 1]), time_interval=interval)
    assert video_times(steps, seconds, per_second, whole=False).tolist() == now[0].tolist()


def test_sound_tokens_equal_transformers() -> None:
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths

    frames = torch.arange(1, 30_001)
    assert [audio_tokens(n) for n in frames.tolist()] == _get_feat_extract_output_lengths(frames).tolist()
