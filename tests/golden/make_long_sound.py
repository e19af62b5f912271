"""What ms-swift 3.9.3 makes of videos with sound that are long enough for bfloat16 to round: tests/golden/long_sound.json.

Run where ms-swift 3.9.3 (transformers 4.57, qwen_omni_utils 0.0.8) and an `ffmpeg` program are installed:

    python tests/golden/make_long_sound.py qwen2_5_omni CHECKPOINT      # from omniprep init-model --family qwen2_5_omni
    python tests/golden/make_long_sound.py qwen3_omni CHECKPOINT

The videos are not kept: `write_video` makes them, for this script and for the test alike, with codecs that lose nothing
(FFV1, PCM), so that every version of FFmpeg gives the same frames and samples.
"""

import copy
import hashlib
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
FRAMES_A_SECOND = 2
SIDE = 56
RATE = 16_000
# Seconds of picture and of sound. At 25 position ids a second bfloat16 begins to round whole steps at 256 ids (10 s);
# 27 s is the first whole number of seconds whose chunks differ from an exact comparison.
VIDEOS = {"27": (27, 27.0), "30": (30, 30.0), "52": (52, 53.5), "118": (118, 116.25)}
OPTIONS = {"video_min_pixels": 4 * 28 * 28, "video_max_pixels": 4 * 28 * 28, "use_audio_in_video": True}


def name_of(video: str) -> str:
    return f"sound{video}s.mkv"


def row_of(*videos: str) -> dict:
    question = "first <video>, what is said?" + "".join(f" and <video>{video}" for video in videos[1:])
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "words."}]
    return {"messages": messages, "videos": [name_of(video) for video in videos]}


ROWS = {**{name: row_of(name) for name in VIDEOS}, "27 and 30": row_of("27", "30")}


def write_video(path: Path, picture_seconds: int, sound_seconds: float) -> None:
    """Moving bars and a rising tone."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=FRAMES_A_SECOND)
        video.width = video.height = SIDE
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=RATE)
        sound.layout = "mono"
        for n in range(picture_seconds * FRAMES_A_SECOND):
            luma = (np.arange(SIDE)[None, :] * 3 + np.arange(SIDE)[:, None] + n * 5) % 220 + 16
            chroma = np.full((SIDE // 2, SIDE), 96 + n % 64)
            frame = av.VideoFrame.from_ndarray(np.concatenate([luma, chroma]).astype(np.uint8), format="yuv420p")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        count = round(sound_seconds * RATE)
        times = np.arange(count) / RATE
        wave = np.round(8000 * np.sin(2 * np.pi * (200 + 5 * times) * times)).astype(np.int16)
        for start in range(0, count, RATE):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + RATE], format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))


def write_videos(folder: Path) -> None:
    for name, seconds in VIDEOS.items():
        write_video(folder / name_of(name), *seconds)


def digest(values: object, dtype: type) -> str:
    return hashlib.sha256(np.ascontiguousarray(np.asarray(values, dtype)).tobytes()).hexdigest()[:24]


def facts_of(row: dict, pack_numbers: object) -> dict:
    """Small facts of an encoded row; `position_ids` are (4, 1, L)."""
    ids, positions = np.asarray(row["input_ids"]).reshape(-1), np.asarray(row["position_ids"])[:, 0].astype(np.int64)
    frames = np.asarray(row["feature_attention_mask"]).sum(-1)
    return {
        "length": len(ids),
        "input_ids": pack_numbers(ids.tolist()),
        "labels": digest(np.asarray(row["labels"]).reshape(-1), np.int64),
        "position_ids": digest(positions, np.int64),
        "last_positions": positions[:, -1].tolist(),
        "video_grid_thw": np.asarray(row["video_grid_thw"]).tolist(),
        "pixel_values_videos": digest(np.asarray(row["pixel_values_videos"]), np.float32),
        "audio_frames": frames.tolist(),
    }


def load_codec() -> object:
    spec = importlib.util.spec_from_file_location("golden_codec", HERE / "codec.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(family: str, checkpoint: str) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ |= {key.upper(): str(int(value)) for key, value in OPTIONS.items()}
    checkpoint = os.path.abspath(checkpoint)
    import swift.llm.template.template.qwen as qwen
    from swift.llm import get_model_tokenizer, get_template

    floats: dict = {}
    cast = qwen.to_float_dtype

    def spy(data: dict, dtype: object) -> dict:
        floats.update({key: value for key, value in data.items() if key.startswith("pixel_values")})
        return cast(data, dtype)

    qwen.to_float_dtype = spy
    model, processor = get_model_tokenizer(checkpoint, model_type=family, load_model=True, device_map="cpu")
    template = get_template(model.model_meta.template, processor, max_length=65536, truncation_strategy="raise")
    template.model = model
    template.set_mode("train")
    template.packing = template.padding_free = True
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        write_videos(Path(folder))
        os.chdir(folder)
        for name, row in ROWS.items():
            encoded = template.encode(copy.deepcopy(row), return_length=True)
            positions = template.packing_row([dict(encoded)])["position_ids"]
            labels = [-100 if x is None else x for x in encoded["labels"]]
            made[name] = facts_of(
                {**encoded, **floats, "labels": labels, "position_ids": positions}, load_codec().pack_numbers
            )
        os.chdir(HERE)
    path = HERE / "long_sound.json"
    truth = json.loads(path.read_text()) if path.exists() else {}
    truth[family] = made
    path.write_text(json.dumps(truth, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
