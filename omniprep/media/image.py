"""Images with Pillow: the size from the header, and RGB pixels as ms-swift's load_image returns them.

The reference opens the file and converts to RGB before resizing (swift/llm/template/vision_utils.py load_image):
transparency is dropped, EXIF orientation ignored, and an animated file stands for its first frame. `exif="apply"` and
`alpha="white"` depart from that.

Pillow reads 40 formats. Some run a program on the file's content (EPS: Ghostscript; WMF and EMF: a drawing engine),
some accept any bytes for lack of a signature (TGA, PCD, IM), and the rare ones are little tested for security. Only
those in `FORMATS` are read (docs/security.md).
"""

import os
import warnings
from functools import cache
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

from omniprep.errors import Reject, RejectCode
from omniprep.media.guard import library_faults
from omniprep.media.recognize import HEAD_BYTES, is_heif, unreadable
from omniprep.media.source import Source

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PPM", "PNG", "AVIF", "ICO", "JPEG2000", "TIFF", "WEBP")
"""In Pillow's own order, so that a file that two plugins accept is read by the same one. JPEG includes MPO."""
HEIF = "HEIF"
"""Read beside `FORMATS` where pillow-heif is installed: phones write it, and Pillow has no decoder of HEVC."""
MAX_PIXELS = 178_956_970
"""Twice Pillow's MAX_IMAGE_PIXELS, from where on Pillow refuses an image; checked on the header."""
MAX_FILE_BYTES = 2 << 30
"""Plugins such as WebP's hold the whole file in memory; an image of MAX_PIXELS is 0.5 GiB uncompressed."""
_ORIENTATION = 0x0112
_TILE_WIDTH, _TILE_LENGTH = 322, 323


def _open(file: BinaryIO, source: Source) -> Image.Image:
    """Open an image without decoding it; rejects bad_media, image_too_large, media_too_large."""
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
            image = Image.open(file, formats=(*FORMATS, HEIF) if is_heif(head) and heif_is_read() else FORMATS)
    except Reject as reject:
        cause = reject.__cause__
        if isinstance(cause, Image.DecompressionBombError):
            raise Reject(RejectCode.IMAGE_TOO_LARGE, reject.message) from cause
        detail = "" if isinstance(cause, UnidentifiedImageError) else reject.message.removeprefix(f"{source.label}: ")
        if is_heif(head) and heif_is_read():
            reason = detail or "its header is damaged"
            message = f"{source.label}: a HEIC/HEIF picture that cannot be read ({reason})"
            raise Reject(RejectCode.BAD_MEDIA, message) from cause
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


@cache
def heif_is_read() -> bool:
    """Whether pillow-heif is installed; then Pillow opens HEIC and HEIF pictures from here on, as it would for the
    reference: turned as the file's own transformations say, and without an EXIF orientation that would turn them again.
    """
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    pillow_heif.options.DECODE_THREADS = 1  # a worker has one core
    return True


def _check_pixels(width: int, height: int, source: Source) -> None:
    if width * height > MAX_PIXELS:
        raise Reject(RejectCode.IMAGE_TOO_LARGE, f"{source.label}: {width}x{height} pixels, more than {MAX_PIXELS:,}")


def _check_canvas(head: bytes, source: Source) -> None:
    """Check the canvas of an animated WebP: libwebp allocates it twice before Pillow knows its size."""
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) >= 30:
        width, height = (int.from_bytes(head[start : start + 3], "little") + 1 for start in (24, 27))
        _check_pixels(width, height, source)


class ImageHeader(NamedTuple):
    """What the header of an image tells."""

    width: int
    """As `decode_image` will return it; height too."""
    height: int
    format: str
    """One of `FORMATS`."""
    file_bytes: int


def read_header(source: Source, *, exif: str = "ignore") -> ImageHeader:
    """The facts of an image, from its header; rejects what `_open` does."""
    with source.open() as file:
        with _open(file, source) as image:
            width, height = image.size
            if exif == "apply" and _orientation(image) >= 5:
                width, height = height, width
        return ImageHeader(width, height, image.format or "", file.seek(0, os.SEEK_END))


def probe_image(source: Source, *, exif: str = "ignore") -> tuple[int, int]:
    """(width, height) of `read_header`."""
    return read_header(source, exif=exif)[:2]


def _orientation(image: Image.Image) -> int:
    try:
        with library_faults("EXIF", RejectCode.BAD_MEDIA):
            return int(image.getexif().get(_ORIENTATION, 1))
    except (Reject, ValueError, TypeError):
        return 1  # as in Pillow's exif_transpose, unreadable EXIF data means no orientation


def decode_image(source: Source, *, exif: str = "ignore", alpha: str = "drop") -> Image.Image:
    """Decode an image to 8-bit RGB; rejects damaged files (decode_error), and what `probe_image` rejects.

    Of `alpha`, "drop" ignores transparency, "white" puts every transparent image on white, and "frames" does so for
    RGBA only, as qwen_omni_utils' to_rgb does for videos given as images.
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
