"""The error budget of a build: first rejects shown as they happen, --on-error fail, --max-error-rate."""

from collections import Counter
from collections.abc import Callable, Sequence

from omniprep.compiler.run.tasks import Receipt, RejectedRow, RowPosition, Task
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError
from omniprep.families.errors import FamilyError
from omniprep.progress import Reporter
from omniprep.rows.sources import count_lines
from omniprep.rows.split import Split

EXAMPLES = 2
"""Of each code, shown while the build runs; rejected.jsonl has all."""


class FirstErrors:
    """Shows the first rejects of each code, and ends the build at the first where --on-error says so.

    `locate` gives split and line within it of a row by its number in rows.parquet (of rows that fail while encoding).
    """

    def __init__(
        self, progress: Reporter, config: BuildConfig, splits: Sequence[Split],
        locate: Callable[[int], tuple[int, int]] = lambda row: (0, row),
    ) -> None:  # fmt: skip
        self._progress, self._splits, self._locate = progress, splits, locate
        self._fail = config.on_error == "fail"
        self._shown: Counter[str] = Counter()
        self._line_counts: dict[int, int] = {}
        self._counted = 0
        """Splits from the first on whose lines are counted."""
        self._later: dict[int, tuple[Task, Receipt, bool]] = {}

    def record_line_count(self, split: int, lines: int) -> None:
        """Learn how many lines a split has."""
        self._line_counts[split] = lines
        while self._counted in self._line_counts:
            self._counted += 1

    def show(self, task: Task, receipt: Receipt, *, wanted: bool = False) -> None:
        """Show rejects of a task, a split's when the lines before it are counted; end where --on-error is fail.

        `wanted`: each of them is an event too, whatever is shown.
        """
        if "lines" in receipt:
            self.record_line_count(task.number, receipt["lines"])
        # The rejects of a split are read from its plan, so not where all their codes have been shown.
        if any(wanted or self._fail or self._shown[code] < EXAMPLES for code in task.reject_counts(receipt)):
            self._later[task.number] = task, receipt, wanted
        for number in sorted(self._later):
            if self._fail or number <= self._counted or self._counted == len(self._splits):
                finished, its_receipt, as_events = self._later.pop(number)
                for reject in finished.rejects(its_receipt):
                    self._show(reject, as_event=as_events)

    def _show(self, reject: RejectedRow, *, as_event: bool) -> None:
        code = reject.code
        for_people = self._fail or self._shown[code] < EXAMPLES
        if not for_people and not as_event:
            return
        source, line = self._source_line(reject.position)
        if as_event:
            facts = {"source": source, "line": line, "code": code, "message": reject.message}
            self._progress.event("reject", facts)
        if not for_people:
            return
        text = f"{source}:{line}: {code}: {reject.message}"
        if self._fail:
            raise OmniprepError(f"{text} (--on-error fail)")
        self._shown[code] += 1
        more = " (more of this code are not shown)" if self._shown[code] == EXAMPLES else ""
        self._progress.show_reject(f"rejected: {text}{more}")

    def with_source_line(self, error: FamilyError) -> FamilyError:
        """A fault of the family with the source and line of the row that showed it."""
        if error.row is None:
            return error
        source, line = self._source_line(error.row)
        return error.within(f"{source}:{line}")

    def _source_line(self, position: RowPosition) -> tuple[str, int]:
        """Source and line (from 1) of a row."""
        split, line = position if isinstance(position, tuple) else self._locate(position)
        source = self._splits[split].source
        for number in range(split - 1, -1, -1):
            if self._splits[number].source != source:
                break
            if number not in self._line_counts:  # the build ends here, so it may take a while
                self._line_counts[number] = count_lines(self._splits[number])
            line += self._line_counts[number]
        return source, line + 1


def check_error_rate(config: BuildConfig, rejected: int, read: int, advice: str) -> None:
    """Stop where more rows are rejected than --max-error-rate allows."""
    if read and rejected / read > config.max_error_rate:
        raise OmniprepError(
            f"{rejected} of {read} rows are rejected, more than --max-error-rate {config.max_error_rate}; {advice}"
        )
