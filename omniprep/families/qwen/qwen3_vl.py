"""Qwen3-VL: patches of 16 pixels, and a time stamp before each pair of frames, as ms-swift 3.9.3 encodes them.

Sources: ms-swift template/qwen.py Qwen3VLTemplate; qwen_vl_utils 0.0.14; transformers Qwen3VLProcessor (the text of a
video), get_rope_index of modeling_qwen3_vl (every pair of frames is an image of its own, time is text).
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from omniprep.families.kinds import Decoded, Expansion, MediaMeta, ModelArch, Sample
from omniprep.families.qwen.media import MERGE, QwenVision, vision_fields, vision_options
from omniprep.families.qwen.qwen2_vl import vision_positions
from omniprep.families.qwen.vision import FRAME_FACTOR, VideoPlan, frame_size, plan_video
from omniprep.families.registry import REGISTRY
from omniprep.media.recipe import PixelRecipe
from omniprep.media.resample import resize
from omniprep.template.meta import TemplateMeta

# Tokens of "<12345.6 seconds>" and the two that frame the pictures: digits are one token each.
MOST_STAMP = 16


@REGISTRY.register_family(
    "qwen3_vl",
    hf_architectures=["Qwen3VLForConditionalGeneration"],
    model_types=["qwen3_vl"],
    checkpoints=["Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"],
    requires=["transformers>=4.57"],
)
class Qwen3VL(QwenVision):
    """Qwen3-VL (dense)."""

    patch_size = 16
    refuses_crossed = True
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    tags = {"image": "<|vision_start|><|image_pad|><|vision_end|>", "video": "<|video_pad|>"}
    fields = vision_fields(16)
    options = vision_options(32)
    chat_template = TemplateMeta(norm_bbox="norm1000")
    model_arch = ModelArch(
        language_model=("model.language_model",),
        vision_tower=("model.visual",),
        aligner=("model.visual.merger", "model.visual.deepstack_merger_list"),
    )
    load_model = "omniprep.train.vision_text:load_model"
    init_model = "omniprep.testing.small_models:init_qwen3_vl"

    def listed_size(self, meta: MediaMeta) -> tuple[int, int]:
        """(height, width) that frames given as images are resized to first.

        qwen_vl_utils hands the side of a token on as that of a patch, so it is a multiple of 64 pixels. Its limits
        of images count tokens (IMAGE_MIN_TOKEN_NUM, IMAGE_MAX_TOKEN_NUM), so they become four times as many pixels.
        """
        limits, area = self.pixel_limits, MERGE * MERGE
        limits = replace(limits, min_pixels=limits.min_pixels * area, max_pixels=limits.max_pixels * area)
        first = plan_video(meta, limits, self.token_side * MERGE)
        return first.height, first.width

    def video_plan(self, meta: MediaMeta) -> VideoPlan:
        """Frames and size of a video."""
        if not meta.sizes:
            return super().video_plan(meta)
        count = len(meta.sizes) + len(meta.sizes) % FRAME_FACTOR
        height, width = frame_size(*self.listed_size(meta), count, self.pixel_limits, self.token_side, meta.options)
        indices = tuple(min(n, len(meta.sizes) - 1) for n in range(count))
        return VideoPlan(indices, height, width, 2.0)

    def pixel_recipe(self, modality: str, meta: MediaMeta) -> PixelRecipe | None:
        """As the base class; frames given as images are resized twice."""
        recipe = super().pixel_recipe(modality, meta)
        if recipe is None or not meta.sizes:
            return recipe
        height, width = self.listed_size(meta)
        return replace(recipe, listed=(width, height))

    def stamps(self, meta: MediaMeta) -> list[list[int]]:
        """Ids of the text before each pair of frames: the middle of their times.

        Source: transformers Qwen3VLProcessor._calculate_timestamps.
        """
        chosen = self.video_plan(meta).indices
        indices, fps = (range(len(chosen)), 2.0) if meta.sizes else (chosen, meta.fps)
        times = [index / fps for index in indices]
        texts = [f"<{(first + second) / 2:.1f} seconds>" for first, second in zip(times[::2], times[1::2], strict=True)]
        return self.encoder.encode(texts)

    def count_tokens(self, modality: str, meta: MediaMeta) -> int:
        """Tokens of an image or a video; of a video, time stamps and the tokens around its pictures too."""
        tokens = super().count_tokens(modality, meta)
        if modality != "video":
            return tokens
        stamps = self.stamps(meta)
        return tokens + sum(map(len, stamps)) + 2 * len(stamps)

    def max_tokens(self, modality: str) -> int:
        """An upper bound of the tokens of an image or a video."""
        most = super().max_tokens(modality)
        limits = self.pixel_limits
        steps = max(limits.fps_max_frames, limits.fps_min_frames, 2) // 2 + 1
        return most if modality == "image" else most + steps * MOST_STAMP

    def listed_frames(self, item: Decoded, plan: VideoPlan) -> NDArray[np.uint8]:
        """As the base class; resized twice, first by Pillow as images (`listed_size`)."""
        height, width = self.listed_size(item.meta)
        pictures = [np.asarray(image.resize((width, height)), np.uint8) for image in item.images]
        return resize(np.stack([pictures[n] for n in plan.indices]), (plan.width, plan.height))

    def expand(self, sample: Sample) -> list[Expansion]:
        """Images become copies of their placeholder; of a video each pair of frames, its time stamp before it."""
        image, video = self.placeholder_id("image"), self.placeholder_id("video")
        start, end = self.token_id("<|vision_start|>"), self.token_id("<|vision_end|>")
        expansions = [
            Expansion("image", number, [image], np.full(item.tokens, image, np.int32))
            for number, item in enumerate(sample.items["image"])
        ]
        for number, item in enumerate(sample.items["video"]):
            _, rows, columns = self.token_grid(item.meta)
            pictures = [start, *[video] * (rows * columns), end]
            ids = np.array([token for stamp in self.stamps(item.meta) for token in (*stamp, *pictures)], np.int32)
            expansions.append(Expansion("video", number, [video], ids, is_embed=ids == video))
        return expansions

    def positions(self, sample: Sample) -> NDArray[np.int32] | None:
        """M-rope ids (3, L); None (the plain range) for rows without pictures."""
        runs = self.media_runs(sample)
        if not runs:
            return None
        # Each pair of frames is a picture of its own.
        grids = {
            modality: iter(
                (1, rows, columns)
                for steps, rows, columns in (self.token_grid(item.meta) for item in sample.items[modality])
                for _ in range(steps)
            )
            for modality in self.modalities
        }
        blocks = [next(grids[modality]) for _, modality in runs]
        starts, times = [start for start, _ in runs], [np.zeros(1, np.int64)] * len(runs)
        return vision_positions(len(sample.ids), starts, blocks, times, spatial=False)
