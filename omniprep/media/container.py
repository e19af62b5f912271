"""Open files with FFmpeg in a way that can never read another file.

FFmpeg chooses a demuxer by content and by name. A text file called clip.mp4 may list any file of the machine (HLS,
DASH, IMF, concat, SDP, VobSub), and a video called `v%d.png` is an image2 pattern that reads the files beside it. So
the first bytes are checked before FFmpeg sees them, FFmpeg gets an open file instead of a name, and it may use only
the demuxers in `FORMATS` and no protocols.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from omniprep.errors import Reject, RejectCode
from omniprep.media.guard import library_faults
from omniprep.media.mp4 import check_sample_counts
from omniprep.media.recognize import HEAD_BYTES as SNIFFED_BYTES
from omniprep.media.recognize import unreadable
from omniprep.media.source import Source

if TYPE_CHECKING:
    from av.container import InputContainer

HEAD_BYTES = 64 << 10
"""How far into a file the marks of a playlist are searched for."""
FORMATS = (
    "aac", "ac3", "aiff", "amr", "amrnb", "amrwb", "ape", "apng", "asf", "au", "avi", "caf", "dsf", "dts", "dv", "eac3",
    "flac", "flv", "gif", "h264", "hevc", "ivf", "loas", "m4v", "matroska", "mjpeg", "mov", "mp3", "mpc", "mpc8",
    "mpeg", "mpegts", "mpegvideo", "nut", "obu", "ogg", "rm", "sox", "tak", "truehd", "tta", "voc", "w64", "wav",
    "webm", "wv",
)  # fmt: skip
"""FFmpeg's demuxers for the usual containers of sound and video. Left out are those that open further files: playlists
(hls, dash, concat, imf, sdp, webm_dash_manifest, vobsub) and file name patterns (image2 and its variants)."""
_LISTS = re.compile(
    rb"\A(\xef\xbb\xbf)?\s*(#EXTM3U|ffconcat|\[playlist\]|# VobSub|\[reference\]|\[demuxer\])|dash:profile|<MPD\b"
    rb"|CompositionPlaylist|^[mc]=(IN IP|video|audio)|^v=0\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_MARKS = (b"dash:profile", b"<mpd", b"compositionplaylist", b"=in ip", b"=video", b"=audio", b"v=0")
"""What `_LISTS` searches for behind the start, in lower case. Looking for these first takes a fifth of its time."""
_LIST_STARTS = (b"#", b"f", b"[")
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]+")


def check_container(file: BinaryIO, source: Source, kind: str) -> None:
    """Check a file before FFmpeg reads it (through PyAV, the ffmpeg program or decord); its position changes.

    Rejects bad_media for a list of other files, for text, and for a header that would fill the memory.
    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    start, lower = head[:SNIFFED_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower(), head.lower()
    if (not start or start.startswith(_LIST_STARTS) or any(mark in lower for mark in _MARKS)) and _LISTS.search(head):
        raise Reject(
            RejectCode.BAD_MEDIA, f"{source.label}: a playlist that names other files, no audio or video itself"
        )
    if _TEXT.fullmatch(head[:SNIFFED_BYTES]):
        raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: {unreadable(head[:SNIFFED_BYTES], kind)}")
    check_sample_counts(file, source.label)


@contextmanager
def open_container(file: BinaryIO, source: Source, kind: str) -> "Iterator[InputContainer]":
    """Open a file with PyAV, which may use the demuxers in `FORMATS` only; rejects as `check_container`."""
    import av

    check_container(file, source, kind)
    file.seek(0)
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
    try:
        with library_faults(source.label, RejectCode.BAD_MEDIA):
            container = av.open(file, options=options)
    except Reject as reject:
        head, detail = source.head(SNIFFED_BYTES), reject.message.removeprefix(f"{source.label}: ")
        raise Reject(reject.code, f"{source.label}: {unreadable(head, kind, detail)}") from reject
    with container:
        yield container
