"""Images as a processor's own loader reads them from a file.

Processors of transformers 5 with torchvision's backend read files with torchvision (or torchcodec, where that is
installed), others with Pillow (`load_image`). Both apply the EXIF orientation, drop transparency and give RGB; Pillow
and torchvision give the same bits (tests/test_hf_variants.py), so Pillow reads for both, but for what follows.
"""

import base64
import sys
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from omniprep.errors import Reject, RejectCode
from omniprep.families.hf.examples import picture
from omniprep.media.guard import library_faults
from omniprep.media.image import decode_image, probe_image
from omniprep.media.source import Source

_GIF = b"GIF8"
_PNG = b"\x89PNG\r\n\x1a\n"
_BIT_DEPTH = 24
"""Where a PNG's header says how many bits a channel has."""


def load_as_processor(processor: Any, source: Source) -> Any:
    """An image as a PIL image in RGB; rejects bad_media, image_too_large, decode_error."""
    part = processor.image_processor
    if not _reads_tensors(part):
        return decode_image(source, exif="apply")
    with source.open() as file:
        head = file.read(_BIT_DEPTH + 1)
    if head.startswith(_PNG) and head[_BIT_DEPTH:] == b"\x10":
        raise Reject(
            RejectCode.BAD_MEDIA,
            f"{source.label}: 16 bits a channel, which {type(part).__name__} takes for 8 and makes noise of; save it "
            "with 8 bits",
        )
    if wrong := _read_otherwise(source, head):
        raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: {wrong.format(type(part).__name__)}")
    if not _has_torchcodec():
        image = decode_image(source, exif="apply")
        # Pillow notes which color was transparent; processors that look for it would make it white, but see no note in
        # the tensors that they read.
        image.info.pop("transparency", None)
        return image
    probe_image(source, exif="apply")  # formats and sizes that are read at all
    with source.open() as file:
        text = base64.b64encode(file.read()).decode()
    try:
        pixels = part.fetch_images(f"data:image/any;base64,{text}")
    except Exception as error:  # a decoder may raise anything for a damaged file
        reason = " ".join(str(error).split())[:300]
        raise Reject(RejectCode.DECODE_ERROR, f"{source.label}: {reason}") from error
    return picture(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def _reads_tensors(part: Any) -> bool:
    """Whether the image processor reads files as tensors (transformers 5, torchvision's backend)."""
    return hasattr(sys.modules[type(part).fetch_images.__module__], "load_image_as_tensor")


def _read_otherwise(source: Source, head: bytes) -> str:
    """Why torchvision would read other pixels of a file than Pillow; "" where it reads the same.

    It gives all frames of a GIF, and does not turn a WebP as its EXIF orientation says.
    """
    if head.startswith(_GIF):
        with source.open() as file, library_faults(source.label, RejectCode.DECODE_ERROR):
            if getattr(Image.open(file, formats=("GIF",)), "is_animated", False):
                return "an animation, all frames of which {} takes for one image; save one of them, or give a video"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        with source.open() as file, library_faults(source.label, RejectCode.DECODE_ERROR):
            if Image.open(file, formats=("WEBP",)).getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
                return "a WebP with an EXIF orientation, which {} does not apply; save it upright"
    return ""


def _has_torchcodec() -> bool:
    """Whether transformers decodes images by torchcodec here."""
    from transformers import image_utils

    usable = getattr(image_utils, "is_torchcodec_usable", None)
    recent = getattr(image_utils, "is_torchcodec_greater_or_equal", None)
    return bool(usable and recent and recent("0.16.0") and usable(decode="image"))
