"""Qwen2-VL and Qwen2.5-VL: images and videos as ms-swift 3.9.3 encodes them.

Sources: ms-swift template/qwen.py Qwen2VLTemplate, Qwen2_5VLTemplate; qwen_vl_utils 0.0.11 (equal to qwen_omni_utils
0.0.8 in what it does to media); transformers Qwen2VLImageProcessor, get_rope_index of modeling_qwen2_vl and
modeling_qwen2_5_vl.

Two rules for positions exist. transformers 4.57, which ms-swift 3.9.3 runs on, goes on after a video at the largest
position of all three axes, and Qwen2.5-VL counts whole seconds; transformers 5 goes on at the largest of height and
width, and counts fractions of seconds. They differ for videos only. `--family-option rope=transformers5` chooses the
second.
"""

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import UsageError
from omniprep.families.kinds import Item, ModelArch, Sample
from omniprep.families.qwen.media import QwenVision, vision_options
from omniprep.families.registry import REGISTRY
from omniprep.template.meta import TemplateMeta


def vision_positions(
    length: int, starts: list[int], grids: list[tuple[int, int, int]], times: list[NDArray[np.int64]], *, spatial: bool
) -> NDArray[np.int32]:
    """M-rope ids int32 (3, L), of blocks by first token, grid (t, h, w) in tokens and temporal positions (t,).

    `spatial` goes on after a block at the largest of height and width (transformers 5) instead of all three axes.
    """
    result = np.empty((3, length), np.int64)
    cursor = base = 0
    for start, (t, h, w), time in zip(starts, grids, times, strict=True):
        result[:, cursor:start] = base + np.arange(start - cursor)
        base += start - cursor
        block = np.empty((3, t, h, w), np.int64)
        block[0], block[1], block[2] = time[:, None, None], np.arange(h)[:, None], np.arange(w)
        cursor = start + t * h * w
        result[:, start:cursor] = base + block.reshape(3, -1)
        base += max(h, w) if spatial else int(max(time[-1] + 1, h, w))
    result[:, cursor:] = base + np.arange(length - cursor)
    return result.astype(np.int32)


def video_times(steps: int, seconds: float, per_second: float, *, whole: bool) -> NDArray[np.int64]:
    """Temporal positions of the pairs of frames of Qwen2.5-VL, from 0.

    `whole` counts whole seconds, as transformers 4.57 (which casts them to int64); else float32, as transformers 5.
    """
    if whole:
        return np.arange(steps) * int(seconds) * int(per_second)
    interval = np.float32(per_second) * np.float32(seconds)
    return (np.arange(steps, dtype=np.float32) * interval).astype(np.int64)


@REGISTRY.register_family(
    "qwen2_vl",
    hf_architectures=["Qwen2VLForConditionalGeneration"],
    model_types=["qwen2_vl"],
    checkpoints=["Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2-VL-72B-Instruct"],
    requires=["transformers>=4.57"],
)
class Qwen2VL(QwenVision):
    """Qwen2-VL: one temporal position a pair of frames."""

    tokens_per_second: float | None = None
    """Temporal positions a second of video, where the checkpoint does not say; None: one a pair of frames."""
    options = {**vision_options(28), "rope": "reference"}
    chat_template = TemplateMeta(default_system="You are a helpful assistant.", norm_bbox="norm1000")
    model_arch = ModelArch(
        language_model=("model.language_model",), vision_tower=("model.visual",), aligner=("model.visual.merger",)
    )
    load_model = "omniprep.train.vision_text:load_model"
    init_model = "omniprep.testing.small_models:init_qwen2_vl"

    def positions(self, sample: Sample) -> NDArray[np.int32] | None:
        """M-rope ids (3, L); None (the plain range) for rows without pictures."""
        if self.opt.rope not in ("reference", "transformers5"):
            raise UsageError(f"--family-option rope={self.opt.rope}: it is reference or transformers5")
        runs = self.media_blocks(sample)
        if not runs:
            return None
        grids = [self.token_grid(item.meta) for _, item in runs]
        times = [self._times(item, steps) for (_, item), (steps, _, _) in zip(runs, grids, strict=True)]
        starts = [start for start, _ in runs]
        return vision_positions(len(sample.ids), starts, grids, times, spatial=self.opt.rope == "transformers5")

    def _times(self, item: Item, steps: int) -> NDArray[np.int64]:
        per_second = self.config.get("vision_config", {}).get("tokens_per_second", self.tokens_per_second)
        if per_second is None or item.modality == "image":
            return np.arange(steps)
        seconds = 2.0 / self.video_plan(item.meta).sample_fps
        return video_times(steps, seconds, per_second, whole=self.opt.rope == self.opt.video_timing == "reference")


@REGISTRY.register_family(
    "qwen2_5_vl",
    hf_architectures=["Qwen2_5_VLForConditionalGeneration"],
    model_types=["qwen2_5_vl"],
    checkpoints=["Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-72B-Instruct"],
    requires=["transformers>=4.57"],
)
class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL: temporal positions are seconds times `tokens_per_second` of the checkpoint."""

    tokens_per_second = 4.0
    chat_template = TemplateMeta(default_system="You are a helpful assistant.", norm_bbox="none")
    init_model = "omniprep.testing.small_models:init_qwen2_5_vl"
