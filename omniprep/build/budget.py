"""The error budget of a build: first rejects told as they happen, --on-error fail, --max-error-rate."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from omniprep.build.planfile import read_rejects
from omniprep.build.stages import PlanTask, ShardTask, plan_path
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError

EXAMPLES = 2
"""Of each code, told while the build runs; rejected.jsonl has all."""


class FirstErrors:
    """Tells the first rejects of each code, and ends the build at the first where --on-error says so.

    Args:
        say: Takes a line of text.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        """Nothing told yet."""
        self._say = say
        self._told: Counter[str] = Counter()

    def show(self, task: PlanTask | ShardTask, receipt: dict[str, Any], config: BuildConfig) -> None:
        """Look at the rejects of a task that just ended.

        Raises:
            OmniprepError: There is one, and --on-error is fail.
        """
        for where, code, message in _rejects(task, receipt):
            if config.on_error == "fail":
                raise OmniprepError(f"{where}: {code}: {message} (--on-error fail)")
            self._told[code] += 1
            if self._told[code] <= EXAMPLES:
                more = " (more of this code are not shown)" if self._told[code] == EXAMPLES else ""
                self._say(f"rejected: {where}: {code}: {message}{more}")


def _rejects(task: PlanTask | ShardTask, receipt: dict[str, Any]) -> list[tuple[str, str, str]]:
    if isinstance(task, ShardTask):
        return [(f"row {r['row'] + 1} of all inputs", r["code"], r["message"]) for r in receipt["rejects"]]
    if not receipt["rejected"]:
        return []
    after = f" after byte {task.split.start:,}" if task.split.kind == "jsonl" and task.split.start else ""
    found = read_rejects(plan_path(task.out, task.number, ".arrow"))
    return [(f"{task.split.source}: row {at + 1}{after}", code, message) for at, code, message, _ in found]


def check_error_rate(config: BuildConfig, rejected: int, read: int, where: str) -> None:
    """Stop where more rows are rejected than the budget allows.

    Args:
        config: The build's options.
        rejected: Rows rejected so far.
        read: Rows read.
        where: Where to look for the rejects.

    Raises:
        OmniprepError: The share is above --max-error-rate.
    """
    if read and rejected / read > config.max_error_rate:
        raise OmniprepError(
            f"{rejected} of {read} rows are rejected, more than --max-error-rate {config.max_error_rate}; {where}"
        )
