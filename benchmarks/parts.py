"""Where the build's time goes: each part of encoding a row alone, on one thread, beside the library that it replaces.

Milliseconds of CPU, the lower quartile of several runs. Photographs at the sizes of web images, clips and videos of the
corpus of benchmarks/corpus.py; what the library gives is compared with ours before it is timed.

    python benchmarks/parts.py --model CHECKPOINT [--data FOLDER]
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import make
from PIL import Image
from record import load_kernels, record
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from omniprep.families.context import resolve_family
from omniprep.families.kinds import MediaMeta
from omniprep.families.mel import log_mel
from omniprep.families.qwen.vision import Limits, image_patches, image_size, plan_video, video_patches
from omniprep.media.audio import decode_audio
from omniprep.media.image import decode_image
from omniprep.media.resample import resize as resize_picture
from omniprep.media.source import Source
from omniprep.media.video import DECORD, probe_video, read_frames
from omniprep.shards.schema import Bin, arrow_schema
from omniprep.shards.writer import ShardWriter

ROUNDS = 9
SIZES = ((640, 480), (1024, 768), (1280, 960))


def milliseconds(work: Callable[[], Any]) -> float:
    work()
    times = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return round(sorted(times)[ROUNDS // 4] * 1e3, 2)


def line(rows: str, part: str, ours: Callable[[], Any], library: Callable[[], Any] | None = None) -> dict[str, Any]:
    found = {"rows": rows, "part": part, "ms": milliseconds(ours), "library_ms": ""}
    if library is not None:
        found["library_ms"] = milliseconds(library)
    return found


def image_parts(photo: Path, ctx: Any, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for width, height in SIZES:
        buffer = io.BytesIO()
        with Image.open(photo) as original:
            original.convert("RGB").resize((width, height)).save(buffer, "JPEG", quality=90)
        source, name = Source(data=buffer.getvalue()), f"image {width}x{height}"
        image = decode_image(source)
        h, w = image_size(height, width, Limits())
        pixels = resize_picture(image, (w, h))
        assert np.array_equal(pixels, np.asarray(image.resize((w, h))))
        patches = image_patches(pixels)
        rows += [
            line(name, "decode", lambda source=source: decode_image(source)),
            line(
                name,
                "resize",
                lambda image=image, w=w, h=h: resize_picture(image, (w, h)),
                lambda image=image, w=w, h=h: np.asarray(image.resize((w, h))),
            ),
            line(name, "patches", lambda pixels=pixels: image_patches(pixels)),
            line(name, "hash and write", lambda patches=patches, h=h, w=w: write(patches, h, w, ctx, folder)),
        ]
    return rows


def write(patches: np.ndarray, height: int, width: int, ctx: Any, folder: Path) -> None:
    """A shard of one bin with one image, from patches to the renamed file."""
    columns = [column for column in ctx.columns if column.modality == "image"]
    schema = arrow_schema(columns, family=ctx.name, modalities=("image",))
    tokens = np.zeros(len(patches) // 4, np.int32)
    grid = np.array([1, height // 14, width // 14], np.int32)
    item = Bin(
        input_ids=tokens, labels=tokens, position_ids=np.zeros((3, len(tokens)), np.int32),
        cu_seqlens=np.array([0, len(tokens)], np.int32), row_ids=np.zeros(1, np.int32),
        row_items=np.ones((1, 1), np.int32),
        media={"image_grid_thw": [grid], "pixel_values": [patches]},
    )  # fmt: skip
    with ShardWriter(str(folder / "one.arrow"), schema) as writer:
        writer.write(item)


def audio_parts(path: Path, ctx: Any) -> list[dict[str, Any]]:
    from transformers import WhisperFeatureExtractor

    source = Source(path=str(path))
    wave = decode_audio(source, 16000)
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=300)

    def reference() -> np.ndarray:
        return extractor(wave, sampling_rate=16000, padding="max_length", return_tensors="np")["input_features"]

    ours = torch.from_numpy(log_mel(wave, ctx.preprocessor)).view(torch.bfloat16)
    assert torch.equal(ours, torch.from_numpy(reference()[0, :, : ours.shape[1]]).to(torch.bfloat16))
    name = f"audio {len(wave) / 16000:.1f} s"
    return [
        line(name, "decode, to 16 kHz mono", lambda: decode_audio(source, 16000)),
        line(name, "spectrogram", lambda: log_mel(wave, ctx.preprocessor), reference),
    ]


def video_parts(path: Path) -> list[dict[str, Any]]:
    source = Source(path=str(path))
    facts = probe_video(source)
    meta = MediaMeta(kind="video", width=facts.width, height=facts.height, frames=facts.frames, fps=facts.fps)
    plan = plan_video(meta, Limits())
    frames = read_frames(source, facts, plan.indices)
    by_decord = replace(facts, reader=DECORD)
    assert np.array_equal(frames, read_frames(source, by_decord, plan.indices))
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)

    def reference() -> torch.Tensor:
        return resize(tensor, [plan.height, plan.width], interpolation=InterpolationMode.BICUBIC, antialias=True)

    small = resize_picture(frames, (plan.width, plan.height))
    assert np.array_equal(small, reference().permute(0, 2, 3, 1).numpy())
    name = f"video {meta.width}x{meta.height}, {meta.frames} frames, {len(frames)} taken"
    return [
        line(name, "open, compare the readers", lambda: probe_video(source)),
        line(
            name,
            "decode",
            lambda: read_frames(source, facts, plan.indices),
            lambda: read_frames(source, by_decord, plan.indices),
        ),
        line(name, "resize", lambda: resize_picture(frames, (plan.width, plan.height)), reference),
        line(name, "patches", lambda: video_patches(small)),
    ]


def text_parts(path: Path, ctx: Any) -> list[dict[str, Any]]:
    texts = path.read_text().splitlines()

    def reference() -> list[list[int]]:
        return ctx.tokenizer(texts, add_special_tokens=False)["input_ids"]

    assert [ids.tolist() for ids in ctx.encoder.arrays(texts)] == reference()
    tokens = sum(map(len, reference()))
    return [line(f"text, {tokens:,} tokens", "tokenize", lambda: ctx.encoder.arrays(texts), reference)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--data", type=Path, default=os.environ.get("OMNIPREP_BENCH_DATA"))
    options = parser.parse_args()
    if not options.model:
        print("skipped: needs --model (OMNIPREP_BENCH_MODEL)")
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    load_kernels()
    ctx = resolve_family(options.model)
    with tempfile.TemporaryDirectory(prefix="omniprep-parts-") as name:
        folder = Path(name)
        files = make(folder, {"text": 300, "image": 1, "audio": 1, "video": 2}, options.data)
        media = sorted((folder / "media").iterdir())
        sounds = [path for path in media if path.suffix in (".wav", ".flac", ".mp3", ".ogg")]
        videos = [path for path in media if path.suffix in (".mp4", ".avi", ".mkv")]
        rows = text_parts(files["text"], ctx) + image_parts(folder / "media" / "image0.jpg", ctx, folder)
        rows += audio_parts(sounds[0], ctx) + [row for path in videos for row in video_parts(path)]
    record("parts", rows, rounds=ROUNDS)


if __name__ == "__main__":
    main()
