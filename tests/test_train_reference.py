"""Risk: what is trained on is not what transformers' processor makes of the row; answers that depend on a neighbor."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SAMPLES

from omniprep.build.options import family_of
from omniprep.build.single import encode_prompt, encode_row
from omniprep.config import BuildConfig
from omniprep.train.attention import use_row_attention
from omniprep.train.config import InferConfig
from omniprep.train.infer import answer, left_padded
from omniprep.train.loss import predicted
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
}


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


def media(kind: str, count: int) -> list[str]:
    """Files of data_samples of one kind."""
    endings = {"image": (".png", ".jpg", ".jpeg"), "audio": (".wav", ".flac", ".mp3", ".ogg")}[kind]
    found = sorted(p for p in (SAMPLES / "media").rglob("*") if p.suffix in endings and "broken" not in p.name)
    return [str(p) for p in found[:count]]


def row_of(kind: str) -> dict:
    row = json.loads(json.dumps(ROWS[kind]))
    for column, name in (("images", "image"), ("audios", "audio")):
        if column in row:
            row[column] = media(name, len(row[column]))
    return row


@pytest.mark.parametrize("kind", ["text", "image", "audio"])
def test_the_loss_of_a_row_is_transformers_own(checkpoint, ctx, model, kind):
    """Qwen2_5OmniProcessor on the rendered chat, and the thinker's own forward and loss."""
    import librosa
    from PIL import Image
    from transformers import Qwen2_5OmniProcessor

    row = row_of(kind)
    ours = encode_row(row, ctx, BuildConfig(model=checkpoint, bin_length=8192), str(SAMPLES))
    marks = {"<image>": "<|vision_bos|><|IMAGE|><|vision_eos|>", "<audio>": "<|audio_bos|><|AUDIO|><|audio_eos|>"}
    question, reply = (m["content"] for m in row["messages"])
    for tag, text in marks.items():
        question = question.replace(tag, text)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    prompt = f"{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    processor = Qwen2_5OmniProcessor.from_pretrained(checkpoint)
    given = {
        "images": [Image.open(p).convert("RGB") for p in row.get("images", [])] or None,
        "audio": [librosa.load(p, sr=16000)[0] for p in row.get("audios", [])] or None,
    }
    batch = processor(text=prompt + reply + "<|im_end|>", **given, return_tensors="pt", padding=True)
    start = processor(text=prompt, **given, return_tensors="pt", padding=True)["input_ids"].shape[1]
    if "input_features" in batch:  # shards hold spectrograms in bfloat16, as the reference feeds them
        batch["input_features"] = batch["input_features"].bfloat16().float()
    labels = batch["input_ids"].clone()
    labels[:, :start] = -100
    use_row_attention(model, False)
    with torch.no_grad():
        theirs = model.thinker(**batch, labels=labels, use_cache=False).loss
        use_row_attention(model)
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
    use_row_attention(model, False)
    together = answer(model, rows, ctx, config, torch.float32)
    assert len(set(together)) > 1
    for row, expected in zip(rows, together, strict=True):
        assert answer(model, [row], ctx, config, torch.float32) == [expected]
    use_row_attention(model)
    first = [int(model(**{k: v for k, v in row.items() if k != "labels"}).logits[0, -1].argmax()) for row in rows[:3]]
    use_row_attention(model, False)
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
