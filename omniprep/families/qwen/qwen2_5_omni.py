"""Qwen2.5-Omni (thinker): images, audio, video, and the sound of videos, exactly as ms-swift 3.9.3 encodes them.

Sources: ms-swift template/qwen.py Qwen2_5OmniTemplate; qwen_omni_utils 0.0.8; transformers Qwen2VLImageProcessor,
WhisperFeatureExtractor, modeling_qwen2_5_omni. Pixels leave here as uint8 patches: (uint8 - mean*255) / (std*255) in
float32 on the device is bit for bit the processor's pixel_values. Spectrograms are those of the clip padded to 300 s,
without computing them.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.families.mel import audio_frames, log_mel
from omniprep.families.qwen.media import (
    CLIP_MEAN as MEAN,
)
from omniprep.families.qwen.media import (
    CLIP_STD as STD,
)
from omniprep.families.qwen.media import (
    MERGE,
    ROW_OPTIONS,
    QwenVision,
    grid_of,
    map_image,
    reading_order,
    video_plan,
    vision_fields,
    vision_options,
)
from omniprep.families.qwen.media import (
    count_vision as count_image,
)
from omniprep.families.qwen.omni_layout import Block, interleave, positions
from omniprep.families.registry import (
    REGISTRY,
    Decoded,
    Expansion,
    Field,
    Item,
    MediaMeta,
    ModelArch,
    Sample,
    TemplateMeta,
)

if TYPE_CHECKING:
    from omniprep.families.context import FamilyContext


def audio_tokens(frames: int) -> int:
    """Tokens of `frames` mel frames (ms-swift: _get_feat_extract_output_lengths)."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def clipped(ctx: "FamilyContext", samples: int) -> int:
    """Samples that the model takes of a clip.

    Raises:
        Reject: audio_too_long.
    """
    most = int(ctx.preprocessor.get("n_samples", 4_800_000))
    if samples > most:
        if ctx.opt.long_audio == "reject":
            raise Reject(
                RejectCode.AUDIO_TOO_LONG,
                f"{samples / 16000:.1f} s of audio, the model takes {most / 16000:.0f} s; cut it, or use --long-audio "
                "truncate",
            )
        return most
    return samples


def count_audio(ctx: "FamilyContext", meta: MediaMeta) -> int:
    """Tokens of an audio: one for 40 ms."""
    tokens = audio_tokens(audio_frames(clipped(ctx, meta.samples)))
    if tokens < 1:
        raise Reject(RejectCode.AUDIO_TOO_SHORT, f"{meta.samples} samples at 16 kHz; at least 321 make a token")
    return tokens


def valid_frames(ctx: "FamilyContext", meta: MediaMeta) -> int:
    """Frames of an audio that the tower sees: those of what is left of a clip beyond 300 s."""
    return audio_frames(clipped(ctx, meta.samples))


def map_audio(ctx: "FamilyContext", items: list[Decoded]) -> dict[str, NDArray[Any]]:
    """Audio → audio_frames (n,), input_features bfloat16 bits (128, T) of one clip."""
    waves = [cast(NDArray[np.float32], item.waveform) for item in items]
    features = [log_mel(wave[: clipped(ctx, len(wave))], ctx.preprocessor) for wave in waves]
    return {
        "audio_frames": np.array([f.shape[1] for f in features], np.int32),
        "input_features": features[0] if len(features) == 1 else np.concatenate(features, axis=1),
    }


def _blocks(ctx: "FamilyContext", sample: Sample, placeholder_order: list[tuple[str, int]]) -> list[Block]:
    blocks = []
    for modality, number in placeholder_order:
        item = sample.items[modality][number]
        if modality == "audio":
            blocks.append(Block("audio", audio_tokens=item.tokens))
            continue
        t, h, w = grid_of(ctx, item.meta)
        grid = (t, h // MERGE, w // MERGE)
        if modality == "image":
            blocks.append(Block("image", grid))
            continue
        sound = sample.items["audio"][item.audio].tokens if item.audio is not None else 0
        blocks.append(Block("video" if item.audio is None else "video_audio", grid, _seconds(ctx, item), sound))
    return blocks


def _seconds(ctx: "FamilyContext", item: Item) -> float:
    if ctx.opt.video_timing == "reference":
        return float(ctx.attribute("reference_seconds"))
    return 2.0 / video_plan(ctx, item.meta).sample_fps


@lru_cache(maxsize=8)
def _ids(ctx: "FamilyContext") -> dict[str, int]:
    return {m: ctx.placeholder_id(m) for m in ("image", "audio", "video")}


def _chunk(ctx: "FamilyContext") -> tuple[int, int | None]:
    """Position ids a second, and a chunk of interleaved sound (None: no chunks)."""
    thinker = ctx.config.get("thinker_config", ctx.config)  # which may be that of the thinker alone
    per_second = int(thinker.get("position_id_per_seconds", ctx.attribute("ids_per_second")))
    return per_second, int(per_second * thinker.get("seconds_per_chunk", 2)) if ctx.attribute("chunked") else None


def expand(ctx: "FamilyContext", sample: Sample) -> list[Expansion]:
    """Each placeholder becomes its item's tokens; a video with sound becomes frames and sound, interleaved."""
    ids = _ids(ctx)
    per_second, chunk = _chunk(ctx)
    result = []
    for modality in ("image", "audio", "video"):
        for number, item in enumerate(sample.items[modality]):
            if modality == "audio" and item.meta.in_video:
                continue
            if modality == "video" and item.audio is not None:
                block = _blocks(ctx, sample, [("video", number)])[0]
                order = interleave(block, per_second, chunk, bfloat16=ctx.opt.video_timing == "reference")
                new = np.where(order, ids["video"], ids["audio"]).astype(np.int32)
            else:
                new = np.full(item.tokens, ids[modality], np.int32)
            result.append(Expansion(modality, number, [ids[modality]], new))
    return result


def rope(ctx: "FamilyContext", sample: Sample) -> NDArray[np.int32] | None:
    """M-rope ids (3, L); None (the plain range) for rows without pictures, audio or not."""
    if not sample.items["image"] and not sample.items["video"]:
        return None
    found = reading_order(ctx, sample, ctx.modalities)
    blocks = _blocks(ctx, sample, [(modality, number) for _, modality, number in found])
    per_second, chunk = _chunk(ctx)
    return positions(len(sample.ids), [start for start, _, _ in found], blocks, per_second, chunk)


@REGISTRY.register_family(
    "qwen2_5_omni",
    hf_architectures=[
        "Qwen2_5OmniModel",
        "Qwen2_5OmniForConditionalGeneration",
        "Qwen2_5OmniThinkerForConditionalGeneration",
    ],
    model_types=["qwen2_5_omni", "qwen2_5_omni_thinker"],
    checkpoints=["Qwen/Qwen2.5-Omni-3B", "Qwen/Qwen2.5-Omni-7B"],
    requires=["transformers>=4.57"],
)
@REGISTRY.register_template(TemplateMeta(default_system="You are a helpful assistant."))
@REGISTRY.register_model_arch(
    ModelArch(
        language_model=("thinker.model", "thinker.lm_head"),
        vision_tower=("thinker.audio_tower", "thinker.visual"),
        aligner=("thinker.audio_tower.proj", "thinker.visual.merger"),
        generator=("talker", "token2wav"),
    )
)
@REGISTRY.register_input_mapper("audio", map_audio)
@REGISTRY.register_max_multimodal_tokens("audio", 7500)
@REGISTRY.register_token_counter("audio", count_audio)
@REGISTRY.register_tower_work("audio", valid_frames)
@REGISTRY.register_input_processor(expand)
@REGISTRY.register_positions(rope)
class Qwen25Omni(QwenVision):
    """Qwen2.5-Omni."""

    reference_seconds: ClassVar[float] = 1.0
    """Seconds of a pair of frames as the processor has them, whatever was sampled: 2 over its default fps."""
    ids_per_second: ClassVar[int] = 25
    chunked: ClassVar[bool] = True
    """Frames and sound alternate in chunks rather than token by token."""
    refuses_thin = False
    limits = {"image": None, "audio": None, "video": None}
    placeholders = {"image": "<|IMAGE|>", "audio": "<|AUDIO|>", "video": "<|VIDEO|>"}
    tags = {
        "image": "<|vision_bos|><|IMAGE|><|vision_eos|>",
        "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
        "video": "<|vision_bos|><|VIDEO|><|vision_eos|>",
        "video_audio": "<|vision_bos|><|audio_bos|><|VIDEO|><|audio_eos|><|vision_eos|>",
    }
    media_tokens = ("<|vision_bos|>", "<|vision_eos|>", "<|audio_bos|>", "<|audio_eos|>")
    fields = {
        **vision_fields(14),
        "audio_frames": Field("audio", "item", dtype="int32", shape=(), load="none"),
        "input_features": Field(
            "audio",
            "flat",
            sizes="audio_frames",
            dtype="bfloat16",
            shape=(128,),
            load="mel",
            params={"mask": "feature_attention_mask", "pad_to": None},
        ),
    }
    options = {**vision_options(28), "long_audio": "reject"}
    row_options = frozenset(ROW_OPTIONS)
    load_model = "omniprep.train.model:load_qwen2_5_omni"
    init_model = "omniprep.testing.small_omni:init_qwen2_5_omni"


__all__ = ["MEAN", "MERGE", "STD", "Qwen25Omni", "audio_tokens", "count_image", "map_image"]
