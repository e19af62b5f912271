"""A small random checkpoint that has everything of the real one but its knowledge, so that all of omniprep runs
offline.

Vocabulary, token ids, processor settings, chat template and configuration keys are those of Qwen/Qwen2.5-Omni-7B; only
the widths and depths are small (hidden size 64, two layers a tower, 20 million parameters, of which 19 million are the
two embedding tables; 40 MB in bfloat16). The files are those a real checkpoint has, in the form of transformers 4,
which transformers 5 reads as well. The same seed and the same torch give the same weights.
"""

import copy
import importlib
import json
from pathlib import Path
from typing import Any

from omniprep.errors import OmniprepError, UsageError

HIDDEN = 64

# The checkpoint's own template (chat_template.json of Qwen/Qwen2.5-Omni-7B).
CHAT_TEMPLATE = (
    "{% set audio_count = namespace(value=0) %}{% set image_count = namespace(value=0) %}"
    "{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif content['type'] == 'audio' or 'audio' in content or 'audio_url' in content %}"
    "{% set audio_count.value = audio_count.value + 1 %}"
    "{% if add_audio_id %}Audio {{ audio_count.value }}: {% endif %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

PREPROCESSOR: dict[str, Any] = {
    "chunk_length": 300,
    "dither": 0.0,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "hop_length": 160,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "n_fft": 400,
    "n_samples": 4800000,
    "nb_max_frames": 30000,
    "padding_side": "right",
    "padding_value": 0.0,
    "patch_size": 14,
    "processor_class": "Qwen2_5OmniProcessor",
    "return_attention_mask": True,
    "sampling_rate": 16000,
    "temporal_patch_size": 2,
}

THINKER: dict[str, Any] = {
    "model_type": "qwen2_5_omni_thinker",
    "audio_token_index": 151646,
    "audio_start_token_id": 151647,
    "audio_end_token_id": 151648,
    "image_token_index": 151655,
    "video_token_index": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "pad_token_id": 151643,
    "bos_token_id": 151644,
    "eos_token_id": 151645,
    "user_token_id": 872,
    "ignore_index": -100,
    "position_id_per_seconds": 25,
    "seconds_per_chunk": 2,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "qwen2_5_omni_text",
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        # The real sections are 16, 24, 24 of a half head of 64; here of a half head of 8.
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
        "tie_word_embeddings": False,
        "use_sliding_window": False,
    },
    "vision_config": {
        "model_type": "qwen2_5_omni_vision_encoder",
        "depth": 2,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_heads": 4,
        "out_hidden_size": HIDDEN,
        "fullatt_block_indexes": [1],
        "in_channels": 3,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 25,
        "window_size": 112,
    },
    "audio_config": {
        "model_type": "qwen2_5_omni_audio_encoder",
        "d_model": HIDDEN,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "output_dim": HIDDEN,
        "num_mel_bins": 128,
        "n_window": 100,
        "max_source_positions": 1500,
    },
}

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2_5OmniForConditionalGeneration"],
    "model_type": "qwen2_5_omni",
    # The talker and the vocoder never train, so the small checkpoint has none.
    "enable_audio_output": False,
    "enable_talker": False,
    "thinker_config": THINKER,
    "talker_config": {
        "model_type": "qwen2_5_omni_talker",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "embedding_size": HIDDEN,
        "vocab_size": 8448,
        "rope_theta": 1000000.0,
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
}

GENERATION = {"pad_token_id": 151643, "bos_token_id": 151644, "eos_token_id": [151645, 151643], "do_sample": False}


def write_json(path: Path, content: object) -> None:
    """Write a file of a checkpoint."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_weights(path: Path, seed: int) -> None:
    """Random weights of `CONFIG` as model.safetensors.

    `save_pretrained` gives them the real checkpoint's names (thinker.audio_tower...), which are not those of the
    modules in transformers 5 (thinker.model.audio_tower...). Its config.json is of the installed release, so ours is
    written after.
    """
    import torch
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration, logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # transformers 5 warns that the talker's ids, which are the real ones, lie outside its vocabulary.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = Qwen2_5OmniConfig(**copy.deepcopy(CONFIG))
            Qwen2_5OmniForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(path)
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    # transformers loads the speakers' embeddings next to the weights; without a talker there are none.
    torch.save({}, path / "spk_dict.pt")


def init_qwen2_5_omni(path: Path, seed: int) -> None:
    """Write the small Qwen2.5-Omni checkpoint into the folder `path` (50 MB, 10 s)."""
    from omniprep.families.qwen_vocabulary import write_tokenizer

    write_tokenizer(path, CHAT_TEMPLATE)
    _write_weights(path, seed)
    write_json(path / "preprocessor_config.json", PREPROCESSOR)
    write_json(path / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(path / "generation_config.json", GENERATION)
    write_json(path / "config.json", CONFIG)


def init_model(path: str | Path, family: str = "qwen2_5_omni", *, seed: int = 0, plugins: tuple[str, ...] = ()) -> Path:
    """Make a small random-weight checkpoint of a family, by its `init_model` hook.

    Args:
        path: Folder to write; made where absent, and must not hold a checkpoint yet.
        family: Which family's model.
        seed: Seed of the random weights.
        plugins: Python files that register families.

    Returns:
        The folder.

    Raises:
        UsageError: A family that has no small model.
        OmniprepError: The folder holds a checkpoint, or the vocabulary is not installed.
    """
    from omniprep.families.loading import load_families
    from omniprep.families.registry import REGISTRY

    load_families(plugins)
    hooks = {
        name: hook for name, record in REGISTRY.families.items() if (hook := getattr(record.cls, "init_model", ""))
    }
    if family not in hooks:
        REGISTRY.find(family, {})
        raise UsageError(f"no small model for family {family!r}; there is one for: {', '.join(sorted(hooks))}")
    path = Path(path)
    if (path / "config.json").exists():
        raise OmniprepError(f"{path} holds a checkpoint already; choose another folder")
    path.mkdir(parents=True, exist_ok=True)
    make = hooks[family]
    if isinstance(make, str):
        module, _, name = make.partition(":")
        make = getattr(importlib.import_module(module), name)
    make(path, seed)
    return path
