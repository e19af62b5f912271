"""Qwen2-Audio: numbered audio clips of up to 30 s, as ms-swift 3.9.3 encodes them.

Sources: ms-swift template/qwen.py Qwen2AudioTemplate; transformers Qwen2AudioProcessor (its expansion of audio tokens),
WhisperFeatureExtractor. The tower takes 30 s whatever the clip: the padding's spectrogram is one value, that of the
quietest sound, so a clip is stored with a few frames beyond its end, and the loader repeats the last one.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep.families.kinds import Array, Decoded, Field, MediaMeta, ModelArch
from omniprep.families.mel import HOP, log_mel
from omniprep.families.qwen.audio import QwenAudio, audio_fields
from omniprep.families.registry import REGISTRY
from omniprep.template.meta import TemplateMeta

# A window reaches n_fft/2 = 200 samples beyond its middle: the second frame after the clip sees silence alone.
TAIL = 3


def _mel_params(family: QwenAudio) -> dict[str, Any]:
    return {
        "mask": "feature_attention_mask",
        "pad_to": family.most_samples // HOP,
        "pad": "edge",
        "valid": "audio_frames",
    }


@REGISTRY.register_family(
    "qwen2_audio",
    hf_architectures=["Qwen2AudioForConditionalGeneration"],
    model_types=["qwen2_audio"],
    checkpoints=["Qwen/Qwen2-Audio-7B", "Qwen/Qwen2-Audio-7B-Instruct"],
    requires=["transformers>=4.57"],
)
class Qwen2Audio(QwenAudio):
    """Qwen2-Audio."""

    default_samples = 480_000
    limits = {"audio": None}
    placeholders = {"audio": "<|AUDIO|>"}
    tags = {"audio": "Audio {n}: <|audio_bos|><|AUDIO|><|audio_eos|>\n"}
    plain_tags = {"audio": "<|audio_bos|><|AUDIO|><|audio_eos|>\n"}
    media_tokens = ("<|audio_bos|>", "<|audio_eos|>")
    most_tokens = {"audio": 750}
    fields = {
        "audio_frames": audio_fields()["audio_frames"],
        "stored_frames": Field("audio", "item", dtype="int32", shape=(), load="none"),
        "input_features": audio_fields("stored_frames", _mel_params)["input_features"],
    }
    options = {"long_audio": "reject"}
    chat_template = TemplateMeta(default_system="You are a helpful assistant.", norm_bbox="norm1000")
    model_arch = ModelArch(
        language_model=("language_model",), vision_tower=("audio_tower",), aligner=("multi_modal_projector",)
    )
    load_model = "omniprep.train.vision_text:load_model"
    init_model = "omniprep.testing.small_models:init_qwen2_audio"

    def map_items(self, modality: str, items: list[Decoded]) -> dict[str, Array]:
        """Clips → audio_frames (n,), stored_frames (n,), input_features bfloat16 bits (128, stored frames of all)."""
        mapped = super().map_items(modality, items)
        # Of what is stored, the frames of the clip; `stored_frames` counts the tail too.
        valid = [self.valid_frames(item.meta) for item in items]
        return {
            "audio_frames": np.array(valid, np.int32),
            "stored_frames": mapped["audio_frames"],
            "input_features": mapped["input_features"],
        }

    def spectrogram(self, waveform: NDArray[np.float32], meta: MediaMeta) -> NDArray[np.uint16]:
        """Log-mel spectrogram of a clip and `TAIL` frames of silence, bfloat16 bits (128, frames)."""
        stored = min(self.valid_frames(meta) + TAIL, self.most_samples // HOP)
        longer = np.zeros(stored * HOP, np.float32)
        kept = self.clipped(len(waveform))
        longer[:kept] = waveform[:kept]
        return log_mel(longer, self.audio_preprocessor)
