"""uint8 patches to the model's floats in one pass over the memory: a Triton kernel, for GPUs.

Plain torch makes five passes (to float32, minus, divided, to the model's type, the temporal copies). An image token of
2,352 bytes becomes 9,408 bytes of bfloat16, and by reckoning 82,000 bytes are read and written on the way there; here
11,760: every byte is read once, every float written once. The arithmetic is the same to the bit: float32, minus,
division rounded to nearest (Triton's own `/` is not), then one rounding to the wanted type.

`launch` also runs on the CPU under Triton's interpreter (TRITON_INTERPRET=1), which is how it is tested without a GPU.
"""

import torch
import triton
import triton.language as tl

__all__ = ["launch"]

BLOCK = 2048
"""Values of one program: 16 bytes are loaded at once by each of 128 threads."""
LARGEST_INT32 = 2**31 - 1


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    patches,
    center,
    scale,
    out,
    total,
    CHANNELS: tl.constexpr,
    FRAMES: tl.constexpr,
    AREA: tl.constexpr,
    COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    index = program * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    plane = index // AREA  # (patch, channel, frame) of the value
    channel = (plane // FRAMES) % CHANNELS
    value = tl.load(patches + index, mask=inside, other=0).to(tl.float32)
    value = tl.div_rn(value - tl.load(center + channel), tl.load(scale + channel))
    if out.dtype.element_ty == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even; the interpreter would cut off
        value = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        value = value.to(out.dtype.element_ty)
    first = plane * (COPIES * AREA) + index % AREA
    for copy in tl.static_range(COPIES):
        tl.store(out + first + copy * AREA, value, mask=inside)


def launch(
    patches: torch.Tensor,
    center: torch.Tensor,
    scale: torch.Tensor,
    area: int,
    copies: int,
    dtype: torch.dtype,
    *,
    block: int = BLOCK,
    largest_int32: int = LARGEST_INT32,
) -> torch.Tensor:
    """Normalize patches.

    Args:
        patches: uint8 (n, C * T * area), contiguous.
        center: float32 (C), subtracted.
        scale: float32 (C), divided by.
        area: Pixels of a plane of a patch.
        copies: How often each plane is written, one after the other.
        dtype: Type of the result.
        block: Values of one program, a power of two (for benchmarks).
        largest_int32: Where indices need 64 bits (for tests).

    Returns:
        dtype (n, C * T * copies * area).
    """
    n, width = patches.shape
    out = torch.empty(n, width * copies, dtype=dtype, device=patches.device)
    if not patches.numel():
        return out
    channels = center.numel()
    # Sizes are constants of the compiled kernel: divisions become multiplications, and stores of neighbors one store.
    # With sizes as arguments and 64-bit indices it ran at 22 % of the speed of a copy, so at 86 % (H200).
    _kernel[(triton.cdiv(patches.numel(), block),)](
        patches.contiguous(), center, scale, out, patches.numel(),
        CHANNELS=channels, FRAMES=width // channels // area, AREA=area, COPIES=copies, BLOCK=block,
        WIDE=out.numel() + block * copies > largest_int32,
    )  # fmt: skip
    return out
