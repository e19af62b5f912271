"""Qwen3-Omni (thinker): images, audio, video, and the sound of videos, as ms-swift 3.9.3 encodes them.

Sources: ms-swift template/qwen.py Qwen3OmniTemplate; transformers Qwen3OmniMoeProcessor, modeling_qwen3_omni_moe. What
differs from Qwen2.5-Omni, from which it inherits:

- Patches of 16 pixels. The recipe (ms-swift 3.9.3, the model card) fetches media in multiples of 28 pixels, and
  the processor resizes them again, to multiples of 32; both are done here.
- 13 audio tokens and position ids a second; frames and sound alternate token by token (omni_layout.py).
- The clips of a row are padded to the longest of them rather than to 300 s, so a clip's last frames depend on it.

Clips beyond 300 s: transformers 4.57, on which ms-swift 3.9.3 runs, cuts them without a word, transformers 5 takes them
whole. They are rejected, or cut by `--long-audio truncate`.
"""

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.families.kinds import MediaMeta, ModelArch
from omniprep.families.mel import audio_frames, log_mel
from omniprep.families.qwen.media import vision_fields
from omniprep.families.qwen.qwen2_5_omni import Qwen25Omni
from omniprep.families.registry import REGISTRY
from omniprep.template.meta import TemplateMeta

# The extractor mirrors half a window of the clip at its ends, which a shorter one does not have.
LEAST_SAMPLES = 201


def audio_tokens(frames: int) -> int:
    """Tokens of `frames` audio frames: 13 for 100 (transformers: _get_feat_extract_output_lengths)."""
    rest = (frames % 100 - 1) // 2 + 1
    return ((rest - 1) // 2 + 1 - 1) // 2 + 1 + frames // 100 * 13


@REGISTRY.register_family(
    "qwen3_omni",
    hf_architectures=["Qwen3OmniMoeForConditionalGeneration", "Qwen3OmniMoeThinkerForConditionalGeneration"],
    model_types=["qwen3_omni_moe", "qwen3_omni_moe_thinker"],
    checkpoints=[f"Qwen/Qwen3-Omni-30B-A3B-{kind}" for kind in ("Instruct", "Thinking", "Captioner")],
    requires=["transformers>=4.57"],
)
class Qwen3Omni(Qwen25Omni):
    """Qwen3-Omni."""

    patch_size = 16
    fetch_factor = 28
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    reference_seconds = 2.0
    ids_per_second = 13
    chunked = False
    pads_clips = True
    placeholders = {"image": "<|image_pad|>", "audio": "<|audio_pad|>", "video": "<|video_pad|>"}
    tags = {
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
        "audio": "<|audio_start|><|audio_pad|><|audio_end|>",
        "video": "<|vision_start|><|video_pad|><|vision_end|>",
        "video_audio": "<|vision_start|><|audio_start|><|video_pad|><|audio_end|><|vision_end|>",
    }
    media_tokens = ("<|vision_start|>", "<|vision_end|>", "<|audio_start|>", "<|audio_end|>")
    most_tokens = {"audio": 3900}
    fields = {**Qwen25Omni.fields, **vision_fields(16)}
    chat_template = TemplateMeta(norm_bbox="norm1000", keeps_thoughts=False)
    model_arch = ModelArch(
        language_model=("thinker.model", "thinker.lm_head"),
        vision_tower=("thinker.audio_tower", "thinker.visual"),
        aligner=(
            *("thinker.audio_tower.proj1", "thinker.audio_tower.proj2"),
            *("thinker.visual.merger", "thinker.visual.merger_list"),
        ),
        generator=("talker", "code2wav"),
    )
    load_model = "omniprep.train.qwen3_omni:load_model"
    init_model = "omniprep.testing.small_omni:init_qwen3_omni"

    def padded_samples(self, meta: MediaMeta) -> int:
        """Samples that a clip is padded to: those of the longest of its row."""
        return min(max(meta.samples, meta.padded_to), self.most_samples)

    def valid_frames(self, meta: MediaMeta) -> int:
        """Audio frames that the tower sees of a clip."""
        return audio_frames(self.clipped(meta.samples), self.padded_samples(meta))

    def count_tokens(self, modality: str, meta: MediaMeta) -> int:
        """Tokens of an image, a video or a clip; of a clip, 13 for a second."""
        if modality != "audio":
            return super().count_tokens(modality, meta)
        frames = self.valid_frames(meta)
        if not meta.samples or self.padded_samples(meta) < LEAST_SAMPLES:
            raise Reject(
                RejectCode.AUDIO_TOO_SHORT, f"{meta.samples} samples at 16 kHz; at least {LEAST_SAMPLES} make a token"
            )
        return audio_tokens(frames)

    def spectrogram(self, waveform: NDArray[np.float32], meta: MediaMeta) -> NDArray[np.uint16]:
        """Log-mel spectrogram of a clip, padded as its row's clips are: bfloat16 bits (128, frames)."""
        return log_mel(waveform[: self.clipped(len(waveform))], self.audio_preprocessor, self.padded_samples(meta))
