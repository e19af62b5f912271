"""Qwen2.5-Omni (thinker): images, audio, video, and the sound of videos, exactly as ms-swift 3.9.3 encodes them.

Sources: ms-swift template/qwen.py Qwen2_5OmniTemplate; qwen_omni_utils 0.0.8; transformers Qwen2VLImageProcessor,
WhisperFeatureExtractor, modeling_qwen2_5_omni. Pixels leave here as uint8 patches: (uint8 - mean*255) / (std*255) in float32
on the device is bit for bit the processor's pixel_values. Spectrograms are those of the clip padded to 300 s, without computing them.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.families.mel import audio_frames, log_mel
from omniprep.families.qwen_omni_layout import Block, interleave, positions
from omniprep.families.qwen_vision import (
    Limits,
    VideoPlan,
    image_patches,
    image_size,
    most_image_tokens,
    most_video_tokens,
    plan_video,
    resize_frames,
    video_patches,
)
from omniprep.families.registry import (
    REGISTRY,
    Decoded,
    Expansion,
    Field,
    Item,
    MediaMeta,
    ModelArch,
    Sample,
    SupportsMultiModal,
    TemplateMeta,
)

if TYPE_CHECKING:
    from omniprep.families.context import FamilyContext

PATCH, MERGE = 14, 2
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def limits_of(ctx: "FamilyContext") -> Limits:
    """The build's pixel and frame limits."""
    o = ctx.opt
    return Limits(
        o.min_pixels, o.max_pixels, o.video_min_pixels, o.video_max_pixels, o.video_total_pixels, o.fps, o.fps_min_frames, o.fps_max_frames
    )


def image_grid(ctx: "FamilyContext", meta: MediaMeta) -> tuple[int, int, int]:
    """(1, H/14, W/14) of an image."""
    height, width = image_size(meta.height, meta.width, limits_of(ctx), PATCH * MERGE, meta.options)
    return 1, height // PATCH, width // PATCH


def video_plan(ctx: "FamilyContext", meta: MediaMeta) -> VideoPlan:
    """Frames and size of a video."""
    return plan_video(meta, limits_of(ctx), PATCH * MERGE)


def video_grid(ctx: "FamilyContext", meta: MediaMeta) -> tuple[int, int, int]:
    """(T/2, H/14, W/14) of a video."""
    plan = video_plan(ctx, meta)
    return len(plan.indices) // 2, plan.height // PATCH, plan.width // PATCH


def count_image(ctx: "FamilyContext", meta: MediaMeta) -> int:
    """Tokens of an image: H·W/784 after resizing."""
    t, h, w = image_grid(ctx, meta)
    return t * h * w // MERGE**2


def count_video(ctx: "FamilyContext", meta: MediaMeta) -> int:
    """Tokens of a video (its pictures)."""
    t, h, w = video_grid(ctx, meta)
    return t * h * w // MERGE**2


def audio_tokens(frames: int) -> int:
    """Tokens of `frames` mel frames (ms-swift: _get_feat_extract_output_lengths)."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def _samples(ctx: "FamilyContext", samples: int) -> int:
    most = int(ctx.preprocessor.get("n_samples", 4_800_000))
    if samples > most:
        if ctx.opt.long_audio == "reject":
            raise Reject(
                RejectCode.AUDIO_TOO_LONG,
                f"{samples / 16000:.1f} s of audio, the model takes {most / 16000:.0f} s; cut it, or use --long-audio truncate",
            )
        return most
    return samples


def count_audio(ctx: "FamilyContext", meta: MediaMeta) -> int:
    """Tokens of an audio: one for 40 ms."""
    tokens = audio_tokens(audio_frames(_samples(ctx, meta.samples)))
    if tokens < 1:
        raise Reject(RejectCode.AUDIO_TOO_SHORT, f"{meta.samples} samples at 16 kHz; at least 321 make a token")
    return tokens


def map_image(ctx: "FamilyContext", items: list[Decoded]) -> dict[str, NDArray[Any]]:
    """Images → image_grid_thw (n, 3), pixel_values uint8 (patches, 588)."""
    grids = [image_grid(ctx, item.meta) for item in items]
    patches = [
        image_patches(np.asarray(item.image.resize((w * PATCH, h * PATCH)), np.uint8))
        for item, (_, h, w) in zip(items, grids, strict=True)
    ]
    return {"image_grid_thw": np.array(grids, np.int32), "pixel_values": np.concatenate(patches)}


def map_video(ctx: "FamilyContext", items: list[Decoded]) -> dict[str, NDArray[Any]]:
    """Videos → video_grid_thw (n, 3), pixel_values_videos uint8 (patches, 1176)."""
    grids, patches = [], []
    for item in items:
        plan = video_plan(ctx, item.meta)
        if item.frames is None:
            size = (plan.width, plan.height)
            pictures = [np.asarray(item.images[i].resize(size), np.uint8) for i in dict.fromkeys(plan.indices)]
            frames = np.stack([*pictures, *pictures[-1:] * (len(plan.indices) - len(pictures))])
        else:
            frames = resize_frames(item.frames(list(plan.indices)), plan.height, plan.width)
        grids.append((len(frames) // 2, plan.height // PATCH, plan.width // PATCH))
        patches.append(video_patches(frames))
    return {"video_grid_thw": np.array(grids, np.int32), "pixel_values_videos": np.concatenate(patches)}


def map_audio(ctx: "FamilyContext", items: list[Decoded]) -> dict[str, NDArray[Any]]:
    """Audio → audio_frames (n,), input_features bfloat16 bits (128, T) of one clip."""
    waves = [cast(NDArray[np.float32], item.waveform) for item in items]
    features = [log_mel(wave[: _samples(ctx, len(wave))], ctx.preprocessor) for wave in waves]
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
        t, h, w = image_grid(ctx, item.meta) if modality == "image" else video_grid(ctx, item.meta)
        grid = (t, h // MERGE, w // MERGE)
        if modality == "image":
            blocks.append(Block("image", grid))
            continue
        sound = sample.items["audio"][item.audio].tokens if item.audio is not None else 0
        blocks.append(Block("video" if item.audio is None else "video_audio", grid, _seconds(ctx, item), sound))
    return blocks


def _seconds(ctx: "FamilyContext", item: Item) -> float:
    if ctx.opt.video_timing == "reference":
        return 1.0
    return 2.0 / video_plan(ctx, item.meta).sample_fps


@lru_cache(maxsize=8)
def _ids(ctx: "FamilyContext") -> dict[str, int]:
    return {m: ctx.placeholder_id(m) for m in ("image", "audio", "video")}


def _chunk(ctx: "FamilyContext") -> tuple[int, int]:
    thinker = ctx.config.get("thinker_config", {})
    per_second = int(thinker.get("position_id_per_seconds", 25))
    return per_second, int(per_second * thinker.get("seconds_per_chunk", 2))


def expand(ctx: "FamilyContext", sample: Sample) -> list[Expansion]:
    """Each placeholder becomes its item's tokens; a video with sound becomes frames and sound, chunk by chunk of 2 s."""
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
    ids = _ids(ctx)
    media = np.isin(sample.ids, list(ids.values()))
    starts = np.flatnonzero(media & ~np.concatenate([[False], media[:-1]]))
    numbers = {m: iter([i for i, item in enumerate(sample.items[m]) if not item.meta.in_video]) for m in ids}
    names = {token: modality for modality, token in ids.items()}
    order = [(m, next(numbers[m])) for m in (names[int(sample.ids[s])] for s in starts)]
    per_second, chunk = _chunk(ctx)
    return positions(len(sample.ids), starts.tolist(), _blocks(ctx, sample, order), per_second, chunk)


def dummy(ctx: "FamilyContext", bin_length: int, counts: dict[str, int]) -> tuple[list[dict[str, str]], dict[str, list[Any]]]:
    """A chat with black images, one second of silence and short videos."""
    media: dict[str, list[Any]] = {
        "image": [ctx.blank_image(280, 280)] * counts.get("image", 0),
        "audio": [np.zeros(16000, np.float32)] * counts.get("audio", 0),
        "video": [[ctx.blank_image(112, 112)] * 4] * counts.get("video", 0),
    }
    tags = "".join(f"<{m}>" * len(items) for m, items in media.items())
    return [{"role": "user", "content": tags + "hi"}, {"role": "assistant", "content": "ok"}], media


_PATCHES = {"mean": MEAN, "std": STD, "patch_size": PATCH, "temporal_patch_size": 2}


@REGISTRY.register_family(
    "qwen2_5_omni",
    hf_architectures=["Qwen2_5OmniModel", "Qwen2_5OmniForConditionalGeneration", "Qwen2_5OmniThinkerForConditionalGeneration"],
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
@REGISTRY.register_image_input_mapper(map_image)
@REGISTRY.register_input_mapper("audio", map_audio)
@REGISTRY.register_input_mapper("video", map_video)
@REGISTRY.register_max_image_tokens(lambda ctx: most_image_tokens(limits_of(ctx)))
@REGISTRY.register_max_multimodal_tokens("audio", 7500)
@REGISTRY.register_max_multimodal_tokens("video", lambda ctx: most_video_tokens(limits_of(ctx)))
@REGISTRY.register_token_counter("image", count_image)
@REGISTRY.register_token_counter("audio", count_audio)
@REGISTRY.register_token_counter("video", count_video)
@REGISTRY.register_input_processor(expand)
@REGISTRY.register_positions(rope)
@REGISTRY.register_dummy_data(dummy)
class Qwen25Omni(SupportsMultiModal):
    """Qwen2.5-Omni."""

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
        "image_grid_thw": Field("image", "item", dtype="int32", shape=(3,)),
        "video_grid_thw": Field("video", "item", dtype="int32", shape=(3,)),
        "pixel_values": Field(
            "image", "flat", sizes="prod(image_grid_thw)", dtype="uint8", shape=(588,), load="patches", params=_PATCHES
        ),
        "pixel_values_videos": Field(
            "video", "flat", sizes="prod(video_grid_thw)", dtype="uint8", shape=(1176,), load="patches", params=_PATCHES
        ),
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
    options = {
        "max_pixels": 16384 * 28 * 28,
        "min_pixels": 4 * 28 * 28,
        "video_max_pixels": 768 * 28 * 28,
        "video_min_pixels": 128 * 28 * 28,
        "video_total_pixels": 90_316_800,
        "fps": 2.0,
        "fps_min_frames": 4,
        "fps_max_frames": 768,
        "video_timing": "reference",
        "long_audio": "reject",
    }
    row_options = frozenset(
        "min_pixels max_pixels total_pixels resized_height resized_width fps nframes min_frames max_frames video_start video_end".split()
    )
    load_model = "omniprep.train.model:load_qwen2_5_omni"
    init_model = "omniprep.families.init_model:init_model"

    @staticmethod
    def resized_image(ctx: "FamilyContext", meta: MediaMeta) -> tuple[int, int]:
        """(width, height) of an image as the model sees it, for boxes in pixels."""
        _, h, w = image_grid(ctx, meta)
        return w * PATCH, h * PATCH
