"""What the small random checkpoints share: widths, settings, tokens, and how their files are written."""

import copy
import json
from pathlib import Path
from typing import Any

from omniprep.testing.qwen_vocabulary import AddedTokens, write_tokenizer

HIDDEN = 64

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
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}
ENDS = {"bos_token_id": 151643, "eos_token_id": 151645}
# The real sections are 16, 24, 24 (interleaved: 24, 20, 20) of a half head of 64; here of a half head of 8.
SECTIONS, INTERLEAVED = [2, 3, 3], [4, 2, 2]

GENERATION = {"pad_token_id": 151643, "bos_token_id": 151644, "eos_token_id": [151645, 151643], "do_sample": False}
IMAGE_SETTINGS: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "temporal_patch_size": 2,
}

VISION_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
THINK_TOKENS = ("<tool_response>", "</tool_response>", "<think>", "</think>")
VISION_NAMES = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}
IDS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
# The vision towers of Qwen2-VL, of Qwen2.5-VL and Qwen2.5-Omni, and of Qwen3-VL and Qwen3-Omni.
VISION2: dict[str, Any] = {
    "depth": 2,
    "num_heads": 4,
    "in_channels": 3,
    "in_chans": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
}
VISION2_5: dict[str, Any] = {
    **VISION2,
    "hidden_size": HIDDEN,
    "out_hidden_size": HIDDEN,
    "intermediate_size": 96,
    "fullatt_block_indexes": [1],
    "window_size": 112,
}
VISION3: dict[str, Any] = {
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
}


# The audio towers.
AUDIO: dict[str, Any] = {
    "d_model": HIDDEN,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
}


def audio_settings(seconds: int) -> dict[str, Any]:
    """Settings of the feature extractor for clips of at most so many seconds."""
    return {
        "chunk_length": seconds,
        "dither": 0.0,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 128,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 16000 * seconds,
        "nb_max_frames": 100 * seconds,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": 16000,
    }


def text_config(kind: str, **more: Any) -> dict[str, Any]:
    """The language model's part of a config.json."""
    config = {"model_type": kind, **TEXT, **copy.deepcopy(more)}
    return {key: value for key, value in config.items() if value is not None}


def chat_template(*, default_system: bool = True, audio_tag: str = "") -> str:
    """The chat template of a family: with a system prompt of its own or without, and its tag of audio."""
    return CHAT_TEMPLATE.replace("DEFAULT", str(default_system).lower()).replace("AUDIO", audio_tag)


def write_json(path: Path, content: object) -> None:
    """Write a file of a checkpoint."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_checkpoint(
    path: Path, seed: int, config: dict[str, Any], preprocessor: dict[str, Any], tokens: AddedTokens, template: str
) -> None:
    """All files of a checkpoint, with random weights.

    `save_pretrained` gives the weights the real checkpoint's names, which are not those of the modules in transformers
    5 (`thinker.audio_tower…` for `thinker.model.audio_tower…`). Its config.json is of the installed release's form, so
    ours is written after.
    """
    import torch
    import transformers
    from transformers import AutoConfig, logging

    write_tokenizer(path, template, tokens)
    write_json(path / "config.json", config)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # transformers 5 warns that the talker's ids, which are the real ones, lie outside its vocabulary.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = getattr(transformers, config["architectures"][0])(AutoConfig.from_pretrained(path))
            model.to(torch.bfloat16).save_pretrained(path)
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    write_json(path / "config.json", config)
    write_json(path / "preprocessor_config.json", dict(sorted(preprocessor.items())))
    write_json(path / "chat_template.json", {"chat_template": template})
    write_json(path / "generation_config.json", GENERATION)
