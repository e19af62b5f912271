"""What ms-swift 3.9.3 makes of some rows, for the families other than Qwen2.5-Omni: tests/golden/families.json.

Run where ms-swift 3.9.3 (transformers 4.57) is installed, with qwen_vl_utils 0.0.11 (0.0.14 for qwen3_vl) on the path:

    python tests/golden/make_families.py FAMILY CHECKPOINT      # from omniprep init-model --family FAMILY

Sound of videos needs an `ffmpeg` on the PATH (see make_golden.py; the videos here have PCM and MP3, which all of its
versions decode alike).

ms-swift 3.9.3 cannot encode videos for Qwen2-VL (template/qwen.py replace_tag: `tokens` is unbound), nor does it
expand the audio tokens of Qwen2-Audio (the model did); those rows are compared with the Hugging Face processors alone.
"""

import copy
import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent


def chat(question: str, answer: str = "ok.", **media: object) -> dict:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **media}


TEXT = [chat("hello?", "hi there")]
IMAGES = [
    chat("<image>what is it?", images=["medium.jpg"]),
    chat("a <image> and <image> b", images=["rgb.png", "s27x400.png"]),
    chat("<image>one", images=["s1x50.png"]),
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "<image>one"},
            {"role": "assistant", "content": "A"},
            {"role": "user", "content": "<image>two"},
            {"role": "assistant", "content": "B"},
        ],
        "images": ["gray.jpg", "palette_transparent.png"],
    },
    chat(
        "<image>find <ref-object>",
        "<bbox>",
        images=["medium.jpg"],
        objects={"ref": ["the cat"], "bbox": [[10, 20, 110, 120]]},
    ),
]
VIDEOS = [
    chat("<video>what happens?", videos=["frames7.mp4"]),
    chat("<video> then <image> and <video>", videos=["fast60.mp4", "h264_25.mp4"], images=["gray.jpg"]),
    chat("<video>", videos=["h264_23976.mp4"]),
    chat("<video>frames", videos=[["frame0.jpg", "frame1.jpg", "frame2.jpg", "frame3.jpg", "frame4.jpg"]]),
]
SOUNDS = [
    chat("<audio>what?", audios=["mono16k.wav"]),
    chat("<audio> and <audio> and <audio>", audios=["ms100.wav", "stereo44k.wav", "ms21.wav"]),
    chat("<audio>", audios=["s30.flac"]),
    chat("<image>a<audio>b<video>c", images=["rgb.png"], audios=["ms100.wav"], videos=["frames5.mp4"]),
]
THOUGHTS = {
    "messages": [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA "},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\nB"},
    ]
}
SOUNDING = {"use_audio_in_video": True}
SEEN_IN_THOUGHT = {
    "messages": [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>\n<image>hm\n</think>\n\nA"},
        *THOUGHTS["messages"][2:],
    ],
    "images": ["rgb.png"],
}
OMNI = [
    (SEEN_IN_THOUGHT, {}),
    # The reference drops the thought, and keeps the features of its image.
    (SEEN_IN_THOUGHT, {"loss_scale": "last_round", "rejects": "placeholder_mismatch"}),
    (THOUGHTS, {}),
    (THOUGHTS, {"loss_scale": "last_round"}),
    (THOUGHTS, {"loss_scale": "ignore_empty_think"}),
    (chat("<video>what?", videos=["pcm.mov"]), SOUNDING),
    (chat("<video>what?", videos=["pcm.mov"]), {}),
    (chat("<audio>a<video>b", videos=["pcm.mov"], audios=["ms100.wav"]), SOUNDING),
    (chat("<video>b<audio>a<video>c<image>d", videos=["pcm.mov", "sound_mp3.avi"], audios=["ms100.wav"], images=["gray.jpg"]), SOUNDING),
    (chat("<image>x", images=["gray.jpg"]), SOUNDING),
]  # fmt: skip
# Rows cut to their own length less `cut` tokens: text alone, or (then omniprep rejects the row) into the media.
PICTURE_CUTS = [
    (chat("word " * 40 + "<image>what?", "yes " * 20, images=["rgb.png"]), {"truncation": "left", "cut": 30}),
    (chat("<image>what?" + "word " * 40, "yes " * 20, images=["rgb.png"]), {"truncation": "right", "cut": 30}),
    (chat("a<image>", "yes", images=["rgb.png"]), {"truncation": "right", "cut": 9, "rejects": "media_truncated"}),
]
VIDEO_CUTS = [
    (chat("word " * 90 + "<video>what?", "yes " * 9, videos=["frames7.mp4"]), {"truncation": "left", "cut": 80}),
    (chat("<video>what?" + "word " * 90, "yes " * 9, videos=["fast60.mp4"]), {"truncation": "right", "cut": 80}),
    (
        chat("word " * 40 + "<video>" + "word " * 40, "yes", videos=["frames7.mp4"]),
        {"truncation": "left", "cut": 60, "rejects": "media_truncated"},
    ),
    (
        chat("word " * 40 + "<video>" + "word " * 20, "yes", videos=["frames7.mp4"]),
        {"truncation": "right", "cut": 40, "rejects": "media_truncated"},
    ),
]
THIN = chat("<image>", images=["s800x4.png"])
FRAMES = ["frame0.jpg", "frame1.jpg", "frame2.jpg", "frame3.jpg", "frame4.jpg"]
LISTS = [
    (chat("<video>frames", videos=[FRAMES]), {"max_pixels": 6 * 32 * 32}),
    (chat("<video>frames", videos=[FRAMES]), {"min_pixels": 64 * 32 * 32}),
    (
        chat("<image>", images=["medium.jpg"]),
        {"min_pixels": 9 * 32 * 32, "max_pixels": 8 * 32 * 32, "code": "bad_option"},
    ),
]
SMALL = {"max_pixels": 4 * 28 * 28}
ROWS = {
    "qwen2_vl": TEXT + IMAGES + PICTURE_CUTS + [(THIN, {}), (THIN, {**SMALL, "code": "aspect_ratio"})],
    "qwen2_5_vl": TEXT + IMAGES + VIDEOS + PICTURE_CUTS + VIDEO_CUTS + [(THIN, {**SMALL, "code": "aspect_ratio"})],
    "qwen3_vl": TEXT
    + IMAGES
    + VIDEOS
    + PICTURE_CUTS
    + VIDEO_CUTS
    + LISTS
    + [(THIN, {}), (THIN, {"max_pixels": 4 * 32 * 32, "code": "aspect_ratio"})],
    "qwen2_audio": TEXT,
    "qwen3_omni": TEXT + IMAGES + VIDEOS + SOUNDS + OMNI + PICTURE_CUTS + VIDEO_CUTS + [(THIN, SMALL)],
}


PIXEL_LIMITS = {"max_pixels": "MAX_PIXELS", "min_pixels": "MIN_PIXELS"}
TOKEN_LIMITS = {"max_pixels": "IMAGE_MAX_TOKEN_NUM", "min_pixels": "IMAGE_MIN_TOKEN_NUM"}


class PixelLimits:
    """The limits that ms-swift reads from the environment when it loads a model, set for one row."""

    def __init__(self, family: str) -> None:
        if family == "qwen2_audio":
            self.module, self.names, self.unit = None, {}, 1
            return
        self.names = TOKEN_LIMITS if family == "qwen3_vl" else PIXEL_LIMITS
        self.unit = 32 * 32 if family == "qwen3_vl" else 1
        if family == "qwen3_omni":
            from qwen_omni_utils.v2_5 import vision_process
        else:
            from qwen_vl_utils import vision_process
        self.module = vision_process
        self.defaults = {name: getattr(vision_process, name) for name in self.names.values()}

    def set(self, options: dict) -> None:
        for option, name in self.names.items():
            value = options[option] // self.unit if option in options else self.defaults[name]
            setattr(self.module, name, value)


def digest(values: object, dtype: type) -> str:
    return hashlib.sha256(np.ascontiguousarray(np.asarray(values, dtype)).tobytes()).hexdigest()[:24]


def facts_of(row: dict, positions: object) -> dict:
    facts: dict = {"length": len(row["input_ids"]), "input_ids": digest(row["input_ids"], np.int64)}
    facts["labels"] = digest([-100 if x is None else x for x in row["labels"]], np.int64)
    if positions is not None:
        facts["position_ids"] = digest(positions[:, 0], np.int64)
    for name in ("image_grid_thw", "video_grid_thw"):
        if name in row:
            facts[name] = row[name].tolist()
    for name in ("pixel_values", "pixel_values_videos"):
        if name in row:
            facts[name] = digest(row[name].float(), np.float32)
    if "input_features" in row:
        masks = row["feature_attention_mask"].bool()
        facts["audio_frames"] = masks.sum(-1).tolist()
        clips = zip(row["input_features"], masks, strict=True)
        facts["input_features"] = [sample(f[:, m].to(torch.bfloat16)) for f, m in clips]
    return facts


def sample(features: torch.Tensor) -> list[float]:
    """Some values of a spectrogram: on another CPU the last bit may differ, so no hash."""
    flat = features.float().flatten()
    return flat[:: len(flat) // 24 | 1].tolist()


def keep_floats() -> dict:
    """What the omni templates' processors gave last, before it became bfloat16."""
    import swift.llm.template.template.qwen as qwen

    kept: dict = {}
    cast = qwen.to_float_dtype

    def spy(data: dict, dtype: torch.dtype) -> dict:
        kept.clear()
        kept.update({k: v for k, v in data.items() if k.startswith("pixel_values")})
        return cast(data, dtype)

    qwen.to_float_dtype = spy
    return kept


def main(family: str, checkpoint: str) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    checkpoint = os.path.abspath(checkpoint)
    os.chdir(HERE / "media")
    torch.set_num_threads(1)
    from swift.llm import get_model_tokenizer, get_template

    model, processor = get_model_tokenizer(checkpoint, model_type=family, load_model=True, device_map="cpu")
    floats = keep_floats()
    limits = PixelLimits(family)
    cases = []
    for entry in ROWS[family]:
        row, options = entry if isinstance(entry, tuple) else (entry, {})
        options = dict(options)
        expected = {key: options.pop(key) for key in ("code", "rejects") if key in options}
        limits.set(options)

        def template_of(options: dict) -> object:
            template = get_template(
                model.model_meta.template,
                processor,
                max_length=options.get("max_length", 32768),
                truncation_strategy=options.get("truncation", "raise"),
                loss_scale=options.get("loss_scale", "default"),
            )
            template.model = model
            template.set_mode("train")
            template.packing = template.padding_free = True
            template.use_audio_in_video = options.get("use_audio_in_video", False)
            return template

        if cut := options.pop("cut", 0):
            whole = template_of({}).encode(copy.deepcopy(row), return_length=True)
            options["max_length"] = whole["length"] - cut
        template = template_of(options)
        floats.clear()
        try:
            encoded = template.encode(copy.deepcopy(row), return_length=True)
        except Exception as error:
            if "code" not in expected:
                raise
            error_text = f"{type(error).__name__}: {error}"[:120]
            cases.append({"row": row, "options": options, "error": error_text, **expected})
            continue
        assert "code" not in expected, f"the reference takes {row}"
        if expected:
            cases.append({"row": row, "options": options, "facts": {"length": encoded["length"]}, **expected})
            continue
        packs = family != "qwen2_audio"  # 1-D positions, made in the forward pass
        positions = template.packing_row([dict(encoded)])["position_ids"] if packs else None
        cases.append({"row": row, "facts": facts_of({**encoded, **floats}, positions)})
        if options:
            cases[-1]["options"] = options
    path = HERE / "families.json"
    made = json.loads(path.read_text()) if path.exists() else {}
    made[family] = cases
    path.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
