"""Which store a name belongs to, and how stores are called: retried, and with the same few errors for all clients."""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar, cast

from omniprep.errors import OmniprepError
from omniprep.io.retry import jittered, retry

__all__ = [
    "REMOTE_MARK",
    "StoreUnavailableError",
    "check_store",
    "filesystem",
    "is_known_scheme",
    "is_local",
    "join",
    "local_path",
]

REMOTE_MARK = "://"
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try of a remote call."""
_PASSING_ERRNOS = {
    errno.EIO,
    errno.EBUSY,
    errno.EAGAIN,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.EREMOTEIO,
    errno.EPIPE,
}
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "'omniprep[s3]'"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    "hf": "huggingface_hub",
}
"""What brings a protocol to fsspec."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
"""RFC 3986: what may stand before "://" for a name to be a URI."""
_CREDENTIALS = re.compile(
    r"ExpiredToken|InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|TokenRefreshRequired|RequestTimeTooSkewed"
    r"|NoCredentials|Unable to locate credentials|[Tt]oken has expired|[Cc]redentials were refreshed"
)
"""How S3 and its client say that nothing of the store can be read with these credentials now, whatever the object."""
T = TypeVar("T")


class StoreUnavailableError(OSError):
    """The store answers nobody now: after all tries, or since the credentials are not valid any more. No fault of the
    object that was asked for, so no row is rejected for it.
    """


def is_local(uri: str) -> bool:
    """Whether the name is a file of this machine: a plain path, or file://.

    A path may hold "://" itself (`/data/a://b`, or a file in a folder called `odd:`): what stands before it is then no
    scheme, or one that fsspec does not know while there is such a folder. `./odd://x` is a path always.
    """
    scheme, mark, _ = uri.partition(REMOTE_MARK)
    if not mark or scheme == "file":
        return True
    if not _SCHEME.fullmatch(scheme):
        return "::" not in scheme  # chains of fsspec (simplecache::s3://) are no paths, and are refused
    return not is_known_scheme(scheme) and os.path.isdir(f"{scheme}:")


def is_known_scheme(scheme: str) -> bool:
    """Whether fsspec knows a kind of store by this name."""
    from fsspec.registry import known_implementations, registry

    return scheme in known_implementations or scheme in registry


def local_path(uri: str) -> str:
    """The plain path of a local URI."""
    return uri[7:] if uri.startswith("file://") else uri


def join(uri: str, *parts: str) -> str:
    """Join with forward slashes for remote URIs and the system's separator for local ones."""
    if is_local(uri):
        return os.path.join(local_path(uri), *parts)
    return "/".join([uri.rstrip("/"), *parts])


def is_s3(fs: Any) -> bool:
    """Whether a filesystem of fsspec is s3fs, whose requests can be made one by one."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return "s3" in protocols and hasattr(fs, "call_s3")


def check_store(uri: str) -> None:
    """OmniprepError where the package of a URI's store is absent, or its scheme is unknown; opens nothing."""
    protocol = "file" if is_local(uri) else uri.split(REMOTE_MARK, 1)[0]
    if protocol in ("http", "https"):
        return
    import fsspec

    with _absent_packages(protocol):
        fsspec.get_filesystem_class(protocol)


@contextmanager
def _absent_packages(protocol: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        package = _PACKAGES.get(protocol, "")
        advice = f"pip install {package}" if package else str(error)
        raise OmniprepError(f"{protocol}:// needs a package that is not installed here: {advice}") from error
    except ValueError as error:
        raise OmniprepError(
            f"{protocol}:// is no kind of store that is known (s3://, gs://, az://, hf:// and others of fsspec are); "
            f"a path on this machine that holds '://' is given as ./{protocol}://…"
        ) from error


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URI, and the path inside it; OmniprepError names an absent package."""
    protocol, path = ("file", local_path(uri)) if is_local(uri) else (uri.split(REMOTE_MARK, 1)[0], "")
    if protocol in ("http", "https"):  # fsspec's own client follows redirects into this network
        fs = web_filesystem(protocol)
        return fs, cast(str, fs._strip_protocol(uri))
    import fsspec

    with _absent_packages(protocol):
        # fsspec keeps instances itself, and knows about forks. Listings are not cached: other machines write here.
        options = {"config_kwargs": _s3_settings()} if protocol in ("s3", "s3a") else {}
        fs = fsspec.filesystem(protocol, use_listings_cache=False, **options)
    return fs, path or cast(str, fs._strip_protocol(uri))


def _s3_settings() -> dict[str, Any]:
    """Settings of the S3 client: the user's, and room for all requests of `omniprep.media.remote` at once (10 by
    default, which at 50 ms an answer is 200 requests a second).
    """
    from fsspec.config import conf

    return {"max_pool_connections": 64, **conf.get("s3", {}).get("config_kwargs", {})}


@lru_cache(maxsize=2)
def web_filesystem(scheme: str) -> Any:
    """The filesystem of http or https; it holds one file of a server without byte ranges, so there is one of each."""
    from omniprep.io.http_files import HttpFileSystem

    return HttpFileSystem(scheme)


def call_store(uri: str, call: Callable[[], T]) -> T:
    """Do a remote call, `len(WAITS) + 1` times where its fault may pass (HTTP 5xx and 429, timeouts, broken
    connections).

    Raises:
        OSError: The fault stays; names the URI. FileNotFoundError for 404, PermissionError for 401 and 403,
            StoreUnavailableError where it is no fault of the object.
    """

    def pause_after(error: Exception, attempts: int) -> float | None:
        reason = " ".join(str(error).split())  # some clients use several lines
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, "no such object", uri) from error
        if _CREDENTIALS.search(f"{type(error).__name__} {reason} {error.__cause__} {error.__context__}"):
            advice = "give valid ones, and the same command goes on"
            raise StoreUnavailableError(errno.EIO, f"the store does not take the credentials ({reason}); {advice}", uri)
        if isinstance(error, PermissionError) or http_status(error) in (401, 403):
            raise PermissionError(errno.EACCES, f"access denied ({reason})", uri) from error
        if not _may_pass(error):
            if _is_of_client(error):
                raise OSError(errno.EIO, reason, uri) from error
            return None
        if attempts > len(WAITS):
            # A server of the web has files of its own that fail; a store answers for all of its objects.
            kind = OSError if uri.startswith(("http://", "https://")) else StoreUnavailableError
            raise kind(errno.EIO, f"{reason} (after {attempts} tries)", uri) from error
        return jittered(WAITS[attempts - 1])

    return retry(call, pause_after)


def _may_pass(error: Exception) -> bool:
    """Whether a remote call that failed like this may work in a moment."""
    if isinstance(error, _LASTING) or type(error).__name__ == "OfflineModeIsEnabled":  # HF_HUB_OFFLINE is set
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    status = http_status(error)
    if status is not None:
        return status >= 500 or status in (408, 429)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING_ERRNOS
    return _is_of_client(error)  # its timeouts, some of which are OSErrors without a number


def _is_of_client(error: Exception) -> bool:
    """Whether an error is of a class of the store's client or its HTTP library, whatever these are called this year."""
    package = type(error).__module__.split(".")[0]
    return package not in sys.stdlib_module_names and package != "omniprep"


def http_status(error: BaseException | None) -> int | None:
    """The HTTP status that an error of one of the stores' clients carries, wherever that client keeps it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:  # aiohttp; requests and httpx; gcsfs and Google's own
        status = (
            getattr(error, "status", None) or getattr(response, "status_code", None) or getattr(error, "code", None)
        )
    if isinstance(error, OSError) and error.errno is None and str(error).startswith("Forbidden: "):
        return 403  # gcsfs says it in words alone
    return status if isinstance(status, int) else None
