"""Serving agrees with training: the template in generation mode equals the processor that serving uses, for the same chat."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SAMPLES

from omniprep.compiler.encode.single_row import encode_prompt
from omniprep.compiler.options import family_of
from omniprep.config import BuildConfig

MEDIA = Path(__file__).parent / "golden" / "media"
IMAGE, AUDIO, VIDEO = MEDIA / "rgb.jpg", MEDIA / "stereo.ogg", MEDIA / "h264_25.mp4"
CHATS: dict[str, list[tuple[str, list[Any]]]] = {
    "text": [("user", ["What is 6 times 7?"])],
    "turns": [("user", ["Hello"]), ("assistant", ["Hi, what can I do?"]), ("user", ["Count to three."])],
    "image": [("user", [("image", IMAGE), "What is this?"])],
    "audio": [("user", ["Listen: ", ("audio", AUDIO), "What was said?"])],
    "video": [("user", [("video", VIDEO), "What happens?"])],
    "mixed": [
        ("user", [("image", IMAGE), ("audio", AUDIO), "First."]),
        ("assistant", ["Yes."]),
        ("user", [("video", VIDEO), "Then?"]),
    ],
}


def typed(parts: list[Any]) -> list[dict[str, str]]:
    """A content list as OpenAI and Qwen write it."""
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": part[0], part[0]: str(part[1])}
        for part in parts
    ]


@pytest.mark.parametrize("name", CHATS)
def test_prompts_equal_the_processor(name: str, model_dir: Path) -> None:
    from qwen_omni_utils import process_mm_info
    from transformers import Qwen2_5OmniProcessor

    chat = [{"role": role, "content": typed(parts)} for role, parts in CHATS[name]]
    config = BuildConfig(model=str(model_dir), bin_length=32768, media_root=(str(MEDIA),))
    ours = encode_prompt({"messages": chat}, family_of(config), config, str(SAMPLES))

    processor = Qwen2_5OmniProcessor.from_pretrained(model_dir)
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    audios, images, videos = process_mm_info(chat, use_audio_in_video=False)
    theirs = processor(
        text=text, audio=audios, images=images, videos=videos, return_tensors="pt", padding=True, do_resize=False
    )
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    for key in ("image_grid_thw", "video_grid_thw", "pixel_values", "pixel_values_videos"):
        assert (key in ours) == (key in theirs)
        if key in ours:
            assert torch.equal(ours[key], theirs[key]), key
    assert ("input_features" in ours) == ("input_features" in theirs)
    if "input_features" in ours:
        mask = theirs["feature_attention_mask"].bool()
        frames = int(mask.sum())
        assert int(ours["feature_attention_mask"].sum()) == frames
        assert torch.equal(ours["input_features"][0, :, :frames], theirs["input_features"][0].bfloat16()[:, mask[0]])
    assert (ours["labels"] == -100).all()
