"""Work of a Python process of its own: the libraries that it imports take neither memory nor state here.

transformers with torch and torchvision are half a gigabyte of memory, which no process gives back. What a command needs
of them once on a machine is therefore done in a child, whose answer is then remembered.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

_PROGRAM = "from omniprep.child_process import main; main()"


def child_environment() -> dict[str, str]:
    """This process's environment, and its path of modules, so that a child imports what this process would."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folder or os.getcwd() for folder in sys.path)}


def call_in_child(function: str, argument: dict[str, Any]) -> bytes | None:
    """The answer of "module:function", called with JSON types in a new Python process.

    Returns:
        Its bytes; None where the process could not be started or failed. The caller then does the work here, where
        errors have their own types. The function may print to standard error, which is shared.
    """
    child = _start(function, argument)
    if child is None:
        return None
    with child:
        try:
            answer, _ = child.communicate()
        except BaseException:  # Ctrl-C: nobody waits for the answer any more
            child.kill()
            raise
    return answer if child.returncode == 0 else None


def start_in_child(function: str, argument: dict[str, Any]) -> "subprocess.Popen[bytes] | None":
    """Start the same without waiting for it, and without its output; it exits with 0 where it gave an answer.

    It has a session of its own, so that neither Ctrl-C nor the end of this process stops it.
    """
    return _start(function, argument, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _start(
    function: str, argument: dict[str, Any], stdout: int = subprocess.PIPE, stderr: int | None = None, *,
    start_new_session: bool = False,
) -> "subprocess.Popen[bytes] | None":  # fmt: skip
    if not sys.executable:  # Python within another program
        return None
    request = json.dumps({"function": function, "argument": argument}).encode()
    try:
        # -P: PYTHONPATH alone decides, not what lies in the working folder.
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            env=child_environment(),
            start_new_session=start_new_session,
        )
    except OSError:
        return None
    assert child.stdin is not None
    try:
        with child.stdin as pipe:
            pipe.write(request)
    except BrokenPipeError:
        pass  # it ended at once, which its exit status says
    child.stdin = None
    return child


def main() -> None:
    """The child: answer the request on standard input; what libraries print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback beside that of the command
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    module, _, name = request["function"].partition(":")
    try:
        result: bytes | None = getattr(importlib.import_module(module), name)(request["argument"])
    except Exception:  # the caller meets the same error, and tells it
        result = None
    if result is not None:
        answer.write(result)
        answer.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(result is None)  # torch and its like take 0.2 s to be torn down
