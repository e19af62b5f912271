"""The small checkpoint must be the real one in everything but its size: ids, settings, names of the weights."""

import json

import pytest

from omniprep.errors import OmniprepError, UsageError
from omniprep.testing.init_model import init_model
from omniprep.testing.qwen_vocabulary import find_vocabulary, split_token

# From the real Qwen/Qwen2.5-Omni-7B.
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|AUDIO|><|IMAGE|><|VIDEO|>"
SYSTEM_IDS = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151646, 151655, 151656]
TOKENS = {
    "<|endoftext|>": 151643,
    "<|audio_bos|>": 151647,
    "<|audio_eos|>": 151648,
    "<|box_end|>": 151649,
    "<|vision_bos|>": 151652,
    "<|vision_eos|>": 151653,
    "<|vision_pad|>": 151654,
    "<tool_call>": 151657,
    "<|file_sep|>": 151664,
}


@pytest.fixture(scope="module")
def tokenizer(model_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir)


def test_real_ids(tokenizer):
    assert tokenizer(SYSTEM)["input_ids"] == SYSTEM_IDS
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in TOKENS} == TOKENS
    assert tokenizer.eos_token_id == 151645 and tokenizer.pad_token_id == 151643 and len(tokenizer) == 151665
    # The digits of a number are one token each, and leading spaces belong to words (the pre-tokenizer's rules).
    assert tokenizer(" 2024")["input_ids"] == [220, 17, 15, 17, 19]


@pytest.mark.parametrize("text", ["naïve café", "世界,你好", "  x\n\n\ty", "👩‍👩‍👧 flag", "a" * 300, "e\u0301"])
def test_text_survives(tokenizer, text):
    import unicodedata

    assert tokenizer.decode(tokenizer(text)["input_ids"]) == unicodedata.normalize("NFC", text)


def test_processor_has_the_real_settings(model_dir):
    from transformers import Qwen2_5OmniProcessor

    processor = Qwen2_5OmniProcessor.from_pretrained(model_dir)
    assert processor.feature_extractor.n_samples == 4_800_000 and processor.feature_extractor.hop_length == 160
    assert processor.image_processor.patch_size == 14 and processor.image_token == "<|IMAGE|>"
    settings = json.loads((model_dir / "preprocessor_config.json").read_text())
    assert (settings["min_pixels"], settings["max_pixels"], settings["padding_side"]) == (3136, 12845056, "right")
    content = [{"type": "image", "image": "x"}, {"type": "text", "text": "hi"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert text.endswith("<|im_start|>user\n<|vision_bos|><|IMAGE|><|vision_eos|>hi<|im_end|>\n<|im_start|>assistant\n")


def test_weights_have_the_real_names(model_dir):
    from safetensors import safe_open

    with safe_open(model_dir / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        assert weights.get_tensor("thinker.lm_head.weight").shape == (152064, 64)
    for name in (
        "thinker.model.embed_tokens.weight",
        "thinker.model.layers.0.self_attn.q_proj.weight",
        "thinker.visual.patch_embed.proj.weight",
        "thinker.visual.merger.mlp.0.weight",
        "thinker.audio_tower.conv1.weight",
        "thinker.audio_tower.proj.weight",
    ):
        assert name in names
    assert {name.split(".")[0] for name in names} == {"thinker"}
    assert sum(path.stat().st_size for path in model_dir.iterdir()) < 52_000_000


def test_all_weights_load(model_dir):
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    model, info = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(model_dir, output_loading_info=True)
    assert not any(info.values()) and sum(p.numel() for p in model.parameters()) < 21_000_000


def test_config_ids_are_the_real_ones(model_dir):
    thinker = json.loads((model_dir / "config.json").read_text())["thinker_config"]
    ids = {
        "audio_token_index": 151646,
        "image_token_index": 151655,
        "video_token_index": 151656,
        "audio_start_token_id": 151647,
        "audio_end_token_id": 151648,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "user_token_id": 872,
        "position_id_per_seconds": 25,
        "seconds_per_chunk": 2,
    }
    assert {name: thinker[name] for name in ids} == ids


@pytest.mark.slow
def test_same_seed_same_bytes(model_dir, tmp_path):
    import torch

    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = init_model(tmp_path / "again")
    assert torch.equal(before, torch.get_rng_state()), "the caller's random numbers must not move"
    for name in ("model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (model_dir / name).read_bytes(), name


def test_refuses_a_folder_with_a_checkpoint(model_dir, omniprep):
    with pytest.raises(OmniprepError, match="holds a checkpoint"):
        init_model(model_dir)
    assert omniprep("init-model", model_dir).code == 1


def test_unknown_family(tmp_path):
    with pytest.raises(UsageError, match="qwen2_5_omni"):
        init_model(tmp_path, "gpt2")


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ("nowhere_at_all:make", "nowhere_at_all"),
        (":make", "module:function"),
        ("json:no_such_name", "no_such_name"),
        ("json", "module:function"),
        (3, "no function"),
    ],
)
def test_a_function_that_a_family_names_and_lacks_is_one_line(tmp_path, omniprep, hook, words):
    plugin = tmp_path / "family.py"
    plugin.write_text(
        "from omniprep.registry import REGISTRY, SupportsMultiModal\n"
        "@REGISTRY.register_family('hooked', model_types=['hooked'])\n"
        f"class Hooked(SupportsMultiModal):\n    init_model = {hook!r}\n"
    )
    result = omniprep("init-model", tmp_path / "model", "--family", "hooked", "--plugin", plugin)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "family 'hooked': init_model" in result.err and words in result.err
    assert not (tmp_path / "model").exists()


def test_missing_dashscope_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OmniprepError, match=r"pip install 'omniprep\[demo\]'"):
        find_vocabulary()


def test_merges_follow_ranks():
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5}
    assert split_token(ranks, b"ab", 3) == (b"a", b"b")
    assert split_token(ranks, b"abc", 5) == (b"ab", b"c")
    assert split_token({b"a": 0, b"b": 1, b"c": 2, b"abc": 3}, b"abc", 3) is None


@pytest.mark.parametrize(
    ("kind", "module"), [("qwen2_5_omni_thinker", "qwen2_5_omni"), ("qwen3_omni_moe_thinker", "qwen3_omni")]
)
def test_the_thinker_alone_is_refused_for_training(tmp_path, kind, module):
    import importlib

    import torch

    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    load_model = importlib.import_module(f"omniprep.train.{module}").load_model
    with pytest.raises(OmniprepError, match="holds the thinker alone; give the whole model"):
        load_model(str(tmp_path), torch.float32, "sdpa")
