"""Runs a command in a terminal of its own and gives what is on the screen: pictures and transcripts of the pages."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

LINES = 60
"""Height of the terminal."""
CONTROL = re.compile(r"\x1b\[(\d*)([ABKJGHhl])|\x1b\[\?\d+[hl]|\r\n|[\r\n]")
COLOR = re.compile(r"\x1b\[[\d;]*m|\x1b\]8;[^\x1b]*\x1b\\")
"""Colors, styles and links, which a Screen keeps."""


class Screen:
    """As much of a terminal as progress bars need: lines that are written, overwritten and erased. Colors stay."""

    def __init__(self, written: bytes) -> None:
        """What is on the screen after a program has written this much."""
        self.lines, self.row = [""], 0
        text, start = written.decode(errors="replace"), 0
        for match in CONTROL.finditer(text):
            self.lines[self.row] += text[start : match.start()]
            start = match.end()
            self._obey(match)
        self.lines[self.row] += text[start:]

    def _obey(self, match: re.Match[str]) -> None:
        if "\n" in match[0]:
            self.row += 1
            if self.row == len(self.lines):
                self.lines.append("")
        elif match[2] == "A":
            self.row = max(0, self.row - int(match[1] or 1))
        elif match[2] == "K" or match[0] == "\r":
            self.lines[self.row] = ""

    def text(self) -> str:
        """The lines without colors, without blank ends and blank last lines."""
        lines = [COLOR.sub("", line).rstrip() for line in self.lines]
        return "\n".join(lines).rstrip("\n")


def watch(
    command: list[str],
    folder: Path,
    columns: int,
    until: Callable[[Screen], bool] | None = None,
    env: dict[str, str] | None = None,
) -> tuple[Screen, int]:
    """Run a command in a terminal.

    Args:
        command: Program and arguments.
        folder: Where it runs.
        columns: Width of the terminal.
        until: Of the screens as they follow each other, the last one of which this is true is given.
        env: Variables beside those of this process.

    Returns:
        The screen at the command's end (or see `until`), and its exit code.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    given = {
        **os.environ,
        "COLUMNS": str(columns),
        "LINES": str(LINES),
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
    }
    given |= {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", **(env or {})}
    given.pop("NO_COLOR", None)
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=given, cwd=folder)
    os.close(follower)
    written, kept = b"", None
    while True:
        ready, _, _ = select.select([leader], [], [], 0.5)
        if ready:
            try:
                written += os.read(leader, 1 << 16)
            except OSError:  # the program has closed its end
                break
            if until is not None and until(screen := Screen(written)):
                kept = screen
        elif process.poll() is not None:
            break
    os.close(leader)
    code = process.wait()
    assert until is None or code or kept, "what the picture is of was never on the screen"
    return kept or Screen(written), code
