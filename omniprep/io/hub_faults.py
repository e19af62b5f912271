"""Faults of the Hub and of the network between: which exceptions are one, and which may pass.

huggingface_hub has changed its HTTP library twice (requests before 1.0, httpx in 1.x, httpx2 since) and installs only
the one that it uses. So none of them is imported here: the base class of that library's errors is read off
`HfHubHTTPError`, which derives from it in every version.
"""

from dataclasses import dataclass

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

RETRIED = {408, 409, 412, 425, 429, 500, 502, 503, 504}
"""409 and 412: another commit came between ("A commit has happened since")."""


def _http_error_base() -> type[BaseException]:
    """The base class of all errors of the HTTP library that the installed huggingface_hub uses."""
    foreign = [c for c in HfHubHTTPError.__mro__ if c.__module__.split(".")[0] not in ("huggingface_hub", "builtins")]
    return foreign[-1] if foreign else HfHubHTTPError


_HTTP_ERROR = _http_error_base()


@dataclass(frozen=True, slots=True)
class HubFault:
    """What the network or the Hub did to one request."""

    status: int | None
    """HTTP status of the answer; None where there was none (no connection, broken, timed out)."""
    text: str
    retry_after: float = 0.0
    """Seconds after which the Hub asks to be tried again."""

    @property
    def passing(self) -> bool:
        """Whether the same request may work in a moment."""
        return self.status is None or self.status in RETRIED or "commit has happened since" in self.text


def fault_of(error: BaseException) -> HubFault | None:
    """The Hub's or the network's part in an exception; None where it has none.

    huggingface_hub wraps: an upload that breaks is a RuntimeError ("Error while uploading ..."), a download without
    a connection a LocalEntryNotFoundError, and the HTTP library's error is the cause. So causes are followed.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, OfflineModeIsEnabled):
            return None  # a ConnectionError by its class, but it lasts
        if isinstance(current, (_HTTP_ERROR, HfHubHTTPError, ConnectionError, TimeoutError)):
            return _fault(current)
        seen.add(id(current))
        current = current.__cause__ or current.__context__
    return None


def _fault(error: BaseException) -> HubFault:
    response = getattr(error, "response", None)
    # `is None`: a response of requests is false where its status is 400 or more.
    status = None if response is None else int(response.status_code)
    after = "" if response is None else str(response.headers.get("Retry-After", ""))
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return HubFault(status, text, float(after) if after.isdecimal() else 0.0)
