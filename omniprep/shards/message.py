"""Reading a bin's record batch, with the compression flag of its message checked before Arrow decodes it.

The bodies of shards are not compressed (codecs belong to single columns), and Arrow allocates whatever size a
compressed body claims. pyarrow neither shows nor refuses the compression of a message, so the two flatbuffers tables
that lead to it are walked here. Sources: format/Message.fbs and format/Schema.fbs of Arrow; the flatbuffers format.
"""

import struct

import numpy as np
import pyarrow as pa

from omniprep.errors import DamagedDataError

_HEADER_TYPE, _HEADER = 1, 2  # fields of table Message
_RECORD_BATCH = 3  # of union MessageHeader
_COMPRESSION = 3  # field of table RecordBatch


def read_batch(data: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    """The record batch of one row in a message, views of `data`; DamagedDataError where it is not of `schema`."""
    try:
        # Arrow verifies the flatbuffer when it reads the message, and the ranges of the buffers with the batch.
        message = pa.ipc.read_message(pa.py_buffer(data))
        if _is_compressed(memoryview(message.metadata)):
            raise DamagedDataError("the record batch is compressed, which bins never are")
        batch = pa.ipc.read_record_batch(message, schema)
        if batch.num_rows != 1:  # with a false length, counting nulls would read beyond the end of the message
            raise DamagedDataError(f"a record batch of {batch.num_rows} rows, where a bin is one")
    except (pa.ArrowException, OSError, EOFError, MemoryError, OverflowError, struct.error) as error:
        raise DamagedDataError(f"no record batch of a bin: {' '.join(str(error).split()):.200}") from error
    return batch


def _is_compressed(metadata: memoryview) -> bool:
    message = struct.unpack_from("<I", metadata, 0)[0]
    kind, header = _field(metadata, message, _HEADER_TYPE), _field(metadata, message, _HEADER)
    if not kind or not header or metadata[kind] != _RECORD_BATCH:
        raise DamagedDataError("no record batch where the index has a bin")
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return bool(_field(metadata, batch, _COMPRESSION))


def _field(metadata: memoryview, table: int, number: int) -> int:
    """Byte at which a field of a flatbuffers table begins; 0 if it is absent."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if vtable < 0:  # struct counts negative offsets from the end
        raise DamagedDataError("no record batch where the index has a bin")
    size = struct.unpack_from("<H", metadata, vtable)[0]
    slot = 4 + 2 * number
    offset: int = struct.unpack_from("<H", metadata, vtable + slot)[0] if slot + 2 <= size else 0
    return table + offset if offset else 0
