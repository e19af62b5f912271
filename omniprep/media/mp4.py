"""The number of samples that an MP4 or QuickTime file promises, held against its size before FFmpeg makes its index.

A track's sizes may be written as one number for all samples (`stsz`, `trun`), so a file of 4 KB can promise 2 billion
samples; FFmpeg, in PyAV and in decord, then fills an index of 24 bytes for each before it looks at a single one (3 GiB
for 50 million). No sample is smaller than a byte, so a count far beyond the file's size is a lie.
"""

import re
import struct
from typing import BinaryIO

from omniprep.errors import Reject, RejectCode

_MOST_BOXES = 200_000
"""Top-level boxes looked at; fragmented files have two for each fragment of a second or so."""
_MOST_TABLES = 256 << 20
"""Bytes of the boxes that hold tables; an hour of video has about one MiB."""
_COUNTED = re.compile(rb"(stsz|stz2|trun)", re.DOTALL)
_ALWAYS = 10_000_000
"""Samples whose index (240 MB) a worker can hold; more than any video that is read has frames."""


def check_sample_counts(file: BinaryIO, label: str) -> None:
    """Look at the boxes of a file; one that is no MP4 passes.

    Args:
        file: Anything; its place afterwards is anywhere.
        label: For messages.

    Raises:
        Reject: bad_media.
    """
    size = file.seek(0, 2)
    # Old codecs of QuickTime count PCM samples, up to 8 for each byte; two are common (IMA4).
    most = min(8 * size, max(2 * size, _ALWAYS))
    at, read = 0, 0
    for _ in range(_MOST_BOXES):
        if at >= size:  # a box that says it is longer than the file, by up to 2**64 bytes, which no seek takes
            return
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return
        length, name = struct.unpack(">I4s", head[:8])
        start = 8
        if length == 1 and len(head) == 16:
            length, start = struct.unpack(">Q", head[8:])[0], 16
        elif length == 0:
            length = size - at
        if length < start:
            return
        if name != b"mdat":  # the only box whose content FFmpeg does not look into
            body_size = min(length, size - at) - start
            read += body_size
            if read > _MOST_TABLES:
                raise Reject(
                    RejectCode.BAD_MEDIA, f"{label}: more than {_MOST_TABLES >> 20} MiB of tables and no media"
                )
            file.seek(at + start)
            _check_box(file.read(body_size), most, size, label)
        at += length
    raise Reject(RejectCode.BAD_MEDIA, f"{label}: an MP4 of more than {_MOST_BOXES:,} parts")


def _check_box(body: bytes, most: int, size: int, label: str) -> None:
    if body[4:8] == b"cmov":
        raise Reject(RejectCode.BAD_MEDIA, f"{label}: a QuickTime file whose header is compressed; write it again")
    for found in _COUNTED.finditer(body):
        at = found.end() + (8 if found[0] in (b"stsz", b"stz2") else 4)  # version, flags and the common size
        if at + 4 > len(body):
            continue
        count = struct.unpack_from(">I", body, at)[0]
        if count > most:
            raise Reject(
                RejectCode.BAD_MEDIA, f"{label}: the header promises {count:,} samples in a file of {size:,} bytes"
            )
