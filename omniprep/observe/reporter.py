"""The reporter of a command: what people see, and what programs read of the same run."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from omniprep import __version__
from omniprep.bars import reporter
from omniprep.errors import UsageError
from omniprep.observe.command import end_of, this_command
from omniprep.observe.events import JsonLog
from omniprep.observe.options import ObserveOptions
from omniprep.progress import Reporter, WorkerStatus


class Several(Reporter):
    """Reporters that are all told the same."""

    def __init__(self, *reporters: Reporter) -> None:
        self.reporters = reporters
        self.nested = any(each.nested for each in reporters)

    def wants_rejects(self) -> bool:
        """Whether any of them wants rejects now."""
        return any(each.wants_rejects() for each in self.reporters)

    def start(self, stage: str, total: int | None, unit: str = "rows") -> None:
        """As `Reporter.start`."""
        for each in self.reporters:
            each.start(stage, total, unit)

    def advance(self, stage: str, n: int = 1, *, tokens: int = 0, rejects: int = 0) -> None:
        """As `Reporter.advance`."""
        for each in self.reporters:
            each.advance(stage, n, tokens=tokens, rejects=rejects)

    def finish(self, stage: str) -> None:
        """As `Reporter.finish`."""
        for each in self.reporters:
            each.finish(stage)

    def workers(self, stage: str, statuses: Sequence[WorkerStatus]) -> None:
        """As `Reporter.workers`."""
        for each in self.reporters:
            each.workers(stage, statuses)

    def message(self, text: str) -> None:
        """As `Reporter.message`."""
        for each in self.reporters:
            each.message(text)

    def show_reject(self, text: str) -> None:
        """As `Reporter.show_reject`."""
        for each in self.reporters:
            each.show_reject(text)

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        """As `Reporter.event`."""
        for each in self.reporters:
            each.event(name, facts)


class RejectsLast(Several):
    """A reporter that keeps lines of rejected rows back, for a command whose result lists them."""

    def __init__(self, progress: Reporter) -> None:
        super().__init__(progress)
        self.kept: list[str] = []

    def show_reject(self, text: str) -> None:
        """Keep the line."""
        self.kept.append(text)

    @contextmanager
    def shown_on_failure(self) -> Iterator[None]:
        """A block after which the lines are shown where it fails, since there will be no result."""
        try:
            yield
        except BaseException:
            for text in self.kept:
                super().show_reject(text)
            raise


@contextmanager
def command_reporter(command: str, options: ObserveOptions, *, quiet: bool = False) -> Iterator[Reporter]:
    """What a command reports to, within a `with` block; says that it began, and what ended the block if not well.

    Raises:
        UsageError: The log file cannot be opened, or the port of the metrics is taken.
    """
    with ExitStack() as stack:
        reporters: list[Reporter] = []
        if options.log_json:
            reporters.append(JsonLog(sys.stderr, command))
        else:
            reporters.append(stack.enter_context(reporter(quiet=quiet)))
        if options.log_file:
            reporters.append(JsonLog(stack.enter_context(_appended(options.log_file)), command))
        if options.metrics_port is not None:
            from omniprep.observe.metrics import serve_metrics

            reporters.append(stack.enter_context(serve_metrics(options.metrics_host, options.metrics_port)))
        progress = Several(*reporters)
        progress.event("started", {"pid": os.getpid(), "omniprep": __version__, "arguments": this_command.arguments})
        try:
            yield progress
        except BaseException as error:  # told, and raised again
            name, facts = end_of(error)
            progress.event(name, facts)
            this_command.told = error
            raise


@contextmanager
def _appended(path: str) -> Iterator[TextIO]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(path).open("a", encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--log-file {path}: {error.strerror or error}") from error
        yield file
