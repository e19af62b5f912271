"""What benchmarks/gpu.py and adapters.py measure on: models of real shapes, random weights, bins from made-up media.

Nothing is fetched. The weights are drawn on the device; pictures are noise whose strength falls with frequency as in
photographs, so that lossless codecs shrink them as they shrink photographs; sounds are chords in noise.
"""

import json
import os
import shutil
import subprocess
import sys
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

PICTURES = ((640, 480), (1024, 768), (1280, 960), (1600, 1200), (1280, 960), (1024, 768))
"""Pixels. On average 5,500 patches, or 1,370 tokens: a bin of 16,384 tokens holds 11 rows and 57,000 patches."""
ANSWER = "There is a lot to be said about it: it begins quietly, has many colors, and somebody smiles in the end. "

TEXT_3B = {
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
    "vocab_size": 151936,
}
TEXT_7B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
}
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
AUDIO = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
SHAPES: dict[str, dict[str, Any] | None] = {"3b": TEXT_3B, "7b": TEXT_7B, "small": None}
"""Of the language model (configs of Qwen2.5-Omni-3B and 7B); small: as the given checkpoint has it."""


def write_config(source: Path, folder: Path, shape: str) -> Path:
    """A checkpoint without weights: tokenizer and processor of a small one, the config in another shape.

    Args:
        source: A Qwen2.5-Omni checkpoint, such as `omniprep init-model` writes; its weights are not needed.
        folder: Where to.
        shape: A name in `SHAPES`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy(file, folder / file.name)
    config = json.loads((source / "config.json").read_text())
    text = SHAPES[shape]
    if text is not None:
        thinker = config["thinker_config"]
        thinker["text_config"].update(text)
        thinker["text_config"]["rope_scaling"]["mrope_section"] = [16, 24, 24]
        thinker["vision_config"].update(VISION, out_hidden_size=text["hidden_size"])
        thinker["audio_config"].update(AUDIO, output_dim=text["hidden_size"])
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


@contextmanager
def random_weights(device: Any) -> Iterator[None]:
    """Let transformers' loading draw weights on the device instead of reading them (0.4 s for 4.7 billion).

    What the trainer does before and after loading is its own.
    """
    import torch
    from transformers import PreTrainedModel

    def draw(cls: Any, path: str, *, config: Any, dtype: Any, attn_implementation: Any, **unused: Any) -> Any:
        torch.manual_seed(0)  # the same ones each time
        with torch.device(device):
            model = cls._from_config(config, dtype=dtype, attn_implementation=attn_implementation)
        model.name_or_path = str(path)
        return model.eval()

    real = PreTrainedModel.__dict__["from_pretrained"]
    PreTrainedModel.from_pretrained = classmethod(draw)  # type: ignore[assignment]
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = real


def write_rows(folder: Path, pictures: int, sounds: int, scale: float = 1.0) -> dict[str, Path]:
    """Chats of one picture, the same with a second answer, and chats of one sound, with their media beside them.

    Args:
        folder: Where to.
        pictures: Number of them.
        sounds: Number of them.
        scale: Of the sides of pictures and the seconds of sounds.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "media").mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"image": [], "audio": [], "pairs": []}
    for number in range(pictures):
        width, height = (max(int(side * scale), 28) for side in PICTURES[number % len(PICTURES)])
        name = f"media/{number}.jpg"
        Image.fromarray(picture(width, height, rng)).save(folder / name, quality=90)
        rows["image"].append(chat("image", name, 4 + number % 5))
        rows["pairs"].append(chat("image", name, 4 + number % 5) | {"rejected_response": ANSWER * (1 + number % 3)})
    for number in range(sounds):
        name = f"media/{number}.wav"
        write_sound(folder / name, max((8 + 7 * (number % 4)) * scale, 1.0), rng)
        rows["audio"].append(chat("audio", name, 1 + number % 5))
    paths = {}
    for kind, chats in rows.items():
        if chats:
            paths[kind] = folder / f"{kind}.jsonl"
            paths[kind].write_text("".join(json.dumps(row) + "\n" for row in chats))
    return paths


def chat(kind: str, name: str, sentences: int) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": f"<{kind}>What is this? Describe everything that you can see or hear in it."},
        {"role": "assistant", "content": (ANSWER * sentences).strip()},
    ]
    return {"messages": messages, f"{kind}s": [name]}


def picture(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (height, width, 3): noise of amplitude 1/f, as photographs have, in three colors that go together."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    planes = []
    for _ in range(2):
        spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**1.4
        plane = np.fft.irfft2(spectrum, s=(height, width))
        planes.append((plane - plane.mean()) / plane.std())
    light, tint = planes
    colors = np.stack([light + 0.3 * tint, light, light - 0.3 * tint], -1)
    return np.clip(128 + 50 * colors, 0, 255).astype(np.uint8)


def write_sound(path: Path, seconds: float, rng: np.random.Generator) -> None:
    """16 kHz, one channel: three tones in noise."""
    time = np.arange(int(seconds * 16000)) / 16000
    tones = sum(np.sin(2 * np.pi * pitch * time) for pitch in rng.uniform(100, 2000, 3))
    samples = 4000 * tones + 1000 * rng.standard_normal(len(time))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(np.clip(samples, -32768, 32767).astype("<i2").tobytes())


def omniprep(*arguments: str) -> None:
    """Run a command of omniprep; what it says is shown where it fails.

    Builds do not hold the family against the checkpoint's processor first: that makes a clip, and the machine may have
    no video codecs.
    """
    unchecked = (
        "import omniprep.compiler.build as run; from omniprep.cli.main import main; "
        "assert run.check_family; run.check_family = lambda *_: {'not_compared': 'a benchmark'}; main()"
    )
    done = subprocess.run([sys.executable, "-c", unchecked, *arguments], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise RuntimeError(f"omniprep {arguments[0]}: {(done.stderr or done.stdout).strip()[-600:]}")


def make_inputs(folder: Path, model: Path, bin_length: int, rows: int, scale: float) -> None:
    """Write rows.jsonl with its media, the dataset packed/, and checkpoint/, a model without weights.

    Two rows of three have a picture, the others a sound.
    """
    sounds = rows // 3
    write_config(model, folder / "checkpoint", "small")
    files = write_rows(folder, rows - sounds, sounds, scale)
    lines = [line for kind in ("image", "audio") for line in files[kind].read_text().splitlines()]
    # The packer takes rows from the whole file, the other side as they stand; both shuffle.
    system = {"role": "system", "content": "You are a helpful assistant."}
    chats = [json.loads(line) for line in lines]
    chats = [chat | {"messages": [system, *chat["messages"]]} for chat in chats]
    (folder / "rows.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    omniprep(
        "build", str(folder / "rows.jsonl"), "--model", str(folder / "checkpoint"), "--out", str(folder / "packed"),
        "--bin-length", str(bin_length), "--workers", "0", "--quiet",
    )  # fmt: skip


def build_bins(folder: Path, model: Path, bin_length: int, pictures: int, sounds: int, scale: float) -> dict[str, Path]:
    """Datasets of images in each codec, and of sounds.

    Returns:
        "delta", "raw", "webp": the same image bins; "sound"; "pairs": two answers to each image.
    """
    from concurrent.futures import ThreadPoolExecutor

    rows = write_rows(folder / "rows", pictures, sounds, scale)
    common = ("--bin-length", str(bin_length), "--quiet")

    def build(kind: str) -> Path:
        out = folder / {"image": "delta", "audio": "sound", "pairs": "pairs"}[kind]
        omniprep("build", str(rows[kind]), "--model", str(model), "--out", str(out), "--pixel-codec", "delta",
                 "--workers", "0", *common)  # fmt: skip
        return out

    def repack(codec: str) -> Path:
        out = folder / codec
        omniprep("repack", str(folder / "delta"), "--out", str(out), "--pixel-codec", codec, *common)
        return out

    with ThreadPoolExecutor() as pool:
        delta, sound, pairs = pool.map(build, ("image", "audio", "pairs"))
        raw, webp = pool.map(repack, ("raw", "webp"))
    return {"delta": delta, "raw": raw, "webp": webp, "sound": sound, "pairs": pairs}
