"""Media in stores: one request for an item while it is planned, and one while it is encoded, none where it is held yet.

Planning needs the header of an item and its size; both come with the first `FIRST_BYTES`, in which most pictures are
whole. Encoding needs all of it: what is not held is read with one request, on the condition that the object is the one
that was planned. What comes next is fetched on threads while a row is worked on (`fetch_ahead`), so that a store that
takes 50 ms to answer costs no more time than a disk. All of it is bounded: `HELD_BYTES` are kept by each process.
"""

import io as _io
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, TypeVar, cast

from omniprep.io.fingerprints import fingerprint
from omniprep.io.objects import ChangedObjectError, read_object
from omniprep.io.tar import Member
from omniprep.lru import BoundedCache

FIRST_BYTES = 1 << 20
"""Of the first request of an item: nine photographs of ten are smaller, and 1 MiB takes a store 10 ms beside the 30 to
100 ms that it takes to answer at all."""
WHOLE_BYTES = 16 << 20
"""An item up to here is held in memory while it is decoded, and read with one request. A larger video is written to the
disk (`pieces`), of another large item the decoder gets what it asks for, in blocks of `BLOCK_BYTES`."""
BLOCK_BYTES = 8 << 20
PIECE_BYTES = 32 << 20
"""Bytes of a request of `pieces`, which are in memory at once."""
HELD_BYTES = 256 << 20
"""Media that a process keeps: what is fetched ahead, and what was used last. As much as `MediaCache` keeps decoded."""
AHEAD_BYTES = HELD_BYTES // 4
"""Media that are fetched ahead at most, so that none is dropped before it is used."""
AHEAD_ROWS = 128
"""Rows that are read before they are worked on, at most."""
THREADS = 32
"""Requests at a time of a process: at 50 ms an answer, 640 items a second."""

T = TypeVar("T")
_END = object()


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item lies: an object, or a member of a tar that is one."""

    uri: str
    member: Member | None
    mark: str
    """ETag of the object when it was planned; "" where nothing is known of it."""
    size: int
    """Bytes of the item; -1 where that is not known."""

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from other items."""
        return self.uri, -1 if self.member is None else self.member.offset


@dataclass(frozen=True, slots=True)
class Held:
    """The first bytes of an item, perhaps all of them."""

    data: bytes
    size: int
    mark: str

    @property
    def whole(self) -> bool:
        """Whether `data` is all of the item."""
        return len(self.data) == self.size


class RemoteMedia:
    """The media that this process holds, and those that are under way; safe for threads."""

    def __init__(self, held_bytes: int = HELD_BYTES) -> None:
        self._lock = threading.Lock()
        self._held: BoundedCache[tuple[str, int], Held] = BoundedCache(held_bytes, lambda held: len(held.data) + 500)
        self._pending: dict[tuple[tuple[str, int], bool], Future[Held]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def first(self, place: Place) -> Held:
        """The first bytes of an item, with its size and mark."""
        return self._get(place, whole=False)

    def whole(self, place: Place) -> Held:
        """All bytes of an item."""
        return self._get(place, whole=True)

    def fetch_ahead(self, places: Iterable[Place], *, whole: bool) -> None:
        """Begin to fetch items on threads; what goes wrong is raised when they are asked for."""
        for place in places:
            with self._lock:
                held = self._held.get(place.key)
                if (held is not None and (held.whole or not whole)) or (place.key, whole) in self._pending:
                    continue
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="omniprep-media")
                key = place.key, whole
                future = self._pending[key] = self._pool.submit(self._fetch, place, whole=whole)
            future.add_done_callback(lambda done, key=key: self._forget(key, done))  # type: ignore[misc]

    def present(self, place: Place) -> Held | None:
        """What is held of an item, or will be: all of it where that is under way."""
        with self._lock:
            held = self._held.get(place.key)
            pending = self._pending.get((place.key, True))
        if held is not None and place.mark not in ("", held.mark):
            held = None
        return held if pending is None or (held is not None and held.whole) else pending.result()

    def clear(self) -> None:
        """Drop what is held."""
        with self._lock:
            self._held.clear()
            self._pending.clear()

    def _forget(self, key: tuple[tuple[str, int], bool], done: Future[Held]) -> None:
        """What was fetched is held now; what failed is tried again, and told, when it is asked for."""
        with self._lock:
            if self._pending.get(key) is done:
                del self._pending[key]

    def _get(self, place: Place, *, whole: bool) -> Held:
        with self._lock:
            held = self._held.get(place.key)
            if held is not None and (held.whole or not whole) and place.mark in ("", held.mark):
                return held
            # Where a part is wanted, the whole may be under way.
            pending = self._pending.get((place.key, whole)) or self._pending.get((place.key, True))
        if pending is not None:
            found = pending.result()
            if place.mark in ("", found.mark):
                return found
        return self._fetch(place, whole=whole)

    def _fetch(self, place: Place, *, whole: bool) -> Held:
        with self._lock:
            before = self._held.get(place.key)
        if before is not None and place.mark not in ("", before.mark):
            before = None
        held = _read(place, before, whole=whole)
        with self._lock:
            self._held.replace(place.key, held)
        return held


def _read(place: Place, before: Held | None, *, whole: bool) -> Held:
    """Read an item: its first bytes, or all that is not there before."""
    start, size = (0, place.size) if place.member is None else (place.member.offset, place.member.size)
    mark = place.mark
    if before is None:
        length = size if whole and size >= 0 else FIRST_BYTES if size < 0 else min(FIRST_BYTES, size)
        if not length:
            return Held(b"", 0, mark)
        part = read_object(place.uri, start, start + length, mark)
        before = Held(part.data, part.size if place.member is None else size, part.mark)
    if whole and not before.whole:
        rest = read_object(place.uri, start + len(before.data), start + before.size, before.mark or mark)
        before = Held(before.data + rest.data, before.size, rest.mark or before.mark)
    return before


remote_media = RemoteMedia()
"""Of this process."""


def _forget() -> None:
    """In a forked child: its parent's threads are not there."""
    global remote_media
    remote_media = RemoteMedia()


os.register_at_fork(after_in_child=_forget)


def pin(place: Place) -> Held:
    """The first bytes, size and mark of an item: one request where nothing is held of it."""
    return remote_media.first(place)


def fetch_ahead(places: Iterable[Place], *, whole: bool) -> None:
    """As `RemoteMedia.fetch_ahead`, of this process; items above `WHOLE_BYTES` are left to those who read them."""
    wanted = [place for place in places if not (whole and place.size > WHOLE_BYTES)]
    remote_media.fetch_ahead(wanted, whole=whole)


def read_whole(place: Place) -> bytes:
    """All bytes of an item."""
    return remote_media.whole(place).data


def pieces(place: Place) -> Iterator[bytes]:
    """An item, piece by piece; ChangedObjectError at the end at the latest where it changes meanwhile."""
    held = remote_media.first(place)
    # A store that tells no ETag with its answers is asked before and after, and what is held may be older than that.
    data, before = (held.data, None) if held.mark else (b"", fingerprint(place.uri))
    yield data
    start = 0 if place.member is None else place.member.offset
    for offset in range(len(data), held.size, PIECE_BYTES):
        end = min(offset + PIECE_BYTES, held.size)
        part = read_object(place.uri, start + offset, start + end, held.mark)
        if len(part.data) != end - offset or (place.member is None and part.size != held.size):
            raise ChangedObjectError(f"{place.uri}: has another size than before")
        yield part.data
    if before is not None and fingerprint(place.uri) != before:
        raise ChangedObjectError(f"{place.uri}: was changed while it was read")


def open_item(place: Place) -> BinaryIO:
    """An item as a seekable file. Of one of which nothing is held, as while encoding in another process than that which
    planned it, all is read at once up to `WHOLE_BYTES`.
    """
    held = remote_media.present(place)
    if held is None:
        held = remote_media.whole(place) if 0 <= place.size <= WHOLE_BYTES else remote_media.first(place)
    if held.whole:
        return _io.BytesIO(held.data)
    return _io.BufferedReader(_ItemFile(place, held), 64 << 10)


def ahead(rows: Iterable[T], places_of: Callable[[T], list[Place]], *, whole: bool) -> Iterator[T]:
    """The rows, in order, while media of the next ones are fetched; reads no row ahead until one has media in a store.

    Args:
        rows: Rows.
        places_of: The items of a row that lie in a store.
        whole: Whether all of an item is wanted, or its first bytes.
    """
    waiting: deque[tuple[T, int]] = deque()
    total, seen, source = 0, False, iter(rows)
    ended = False
    while True:
        while not ended and (not waiting or (seen and len(waiting) < AHEAD_ROWS and total < AHEAD_BYTES)):
            row = next(source, _END)
            if row is _END:
                ended = True
                break
            places = places_of(cast(T, row))
            seen = seen or bool(places)
            fetch_ahead(places, whole=whole)
            wanted = [place.size if whole and place.size >= 0 else FIRST_BYTES for place in places]
            waiting.append((cast(T, row), sum(wanted)))
            total += waiting[-1][1]
            del row
        if not waiting:
            return
        first, size = waiting.popleft()
        total -= size
        yield first
        del first


class _ItemFile(_io.RawIOBase):
    """A large item as a file: its first bytes are held, others are read in blocks, the last of which are kept."""

    KEPT_BLOCKS = 8

    def __init__(self, place: Place, held: Held) -> None:
        self._place, self._held, self._offset = place, held, 0
        self._start = 0 if place.member is None else place.member.offset
        self._blocks: BoundedCache[int, bytes] = BoundedCache(self.KEPT_BLOCKS)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._held.size}[whence]
        if start + offset < 0:
            raise ValueError("seek before the start")
        self._offset = start + offset
        return self._offset

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._held.size - self._offset))
        if not count:
            return 0
        if self._offset < len(self._held.data):
            data = self._held.data[self._offset : self._offset + count]
        else:
            number, inside = divmod(self._offset, BLOCK_BYTES)
            data = self._block(number)[inside : inside + count]
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            first = number * BLOCK_BYTES
            last = min(first + BLOCK_BYTES, self._held.size)
            part = read_object(self._place.uri, self._start + first, self._start + last, self._held.mark)
            block = self._blocks.put(number, part.data)
        return block
