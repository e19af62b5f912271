"""Small random checkpoints of the Qwen families of pictures, or of sound, alone; the omni ones are in small_omni.py.

Configurations are in the form in which the Hub has them, which transformers 4.57 and 5 both read.
"""

from pathlib import Path
from typing import Any

from omniprep.testing.qwen_vocabulary import PLAIN_TOKENS, SPECIAL_TOKENS, AddedTokens
from omniprep.testing.small_base import (
    AUDIO,
    ENDS,
    HIDDEN,
    IDS,
    IMAGE_SETTINGS,
    INTERLEAVED,
    SECTIONS,
    THINK_TOKENS,
    VISION3,
    VISION_NAMES,
    VISION_TOKENS,
    audio_settings,
    chat_template,
    text_config,
    write_checkpoint,
    write_json,
)

MROPE = {"type": "mrope", "mrope_section": SECTIONS}
VISION: dict[str, Any] = {
    "depth": 2,
    "num_heads": 4,
    "in_channels": 3,
    "in_chans": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
}


def init_qwen2_vl(path: Path, seed: int) -> None:
    """A small Qwen2-VL."""
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        **IDS,
        "tie_word_embeddings": False,
        "text_config": text_config("qwen2_vl_text", **ENDS, rope_scaling=MROPE),
        "vision_config": {
            **VISION,
            "model_type": "qwen2_vl",
            "embed_dim": HIDDEN,
            "hidden_size": HIDDEN,
            "mlp_ratio": 2,
        },
        "torch_dtype": "bfloat16",
    }
    _write_vision(path, seed, config, "Qwen2VLProcessor")


def init_qwen2_5_vl(path: Path, seed: int) -> None:
    """A small Qwen2.5-VL."""
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **IDS,
        "tie_word_embeddings": False,
        "text_config": text_config("qwen2_5_vl_text", **ENDS, rope_scaling=MROPE),
        "vision_config": {
            **VISION,
            "model_type": "qwen2_5_vl",
            "hidden_size": HIDDEN,
            "out_hidden_size": HIDDEN,
            "intermediate_size": 96,
            "fullatt_block_indexes": [1],
            "window_size": 112,
            "tokens_per_second": 2,
        },
        "torch_dtype": "bfloat16",
    }
    _write_vision(path, seed, config, "Qwen2_5_VLProcessor")


def _write_vision(path: Path, seed: int, config: dict[str, Any], processor: str) -> None:
    settings = {**IMAGE_SETTINGS, "processor_class": processor}
    tokens = AddedTokens(special=VISION_TOKENS, names=VISION_NAMES, processor=processor)
    write_checkpoint(path, seed, config, settings, tokens, chat_template())


def init_qwen3_vl(path: Path, seed: int) -> None:
    """A small Qwen3-VL."""
    rope = {"rope_type": "default", "mrope_section": INTERLEAVED, "mrope_interleaved": True}
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        **IDS,
        "tie_word_embeddings": False,
        "text_config": text_config("qwen3_vl_text", **ENDS, rope_scaling=rope, head_dim=16),
        "vision_config": {**VISION3, "model_type": "qwen3_vl"},
        "torch_dtype": "bfloat16",
    }
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16, "processor_class": "Qwen3VLProcessor"}
    images = {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    settings = {"merge_size": 2, "temporal_patch_size": 2, **half, **images}
    tokens = AddedTokens(
        special=VISION_TOKENS, plain=PLAIN_TOKENS + THINK_TOKENS, names=VISION_NAMES, processor="Qwen3VLProcessor"
    )
    write_checkpoint(path, seed, config, settings, tokens, chat_template(default_system=False))
    video = {"size": {"longest_edge": 25165824, "shortest_edge": 4096}, "video_processor_type": "Qwen3VLVideoProcessor"}
    write_json(path / "video_preprocessor_config.json", {"merge_size": 2, "temporal_patch_size": 2, **half, **video})


def init_qwen2_audio(path: Path, seed: int) -> None:
    """A small Qwen2-Audio."""
    config = {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "model_type": "qwen2_audio",
        "audio_token_index": 151646,
        "ignore_index": -100,
        "tie_word_embeddings": False,
        "text_config": text_config("qwen2", **ENDS),
        "audio_config": {**AUDIO, "model_type": "qwen2_audio_encoder"},
        "torch_dtype": "bfloat16",
    }
    audio = {**audio_settings(30), "processor_class": "Qwen2AudioProcessor"}
    names = {"audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
    tokens = AddedTokens(special=SPECIAL_TOKENS[:6], plain=(), names=names, processor="Qwen2AudioProcessor")
    template = chat_template(audio_tag="Audio: <|audio_bos|><|AUDIO|><|audio_eos|>\n")
    write_checkpoint(path, seed, config, audio, tokens, template)
