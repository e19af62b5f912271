"""Copies the next batches to the GPU while the last one computes.

A batch is one buffer (`OneBuffer`), so one copy. A thread takes batches from the reader processes
and copies them on a stream of its own, `DEPTH` ahead of the training loop, whose stream waits for the event of the
batch that it takes, not for the host. A thread, because the Trainer's loop blocks wherever it waits for the device (a
log line, a checkpoint): copies that it started itself would begin only after that. The thread spends its time in calls
that release the interpreter.
"""

import copy
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch.utils.data import get_worker_info

from omniprep.data.host_numbers import map_leaves, map_tensors

DEPTH = 2
ALIGNMENT = 128
"""Bytes that the tensors of a `OneBuffer` begin at multiples of; kernels load up to 16 at once."""
Leaf = TypeVar("Leaf")
_END = object()


def prefetched(source: Iterator[Any], move: Callable[[Any], Any], depth: int = DEPTH) -> Iterator[Any]:
    """`map(move, source)`, computed by a thread that is up to `depth` items ahead.

    What the source or `move` raises is raised here, after the items before it. When the iterator is closed, the thread
    ends after the item that it is working on.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> None:
        while not closed.is_set():
            try:
                return ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in source:
                put(move(item))
                if closed.is_set():
                    return
        except BaseException as error:  # handed to the training loop, which raises it
            put(None, error)
        else:
            put(_END)

    threading.Thread(target=work, name="omniprep-prefetch", daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        closed.set()


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor lies in the buffer of a `OneBuffer`."""

    start: int
    dtype: torch.dtype
    shape: torch.Size


class OneBuffer:
    """A batch in one buffer: one file descriptor from a reader process, one copy to the device.

    Copies of single tensors start some 5 ms apart from each other when the host is busy; a batch has 20 to 30.

    Args:
        batch: Nested dicts and records of tensors.
        memory: Of the buffer. shared: what another process takes over without a copy; pinned: what a GPU copies from
            while the host goes on.
    """

    def __init__(self, batch: dict[str, Any], memory: Literal["plain", "shared", "pinned"] = "plain") -> None:
        self.size = 0
        self.layout = map_leaves(batch, torch.Tensor, self._slot)
        if memory == "shared":
            # As torch's own default_collate does.
            storage = torch.UntypedStorage._new_shared(max(self.size, 1))  # type: ignore[no-untyped-call]
            self.buffer = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (self.size,), (1,))
        else:
            self.buffer = torch.empty(self.size, dtype=torch.uint8, pin_memory=memory == "pinned")
        for tensor, slot in zip(tensors(batch), leaves(self.layout, Slot), strict=True):
            view_of(self.buffer, slot).copy_(tensor)

    def _slot(self, tensor: torch.Tensor) -> Slot:
        start = -(-self.size // ALIGNMENT) * ALIGNMENT
        self.size = start + tensor.numel() * tensor.element_size()
        return Slot(start, tensor.dtype, tensor.shape)

    def pin_memory(self) -> "OneBuffer":
        """Called by `DataLoader(pin_memory=True)`."""
        pinned = copy.copy(self)
        pinned.buffer = self.buffer.pin_memory()
        return pinned

    def to(self, device: torch.device) -> tuple[dict[str, Any], torch.Tensor]:
        """The batch on a device, its tensors views of one buffer, and that buffer; does not wait."""
        buffer = self.buffer.to(device, non_blocking=True)
        batch: dict[str, Any] = map_leaves(self.layout, Slot, lambda slot: view_of(buffer, slot))
        return batch, buffer


class HostBatch:
    """A batch of tensors in host memory that becomes a `OneBuffer` when it is pinned: one copy for both."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def pin_memory(self) -> OneBuffer:
        """Called by `DataLoader(pin_memory=True)`."""
        return OneBuffer(self.batch, "pinned")


def one_buffer(batch: dict[str, Any]) -> OneBuffer | HostBatch:
    """A batch as it leaves the function that made it: in a reader process in one shared buffer, else as it is."""
    return HostBatch(batch) if get_worker_info() is None else OneBuffer(batch, "shared")


def view_of(buffer: torch.Tensor, slot: Slot) -> torch.Tensor:
    """The tensor that lies in a slot."""
    size = slot.shape.numel() * slot.dtype.itemsize
    return buffer[slot.start : slot.start + size].view(slot.dtype).view(slot.shape)


def on_device(source: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Batches of host tensors, or `OneBuffer`s, as batches on a GPU, safe to use on the current stream."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def moved_batch(batch: Any) -> tuple[Any, list[torch.Tensor], Any]:
        with torch.cuda.stream(side):
            if isinstance(batch, OneBuffer):
                there, buffer = batch.to(device)
                return there, [buffer], side.record_event()
            there = moved(batch, device)
            return there, tensors(there), side.record_event()

    for batch, owners, arrived in prefetched(source, moved_batch):
        stream = torch.cuda.current_stream(device)
        stream.wait_event(arrived)
        for tensor in owners:
            tensor.record_stream(stream)  # else its memory could be filled again while this stream still reads it
        yield batch


def moved(value: Any, device: torch.device) -> Any:
    """All tensors of nested dicts and records on the device (pinned ones without waiting)."""
    return map_tensors(value, lambda tensor: tensor.to(device, non_blocking=True))


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of nested dicts and records."""
    return leaves(value, torch.Tensor)


def leaves(value: Any, kind: type[Leaf]) -> list[Leaf]:
    """All values of a type in nested dicts and records, in the order of `map_leaves`."""
    values: list[Leaf] = []
    map_leaves(value, kind, values.append)
    return values
