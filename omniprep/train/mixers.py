"""Layers that mix tokens by other means than attention: convolutions, linear attention, state spaces.

They carry a state from token to token, and so from row to row. Some take borders of rows (GatedDeltaNet's kernels),
most take none, some raise where they get borders, and which do depends on the packages installed. So they are found by
what they do: two bins that differ in their first row alone go through the model, and the first module of a layer whose
output of the second row differs, for the same input, or that raises, mixes rows. All modules of its class then compute
row by row, and the bins go through again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from omniprep.errors import OmniprepError
from omniprep.train.attention import RowBorders
from omniprep.train.masks import marker, shifted

NEGLIGIBLE = 1e-5
NEGLIGIBLE_IN_HALF = 2e-3
"""Largest difference of outputs, relative to the largest of them, that kernels have between two calls (experts get
other tokens). A state that leaks into the next row is a hundred times that; isolation.py looks again at the logits."""
BORDERS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "row_lengths", "seq_idx")


def split_mixers(decoder: nn.Module, borders: RowBorders, run: Callable[[int], object], first_row: int) -> list[str]:
    """Let the modules of `decoder` that mix rows compute row by row; the names of their classes.

    Args:
        decoder: The language model.
        borders: What the modules read the borders of rows from.
        run: Computes one of two bins (0, 1), which differ in their first row alone.
        first_row: Tokens of that row.
    """
    split: list[str] = []
    while True:
        mixing = find_mixing(decoder, run, first_row)
        if mixing is None:
            return split
        name, module = mixing
        kind = type(module).__name__
        if kind in split:
            raise OmniprepError(
                f"the rows of a bin see each other in {kind} ({name}), or it fails, also where it computes "
                "each row alone: it cannot train on bins"
            )
        split.append(kind)
        for each in decoder.modules():
            if type(each) is type(module):
                each.forward = by_rows(each.forward, borders)


def find_mixing(decoder: nn.Module, run: Callable[[int], object], first_row: int) -> tuple[str, nn.Module] | None:
    """The first module of a layer whose output of the second row depends on the first row, or that takes no borders.

    None where there is none.
    """
    seen: list[dict[str, tuple[Tensor, Tensor]]] = [{}, {}]
    entered: list[str] = []
    for number in (0, 1):
        hooks = []
        for name in layer_parts(decoder):
            part = decoder.get_submodule(name)
            hooks.append(part.register_forward_pre_hook(lambda *_, name=name: entered.append(name)))
            hooks.append(part.register_forward_hook(recorder(seen[number], name, first_row), with_kwargs=True))
        try:
            run(number)
        except (TypeError, ValueError, NotImplementedError) as error:
            # From within a module that was not left: it has something against borders, and gets none as it is split.
            if isinstance(error, OmniprepError) or not entered or entered[-1] in seen[number]:
                raise
            return entered[-1], decoder.get_submodule(entered[-1])
        finally:
            for hook in hooks:
                hook.remove()
    for name, (given, made) in seen[0].items():  # in the order of the calls
        other = seen[1].get(name)
        if other is not None and is_same(given, other[0]) and not is_same(made, other[1]):
            return name, decoder.get_submodule(name)
    return None


def layer_parts(decoder: nn.Module) -> list[str]:
    """Names of the parts of all layers: the children of the modules in lists."""
    layers = [
        f"{name}.{number}" if name else number
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList)
        for number, _ in module.named_children()
    ]
    outer = [name for name in layers if not any(name.startswith(f"{other}.") for other in layers if other != name)]
    return [f"{layer}.{child}" for layer in outer for child, _ in decoder.get_submodule(layer).named_children()]


def recorder(seen: dict[str, tuple[Tensor, Tensor]], name: str, first_row: int) -> Callable[..., None]:
    """A hook that keeps what a module got and gave for the tokens behind the first row."""

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = kwargs.get("hidden_states", args[0] if args else None)
        made = output[0] if isinstance(output, tuple) else output
        if isinstance(given, Tensor) and isinstance(made, Tensor) and given.ndim == made.ndim == 3:
            seen.setdefault(name, (given[:, first_row:].detach(), made[:, first_row:].detach()))

    return keep


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors differ by rounding alone."""
    if one.shape != other.shape:
        return False
    allowed = NEGLIGIBLE if one.dtype == torch.float32 else NEGLIGIBLE_IN_HALF
    one, other = one.float(), other.float()
    return float((one - other).abs().max()) <= allowed * max(float(one.abs().max()), 1e-30)


def by_rows(forward: Callable[..., Any], borders: RowBorders) -> Callable[..., Any]:
    """A module's forward pass, of each row alone."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if borders.lengths is None:
            return forward(*args, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in BORDERS}
        whole = borders.edges, borders.lengths
        total = sum(borders.lengths)
        parts = []
        try:
            for start, end in pairwise([0, *accumulate(whole[1])]):
                if whole[0] is not None:  # attention within the module has this row alone
                    borders.edges, borders.lengths = whole[0].new_tensor([0, end - start]), (end - start,)
                row = {name: cut(value, start, end, total) for name, value in kwargs.items()}
                parts.append(forward(*cut(args, start, end, total), **row))
        finally:
            borders.edges, borders.lengths = whole
        return joined(parts)

    return run


def cut(value: Any, start: int, end: int, total: int) -> Any:
    """The tokens of one row of an argument: of tensors whose second or last axis is the tokens of the bin."""
    if isinstance(value, (tuple, list)):
        return type(value)(cut(part, start, end, total) for part in value)
    if not isinstance(value, Tensor):
        return value
    if (rule := getattr(value, "rule", None)) is not None:
        return marker(shifted(rule, start))
    if value.ndim == 4 and value.shape[2:] == (total, total):  # a mask
        return value[:, :, start:end, start:end]
    if value.ndim > 1 and value.shape[1] == total:
        return value[:, start:end]
    return value[..., start:end] if value.ndim and value.shape[-1] == total else value


def joined(parts: Sequence[Any]) -> Any:
    """What a module gave for each row, as for the bin."""
    first = parts[0]
    if isinstance(first, tuple):
        return tuple(joined(each) for each in zip(*parts, strict=True))
    if first is None:
        return None
    if not isinstance(first, Tensor) or first.ndim < 2:
        raise OmniprepError(f"a layer that mixes tokens gives {type(first).__name__}, which has no rows to join")
    return torch.cat(list(parts), 1)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model without dropout and gradients, and afterwards as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
