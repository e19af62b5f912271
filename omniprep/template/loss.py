"""Loss strategies: the weight of each piece of an answer (ms-swift 3.9.3: swift/plugin/loss_scale).

`parse_strategy("last_round+hermes")` follows the chaining grammar of later versions: an optional base (default,
last_round, all), then names whose weights multiply. A single name means what it means in 3.9.3.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from omniprep.errors import UsageError, did_you_mean

RESPONSE, SUFFIX, OTHER = "response", "suffix", "other"
Pieces = list[tuple[str, float]]
WeightMap = dict[str, list[float]]

_REACT: WeightMap = {
    "Action:": [2.0, 2.0],
    "Action Input:": [2.0, 2.0],
    "Thought:": [1.0, 1.0],
    "Final Answer:": [1.0, 1.0],
    "Observation:": [2.0, 0.0],
}
_FLAN: WeightMap = {
    **{
        key: [1.0, 3.0]
        for key in (
            "Name:", "Action:", "ACTION:", "Tool:", "Command", "Arguments:", "action input", "ACTION_INPUT:",
            "Action Input:",
        )
    },
    "Thought:": [1.0, 1.0],
    "Final Answer:": [1.0, 1.0],
    "Observation:": [2.0, 0.0],
}  # fmt: skip
_FLAN_QUERIES = (
    "What is the tool you want to use",
    "What are the required parameter names",
    "What is the value of",
    "What are the required parameter names for this tool",
)
_THINK: WeightMap = {
    r"<think>\s*</think>\s*": [0.0],
    "<seed:think><seed:cot_budget_reflect>The current thinking budget is 0, so I will directly start answering the "
    "question.</seed:cot_budget_reflect>\n\n</seed:think>\\s*": [0.0],
}
# alpha_umi's third rule has three numbers in 3.9.3 (a typo), so it is neither a delimiter nor a pattern there, has no
# effect, and is left out here.
MAPS: dict[str, WeightMap] = {
    "react": _REACT,
    "alpha_umi": _REACT,
    "hermes": {r"<tool_call>.+?</tool_call>": [2.0]},
    "qwen": {"✿FUNCTION✿:": [2.0, 2.0], "✿ARGS✿:": [2.0, 2.0], "✿RETURN✿:": [1.0, 1.0], "✿RESULT✿:": [2.0, 0.0]},
    "agentflan": _FLAN,
    "ignore_empty_think": _THINK,
}
BASES = ("default", "last_round", "all")


@dataclass(frozen=True, slots=True)
class Strategy:
    """A parsed --loss-scale: the base, the maps chained on it, and whether weights other than 0 and 1 occur."""

    base: str
    maps: tuple[str, ...]
    weighted: bool


@lru_cache(maxsize=64)
def parse_strategy(name: str) -> Strategy:
    """Parse a strategy; UsageError for an unknown name."""
    parts = "last_round+ignore_empty_think" if name == "last_round_with_ignore_empty_think" else name
    names = parts.split("+")
    base = names.pop(0) if names[0] in BASES else "default"
    for part in names:
        if part not in MAPS:
            hint = did_you_mean(part, [*BASES, *MAPS]) or f"; known: {', '.join([*BASES, *MAPS])}"
            raise UsageError(f"--loss-scale {name!r}: {part!r} is not a strategy{hint}")
    weighted = any(part != "ignore_empty_think" for part in names)
    return Strategy(base, tuple(names), weighted)


def weigh(strategy: Strategy, text: str, kind: str, *, last_round: bool, query: Any, loss: float | None) -> Pieces:
    """The pieces of one context with their weights; the message's own `loss` overrides the strategy."""
    if kind == RESPONSE and loss is not None:
        return [(text, loss)]
    if strategy.base == "all":
        base = 1.0
    elif kind == RESPONSE:
        base = float(last_round) if strategy.base == "last_round" else 1.0
    else:
        base = float(kind == SUFFIX)
    if kind != RESPONSE or not strategy.maps or base == 0.0:
        return [(text, base)]
    pieces = [(text, base)]
    for name in strategy.maps:
        split = _splitter(name)
        pieces = [(part, weight * factor) for piece, weight in pieces for part, factor in split(piece, query)]
    return pieces


@lru_cache(maxsize=32)
def _splitter(name: str) -> Callable[[str, Any], Pieces]:
    weights = MAPS[name]
    delimiters = [key for key, value in weights.items() if len(value) == 2]
    delimiter = re.compile("(" + "|".join(map(re.escape, delimiters)) + ")")

    def by_delimiters(text: str, query: Any) -> Pieces:
        """Delimiters and the texts behind them (swift/llm/template/utils.py split_str_parts_by)."""
        if name == "agentflan" and any(key in query for key in _FLAN_QUERIES):
            return [(text, 3.0)]
        first, *parts = delimiter.split(text)
        pieces: Pieces = [(first, 1.0)] if first else []
        for key, content in zip(parts[::2], parts[1::2], strict=True):
            pieces += [(key, weights[key][0]), (content, weights[key][1])]
        return pieces

    patterns = [(re.compile(key, re.DOTALL), value[0]) for key, value in weights.items() if len(value) == 1]
    cut = re.compile("|".join(f"({key})" for key, value in weights.items() if len(value) == 1), re.DOTALL)

    def by_patterns(text: str, query: Any) -> Pieces:
        parts = [part for part in cut.split(text) if part]
        return [(part, next((w for pattern, w in patterns if pattern.match(part)), 1.0)) for part in parts]

    return by_delimiters if delimiters else by_patterns
