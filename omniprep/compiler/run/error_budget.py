"""The error budget of a build: first rejects told as they happen, --on-error fail, --max-error-rate."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from omniprep.compiler.plan.file import read_rejects
from omniprep.compiler.run.tasks import PlanTask, Task
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError
from omniprep.families.errors import FamilyError
from omniprep.rows.sources import Split, count_lines

EXAMPLES = 2
"""Of each code, told while the build runs; rejected.jsonl has all."""


class FirstErrors:
    """Tells the first rejects of each code, and ends the build at the first where --on-error says so.

    Args:
        say: Takes a line of text.
        config: The build's options.
        splits: All splits of the build.
        place: Split and line within it of a row, by its number (for rows that fail while encoding).
    """

    def __init__(
        self, say: Callable[[str], None], config: BuildConfig, splits: Sequence[Split],
        place: Callable[[int], tuple[int, int]] = lambda row: (0, row),
    ) -> None:  # fmt: skip
        """Nothing told yet."""
        self._say, self._config, self._splits, self._place = say, config, splits, place
        self._told: Counter[str] = Counter()
        self._lines: dict[int, int] = {}
        self._known = 0
        self._later: dict[int, PlanTask] = {}

    def know(self, number: int, receipt: dict[str, Any]) -> None:
        """Learn from the receipt of a split how many lines it has."""
        self._lines[number] = receipt["lines"]
        while self._known in self._lines:
            self._known += 1

    def show(self, task: Task, receipt: dict[str, Any]) -> None:
        """Look at the rejects of a task that just ended. Those of a split are told when the lines before it are known.

        Raises:
            OmniprepError: There is one, and --on-error is fail.
        """
        if not isinstance(task, PlanTask):
            for reject in receipt["rejects"]:
                self._tell(*self._place(reject["row"]), reject["code"], reject["message"])
            return
        self.know(task.number, receipt)
        if self._config.on_error == "fail" or any(self._told[code] < EXAMPLES for code in receipt["codes"]):
            self._later[task.number] = task
        for number in sorted(self._later):
            if self._config.on_error == "fail" or number <= self._known:
                self._tell_split(self._later.pop(number))

    def _tell_split(self, task: PlanTask) -> None:
        for row in read_rejects(task.plan):
            self._tell(task.number, row.line, row.code, row.message)

    def _tell(self, split: int, line: int, code: str, message: str) -> None:
        if self._config.on_error != "fail" and self._told[code] == EXAMPLES:
            return
        where = self._where(split, line)
        if self._config.on_error == "fail":
            raise OmniprepError(f"{where}: {code}: {message} (--on-error fail)")
        self._told[code] += 1
        more = " (more of this code are not shown)" if self._told[code] == EXAMPLES else ""
        self._say(f"rejected: {where}: {code}: {message}{more}")

    def placed(self, error: FamilyError) -> FamilyError:
        """A fault of the family with the source and line of the row that showed it."""
        if error.place is None:
            return error
        return error.within(self._where(*(error.place if isinstance(error.place, tuple) else self._place(error.place))))

    def _where(self, split: int, line: int) -> str:
        """Source and line (from 1) of a line of a split (from 0)."""
        source = self._splits[split].source
        for number in range(split - 1, -1, -1):
            if self._splits[number].source != source:
                break
            if number not in self._lines:  # the build ends here, so it may take a while
                self._lines[number] = count_lines(self._splits[number])
            line += self._lines[number]
        return f"{source}:{line + 1}"


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
