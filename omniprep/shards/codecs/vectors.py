"""What numba has no words for: loads, stores and prefix sums of many bytes at once, as intrinsics of LLVM.

Numba turns some loops over whole slices into vector instructions, but never copies of a few bytes at computed offsets,
nor prefix sums. LLVM splits the vectors of `CHUNK` bytes into what the processor has.
"""

from typing import Any

from llvmlite import ir
from numba import config
from numba.core import cgutils, types
from numba.extending import intrinsic

if config.DISABLE_JIT:  # type: ignore[attr-defined]  # set by users who debug; Python itself runs no intrinsics
    raise ImportError("NUMBA_DISABLE_JIT is set")

CHUNK = 64
"""Bytes of a row that `undo_chunk` takes at once. With AVX-512 a row takes 0.9 of the time of 32; with AVX2 alone
pixels are undone at 6 GB/s, with SSE2 alone at 5.6, where AVX-512 gives 7.2 (photographs, one core of an EPYC)."""

_BYTE = ir.IntType(8)
_INT32 = ir.IntType(32)
_LANE = 16
"""Bytes within which every vector unit shifts in one instruction."""


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, value_type: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    byte = builder.gep(builder.bitcast(data, _BYTE.as_pointer()), [offset])
    return builder.bitcast(byte, value_type.as_pointer())


def _copies(value_type: Any) -> Any:
    """A function copy(target, target_start, source, source_start) of one value, as one unaligned load and store."""

    def copy(typing: Any, target: Any, target_start: Any, source: Any, source_start: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            target_type, _, source_type, _ = signature.args
            target, target_start, source, source_start = arguments
            value = builder.load(_address(context, builder, source_type, source, source_start, value_type), align=1)
            builder.store(value, _address(context, builder, target_type, target, target_start, value_type), align=1)
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64), generate

    return copy


copy_word: Any = intrinsic(_copies(ir.IntType(64)))
"""target[target_start :][:8] = source[source_start :][:8], of uint8 arrays."""
copy_lane: Any = intrinsic(_copies(ir.VectorType(_BYTE, _LANE)))
"""target[target_start :][:16] = source[source_start :][:16], of uint8 arrays."""


def _copy_bytes(typing: Any, target: Any, target_start: Any, source: Any, source_start: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target_type, _, source_type, _, _ = signature.args
        target, target_start, source, source_start, count = arguments
        destination = _address(context, builder, target_type, target, target_start, _BYTE)
        origin = _address(context, builder, source_type, source, source_start, _BYTE)
        cgutils.raw_memcpy(builder, destination, origin, count, 1)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.int64), generate


copy_bytes: Any = intrinsic(_copy_bytes)
"""target[target_start :][:count] = source[source_start :][:count], of uint8 arrays, by memcpy."""


@intrinsic  # the compiler supplies `typing` when the function is called
def undo_chunk(
    typing: Any, residuals: Any, start: Any, plane: Any, above: Any, row: Any, x: Any, stride: Any, left: Any
) -> Any:
    """Undo `CHUNK` columns of a row of residuals, from column `x` on, for the planes R-G, G and B-G.

    `residuals`, `above` and `row` are uint8 arrays; a row of the three planes begins in `residuals` at `start`,
    `start + plane` and `start + 2 * plane`, in the others at 0, `stride` and `2 * stride`. `above` has the sums down
    the columns of the rows before and takes up this one; `row` gets red, green and blue, which are the sums along the
    row, `left` their values left of `x`. Returns the last values, for the next call.
    """
    vector = ir.VectorType(_BYTE, CHUNK)

    def shuffled(builder: Any, value: Any, order: list[int]) -> Any:
        """Bytes of `value` in another order; `CHUNK` stands for a zero."""
        zeros = ir.Constant(vector, [0] * CHUNK)
        return builder.shuffle_vector(value, zeros, ir.Constant(ir.VectorType(_INT32, CHUNK), order))

    def prefix_sums(builder: Any, value: Any) -> Any:
        """First within lanes, adding to each byte the one 1, 2, 4 and 8 before it; then the last byte of every other
        lane to all of the next, of every other pair of lanes to the next pair.
        """
        for distance in (1, 2, 4, 8):
            order = [i - distance if i % _LANE >= distance else CHUNK for i in range(CHUNK)]
            value = builder.add(value, shuffled(builder, value, order))
        run = _LANE
        while run < CHUNK:
            order = [i // run * run - 1 if i // run % 2 else CHUNK for i in range(CHUNK)]
            value = builder.add(value, shuffled(builder, value, order))
            run *= 2
        return value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        residuals_type, _, _, above_type, row_type, _, _, _ = signature.args
        residuals, start, plane, above, row, x, stride, left = arguments
        multiples = [ir.Constant(x.type, number) for number in range(3)]
        columns = [builder.add(x, builder.mul(number, stride)) for number in multiples]
        sums = []
        for number, column in zip(multiples, columns, strict=True):
            offset = builder.add(builder.add(start, x), builder.mul(number, plane))
            new = builder.load(_address(context, builder, residuals_type, residuals, offset, vector), align=1)
            place = _address(context, builder, above_type, above, column, vector)
            sums.append(builder.add(builder.load(place, align=1), new))
            builder.store(sums[-1], place, align=1)
        # "+ G" before the sums along the row: sums mod 256 commute.
        colors = [builder.add(sums[0], sums[1]), sums[1], builder.add(sums[2], sums[1])]
        last = []
        for number, (color, column) in enumerate(zip(colors, columns, strict=True)):
            before = builder.insert_element(
                ir.Constant(vector, ir.Undefined), builder.extract_value(left, number), ir.Constant(_INT32, 0)
            )
            values = builder.add(prefix_sums(builder, color), shuffled(builder, before, [0] * CHUNK))
            builder.store(values, _address(context, builder, row_type, row, column, vector), align=1)
            last.append(builder.extract_element(values, ir.Constant(_INT32, CHUNK - 1)))
        return context.make_tuple(builder, signature.return_type, last)

    bytes_of_colors = types.UniTuple(types.uint8, 3)  # type: ignore[no-untyped-call]
    numbers = (types.int64, types.int64)
    return bytes_of_colors(residuals, *numbers, above, row, *numbers, bytes_of_colors), generate
