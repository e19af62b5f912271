"""Names what a file is by its first bytes, so that a message can say "a Git LFS pointer" instead of "not an image".

Used for messages only: whether a file can be read is decided by its decoder.
"""

import re

HEAD_BYTES = 512
"""How many bytes `describe` needs."""
_CONVERT = "convert it to JPEG or PNG"
_PICTURES = f" (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM and ICO can); {_CONVERT}"
_MARKS: tuple[tuple[bytes, str], ...] = (
    (
        rb"version https://git-lfs",
        "a Git LFS pointer instead of the file; run `git lfs pull` where the data was cloned",
    ),
    (rb"\x89PNG\r\n", "a PNG picture"),
    (rb"\xff\xd8\xff", "a JPEG picture"),
    (rb"GIF8[79]a", "a GIF picture"),
    (rb"RIFF....WEBP", "a WebP picture"),
    (rb"RIFF....AVI ", "an AVI video"),
    (rb"(RIFF|RF64|RIFX)....WAVE", "a WAV sound"),
    (rb"FORM....AIF[FC]", "an AIFF sound"),
    (
        rb"....ftyp(heic|heix|heim|heis|hevc|hevx|hevm|hevs|mif1|msf1)",
        f"a HEIC/HEIF picture, which pillow-heif reads: pip install pillow-heif, or {_CONVERT}",
    ),
    (rb"....ftyp(avif|avis)", "an AVIF picture"),
    (rb"....ftyp(M4A|M4B|M4P)", "an M4A sound"),
    (rb"....(ftyp|moov|mdat|wide|free|skip)", "an MP4 or QuickTime file"),
    (rb"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (rb"FLV\x01", "a Flash video"),
    (rb"\x00\x00\x01[\xba\xb3]", "an MPEG video"),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media (ASF) file"),
    (rb"fLaC", "a FLAC sound"),
    (rb"OggS", "an Ogg file"),
    (rb"ID3[\x02-\x04]", "a file with an ID3 tag, as MP3 has"),
    (rb"\xff[\xe2-\xef\xf2-\xff]", "an MP3 or AAC sound"),
    (rb"#!AMR", "an AMR sound"),
    (rb"caff\x00\x01", "a CAF sound"),
    (rb"(II\*\x00|MM\x00\*)", "a TIFF picture (or a camera's raw picture)"),
    (rb"BM....\x00\x00\x00\x00", "a BMP picture"),
    (rb"(\xff\x0a|\x00\x00\x00\x0cJXL \r\n)", f"a JPEG XL picture, which is not read here; {_CONVERT}"),
    (rb"\x00\x00\x00\x0cjP  \r\n|\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (rb"8BPS", f"a Photoshop document, which is not read here; {_CONVERT}"),
    (rb"\xd7\xcd\xc6\x9a|\x01\x00\x00\x00.{36} EMF", f"a WMF or EMF drawing, which is not read here; {_CONVERT}"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", f"a PostScript program, which is never run; {_CONVERT}"),
    (rb"%PDF-", "a PDF document; render its pages to JPEG or PNG"),
    (rb"\x93NUMPY", "a NumPy array; save it as a picture or a sound"),
    (rb"PK\x03\x04", "a ZIP archive (or an office document); unpack it"),
    (rb"\x1f\x8b", "a gzip file; unpack it"),
    (rb"\x28\xb5\x2f\xfd", "a zstd file; unpack it"),
    (rb"BZh[1-9]", "a bzip2 file; unpack it"),
    (rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07", "a 7z or RAR archive; unpack it"),
    (rb"\x7fELF|MZ", "a program"),
    (rb"\x80[\x02-\x05].{0,2}[\x8a\x95c}(\]]", "a Python pickle, which is never read"),
    (rb"#EXTM3U|ffconcat|\[playlist\]", "a playlist, which names other files; give the file itself"),
)
_PATTERNS = tuple((re.compile(pattern, re.DOTALL), text) for pattern, text in _MARKS)
_DOWNLOAD = "an error or login page was probably saved in place of the file; fetch it again"
_COMMENTS = rb"(<!--.*?-->\s*)*"
_TEXT_MARKS: tuple[tuple[bytes, str], ...] = (
    (rb"(<\?xml[^>]*>\s*)?" + _COMMENTS + rb"<(!doctype\s+)?svg\b", f"an SVG drawing; {_CONVERT}"),
    (_COMMENTS + rb"<(!doctype\s+html|html|head|body|script|title|meta)\b", f"an HTML page: {_DOWNLOAD}"),
    (rb"<\?xml|<[a-z]+[ >]", f"an XML text: {_DOWNLOAD}"),
    (rb"[\[{]\s*[\"{\[\]}]", f"a JSON text: {_DOWNLOAD}"),
)
_TEXT_PATTERNS = tuple((re.compile(pattern, re.DOTALL | re.IGNORECASE), text) for pattern, text in _TEXT_MARKS)
_SOUND_OR_VIDEO = ("Matroska", "QuickTime", "Ogg", "ASF", "ID3")
"""Containers of sound, of video, or of both."""
_PRINTABLE = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+")


def is_heif(head: bytes) -> bool:
    """Whether a file with these first bytes is a HEIC or HEIF picture."""
    return (describe(head) or "").startswith("a HEIC/HEIF picture")


def describe(head: bytes) -> str | None:
    """What a file with these first bytes is and what to do about it; None where it is not recognized."""
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "nothing but zero bytes; the copy or download broke off"
    for pattern, description in _PATTERNS:
        if pattern.match(head):
            return description
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, description in _TEXT_PATTERNS:
        if pattern.match(text):
            return description
    return "a text file" if _is_text(head) else None


def _is_text(head: bytes) -> bool:
    if not _PRINTABLE.fullmatch(head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3  # a letter cut in two by the end of the head
    return True


def unreadable(head: bytes, kind: str, detail: str = "") -> str:
    """The message for a file that cannot be read as the kind of media that the row names it for."""
    description, reason = describe(head), f" ({detail})" if detail else ""
    if description is None:
        return f"not {kind} that can be read{reason}" + (_PICTURES if kind == "an image" and not reason else "")
    if ";" in description or ":" in description or "program" in description or "pickle" in description:
        return description  # which already says what to do about it
    expected = {
        "an image": ("picture",),
        "audio": ("sound", *_SOUND_OR_VIDEO),
        "a video": ("video", "GIF", *_SOUND_OR_VIDEO),
    }
    if any(word in description for word in expected[kind]):  # the right kind of file, but damaged
        return f"{description} that cannot be read{reason}"
    return f"{description}, not {kind}"
