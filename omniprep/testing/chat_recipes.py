"""What the classes of chat models do not hold: chat templates, tokens, and settings without usable defaults."""

from dataclasses import replace

from omniprep.testing.chat_templates import (
    CHATML,
    CHATML_ENDS,
    GEMMA3,
    GEMMA4,
    GEMMA_ENDS,
    GLM,
    GLM_ENDS,
    GLM_NAMES,
    GLM_TOKENS,
    INTERNVL,
    LLAVA_ONEVISION,
    QWEN3_5,
    QWEN_TOKENS,
    QWEN_VISION,
    SMOLVLM,
    SMOLVLM_ENDS,
)
from omniprep.testing.small_chat import Recipe

QWEN3_5_RECIPE = Recipe(
    template=QWEN3_5,
    ends=CHATML_ENDS,
    special=(*QWEN_TOKENS, "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    names={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    # A quarter of a head is rotated: 64 give the 8 frequencies that three axes need.
    config={"text_config": {"head_dim": 64}},
)
GLM_RECIPE = Recipe(template=GLM, ends=GLM_ENDS, special=GLM_TOKENS, names=GLM_NAMES)

RECIPES = {
    "qwen3_5": QWEN3_5_RECIPE,
    "qwen3_5_moe": QWEN3_5_RECIPE,
    "glm4v": GLM_RECIPE,
    "glm4v_moe": GLM_RECIPE,
    "glm46v": GLM_RECIPE,
    "glm5_next": GLM_RECIPE,
    "llava_onevision": Recipe(template=LLAVA_ONEVISION, ends=CHATML_ENDS),
    "internvl": Recipe(
        template=INTERNVL,
        ends=CHATML_ENDS,
        names={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        # As its checkpoints have it, which save it beside the processor.
        processor={"image_processor": {"crop_to_patches": True}},
    ),
    "gemma3": Recipe(
        template=GEMMA3,
        pipeline="spaces_as_letters",
        ends=GEMMA_ENDS,
        special=("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        names={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
    ),
    "smolvlm": Recipe(template=SMOLVLM, ends=SMOLVLM_ENDS, config={"vision_config": {"patch_size": 14}}),
    "audioflamingo3": Recipe(ends=CHATML_ENDS),
}
"""Model type → recipe; a type that is absent takes the plain one."""

# What the class's defaults leave out, or have in a form that no small model can have.
QWEN_VISION_RECIPE = Recipe(
    template=QWEN_VISION,
    ends=CHATML_ENDS,
    special=QWEN_TOKENS,
    names={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
)
GEMMA4_RECIPE = Recipe(
    template=GEMMA4,
    pipeline="spaces_as_letters",
    ends=GEMMA_ENDS,
    special=("<|turn>", "<turn|>"),
    names={
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
        "video_token": "<|video|>",
    },
    config={"text_config": {"global_head_dim": 16}},
)
RECIPES |= {
    "aria": Recipe(
        # Its processor asks for 980 pixels whatever its image processor says.
        config={"vision_config": {"patch_size": 70, "image_size": 980}, "projector_patch_to_query_dict": {196: 16}},
        processor={"size_conversion": {980: 16}},
    ),
    "cohere2_vision": Recipe(processor={"image_processor": {"patch_size": 4}}),
    "cohere_compass": replace(
        QWEN_VISION_RECIPE,
        template=CHATML.replace(
            "MEDIA",
            "{% if item['type'] == 'image' %}<|VISION_START|><|IMAGE_PAD|><|VISION_END|>{% endif %}"
            "{% if item['type'] == 'video' %}<|VISION_START|><|VIDEO_PAD|><|VISION_END|>{% endif %}",
        ),
        special=("<|VISION_START|>", "<|VISION_END|>", "<|IMAGE_PAD|>", "<|VIDEO_PAD|>"),
        names={},
    ),
    "cosmos3_edge": QWEN_VISION_RECIPE,
    "cosmos3_omni": replace(QWEN_VISION_RECIPE, processor_class="Qwen3VLProcessor"),
    "ernie4_5_vl_moe": Recipe(
        template=CHATML.replace(
            "MEDIA",
            "{% if item['type'] == 'image' %}Picture: <|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>{% endif %}"
            "{% if item['type'] == 'video' %}Video: <|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>{% endif %}",
        ),
        special=("<|IMAGE_START|>", "<|IMAGE_END|>", "<|VIDEO_START|>", "<|VIDEO_END|>"),
        names={"image_token": "<|IMAGE_PLACEHOLDER|>", "video_token": "<|VIDEO_PLACEHOLDER|>"},
        # Height and width are interleaved here, so they have as many frequencies; time has the rest.
        config={
            "text_config": {
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]}
            }
        },
        processor={"video_processor": {"draw_on_frames": False}},
    ),
    "fun_asr_nano": Recipe(config={"adaptor_config": {"intermediate_size": 16}}),
    "gemma4": GEMMA4_RECIPE,
    "gemma4_unified": GEMMA4_RECIPE,
    "hunyuan_vl": Recipe(
        template=CHATML.replace(
            "MEDIA", "{% if item['type'] == 'image' %}<|image_start|><|image|><|image_end|>{% endif %}"
        ),
        names={"image_token": "<|image|>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>"},
        config={"text_config": {"head_dim": 16}},
    ),
    "llama4": Recipe(
        ids={"image_token_index": "<|patch|>"},
        config={"vision_config": {"vision_output_dim": 64, "projector_input_dim": 64, "intermediate_size": 256}},
    ),
    "molmo2": Recipe(
        ids={"image_patch_id": "<im_patch>"},
        config={"vision_config": {"image_size": [112, 112]}},
        processor={"image_processor": {"size": {"height": 112, "width": 112}, "overlap_margins": [1, 1]}},
    ),
    "mllama": Recipe(
        config={
            "vision_config": {"intermediate_layers_indices": [0, 1], "vision_output_dim": 192, "num_global_layers": 1},
            "text_config": {"cross_attention_layers": [1]},
        },
    ),
    "muse_glimmer": Recipe(config={"out_hidden_size": 256}),
    "musicflamingo": Recipe(parts={"feature_extractor": "WhisperFeatureExtractor"}),
    "ovis2": Recipe(
        names={"image_token": "<IMG_ATOM>"},
        ids={"visual_indicator_token_ids": ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")},
    ),
    "qwen2_vl": QWEN_VISION_RECIPE,
    "qwen2_5_vl": QWEN_VISION_RECIPE,
    "qwen3_vl": QWEN_VISION_RECIPE,
    "qwen3_vl_moe": QWEN_VISION_RECIPE,
    "qwen4_exp": replace(
        QWEN3_5_RECIPE,
        config={
            "text_config": {
                "head_dim": 64,
                "indexer_n_heads": 4,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 64,
                "indexer_budget": 4096,
                "indexer_compress_ratio": 4,
                "hc_lowrank": 16,
            }
        },
    ),
    "unlimited_ocr": Recipe(
        config={"vision_config": {"sam_config": {"downsample_channels": [64, 64], "output_channels": 64}}}
    ),
    "paligemma": Recipe(processor={"image_processor": {"image_seq_length": 64}}),
    "paddleocr_vl": Recipe(
        template=CHATML.replace(
            "MEDIA",
            "{% if item['type'] == 'image' %}<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>{% endif %}",
        ),
        special=("<|IMAGE_START|>", "<|IMAGE_END|>"),
        names={"image_token": "<|IMAGE_PLACEHOLDER|>"},
    ),
    "step3p7": Recipe(
        config={"text_config": {"sliding_window": 64}},
        processor={"image_processor": {"size": {"height": 112, "width": 112}, "patch_size": 56, "max_image_size": 448}},
    ),
    "glm_ocr": Recipe(
        template=GLM, ends=GLM_ENDS, special=GLM_TOKENS, names=GLM_NAMES, processor_class="Glm46VProcessor"
    ),
    "glmga": Recipe(
        template=GLM, ends=GLM_ENDS, special=GLM_TOKENS, names=GLM_NAMES, processor_class="Glm46VProcessor"
    ),
}
