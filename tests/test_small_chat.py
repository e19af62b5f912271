"""Small random checkpoints of other families than Qwen's: real to transformers, which loads and runs them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from omniprep.errors import UsageError
from omniprep.testing.chat_recipes import RECIPES
from omniprep.testing.init_model import init_model, write_model_type
from omniprep.testing.small_tokenizer import PIPELINES

ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "Fine."}]}


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def rows(processor) -> dict[str, list]:
    """A chat of each kind that the processor takes."""
    text = {"type": "text", "text": "What is this?"}
    one = {"type": "image", "image": picture(300, 200, 0)}
    sound = {"type": "audio", "audio": np.sin(np.arange(32000) / 20).astype(np.float32)}
    chats = {"text": [{"role": "user", "content": [text]}, ANSWER]}
    if getattr(processor, "image_processor", None) is not None:
        two = {"type": "image", "image": picture(90, 130, 1)}
        chats["image"] = [{"role": "user", "content": [one, text]}, ANSWER]
        chats["later images"] = [*chats["text"], {"role": "user", "content": [one, two, text]}, ANSWER]
    if getattr(processor, "feature_extractor", None) is not None:
        chats["audio"] = [{"role": "user", "content": [sound, text]}, ANSWER]
    return chats


QUICK = {
    "qwen3_5",
    "glm4v",
    "llava_onevision",
    "internvl",
    "gemma3",
    "smolvlm",
    "audioflamingo3",
    "llava_next",
    "mistral3",
}
PLAIN = {"aya_vision", "idefics3", "lfm2_vl", "llava", "llava_next", "lighton_ocr", "mistral3"}
"""Types that need no recipe."""
REFUSES_TEXT = {"paligemma"}
"""Types whose processor takes no chat without images."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in sorted(PLAIN | set(RECIPES) - REFUSES_TEXT)
    ],
)
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_model_type(folder, 0, request.param)
    return folder


def test_transformers_loads_and_runs_it(checkpoint):
    """Weights of the real names, as many media features as placeholders, finite logits that depend on the media."""
    import transformers

    settings = json.loads((checkpoint / "config.json").read_text())
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    load = getattr(transformers, settings["architectures"][0]).from_pretrained
    model, info = load(checkpoint, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < 22_000_000  # Gemma 4: a table of places
    for kind, chat in rows(processor).items():
        kinds = {"return_mm_token_type_ids": True} if "mm_token_type_ids" in processor.model_input_names else {}
        inputs = processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=kinds
        )
        inputs = {key: value.float() if value.is_floating_point() else value for key, value in inputs.items()}
        with torch.no_grad():
            logits = model.eval()(**inputs).logits
            assert torch.isfinite(logits).all(), kind
            media = [key for key in inputs if key in ("pixel_values", "input_features")]
            assert bool(media) == (kind != "text")
            for key in media:
                other = model(**{**inputs, key: torch.randn_like(inputs[key])}).logits
                assert (logits - other)[0, -1].abs().max() > 1e-5, f"{kind}: the answer does not depend on {key}"


def test_same_seed_same_bytes(tmp_path):
    first, second, other = (
        init_model(tmp_path / name, "llava_onevision", seed=seed)
        for name, seed in (("first", 3), ("second", 3), ("other", 4))
    )
    names = sorted(path.name for path in first.iterdir())
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "processor_config.json",
        "chat_template.jinja",
    } <= set(names)
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
@pytest.mark.parametrize("text", ["Hello, who are you?\n\n", "  x\n\n\ty ", "naïve 世界 👩‍👧", "<|mark|> <|mark|>\n"])
def test_text_survives(pipeline, text):
    tokenizer = PIPELINES[pipeline](["<|mark|>"])
    encoded = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert text.count("<|mark|>") == encoded.tokens.count("<|mark|>")


def test_a_type_that_transformers_has_not(tmp_path):
    with pytest.raises(UsageError, match="no small model for family 'gema3'; did you mean 'gemma3'; there is one for"):
        init_model(tmp_path / "model", "gema3")
    assert not (tmp_path / "model").exists()
