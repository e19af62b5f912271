"""Refuse files that make a demuxer open other files: playlists and lists of parts (HLS, DASH, IMF, concat, SDP).

FFmpeg looks at content, not at names, so a text file called clip.mp4 may name any file of the machine, and its
pictures would be in the dataset. Looked for before any demuxer sees the file; what is text as a whole is no audio or
video either.
"""

import re

from omniprep import io
from omniprep.errors import Reject, RejectCode
from omniprep.media.fetch import Source

HEAD_BYTES = 64 << 10
_LISTS = re.compile(
    rb"\A(\xef\xbb\xbf)?\s*(#EXTM3U|ffconcat|\[playlist\])|dash:profile|CompositionPlaylist|^c=IN IP",
    re.IGNORECASE | re.MULTILINE,
)
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]+")


def refuse_lists(source: Source) -> None:
    """Look at the first bytes.

    Raises:
        Reject: bad_media for a list of other files, or text.
    """
    head = _head(source)
    if _LISTS.search(head):
        raise Reject(
            RejectCode.BAD_MEDIA, f"{source.label}: a playlist that names other files, no audio or video itself"
        )
    if _TEXT.fullmatch(head[:512]):
        raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: a text file, no audio or video")


def _head(source: Source) -> bytes:
    if source.data is not None:
        return bytes(source.data[:HEAD_BYTES])
    name = source.path or source.uri or ""
    try:
        return io.read_range(name, 0, min(HEAD_BYTES, io.size(name)))
    except FileNotFoundError as error:
        raise Reject(RejectCode.MEDIA_NOT_FOUND, f"{source.label}: no such file") from error
    except OSError as error:
        raise Reject(RejectCode.MEDIA_FETCH_FAILED, f"{source.label}: {error}") from error
