"""Small random checkpoints of the Qwen families of pictures, or of sound, alone; the omni ones are in small_omni.py.

Configurations are in the form in which the Hub has them, which transformers 4.57 and 5 both read.
"""

from pathlib import Path
from typing import Any

from omniprep.testing import small_base as base
from omniprep.testing.qwen_vocabulary import PLAIN_TOKENS, SPECIAL_TOKENS, AddedTokens

MROPE = {"type": "mrope", "mrope_section": base.SECTIONS}


def init_qwen2_vl(path: Path, seed: int) -> None:
    """A small Qwen2-VL."""
    vision = {**base.VISION2, "embed_dim": base.HIDDEN, "hidden_size": base.HIDDEN, "mlp_ratio": 2}
    _write_vision(path, seed, "qwen2_vl", "Qwen2VL", vision)


def init_qwen2_5_vl(path: Path, seed: int) -> None:
    """A small Qwen2.5-VL."""
    _write_vision(path, seed, "qwen2_5_vl", "Qwen2_5_VL", {**base.VISION2_5, "tokens_per_second": 2})


def _write_vision(path: Path, seed: int, model_type: str, name: str, vision: dict[str, Any]) -> None:
    config = {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": model_type,
        **base.IDS,
        "tie_word_embeddings": False,
        "text_config": base.text_config(f"{model_type}_text", **base.ENDS, rope_scaling=MROPE),
        "vision_config": {**vision, "model_type": model_type},
        "torch_dtype": "bfloat16",
    }
    settings = {**base.IMAGE_SETTINGS, "processor_class": f"{name}Processor"}
    tokens = AddedTokens(special=base.VISION_TOKENS, names=base.VISION_NAMES, processor=f"{name}Processor")
    base.write_checkpoint(path, seed, config, settings, tokens, base.chat_template())


def init_qwen3_vl(path: Path, seed: int) -> None:
    """A small Qwen3-VL."""
    rope = {"rope_type": "default", "mrope_section": base.INTERLEAVED, "mrope_interleaved": True}
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        **base.IDS,
        "tie_word_embeddings": False,
        "text_config": base.text_config("qwen3_vl_text", **base.ENDS, rope_scaling=rope, head_dim=16),
        "vision_config": {**base.VISION3, "model_type": "qwen3_vl"},
        "torch_dtype": "bfloat16",
    }
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16, "processor_class": "Qwen3VLProcessor"}
    images = {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    settings = {"merge_size": 2, "temporal_patch_size": 2, **half, **images}
    tokens = AddedTokens(
        special=base.VISION_TOKENS,
        plain=PLAIN_TOKENS + base.THINK_TOKENS,
        names=base.VISION_NAMES,
        processor="Qwen3VLProcessor",
    )
    base.write_checkpoint(path, seed, config, settings, tokens, base.chat_template(default_system=False))
    video = {"size": {"longest_edge": 25165824, "shortest_edge": 4096}, "video_processor_type": "Qwen3VLVideoProcessor"}
    base.write_json(
        path / "video_preprocessor_config.json", {"merge_size": 2, "temporal_patch_size": 2, **half, **video}
    )


def init_qwen2_audio(path: Path, seed: int) -> None:
    """A small Qwen2-Audio."""
    config = {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "model_type": "qwen2_audio",
        "audio_token_index": 151646,
        "ignore_index": -100,
        "tie_word_embeddings": False,
        "text_config": base.text_config("qwen2", **base.ENDS),
        "audio_config": {**base.AUDIO, "model_type": "qwen2_audio_encoder"},
        "torch_dtype": "bfloat16",
    }
    audio = {**base.audio_settings(30), "processor_class": "Qwen2AudioProcessor"}
    names = {"audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
    tokens = AddedTokens(special=SPECIAL_TOKENS[:6], plain=(), names=names, processor="Qwen2AudioProcessor")
    count = "{% set audio_count.value = audio_count.value + 1 %}Audio {{ audio_count.value }}: "
    template = "{% set audio_count = namespace(value=0) %}"
    template += base.chat_template(audio_tag=f"{count}<|audio_bos|><|AUDIO|><|audio_eos|>\n")
    base.write_checkpoint(path, seed, config, audio, tokens, template)
