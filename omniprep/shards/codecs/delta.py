"""`--pixel-codec delta`: gradient residuals of color differences, compressed with zstd.

About as small as lossless WebP on photographs and several times as fast to decode, since it is undone into the patches
directly. The layout is in docs/format.md; four lines of numpy undo it. Compiled by numba; where numba is absent, a
patch is narrower than 8 pixels or colors lie last, numpy does the same at a quarter of the speed.
"""

import sys
import threading
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from omniprep.errors import UsageError
from omniprep.media.compiled import CompiledElsewhere, answer_of_compiler, call_compiled
from omniprep.shards.codecs.base import PictureCodec
from omniprep.shards.codecs.picture import PictureShape, load_kernels

KERNELS_AFTER = 128
"""Pictures of a process that numpy does before numba is thought of. Loading the compiled code takes 0.6 s, compiling it
2 s once on a machine, which another process does meanwhile; it saves 4 ms a picture of 1,400 patches. So small builds
and short looks never wait."""

_COMPILED = CompiledElsewhere(
    "omniprep.shards.codecs.delta:compile_kernels",
    *(Path(__file__).with_name(name) for name in ("delta_kernels.py", "vectors.py")),
)
_done_by_numpy = 0


class Codec(PictureCodec):
    """Planes (R-G, G, B-G) mod 256, gradient residuals, one zstd frame a picture."""

    name: ClassVar[str] = "delta"
    speed: ClassVar[float] = 1.3e9
    size_of_delta: ClassVar[float] = 1.0
    longest_side: ClassVar[int] = 1 << 24

    def library(self) -> str:
        """The version of zstd that compresses."""
        return f"zstd {zstd_module().zstd_version}"

    def encode(self, patches: np.ndarray, shape: PictureShape) -> bytes:
        """Residuals, then zstd."""
        assert patches.dtype == np.uint8 and patches.size == shape.size, (patches.dtype, patches.shape, shape)
        residuals = np.empty(shape.size, np.uint8)
        kernels = _kernels(shape)
        if kernels is None:
            residuals[...] = residuals_of_pixels(shape.pixels(patches)).reshape(-1)
        else:
            call_compiled(kernels.residuals_of_patches, patches.reshape(-1), *shape.cut, residuals)
        compressor = _compressor()
        compressed: bytes = compressor.compress(residuals.data, compressor.FLUSH_FRAME)
        return compressed

    def decode(self, blob: memoryview, shape: PictureShape, patches: np.ndarray) -> None:
        """zstd, then two prefix sums mod 256 into the patches."""
        assert patches.flags.c_contiguous and patches.size == shape.size, (patches.shape, shape)
        # The size comes from the grid, never from the blob: a blob that unpacks to more or to less is refused by zstd.
        buffer = pa.Codec("zstd").decompress(pa.py_buffer(blob), decompressed_size=shape.size)
        residuals = np.frombuffer(buffer, np.uint8)
        if residuals.size != shape.size:
            raise ValueError(f"{residuals.size} bytes of residuals, the picture has {shape.size}")
        kernels = _kernels(shape)
        if kernels is None:
            planes = residuals.reshape(shape.frames, 3, shape.height, shape.width)
            shape.fill_patches(patches, pixels_of_residuals(planes))
        else:
            call_compiled(kernels.undo_into_patches, residuals, *shape.cut, patches.reshape(-1))


def residuals_of_pixels(pixels: np.ndarray) -> np.ndarray:
    """Gradient residuals uint8 (frames, 3, height, width) of pixels uint8 (frames, height, width, 3)."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    planes = np.stack([red - green, green, blue - green], axis=1)
    across = np.diff(planes, axis=3, prepend=np.uint8(0))
    return np.diff(across, axis=2, prepend=np.uint8(0))


def pixels_of_residuals(residuals: np.ndarray) -> np.ndarray:
    """Pixels uint8 (frames, height, width, 3) of residuals uint8 (frames, 3, height, width)."""
    planes = np.cumsum(np.cumsum(residuals, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
    green = planes[:, 1]
    return np.stack([planes[:, 0] + green, green, planes[:, 2] + green], axis=-1)


def _kernels(shape: PictureShape) -> ModuleType | None:
    """The compiled arithmetic for a picture; None where numpy is to do it: `KERNELS_AFTER`, the code is not there yet,
    or numba cannot be used.
    """
    global _done_by_numpy
    if shape.patch_width < 8 or shape.channels_last:  # the kernels copy words of 8 bytes
        return None
    if "omniprep.shards.codecs.delta_kernels" not in sys.modules and (
        _done_by_numpy < KERNELS_AFTER or not _COMPILED.is_ready(_done_by_numpy)
    ):
        _done_by_numpy += 1
        return None
    return load_kernels()


def compile_kernels(_: dict[str, Any]) -> bytes | None:
    """The child of `_COMPILED`: call each function on arrays as they come from buffers and from memory of their own."""
    with _COMPILED.compiling():
        if (kernels := load_kernels()) is None:
            return None
        shape = PictureShape(1, 28, 56, 14, 14, 2)
        values, out = np.zeros(shape.size, np.uint8), np.zeros(shape.size, np.uint8)
        for given in (values, np.frombuffer(values.tobytes(), np.uint8)):
            call_compiled(kernels.residuals_of_patches, given, *shape.cut, out)
            call_compiled(kernels.undo_into_patches, given, *shape.cut, out)
            call_compiled(kernels.cut_into_patches, given, *shape.cut, out)
    return answer_of_compiler()


_LITERAL_COMPRESSION = 1002
"""ZSTD_c_literalCompressionMode of zstd.h, one of its experimental parameters, which Python's modules have no name for;
1 is ZSTD_ps_enable."""

_of_thread = threading.local()


def zstd_module() -> ModuleType:
    """Python 3.14's module, or its backport; UsageError says what to do where it is absent."""
    in_python = sys.version_info >= (3, 14)
    try:
        return import_module("compression.zstd" if in_python else "backports.zstd")
    except ImportError as error:
        advice = (
            "this Python was built without zstd: install one with it" if in_python else "pip install backports.zstd"
        )
        raise UsageError(
            f"--pixel-codec delta compresses with zstd, which cannot be loaded ({error}): {advice}; or choose "
            "--pixel-codec webp"
        ) from error


def _compressor() -> Any:
    """A compressor of this thread, which is used again for each picture."""
    if not hasattr(_of_thread, "compressor"):
        zstd = zstd_module()
        known = zstd.CompressionParameter
        # Residuals of photographs have hardly any matches worth coding, so zstd is kept from looking for them: matches
        # of 7 bytes at least, a hash of 64 entries, and steps of 65 bytes and more where none was found. With steps
        # zstd leaves literals as they are unless it is told to code them. Against level 1 with min_match 7 and hash_log
        # 6 alone (photographs, one core): encoding 1.6 times as fast, decoding 1.5 times, 2 % more bytes. Steps of 16:
        # decoding 1.2 times as fast, no more bytes; of 256: 1.8 times, 5 % more, and screenshots 40 %.
        options = {
            known.compression_level: 1,
            known.min_match: 7,
            known.hash_log: 6,
            known.target_length: 64,
            _LITERAL_COMPRESSION: 1,
        }
        _of_thread.compressor = zstd.ZstdCompressor(options=options)
    return _of_thread.compressor
