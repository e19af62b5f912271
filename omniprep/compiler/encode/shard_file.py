"""A shard's file and its receipt, for build and repack; each bin is written by a thread while the next is made."""

import json
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import fields
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.output.paths import receipt_path, shard_name
from omniprep.errors import OmniprepError
from omniprep.shards.codecs import codec_of
from omniprep.shards.codecs.base import CompressedItem, PictureCodec
from omniprep.shards.index import BatchEntry
from omniprep.shards.schema import Bin, Column
from omniprep.shards.writer import ShardWriter

BEHIND_BYTES = 64 << 20
"""Most media bytes of an unwritten bin before the encoder blocks; so memory stays bounded."""


_ENTRY_NAMES = tuple(entry.name for entry in fields(BatchEntry))


class UnwritableBinError(OmniprepError):
    """A bin whose arrays cannot be laid end to end or serialized; `number` is its number within the shard."""

    def __init__(self, number: int, error: Exception) -> None:
        self.number = number
        super().__init__(f"bin {number} cannot be written ({type(error).__name__}: {error}); please report this")


class ShardFile(ShardWriter):
    """Writes one shard of a dataset, each bin by a thread while the next is made; call `finish` after the block."""

    def __init__(self, out: str, number: int, schema: pa.Schema, generation: str = "") -> None:
        self._name, self._receipt = shard_name(number, generation), receipt_path(out, number, generation)
        super().__init__(io.join(out, "shards", self._name), schema)
        self._thread = ThreadPoolExecutor(1, "omniprep-shard")
        self._writing: tuple[dict[str, int], Future[BatchEntry]] | None = None
        self._compressing = deque[tuple[Future[Any], int]]()
        """Items of which the thread may still hold the patches, with their bytes."""
        self._compressing_bytes = 0
        self._bins: list[dict[str, int]] = []
        self._began = time.perf_counter()

    def compress(self, column: Column, patches: NDArray[Any], size: Any) -> CompressedItem:
        """An item of a bin that is put later, compressed by the thread; its patches must not be changed any more.

        Args:
            column: A column with a `PictureCodec`.
            patches: The item's units.
            size: Its value in the column that holds its size.
        """
        codec = codec_of(column)
        assert isinstance(codec, PictureCodec), column.name
        pictures = self._thread.submit(codec.compress_item, column, patches, size)
        self._compressing.append((pictures, patches.nbytes))
        self._compressing_bytes += patches.nbytes
        return CompressedItem(patches.shape, patches.nbytes // 2, pictures)

    def bound_memory(self) -> None:
        """Wait until the patches of few items are held; called between rows, whose time limits do not run then."""
        while self._compressing and (self._compressing[0][0].done() or self._compressing_bytes > BEHIND_BYTES):
            pictures, held = self._compressing.popleft()
            wait([pictures])  # what went wrong is said when the bin is written
            self._compressing_bytes -= held

    def put(self, number: int, packed: Bin) -> None:
        """Append bin `number` of the plan; its arrays must not be changed any more.

        Raises what the bin before it met too: OSError, or UnwritableBinError where arrays are not what the schema says.
        """
        self._wait()
        seconds = int((packed.pair_ids >= 0).sum()) // 2 if packed.pair_ids is not None else 0  # of pairs
        facts = {"bin": number, "tokens": len(packed.input_ids), "rows": len(packed.row_ids) - seconds}
        self._writing = facts, self._thread.submit(self.write, packed)
        held: list[Any] = [*packed.media.values(), *packed.files.values()]  # compressed items hold no patches any more
        if sum(item.nbytes for items in held for item in items) > BEHIND_BYTES:
            self._wait()

    def _wait(self) -> None:
        if self._writing is not None:
            facts, written = self._writing
            self._writing = None
            try:
                entry = written.result()
            except (OSError, MemoryError, OmniprepError):
                raise
            except Exception as error:
                raise UnwritableBinError(facts["bin"], error) from error
            self._bins.append({**facts, **{name: getattr(entry, name) for name in _ENTRY_NAMES}})

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """End the file, or remove it where the block failed."""
        try:
            if kind is None:
                self._wait()
        except BaseException as last_error:  # Ctrl-C too
            kind, error, trace = type(last_error), last_error, last_error.__traceback__
            raise
        finally:
            self._thread.shutdown(cancel_futures=kind is not None)
            super().__exit__(kind, error, trace)

    def finish(self, rejects: list[dict[str, Any]]) -> dict[str, Any]:
        """Write the receipt, by which the shard counts as done, and return it.

        It has path, bytes, sha256, bins (number in the plan, tokens, rows and `BatchEntry` of each), rejects
        (row, code, message of each row that the shard lacks) and seconds.
        """
        info = self.close()
        receipt = {
            "path": f"shards/{self._name}",
            "bytes": info.bytes,
            "sha256": info.sha256,
            "bins": self._bins,
            "rejects": rejects,
            "seconds": round(time.perf_counter() - self._began, 3),
        }
        io.write_atomic(self._receipt, json.dumps(receipt).encode())
        return receipt
