"""`--pixel-codec webp`: lossless WebP by Pillow; as small as delta, a seventh of its speed, readable by any viewer."""

import io
import warnings
from typing import ClassVar

import numpy as np

from omniprep.errors import UsageError
from omniprep.media.guard import raised_by_library, said
from omniprep.shards.codecs.base import PictureCodec
from omniprep.shards.codecs.picture import PictureShape


class Codec(PictureCodec):
    """Frames of a picture below each other, as one lossless WebP."""

    name: ClassVar[str] = "webp"
    speed: ClassVar[float] = 0.2e9
    size_of_delta: ClassVar[float] = 1.06
    longest_side: ClassVar[int] = 16_383
    format: ClassVar[str] = "WEBP"

    def library(self) -> str:
        """Version of the libwebp that Pillow was built with."""
        from PIL import features

        if not features.check("webp"):
            raise UsageError("--pixel-codec webp: this Pillow was built without WebP")
        return f"libwebp {features.version('webp')}"

    def encode(self, patches: np.ndarray, shape: PictureShape) -> bytes:
        """Encode at the fastest settings: better ones take five times as long and save a tenth of the bytes."""
        return self._save(patches, shape, lossless=True, quality=20, method=0, exact=True)

    def _save(self, patches: np.ndarray, shape: PictureShape, **options: object) -> bytes:
        from PIL import Image

        target = io.BytesIO()
        tall = shape.pixels(patches).reshape(shape.frames * shape.height, shape.width, 3)
        Image.fromarray(tall).save(target, format=self.format, **options)
        return target.getvalue()

    def header_size(self, head: bytes) -> tuple[int, int] | None:
        """(width, height) in the first 64 bytes of a picture as `encode` writes it; None where it is none.

        Source: RFC 9649. A lossless picture alone is VP8L, one behind a canvas of metadata VP8X.
        """
        if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
            return None
        if head[12:16] == b"VP8L" and head[20] == 0x2F:
            packed = int.from_bytes(head[21:25], "little")
            return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
        if head[12:16] == b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        return None

    def decode(self, blob: memoryview, shape: PictureShape, patches: np.ndarray) -> None:
        """Decode by Pillow, limited to this one format.

        A dataset may come from anybody. Pillow would take a blob for any of the 40 formats that it knows, of which EPS
        starts Ghostscript: only the column's own format is tried, and its header must have the expected size, since
        libwebp and libjxl allocate what the header says.
        """
        from PIL import Image

        size = (shape.width, shape.frames * shape.height)
        if (stated := self.header_size(bytes(blob[:64]))) != size:
            raise ValueError(f"no {self.name} picture of {size[0]}x{size[1]} pixels (its header says {stated})")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of large pictures; the size has been compared
                with Image.open(io.BytesIO(blob), formats=[self.format]) as image:
                    if image.size != size:
                        raise ValueError(f"a picture of {image.size} pixels inside")
                    tall = np.asarray(image.convert("RGB") if image.mode != "RGB" else image)
        except Exception as error:  # Pillow's plugins raise almost anything for a damaged file
            if not raised_by_library(error):
                raise
            raise ValueError(said(error)) from error
        shape.fill_patches(patches, tall.reshape(shape.frames, shape.height, shape.width, 3))
