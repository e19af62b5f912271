"""Sound of the Qwen families: Whisper's spectrogram of a clip, and one token for 40 ms.

Sources: ms-swift 3.9.3 template/qwen.py (Qwen2_5OmniTemplate, _get_feat_extract_output_lengths); transformers
Qwen2AudioProcessor, WhisperFeatureExtractor.
"""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.families.kinds import Array, Decoded, Field, MediaMeta
from omniprep.families.mel import audio_frames, log_mel
from omniprep.families.qwen.family import QwenFamily


def audio_tokens(frames: int) -> int:
    """Tokens of `frames` audio frames: one for four."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def audio_fields(stored_frames: str = "audio_frames", params: Any = None) -> dict[str, Field]:
    """The forward arguments of sound; `stored_frames` is the field that counts a clip's stored frames."""
    return {
        "audio_frames": Field("audio", "item", dtype="int32", shape=(), load="none"),
        "input_features": Field(
            "audio",
            "flat",
            sizes=stored_frames,
            dtype="bfloat16",
            shape=(128,),
            load="mel",
            params=params or {"mask": "feature_attention_mask", "pad_to": None},
        ),
    }


class QwenAudio(QwenFamily):
    """What the Qwen families with sound inherit."""

    default_samples = 4_800_000
    """Longest clip, 300 s at 16 kHz, where preprocessor_config.json does not say."""

    @property
    def most_samples(self) -> int:
        """Samples of the longest clip that the model takes."""
        return int(self.audio_preprocessor.get("n_samples", self.default_samples))

    def clipped(self, samples: int) -> int:
        """Samples that the model takes of a clip, or the reject audio_too_long."""
        most = self.most_samples
        if samples > most and self.opt.long_audio == "reject":
            raise Reject(
                RejectCode.AUDIO_TOO_LONG,
                f"{samples / 16000:.1f} s of audio, the model takes {most / 16000:.0f} s; cut it, or use --long-audio "
                "truncate",
            )
        return min(samples, most)

    def valid_frames(self, meta: MediaMeta) -> int:
        """Audio frames that the tower sees of a clip."""
        return audio_frames(self.clipped(meta.samples))

    def count_tokens(self, modality: str, meta: MediaMeta) -> int:
        """Tokens of a clip: one for 40 ms."""
        if modality != "audio":
            return super().count_tokens(modality, meta)
        tokens = audio_tokens(self.valid_frames(meta))
        if tokens < 1:
            raise Reject(RejectCode.AUDIO_TOO_SHORT, f"{meta.samples} samples at 16 kHz; at least 321 make a token")
        return tokens

    def cost(self, modality: str, meta: MediaMeta) -> int | None:
        """Audio frames of a clip."""
        return self.valid_frames(meta) if modality == "audio" else super().cost(modality, meta)

    def map_items(self, modality: str, items: list[Decoded]) -> dict[str, Array]:
        """Clips → audio_frames (n,), input_features bfloat16 bits (128, frames of all)."""
        if modality != "audio":
            return super().map_items(modality, items)
        features = [self.spectrogram(cast(NDArray[np.float32], item.waveform), item.meta) for item in items]
        return {
            "audio_frames": np.array([feature.shape[1] for feature in features], np.int32),
            "input_features": features[0] if len(features) == 1 else np.concatenate(features, axis=1),
        }

    def spectrogram(self, waveform: NDArray[np.float32], meta: MediaMeta) -> NDArray[np.uint16]:
        """Log-mel spectrogram of a clip, bfloat16 bits (128, frames)."""
        return log_mel(waveform[: self.clipped(len(waveform))], self.audio_preprocessor)
