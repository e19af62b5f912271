"""A tiny checkpoint, media and rows for the toy family of pipelines/toy_family.py."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

ROOT = Path(__file__).resolve().parent.parent
FAMILY = ROOT / "pipelines" / "toy_family.py"
MODEL = ROOT / "pipelines" / "toy_model.py"
SIZES = [(70, 30), (128, 96), (2000, 50), (31, 33)]


def write_tokenizer(folder: Path, extra: tuple[str, ...] = ("<|img|>",)) -> int:
    """A tokenizer of bytes and a few special tokens; returns its size."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *extra)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(letters) + len(special)


def write_checkpoint(folder: Path, *, weights: bool = False) -> Path:
    """config.json and a tokenizer; with `weights` a model of two layers too."""
    size = write_tokenizer(folder)
    if not weights:
        (folder / "config.json").write_text(json.dumps({"architectures": ["ToyVL"]}))
        return folder
    import torch

    from omniprep.families.loading import load_families
    from omniprep.registry import REGISTRY

    load_families((str(FAMILY), str(MODEL)))
    toy = __import__("sys").modules[REGISTRY.families["toy_vl"].cls.load_model.__module__]
    torch.manual_seed(0)
    config = toy.ToyConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        image_token_id=size - 1,
    )
    toy.ToyVLModel(config).save_pretrained(folder)
    text = json.loads((folder / "config.json").read_text()) | {"architectures": ["ToyVL"]}
    (folder / "config.json").write_text(json.dumps(text))
    return folder


def write_rows(folder: Path, count: int = 24) -> Path:
    """Chats with none to three images."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for n, (width, height) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / f"{n}.png")
    rows = []
    for n in range(count):
        names = [f"{(n + i) % len(SIZES)}.png" for i in range(n % 4)]
        question = "<image>" * len(names) + f"row {n}?"
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"answer {n}."}]
        rows.append({"messages": messages, **({"images": names} if names else {})})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
