"""Qwen2.5-Omni (thinker): images, audio, video, and the sound of videos, exactly as ms-swift 3.9.3 encodes them.

Sources: ms-swift template/qwen.py Qwen2_5OmniTemplate; qwen_omni_utils 0.0.8; transformers Qwen2VLImageProcessor,
WhisperFeatureExtractor, modeling_qwen2_5_omni.
"""

import numpy as np
from numpy.typing import NDArray

from omniprep.families.kinds import Departure, Expansion, Item, ModelArch, Sample
from omniprep.families.qwen.audio import QwenAudio, audio_fields
from omniprep.families.qwen.media import QwenVision, vision_fields, vision_options
from omniprep.families.qwen.omni_layout import Block, interleave, positions
from omniprep.families.registry import REGISTRY
from omniprep.template.meta import TemplateMeta


@REGISTRY.register_family(
    "qwen2_5_omni",
    hf_architectures=[
        "Qwen2_5OmniModel",
        "Qwen2_5OmniForConditionalGeneration",
        "Qwen2_5OmniThinkerForConditionalGeneration",
    ],
    model_types=["qwen2_5_omni", "qwen2_5_omni_thinker"],
    checkpoints=["Qwen/Qwen2.5-Omni-3B", "Qwen/Qwen2.5-Omni-7B"],
    requires=["transformers>=4.57"],
)
class Qwen25Omni(QwenVision, QwenAudio):
    """Qwen2.5-Omni."""

    reference_seconds: float = 1.0
    """Seconds of a pair of frames as the processor has them, whatever was sampled: 2 over its default fps."""
    ids_per_second: int = 25
    chunked: bool = True
    """Frames and sound alternate in chunks rather than token by token."""
    refuses_thin = False
    limits = {"image": None, "audio": None, "video": None}
    placeholders = {"image": "<|IMAGE|>", "audio": "<|AUDIO|>", "video": "<|VIDEO|>"}
    tags = {
        "image": "<|vision_bos|><|IMAGE|><|vision_eos|>",
        "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
        "video": "<|vision_bos|><|VIDEO|><|vision_eos|>",
        "video_audio": "<|vision_bos|><|audio_bos|><|VIDEO|><|audio_eos|><|vision_eos|>",
    }
    media_tokens = ("<|vision_bos|>", "<|vision_eos|>", "<|audio_bos|>", "<|audio_eos|>")
    most_tokens = {"audio": 7500}
    fields = {**vision_fields(14), **audio_fields()}
    options = {**vision_options(28), "long_audio": "reject"}
    chat_template = TemplateMeta(default_system="You are a helpful assistant.")
    model_arch = ModelArch(
        language_model=("thinker.model", "thinker.lm_head"),
        vision_tower=("thinker.audio_tower", "thinker.visual"),
        aligner=("thinker.audio_tower.proj", "thinker.visual.merger"),
        generator=("talker", "token2wav"),
    )
    load_model = "omniprep.train.qwen2_5_omni:load_model"
    init_model = "omniprep.testing.small_omni:init_qwen2_5_omni"
    departures = tuple(
        Departure(
            what=name,
            mask="feature_attention_mask",
            reason="frames behind a clip's own are masked, and not stored; the processor pads to its longest clip",
        )
        for name in ("input_features", "feature_attention_mask")
    )

    def expand(self, sample: Sample) -> list[Expansion]:
        """Each placeholder becomes its item's tokens; a video with sound becomes frames and sound, interleaved."""
        ids = {modality: self.placeholder_id(modality) for modality in ("image", "audio", "video")}
        per_second, chunk = self._timing()
        expansions = []
        for modality in ids:
            for number, item in enumerate(sample.items[modality]):
                if modality == "audio" and item.meta.in_video:
                    continue
                if item.audio is not None:
                    bfloat16 = self.opt.video_timing == "reference"
                    is_video = interleave(self._block(sample, item), per_second, chunk, bfloat16=bfloat16)
                    new = np.where(is_video, ids["video"], ids["audio"]).astype(np.int32)
                else:
                    new = np.full(item.tokens, ids[modality], np.int32)
                expansions.append(Expansion(modality, number, [ids[modality]], new))
        return expansions

    def positions(self, sample: Sample) -> NDArray[np.int32] | None:
        """M-rope ids (3, L); None (the plain range) for rows without pictures, audio or not."""
        if not sample.items["image"] and not sample.items["video"]:
            return None
        runs = self.media_blocks(sample)
        blocks = [self._block(sample, item) for _, item in runs]
        return positions(len(sample.ids), [start for start, _ in runs], blocks, *self._timing())

    def _block(self, sample: Sample, item: Item) -> Block:
        if item.modality == "audio":
            return Block("audio", audio_tokens=item.tokens)
        grid = self.token_grid(item.meta)
        if item.modality == "image":
            return Block("image", grid)
        if self.opt.video_timing == "reference":
            seconds = self.reference_seconds
        else:
            seconds = 2.0 / self.video_plan(item.meta).sample_fps
        if item.audio is None:
            return Block("video", grid, seconds)
        return Block("video_audio", grid, seconds, sample.items["audio"][item.audio].tokens)

    def _timing(self) -> tuple[int, int | None]:
        """Position ids a second, and a chunk of interleaved sound (None: no chunks)."""
        thinker = self.config.get("thinker_config", self.config)  # config.json may be that of the thinker alone
        per_second = int(thinker.get("position_id_per_seconds", self.ids_per_second))
        return per_second, int(per_second * thinker.get("seconds_per_chunk", 2)) if self.chunked else None
