"""`--pixel-codec delta`: gradient residuals of color differences, compressed with zstd.

About as small as lossless WebP on photographs and several times as fast to decode, since it is undone into the patches
directly. The layout is in docs/format.md; four lines of numpy undo it. Compiled by numba; where numba is absent, a
patch is narrower than 8 pixels or colors lie last, numpy does the same at a quarter of the speed.
"""

import sys
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from omniprep.shards.codecs.base import PictureCodec
from omniprep.shards.codecs.picture import PictureShape

if TYPE_CHECKING:
    import zstandard


KERNELS_AFTER = 128
"""Pictures of a process that numpy does before numba is imported. Loading the compiled code takes 0.6 s, compiling it
2 s once on a machine; it saves 4 ms a picture of 1,400 patches. So small builds and short looks never wait."""

_done_by_numpy = 0


class Codec(PictureCodec):
    """Planes (R-G, G, B-G) mod 256, gradient residuals, one zstd frame a picture."""

    name: ClassVar[str] = "delta"
    speed: ClassVar[float] = 1.0e9
    share: ClassVar[float] = 0.4
    longest_side: ClassVar[int] = 1 << 24

    def library(self) -> str:
        """The version of zstd that compresses."""
        import zstandard

        return "zstd " + ".".join(map(str, zstandard.ZSTD_VERSION))

    def encode(self, patches: np.ndarray, shape: PictureShape) -> bytes:
        """Residuals, then zstd."""
        residuals = np.empty(shape.size, np.uint8)
        kernels = _kernels(shape)
        if kernels is None:
            residuals[...] = residuals_of_pixels(shape.pixels(patches)).reshape(-1)
        else:
            kernels.residuals_of_patches(patches.reshape(-1), *_numbers(shape), residuals)
        compressed: bytes = _compressor().compress(residuals.data)
        return compressed

    def decode(self, blob: memoryview, shape: PictureShape, patches: np.ndarray) -> None:
        """zstd, then two prefix sums mod 256 into the patches."""
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
            kernels.undo_into_patches(residuals, *_numbers(shape), patches.reshape(-1))


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


def _numbers(shape: PictureShape) -> tuple[int, int, int, int, int, int]:
    """The arguments of the kernels that say how a picture is cut."""
    return shape.frames, shape.height, shape.width, shape.patch_height, shape.patch_width, shape.merge


def _kernels(shape: PictureShape) -> ModuleType | None:
    """The compiled arithmetic for a picture; None where numpy is to do it: `KERNELS_AFTER`, or numba cannot be used."""
    global _done_by_numpy
    if shape.patch_width < 8 or shape.channels_last:  # the kernels copy words of 8 bytes
        return None
    if _done_by_numpy < KERNELS_AFTER and "omniprep.shards.codecs.delta_kernels" not in sys.modules:
        _done_by_numpy += 1
        return None
    try:
        from omniprep.shards.codecs import delta_kernels
    except (ImportError, RuntimeError, OSError):  # RuntimeError: numba has no folder for compiled code
        return None
    return delta_kernels


@lru_cache(maxsize=1)
def _compressor() -> "zstandard.ZstdCompressor":
    import zstandard

    # Residuals have short matches at best: min_match 7 and a hash of 64 entries keep zstd from looking for them, which
    # compresses twice as fast, decompresses faster and costs under 1 % of the size (tried on photographs).
    parameters = zstandard.ZstdCompressionParameters.from_level(1, min_match=7, hash_log=6)
    return zstandard.ZstdCompressor(compression_params=parameters)
