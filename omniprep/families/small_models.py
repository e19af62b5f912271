"""Small random checkpoints of the other Qwen families: the real vocabulary, ids, settings and names of weights; small
widths.

Configurations are in the form in which the Hub has them, which transformers 4.57 and 5 both read. Hidden size 64, two
layers a tower; 20 million weights, of which 19 million are embeddings.
"""

import copy
from pathlib import Path
from typing import Any

from omniprep.families.init_model import GENERATION, PREPROCESSOR, write_json
from omniprep.families.qwen_vocabulary import PLAIN_TOKENS, SPECIAL_TOKENS, AddedTokens, write_tokenizer

HIDDEN = 64

VISION_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
THINK_TOKENS = ("<tool_response>", "</tool_response>", "<think>", "</think>")
SPEECH_TOKENS = (
    *("<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>"),
    "<|audio_pad|>",
)
VISION_NAMES = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}

# The chat template of the Qwen2-VL checkpoints; the others differ in their tags of media alone.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' and DEFAULT %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif content['type'] == 'audio' or 'audio' in content %}AUDIO"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
# The real sections are 16, 24, 24 of a half head of 64; here of a half head of 8.
MROPE = {"type": "mrope", "mrope_section": [2, 3, 3]}
IDS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
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
IMAGE_SETTINGS = {
    key: PREPROCESSOR[key]
    for key in (
        "image_mean",
        "image_std",
        "merge_size",
        "min_pixels",
        "max_pixels",
        "patch_size",
        "temporal_patch_size",
    )
}


def _settings(processor: str, **more: Any) -> dict[str, Any]:
    return {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": processor, **IMAGE_SETTINGS, **more}


def _text(kind: str, **more: Any) -> dict[str, Any]:
    return {**copy.deepcopy(TEXT), "model_type": kind, "rope_scaling": copy.deepcopy(MROPE), **more}


def _write(
    path: Path,
    seed: int,
    config: dict[str, Any],
    preprocessor: dict[str, Any],
    tokens: AddedTokens,
    *,
    default_system: bool = True,
    audio_tag: str = "",
) -> None:
    """All files of a checkpoint."""
    import torch
    import transformers
    from transformers import AutoConfig, logging

    template = CHAT_TEMPLATE.replace("DEFAULT", str(default_system).lower()).replace("AUDIO", audio_tag)
    write_tokenizer(path, template, tokens)
    write_json(path / "config.json", config)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            loaded = AutoConfig.from_pretrained(path)
            model = getattr(transformers, config["architectures"][0])(loaded)
            model.to(torch.bfloat16).save_pretrained(path)
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    # save_pretrained wrote the installed release's form of it.
    write_json(path / "config.json", config)
    write_json(path / "preprocessor_config.json", preprocessor)
    write_json(path / "chat_template.json", {"chat_template": template})
    write_json(path / "generation_config.json", GENERATION)


def init_qwen2_vl(path: Path, seed: int) -> None:
    """A small Qwen2-VL."""
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        **IDS,
        "tie_word_embeddings": False,
        "text_config": _text("qwen2_vl_text"),
        "vision_config": {
            **VISION,
            "model_type": "qwen2_vl",
            "embed_dim": HIDDEN,
            "hidden_size": HIDDEN,
            "mlp_ratio": 2,
        },
        "torch_dtype": "bfloat16",
    }
    _write(path, seed, config, _settings("Qwen2VLProcessor"), _vision_tokens("Qwen2VLProcessor"))


def init_qwen2_5_vl(path: Path, seed: int) -> None:
    """A small Qwen2.5-VL."""
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **IDS,
        "tie_word_embeddings": False,
        "text_config": _text("qwen2_5_vl_text"),
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
    _write(path, seed, config, _settings("Qwen2_5_VLProcessor"), _vision_tokens("Qwen2_5_VLProcessor"))


def _vision_tokens(processor: str) -> AddedTokens:
    return AddedTokens(special=VISION_TOKENS, names=VISION_NAMES, processor=processor)


def init_qwen3_vl(path: Path, seed: int) -> None:
    """A small Qwen3-VL."""
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        **IDS,
        "tie_word_embeddings": False,
        "text_config": _text("qwen3_vl_text", rope_scaling=rope, head_dim=16),
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": 2,
            "num_heads": 4,
            "in_channels": 3,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "hidden_size": HIDDEN,
            "out_hidden_size": HIDDEN,
            "intermediate_size": 96,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
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
    _write(path, seed, config, settings, tokens, default_system=False)
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
        "text_config": {**copy.deepcopy(TEXT), "model_type": "qwen2"},
        "audio_config": {
            "model_type": "qwen2_audio_encoder",
            "d_model": HIDDEN,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "num_mel_bins": 128,
            "max_source_positions": 1500,
        },
        "torch_dtype": "bfloat16",
    }
    audio = {
        "chunk_length": 30,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 128,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "Qwen2AudioProcessor",
        "return_attention_mask": True,
        "sampling_rate": 16000,
    }
    names = {"audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
    tokens = AddedTokens(special=SPECIAL_TOKENS[:6], plain=(), names=names, processor="Qwen2AudioProcessor")
    _write(path, seed, config, audio, tokens, audio_tag="Audio: <|audio_bos|><|AUDIO|><|audio_eos|>\n")
