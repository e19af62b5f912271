"""What a pixel codec is: a class with a name, found by `codec_of`; one file each in this folder."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from omniprep.shards.codecs.picture import PictureShape

__all__ = ["PixelCodec"]


class PixelCodec(ABC):
    """A lossless compression of one picture at a time.

    The bytes depend on the version of the library that wrote them; `library` is recorded beside the codec's name in the
    shard's schema, so a dataset says what made it. Reading needs any version of the library.
    """

    name: ClassVar[str]
    """As `--pixel-codec` and the column's params have it."""
    share: ClassVar[float]
    """Stored bytes by bytes of the patches, for photographs; where shards are cut depends on it. Drawings and screens
    take a quarter of that."""
    longest_side: ClassVar[int]
    """Pixels; a picture with a longer side is stored uncompressed."""

    @abstractmethod
    def library(self) -> str:
        """Name and version of the library that compresses.

        Raises:
            UsageError: It is not installed; the message has the pip command.
        """

    @abstractmethod
    def encode(self, patches: np.ndarray, shape: PictureShape) -> bytes:
        """Compress a picture.

        Args:
            patches: uint8 (patches, unit), contiguous.
            shape: Of the picture.
        """

    @abstractmethod
    def decode(self, blob: memoryview, shape: PictureShape, patches: np.ndarray) -> None:
        """Decompress a picture into its patches.

        Args:
            blob: What `encode` gave; of any content where a file is damaged or hostile.
            shape: Of the picture, from the shard's grids.
            patches: uint8 (patches, unit), contiguous; written in place.

        Raises:
            ValueError or OSError: The blob is not such a picture, or one of another size.
        """
