"""Which picture of a stream decord gives for an index, told by the packets alone.

decord 0.6 (src/video/video_reader.cc) counts the packets of a stream, numbers them by presentation time and, to reach
frame `n`, seeks to the last key packet whose number among all packets is at most `n`; from there it counts the pictures
that come out. Where a key packet's number is also its place in time, and FFmpeg's seek lands on it, that is the picture
of the n-th time. `PacketTable.unproven` says where it is not certain: decord itself reads those.

An AVI has no presentation times; a seek by them ends at the start of the file. decord then counts from its first
picture, so it gives another picture than the one asked for. The reference trains on that picture, so it is given here.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from omniprep.media.access_units import Parser

_PROBED_PICTURES = 7
"""avformat_find_stream_info: has_decode_delay_been_guessed, of FFmpeg 4.1."""


@dataclass(slots=True)
class Run:
    """Packets to decode in a row, from `first` on, with an empty decoder."""

    first: int
    wanted: dict[int, list[int]] = field(default_factory=dict)
    """Number of a packet, or of a picture among those that come out (`PacketTable.timed`) → places in the result."""

    @property
    def last(self) -> int:
        """The last packet, or picture, that is wanted."""
        return max(self.wanted)


@dataclass
class PacketTable:
    """The packets of a video stream in the order of the file, as FFmpeg's demuxer gives them."""

    container: str
    """FFmpeg's names of the container, such as "mov,mp4,m4a,3gp,3g2,mj2"."""
    codec: str
    """FFmpeg's name of the codec."""
    presentation: list[int | None] = field(default_factory=list)
    decoding: list[int | None] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    """Numbers of key packets."""
    referenced: list[bool] = field(default_factory=list)
    """Whether a picture may be referred to by others; those that are not may stay undecoded."""
    restarts: set[int] = field(default_factory=set)
    """Numbers of packets at which decoding may begin (access_units.Unit)."""
    layers: int = 0
    """Temporal layers above the lowest."""
    parameters: set[bytes] = field(default_factory=set)
    """Sequence parameter sets; those of the stream's header first."""
    odd: str = ""
    """Why a packet is not one picture of the stream."""
    cut_short: bool = False
    """Whether a packet ends where the file does."""

    def add(self, packet: Any, parse: Parser | None) -> None:
        """Append a packet of PyAV."""
        number = len(self.presentation)
        self.presentation.append(packet.pts)
        self.decoding.append(packet.dts)
        if packet.is_keyframe:
            self.keys.append(number)
        if packet.is_corrupt:
            self.cut_short = True
        if packet.has_sidedata("new_extradata"):
            self.odd = self.odd or "another header halfway"
        if packet.is_discard:
            self.odd = self.odd or "an edit list drops packets"
        unit = parse(bytes(packet)) if parse else None
        if unit is None:
            self.odd = self.odd or ("a packet is not one picture" if parse else "")
            self.referenced.append(True)
            return
        self.parameters.update(unit.parameters)
        if unit.turned:
            self.odd = self.odd or "a message that turns a picture"
        self.referenced.append(unit.referenced)
        if unit.restart:
            self.restarts.add(number)
        if unit.layer > self.layers:
            self.layers = unit.layer

    def __len__(self) -> int:
        return len(self.presentation)

    @cached_property
    def order(self) -> list[int]:
        """Numbers of packets by presentation time."""
        times = [0 if time is None else time for time in self.presentation]
        return sorted(range(len(times)), key=times.__getitem__)

    @cached_property
    def timed(self) -> bool:
        """Whether the container has presentation times."""
        return has_times(self.container)

    @cached_property
    def seeks_by(self) -> list[int] | None:
        """The times by which FFmpeg's demuxer searches for a key packet; None where it is not known to find it."""
        names = self.container.split(",")
        times = self.presentation if "matroska" in names else self.decoding if "mp4" in names else [None]
        known = [time for time in times if time is not None]
        return known if len(known) == len(times) else None

    @property
    def may_skip(self) -> bool:
        """Whether pictures that no other one refers to may stay undecoded.

        Those of a temporal layer may be referred to by layers above. And some programs give pictures the times of their
        packets, though the decoder puts them in another order: that is seen only where all are decoded.
        """
        return not self.layers and not self.in_order

    @cached_property
    def in_order(self) -> bool:
        """Whether packets stand in the order of their times."""
        return self.order == list(range(len(self)))

    def unproven(self) -> str:
        """Why the packets do not tell which picture decord gives for an index; "" where they do."""
        if self.odd or self.cut_short:
            return self.odd or "a packet is cut short"
        if len(self.parameters) > 1:  # decord keeps to the colors of the frame that it gave first
            return "several parameter sets: the size or the colors may change"
        if not self.keys or self.keys[0]:
            return "the first packet is no key frame"
        if not self.timed:
            return ""
        if None in self.presentation:
            return "packets without a time"
        if len(set(self.presentation)) < len(self):
            return "two packets have the same time"
        return self._open_keys() or self._unsafe_seeks() or self._late_reordering()

    def _open_keys(self) -> str:
        """Whether pictures on both sides of a key packet are apart in the file too, as in closed groups of pictures."""
        highest, keys = -1, set(self.keys)
        for place, number in enumerate(self.order):
            if place in keys and (number != place or highest >= place):
                return "open group of pictures: packets cross a key frame"
            highest = max(highest, number)
        return ""

    def _unsafe_seeks(self) -> str:
        """Whether FFmpeg's seek to the time of a key packet may end at another one, or decoding not begin there.

        A demuxer that searches by decoding time (MP4) is off by the reordering delay at most; decord then seeks
        backward once more, which ends at the key packet if the one behind it is farther away than that delay.
        """
        if len(self.keys) < 2:
            return ""
        if any(key not in self.restarts for key in self.keys):
            return "a key frame does not begin anew"
        if self.seeks_by is None:
            return "several key frames in a container whose seeks are not known"
        times = self.seeks_by
        shifts = [shown - time for shown, time in zip(self.presentation, times, strict=True) if shown is not None]
        nearest = min(times[late] - times[early] for early, late in zip(self.keys, self.keys[1:], strict=False))
        return "key frames nearer than the reordering delay" if nearest <= max(shifts) - min(shifts) else ""

    def _late_reordering(self) -> str:
        """Whether FFmpeg may take the reordering delay of H.264 for less than it is, and drop pictures.

        Streams need not state it. MP4 tells it; in other containers FFmpeg decodes 7 pictures at least to see it.
        """
        if self.codec != "h264" or "mp4" in self.container.split(","):
            return ""
        delays = [number - place for place, number in enumerate(self.order)]
        early = [delay for delay, number in zip(delays, self.order, strict=True) if number < _PROBED_PICTURES]
        return "the reordering delay grows" if max(early) < max(delays) else ""

    def runs(self, indices: Sequence[int]) -> list[Run]:
        """What to decode for the frames at `indices`, in the order of the file; no two have a packet in common."""
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(index, []).append(place)
        return self._timed_runs(places) if self.timed else self._untimed_runs(places)

    def _timed_runs(self, places: dict[int, list[int]]) -> list[Run]:
        by_key: dict[int, Run] = {}
        for index in sorted(places):
            key = self.keys[bisect_right(self.keys, index) - 1]
            by_key.setdefault(key, Run(key)).wanted[self.order[index]] = places[index]
        return list(by_key.values())

    def _untimed_runs(self, places: dict[int, list[int]]) -> list[Run]:
        """One run from the start of the file, whose pictures are counted (NextFrameImpl, SeekAccurate)."""
        run = Run(0)
        position = origin = 0  # decord's number of the next picture, and of the first one since it last sought
        for index in places:
            if index != position and (self._key(index) != self._key(position) or index < position):
                origin = self._key(index)
            run.wanted.setdefault(index - origin, []).extend(places[index])
            position = index + 1
        return [run] if places else []

    def _key(self, index: int) -> int:
        """Decord's LocateKeyframe."""
        if index >= len(self):
            return self.keys[-1]
        return self.keys[bisect_right(self.keys, index) - 1] if index > self.keys[0] else 0


def has_times(container: str) -> bool:
    """Whether a container, by FFmpeg's names of it, has presentation times."""
    return "avi" not in container.split(",")


def sequential_runs(count: int, indices: Iterable[int]) -> list[Run]:
    """One run from the first packet, for streams of which only the order of pictures is known."""
    run = Run(0)
    for place, index in enumerate(indices):
        run.wanted.setdefault(min(index, count - 1), []).append(place)
    return [run] if run.wanted else []
