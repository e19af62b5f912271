"""Images with Pillow: size from the header, RGB pixels as ms-swift's load_image gives them.

The reference opens the file and converts to RGB before resizing (swift/llm/template/vision_utils.py load_image):
transparency is dropped, EXIF orientation ignored, animated files give their first frame. `exif="apply"` and
`alpha="white"` depart from that.

Pillow reads 40 formats. Some start a program on what the file says (EPS: Ghostscript; WMF and EMF: a drawing engine),
some have no signature and take any bytes (TGA, PCD, IM), and few people look for faults in the rest. Files are opened
with the formats of `FORMATS` alone (docs/security.md).
"""

import warnings
from typing import Any, BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from omniprep.errors import Reject, RejectCode
from omniprep.media.guard import library_faults
from omniprep.media.recognise import HEAD_BYTES, unreadable
from omniprep.media.source import Source

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PPM", "PNG", "AVIF", "ICO", "JPEG2000", "TIFF", "WEBP")
"""In the order in which Pillow tries them by itself, so that a file that two plugins take is read by the same one. JPEG
includes MPO (several JPEGs in one file)."""
# Pillow refuses twice its MAX_IMAGE_PIXELS; the same bound here, told from the header.
MAX_PIXELS = 178_956_970
# Plugins such as WebP's hold the whole file in memory; a picture of MAX_PIXELS is 0.5 GiB uncompressed.
MAX_FILE_BYTES = 2 << 30
_ORIENTATION = 0x0112
_TILE_WIDTH, _TILE_LENGTH = 322, 323


def _open(file: BinaryIO, source: Source) -> Image.Image:
    """The image of an open file, not decoded yet: of a format that we name, and not too large.

    Raises:
        Reject: bad_media, image_too_large, media_too_large.
    """
    size = file.seek(0, 2)
    if size > MAX_FILE_BYTES:
        raise Reject(
            RejectCode.MEDIA_TOO_LARGE, f"{source.label}: {size:,} bytes, the limit of an image is {MAX_FILE_BYTES:,}"
        )
    file.seek(0)
    head = file.read(HEAD_BYTES)
    _check_canvas(head, source)
    file.seek(0)
    try:
        with warnings.catch_warnings(), library_faults(source.label, RejectCode.BAD_MEDIA):
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=FORMATS)
    except Reject as reject:
        cause = reject.__cause__
        if isinstance(cause, Image.DecompressionBombError):
            raise Reject(RejectCode.IMAGE_TOO_LARGE, reject.message) from cause
        detail = "" if isinstance(cause, UnidentifiedImageError) else reject.message.removeprefix(f"{source.label}: ")
        raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: {unreadable(head, 'an image', detail)}") from cause
    width, height = image.size
    if width < 1 or height < 1:
        raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: the image has no pixels")
    _check_pixels(width, height, source)
    if image.format == "TIFF":  # libtiff allocates a whole tile, which may be larger than the image
        with library_faults(source.label, RejectCode.BAD_MEDIA):
            tile = [image.tag_v2.get(tag) for tag in (_TILE_WIDTH, _TILE_LENGTH)]  # type: ignore[attr-defined]
        if all(isinstance(side, int) for side in tile):
            _check_pixels(tile[0], tile[1], source)
    return image


def _check_pixels(width: int, height: int, source: Source) -> None:
    if width * height > MAX_PIXELS:
        raise Reject(RejectCode.IMAGE_TOO_LARGE, f"{source.label}: {width}x{height} pixels, more than {MAX_PIXELS:,}")


def _check_canvas(head: bytes, source: Source) -> None:
    """Look at the canvas of an animated WebP: libwebp allocates it twice before Pillow can tell its size."""
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) >= 30:
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
        _check_pixels(width, height, source)


def probe_image(source: Source, *, exif: str = "ignore") -> tuple[int, int]:
    """(width, height) of the image as it will be decoded, from its header.

    Raises:
        Reject: bad_media, media_not_found, image_too_large.
    """
    with source.open() as file, _open(file, source) as image:
        width, height = image.size
        if exif == "apply" and _orientation(image) >= 5:
            return height, width
        return width, height


def _orientation(image: Image.Image) -> int:
    try:
        with library_faults("EXIF", RejectCode.BAD_MEDIA):
            return int(image.getexif().get(_ORIENTATION, 1))
    except (Reject, ValueError, TypeError):
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
    with source.open() as file, _open(file, source) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with library_faults(source.label, RejectCode.DECODE_ERROR):
                image.load()
                return _as_rgb(image, exif, alpha)
        except Reject as reject:
            if isinstance(reject.__cause__, Image.DecompressionBombError):
                raise Reject(RejectCode.IMAGE_TOO_LARGE, reject.message) from reject.__cause__
            raise


def _as_rgb(image: Image.Image, exif: str, alpha: str) -> Image.Image:
    picture: Image.Image = image
    if exif == "apply" and _orientation(image) != 1:
        picture = ImageOps.exif_transpose(image)
    if alpha == "white" and (picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info):
        return _on_white(picture)
    if alpha == "frames" and picture.mode == "RGBA":
        return _on_white(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    rgba: Any = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white
