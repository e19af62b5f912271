"""Images with Pillow: size from the header, RGB pixels as ms-swift's load_image gives them.

The reference opens the file and converts to RGB before resizing (swift/llm/template/vision_utils.py load_image):
transparency is dropped, EXIF orientation ignored, animated files give their first frame. `exif="apply"` and
`alpha="white"` depart from that.
"""

import warnings
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from omniprep.errors import Reject, RejectCode
from omniprep.media.fetch import Source

# Pillow refuses twice its MAX_IMAGE_PIXELS; the same bound here, told from the header.
MAX_PIXELS = 178_956_970
_ORIENTATION = 0x0112
# Pillow would start Ghostscript, or a drawing engine of the system, on what the file says.
_PROGRAMS = ("EPS", "WMF", "EMF")
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    AttributeError,
)


def _open(source: Source) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(source.open() if source.path is None else source.path)
    except FileNotFoundError as error:
        raise Reject(RejectCode.MEDIA_NOT_FOUND, f"{source.label}: no such file") from error
    except Image.DecompressionBombError as error:
        raise Reject(RejectCode.IMAGE_TOO_LARGE, f"{source.label}: {error}") from error
    except UnidentifiedImageError as error:
        raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: not an image that can be read") from error
    except _BROKEN as error:
        raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: {type(error).__name__}: {error}") from error
    if image.format in _PROGRAMS:
        raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: {image.format} is a program to run, no picture")
    width, height = image.size
    if width < 1 or height < 1:
        raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: the image has no pixels")
    if width * height > MAX_PIXELS:
        raise Reject(RejectCode.IMAGE_TOO_LARGE, f"{source.label}: {width}x{height} pixels, more than {MAX_PIXELS}")
    return image


def probe_image(source: Source, *, exif: str = "ignore") -> tuple[int, int]:
    """(width, height) of the image as it will be decoded, from its header.

    Raises:
        Reject: bad_media, media_not_found, image_too_large.
    """
    with _open(source) as image:
        width, height = image.size
        if exif == "apply" and _orientation(image) >= 5:
            return height, width
        return width, height


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _BROKEN:
        return 1  # unreadable EXIF data is no orientation, as for Pillow's own exif_transpose


def decode_image(source: Source, *, exif: str = "ignore", alpha: str = "drop") -> Image.Image:
    """The image, 8-bit RGB.

    Args:
        source: Where it is.
        exif: "apply" turns it as its EXIF orientation says.
        alpha: "drop"; "white" lays every kind of transparency on white; "frames" does so for RGBA alone, as
            qwen_omni_utils' to_rgb does for videos given as images.

    Raises:
        Reject: decode_error for damaged files, and what `probe_image` raises.
    """
    with _open(source) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()
            picture: Image.Image = image
            if exif == "apply" and _orientation(image) != 1:
                picture = ImageOps.exif_transpose(image)
            if alpha == "white" and (picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info):
                return _on_white(picture)
            if alpha == "frames" and picture.mode == "RGBA":
                return _on_white(picture)
            return picture if picture.mode == "RGB" else picture.convert("RGB")
        except Image.DecompressionBombError as error:
            raise Reject(RejectCode.IMAGE_TOO_LARGE, f"{source.label}: {error}") from error
        except _BROKEN as error:
            raise Reject(RejectCode.DECODE_ERROR, f"{source.label}: {type(error).__name__}: {error}") from error


def _on_white(image: Image.Image) -> Image.Image:
    rgba: Any = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white
