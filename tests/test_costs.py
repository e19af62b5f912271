"""What `omniprep plan` promises, held against builds and against the committed results of the benchmarks."""

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omniprep.compiler.build import build, plan_only
from omniprep.compiler.costs import TOKEN_SECONDS, TYPICAL_SHARE, image_bits
from omniprep.compiler.plan.estimate import estimate
from omniprep.config import BuildConfig
from omniprep.data import PackedDataset
from omniprep.media.image import read_header
from omniprep.media.source import Source
from omniprep.modalities import MODALITIES
from omniprep.progress import QuietReporter
from omniprep.shards.codecs import CODECS, load_speed, size_of_delta

ROOT = Path(__file__).resolve().parent.parent
needs_jxl = pytest.mark.skipif(find_spec("pillow_jxl") is None, reason="needs pillow-jxl-plugin (omniprep[jxl])")
EACH_CODEC = [pytest.param(name, marks=needs_jxl if name == "jxl" else ()) for name in CODECS]


def options(model: Path, kind: str, out: Path, **changed: Any) -> BuildConfig:
    path = str(ROOT / "data_samples" / f"{kind}.jsonl")
    given = {"bin_length": 4096, "workers": 0} | changed
    return BuildConfig(inputs=(path,), model=str(model), out=str(out), **given)


def promised_and_built(config: BuildConfig) -> tuple[int, PackedDataset]:
    with open("/dev/null", "w") as nowhere:
        progress = QuietReporter(nowhere)
        promised = estimate(plan_only(config, progress), config).bytes
        build(config, progress)
    return promised, PackedDataset(config.out)


def shard_bytes(dataset: PackedDataset) -> list[int]:
    return [shard["bytes"] for shard in dataset.manifest["shards"]]


@pytest.mark.parametrize("codec", EACH_CODEC)
@pytest.mark.parametrize(("kind", "below", "above"), [("images", 1.25, 1.25), ("video", 1.25, 6)])
def test_a_plan_promises_the_bytes_that_are_built(
    codec: str, kind: str, below: float, above: float, model_dir: Path, tmp_path: Path
) -> None:
    """Photographs, scans and drawings to a quarter; drawn videos, whose files look like those of films, are smaller."""
    promised, dataset = promised_and_built(options(model_dir, kind, tmp_path / "out", pixel_codec=codec))
    built = sum(shard_bytes(dataset))
    if codec in ("raw", "source"):
        below = above = 1.25
    assert built / below < promised < built * above, (promised, built)


@pytest.mark.parametrize("codec", EACH_CODEC)
def test_shards_meet_the_size_that_was_asked_for(codec: str, model_dir: Path, tmp_path: Path) -> None:
    size = {"raw": 700_000, "source": 60_000}.get(codec, 150_000)
    config = options(model_dir, "images", tmp_path / "out", pixel_codec=codec, bin_length=512, shard_size=size)
    _, dataset = promised_and_built(config)
    sizes, shards = shard_bytes(dataset), dataset.index["shard"]
    assert len(sizes) > 2
    for number, taken in enumerate(sizes):
        assert taken < 1.3 * size or (shards == number).sum() == 1, (taken, size)
    assert np.mean(sizes[:-1]) > 0.4 * size


@cache
def results(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]
    return rows


def test_what_codecs_promise_was_measured() -> None:
    """Speeds to a factor of two, since machines differ; sizes to a tenth."""
    measured = {row["codec"]: row for row in results("load_codecs")}
    assert measured.keys() >= {"raw", "delta", "source", "webp"}
    for name, row in measured.items():
        assert 0.5 < load_speed(name) / (1e9 * row["gb_of_pixels_per_cpu_second"]) < 2, name
        if name not in ("raw", "source"):
            real = row["bytes_a_token"] / measured["delta"]["bytes_a_token"]
            assert 0.9 < size_of_delta(name) / real < 1.1, name


def test_seconds_of_a_build_were_measured() -> None:
    """Rates of benchmarks/results/build.json, to a factor of three: they rank tasks."""
    rates = {row["rows"]: row["omniprep_tokens_per_second"] for row in results("build")}
    assert 1 / 3 < TOKEN_SECONDS * rates["text"] < 3
    for name, units in {"image": 4, "video": 4, "audio": 4}.items():  # of a tower's work for each token
        assert 1 / 3 < MODALITIES[name].seconds * units * rates[name] < 3, name


def test_a_file_tells_what_its_picture_takes(tmp_path: Path) -> None:
    """Noise, a soft picture and a drawing: the order is right, whatever the format."""
    y, x = np.mgrid[:280, :420]
    noise = np.random.default_rng(0).integers(0, 256, (280, 420, 3), np.uint8)
    soft = np.stack([y, x, x + y], axis=-1) // 3 + noise // 32
    drawing = np.repeat((x // 60 % 2 * 255)[..., None], 3, axis=-1)
    bits = {}
    for name, pixels in {"noise": noise, "soft": soft, "drawing": drawing}.items():
        for suffix in ("png", "jpg"):
            path = tmp_path / f"{name}.{suffix}"
            Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)
            bits[name, suffix] = image_bits(read_header(Source(path=str(path))))
    for suffix in ("png", "jpg"):
        assert bits["drawing", suffix] < 2 < 3 < bits["soft", suffix] < bits["noise", suffix]
    assert 0.2 < TYPICAL_SHARE < 0.5
