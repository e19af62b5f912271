"""The command that this process runs: its arguments, how it ended, and whether standard error is lines of JSON."""

import io
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from omniprep.errors import Terminated, error_code
from omniprep.printable import printable_json

LOG_JSON = "OMNIPREP_LOG_JSON"
"""Environment variable that asks for --log-json; `omniprep --log-json COMMAND` sets it."""
VERSION = 1
"""Of the events: it changes where a field is removed or means something else, not where one is added."""


@dataclass(slots=True)
class ThisCommand:
    """What is known of the command line; empty where omniprep was called as a library."""

    arguments: list[str] = field(default_factory=list)
    name: str = ""
    told: BaseException | None = None
    """What ended the command, once its log has the event."""
    plain: TextIO | None = None
    """Standard error, while `sys.stderr` makes lines of JSON of all that is written to it."""

    def begin(self, arguments: Sequence[str]) -> None:
        """A command line is read."""
        self.arguments, self.name, self.told = list(arguments), "", None

    def write_json(self) -> None:
        """From here on, standard error is lines of JSON, what libraries write there too."""
        if self.plain is None:
            self.plain, sys.stderr = sys.stderr, JsonLines(sys.stderr)

    def end(self) -> None:
        """The command is over; standard error is as it was before."""
        if self.plain is not None:
            sys.stderr.flush()
            self.plain, sys.stderr = None, self.plain

    def error_line(self, error: BaseException) -> str | None:
        """The event of an error as a line; None where a log has it."""
        told = self.told is not None and self.told in (
            error,
            error.__context__,
        )  # click raises Abort where it gets Ctrl-C
        return None if told else event_line(self.name, *end_of(error))


this_command = ThisCommand()


class JsonLines(io.TextIOBase):
    """A stream whose lines are events: lines that are none, such as warnings of libraries, become messages."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._rest, self._lock = stream, "", threading.RLock()

    def writable(self) -> bool:
        """Whether it takes text."""
        return True

    def write(self, text: str) -> int:
        """Write the lines that are whole."""
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self._write_line(line)
        return len(text)

    def flush(self) -> None:
        """Write what is left, as a line."""
        with self._lock:
            if self._rest:
                self._write_line(self._rest)
                self._rest = ""
            self._stream.flush()

    def fileno(self) -> int:
        """That of the stream behind it, for programs that are started."""
        return self._stream.fileno()

    def _write_line(self, line: str) -> None:
        if line.strip():
            event = line.startswith('{"time": ')
            self._stream.write(line if event else event_line(this_command.name, "message", {"text": line}))
            self._stream.write("\n")


def event_line(command: str, event: str, facts: Mapping[str, Any]) -> str:
    """An event as a line of JSON."""
    entry = {"time": round(time.time(), 3), "version": VERSION, "command": command, "event": event, **facts}
    return printable_json(entry)


def end_of(error: BaseException) -> tuple[str, dict[str, Any]]:
    """The event of what ended a command, and its facts."""
    terminated = isinstance(error, Terminated) or isinstance(error.__context__, Terminated)
    if isinstance(error, KeyboardInterrupt) or terminated or type(error).__name__ == "Abort":  # click's, of Ctrl-C
        return "interrupted", {"signal": "SIGTERM" if terminated else "SIGINT"}
    return "failed", {"code": error_code(error), "message": str(error) or type(error).__name__}
