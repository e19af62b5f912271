"""Risk: what is trained on is not what transformers' processor makes of the row; answers that depend on a neighbor."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SAMPLES

from omniprep.compiler.encode.single_row import encode_prompt, encode_row
from omniprep.compiler.options import family_of
from omniprep.config import BuildConfig
from omniprep.data.loss import predicted
from omniprep.media.audio import decode_audio
from omniprep.media.source import Source
from omniprep.train.attention_choice import use_attention
from omniprep.train.config import InferConfig
from omniprep.train.infer import answer, left_padded
from omniprep.train.qwen2_5_omni import load_model

ROWS = {
    "text": {
        "messages": [{"role": "user", "content": "What is 6 times 7?"}, {"role": "assistant", "content": "It is 42."}]
    },
    "image": {
        "messages": [
            {"role": "user", "content": "<image>Read the chart. <image>And this?"},
            {"role": "assistant", "content": "Tuesday, and a square."},
        ],
        "images": ["media/0.png", "media/1.png"],
    },
    "audio": {
        "messages": [
            {"role": "user", "content": "<audio>What was said?"},
            {"role": "assistant", "content": "Platform four."},
        ],
        "audios": ["media/0.wav"],
    },
    "video": {
        "messages": [
            {"role": "user", "content": "<video>What happens?"},
            {"role": "assistant", "content": "A ball rolls."},
        ],
        "videos": ["media/0.mp4"],
    },
}
ROWS["video with sound"] = ROWS["video"]


@pytest.fixture(scope="module")
def checkpoint(model_dir):
    return str(model_dir)


@pytest.fixture(scope="module")
def ctx(checkpoint):
    return family_of(BuildConfig(model=checkpoint, bin_length=8192))


@pytest.fixture(scope="module")
def model(checkpoint):
    model = load_model(checkpoint, torch.float32, "sdpa").eval()
    with torch.no_grad():  # random weights so small that every answer would be the same
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(5)
    return model


def media(column: str, count: int) -> list[str]:
    """Files of data_samples of one kind."""
    endings = {"images": (".png", ".jpg", ".jpeg"), "audios": (".wav", ".flac", ".mp3", ".ogg"), "videos": (".mp4",)}
    found = sorted(p for p in (SAMPLES / "media").rglob("*") if p.suffix in endings[column] and "broken" not in p.name)
    chosen = [p for p in found if column != "videos" or "spoken" in p.name]  # a video with sound
    return [str(p) for p in chosen[:count]]


def row_of(kind: str) -> dict:
    row = json.loads(json.dumps(ROWS[kind]))
    for column in ("images", "audios", "videos"):
        if column in row:
            row[column] = media(column, len(row[column]))
    return row


def processed(row: dict, checkpoint: str) -> tuple[dict, torch.Tensor]:
    """Arguments of the thinker's own forward pass for a row, by its processor, and the labels of the reply."""
    from qwen_omni_utils import process_mm_info
    from transformers import Qwen2_5OmniProcessor

    question, reply = (m["content"] for m in row["messages"])
    for tag, kind, mark in (("image", "vision", "IMAGE"), ("audio", "audio", "AUDIO"), ("video", "vision", "VIDEO")):
        question = question.replace(f"<{tag}>", f"<|{kind}_bos|><|{mark}|><|{kind}_eos|>")
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    prompt = f"{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    items = [{"type": c[:-1], c[:-1]: path} for c in ("images", "audios", "videos") for path in row.get(c, [])]
    audio, images, videos = process_mm_info([{"role": "user", "content": items}], use_audio_in_video=False)
    processor = Qwen2_5OmniProcessor.from_pretrained(checkpoint)
    given = {"audio": audio, "images": images, "videos": videos, "do_resize": False}
    given |= {"return_tensors": "pt", "padding": True}
    batch = processor(text=prompt + reply + "<|im_end|>", **given)
    start = processor(text=prompt, **given)["input_ids"].shape[1]
    if "input_features" in batch:  # shards hold spectrograms in bfloat16, as the reference feeds them
        batch["input_features"] = batch["input_features"].bfloat16().float()
    labels = batch["input_ids"].clone()
    labels[:, :start] = -100
    return batch, labels


def with_sound(batch: dict, ids: torch.Tensor, row: dict, checkpoint: str) -> dict:
    """The arguments of a video with its sound: features of transformers' own, ids interleaved by us.

    The processor (5.23) would read the sound itself, by a library that need not be there; the ids are compared with
    ms-swift's elsewhere (test_parity.py).
    """
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)
    waves = [decode_audio(Source(path=path), 16_000, of_video=True) for path in row["videos"]]
    found = extractor(
        waves, sampling_rate=16_000, return_attention_mask=True, padding="max_length", return_tensors="pt"
    )
    features = {"input_features": found["input_features"].bfloat16().float()}
    features |= {"feature_attention_mask": found["attention_mask"], "attention_mask": torch.ones_like(ids)}
    return {**batch, **features, "input_ids": ids}


@pytest.mark.parametrize("kind", ROWS)
def test_the_loss_of_a_row_is_transformers_own(checkpoint, model, kind):
    """Qwen2_5OmniProcessor on the rendered chat, and the thinker's own forward and loss."""
    row, sound = row_of(kind), kind == "video with sound"
    config = BuildConfig(model=checkpoint, bin_length=8192, use_audio_in_video=sound)
    ours = encode_row(row, family_of(config), config, str(SAMPLES))
    batch, labels = processed(row, checkpoint)
    if sound:
        batch, labels = with_sound(batch, ours["input_ids"], row, checkpoint), ours["labels"]
    assert ("input_features" in ours) == (kind in ("audio", "video with sound"))
    model.config.get_text_config()._attn_implementation = "sdpa"
    with torch.no_grad():
        theirs = model.thinker(**batch, labels=labels, use_cache=False, use_audio_in_video=sound).loss
        use_attention(model, "sdpa")
        positions, targets, _ = predicted(ours["labels"][0])
        kwargs = {k: v for k, v in ours.items() if k != "labels"}
        out = model(**kwargs, logits_to_keep=positions, targets=targets)
    assert torch.equal(ours["input_ids"], batch["input_ids"]) and torch.equal(ours["labels"], labels)
    torch.testing.assert_close(out.losses.mean(), theirs, rtol=1e-5, atol=1e-5)


def test_an_answer_does_not_depend_on_its_neighbors_and_is_what_the_forward_pass_predicts(checkpoint, ctx, model):
    build = BuildConfig(model=checkpoint, bin_length=8192)
    rows = [
        encode_prompt(row_of(kind), ctx, build, str(SAMPLES)) for kind in ("text", "audio", "image", "text", "audio")
    ]
    config = InferConfig(max_new_tokens=4)
    model.config.get_text_config()._attn_implementation = "sdpa"
    together = answer(model, rows, ctx, config, torch.float32)
    assert len(set(together)) > 1
    for row, expected in zip(rows, together, strict=True):
        assert answer(model, [row], ctx, config, torch.float32) == [expected]
    use_attention(model, "sdpa")
    first = [int(model(**{k: v for k, v in row.items() if k != "labels"}).logits[0, -1].argmax()) for row in rows[:3]]
    model.config.get_text_config()._attn_implementation = "sdpa"
    batch = left_padded(rows[:3], 151643)
    new = model.generate(**batch, do_sample=False, max_new_tokens=1, pad_token_id=151643)[:, -1].tolist()
    assert new == first


@pytest.mark.slow
def test_overfitted_rows_are_repeated(model_dir, omniprep, tmp_path):
    """Eight rows of data_samples, learned by heart: infer gives their answers again."""
    names = {"text.jsonl": 4, "images.jsonl": 2, "audio.jsonl": 2}
    rows = []
    for name, count in names.items():
        rows += [json.loads(line) for line in (SAMPLES / name).read_text().splitlines()[:count]]
    for row in rows:
        for column in ("images", "audios"):
            if column in row:
                row[column] = [str(SAMPLES / path) for path in row[column]]
    chats = tmp_path / "eight.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    built, run, out = tmp_path / "built", tmp_path / "run", tmp_path / "answers.jsonl"
    media_root = ("--media-root", SAMPLES)
    result = omniprep(
        "build",
        chats,
        "--model",
        model_dir,
        "--bin-length",
        2048,
        "--workers",
        0,
        "--out",
        built,
        "--max-pixels",
        12544,
        *media_root,
    )
    assert result.code == 0, result.err
    options = (
        "--max-steps",
        60,
        "--learning-rate",
        "1e-2",
        "--schedule",
        "constant",
        "--num-workers",
        0,
        "--weight-decay",
        0,
    )
    towers = (
        "--no-freeze-vit",
        "--no-freeze-aligner",
        "--no-gradient-checkpointing",
        "--report-to",
        "none",
        "--device",
        "cpu",
    )
    result = omniprep("train", built, "--model", model_dir, "--out", run, *options, *towers)
    assert result.code == 0, result.err
    result = omniprep("infer", chats, "--model", run, "--out", out, "--max-new-tokens", 60, *media_root)
    assert result.code == 0, result.err
    answers = [json.loads(line) for line in Path(out).read_text().splitlines()]
    wrong = [a for a in answers if a.get("response") != a["label"]]
    assert len(answers) == 8 and not wrong, wrong
