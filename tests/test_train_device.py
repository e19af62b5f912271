"""Risk: what reaches the device is not what was stored: other floats, another order, batches lost, an error swallowed."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from omniprep.data.prefetch import moved, prefetched, tensors

KERNEL = """
import torch
from omniprep.data.device import _tables, unpack_pixels
from omniprep.data.pixels import BLOCK, launch
mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
for width in (27, 54):  # patches of 3 x 3 pixels
    every = torch.arange(257).to(torch.uint8)[:, None].expand(-1, width).contiguous()  # each value in each channel
    assert every.numel() % BLOCK, "a last block that is not full"
    for count in (0, 1, 257):
        patches = every[:count]
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            tables = _tables(mean, std, dtype, torch.device("cpu"))
            ours = launch(patches, tables, 9, 54 // width)
            assert ours.dtype == dtype
            plain = unpack_pixels(patches, mean=mean, std=std, patch_size=3, dtype=dtype)
            assert torch.equal(ours, plain), (width, count, dtype)
            # Crops of other families, channels first or last: the same kernel, without temporal copies.
            for inner in (width // 3, 1):
                rows = patches.reshape(-1, 3 * inner)
                channel = torch.arange(3 * inner) // inner
                assert torch.equal(launch(rows, tables, inner, 1), tables[channel, rows.long()]), inner
            wide = launch(patches, tables, 9, 54 // width, largest_int32=0)
            assert torch.equal(wide, plain), ("64-bit indices", width, count, dtype)
print("equal")
"""


def test_the_fused_kernel_gives_the_bits_of_plain_torch():
    """Run by Triton's interpreter; on a GPU the same code is compiled."""
    pytest.importorskip("triton", reason="triton comes with torch for Linux only")
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", KERNEL], env=env, capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr[-3000:]


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from omniprep.data.pixels import _kernel
types = {"patches": "*u8", "tables": "*bf16", "out": "*bf16"}
for total, wide in (("i32", False), ("i64", True)):
    constants = {"CHANNELS": 3, "FRAMES": 1, "AREA": 196, "COPIES": 2, "BLOCK": 1024, "WIDE": wide}
    signature = types | {"total": total} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(_kernel, signature=signature, constexprs=constants)
    print(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"])
"""


def test_the_fused_kernel_compiles_for_a_gpu_without_divisions():
    """Triton compiles without a GPU. Sizes are constants, so the divisions of indices are multiplications."""
    pytest.importorskip("triton", reason="triton comes with torch for Linux only")
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(".entry") == 2
    narrow = done.stdout.split(".entry")[1]
    assert "div." not in narrow and "rem." not in narrow


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_pixels_of_a_gpu_are_those_of_the_host():
    from omniprep.data.device import unpack_pixels

    scaling = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
    for width in (588, 1176):
        patches = torch.randint(0, 256, (1001, width), dtype=torch.uint8)
        for dtype in (torch.float32, torch.bfloat16):
            ours = unpack_pixels(patches.cuda(), dtype=dtype, **scaling).cpu()
            assert torch.equal(ours, unpack_pixels(patches, dtype=dtype, **scaling))


def test_prefetched_items_keep_their_order_and_are_only_so_far_ahead():
    begun = []

    def source():
        for number in range(20):
            begun.append(number)
            yield number

    found = []
    for item in prefetched(source(), lambda n: n * n, depth=2):
        found.append(item)
        assert len(begun) <= len(found) + 4  # two ready, one in the making, one waiting for a place
    assert found == [n * n for n in range(20)]


def test_an_error_of_the_reader_comes_in_its_place():
    def source():
        yield 1
        yield 0

    items = prefetched(source(), lambda n: 1 // n)
    assert next(items) == 1
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_the_thread_ends_with_the_loop():
    before = set(threading.enumerate())
    items = prefetched(iter(range(1000)), lambda n: n)
    assert next(items) == 0
    (thread,) = set(threading.enumerate()) - before
    items.close()
    thread.join(10)
    assert not thread.is_alive()


def test_every_tensor_of_a_batch_is_moved():
    batch = {"stacked": {"ids": torch.arange(3), "longest": 3, "columns": ("a",)}, "weights": None}
    there = moved(batch, torch.device("meta"))
    assert [t.device.type for t in tensors(there)] == ["meta"]
    assert there["stacked"]["longest"] == 3 and there["weights"] is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_batches_arrive_on_the_gpu():
    from omniprep.data.prefetch import on_device

    batches = [{"x": torch.full((1 << 20,), n).pin_memory()} for n in range(8)]
    sums = [int(b["x"].sum()) for b in on_device(iter(batches), torch.device("cuda"))]
    assert sums == [n << 20 for n in range(8)]


def test_a_batch_of_one_buffer_is_the_batch(tmp_path):
    """Every tensor, its type and its place in the nested dicts and records, through one copy to the device."""
    import numpy as np
    from train_helpers import MODALITIES, write_dataset

    from omniprep.data import PackedDataset
    from omniprep.data.prefetch import OneBuffer
    from omniprep.train.batches import Batcher, Bins

    bins = Bins([PackedDataset(str(write_dataset(tmp_path / "d", weighted=True)))])
    batch = Batcher(MODALITIES)([bins[0], bins[1]])
    packed = OneBuffer(batch)
    there, buffer = packed.to(torch.device("cpu"))
    assert there["tokens"] == batch["tokens"] and there["numbers"].row_lengths == batch["numbers"].row_lengths
    assert there["stacked"]["columns"] == batch["stacked"]["columns"]
    pairs = list(zip(tensors(there), tensors(batch), strict=True))
    assert len(pairs) > 10 and {ours.dtype for ours, _ in pairs} >= {torch.uint8, torch.bfloat16, torch.int64}
    storage = buffer.untyped_storage().data_ptr()
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        assert ours.untyped_storage().data_ptr() == storage and ours.data_ptr() % 128 == buffer.data_ptr() % 128
    assert np.array_equal(there["numbers"].cu_seqlens, batch["numbers"].cu_seqlens)
