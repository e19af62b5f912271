"""The arithmetic of the delta codec, compiled: planes and gradient residuals of a picture, and back into patches.

Layout of a picture of F frames (docs/format.md): for each frame the planes R-G, G, B-G mod 256, each as gradient
residuals q[y,x] - q[y,x-1] - q[y-1,x] + q[y-1,x-1] mod 256 with zeros outside. Two prefix sums mod 256 undo that.

`undo_into_patches` makes one pass over the residuals, a row of pixels at a time: sums down the columns (an addition of
two rows) and along the row in one go over vectors of 64 bytes, then the row's pixels are copied into the patches they
belong to. The row buffers stay in the L1 cache and the patches of a row of tokens in the L2 cache, so no picture is
ever made, and memory is written in order.
"""

from typing import Any

import numba
import numpy as np

from omniprep.shards.codecs.vectors import CHUNK, copy_bytes, copy_lane, copy_word, undo_chunk

# nogil: loaders decode the pictures of a bin on several threads. cache: compiling takes seconds, once a machine.
_JIT: dict[str, Any] = {"nogil": True, "cache": True, "boundscheck": False}
_STRIP_BYTES = 512 << 10
"""Patches of a row of blocks are put together in memory of this size at most: half of a core's L2 cache (1 MiB)."""


@numba.njit(**_JIT)
def _undo_row(residuals, start, plane, width, above, row, stride):  # type: ignore[no-untyped-def]
    """Residuals of a row of pixels into `row`: red, green and blue at 0, `stride` and `2 * stride`."""
    zero = np.uint8(0)
    left = (zero, zero, zero)
    for x in range(0, width, CHUNK):
        left = undo_chunk(residuals, start, plane, above, row, x, stride, left)


@numba.njit(**_JIT)
def _cut_row(row, stride, blocks, merge, wide, last, out, first, area):  # type: ignore[no-untyped-def]
    """Pixels of a row into their patches, of which the first one's part begins at `first`; `last`: of their lines."""
    source = 0
    lanes = wide == 16 or (wide > 8 and wide < 16 and not last)
    for block in range(blocks):
        target = first + block * merge * merge * 3 * area
        for _ in range(merge):
            if lanes:  # of 14 bytes, two too many are written, where the next line of the same patch will be
                copy_lane(out, target, row, source)
                copy_lane(out, target + area, row, source + stride)
                copy_lane(out, target + 2 * area, row, source + 2 * stride)
            elif wide < 16:
                end = wide - 8  # the second word overlaps the first
                copy_word(out, target, row, source)
                copy_word(out, target + area, row, source + stride)
                copy_word(out, target + 2 * area, row, source + 2 * stride)
                copy_word(out, target + end, row, source + end)
                copy_word(out, target + area + end, row, source + stride + end)
                copy_word(out, target + 2 * area + end, row, source + 2 * stride + end)
            else:
                copy_bytes(out, target, row, source, wide)
                copy_bytes(out, target + area, row, source + stride, wide)
                copy_bytes(out, target + 2 * area, row, source + 2 * stride, wide)
            target += 3 * area
            source += wide


@numba.njit(**_JIT)
def undo_into_patches(residuals, frames, height, width, high, wide, merge, out):  # type: ignore[no-untyped-def]
    """Residuals of one picture of several frames into its patches; both uint8 (frames * 3 * height * width,).

    Patches (3, frames, high, wide) lie by blocks of merge * merge (a token's): block rows, then columns, then within a
    block by rows and columns. Height and width are multiples of merge * high and merge * wide; wide is at least 8.
    """
    plane = height * width
    area = high * wide * frames  # bytes from one color of a patch to the next
    block_high = merge * high
    blocks = width // (merge * wide)
    strip_bytes = blocks * merge * merge * 3 * area
    # Patches that lie far apart are written to a few bytes at a time: in the cache, then copied in one go. Pictures of
    # one large patch (crops) are written in order anyway.
    use_strip = strip_bytes <= _STRIP_BYTES and strip_bytes < out.size
    strip = np.empty(strip_bytes, np.uint8) if use_strip else out
    stride = (width + CHUNK - 1) // CHUNK * CHUNK
    above = np.zeros((frames, 3 * stride), np.uint8)
    row = np.empty(3 * stride + 16, np.uint8)  # `copy_lane` reads up to 8 bytes behind the last pixel
    end = np.zeros(3 * stride, np.uint8)
    for block_row in range(height // block_high):
        patches_start = 0 if use_strip else block_row * strip_bytes
        for frame in range(frames):
            for in_block in range(block_high):
                y = block_row * block_high + in_block
                start = (frame * 3 * height + y) * width
                if start + 2 * plane + stride <= residuals.size:
                    _undo_row(residuals, start, plane, width, above[frame], row, stride)
                else:  # whole chunks of these rows would reach behind the residuals
                    for color in range(3):
                        copy_bytes(end, color * stride, residuals, start + color * plane, width)
                    _undo_row(end, 0, stride, width, above[frame], row, stride)
                patch_row, line = in_block // high, in_block % high
                first = patches_start + patch_row * merge * 3 * area + (frame * high + line) * wide
                _cut_row(row, stride, blocks, merge, wide, line == high - 1, strip, first, area)
        if use_strip:
            copy_bytes(out, block_row * strip_bytes, strip, 0, strip_bytes)


@numba.njit(**_JIT)
def cut_into_patches(pixels, frames, height, width, high, wide, merge, out):  # type: ignore[no-untyped-def]
    """Rows of pixels whose colors lie apart, uint8 (frames * height * 3 * width,), into patches.

    Other arguments as those of `undo_into_patches`, which has the reasons for the strip too.
    """
    area = high * wide * frames
    block_high = merge * high
    blocks = width // (merge * wide)
    strip_bytes = blocks * merge * merge * 3 * area
    use_strip = strip_bytes <= _STRIP_BYTES and strip_bytes < out.size
    strip = np.empty(strip_bytes, np.uint8) if use_strip else out
    for block_row in range(height // block_high):
        patches_start = 0 if use_strip else block_row * strip_bytes
        for frame in range(frames):
            for in_block in range(block_high):
                start = (frame * height + block_row * block_high + in_block) * 3 * width
                patch_row, line = in_block // high, in_block % high
                first = patches_start + patch_row * merge * 3 * area + (frame * high + line) * wide
                _cut_row(pixels[start:], width, blocks, merge, wide, line == high - 1, strip, first, area)
        if use_strip:
            copy_bytes(out, block_row * strip_bytes, strip, 0, strip_bytes)


@numba.njit(**_JIT)
def residuals_of_patches(patches, frames, height, width, high, wide, merge, out):  # type: ignore[no-untyped-def]
    """Patches of one picture into its residuals; arguments as `undo_into_patches`, which reverses this."""
    plane = height * width
    area = high * wide * frames
    block_high = merge * high
    blocks = width // (merge * wide)
    # A row of each color behind a zero, which stands left of the first pixel, and before 16 bytes that `copy_lane` may
    # write to; and the differences along the row above.
    stride = width + 17
    buffer = np.zeros(3 * stride, np.uint8)
    above = np.zeros((3, width), np.uint8)
    red_left, green_left, blue_left = (buffer[:width], buffer[stride : stride + width], buffer[2 * stride :][:width])
    red, green, blue = buffer[1:][:width], buffer[stride + 1 :][:width], buffer[2 * stride + 1 :][:width]
    above_red, above_green, above_blue = above[0], above[1], above[2]
    for frame in range(frames):
        above[:] = 0
        for y in range(height):
            block_row, in_block = y // block_high, y % block_high
            patch_row, line = in_block // high, in_block % high
            first = (block_row * blocks * merge * merge + patch_row * merge) * 3 * area
            first += (frame * high + line) * wide
            lanes = wide <= 16 and y < height - 1  # which read up to 8 bytes behind a line: the last has none
            target = 1
            for block in range(blocks):
                source = first + block * merge * merge * 3 * area
                for _ in range(merge):
                    if lanes:  # three times as fast as copies of 14 bytes
                        copy_lane(buffer, target, patches, source)
                        copy_lane(buffer, target + stride, patches, source + area)
                        copy_lane(buffer, target + 2 * stride, patches, source + 2 * area)
                    else:
                        copy_bytes(buffer, target, patches, source, wide)
                        copy_bytes(buffer, target + stride, patches, source + area, wide)
                        copy_bytes(buffer, target + 2 * stride, patches, source + 2 * area, wide)
                    source += 3 * area
                    target += wide
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
