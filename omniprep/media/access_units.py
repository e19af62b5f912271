"""What the packet of a video holds, told by the first bytes of its units, without decoding it.

A reader that leaves packets undecoded must know which ones no other picture refers to, at which it may begin, and that
each of them gives one picture. Containers do not say so reliably; the bitstreams do, in a byte or two of each unit.
Sources: H.264 7.3.1 and 7.3.2.3, HEVC 7.3.1.2 and 7.3.2.4.
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
    turned: bool = False
    """Whether a message says that the picture is to be turned, which only newer versions of FFmpeg pass on."""
    parameters: tuple[bytes, ...] = ()
    """Sequence parameter sets: the size and the colors of pictures."""


Parser = Callable[[bytes], Unit | None]
"""The picture of a packet; None where there is none, or where the packet cannot be understood."""


def parser(codec: str, header: bytes | None) -> Parser | None:
    """The parser of a codec, by FFmpeg's name of it and the stream's header ("extradata"); None for other codecs."""
    if codec not in _CODECS:
        return None
    parse, position = _CODECS[codec]
    units: Callable[[memoryview], Iterator[memoryview]] = _start_codes
    if header and header[0] == 1 and len(header) > position:  # avcC, hvcC: each unit has its length before it
        units = _lengths((header[position] & 3) + 1)
    return lambda packet: parse(units(memoryview(packet)))


def parameters(codec: str, header: bytes | None) -> set[bytes]:
    """The different sequence parameter sets of a stream's header; arguments as those of `parser`."""
    if not header or codec not in _CODECS:
        return set()
    units = _header_units(codec, memoryview(header)) if header[0] == 1 else _start_codes(memoryview(header))
    return {_trimmed(unit) for unit in units if len(unit) > 1 and _is_parameters(codec, unit[0])}


def _header_units(codec: str, header: memoryview) -> Iterator[memoryview]:
    """Units of avcC, of which the first list has the parameter sets, or of hvcC (ISO 14496-15, 5.3.3.1 and 8.3.3.1)."""
    lists, offset, head = (1, 5, 1) if codec == "h264" else (int.from_bytes(header[22:23], "big"), 23, 3)
    for _ in range(lists):
        count = int.from_bytes(header[max(offset, offset + head - 2) : offset + head], "big")
        offset += head
        for _ in range(count & 31 if codec == "h264" else count):
            if offset >= len(header):
                return
            end = offset + 2 + int.from_bytes(header[offset : offset + 2], "big")
            yield header[offset + 2 : end]
            offset = end


def _is_parameters(codec: str, first: int) -> bool:
    """Whether a unit with this first byte is a sequence parameter set."""
    return first & 31 == 7 if codec == "h264" else first >> 1 & 63 == 33


def _trimmed(unit: memoryview) -> bytes:
    """A unit without the zeros that may stand before the next start code."""
    return bytes(unit).rstrip(b"\0")


def _lengths(size: int) -> Callable[[memoryview], Iterator[memoryview]]:
    """Units behind lengths of `size` bytes. An empty one: the lengths are wrong."""

    def units(packet: memoryview) -> Iterator[memoryview]:
        offset = 0
        while offset < len(packet):
            length = int.from_bytes(packet[offset : offset + size], "big")
            offset += size
            if not length or offset + length > len(packet):
                yield packet[:0]
                return
            yield packet[offset : offset + length]
            offset += length

    return units


def _start_codes(packet: memoryview) -> Iterator[memoryview]:
    """Units behind start codes (Annex B)."""
    data = bytes(packet)
    offset = data.find(b"\0\0\1")
    while offset >= 0:
        start, offset = offset + 3, data.find(b"\0\0\1", offset + 3)
        yield packet[start : offset if offset >= 0 else len(data)]


_ORIENTATION, _UNKNOWN = 47, -1
"""Types of messages (H.264 D.1): an angle to turn by; what cannot be understood."""


def _turns(message: memoryview, header: int) -> bool:
    """Whether a unit of messages (SEI) says that a picture is to be turned, or may say so."""
    return any(kind in (_ORIENTATION, _UNKNOWN) for kind in _message_types(message[header:]))


def _message_types(payload: memoryview) -> Iterator[int]:
    # Without the bytes that keep start codes apart, and without the bits that end the unit.
    data = bytes(payload).replace(b"\0\0\3", b"\0\0").rstrip(b"\0")
    offset = 0
    while offset < len(data) - 1:
        numbers = []
        for _ in range(2):  # type and size, each in bytes of 255 and a last one
            number = 0
            while offset < len(data) and data[offset] == 255:
                number, offset = number + 255, offset + 1
            if offset >= len(data):
                yield _UNKNOWN
                return
            numbers.append(number + data[offset])
            offset += 1
        yield numbers[0]
        offset += numbers[1]
    if offset > len(data):
        yield _UNKNOWN


def _h264(units: Iterator[memoryview]) -> Unit | None:
    pictures, referenced, restart, turned = 0, False, True, False
    parameter_sets: list[bytes] = []
    for head in units:
        if len(head) < 2 or head[0] & 0x80:
            return None
        kind = head[0] & 31
        if kind == 6:
            turned = turned or _turns(head, 1)
        elif _is_parameters("h264", head[0]):
            parameter_sets.append(_trimmed(head))
        if 2 <= kind <= 4 or kind >= 20:  # data partitions, extensions for several views or layers
            return None
        if kind in (1, 5):
            pictures += 1
            referenced = referenced or bool(head[0] & 0x60)
            restart = restart and kind == 5
    if not pictures:
        return None
    return Unit(referenced, restart, turned=turned, parameters=tuple(parameter_sets))


def _hevc(units: Iterator[memoryview]) -> Unit | None:
    pictures, referenced, restart, layer, turned = 0, False, True, 0, False
    parameter_sets: list[bytes] = []
    for head in units:
        if len(head) < 2 or head[0] & 0x81 or head[1] & 0xF8 or not head[1] & 7:  # 0x81, 0xF8: another layer of quality
            return None
        kind = head[0] >> 1
        if kind < 32:
            pictures += 1
            referenced = referenced or kind > 14 or kind % 2 == 1
            restart = restart and 16 <= kind <= 21
            layer = max(layer, (head[1] & 7) - 1)
        elif kind in (39, 40):
            turned = turned or _turns(head, 2)
        elif _is_parameters("hevc", head[0]):
            parameter_sets.append(_trimmed(head))
    return Unit(referenced, restart, layer, turned, tuple(parameter_sets)) if pictures else None


_CODECS = {"h264": (_h264, 4), "hevc": (_hevc, 21)}
"""How the units of a codec are understood, and where its header says how long their lengths are."""
