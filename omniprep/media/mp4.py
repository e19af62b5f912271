"""Rejects MP4 and QuickTime files that promise more samples than can be in them, before FFmpeg builds its index.

A track may give one size for all samples (`stsz`, `trun`), so a file of 4 KB can promise 2 billion samples. FFmpeg, in
PyAV and in decord, fills an index of 24 bytes a sample before it reads the first one (3 GiB for 50 million). No sample
is smaller than a byte, so a count far above the file's size is false.
"""

import re
import struct
from typing import BinaryIO

from omniprep.errors import Reject, RejectCode

_MAX_BOXES = 200_000
"""Most top-level boxes; a fragmented file has two for each fragment, which is about a second."""
_MAX_TABLE_BYTES = 256 << 20
"""Most bytes in boxes other than media data; an hour of video has about one MiB."""
_SAMPLE_COUNTS = re.compile(rb"(stsz|stz2|trun)", re.DOTALL)
"""Boxes that hold a number of samples."""
_HARMLESS_SAMPLES = 10_000_000
"""Samples whose index (240 MB) fits a worker's memory; no video that is accepted has more frames."""


def check_sample_counts(file: BinaryIO, label: str) -> None:
    """Reject an MP4 with impossible boxes (bad_media); other files pass. The position of `file` changes."""
    size = file.seek(0, 2)
    # Old QuickTime codecs count PCM samples, up to 8 a byte; 2 are common (IMA4).
    max_samples = min(8 * size, max(2 * size, _HARMLESS_SAMPLES))
    offset, table_bytes = 0, 0
    for _ in range(_MAX_BOXES):
        if offset >= size:  # the box before claims to go on beyond the file; seek would fail from 2**63 on
            return
        file.seek(offset)
        head = file.read(16)
        if len(head) < 8:
            return
        length, name = struct.unpack(">I4s", head[:8])
        start = 8
        if length == 1 and len(head) == 16:
            length, start = struct.unpack(">Q", head[8:])[0], 16
        elif length == 0:
            length = size - offset
        if length < start:
            return
        if name != b"mdat":  # the only box whose content FFmpeg does not look into
            body_size = min(length, size - offset) - start
            table_bytes += body_size
            if table_bytes > _MAX_TABLE_BYTES:
                raise Reject(
                    RejectCode.BAD_MEDIA, f"{label}: more than {_MAX_TABLE_BYTES >> 20} MiB of tables and no media"
                )
            file.seek(offset + start)
            _check_box(file.read(body_size), max_samples, size, label)
        offset += length
    raise Reject(RejectCode.BAD_MEDIA, f"{label}: an MP4 of more than {_MAX_BOXES:,} parts")


def _check_box(body: bytes, max_samples: int, size: int, label: str) -> None:
    if body[4:8] == b"cmov":
        raise Reject(RejectCode.BAD_MEDIA, f"{label}: a QuickTime file whose header is compressed; write it again")
    # The names are searched for at any depth: a parser of nested boxes would have to agree with FFmpeg on damaged ones.
    for match in _SAMPLE_COUNTS.finditer(body):
        offset = match.end() + (8 if match[0] in (b"stsz", b"stz2") else 4)  # behind version, flags and the common size
        if offset + 4 > len(body):
            continue
        count = struct.unpack_from(">I", body, offset)[0]
        if count > max_samples:
            raise Reject(
                RejectCode.BAD_MEDIA, f"{label}: the header promises {count:,} samples in a file of {size:,} bytes"
            )
