"""One row as omniprep makes it against the same row as the processor makes it: ids, every tensor, positions.

A difference is a fault unless it is meant: by the family (`Departure`), or by the form of all packed rows (`FORM`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from omniprep.families.kinds import Departure

FORM = {
    "attention_mask": "rows are packed without padding, so their masks hold ones alone",
    "positions": "only the rule of m-rope positions reads them, and positions are stored",
    "whole": "whole numbers are handed to the model as int64",
    "tail": "what the template writes behind the last answer is never trained and nothing follows it",
}
"""Name → why every family's rows differ in it from a processor's."""


@dataclass(slots=True)
class Comparison:
    """What came of one row: names that are equal, differences that are meant, and faults."""

    equal: list[str] = field(default_factory=list)
    meant: dict[str, str] = field(default_factory=dict)
    """Name → reason."""
    faults: list[str] = field(default_factory=list)


def compare(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    positions: torch.Tensor | None,
    *,
    departures: Sequence[Departure],
    may_end_early: bool,
    forward_names: frozenset[str],
    position_names: frozenset[str],
    rounded: Collection[str],
    decode: Any,
) -> Comparison:
    """Compare a row's forward arguments with a processor's.

    Args:
        ours: From `encode_row`.
        theirs: From the processor.
        positions: int64 (3, L) by the model's own rule for the processor's ids; None where it has none.
        departures: Differences that are meant in this row.
        may_end_early: The family writes its text itself, to the end of the last answer.
        forward_names: Arguments of the model's forward; empty where they are not known.
        position_names: Arguments of the model's rule of positions.
        rounded: Names of tensors that are bfloat16 on disk.
        decode: Ids → text, for messages.
    """
    result = Comparison()
    theirs = {name: _in_bfloat16(name, value, result) if name in rounded else value for name, value in theirs.items()}
    meant = {departure.what: departure for departure in departures}
    length = _compare_ids(ours["input_ids"][0], theirs["input_ids"][0], meant, may_end_early, decode, result)
    for name, value in theirs.items():
        if name == "input_ids" or not isinstance(value, torch.Tensor):
            continue
        if name in meant:
            result.meant[name] = meant[name].reason
            if mask := meant[name].mask:
                _compare_tensor(name, _valid(ours[name], ours[mask]), _valid(value, theirs[mask]), result)
        elif name in ours:
            _compare_tensor(name, ours[name], value[:, :length] if _is_of_tokens(value, theirs) else value, result)
        else:
            known = position_names if positions is not None else frozenset()
            _absent(name, value, forward_names, known, result)
    if positions is not None:
        _compare_positions(ours, positions[:, :length], meant, result)
    return result


def _compare_ids(
    ours: torch.Tensor,
    theirs: torch.Tensor,
    meant: Mapping[str, Departure],
    may_end_early: bool,
    decode: Any,
    result: Comparison,
) -> int:
    """Compare ids; returns how many of the processor's stand for the row."""
    if "input_ids" in meant:
        result.meant["input_ids"] = meant["input_ids"].reason
        return len(theirs)
    if torch.equal(ours, theirs):
        result.equal.append("input_ids")
        return len(theirs)
    shared = min(len(ours), len(theirs))
    if may_end_early and len(ours) < len(theirs) and torch.equal(ours, theirs[:shared]):
        result.equal.append("input_ids")
        result.meant["tail"] = f"{FORM['tail']} ({decode(theirs[shared:])!r})"
        return shared
    unequal = (ours[:shared] != theirs[:shared]).nonzero()
    first = int(unequal[0]) if len(unequal) else shared
    around = slice(max(0, first - 4), first + 8)
    result.faults.append(
        f"input_ids differ from token {first} on ({len(ours)} tokens, the processor has {len(theirs)}): "
        f"{decode(ours[around])!r}, the processor has {decode(theirs[around])!r}"
    )
    return shared


def _in_bfloat16(name: str, value: torch.Tensor, result: Comparison) -> torch.Tensor:
    result.meant[f"{name} in bfloat16"] = "stored as the model's towers take it"
    return value.to(torch.bfloat16).to(value.dtype)


def _is_of_tokens(value: torch.Tensor, theirs: Mapping[str, Any]) -> bool:
    return value.shape == theirs["input_ids"].shape


def _valid(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The frames that a mask (items, frames) keeps, of values (items, ..., frames); of the mask itself their number."""
    if values.shape == mask.shape:
        return mask.sum(1)
    return values.movedim(-1, 1)[mask.bool()]


def _compare_tensor(name: str, ours: Any, theirs: torch.Tensor, result: Comparison) -> None:
    if not isinstance(ours, torch.Tensor):
        result.faults.append(f"{name} is no tensor, the processor has one of {_shape(theirs)}")
        return
    if ours.shape != theirs.shape:
        result.faults.append(f"{name} is {_shape(ours)}, the processor has {_shape(theirs)}")
        return
    if ours.dtype != theirs.dtype:
        if ours.is_floating_point() or theirs.is_floating_point():
            result.faults.append(f"{name} is {_kind(ours)}, the processor has {_kind(theirs)}")
            return
        result.meant[f"{name} as {_kind(ours)}"] = f"{FORM['whole']} ({_kind(theirs)} there)"
        theirs = theirs.to(ours.dtype)
    if torch.equal(ours, theirs):
        result.equal.append(name)
        return
    unequal = (ours != theirs).nonzero()
    first = tuple(int(number) for number in unequal[0])
    where = "" if not first else f" at {', '.join(map(str, first))}"
    result.faults.append(
        f"{name} differs in {len(unequal)} of {ours.numel()} values: {_number(ours[first])}{where}, the processor has "
        f"{_number(theirs[first])}{_affine(ours, theirs)}"
    )


def _affine(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """A hint where one is the other with another mean or scale."""
    if not ours.is_floating_point() or ours.numel() < 100:
        return ""
    both = torch.stack([ours.flatten(), theirs.flatten()]).double()
    related = torch.corrcoef(both)[0, 1]
    change = (both[0] - both[1]).abs().mean() / both[1].std()
    return " (as another mean or std would make them)" if related > 0.98 and change > 0.02 else ""


def _absent(
    name: str, value: torch.Tensor, forward_names: frozenset[str], position_names: frozenset[str], result: Comparison
) -> None:
    """A tensor of the processor that the row has not."""
    if name == "attention_mask" and bool(value.all()):
        result.meant[name] = FORM[name]
    elif name in position_names and not name.endswith("_grid_thw"):  # towers read the grids too
        result.meant[name] = FORM["positions"]
    elif forward_names and name not in forward_names:
        result.meant[name] = "the model's forward takes no such argument"
    else:
        result.faults.append(f"{name} {_shape(value)} is absent, the processor gives it")


def _compare_positions(
    ours: Mapping[str, Any], theirs: torch.Tensor, meant: Mapping[str, Departure], result: Comparison
) -> None:
    if "positions" in meant:
        result.meant["positions"] = meant["positions"].reason
        return
    stored = ours["position_ids"]
    stored = stored[1:, 0] if stored.ndim == 3 else stored.expand(3, -1)
    if stored.shape == theirs.shape and torch.equal(stored, theirs):
        result.equal.append("positions")
    elif stored.shape == theirs.shape:
        token = int((stored != theirs).any(0).nonzero()[0])
        result.faults.append(
            f"positions differ from token {token} on: {stored[:, token].tolist()}, the model's get_rope_index has "
            f"{theirs[:, token].tolist()}"
        )
    else:
        result.faults.append(f"positions of {stored.shape[1]} tokens, the model's get_rope_index has {theirs.shape[1]}")


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _number(value: torch.Tensor) -> str:
    return f"{value.item():.4g}" if value.is_floating_point() else str(value.item())
