"""Compiled functions check nothing, so what they are given is checked, and what they touch is within their buffers."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from omniprep.errors import UsageError
from omniprep.families.qwen.vision import image_patches
from omniprep.shards.codecs import codec_of, delta, with_codec
from omniprep.shards.codecs.picture import PictureShape, picture_shapes
from omniprep.shards.schema import Column

GUARDED = """
import ctypes, mmap, random
import numpy as np

C, PAGE = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE

def guarded(size, at_end):
    '''uint8 (size,) that ends right before a page that cannot be touched, or begins right behind one.'''
    pages = -(-size // PAGE) + 2
    memory = mmap.mmap(-1, pages * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages - 1):
        assert C.mprotect(ctypes.c_void_p(address + page * PAGE), ctypes.c_size_t(PAGE), 0) == 0
    start = (pages - 1) * PAGE - size if at_end else PAGE
    return np.frombuffer(memory, np.uint8, size, start)

def filled(values, at_end):
    values = np.ascontiguousarray(values)
    bytes_of_values = values.reshape(-1).view(np.uint8)
    target = guarded(bytes_of_values.size, at_end)
    target[:] = bytes_of_values
    return target.view(values.dtype).reshape(values.shape)
"""
CODEC = """
from omniprep.shards.codecs import delta, delta_kernels
from omniprep.shards.codecs.picture import PictureShape

numbers = random.Random(0)
noise = np.random.default_rng(0)
cases = [(side, merge, frames) for side in (*range(8, 18), 24, 27, 32) for merge in (1, 2, 3) for frames in (1, 2)]
for side, merge, frames in cases:
    for high, rows, columns in ((side, 1, 1), (1, 2, 3), (side, numbers.randint(1, 3), numbers.randint(1, 80 // side + 1))):
        shape = PictureShape(frames, rows * merge * high, columns * merge * side, high, side, merge)
        pixels = noise.integers(0, 256, (frames, shape.height, shape.width, 3), np.uint8)
        view = pixels.reshape(shape._axes).transpose(1, 4, 2, 5, 7, 0, 3, 6)
        expected, residuals = view.reshape(-1), delta.residuals_of_pixels(pixels).reshape(-1)
        for at_end in (False, True):
            out = guarded(shape.size, at_end)
            delta_kernels.cut_into_patches(filled(np.moveaxis(pixels, 3, 2), at_end).reshape(-1), *shape.cut, out)
            assert np.array_equal(out, expected), shape
            out[:] = 7
            delta_kernels.undo_into_patches(filled(residuals, at_end), *shape.cut, out)
            assert np.array_equal(out, expected), shape
            out[:] = 7
            delta_kernels.residuals_of_patches(filled(expected, at_end), *shape.cut, out)
            assert np.array_equal(out, residuals), shape
print("ok")
"""
CROPS = """
from omniprep.shards.codecs import delta, delta_kernels
from omniprep.shards.codecs.picture import PictureShape

noise = np.random.default_rng(0)
for width in (*range(8, 81), 127, 128, 129, 336, 448):
    for height in (1, 2, 17):
        shape = PictureShape(1, height, width, height, width)
        planes = noise.integers(0, 256, (3, height, width), np.uint8)
        residuals = delta.residuals_of_pixels(np.moveaxis(planes, 0, -1)[None]).reshape(-1)
        for at_end in (False, True):
            out = guarded(shape.size, at_end)
            delta_kernels.undo_into_patches(filled(residuals, at_end), *shape.cut, out)
            assert np.array_equal(out, planes.reshape(-1)), shape
            delta_kernels.residuals_of_patches(filled(planes.reshape(-1), at_end), *shape.cut, out)
            assert np.array_equal(out, residuals), shape
print("ok")
"""
RESIZE = """
from PIL import Image
import torch
from omniprep.media import kernels, resample

numbers, noise = random.Random(0), np.random.default_rng(0)
for number in range(60):
    old = numbers.randint(1, 90), numbers.randint(1, 90)
    new = numbers.randint(1, 90), numbers.randint(1, 90)
    pixels = noise.integers(0, 256, (old[1], old[0], 4), np.uint8)
    at_end, rows = bool(number % 2), -(-old[1] // kernels.ROWS) * kernels.ROWS
    first, weights = resample._pillow_weights(old[0], new[0])
    between = filled(np.zeros((rows, -(-3 * new[0] // 8) * 8), np.uint8), at_end)
    words = filled(pixels, at_end).view(np.uint32)[..., 0]
    kernels.whole_across(words, filled(first, at_end), filled(weights, at_end), 0, old[1], between.view(np.uint64))
    image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    expected = np.asarray(image.resize((new[0], old[1])))
    across = np.moveaxis(between[: old[1], : 3 * new[0]].reshape(old[1], 3, new[0]), 1, 2)
    assert np.array_equal(across, expected), (old, new)
    first, weights = resample._pillow_weights(old[1], new[1])
    target = filled(np.zeros((new[1], 3 * new[0]), np.uint8), at_end)
    source = filled(between[: old[1]], at_end)
    kernels.whole_down(source, filled(first, at_end), filled(weights, at_end), 0, target)
    expected = np.asarray(Image.fromarray(expected).resize(new))
    assert np.array_equal(np.moveaxis(target.reshape(new[1], 3, new[0]), 1, 2), expected), (old, new)
    passes = [[filled(part, at_end) for part in resample._torch_weights(*pair)] for pair in zip(old, new)]
    floats = filled(np.zeros((old[1], 3 * new[0]), np.float32), at_end)
    total = filled(np.zeros((new[1], 3 * new[0]), np.float32), at_end)
    kernels.across(filled(pixels[..., :3], at_end).reshape(old[1], -1), *passes[0], floats)
    kernels.down(floats, *passes[1], total)
    kernels.to_bytes(total, target)
    frame = torch.from_numpy(np.ascontiguousarray(pixels[..., :3])).permute(2, 0, 1)[None].float()
    theirs = torch.nn.functional.interpolate(frame, size=new[::-1], mode="bicubic", antialias=True)
    ours = np.moveaxis(total.reshape(new[1], 3, new[0]), 1, 0)
    assert np.abs(ours - theirs[0].numpy()).max() < 0.01, (old, new)
print("ok")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect of Linux guards the buffers")
@pytest.mark.parametrize("work", [CODEC, CROPS, RESIZE], ids=["patches", "crops", "resize"])
def test_compiled_functions_stay_within_their_buffers(fresh_python: Callable[[str], str], work: str) -> None:
    """A read or a write beside a buffer would end the process: the pages there cannot be touched."""
    assert fresh_python(GUARDED + work).split() == ["ok"]


@pytest.mark.parametrize(
    ("form", "picture"),
    [((3, 28, 42), "chw"), ((28, 42, 3), "hwc"), ((2, 3, 28, 42), "chw")],
)
@pytest.mark.parametrize("flat", [False, True])
def test_a_unit_without_its_axis_is_one_unit(form: tuple[int, ...], picture: str, flat: bool) -> None:
    """As it is stored raw; and values in a row, which a family may give too."""
    raw = Column(
        name="pixels", modality="image", kind="flat", dtype="uint8", shape=form, load="array", params={"picture": picture}
    )  # fmt: skip
    column = with_codec([raw], "delta")[0]
    values = np.random.default_rng(0).integers(0, 256, form, np.uint8)
    codec, out = codec_of(column), np.zeros((1, *form), np.uint8)
    data = codec.encode_items(column, [values.reshape(-1) if flat else values], [np.asarray(1)])
    codec.decode_items(column, data, np.array([1]), out)
    assert np.array_equal(out[0], values)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("size", [(28, 42), (42, 28), (30, 30), (31, 56)])
def test_pictures_that_are_no_whole_number_of_blocks_are_refused(
    size: tuple[int, int], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled functions would leave the rest of the patches as the memory was."""
    from omniprep.shards.codecs import delta_kernels

    if not compiled:
        monkeypatch.delitem(sys.modules, delta_kernels.__name__)
    apart = np.zeros((size[0], 3, size[1]), np.uint8)
    with pytest.raises(ValueError, match=r"reshape|broadcast"):
        image_patches(np.moveaxis(apart, 1, 2))


def test_pixels_of_another_type_become_the_same_patches() -> None:
    from omniprep.shards.codecs import delta_kernels  # noqa: F401

    shape = PictureShape(1, 28, 56, 14, 14, 2)
    apart = np.random.default_rng(0).integers(0, 256, (1, 28, 3, 56), np.uint8)
    patches = np.zeros((2, shape.size), np.uint8)
    shape.fill_patches(patches[0], np.moveaxis(apart, 2, 3))
    shape.fill_patches(patches[1], np.moveaxis(apart.astype(np.int32), 2, 3))
    assert np.array_equal(*patches)


def test_a_grid_without_patches_holds_no_pictures() -> None:
    """Also where it says two billion steps, each a picture of no rows."""
    column = Column(
        name="pixels", modality="video", kind="flat", dtype="uint8", shape=(1176,), sizes="prod(grid)", load="patches",
        params={"mean": [0.5] * 3, "std": [0.5] * 3, "patch_size": 14, "temporal_patch_size": 2},
    )  # fmt: skip
    assert picture_shapes(column, 0, np.array([2**31 - 1, 0, 4])) == (0, None)


def test_patches_are_cut_while_another_thread_loads_the_compiled_functions(fresh_python: Callable[[str], str]) -> None:
    """The thread that compresses loads them at its 129th picture, while the next pictures are cut."""
    code = """
import sys, threading, time
import numpy as np
from omniprep.shards.codecs.picture import PictureShape, load_kernels

begun, may_end = threading.Event(), threading.Event()

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "omniprep.shards.codecs.vectors":
            begun.set()
            may_end.wait(30)

sys.meta_path.insert(0, Slow())
shape = PictureShape(1, 28, 56, 14, 14, 2)
pixels = np.moveaxis(np.random.default_rng(0).integers(0, 256, (1, 28, 3, 56), np.uint8), 2, 3)
loading = threading.Thread(target=load_kernels)
loading.start()
begun.wait()
assert "omniprep.shards.codecs.delta_kernels" in sys.modules  # half of it
threading.Timer(0.3, may_end.set).start()
patches = np.zeros(shape.size, np.uint8)
shape.fill_patches(patches, pixels)
loading.join()
print(np.array_equal(shape.pixels(patches), pixels))
"""
    assert fresh_python(code).split() == ["True"]


def test_without_the_compiler_of_numba_nothing_is_compiled(fresh_python: Callable[[str], str]) -> None:
    """NUMBA_DISABLE_JIT, as users who debug set it: Python cannot run intrinsics."""
    code = """
import os
os.environ["NUMBA_DISABLE_JIT"] = "1"
import numpy as np
from PIL import Image
from omniprep.media import resample
from omniprep.shards.codecs import delta
from omniprep.shards.codecs.picture import PictureShape

resample.KERNELS_AFTER = delta.KERNELS_AFTER = 0
resample._COMPILED.is_ready = delta._COMPILED.is_ready = lambda pictures: True
noise = np.random.default_rng(7).integers(0, 256, (40, 50, 3), np.uint8)
image = Image.fromarray(noise)
print(np.array_equal(resample.resize(image, (28, 56)), np.asarray(image.resize((28, 56)))))
print(resample.resize(noise[None], (28, 56)).shape)
shape = PictureShape(1, 28, 56, 14, 14, 2)
patches = np.random.default_rng(0).integers(0, 256, shape.size, np.uint8)
back, codec = np.zeros_like(patches), delta.Codec()
codec.decode(memoryview(codec.encode(patches, shape)), shape, back)
print(np.array_equal(back, patches))
"""
    assert fresh_python(code).splitlines() == ["True", "(1, 56, 28, 3)", "True"]


def test_without_zstd_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("backports.zstd", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"^--pixel-codec delta compresses with zstd, .*install.* or choose"):
        delta.Codec().library()


def test_compiled_code_that_cannot_be_kept_is_used_all_the_same(
    fresh_python: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk without room, here a limit of the size of files: rows were rejected, and pixels called damaged."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    code = """
import resource
import numpy as np
from omniprep.shards.codecs import delta
from omniprep.shards.codecs.picture import PictureShape

resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
delta.KERNELS_AFTER = 0
delta._COMPILED.is_ready = lambda pictures: True
shape = PictureShape(1, 28, 56, 14, 14, 2)
patches = np.random.default_rng(0).integers(0, 256, shape.size, np.uint8)
back, codec = np.zeros_like(patches), delta.Codec()
codec.decode(memoryview(codec.encode(patches, shape)), shape, back)
shape.fill_patches(back, np.moveaxis(np.zeros((1, 28, 3, 56), np.uint8), 2, 3))
print(not back.any())
"""
    assert fresh_python(code).split() == ["True"]
    assert all(path.stat().st_size <= 2048 for path in tmp_path.rglob("*") if path.is_file())
