"""An object store that is played through: several runs in threads, of which one at a time goes one request further, on
a clock that only moves when the play says so. Runs stop and die between any two requests, clocks are off, and what was
replaced or removed is seen late.

As S3 does, it takes conditions (create where absent, replace and remove where the ETag is the one that was seen), and
decides them on what it has, not on what readers see. `conditions` takes that away but for "create", as with other
stores behind fsspec.
"""

import hashlib
import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fsspec.spec import AbstractFileSystem

__all__ = ["ChaosStore", "KilledError", "Play", "Run"]


class KilledError(BaseException):
    """The run is dead: whatever it does on its way out does nothing."""


@dataclass
class Run:
    """A run of the play, in a thread of its own."""

    name: str
    work: Callable[[], Any]
    clock: float
    """How far its clock is off."""
    wakes: float = 0.0
    """When its sleep ends; infinite while it is stopped."""
    dead: bool = False
    done: bool = False
    error: BaseException | None = None
    lease: Any = None
    beaten: float = 0.0
    thread: threading.Thread | None = None
    turn: threading.Event = field(default_factory=threading.Event)
    handed_back: threading.Event = field(default_factory=threading.Event)


class Play:
    """The clock, the store's content, and whose turn it is."""

    current: ClassVar["Play"]

    def __init__(self, rng: random.Random, delay: float, conditions: bool) -> None:
        self.rng, self.delay, self.conditions = rng, delay, conditions
        self.now = 1_000_000.0
        self.history: dict[str, list[tuple[float, bytes | None]]] = {}
        """Of each object: since when it has which content (None: removed)."""
        self.runs: list[Run] = []
        self.local = threading.local()
        self.requests = 0
        Play.current = self

    # Content

    def latest(self, path: str) -> bytes | None:
        versions = self.history.get(path)
        return versions[-1][1] if versions else None

    def seen(self, path: str) -> bytes | None:
        """What a reader gets: an object that is new, at once; one that was replaced or removed, perhaps as it was."""
        versions = self.history.get(path, [])
        if not versions:
            return None
        late = len(versions) > 1 and versions[-2][1] is not None
        if late and versions[-1][0] > self.now - self.rng.uniform(0, self.delay):
            return versions[-2][1]
        return versions[-1][1]

    def put(self, path: str, data: bytes | None) -> None:
        self.history.setdefault(path, []).append((self.now, data))

    # Time and turns

    @property
    def run(self) -> Run | None:
        """The run of this thread; None for whoever looks on."""
        found: Run | None = getattr(self.local, "run", None)
        return found

    def start(self, run: Run) -> None:
        def body() -> None:
            self.local.run = run
            run.turn.wait()
            run.turn.clear()
            try:
                run.work()
            except BaseException as error:
                run.error = error
            run.done = True
            run.handed_back.set()

        run.thread = threading.Thread(target=body, daemon=True)
        self.runs.append(run)
        run.wakes = self.now
        run.thread.start()

    def pause(self, seconds: float = 0.0) -> None:
        """Called by runs before each request, and to sleep: hands the turn back."""
        run = self.run
        if run is None:
            return
        if run.dead:
            raise KilledError
        run.wakes = max(run.wakes, self.now + seconds)
        run.handed_back.set()
        run.turn.wait()
        run.turn.clear()
        if run.dead:
            raise KilledError

    def go(self, run: Run) -> None:
        """Let a run do one request, or wake up."""
        self.now = max(self.now, run.wakes) + self.rng.uniform(0.001, 0.5)
        run.handed_back.clear()
        run.turn.set()
        assert run.handed_back.wait(60), f"{run.name} hangs"

    def awake(self) -> list[Run]:
        return [run for run in self.runs if not run.done and run.wakes != float("inf")]

    def stopped(self) -> list[Run]:
        return [run for run in self.runs if not run.done and run.wakes == float("inf")]

    def end(self) -> None:
        """Let every run out."""
        for run in self.runs:
            while not run.done:
                run.dead = True
                run.handed_back.clear()
                run.turn.set()
                assert run.handed_back.wait(60)
            assert run.thread is not None
            run.thread.join(60)


class ChaosStore(AbstractFileSystem):  # type: ignore[misc]
    """The store as fsspec sees it; says that it is S3, whose conditions omniprep knows."""

    protocol = ("chaos", "s3")
    cachable = False
    _marks = itertools.count()

    @property
    def play(self) -> Play:
        return Play.current

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("chaos://").strip("/")

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = self._strip_protocol(path).partition("/")
        return bucket, key, None

    def _request(self) -> None:
        self.play.requests += self.play.run is not None
        self.play.pause()

    def _see(self, path: str) -> bytes:
        data = self.play.latest(path) if self.play.run is None else self.play.seen(path)
        if data is None:
            raise FileNotFoundError(path)
        return data

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._request()
        path = self._strip_protocol(path)
        try:
            data = self._see(path)
        except FileNotFoundError:
            if any(name.startswith(path + "/") and self.play.latest(name) is not None for name in self.play.history):
                return {"name": path, "size": 0, "type": "directory"}
            raise
        return {"name": path, "size": len(data), "type": "file", "ETag": _etag(data) if self.play.conditions else ""}

    def exists(self, path: str, **options: Any) -> bool:
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self._request()
        return self._see(self._strip_protocol(path))[start:end]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **conditions: str) -> None:
        self._request()
        path, there = self._strip_protocol(path), self.play.latest(self._strip_protocol(path))
        if mode == "create" and there is not None:
            raise FileExistsError(path)
        if "IfMatch" in conditions and (there is None or _etag(there) != conditions["IfMatch"]):
            raise FileExistsError(path)
        self.play.put(path, bytes(value))

    def call_s3(self, method: str, *, Bucket: str, Key: str, IfMatch: str) -> None:
        assert method == "delete_object"
        self._request()
        there = self.play.latest(f"{Bucket}/{Key}")
        if there is not None and _etag(there) != IfMatch:
            raise FileExistsError(Key)
        self.play.put(f"{Bucket}/{Key}", None)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._request()
        assert not recursive, "nothing that a run removes is a folder"
        if self.play.latest(self._strip_protocol(path)) is not None:
            self.play.put(self._strip_protocol(path), None)

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        self._request()
        path = self._strip_protocol(path)
        see = self.play.latest if self.play.run is None else self.play.seen
        names = [name for name in self.play.history if name.startswith(path + "/") and see(name) is not None]
        found = sorted({"/".join(name.split("/")[: path.count("/") + 2]) for name in names})
        return [{"name": name, "size": 0, "type": "file"} for name in found] if detail else found

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        import io

        assert mode == "rb", mode
        return io.BytesIO(self.cat_file(path))


def _etag(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()
