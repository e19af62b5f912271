"""The arithmetic of the delta codec, compiled: planes and gradient residuals of a picture, and back into patches.

Layout of a picture of F frames (docs/format.md): for each frame the planes R-G, G, B-G mod 256, each as gradient
residuals q[y,x] - q[y,x-1] - q[y-1,x] + q[y-1,x-1] mod 256 with zeros outside. Two prefix sums mod 256 undo that.

`undo_into_patches` makes one pass over the residuals, a row of pixels at a time: sums down the columns (a vectorized
addition of two rows), then sums along the row, then the row's pixels are copied into the patches they belong to. The
row buffers stay in the L1 cache, so no picture is ever made. Sums along the row take 8 bytes at a time: with the even
and the odd bytes of a 64-bit word in four 16-bit lanes each, one multiplication by 0x0001000100010001 is a prefix sum
over the lanes.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

# nogil: loaders decode the pictures of a bin on several threads. cache: compiling takes seconds, once a machine.
_JIT: dict[str, Any] = {"nogil": True, "cache": True, "boundscheck": False}
_EVEN = np.uint64(0x00FF00FF00FF00FF)
_LANES = np.uint64(0x0001000100010001)
_BYTE = np.uint64(8)
_TOP = np.uint64(48)
_LOW = np.uint64(255)


@intrinsic  # the compiler supplies `typing` when the function is called
def copy_word(typing: Any, target: Any, target_start: Any, source: Any, source_start: Any) -> Any:
    """target[target_start :][:8] = source[source_start :][:8], of uint8 arrays, as one unaligned load and store."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def address(array_type: Any, array: Any, offset: Any) -> Any:
            data = context.make_array(array_type)(context, builder, array).data
            byte = builder.gep(builder.bitcast(data, ir.IntType(8).as_pointer()), [offset])
            return builder.bitcast(byte, ir.IntType(64).as_pointer())

        target_type, _, source_type, _ = signature.args
        target, target_start, source, source_start = arguments
        word = builder.load(address(source_type, source, source_start), align=1)
        builder.store(word, address(target_type, target, target_start), align=1)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64), generate


@numba.njit(**_JIT)
def _sum_along(a, b, c, words):  # type: ignore[no-untyped-def]
    """Prefix sums mod 256 of three rows of bytes, in place; rows are uint64 views, little endian."""
    carry_a = carry_b = carry_c = np.uint64(0)
    for i in range(words):
        x, y, z = a[i], b[i], c[i]
        odd_x, odd_y, odd_z = (x >> _BYTE) & _EVEN, (y >> _BYTE) & _EVEN, (z >> _BYTE) & _EVEN
        sum_x = ((x & _EVEN) + odd_x) * _LANES + carry_a
        sum_y = ((y & _EVEN) + odd_y) * _LANES + carry_b
        sum_z = ((z & _EVEN) + odd_z) * _LANES + carry_c
        a[i] = ((sum_x - odd_x) & _EVEN) | ((sum_x & _EVEN) << _BYTE)
        b[i] = ((sum_y - odd_y) & _EVEN) | ((sum_y & _EVEN) << _BYTE)
        c[i] = ((sum_z - odd_z) & _EVEN) | ((sum_z & _EVEN) << _BYTE)
        carry_a = ((sum_x >> _TOP) & _LOW) * _LANES
        carry_b = ((sum_y >> _TOP) & _LOW) * _LANES
        carry_c = ((sum_z >> _TOP) & _LOW) * _LANES


@numba.njit(**_JIT)
def undo_into_patches(residuals, frames, height, width, high, wide, merge, out):  # type: ignore[no-untyped-def]
    """Residuals of one picture of several frames into its patches; both uint8 (frames * 3 * height * width,).

    Patches (3, frames, high, wide) lie by blocks of merge * merge (a token's): block rows, then columns, then within a
    block by rows and columns. Height and width are multiples of merge * high and merge * wide; wide is at least 8.
    """
    plane = height * width
    words = (width + 7) // 8
    area = high * wide * frames  # bytes from one color of a patch to the next
    patch_bytes = 3 * area
    block_high, block_wide = merge * high, merge * wide
    blocks_across = width // block_wide
    above = np.zeros((3, words * 8), np.uint8)
    row = np.zeros((3, words * 8), np.uint8)
    above_red, above_green, above_blue = above[0], above[1], above[2]
    red, green, blue = row[0], row[1], row[2]
    red8, green8, blue8 = red.view(np.uint64), green.view(np.uint64), blue.view(np.uint64)
    for frame in range(frames):
        above[:] = 0
        for y in range(height):
            start = (frame * 3 * height + y) * width
            new_red = residuals[start : start + width]
            new_green = residuals[start + plane : start + plane + width]
            new_blue = residuals[start + 2 * plane : start + 2 * plane + width]
            # Down the columns; "+ green" before the sums along the row, since sums mod 256 commute.
            for x in range(width):
                value = np.uint8(above_green[x] + new_green[x])
                above_green[x] = value
                green[x] = value
            for x in range(width):
                value = np.uint8(above_red[x] + new_red[x])
                above_red[x] = value
                red[x] = np.uint8(value + above_green[x])
            for x in range(width):
                value = np.uint8(above_blue[x] + new_blue[x])
                above_blue[x] = value
                blue[x] = np.uint8(value + above_green[x])
            _sum_along(red8, green8, blue8, words)
            block_row, in_block = y // block_high, y % block_high
            patch_row, line = in_block // high, in_block % high
            first = (block_row * blocks_across * merge * merge + patch_row * merge) * patch_bytes
            first += frame * high * wide + line * wide
            for across in range(blocks_across):
                for column in range(merge):
                    to = first + (across * merge * merge + column) * patch_bytes
                    at = across * block_wide + column * wide
                    for k in range(0, wide - 8, 8):
                        copy_word(out, to + k, red, at + k)
                        copy_word(out, to + area + k, green, at + k)
                        copy_word(out, to + 2 * area + k, blue, at + k)
                    end = wide - 8  # the last word overlaps the one before it
                    copy_word(out, to + end, red, at + end)
                    copy_word(out, to + area + end, green, at + end)
                    copy_word(out, to + 2 * area + end, blue, at + end)


@numba.njit(**_JIT)
def residuals_of_patches(patches, frames, height, width, high, wide, merge, out):  # type: ignore[no-untyped-def]
    """Patches of one picture into its residuals; arguments as `undo_into_patches`, which reverses this."""
    plane = height * width
    area = high * wide * frames
    patch_bytes = 3 * area
    block_high, block_wide = merge * high, merge * wide
    blocks_across = width // block_wide
    # A row of each color behind a zero, which stands left of the first pixel; and the differences along the row above.
    row = np.zeros((3, width + 1), np.uint8)
    above = np.zeros((3, width), np.uint8)
    red, green, blue = row[0, 1:], row[1, 1:], row[2, 1:]
    red_left, green_left, blue_left = row[0, :width], row[1, :width], row[2, :width]
    above_red, above_green, above_blue = above[0], above[1], above[2]
    for frame in range(frames):
        above[:] = 0
        for y in range(height):
            block_row, in_block = y // block_high, y % block_high
            patch_row, line = in_block // high, in_block % high
            first = (block_row * blocks_across * merge * merge + patch_row * merge) * patch_bytes
            first += frame * high * wide + line * wide
            for across in range(blocks_across):
                for column in range(merge):
                    at = first + (across * merge * merge + column) * patch_bytes
                    to = across * block_wide + column * wide
                    for k in range(0, wide - 8, 8):
                        copy_word(red, to + k, patches, at + k)
                        copy_word(green, to + k, patches, at + area + k)
                        copy_word(blue, to + k, patches, at + 2 * area + k)
                    end = wide - 8  # the last word overlaps the one before it
                    copy_word(red, to + end, patches, at + end)
                    copy_word(green, to + end, patches, at + area + end)
                    copy_word(blue, to + end, patches, at + 2 * area + end)
            start = (frame * 3 * height + y) * width
            out_red = out[start : start + width]
            out_green = out[start + plane : start + plane + width]
            out_blue = out[start + 2 * plane : start + 2 * plane + width]
            # Whole slices at the same index: only such loops are vectorized.
            for x in range(width):
                value = np.uint8(green[x] - green_left[x])
                out_green[x] = np.uint8(value - above_green[x])
                above_green[x] = value
            for x in range(width):
                value = np.uint8(np.uint8(red[x] - red_left[x]) - above_green[x])
                out_red[x] = np.uint8(value - above_red[x])
                above_red[x] = value
            for x in range(width):
                value = np.uint8(np.uint8(blue[x] - blue_left[x]) - above_green[x])
                out_blue[x] = np.uint8(value - above_blue[x])
                above_blue[x] = value
