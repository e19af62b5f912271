"""The masks that transformers' models ask for, as rules that are computed for each row of a bin.

A model says what its tokens see by a function of two positions, put together of the functions of
`transformers.masking_utils`: causal, sliding windows, chunks, blocks (the tokens of one image, a prompt), windows to
both sides. `row_mask` turns it into one of these, none of which is a mask tensor:
- None: plainly causal;
- a tensor without elements, (1, 1, 0, window): causal with a sliding window;
- a tensor without elements, (1, 1, 0, 0), with a `Rule` as its attribute `rule`: anything else, computed for some
  queries and keys of a row at a time (attention.py).

Positions are those within the row, as in the row alone, for whatever counts (windows, chunks); what is said of each
token of the bin (`block_sequence_ids`) is read at its place in the bin.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from omniprep.errors import OmniprepError


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What the tokens of a row see.

    Attributes:
        sees: bool (Q, K) of queries (Q, 1) and keys (1, K), which are positions in the bin, and of the place where
            their row begins.
        back: How far before itself a token sees, at most; None: to the beginning of its row.
        ahead: Likewise behind itself: a number, a function that finds it (which may wait for the device), or None.
    """

    sees: Callable[[Tensor, Tensor, int], Tensor]
    back: int | None = None
    ahead: int | Callable[[], int | None] | None = None

    def furthest_ahead(self) -> int | None:
        """`ahead` as a number."""
        return self.ahead() if callable(self.ahead) else self.ahead


def row_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    config: Any = None,
    **hints: object,
) -> Tensor | None:
    """The mask of a bin (see the module's docstring); a mask function as transformers calls it.

    The shape of a window is read without waiting for a device, and as a constant by torch.compile. Padding (a bin has
    none outside of its rows), a cache, and functions that `understand` does not know are refused.
    """
    if attention_mask is not None or q_offset or kv_offset or q_length != kv_length or batch_size != 1:
        raise OmniprepError("packed attention takes one bin, without padding and without a cache")
    plain = causal_window(mask_function)
    if plain is not None and plain[0]:
        return None if plain[1] is None else torch.empty(1, 1, 0, plain[1])
    rule = understand(mask_function, kv_length)
    if rule is None:
        kind = getattr(config, "model_type", "") or "unknown"
        raise OmniprepError(
            f"a model of type {kind} attends by a mask that omniprep cannot read "
            f"({unknown_part(mask_function, kv_length)}), so that its rows cannot be kept apart here: use --attn eager"
        )
    return marker(rule)


def tower_mask(
    *sizes: object,
    mask_function: Callable[..., Any] = masking_utils.bidirectional_mask_function,
    attention_mask: Tensor | None = None,
    **hints: object,
) -> None:
    """The mask of a tower whose layers get the borders of windows, images or clips: none, all see all within them.

    PaddleOCR-VL's tower asks for one although its layers go by the borders. `sizes` are not looked at: it asks with
    hidden states that have no axis of batches.

    Raises:
        OmniprepError: The tower has padding, or a rule beside its borders.
    """
    if attention_mask is not None or mask_function is not masking_utils.bidirectional_mask_function:
        raise OmniprepError(
            "a tower attends by borders and by a mask at once, which no kernel computes: use --attn sdpa"
        )


def marker(rule: Rule) -> Tensor:
    """The tensor that stands for a rule on its way to the layers."""
    empty = torch.empty(1, 1, 0, 0)
    setattr(empty, "rule", rule)  # noqa: B010  # mypy knows no such attribute of tensors
    return empty


def shifted(rule: Rule, begin: int) -> Rule:
    """A rule of a bin for the row that begins at `begin`, as if it were a bin of its own."""
    return replace(rule, sees=lambda q, k, start: rule.sees(q + begin, k + begin, start + begin))


def code_of(made: Callable[..., Any]) -> CodeType:
    """The code of a mask function: functions of one factory share it."""
    code: CodeType = made.__code__
    return code


# Masks of transformers are closures: a mask is recognized by the code object of the function that made it. Should a
# version of transformers write them otherwise, they are read like those of a model's own file, or refused.
_BLANK = torch.zeros(1, 1)
_AND = code_of(masking_utils.and_masks(masking_utils.causal_mask_function))
_OR = code_of(masking_utils.or_masks(masking_utils.causal_mask_function))
_WINDOW = code_of(masking_utils.sliding_window_overlay(1))
_BOTH_SIDES = code_of(masking_utils.sliding_window_bidirectional_overlay(1))
_CHUNK = code_of(masking_utils.chunked_overlay(1, _BLANK))
_BLOCK = code_of(masking_utils.blockwise_overlay(_BLANK))
_SAME_ROW = code_of(masking_utils.packed_sequence_mask_function(_BLANK))
_REMAPPED = code_of(
    masking_utils.remap_positions_for_packed_sequence(masking_utils.causal_mask_function, torch.zeros(1, 1))
)


def variables_of(mask_function: Callable[..., Any]) -> dict[str, Any]:
    """What a closure holds, by name."""
    code, cells = getattr(mask_function, "__code__", None), getattr(mask_function, "__closure__", None) or ()
    return {} if code is None else dict(zip(code.co_freevars, (cell.cell_contents for cell in cells), strict=True))


def causal_window(mask_function: Callable[..., Any]) -> tuple[bool, int | None] | None:
    """Whether a mask of transformers is causal within a row, and its window or None; None for any other mask."""
    if mask_function is masking_utils.causal_mask_function:
        return True, None
    code, variables = getattr(mask_function, "__code__", None), variables_of(mask_function)
    if code is _SAME_ROW:  # rows are kept apart in any case
        return False, None
    if code is _WINDOW:
        return False, int(variables["sliding_window"])
    if code is _REMAPPED:  # positions within the row instead of within the bin: the attention counts them so too
        return causal_window(variables["mask_function"])
    if code is not _AND:
        return None
    parts = [causal_window(part) for part in variables["mask_functions"]]
    if any(part is None for part in parts):
        return None
    windows = [part[1] for part in parts if part is not None and part[1] is not None]
    return any(part[0] for part in parts if part is not None), min(windows, default=None)


def understand(mask_function: Callable[..., Any], length: int) -> Rule | None:
    """The rule of a mask function for a bin of `length` tokens; None where it cannot be read."""
    if mask_function is masking_utils.causal_mask_function:
        return Rule(sees=lambda q, k, start: k <= q, ahead=0)
    if mask_function is masking_utils.bidirectional_mask_function:
        return everything()
    code, variables = getattr(mask_function, "__code__", None), variables_of(mask_function)
    if code is _SAME_ROW:
        return everything()
    if code is _REMAPPED:
        return understand(variables["mask_function"], length)
    if code is _WINDOW:
        window = int(variables["sliding_window"])
        return Rule(sees=lambda q, k, start: k > q - window, back=window - 1)
    if code is _BOTH_SIDES:
        reach = int(variables["sliding_window"])
        return Rule(sees=lambda q, k, start: (q - k).abs() <= reach, back=reach, ahead=reach)
    if code is _CHUNK:
        chunk = int(variables["chunk_size"])
        return Rule(
            sees=lambda q, k, start: (q - start) // chunk == (k - start) // chunk, back=chunk - 1, ahead=chunk - 1
        )
    if code is _BLOCK:
        return blocks(variables["block_sequence_ids"][0])
    if code in (_AND, _OR):
        parts = [understand(part, length) for part in variables["mask_functions"]]
        whole = [part for part in parts if part is not None]
        return None if len(whole) < len(parts) else joined(whole, both=code is _AND)
    return own_rule(mask_function, variables, length)


def everything() -> Rule:
    """All tokens of the row."""
    return Rule(sees=lambda q, k, start: (q >= start) & (k >= start))


def blocks(ids: Tensor) -> Rule:
    """Tokens of one block see each other; `ids` (L) numbers the blocks, -1 is none."""

    @cache
    def longest() -> int:
        kept = ids >= 0
        blocks_of, where = ids[kept].long(), kept.nonzero()[:, 0]
        if not len(where):
            return 0
        spans = torch.full((2, int(blocks_of.max()) + 1), -len(ids), device=ids.device)
        spans = spans.scatter_reduce(1, blocks_of.expand(2, -1), torch.stack([where, -where]), "amax")
        return int(spans.sum(0).max())  # the last place of a block less its first

    def sees(q: Tensor, k: Tensor, start: int) -> Tensor:
        return (ids[q] == ids[k]) & (ids[q] >= 0)

    return Rule(sees=sees, ahead=longest)


def joined(rules: list[Rule], *, both: bool) -> Rule:
    """What all of some rules allow (`both`), or any of them."""

    def sees(q: Tensor, k: Tensor, start: int) -> Tensor:
        seen = rules[0].sees(q, k, start)
        for rule in rules[1:]:
            seen = seen & rule.sees(q, k, start) if both else seen | rule.sees(q, k, start)
        return seen

    def bound(values: list[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        if both:
            return min(known, default=None)
        return max(known) if len(known) == len(values) else None

    return Rule(
        sees=sees,
        back=bound([rule.back for rule in rules]),
        # Numbers first: where one of all rules is known to look no further, none is asked for what takes a wait.
        # A causal part is asked for first: it needs no search for the longest block.
        ahead=0
        if both and any(rule.ahead == 0 for rule in rules)
        else lambda: bound([r.furthest_ahead() for r in rules]),
    )


def own_rule(mask_function: Callable[..., Any], variables: dict[str, Any], length: int) -> Rule | None:
    """The rule of a mask function from a model's own file, by what it holds; None where that does not say enough.

    One that holds numbers alone is a function of positions: it gets those within the row, as in the row alone. One that
    holds tensors of the bin's length looks up tokens: it gets their places in the bin. `check_packing` shows whether
    that is what the model means.
    """
    if getattr(mask_function, "__code__", None) is None:
        return None
    held = [*variables.values(), *(getattr(mask_function, "__defaults__", None) or ())]
    tensors = [value for value in held if isinstance(value, Tensor)]
    if any(not isinstance(value, (Tensor, int, float, bool, type(None))) for value in held):
        return None
    if any(tuple(tensor.shape) != (1, length) for tensor in tensors):
        return None

    def sees(q: Tensor, k: Tensor, start: int) -> Tensor:
        gap = 0 if tensors else start
        result: Tensor = mask_function(0, 0, q - gap, k - gap)
        return result.to(q.device).expand(len(q), k.shape[1])

    return Rule(sees=sees)


def unknown_part(mask_function: Callable[..., Any], length: int) -> str:
    """The name of the innermost function that `understand` cannot read."""
    variables = variables_of(mask_function)
    inner = [
        *variables.get("mask_functions", ()),
        *([variables["mask_function"]] if "mask_function" in variables else []),
    ]
    for part in inner:
        if understand(part, length) is None and (name := unknown_part(part, length)):
            return name
    return "" if inner else str(getattr(mask_function, "__qualname__", repr(mask_function))).split(".")[0]
