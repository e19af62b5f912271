"""Requests to the Hub: retried where the fault may pass; refusals become one line that says what to do."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from omniprep.errors import OmniprepError
from omniprep.io.hub_faults import fault_of
from omniprep.io.retry import retry as repeat
from omniprep.progress import Reporter

ATTEMPTS = 8
"""Tries of a request whose fault may pass: with pauses that double from one second, about two minutes."""
FIRST_ATTEMPTS = 3
"""Tries of a command's first request if no connection is made: most often the address is wrong or there is no network,
and three seconds suffice to say so."""
FIRST_PAUSE = 1.0
MOST_PAUSE = 300.0
_ADVICE = {
    401: "log in with `hf auth login`, or set HF_TOKEN to a token that is valid",
    403: "your token may not do this there (it needs write access to push, and a gated repository your consent)",
    404: "there is no such dataset or model, or your token may not see it",
}
T = TypeVar("T")


def retry(call: Callable[[], T], progress: Reporter, pause: float = FIRST_PAUSE, *, connected: bool = True) -> T:
    """Do a request, again where its fault may pass; doing it twice must do no harm.

    The pause doubles each time, a quarter added at random, or is as long as the Hub asks. Where no earlier request got
    an answer (`connected`), there are only `FIRST_ATTEMPTS` tries.
    """

    def pause_after(error: Exception, attempts: int) -> float | None:
        fault = fault_of(error)
        most = FIRST_ATTEMPTS if fault is not None and fault.status is None and not connected else ATTEMPTS
        if fault is None or not fault.passing or attempts >= most:
            return None
        seconds = max(pause * 2 ** (attempts - 1) * (1 + random.random() / 4), fault.retry_after)
        seconds = min(seconds, MOST_PAUSE)
        reason = f"the Hub says {fault.status}" if fault.status else f"no answer from the Hub ({fault.text})"
        progress.message(f"{reason}; again in {seconds:.0f} s")
        return seconds

    return repeat(call, pause_after)


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call returns or raises within some seconds; else TimeoutError, its thread abandoned.

    A name server that does not answer has no timeout of its own.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised again below, in the thread that asked
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return results[0]


def refuse_offline(what: str, advice: str = "") -> None:
    """Fail a command that needs the Hub where HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set."""
    if constants.HF_HUB_OFFLINE:
        raise OmniprepError(f"{what} needs the Hub, but HF_HUB_OFFLINE is set; unset it{advice}")


@contextmanager
def hub_errors_as_one_line(repo_id: str) -> Iterator[None]:
    """Turn what the Hub and the network refuse into an OmniprepError that names the repository."""
    try:
        yield
    except OmniprepError:
        raise
    except (HFValidationError, OfflineModeIsEnabled) as error:
        raise OmniprepError(f"{repo_id}: {_line(error)}") from error
    except Exception as error:
        fault = fault_of(error)
        if fault is not None and fault.status is not None:
            advice = _ADVICE.get(fault.status, fault.text)
            raise OmniprepError(f"{repo_id}: the Hub says {fault.status}: {advice}") from error
        if fault is not None:
            where = f"{constants.ENDPOINT} does not answer: {fault.text}; check the network, then do the same again"
            raise OmniprepError(f"{repo_id}: {where}") from error
        if isinstance(error, LocalEntryNotFoundError):
            raise OmniprepError(f"{repo_id}: {_line(error)}") from error
        raise


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
