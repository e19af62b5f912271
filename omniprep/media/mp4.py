"""Rejects MP4 and QuickTime files that promise more samples than can be in them, before FFmpeg builds its index.

A track may give one size for all samples (`stsz`, `trun`), so a file of 4 KB can promise 2 billion samples. FFmpeg, in
PyAV and in decord, fills an index of 24 bytes a sample before it reads the first one (3 GiB for 50 million). No sample
is smaller than a byte, so a count far above the file's size is false.

Other containers pass unread: taken for boxes, a Matroska file or an AVI is one box as large as the file.
"""

import re
import struct
from typing import BinaryIO

from omniprep.errors import Reject, RejectCode

_MAX_BOXES = 200_000
"""Most top-level boxes; a fragmented file has two for each fragment, which is about a second."""
_MAX_TABLE_BYTES = 256 << 20
"""Most bytes in boxes other than media data and unused room; an hour of video has about one MiB."""
_UNUSED = (b"free", b"skip", b"wide")
"""Boxes that FFmpeg passes over; some hide a header, so they are searched, but they fill no memory."""
_SAMPLE_COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4}
"""Boxes that hold a number of samples, and how far behind the name: version, flags and, in two, the common size."""
_HARMLESS_SAMPLES = 10_000_000
"""Samples whose index (240 MB) fits a worker's memory; no video that is accepted has more frames."""
_PROBED_BYTES = 1 << 20
"""How far FFmpeg looks into a file to choose a demuxer (PROBE_BUF_MAX)."""
_NAME = re.compile(rb"[A-Za-z0-9 ]{4}|\x82\x82\x7f\x7d")
"""Names of boxes by which FFmpeg takes a file for an MP4; one of them is no word (mov_probe)."""
_CHUNK_BYTES = 1 << 20
"""How much of a box is in memory at once."""
_OVERLAP_BYTES = 16
"""A name, and all up to its number of samples, that lie across two chunks."""


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
        if offset == 0 and not _NAME.fullmatch(name) and not _may_be_mp4(file):
            return
        start = 8
        if length == 1 and len(head) == 16:
            length, start = struct.unpack(">Q", head[8:])[0], 16
        elif length == 0:
            length = size - offset
        if length < start:
            return
        if name != b"mdat":  # the only box whose content FFmpeg does not look into
            body_size = min(length, size - offset) - start
            table_bytes += 0 if name in _UNUSED else body_size
            if table_bytes > _MAX_TABLE_BYTES:
                raise Reject(
                    RejectCode.BAD_MEDIA, f"{label}: more than {_MAX_TABLE_BYTES >> 20} MiB of tables and no media"
                )
            file.seek(offset + start)
            _check_box(file, body_size, max_samples, size, label)
        offset += length
    raise Reject(RejectCode.BAD_MEDIA, f"{label}: an MP4 of more than {_MAX_BOXES:,} parts")


def _may_be_mp4(file: BinaryIO) -> bool:
    """Whether FFmpeg may choose its demuxer of MP4: where it comes upon a name of a box, from size to size."""
    file.seek(0)
    head, offset = file.read(_PROBED_BYTES), 0
    if head.startswith(b"ID3"):  # which FFmpeg takes off first
        return True
    while offset + 8 <= len(head):
        length, name = struct.unpack_from(">I4s", head, offset)
        smallest = 8
        if length == 1 and offset + 16 <= len(head):
            length, smallest = struct.unpack_from(">Q", head, offset + 8)[0], 16
        elif length == 0:
            length = len(head) - offset
        if length < smallest:
            offset += 4
            continue
        if _NAME.fullmatch(name):
            return True
        offset += length
    return False


def _check_box(file: BinaryIO, body_size: int, max_samples: int, size: int, label: str) -> None:
    """Check the next `body_size` bytes, the content of a box, piece by piece."""
    before, left = b"", body_size
    while left > 0:
        read = file.read(min(_CHUNK_BYTES, left))
        if not read:  # the file became shorter
            return
        if left == body_size and read[4:8] == b"cmov":
            raise Reject(RejectCode.BAD_MEDIA, f"{label}: a QuickTime file whose header is compressed; write it again")
        left -= len(read)
        chunk = before + read
        for count in _sample_counts(chunk):
            if count > max_samples:
                raise Reject(
                    RejectCode.BAD_MEDIA,
                    f"{label}: the header promises {count:,} samples in a file of {size:,} bytes",
                )
        before = chunk[-_OVERLAP_BYTES:]


def _sample_counts(chunk: bytes) -> list[int]:
    """What stands where boxes of `_SAMPLE_COUNTS` have their number of samples, as far as it is in the chunk.

    The names are searched for at any depth: a parser of nested boxes would have to agree with FFmpeg on damaged ones.
    """
    counts = []
    for name, distance in _SAMPLE_COUNTS.items():
        found = chunk.find(name)
        while found >= 0:
            offset = found + len(name) + distance
            if offset + 4 <= len(chunk):
                counts.append(int.from_bytes(chunk[offset : offset + 4], "big"))
            found = chunk.find(name, found + 1)
    return counts
