"""16x16 bytes transposed in registers, as an intrinsic of LLVM: numba has no words for shuffles of vectors."""

from typing import Any

from llvmlite import ir
from numba import config
from numba.core import types
from numba.extending import intrinsic

if config.DISABLE_JIT:  # type: ignore[attr-defined]  # set by users who debug; Python itself runs no intrinsics
    raise ImportError("NUMBA_DISABLE_JIT is set")

SIDE = 16
"""Rows and columns that are transposed at once: the bytes of a vector register that every processor has."""
_VECTOR = ir.VectorType(ir.IntType(8), SIDE)
_MASK = ir.VectorType(ir.IntType(32), SIDE)


def _interleaving(first: int) -> ir.Constant:
    """Bytes first.. of two vectors by turns."""
    pairs = [number for byte in range(first, first + SIDE // 2) for number in (byte, SIDE + byte)]
    return ir.Constant(_MASK, [ir.Constant(ir.IntType(32), number) for number in pairs])


def _transpose(typing: Any, source: Any, start: Any, stride: Any, target: Any, to: Any, target_stride: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_type, _, _, target_type, _, _ = signature.args
        source, start, stride, target, to, target_stride = arguments

        def row(array_type: Any, array: Any, first: Any, row_stride: Any, number: int) -> Any:
            data = context.make_array(array_type)(context, builder, array).data
            offset = builder.add(first, builder.mul(row_stride, ir.Constant(row_stride.type, number)))
            byte = builder.gep(builder.bitcast(data, ir.IntType(8).as_pointer()), [offset])
            return builder.bitcast(byte, _VECTOR.as_pointer())

        rows = [builder.load(row(source_type, source, start, stride, i), align=1) for i in range(SIDE)]
        low, high = _interleaving(0), _interleaving(SIDE // 2)
        # To interleave row i with row i + 8 rotates the 8 bits of (row, column) by one; four times swaps the two.
        for _ in range(4):
            pairs = list(zip(rows[: SIDE // 2], rows[SIDE // 2 :], strict=True))
            rows = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in (low, high)]
        for i, value in enumerate(rows):
            builder.store(value, row(target_type, target, to, target_stride, i), align=1)
        return context.get_dummy_value()

    number = types.int64
    return types.void(source, number, number, target, number, number), generate


transpose: Any = intrinsic(_transpose)
"""transpose(source, start, stride, target, to, target_stride), of contiguous uint8 arrays and byte offsets: the byte at
column j of row i, start + i * stride + j, goes to row j and column i of the target, to + j * target_stride + i."""
