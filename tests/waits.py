"""Counts what would make a training step wait for a GPU, on the CPU: values of tensors that the host asks for.

Two nets, since torch reads values in two ways. `WaitCounter` patches the methods of a tensor that give a number or a
list, and sees the operators whose result has a size that only the values know (nonzero, masks as indices, repeats
without a size), which wait on a GPU without any of those methods. Copies from the host to the device wait too; on the
CPU they are no copies, so those of numbers (`torch.tensor(n, device=...)`) are counted by the constructor.
"""

import traceback
from collections import Counter
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

METHODS = ("item", "tolist", "numpy", "cpu", "new_tensor", "__bool__", "__int__", "__float__", "__index__")
CONSTRUCTORS = ("tensor", "as_tensor")
OPERATORS = {
    f"aten::{name}"
    for name in (
        *(
            "_local_scalar_dense",
            "nonzero",
            "is_nonzero",
            "equal",
            "masked_select",
            "masked_scatter",
            "masked_scatter_",
        ),
        *("unique_consecutive", "_unique2", "unique_dim", "bincount", "repeat_interleave.Tensor"),
    )
}


class WaitCounter(TorchDispatchMode):
    """Counts while it is `armed`: in a thread that computes, not in one that reads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.armed = False
        self.inside = False

    def add(self, what: str) -> None:
        """One wait, with the line of ours or of a library that asks."""
        if self.armed:
            frames = [
                f for f in traceback.extract_stack() if "/tests/waits" not in f.filename and "/torch/" not in f.filename
            ]
            where = " < ".join(f"{f.filename.split('/')[-1]}:{f.lineno}" for f in reversed(frames[-4:]))
            self.found[f"{what}: {where}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """See every operator, those of the backward pass and of C++ included."""
        name = func._schema.name + (f".{func._overloadname}" if func._overloadname == "Tensor" else "")
        if not self.inside:
            if name in OPERATORS and not (name.startswith("aten::repeat") and (kwargs or {}).get("output_size")):
                self.add(name)
            indexes = name in ("aten::index.Tensor", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")
            if indexes and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
                self.add(f"{name} with a mask")
        before, self.inside = self.inside, self.inside or name.startswith("omniprep_tests::")  # stands for a kernel
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.inside = before


@contextmanager
def counting(monkeypatch: Any) -> Any:
    """A `WaitCounter` whose methods are patched in; it counts once it is armed."""
    counter = WaitCounter()

    def counted(name: str, plain: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            outermost = not counter.inside
            if outermost:
                if not name.startswith("torch.") or kwargs.get("device") is not None:
                    counter.add(name)
                counter.inside = True
            try:
                return plain(*args, **kwargs)
            finally:
                if outermost:
                    counter.inside = False

        return call

    for name in METHODS:
        monkeypatch.setattr(torch.Tensor, name, counted(f"Tensor.{name}", getattr(torch.Tensor, name)))
    for name in CONSTRUCTORS:
        monkeypatch.setattr(torch, name, counted(f"torch.{name}", getattr(torch, name)))
    with counter:
        yield counter
