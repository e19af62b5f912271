"""Video frames are resized to the very bytes of torchvision, by our kernel where it takes torchvision's place."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from omniprep.media import resample


@pytest.fixture(autouse=True)
def kernels_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "FEW", 0)


def test_a_few_pictures_do_not_wait_for_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "FEW", 3)
    monkeypatch.setattr(resample, "_done", 0)
    monkeypatch.setattr(resample, "_compiled", lambda kernel: kernel == "across")
    pixels = np.random.default_rng(7).integers(0, 256, (2, 40, 50, 3), np.uint8)
    image, taken = Image.fromarray(pixels[0]), []
    whole, checked = resample._whole, resample._checked
    monkeypatch.setattr(resample, "_whole", lambda *args: taken.append("image") or whole(*args))
    monkeypatch.setattr(resample, "_checked", lambda *args: taken.append("frames") or checked(*args))
    for left in (2, 1, 0):
        assert np.array_equal(resample.resize_image(image, 28, 56), np.asarray(image.resize((28, 56))))
        assert (taken, resample.FEW - resample._done) == ([], left)
    resample.resize_frames(pixels, 28, 56)  # their kernel is there: nothing to wait for
    resample.resize_image(image, 28, 56)
    assert taken[0] == "frames" and "image" in taken


SIZES = [
    ((360, 640), (364, 644)), ((240, 320), (280, 392)), ((720, 1280), (560, 1008)), ((1080, 1920), (560, 1008)),
    ((144, 176), (28, 28)),     ((7, 9), (56, 84)), ((100, 3), (28, 28)), ((33, 47), (28, 476)), ((224, 224), (224, 336)),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_frames_equal_torchvision(old: tuple[int, int], new: tuple[int, int]) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (2, *old, 3), np.uint8)
    frames[1, ::2] = 255 * (frames[1, ::2] > 127)
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    expected = resize(tensor, list(new), interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert np.array_equal(resample.resize_frames(frames, *new), expected.permute(0, 2, 3, 1).numpy())
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):  # otherwise torch may compute in another order
        assert old == new or resample._checked(*old, *new) is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [*SIZES, ((336, 448), (336, 476)), ((300, 448), (308, 448)), ((1, 1), (28, 28)), ((600, 3), (588, 28))],
)
def test_images_equal_pillow(old: tuple[int, int], new: tuple[int, int]) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (*old, 3), np.uint8)
    pixels[:, ::2] = 255 * (pixels[:, ::2] > 127)
    image = Image.fromarray(pixels)
    ours = resample.resize_image(image, new[1], new[0])
    assert np.array_equal(ours, np.asarray(image.resize((new[1], new[0]))))


SIDE = st.integers(1, 700)


@settings(max_examples=60, deadline=None)
@given(SIDE, SIDE, st.integers(1, 20), st.integers(1, 20))
def test_any_image_equals_pillow(width: int, height: int, columns: int, rows: int) -> None:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels)
    ours = resample.resize_image(image, 28 * columns, 28 * rows)
    assert np.array_equal(ours, np.asarray(image.resize((28 * columns, 28 * rows))))


@pytest.mark.parametrize("new", [(140, 252), (448, 28), (399, 56)])
def test_large_images_in_strips(monkeypatch: pytest.MonkeyPatch, new: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (399, 280, 3), np.uint8))
    monkeypatch.setattr(resample, "STRIP_PIXELS", 280 * 100)
    assert np.array_equal(resample.resize_image(image, new[1], new[0]), np.asarray(image.resize((new[1], new[0]))))


def test_an_image_that_pillow_holds_in_pieces() -> None:
    image = Image.effect_noise((4200, 1100), 90).convert("RGB")  # over 16 MiB of four bytes
    assert image.width * image.height > resample.STRIP_PIXELS
    words = resample._words(image)
    assert np.array_equal(words.view(np.uint8).reshape(1100, 4200, 4)[..., :3], np.asarray(image))
    assert np.array_equal(resample.resize_image(image, 308, 84), np.asarray(image.resize((308, 84))))


def test_a_torch_that_computes_otherwise_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.random.default_rng(2).integers(0, 256, (1, 30, 40, 3), np.uint8)
    expected = resample.resize_frames(frames, 28, 56)
    true = resample._weights

    def other(old: int, new: int) -> resample.Weights:
        first, groups, weights = true(old, new)
        return first, groups, weights * np.float32(1.001)

    monkeypatch.setattr(resample, "_weights", other)
    resample._checked.cache_clear()
    assert resample._checked(30, 40, 28, 56) is None
    assert np.array_equal(resample.resize_frames(frames, 28, 56), expected)
    resample._checked.cache_clear()
