"""What the packet of a video holds, told by the first bytes of its units, without decoding it.

A reader that leaves packets undecoded must know which ones no other picture refers to, at which it may begin, and that
each of them gives one picture. Containers do not say so reliably; the bitstreams do, in a byte or two of each unit.
Sources: H.264 7.3.1, HEVC 7.3.1.2.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unit:
    """The picture of a packet."""

    referenced: bool
    """Whether another picture may refer to it."""
    restart: bool
    """Whether it and all that follow in display order decode without anything before it."""
    layer: int = 0
    """Temporal layer (HEVC): pictures of a layer above may refer to a picture that its own layer does not need."""


Parser = Callable[[bytes], Unit | None]
"""The picture of a packet; None where there is none, or where the packet cannot be understood."""


def parser(codec: str, header: bytes | None) -> Parser | None:
    """The parser of a codec, by FFmpeg's name of it and the stream's header ("extradata"); None for other codecs."""
    if codec not in _CODECS:
        return None
    parse, position = _CODECS[codec]
    units: Callable[[bytes], Iterator[bytes]] = _start_codes
    if header and header[0] == 1 and len(header) > position:  # avcC, hvcC: each unit has its length before it
        units = _lengths((header[position] & 3) + 1)
    return lambda packet: parse(units(packet))


def _lengths(size: int) -> Callable[[bytes], Iterator[bytes]]:
    """Units behind lengths of `size` bytes; the first two bytes of each. An empty one: the lengths are wrong."""

    def units(packet: bytes) -> Iterator[bytes]:
        offset = 0
        while offset < len(packet):
            length = int.from_bytes(packet[offset : offset + size], "big")
            offset += size
            if not length or offset + length > len(packet):
                yield b""
                return
            yield packet[offset : offset + 2]
            offset += length

    return units


def _start_codes(packet: bytes) -> Iterator[bytes]:
    """Units behind start codes (Annex B): the first two bytes of each."""
    offset = packet.find(b"\0\0\1")
    while offset >= 0:
        yield packet[offset + 3 : offset + 5]
        offset = packet.find(b"\0\0\1", offset + 3)


def _h264(units: Iterator[bytes]) -> Unit | None:
    pictures, referenced, restart = 0, False, True
    for head in units:
        if len(head) < 2 or head[0] & 0x80:
            return None
        kind = head[0] & 31
        if 2 <= kind <= 4 or kind >= 20:  # data partitions, extensions for several views or layers
            return None
        if kind in (1, 5):
            pictures += 1
            referenced = referenced or bool(head[0] & 0x60)
            restart = restart and kind == 5
    return Unit(referenced, restart) if pictures else None


def _hevc(units: Iterator[bytes]) -> Unit | None:
    pictures, referenced, restart, layer = 0, False, True, 0
    for head in units:
        if len(head) < 2 or head[0] & 0x81 or head[1] & 0xF8 or not head[1] & 7:  # 0x81, 0xF8: another layer of quality
            return None
        kind = head[0] >> 1
        if kind < 32:
            pictures += 1
            referenced = referenced or kind > 14 or kind % 2 == 1
            restart = restart and 16 <= kind <= 21
            layer = max(layer, (head[1] & 7) - 1)
    return Unit(referenced, restart, layer) if pictures else None


_CODECS = {"h264": (_h264, 4), "hevc": (_hevc, 21)}
"""How the units of a codec are understood, and where its header says how long their lengths are."""
