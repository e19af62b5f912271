"""Bicubic resampling in two passes, compiled by numba, with the results of torch (for video frames) and of Pillow.

Four times faster: those libraries add up the products of one output after the other, these kernels do it for 32 rows at
once, eight numbers an instruction. Pillow computes with integers, weights of 22 bits, and rounds to bytes after each
pass. torch computes in float32, in the order that the compiler made of its loop: the first product, then groups of four
that are multiplied and then added in order, then up to three with fused multiply-add. numba keeps the compiled code
in __pycache__, the user's cache folder or NUMBA_CACHE_DIR.

Arguments: `first`, `groups` and `weights` are those of a pass in omniprep/media/resample.py; `turned` holds inputs and
`block` outputs of ROWS rows, side by side; `tap` is the row of `turned` that the first weight belongs to.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from omniprep.media.transpose import SIDE, transpose

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]
ROWS = 32
"""Rows that the horizontal pass works on at once, so that the innermost loop runs over rows."""
GROUP, REST = 4, 3
"""torch's weights of an output: one, groups of 4, and 3 more, of which the last may be zeros."""
_WORDS, _PAIRS, _BYTES = np.uint64(0x00000000FFFFFFFF), np.uint64(0x0000FFFF0000FFFF), np.uint64(0x00FF00FF00FF00FF)
_8, _16, _32 = np.uint64(8), np.uint64(16), np.uint64(32)


@numba.njit(cache=True, nogil=True, boundscheck=False, inline="always")
def _swap(a: np.uint64, b: np.uint64, mask: np.uint64, shift: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Interleave: the masked parts of `a` and `b` in the first result, the other parts in the second."""
    return (a & mask) | ((b & mask) << shift), ((a >> shift) & mask) | (b & ~mask)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _turn_words(src: U64, top: int, word: int, step: int, out: U64, row: int, column: int) -> None:
    """8x8 bytes transposed: src[top + i * step, word] → out[row + i, column], i = 0..7; bytes that are eight a word."""
    a0, a1, a2, a3 = src[top, word], src[top + step, word], src[top + 2 * step, word], src[top + 3 * step, word]
    top += 4 * step
    a4, a5, a6, a7 = src[top, word], src[top + step, word], src[top + 2 * step, word], src[top + 3 * step, word]
    a0, a4 = _swap(a0, a4, _WORDS, _32)
    a1, a5 = _swap(a1, a5, _WORDS, _32)
    a2, a6 = _swap(a2, a6, _WORDS, _32)
    a3, a7 = _swap(a3, a7, _WORDS, _32)
    a0, a2 = _swap(a0, a2, _PAIRS, _16)
    a1, a3 = _swap(a1, a3, _PAIRS, _16)
    a4, a6 = _swap(a4, a6, _PAIRS, _16)
    a5, a7 = _swap(a5, a7, _PAIRS, _16)
    a0, a1 = _swap(a0, a1, _BYTES, _8)
    a2, a3 = _swap(a2, a3, _BYTES, _8)
    a4, a5 = _swap(a4, a5, _BYTES, _8)
    a6, a7 = _swap(a6, a7, _BYTES, _8)
    out[row, column], out[row + 1, column], out[row + 2, column], out[row + 3, column] = a0, a1, a2, a3
    out[row + 4, column], out[row + 5, column], out[row + 6, column], out[row + 7, column] = a4, a5, a6, a7


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _turn(src: U8, top: int, rows: int, turned: U8) -> None:
    """Rows top..top+rows of (H, n) → (n, ROWS)."""
    width = src.shape[1]
    if rows == ROWS and width % 8 == 0:
        words, out = src.view(np.uint64), turned.view(np.uint64)
        for word in range(width // 8):
            for r in range(ROWS // 8):
                _turn_words(words, top + 8 * r, word, 1, out, 8 * word, r)
        return
    for start in range(0, width, 64):
        for r in range(rows):
            for i in range(start, min(start + 64, width)):
                turned[i, r] = src[top + r, i]


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _add_group(total: F32, a: F32, b: F32, c: F32, d: F32, k: F32) -> None:
    """Four products, each rounded, then added in order."""
    k0, k1, k2, k3 = k[0], k[1], k[2], k[3]
    for i in range(len(total)):
        value = total[i] + np.float32(a[i]) * k0
        value = value + np.float32(b[i]) * k1
        value = value + np.float32(c[i]) * k2
        total[i] = value + np.float32(d[i]) * k3


@numba.njit(cache=True, nogil=True, boundscheck=False, fastmath={"contract"})
def _add_rest(total: F32, a: F32, b: F32, c: F32, k: F32) -> None:
    """Three products, each added without rounding it."""
    k0, k1, k2 = k[0], k[1], k[2]
    for i in range(len(total)):
        value = total[i] + np.float32(a[i]) * k0
        value = value + np.float32(b[i]) * k1
        total[i] = value + np.float32(c[i]) * k2


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _group_across(block: F32, output: int, turned: U8, tap: int, weights: F32, x: int, j: int) -> None:
    """As `_add_group`, on rows of `turned` (a slice of each would cost more than 30 additions)."""
    k0, k1, k2, k3 = weights[x, j], weights[x, j + 1], weights[x, j + 2], weights[x, j + 3]
    for i in range(ROWS):
        value = block[output, i] + np.float32(turned[tap, i]) * k0
        value = value + np.float32(turned[tap + 3, i]) * k1
        value = value + np.float32(turned[tap + 6, i]) * k2
        block[output, i] = value + np.float32(turned[tap + 9, i]) * k3


@numba.njit(cache=True, nogil=True, boundscheck=False, fastmath={"contract"})
def _rest_across(block: F32, output: int, turned: U8, tap: int, weights: F32, x: int, j: int) -> None:
    """As `_add_rest`, on rows of `turned`."""
    k0, k1, k2 = weights[x, j], weights[x, j + 1], weights[x, j + 2]
    for i in range(ROWS):
        value = block[output, i] + np.float32(turned[tap, i]) * k0
        value = value + np.float32(turned[tap + 3, i]) * k1
        block[output, i] = value + np.float32(turned[tap + 6, i]) * k2


@numba.njit(cache=True, nogil=True, boundscheck=False, fastmath={"contract"})
def _fused(value: np.float32, pixel: np.uint8, k: np.float32) -> np.float32:
    """Multiply and add with one rounding."""
    return value + np.float32(pixel) * k


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _no_group_across(block: F32, output: int, turned: U8, tap: int, weights: F32, x: int) -> None:
    """All four products of an output without groups, the sum in a register: frames that become larger."""
    k0, k1, k2, k3 = weights[x, 0], weights[x, 1], weights[x, 2], weights[x, 3]
    for i in range(ROWS):
        value = np.float32(turned[tap, i]) * k0
        value = _fused(value, turned[tap + 3, i], k1)
        value = _fused(value, turned[tap + 6, i], k2)
        block[output, i] = _fused(value, turned[tap + 9, i], k3)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _one_group_across(block: F32, output: int, turned: U8, tap: int, weights: F32, x: int) -> None:
    """All eight products of an output with one group, likewise: frames that keep half their size, or more."""
    k0, k1, k2, k3 = weights[x, 0], weights[x, 1], weights[x, 2], weights[x, 3]
    k4, k5, k6, k7 = weights[x, 4], weights[x, 5], weights[x, 6], weights[x, 7]
    for i in range(ROWS):
        value = np.float32(turned[tap, i]) * k0
        value = value + np.float32(turned[tap + 3, i]) * k1
        value = value + np.float32(turned[tap + 6, i]) * k2
        value = value + np.float32(turned[tap + 9, i]) * k3
        value = value + np.float32(turned[tap + 12, i]) * k4
        value = _fused(value, turned[tap + 15, i], k5)
        value = _fused(value, turned[tap + 18, i], k6)
        block[output, i] = _fused(value, turned[tap + 21, i], k7)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def across(src: U8, first: I32, groups: I32, weights: F32, out: F32) -> None:
    """Horizontal pass: (H, W * 3) uint8 → out (H, 3 * w), each row's channels apart."""
    rows = src.shape[0]
    turned = np.zeros((src.shape[1] + 3 * weights.shape[1], ROWS), np.uint8)
    block = np.empty((out.shape[1], ROWS), np.float32)
    for y in range(0, rows, ROWS):
        part = min(ROWS, rows - y)
        _turn(src, y, part, turned)
        for x in range(len(first)):
            k0, end = weights[x, 0], 1 + GROUP * groups[x]
            for channel in range(3):
                output = channel * len(first) + x
                tap = 3 * first[x] + channel
                if groups[x] == 0:
                    _no_group_across(block, output, turned, tap, weights, x)
                    continue
                if groups[x] == 1:
                    _one_group_across(block, output, turned, tap, weights, x)
                    continue
                for r in range(ROWS):
                    block[output, r] = np.float32(turned[tap, r]) * k0
                tap += 3
                for j in range(1, end, GROUP):
                    _group_across(block, output, turned, tap, weights, x, j)
                    tap += 3 * GROUP
                _rest_across(block, output, turned, tap, weights, x, end)
        _turn_back(block, y, part, out)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _turn_back(block: F32, top: int, rows: int, out: F32) -> None:
    """(n, ROWS) → rows top..top+rows of (H, n)."""
    whole = len(block) // 16 * 16
    for start in range(0, whole, 16):
        for r in range(rows):
            for i in range(16):
                out[top + r, start + i] = block[start + i, r]
    for r in range(rows):
        for i in range(whole, len(block)):
            out[top + r, i] = block[i, r]


@numba.njit(cache=True, nogil=True, boundscheck=False)
def down(src: F32, first: I32, groups: I32, weights: F32, out: F32) -> None:
    """Vertical pass: (H, n) → out (h, n)."""
    last = src.shape[0] - 1
    for y in range(len(first)):
        total, k = out[y], weights[y]
        tap = first[y]
        row, k0 = src[tap], k[0]
        for i in range(len(total)):
            total[i] = row[i] * k0
        tap += 1
        for j in range(1, 1 + GROUP * groups[y], GROUP):
            _add_group(total, src[tap], src[tap + 1], src[tap + 2], src[tap + 3], k[j:])
            tap += GROUP
        _add_rest(
            total, src[min(tap, last)], src[min(tap + 1, last)], src[min(tap + 2, last)], k[1 + GROUP * groups[y] :]
        )


@numba.njit(cache=True, nogil=True, boundscheck=False)
def to_bytes(src: F32, out: U8) -> None:
    """Round half to even and clip to 0..255: (h, n) float32 → uint8."""
    for y in range(src.shape[0]):
        for i in range(src.shape[1]):
            out[y, i] = np.uint8(np.int32(np.rint(min(max(src[y, i], np.float32(0)), np.float32(255)))))


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _add_whole(total: I32, a: U8, b: U8, c: U8, d: U8, k: I32) -> None:
    """Four products of integers (numba would widen them to 64 bits, half as many an instruction)."""
    k0, k1, k2, k3 = k[0], k[1], k[2], k[3]
    for i in range(len(total)):
        value = np.int32(total[i] + np.int32(np.int32(a[i]) * k0))
        value = np.int32(value + np.int32(np.int32(b[i]) * k1))
        value = np.int32(value + np.int32(np.int32(c[i]) * k2))
        total[i] = np.int32(value + np.int32(np.int32(d[i]) * k3))


@numba.njit(cache=True, nogil=True, boundscheck=False, inline="always")
def _clipped(value: np.int32) -> np.uint8:
    """Drop the 22 bits of the weights and clip to 0..255."""
    return np.uint8(min(max(np.int32(value >> np.int32(22)), np.int32(0)), np.int32(255)))


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _clip(total: I32, out: U8) -> None:
    """Apply `_clipped` to a row."""
    for i in range(len(total)):
        out[i] = _clipped(total[i])


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _add_pixels(total: I32, turned: U32, tap: int, k: I32) -> None:
    """As `_add_whole`, for red, green and blue (the lower three bytes of a pixel) of four columns of pixels."""
    k0, k1, k2, k3 = k[0], k[1], k[2], k[3]
    for channel in range(3):
        shift = np.uint32(8 * channel)
        for i in range(ROWS):
            a, b = (turned[tap, i] >> shift) & np.uint32(255), (turned[tap + 1, i] >> shift) & np.uint32(255)
            c, d = (turned[tap + 2, i] >> shift) & np.uint32(255), (turned[tap + 3, i] >> shift) & np.uint32(255)
            value = np.int32(total[channel, i] + np.int32(np.int32(a) * k0))
            value = np.int32(value + np.int32(np.int32(b) * k1))
            value = np.int32(value + np.int32(np.int32(c) * k2))
            total[channel, i] = np.int32(value + np.int32(np.int32(d) * k3))


@numba.njit(cache=True, nogil=True, boundscheck=False, inline="always")
def _byte(pixel: np.uint32, shift: np.uint32) -> np.int32:
    return np.int32((pixel >> shift) & np.uint32(255))


# With 4 or 8 weights (scales up to 1.75, nearly all pictures) the sums stay in registers.
@numba.njit(cache=True, nogil=True, boundscheck=False)
def _across_4(turned: U32, tap: int, k: I32, x: int, block: U8, width: int) -> None:
    k0, k1, k2, k3 = k[x, 0], k[x, 1], k[x, 2], k[x, 3]
    for channel in range(3):
        shift, output = np.uint32(8 * channel), channel * width + x
        for i in range(ROWS):
            value = np.int32((1 << 21) + np.int32(_byte(turned[tap, i], shift) * k0))
            value = np.int32(value + np.int32(_byte(turned[tap + 1, i], shift) * k1))
            value = np.int32(value + np.int32(_byte(turned[tap + 2, i], shift) * k2))
            value = np.int32(value + np.int32(_byte(turned[tap + 3, i], shift) * k3))
            block[output, i] = _clipped(value)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _across_8(turned: U32, tap: int, k: I32, x: int, block: U8, width: int) -> None:
    k0, k1, k2, k3, k4, k5, k6, k7 = k[x, 0], k[x, 1], k[x, 2], k[x, 3], k[x, 4], k[x, 5], k[x, 6], k[x, 7]
    for channel in range(3):
        shift, output = np.uint32(8 * channel), channel * width + x
        for i in range(ROWS):
            value = np.int32((1 << 21) + np.int32(_byte(turned[tap, i], shift) * k0))
            value = np.int32(value + np.int32(_byte(turned[tap + 1, i], shift) * k1))
            value = np.int32(value + np.int32(_byte(turned[tap + 2, i], shift) * k2))
            value = np.int32(value + np.int32(_byte(turned[tap + 3, i], shift) * k3))
            value = np.int32(value + np.int32(_byte(turned[tap + 4, i], shift) * k4))
            value = np.int32(value + np.int32(_byte(turned[tap + 5, i], shift) * k5))
            value = np.int32(value + np.int32(_byte(turned[tap + 6, i], shift) * k6))
            value = np.int32(value + np.int32(_byte(turned[tap + 7, i], shift) * k7))
            block[output, i] = _clipped(value)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _down_4(a: U8, b: U8, c: U8, d: U8, k: I32, out: U8) -> None:
    k0, k1, k2, k3 = k[0], k[1], k[2], k[3]
    for i in range(len(out)):
        value = np.int32((1 << 21) + np.int32(np.int32(a[i]) * k0))
        value = np.int32(value + np.int32(np.int32(b[i]) * k1))
        value = np.int32(value + np.int32(np.int32(c[i]) * k2))
        value = np.int32(value + np.int32(np.int32(d[i]) * k3))
        out[i] = _clipped(value)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _down_8(a: U8, b: U8, c: U8, d: U8, e: U8, f: U8, g: U8, h: U8, k: I32, out: U8) -> None:
    k0, k1, k2, k3, k4, k5, k6, k7 = k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]
    for i in range(len(out)):
        value = np.int32((1 << 21) + np.int32(np.int32(a[i]) * k0))
        value = np.int32(value + np.int32(np.int32(b[i]) * k1))
        value = np.int32(value + np.int32(np.int32(c[i]) * k2))
        value = np.int32(value + np.int32(np.int32(d[i]) * k3))
        value = np.int32(value + np.int32(np.int32(e[i]) * k4))
        value = np.int32(value + np.int32(np.int32(f[i]) * k5))
        value = np.int32(value + np.int32(np.int32(g[i]) * k6))
        value = np.int32(value + np.int32(np.int32(h[i]) * k7))
        out[i] = _clipped(value)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _turn_pixels(src: U32, top: int, rows: int, turned: U32) -> None:
    """Rows top..top+rows of (H, W) → (W, ROWS)."""
    if rows == ROWS:  # of known length, the inner loop becomes instructions that gather
        for i in range(src.shape[1]):
            for r in range(ROWS):
                turned[i, r] = src[top + r, i]
        return
    for r in range(rows):
        for i in range(src.shape[1]):
            turned[i, r] = src[top + r, i]


@numba.njit(cache=True, nogil=True, boundscheck=False)
def whole_across(src: U32, first: I32, weights: I32, top: int, rows: int, out: U64) -> None:
    """Pillow's horizontal pass over `rows` rows from `top` on.

    (H, W) pixels of four bytes → out (rows up to a multiple of ROWS, bytes up to a multiple of 8), as words: a row's
    channels apart, 3 * w bytes.
    """
    width, taps = len(first), weights.shape[1]
    turned = np.zeros((src.shape[1] + taps, ROWS), np.uint32)
    total = np.empty((3, ROWS), np.int32)
    block = np.zeros((8 * out.shape[1], ROWS), np.uint8)
    words, out_bytes = block.view(np.uint64), out.view(np.uint8)
    row_bytes = 8 * out.shape[1]
    whole = row_bytes // SIDE * SIDE
    for y in range(0, rows, ROWS):
        _turn_pixels(src, top + y, min(ROWS, rows - y), turned)
        for x in range(width):
            if taps == 4:
                _across_4(turned, first[x], weights, x, block, width)
                continue
            if taps == 8:
                _across_8(turned, first[x], weights, x, block, width)
                continue
            total[:] = np.int32(1 << 21)
            for j in range(0, taps, GROUP):
                _add_pixels(total, turned, first[x] + j, weights[x, j:])
            for channel in range(3):
                _clip(total[channel], block[channel * width + x])
        for start in range(0, whole, SIDE):
            for r in range(0, ROWS, SIDE):
                transpose(block, start * ROWS + r, ROWS, out_bytes, (y + r) * row_bytes + start, row_bytes)
        for column in range(whole // 8, out.shape[1]):
            for r in range(ROWS // 8):
                _turn_words(words, 8 * column, r, 1, out, y + 8 * r, column)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def whole_down(src: U8, first: I32, weights: I32, top: int, out: U8) -> None:
    """Pillow's vertical pass: the first n bytes of (rows, >= n) → out (h, n); `first` counts from row -top of src."""
    last = src.shape[0] - 1
    total = np.empty(out.shape[1], np.int32)
    for y in range(len(first)):
        tap, k = first[y] - top, weights[y]
        if len(k) <= 8:
            a, b, c, d = src[min(tap, last)], src[min(tap + 1, last)], src[min(tap + 2, last)], src[min(tap + 3, last)]
            tap += GROUP
            if len(k) == 4:
                _down_4(a, b, c, d, k, out[y])
                continue
            e, f, g, h = src[min(tap, last)], src[min(tap + 1, last)], src[min(tap + 2, last)], src[min(tap + 3, last)]
            _down_8(a, b, c, d, e, f, g, h, k, out[y])
            continue
        total[:] = np.int32(1 << 21)
        for j in range(0, weights.shape[1], GROUP):
            a, b, c, d = src[min(tap, last)], src[min(tap + 1, last)], src[min(tap + 2, last)], src[min(tap + 3, last)]
            _add_whole(total, a, b, c, d, weights[y, j:])
            tap += GROUP
        _clip(total, out[y])
