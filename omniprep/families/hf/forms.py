"""How the tensors that a processor returns are made of its items: learned from examples, and proved on them.

A processor is run on single items and on several together. From these runs follows, for each tensor, along which axis
items follow each other, whether a batch axis stands in front, and in which axes items differ and are padded. A form is
taken only where joining the items by it gives the tensor of all of them, bit by bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from omniprep.families.kinds import Array

MOST_VECTOR = 16
"""Values of an item that are kept as a vector of their own (a grid, a size), which positions may ask for."""


@dataclass(frozen=True, slots=True)
class Form:
    """How one tensor of a processor is stored.

    Attributes:
        layout: As of `Field`: "item" (a vector an item), "flat" (units of items), "row" (a vector a row).
        dtype: Of the tensor, as torch names it.
        shape: Of a unit, or of the vector; 0 where items differ.
        batch_axis: Whether the tensor has an axis of one entry in front.
        is_list: Whether it is a list of tensors, an item's each.
        pad: What the processor pads with.
        stored: The type that its values are stored in.
        per_item: Of a whole row's tensor: whether it has one unit an item; else the first item holds all.
    """

    layout: Literal["item", "flat", "row"]
    dtype: str
    shape: tuple[int, ...]
    batch_axis: bool = False
    is_list: bool = False
    pad: float = 0
    stored: str = ""
    per_item: bool = True


def learn_form(singles: Sequence[Any], joined: Any | None) -> Form | None:
    """The form of a tensor, from its values for single items, and for all of them together (None: never together).

    None where no form gives the joined tensor.
    """
    if isinstance(singles[0], list):
        return _learn_list(singles, joined)
    dtype = dtype_name(singles[0])
    if any(dtype_name(value) != dtype for value in singles) or not singles[0].ndim:
        return None
    arrays = [to_numpy(value) for value in singles]
    if joined is None:
        return _flat(arrays, dtype, False)
    whole = to_numpy(joined)
    for batch_axis in (False, True):
        if batch_axis and not all(len(array) == 1 and array.ndim > 1 for array in [*arrays, whole]):
            continue
        units = [array[0] if batch_axis else array for array in arrays]
        target = whole[0] if batch_axis else whole
        pad = padding_of(units, target)
        if pad is not None and same(join_units(units, pad), target):
            return replace(_flat(units, dtype, batch_axis), pad=pad)
    if whole.size <= MOST_VECTOR and all(same(array, whole) for array in arrays) and len(whole) == 1:
        return Form("row", dtype, whole.shape[1:])
    return None


def learn_row_form(values: Sequence[Any], counts: Sequence[int]) -> Form | None:
    """The form of a tensor of rows whose items depend on each other, from rows of `counts` items."""
    if any(isinstance(value, list) for value in values):
        return None
    dtype = dtype_name(values[0])
    if any(dtype_name(value) != dtype for value in values) or not values[0].ndim:
        return None
    arrays = [to_numpy(value) for value in values]
    if all(len(array) == 1 and array.size <= MOST_VECTOR and array.shape == arrays[0].shape for array in arrays):
        return Form("row", dtype, arrays[0].shape[1:])
    batch_axis = all(len(array) == 1 and array.ndim > 1 for array in arrays)
    units = [array[0] if batch_axis else array for array in arrays]
    per_item = all(len(array) == count for array, count in zip(units, counts, strict=True))
    if not per_item and len({array.shape[1:] for array in units}) > 1:
        return None
    if per_item and not batch_axis:  # an item's rows of a row's tensor: vectors may be told apart
        return _flat([array[number : number + 1] for array in units for number in range(len(array))], dtype, False)
    return replace(_flat(units, dtype, batch_axis), layout="flat", per_item=per_item)


def _learn_list(singles: Sequence[Any], joined: Any | None) -> Form | None:
    if any(not isinstance(value, list) or not value for value in singles):
        return None
    parts = [to_numpy(part) for value in singles for part in value]
    if joined is not None:
        whole = [to_numpy(part) for part in joined] if isinstance(joined, list) else []
        if len(whole) != len(parts) or not all(same(*pair) for pair in zip(parts, whole, strict=True)):
            return None
    if any(len(value) != 1 for value in singles) or not parts[0].ndim:
        return None
    return replace(_flat(parts, dtype_name(singles[0][0]), False), layout="flat", is_list=True)


def _flat(units: Sequence[Array], dtype: str, batch_axis: bool) -> Form:
    axes = zip(*(array.shape[1:] for array in units), strict=True)
    shape = tuple(sizes[0] if len(set(sizes)) == 1 else 0 for sizes in axes)
    flags = dtype in ("int32", "int64") and all(((array == 0) | (array == 1)).all() for array in units)
    large = max(array.size for array in units) > MOST_VECTOR
    return Form("flat", dtype, shape, batch_axis, stored="bool" if flags and large else dtype)


def split_items(value: Any, form: Form, count: int) -> list[Array]:
    """The array of each of `count` items, (units, *shape), of a row's tensor."""
    if form.is_list:
        return [stored(to_numpy(part), form) for part in value]
    array = to_numpy(value)
    if form.layout == "row":
        return [array] * count
    array = stored(array[0] if form.batch_axis else array, form)
    if any(known not in (0, size) for known, size in zip(form.shape, array.shape[1:], strict=True)) or (
        form.layout == "item" and len(array) != count
    ):
        raise ValueError(f"a tensor of {tuple(array.shape)} for {count} items: all examples had {form.shape} an item")
    if count == 1:
        return [array]
    if form.per_item:
        assert len(array) == count, (array.shape, count)
        return [array[number : number + 1] for number in range(count)]
    return [array, *[array[:0]] * (count - 1)]


def stored(array: Array, form: Form) -> Array:
    """Values in the type that they are stored in; OverflowError where they do not fit it."""
    if form.stored != "bool" or array.dtype == np.bool_:
        return array
    flags = array.astype(np.bool_)
    if not (flags == array).all():
        raise OverflowError("a mask of 0 and 1 holds other values")
    return flags


def join_units(units: Sequence[Array], pad: float) -> Array:
    """Units one after the other, each padded at its ends to the largest."""
    if len({array.ndim for array in units}) > 1:
        return np.empty(0)
    most = tuple(max(sizes) for sizes in zip(*(array.shape[1:] for array in units), strict=True))
    result = np.full((sum(map(len, units)), *most), pad, units[0].dtype)
    start = 0
    for array in units:
        result[(slice(start, start + len(array)), *(slice(size) for size in array.shape[1:]))] = array
        start += len(array)
    return result


def padding_of(units: Sequence[Array], whole: Array) -> float | None:
    """The value that items are padded with in a joined tensor; 0 where nothing is; None where shapes do not fit."""
    ones = [np.ones(array.shape, np.bool_) for array in units]
    filled = join_units(ones, 0)
    if filled.shape != whole.shape:
        return None
    rest = whole[~filled.astype(np.bool_)]
    if not rest.size:
        return 0
    return float(rest.flat[0]) if (rest == rest.flat[0]).all() else None


def same(left: Array, right: Array) -> bool:
    """Whether two arrays have the same shape, type and bits."""
    return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()


def same_values(left: Any, right: Any) -> bool:
    """`same` of two tensors, or of two lists of tensors."""
    if isinstance(left, list) or isinstance(right, list):
        both = isinstance(left, list) and isinstance(right, list) and len(left) == len(right)
        return both and all(same_values(*pair) for pair in zip(left, right, strict=True))
    return same(to_numpy(left), to_numpy(right))


def dtype_name(value: Any) -> str:
    """The type of a tensor or array, as torch names it."""
    return str(value.dtype).removeprefix("torch.")


def to_numpy(value: Any) -> Array:
    """A tensor as numpy has it; bfloat16 as its bits."""
    import torch

    if isinstance(value, np.ndarray):
        return value
    value = value.contiguous()
    array: Array = (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy()
    return array
