"""Small random checkpoints of Qwen2.5-Omni and Qwen3-Omni: the thinker alone, since talker and vocoder never train."""

from pathlib import Path
from typing import Any

from omniprep.testing import small_base as base
from omniprep.testing.qwen_vocabulary import PLAIN_TOKENS, AddedTokens

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
    "text_config": base.text_config(
        "qwen2_5_omni_text", rope_scaling={"mrope_section": base.SECTIONS, "rope_type": "default", "type": "default"}
    ),
    "vision_config": {**base.VISION2_5, "model_type": "qwen2_5_omni_vision_encoder", "tokens_per_second": 25},
    "audio_config": {
        **base.AUDIO,
        "model_type": "qwen2_5_omni_audio_encoder",
        "output_dim": base.HIDDEN,
        "n_window": 100,
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
        "embedding_size": base.HIDDEN,
        "vocab_size": 8448,
        "rope_theta": 1000000.0,
        "rope_scaling": {"mrope_section": base.SECTIONS, "rope_type": "default", "type": "default"},
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
}

SPEECH_TOKENS = (
    *("<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>"),
    "<|audio_pad|>",
)
THINKER3: dict[str, Any] = {
    "model_type": "qwen3_omni_moe_thinker",
    **base.IDS,
    "audio_token_id": 151675,
    "audio_start_token_id": 151669,
    "audio_end_token_id": 151670,
    "user_token_id": 872,
    "pad_token_id": 151643,
    "bos_token_id": 151644,
    "eos_token_id": 151645,
    "position_id_per_seconds": 13,
    "seconds_per_chunk": 2,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "text_config": base.text_config(
        "qwen3_omni_moe_text",
        rope_scaling={
            "mrope_section": base.INTERLEAVED,
            "rope_type": "default",
            "interleaved": True,
            "mrope_interleaved": True,
        },
        head_dim=16,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    ),
    "vision_config": {**base.VISION3, "model_type": "qwen3_omni_moe_vision_encoder"},
    "audio_config": {
        **base.AUDIO,
        "model_type": "qwen3_omni_moe_audio_encoder",
        "output_dim": base.HIDDEN,
        "downsample_hidden_size": 16,
        "n_window": 50,
        "n_window_infer": 800,
        "conv_chunksize": 500,
    },
}


def init_qwen2_5_omni(path: Path, seed: int) -> None:
    """Write the small Qwen2.5-Omni checkpoint into the folder `path` (50 MB, 10 s)."""
    import torch

    settings = {**base.audio_settings(300), **base.IMAGE_SETTINGS, "processor_class": "Qwen2_5OmniProcessor"}
    base.write_checkpoint(path, seed, CONFIG, settings, AddedTokens(), CHAT_TEMPLATE)
    # transformers loads the speakers' embeddings next to the weights; without a talker there are none.
    torch.save({}, path / "spk_dict.pt")


def init_qwen3_omni(path: Path, seed: int) -> None:
    """Write the small Qwen3-Omni checkpoint (four experts a layer) into the folder `path`."""
    config = {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "model_type": "qwen3_omni_moe",
        "enable_audio_output": False,
        "im_start_token_id": 151644,
        "im_end_token_id": 151645,
        "system_token_id": 8948,
        "user_token_id": 872,
        "assistant_token_id": 77091,
        "tts_pad_token_id": 151671,
        "tts_bos_token_id": 151672,
        "tts_eos_token_id": 151673,
        "thinker_config": THINKER3,
        "torch_dtype": "bfloat16",
    }
    names = {"audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"}
    tokens = AddedTokens(
        special=base.VISION_TOKENS,
        plain=PLAIN_TOKENS + base.THINK_TOKENS,
        last=SPEECH_TOKENS,
        names={**base.VISION_NAMES, **names},
        processor="Qwen3OmniMoeProcessor",
    )
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16}
    settings = {**base.audio_settings(300), **base.IMAGE_SETTINGS, **half, "processor_class": "Qwen3OmniMoeProcessor"}
    template = base.chat_template(default_system=False, audio_tag="<|audio_start|><|audio_pad|><|audio_end|>")
    base.write_checkpoint(path, seed, config, settings, tokens, template)
