"""Every case of tests/golden against what ms-swift made of it: ids, labels, weights, positions, pixels, sound, bitwise.

The fixtures are made by tests/golden/make_golden.py where ms-swift 3.9 is installed; here nothing of it is needed.
Spectrograms depend on the CPU's FFT kernels, so on another kind of CPU than the fixture's they are compared within one
bfloat16 step on a sample.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

HERE = Path(__file__).resolve().parent
MEDIA = HERE / "golden" / "media"
DEMO = HERE.parent.parent / "shared" / "data" / "demo"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"golden_{name}", HERE / "golden" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


codec, golden = _load("codec"), _load("cases")
KINDS = sorted({case.kind for case in golden.CASES} | {"demo"})
FILES = [json.loads((HERE / "golden" / f"{kind}.json").read_text()) for kind in KINDS]
TRUTH: dict[str, dict[str, Any]] = {
    name: dict(made, cpu=f["made_with"]["cpu"]) for f in FILES for name, made in f["cases"].items()
}


def _ffmpeg() -> str:
    """Name and version of the ffmpeg program, as the fixtures name theirs."""
    try:
        run = subprocess.run(["ffmpeg", "-version"], stdout=subprocess.PIPE, text=True, check=False)
    except OSError:
        return "none"
    return run.stdout.split("Copyright")[0].strip()


# Versions of ffmpeg differ in the last bit of AAC and Opus, and in the end padding: PyAV stands in for another one.
DECODER = "ffmpeg" if any(f["made_with"]["ffmpeg"] == _ffmpeg() for f in FILES) else "pyav"


@pytest.fixture(scope="session")
def encode(model_dir: Path) -> Any:
    """A function (case, folder of the row's file) -> the row's kwargs; a family is resolved once a set of options."""
    from omniprep.compiler.encode.single_row import encode_row
    from omniprep.compiler.options import family_of
    from omniprep.config import BuildConfig

    def encode(case: Any, base: Path) -> dict[str, torch.Tensor]:
        config = BuildConfig(model=str(model_dir), bin_length=32768, audio_decoder=DECODER, **case.options)
        return encode_row(json_types(case.row), family_of(config), config, str(base))

    return encode


def json_types(value: Any) -> Any:
    """A deep copy, as reading the row from a file would give."""
    if isinstance(value, dict):
        return {k: json_types(v) for k, v in value.items()}
    return [json_types(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", golden.CASES, ids=lambda case: case.name)
def test_row_equals_the_reference(case: Any, encode: Any) -> None:
    check(case, encode, MEDIA)


DEMO_CASES = golden.demo_cases(DEMO)


@pytest.mark.skipif(not DEMO_CASES, reason=f"the demonstration data is not at {DEMO}")
@pytest.mark.parametrize("case", DEMO_CASES or [None], ids=lambda case: case.name if case else "none")
def test_demonstration_row_equals_the_reference(case: Any, encode: Any) -> None:
    check(case, encode, DEMO)


def test_fixtures_cover_the_cases() -> None:
    assert {c.name for c in golden.CASES} <= set(TRUTH)
    assert len(golden.CASES) >= 150


def check(case: Any, encode: Any, base: Path) -> None:
    from omniprep.errors import Reject, RejectCode

    truth = TRUTH[case.name]
    for code in (case.code, case.rejects):
        assert not code or code in set(RejectCode)
    if case.rejects or ("error" in truth and not case.accepts):
        with pytest.raises(Reject) as caught:
            encode(case, base)
        assert caught.value.code != "internal_error", f"{caught.value}; the reference: {truth.get('error')}"
        expected = case.rejects or case.code
        assert not expected or caught.value.code == expected
        return
    row = encode(case, base)
    if "error" in truth:  # accepted though the reference fails: there is nothing to compare with
        return
    compare(case, row, truth)


def compare(case: Any, row: dict[str, torch.Tensor], truth: dict[str, Any]) -> None:
    ids = row["input_ids"][0].tolist()
    if case.hashes_only:
        assert len(ids) == truth["length"]
        assert codec.sha(torch.tensor(ids, dtype=torch.int32).numpy().tobytes()) == truth["ids_sha"]
    else:
        assert codec.pack_numbers(ids) == truth["input_ids"]
    labels = row["labels"][0].tolist()
    labelled, scale = codec.unpack_numbers(truth["labelled"]), truth.get("loss_scale")
    if case.options.get("truncation") == "left":  # on purpose: a row that was cut begins without a label (fidelity.md)
        labelled[0] = 0
        scale = scale and codec.pack_numbers([0, *codec.unpack_numbers(scale)[1:]])
    assert [int(t != -100) for t in labels] == labelled
    assert all(t in (-100, i) for i, t in zip(ids, labels, strict=True))
    weights = row.get("loss_scale")
    assert (None if weights is None else codec.pack_numbers(weights[0].tolist())) == scale
    positions = row["position_ids"]
    assert tuple(positions.shape) == (4, 1, len(ids)) and torch.equal(positions[0, 0], torch.arange(len(ids)))
    expected = truth["position_ids"]
    rope = [f"0~{len(ids)}"] * 3 if expected == "plain" and len(ids) > 2 else expected
    assert [codec.pack_numbers(p) for p in positions[1:, 0].tolist()] == rope
    for name, key in (("image_grid_thw", "pixel_values"), ("video_grid_thw", "pixel_values_videos")):
        grid = row.get(name)
        assert (None if grid is None or not len(grid) else grid.tolist()) == truth.get(name)
        if name in truth:
            compare_pixels(row[key], truth[key])
    compare_sound(case, row, truth)


def compare_pixels(pixels: torch.Tensor, truth: dict[str, Any]) -> None:
    """float32 (patches, 1176) as the processor makes them, and their bfloat16."""
    assert pixels.dtype == torch.float32 and pixels.shape[1] == 1176
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(1, 3, 1) * 255
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(1, 3, 1) * 255
    byte = (pixels.reshape(len(pixels), 3, -1) * std + mean).round().to(torch.uint8)
    sample = byte.flatten()[:: max(1, byte.numel() // 64)].tolist()[:64]
    assert sample == truth["sample"], "pixels differ (uint8 sample)"
    assert codec.sha(byte.contiguous().numpy().tobytes()) == truth["u8"], "pixels differ"
    assert codec.sha(pixels.contiguous().numpy().tobytes()) == truth["f32"], "bytes are equal, floats differ"
    half = pixels.to(torch.bfloat16).contiguous()
    assert codec.sha(half.view(torch.int16).numpy().tobytes()) == truth["bf16"]


def compare_sound(case: Any, row: dict[str, torch.Tensor], truth: dict[str, Any]) -> None:
    frames = truth.get("audio_frames")
    if frames is None:
        assert row.get("input_features") is None
        return
    mask = row["feature_attention_mask"].bool()
    assert mask.sum(-1).tolist() == frames
    for clip, valid, expected in zip(row["input_features"], mask, truth["input_features"], strict=True):
        bits = clip[:, valid].to(torch.bfloat16).contiguous().view(torch.int16)
        if codec.sha(bits.numpy().tobytes()) == expected["bf16"]:
            continue
        sample = torch.tensor(codec.unpack_halves(expected["sample"]))
        near = bf16_order(bits.flatten()[:: expected["step"]]) - bf16_order(sample)
        worst = int(near.abs().max()) if near.numel() else 0
        assert worst <= 1, f"{worst} bf16 steps apart"
        other_decoder = case.options.get("use_audio_in_video") and DECODER == "pyav"
        assert other_decoder or codec.cpu() != truth["cpu"], "spectrogram differs on the fixture's own CPU"


def bf16_order(bits: torch.Tensor) -> torch.Tensor:
    """bf16 bit patterns as integers in the order of their values: neighbors differ by one."""
    bits = bits.to(torch.int32) & 0xFFFF
    return torch.where(bits >= 0x8000, 0x8000 - bits, bits)
