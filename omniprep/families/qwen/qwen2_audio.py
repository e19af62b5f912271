"""Qwen2-Audio: numbered audio clips of up to 30 s, as ms-swift 3.9.3 encodes them.

Sources: ms-swift template/qwen.py Qwen2AudioTemplate; transformers Qwen2AudioProcessor (its expansion of audio tokens),
WhisperFeatureExtractor. The tower takes 30 s whatever the clip: the padding's spectrogram is one value, that of the
quietest sound, so a clip is stored with a few frames beyond its end, and the loader repeats the last one.
"""

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.families.mel import HOP, audio_frames, log_mel
from omniprep.families.qwen.media import dummy
from omniprep.families.registry import REGISTRY, Decoded, Field, MediaMeta, ModelArch, SupportsMultiModal, TemplateMeta

if TYPE_CHECKING:
    from omniprep.families.context import FamilyContext

# A window reaches n_fft/2 = 200 samples beyond its middle: the second frame after the clip sees silence alone.
TAIL = 3


def audio_tokens(frames: int) -> int:
    """Tokens of `frames` valid mel frames (transformers: Qwen2AudioProcessor)."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def clipped(ctx: "FamilyContext", samples: int) -> int:
    """Samples that the model takes of a clip.

    Raises:
        Reject: audio_too_long.
    """
    most = int(ctx.preprocessor.get("n_samples", 480_000))
    if samples > most and ctx.opt.long_audio == "reject":
        raise Reject(
            RejectCode.AUDIO_TOO_LONG,
            f"{samples / 16000:.1f} s of audio, the model takes {most / 16000:.0f} s; cut it, or use --long-audio "
            "truncate",
        )
    return min(samples, most)


def count_audio(ctx: "FamilyContext", meta: MediaMeta) -> int:
    """Tokens of a clip: one for 40 ms."""
    tokens = audio_tokens(audio_frames(clipped(ctx, meta.samples)))
    if tokens < 1:
        raise Reject(RejectCode.AUDIO_TOO_SHORT, f"{meta.samples} samples at 16 kHz; at least 321 make a token")
    return tokens


def valid_frames(ctx: "FamilyContext", meta: MediaMeta) -> int:
    """Frames of what is left of a clip beyond 30 s."""
    return audio_frames(clipped(ctx, meta.samples))


def map_audio(ctx: "FamilyContext", items: list[Decoded]) -> dict[str, NDArray[Any]]:
    """Clips → audio_frames (n,), stored_frames (n,), input_features bfloat16 bits (128, stored frames) of one clip."""
    most = int(ctx.preprocessor.get("n_samples", 480_000))
    frames, stored, features = [], [], []
    for item in items:
        wave = cast(NDArray[np.float32], item.waveform)
        wave = wave[: clipped(ctx, len(wave))]
        frames.append(audio_frames(len(wave)))
        stored.append(min(frames[-1] + TAIL, most // HOP))
        longer = np.zeros(stored[-1] * HOP, np.float32)
        longer[: len(wave)] = wave
        features.append(log_mel(longer, ctx.preprocessor))
    return {
        "audio_frames": np.array(frames, np.int32),
        "stored_frames": np.array(stored, np.int32),
        "input_features": features[0] if len(features) == 1 else np.concatenate(features, axis=1),
    }


def _mel(ctx: "FamilyContext") -> dict[str, Any]:
    most = int(ctx.preprocessor.get("n_samples", 480_000)) // HOP
    return {"mask": "feature_attention_mask", "pad_to": most, "pad": "edge", "valid": "audio_frames"}


@REGISTRY.register_family(
    "qwen2_audio",
    hf_architectures=["Qwen2AudioForConditionalGeneration"],
    model_types=["qwen2_audio"],
    checkpoints=["Qwen/Qwen2-Audio-7B", "Qwen/Qwen2-Audio-7B-Instruct"],
    requires=["transformers>=4.57"],
)
@REGISTRY.register_template(TemplateMeta(default_system="You are a helpful assistant.", norm_bbox="norm1000"))
@REGISTRY.register_model_arch(
    ModelArch(language_model=("language_model",), vision_tower=("audio_tower",), aligner=("multi_modal_projector",))
)
@REGISTRY.register_input_mapper("audio", map_audio)
@REGISTRY.register_max_multimodal_tokens("audio", 750)
@REGISTRY.register_token_counter("audio", count_audio)
@REGISTRY.register_tower_work("audio", valid_frames)
@REGISTRY.register_dummy_data(dummy)
class Qwen2Audio(SupportsMultiModal):
    """Qwen2-Audio."""

    limits = {"audio": None}
    placeholders = {"audio": "<|AUDIO|>"}
    tags = {"audio": "Audio {n}: <|audio_bos|><|AUDIO|><|audio_eos|>\n"}
    plain_tags = {"audio": "<|audio_bos|><|AUDIO|><|audio_eos|>\n"}
    media_tokens = ("<|audio_bos|>", "<|audio_eos|>")
    fields = {
        "audio_frames": Field("audio", "item", dtype="int32", shape=(), load="none"),
        "stored_frames": Field("audio", "item", dtype="int32", shape=(), load="none"),
        "input_features": Field(
            "audio", "flat", sizes="stored_frames", dtype="bfloat16", shape=(128,), load="mel", params=_mel
        ),
    }
    options = {"long_audio": "reject"}
    load_model = "omniprep.train.vision_text:load_model"
    init_model = "omniprep.testing.small_models:init_qwen2_audio"
