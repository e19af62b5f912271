"""uint8 patches to the model's floats in one pass over the memory: a Triton kernel, for GPUs.

Plain torch makes five passes (to float32, minus, divided, to the model's type, the temporal copies). An image token of
2,352 bytes becomes 9,408 bytes of bfloat16, and by reckoning 82,000 bytes are read and written on the way there; here
11,760: every byte is read once, every float written once. A value depends on its byte and its channel alone, so plain
torch computes all of them beforehand (`tables`, 256 a channel), and the kernel looks them up: the same bits by
construction. On an H200 it runs at 0.9 of the speed of a copy of as many bytes; with an exact division in the kernel
the pixels of videos ran at 0.8.

`launch` also runs on the CPU under Triton's interpreter (TRITON_INTERPRET=1), which is how it is tested without a GPU.
"""

import torch
import triton
import triton.language as tl

BLOCK = 2048
"""Values that one program writes: 1,024 of an image, which are written twice, 2,048 of a video. With twice as many the
pixels of images took 1.05 times as long, with half as many those of videos 1.5 times (H200).
"""
LARGEST_INT32 = 2**31 - 1


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    patches,
    tables,
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
    channel = ((plane // FRAMES) % CHANNELS).to(tl.int32)
    byte = tl.load(patches + index, mask=inside, other=0).to(tl.int32)
    value = tl.load(tables + channel * 256 + byte)
    first = plane * (COPIES * AREA) + index % AREA
    for copy in tl.static_range(COPIES):
        tl.store(out + first + copy * AREA, value, mask=inside)


def launch(
    patches: torch.Tensor, tables: torch.Tensor, area: int, copies: int, *, largest_int32: int = LARGEST_INT32
) -> torch.Tensor:
    """Normalize patches, uint8 (n, C * T * area), by `tables` (C, 256): (n, C * T * copies * area)."""
    number, width = patches.shape
    out = torch.empty(number, width * copies, dtype=tables.dtype, device=patches.device)
    if not patches.numel():
        return out
    channels, block = len(tables), BLOCK // copies
    # Sizes are constants of the compiled kernel: divisions become multiplications, and stores of neighbors one store.
    # With sizes as arguments and 64-bit indices it ran at 22 % of the speed of a copy (H200).
    _kernel[(triton.cdiv(patches.numel(), block),)](
        patches.contiguous(), tables, out, patches.numel(),
        CHANNELS=channels, FRAMES=width // channels // area, AREA=area, COPIES=copies, BLOCK=block,
        WIDE=out.numel() + BLOCK > largest_int32,
    )  # fmt: skip
    return out
