"""Kernels alone: pixels to floats, copies, and attention within rows by each of its ways."""

from collections.abc import Callable
from typing import Any

import torch
from gpu_report import Bench
from gpu_trace import milliseconds

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def kernels(bench: Bench) -> None:
    """Pixels to floats against a plain copy of as many bytes; copies from the host; a matrix product."""
    from omniprep.data import unpack_pixels

    report, device = bench.report, bench.device
    size = 1 << (20 if bench.small else 31)
    pair = torch.randint(0, 256, (2, size), dtype=torch.uint8, device=device)
    copy = 2 * size / milliseconds(lambda: pair[0].copy_(pair[1]), device) / 1e6
    report.row("kernels", f"copy of {size:,} bytes on the device", gb_per_s=round(copy, 1))
    side = 256 if bench.small else 8192
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    right = torch.randn_like(left)
    product = milliseconds(lambda: left @ right, device)
    report.row("kernels", f"bf16 product of {side} x {side}", tflops=round(2 * side**3 / product / 1e9, 1))
    shares = []
    # As many patches as four bins hold: the launch of one kernel takes as long as the kernel itself does on one bin.
    for patches, frames in ((512, 1), (512, 2)) if bench.small else ((262144, 1), (131072, 2)):
        pixels = torch.randint(0, 256, (patches, 588 * frames), dtype=torch.uint8, device=device)
        call = lambda: unpack_pixels(pixels, mean=MEAN, std=STD, dtype=torch.bfloat16)  # noqa: B023, E731
        took = milliseconds(call, device)
        moved = pixels.numel() + patches * 1176 * 2
        same = torch.equal(call().cpu(), unpack_pixels(pixels.cpu(), mean=MEAN, std=STD, dtype=torch.bfloat16))
        # A plain copy that reads and writes as many bytes together.
        halves = torch.empty(2, moved // 2, dtype=torch.uint8, device=device)
        plain = milliseconds(lambda: halves[0].copy_(halves[1]), device)  # noqa: B023
        shares.append(plain / took)
        report.row(
            "kernels", f"pixels to bf16, {patches:,} patches of {'images' if frames == 1 else 'videos'}",
            ms=round(took, 4), gb_per_s=round(moved / took / 1e6, 1), of_copy=round(shares[-1], 3), same_bits=same,
        )  # fmt: skip
    report.check("pixel kernel, share of the copy's speed (images)", round(shares[0], 3), 0.8, at_least=True)
    if device.type == "cuda":
        host = torch.empty(36 << 20, dtype=torch.uint8)
        pinned, target = host.pin_memory(), torch.empty_like(host, device=device)
        for name, data in (("pinned", pinned), ("pageable", host)):
            took = milliseconds(lambda: target.copy_(data, non_blocking=True), device)  # noqa: B023
            report.row("kernels", f"copy of 36 MiB from {name} memory", ms=round(took, 2))


def attention(bench: Bench) -> None:
    """Forward and backward of 16,384 tokens as rows of 256, 1,024 and 8,192; heads as the 7B's."""
    report, device = bench.report, bench.device
    heads, groups, width = (4, 2, 16) if bench.small else (28, 4, 128)
    tokens = 512 if bench.small else 16384
    for number in (64, 16, 2):
        lengths = [tokens // number] * number
        generator = torch.Generator(device).manual_seed(0)
        query, key, value = (
            torch.randn(1, h, tokens, width, device=device, generator=generator, dtype=torch.bfloat16).requires_grad_()
            for h in (heads, groups, groups)
        )
        weight = torch.randn(1, tokens, heads, width, device=device, dtype=torch.bfloat16)
        ways = {
            k: v for k, v in ATTENTIONS.items() if k != "flex" or not bench.quick
        }  # its kernels take 10 s to compile
        for name, make in ways.items():
            what = f"{name}, {number} rows of {lengths[0]:,}"

            def measure(make: Any = make, what: str = what) -> None:
                call, mask_ms = make(bench, query, key, value, lengths)  # noqa: B023

                def backward() -> None:
                    for tensor in (query, key, value):  # noqa: B023
                        tensor.grad = None
                    call().backward(weight)  # noqa: B023

                with torch.no_grad():
                    forward = milliseconds(call, device)
                both = milliseconds(backward, device)
                extra = {"mask_ms": round(mask_ms, 2)} if mask_ms else {}
                report.row("attention", what, forward_ms=round(forward, 3), both_ms=round(both, 3), **extra)

            report.guard("attention", what, measure, needs=8)


def rows_attention(bench: Bench, query: Any, key: Any, value: Any, lengths: list[int]) -> tuple[Any, float]:
    """SDPA row by row."""
    from omniprep.train.attention import row_attention

    return lambda: row_attention(None, query, key, value, None, row_lengths=lengths)[0], 0.0


def varlen_attention(bench: Bench, query: Any, key: Any, value: Any, lengths: list[int]) -> tuple[Any, float]:
    """One call of torch's variable-length kernel."""
    from omniprep.train.varlen import attend_segments, find_kernel

    kernel = find_kernel("varlen")
    if kernel is None:
        raise RuntimeError(f"torch {torch.__version__} has no variable-length kernel")
    borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=bench.device)
    return lambda: attend_segments(kernel, query, key, value, borders, max(lengths), causal=True), 0.0


def flex_attention(bench: Bench, query: Any, key: Any, value: Any, lengths: list[int]) -> tuple[Any, float]:
    """Compiled flex attention, and the time that its mask takes."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(bench.device)

    def make() -> Any:
        def visible(batch: Any, head: Any, i: Any, j: Any) -> Any:
            return (i >= j) & (rows[i] == rows[j])

        return create_block_mask(visible, 1, None, len(rows), len(rows), device=bench.device)

    mask = make()
    mask_ms = milliseconds(make, bench.device, repeats=3, warmup=1)
    compiled = torch.compile(flex)
    return lambda: compiled(query, key, value, block_mask=mask, enable_gqa=True).transpose(1, 2), mask_ms


ATTENTIONS: dict[str, Callable[..., tuple[Any, float]]] = {
    "row by row": rows_attention,
    "varlen": varlen_attention,
    "flex": flex_attention,
}
