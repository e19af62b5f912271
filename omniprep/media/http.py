"""Media from http(s) URLs, for `--allow-http`: public addresses only, each redirect looked at again, bounded in size
and time.

The name is resolved once and the connection goes to that very address, so a name that changes its mind between check
and use (DNS rebinding) gains nothing; TLS still checks the certificate against the name. Addresses that are not
global (loopback, link-local, private, carrier-grade NAT, multicast, and IPv6 forms that embed such IPv4 addresses)
are refused, as are user names in URLs. No proxy, no cookies, no credentials; what a server says is never followed
anywhere else.
"""

import http.client
import ipaddress
import random
import socket
import ssl
import time
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from omniprep.errors import Reject, RejectCode

MAX_BYTES = 1 << 30
SECONDS = 300.0
"""For one item with all its redirects and tries."""
CONNECT_SECONDS = 15.0
REDIRECTS = 5
WAITS = (0.5, 2.0, 5.0)
"""Seconds before each further try where the fault may pass (429, 5xx, timeouts, broken connections)."""
_BLOCK = 1 << 20


class _PassingError(Exception):
    """A fault that another try may not meet."""


def fetch_url(url: str) -> bytes:
    """The bytes at a URL.

    Raises:
        Reject: media_url_forbidden, media_not_found (404, 410), media_fetch_failed, media_too_large.
    """
    end = time.monotonic() + SECONDS
    for wait in (*WAITS, None):
        try:
            return _follow(url, end)
        except _PassingError as error:
            if wait is None or time.monotonic() + wait > end:
                raise Reject(RejectCode.MEDIA_FETCH_FAILED, f"{shown(url)}: {error}") from error
            time.sleep(wait * random.uniform(0.75, 1.25))
    raise AssertionError("not reached")


def shown(url: str) -> str:
    """A URL for messages: without user, query and fragment, where secrets live."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a URL that cannot be read"
    text = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    return (text if len(text) <= 120 else text[:100] + "…") + ("?…" if parts.query else "")


def public_address(host: str, port: int, label: str) -> tuple[str, int]:
    """One public address of a host.

    Raises:
        Reject: media_url_forbidden where any of its addresses is not public.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _PassingError(f"the host name cannot be resolved ({error})") from error
    for *_, address in found:
        if not is_public(str(address[0])):
            raise Reject(RejectCode.MEDIA_URL_FORBIDDEN, f"{label}: leads to {address[0]}, which is no public address")
    if not found:
        raise _PassingError("the host name has no address")
    return str(found[0][4][0]), int(found[0][4][1])


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public Internet."""
    try:
        address = ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return address.is_global and not address.is_multicast


def _follow(url: str, end: float) -> bytes:
    for _ in range(REDIRECTS + 1):
        parts = _checked(url)
        connection = _connect(parts, shown(url), end)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"Host": parts.netloc, "User-Agent": "omniprep", "Accept-Encoding": "identity"}
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
            if response.status not in (301, 302, 303, 307, 308):
                return _body(response, shown(url), end)
            url = urljoin(url, response.getheader("Location") or "")
        except (OSError, http.client.HTTPException) as error:
            raise _PassingError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
    raise Reject(RejectCode.MEDIA_FETCH_FAILED, f"{shown(url)}: more than {REDIRECTS} redirects")


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Reject(RejectCode.MEDIA_URL_FORBIDDEN, f"not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not parts.netloc.isascii():
        raise Reject(RejectCode.MEDIA_URL_FORBIDDEN, f"{shown(url)}: not an http(s) URL")
    if parts.username is not None or parts.password is not None:
        raise Reject(RejectCode.MEDIA_URL_FORBIDDEN, f"{shown(url)}: a user name does not belong in a media URL")
    if any(ord(c) <= 32 or ord(c) == 127 for c in url) or (port is not None and not 0 < port < 65536):
        raise Reject(RejectCode.MEDIA_URL_FORBIDDEN, f"{shown(url)}: not a URL (control characters or a bad port)")
    safe = "/%:@!$&'()*+,;=~-._?"
    return parts._replace(path=quote(parts.path, safe=safe), query=quote(parts.query, safe=safe))


def _connect(parts: SplitResult, label: str, end: float) -> http.client.HTTPConnection:
    assert parts.hostname is not None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = public_address(parts.hostname, port, label)
    timeout = min(CONNECT_SECONDS, _left(end))
    connection = http.client.HTTPConnection(parts.hostname, port, timeout=timeout)
    try:
        plain = socket.create_connection(address, timeout=timeout)
        if parts.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname)
        else:
            connection.sock = plain
    except OSError as error:
        raise _PassingError(f"{type(error).__name__}: {error}") from error
    return connection


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise Reject(RejectCode.MEDIA_FETCH_FAILED, f"not fetched within {SECONDS:g} s")
    return left


def _body(response: http.client.HTTPResponse, label: str, end: float) -> bytes:
    if response.status in (404, 410):
        raise Reject(RejectCode.MEDIA_NOT_FOUND, f"{label}: the server answers {response.status}")
    if response.status == 429 or response.status >= 500:
        raise _PassingError(f"the server answers {response.status} {response.reason}")
    if response.status != 200:
        raise Reject(RejectCode.MEDIA_FETCH_FAILED, f"{label}: the server answers {response.status} {response.reason}")
    promised = response.length
    if promised is not None and promised > MAX_BYTES:
        raise Reject(RejectCode.MEDIA_TOO_LARGE, f"{label}: {promised:,} bytes, the limit is {MAX_BYTES:,}")
    data = bytearray()
    while block := response.read1(_BLOCK):
        data += block
        _left(end)
        if len(data) > MAX_BYTES:
            raise Reject(RejectCode.MEDIA_TOO_LARGE, f"{label}: more than {MAX_BYTES:,} bytes")
    if promised is not None and len(data) != promised:
        raise _PassingError(f"the connection ended after {len(data):,} of {promised:,} bytes")
    if not data:
        raise Reject(RejectCode.BAD_MEDIA, f"{label}: the file is empty")
    return bytes(data)
