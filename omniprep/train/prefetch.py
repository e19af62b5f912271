"""The next batches on their way to the device while the last one computes.

A thread takes batches from the reader processes and copies them on a stream of its own, `DEPTH` ahead of the training
loop; the loop's stream waits for the event of the batch it takes, not for the host. A thread, because the Trainer's
loop stands still at every wait for the device (the gradient norm, a log line): copies that it started itself would
begin only after them. It spends its time in calls that release the interpreter.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from omniprep.data.host_numbers import map_tensors

__all__ = ["DEPTH", "on_device", "prefetched"]

DEPTH = 2
_END = object()


def prefetched(source: Iterator[Any], move: Callable[[Any], Any], depth: int = DEPTH) -> Iterator[Any]:
    """`map(move, source)`, computed by a thread that is up to `depth` items ahead.

    What the source or `move` raises is raised here, in its place. When the iterator is closed, the thread ends with the
    item that it is working at.
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


def on_device(source: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Batches of (pinned) host tensors as batches on a GPU, safe to use on the current stream."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(batch: Any) -> tuple[Any, Any]:
        with torch.cuda.stream(side):
            return moved(batch, device), side.record_event()

    for batch, arrived in prefetched(source, copy):
        stream = torch.cuda.current_stream(device)
        stream.wait_event(arrived)
        for tensor in tensors(batch):
            tensor.record_stream(stream)  # else its memory could be filled again while this stream still reads it
        yield batch


def moved(value: Any, device: torch.device) -> Any:
    """All tensors of nested dicts and records on the device (pinned ones without waiting)."""
    return map_tensors(value, lambda tensor: tensor.to(device, non_blocking=True))


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of nested dicts and records."""
    found: list[torch.Tensor] = []
    map_tensors(value, found.append)
    return found
