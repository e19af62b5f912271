"""`--pixel-codec jxl`: lossless JPEG XL by pillow-jxl-plugin (omniprep[jxl]), at its fastest setting."""

from typing import ClassVar

import numpy as np

from omniprep.errors import OmniprepError, UsageError
from omniprep.shards.codecs import webp
from omniprep.shards.codecs.picture import PictureShape


class Codec(webp.Codec):
    """Frames of a picture below each other, as one lossless JPEG XL."""

    name: ClassVar[str] = "jxl"
    speed: ClassVar[float] = 0.13e9
    size_of_delta: ClassVar[float] = 1.04
    longest_side: ClassVar[int] = 1 << 20
    format: ClassVar[str] = "JXL"

    def library(self) -> str:
        """Version of the plug-in, which carries its libjxl."""
        _load_plugin(UsageError)
        from importlib.metadata import version

        return f"pillow-jxl-plugin {version('pillow-jxl-plugin')}"

    def encode(self, patches: np.ndarray, shape: PictureShape) -> bytes:
        """Encode at effort 1 of 9: more effort takes many times as long and saves a few percent."""
        _load_plugin(OmniprepError)
        return self._save(patches, shape, lossless=True, effort=1, num_threads=1)

    def header_size(self, head: bytes) -> tuple[int, int] | None:
        """(width, height) in the first bytes of a codestream, alone or in a container.

        Source: ISO 18181-1. In a container the codestream follows the boxes of the signature and the file type.
        """
        start = 0 if head[:2] == b"\xff\x0a" else head.find(b"jxlc\xff\x0a") + 4
        if head[start : start + 2] != b"\xff\x0a":
            return None
        bits = _Bits(int.from_bytes(head[start + 2 : start + 14], "little"))
        small = bits.take(1)
        height = 8 * (bits.take(5) + 1) if small else 1 + bits.take((9, 13, 18, 30)[bits.take(2)])
        ratio = bits.take(3)
        if ratio:
            numerator, denominator = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
            return height * numerator // denominator, height
        return (8 * (bits.take(5) + 1) if small else 1 + bits.take((9, 13, 18, 30)[bits.take(2)])), height

    def decode(self, blob: memoryview, shape: PictureShape, patches: np.ndarray) -> None:
        """Decode by Pillow, limited to this one format."""
        _load_plugin(OmniprepError)
        super().decode(blob, shape, patches)


class _Bits:
    """Bits of a number, the lowest first."""

    def __init__(self, value: int) -> None:
        self._value = value

    def take(self, count: int) -> int:
        """The next `count` bits, as a number."""
        taken, self._value = self._value & (1 << count) - 1, self._value >> count
        return taken


def _load_plugin(error: type[OmniprepError]) -> None:
    try:
        import pillow_jxl  # noqa: F401
    except ImportError as cause:
        raise error("pixels in JPEG XL need pillow-jxl-plugin: pip install 'omniprep[jxl]'") from cause
