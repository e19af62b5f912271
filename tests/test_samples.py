"""Every row of data_samples, in every set of options: packed or rejected with a code, and what a header promised is
kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omniprep.compiler.encode.single_row import encode_row
from omniprep.compiler.options import family_of
from omniprep.config import BuildConfig
from omniprep.errors import Reject
from omniprep.families.qwen.audio import audio_tokens

SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"
OPTION_SETS = {
    "default": {},
    "small": {"max_pixels": 100352, "video_max_pixels": 100352, "fps": 1.0, "fps_max_frames": 8},
    "sound": {"use_audio_in_video": True, "silent_video": "skip-audio"},
    "actual": {"use_audio_in_video": True, "silent_video": "skip-audio", "video_timing": "actual", "fps": 4.0},
    "weights": {"loss_scale": "last_round+hermes", "bbox_format": "new", "norm_bbox": "norm1000"},
    "departures": {"exif": "apply", "alpha": "white", "long_audio": "truncate", "special_tokens_in_text": "reject"},
    "left": {"truncation": "left", "max_length": 700},
    "right": {"truncation": "right", "max_length": 700},
    "text": {"use_chat_template": False},
}
BAD = {"broken.jsonl"}


@pytest.mark.parametrize("name", OPTION_SETS)
def test_samples_in_an_option_set(name: str, model_dir: Path) -> None:
    config = BuildConfig(model=str(model_dir), bin_length=8192, **OPTION_SETS[name])
    ctx = family_of(config)
    packed = 0
    for path in sorted(SAMPLES.glob("*.json*")):
        if path.name in BAD:
            continue
        text = path.read_text()
        rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
        for line, raw in enumerate(rows, 1):
            try:
                row = encode_row(raw, ctx, config, str(SAMPLES))
            except Reject as reject:
                assert name in ("left", "right", "text", "departures"), f"{path.name}:{line}: {reject}"
                continue
            packed += 1
            ids = row["input_ids"][0]
            assert len(ids) <= config.row_limit and row["position_ids"].shape == (4, 1, len(ids))
            for token, grid in ((151655, "image_grid_thw"), (151656, "video_grid_thw")):
                merged = int(row[grid].prod(-1).sum()) // 4 if grid in row else 0
                assert int((ids == token).sum()) == merged, f"{path.name}:{line}"
            frames = row["feature_attention_mask"].sum(-1).tolist() if "feature_attention_mask" in row else []
            assert int((ids == 151646).sum()) == sum(audio_tokens(n) for n in frames)
            labels = row["labels"][0]
            assert torch.equal(labels[labels != -100], ids[labels != -100])
    assert packed > 20


def test_surplus_tags_stay_text_or_reject_the_row(model_dir: Path) -> None:
    row = {"messages": [{"role": "user", "content": "<image>a<image>"}, {"role": "assistant", "content": "b"}]}
    image = next((SAMPLES / "media").glob("*.jpg"))
    row["images"] = [str(image)]  # type: ignore[list-item]
    config = BuildConfig(model=str(model_dir), bin_length=8192)
    kept = encode_row(row, family_of(config), config, str(SAMPLES))
    assert len(kept["image_grid_thw"]) == 1
    with pytest.raises(Reject, match="placeholder_mismatch: 2 <image> tags, but 1 image"):
        encode_row(row, family_of(config), replace(config, surplus_tags="reject"), str(SAMPLES))
