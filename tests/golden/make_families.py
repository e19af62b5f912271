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
OMNI = [
    (THOUGHTS, {}),
    (THOUGHTS, {"loss_scale": "last_round"}),
    (THOUGHTS, {"loss_scale": "ignore_empty_think"}),
    (chat("<video>what?", videos=["pcm.mov"]), SOUNDING),
    (chat("<video>what?", videos=["pcm.mov"]), {}),
    (chat("<audio>a<video>b", videos=["pcm.mov"], audios=["ms100.wav"]), SOUNDING),
    (chat("<video>b<audio>a<video>c<image>d", videos=["pcm.mov", "sound_mp3.avi"], audios=["ms100.wav"], images=["gray.jpg"]), SOUNDING),
    (chat("<image>x", images=["gray.jpg"]), SOUNDING),
]  # fmt: skip
ROWS = {
    "qwen2_vl": TEXT + IMAGES,
    "qwen2_5_vl": TEXT + IMAGES + VIDEOS,
    "qwen3_vl": TEXT + IMAGES + VIDEOS,
    "qwen2_audio": TEXT,
    "qwen3_omni": TEXT + IMAGES + VIDEOS + SOUNDS + OMNI,
}


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
    cases = []
    for entry in ROWS[family]:
        row, options = entry if isinstance(entry, tuple) else (entry, {})
        loss = options.get("loss_scale", "default")
        template = get_template(
            model.model_meta.template, processor, max_length=32768, truncation_strategy="raise", loss_scale=loss
        )
        template.model = model
        template.set_mode("train")
        template.packing = template.padding_free = True
        template.use_audio_in_video = options.get("use_audio_in_video", False)
        floats.clear()
        encoded = template.encode(copy.deepcopy(row), return_length=True)
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
