"""Pictures and video frames are resized to the very bytes of Pillow and torchvision, by our kernels where those agree."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as torchvision

from omniprep.media import resample
from omniprep.media.resample import image_is_fast, resize, resize_by_torch, video_is_fast


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    """From here on this process has the compiled kernels loaded, so `resize` calls them for the first picture too."""
    assert image_is_fast()


def with_torchvision(frames: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    resized = torchvision.resize(tensor, list(size[::-1]), interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized.permute(0, 2, 3, 1).numpy()


def test_a_few_pictures_do_not_wait_for_a_compiler(fresh_python: Callable[[str], str]) -> None:
    """numba is imported only after KERNELS_AFTER pictures, and the pixels are the same before and after."""
    code = """
import sys
import numpy as np
from PIL import Image
from omniprep.media import resample

resample.KERNELS_AFTER = 4
resample._COMPILED.is_ready = lambda pictures: True
frames = np.random.default_rng(7).integers(0, 256, (2, 40, 50, 3), np.uint8)
image = Image.fromarray(frames[0])
for _ in range(2):
    small = resample.resize(frames, (28, 56))
    for _ in range(2):
        assert np.array_equal(resample.resize(image, (28, 56)), np.asarray(image.resize((28, 56))))
    print("numba" in sys.modules)
assert np.array_equal(resample.resize(frames, (28, 56)), small)
"""
    assert fresh_python(code).split() == ["False", "True"]


def test_without_numba_the_libraries_resize(fresh_python: Callable[[str], str]) -> None:
    code = """
import sys
sys.modules["numba"] = None
import numpy as np
from PIL import Image
from omniprep.media import resample

resample.KERNELS_AFTER = 0
resample._COMPILED.is_ready = lambda pictures: True
image = Image.fromarray(np.random.default_rng(7).integers(0, 256, (40, 50, 3), np.uint8))
print(np.array_equal(resample.resize(image, (28, 56)), np.asarray(image.resize((28, 56)))), resample.image_is_fast())
"""
    assert fresh_python(code).split() == ["True", "False"]


# (width, height) before and after
SIZES = [
    ((640, 360), (644, 364)), ((320, 240), (392, 280)), ((1280, 720), (1008, 560)), ((1920, 1080), (1008, 560)),
    ((176, 144), (28, 28)), ((9, 7), (84, 56)), ((3, 100), (28, 28)), ((47, 33), (476, 28)), ((224, 224), (336, 224)),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_frames_equal_torchvision(old: tuple[int, int], new: tuple[int, int]) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (2, *old[::-1], 3), np.uint8)
    frames[1, ::2] = 255 * (frames[1, ::2] > 127)
    assert np.array_equal(resize(frames, new), with_torchvision(frames, new))
    assert np.array_equal(resize_by_torch(frames, new), with_torchvision(frames, new))
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):  # otherwise torch may compute in another order
        assert video_is_fast(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [*SIZES, ((448, 336), (476, 336)), ((448, 300), (448, 308)), ((1, 1), (28, 28)), ((3, 300), (28, 280))],
)
def test_images_equal_pillow(old: tuple[int, int], new: tuple[int, int]) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (*old[::-1], 3), np.uint8)
    pixels[:, ::2] = 255 * (pixels[:, ::2] > 127)
    image = Image.fromarray(pixels)
    assert image_is_fast(old, new)
    assert np.array_equal(resize(image, new), np.asarray(image.resize(new)))


def test_a_very_tall_image_equals_pillow() -> None:
    """Pillow may do the vertical pass first for these."""
    image = Image.effect_noise((3, 600), 90).convert("RGB")
    assert np.array_equal(resize(image, (28, 588)), np.asarray(image.resize((28, 588))))


SIDE = st.integers(1, 700)


@settings(max_examples=60, deadline=None)
@given(SIDE, SIDE, st.integers(1, 20), st.integers(1, 20))
def test_any_image_equals_pillow(width: int, height: int, columns: int, rows: int) -> None:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels)
    assert np.array_equal(resize(image, (28 * columns, 28 * rows)), np.asarray(image.resize((28 * columns, 28 * rows))))


@pytest.mark.parametrize("new", [(252, 140), (28, 448), (56, 399)])
def test_large_images_in_strips(monkeypatch: pytest.MonkeyPatch, new: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (399, 280, 3), np.uint8))
    monkeypatch.setattr(resample, "STRIP_PIXELS", 280 * 100)
    assert np.array_equal(resize(image, new), np.asarray(image.resize(new)))


def test_an_image_that_pillow_holds_in_pieces() -> None:
    image = Image.effect_noise((4200, 1100), 90).convert("RGB")  # over 16 MiB of four bytes
    assert image.width * image.height > resample.STRIP_PIXELS and image_is_fast(image.size, (308, 84))
    assert np.array_equal(resize(image, (308, 84)), np.asarray(image.resize((308, 84))))


def test_a_torch_that_computes_otherwise_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that no other test asks for, so that it is tried here, with an `interpolate` that adds two."""
    frames = np.random.default_rng(2).integers(0, 256, (1, 31, 43, 3), np.uint8)
    original = torch.nn.functional.interpolate

    def interpolate(*args: object, **options: object) -> torch.Tensor:
        return original(*args, **options) + 2.0  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "interpolate", interpolate)
    assert not video_is_fast((43, 31), (29, 57))
    assert np.array_equal(resize(frames, (29, 57)), resize_by_torch(frames, (29, 57)))


def test_a_pillow_that_computes_otherwise_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Image.Image.resize

    def other(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        return original(image, size, Image.Resampling.BILINEAR)

    monkeypatch.setattr(Image.Image, "resize", other)
    image = Image.effect_noise((53, 37), 90).convert("RGB")
    assert not image_is_fast((53, 37), (31, 59))
    assert np.array_equal(resize(image, (31, 59)), np.asarray(original(image, (31, 59), Image.Resampling.BILINEAR)))
