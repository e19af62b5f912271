"""The one client for http and https: media that rows name (`--allow-http`), and inputs, manifests and datasets that the
person at the terminal names (omniprep/io/http_files.py).

A host name is resolved once a request and the connection goes to that very address, so a name that changes its mind
between check and use (DNS rebinding) gains nothing; TLS still checks the certificate against the name. Addresses that
are not of the public Internet (loopback, link-local, private, carrier-grade NAT, multicast, and IPv6 forms that embed
such IPv4 addresses) are refused, in a row's URL and behind every redirect; only a URL that was given as an input may
lead to a private server. User names in URLs are refused. No proxy, no cookies, no credentials.

Every request has a deadline that holds for each single read of its socket, and a bound on what may come before the
body, so slow headers and floods of "100 Continue" end too.
"""

import http.client
import io
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from omniprep.errors import Reject, RejectCode
from omniprep.io.retry import jittered, retry

MAX_BYTES = 1 << 30
SECONDS = 300.0
"""For one item with all its redirects and tries."""
CONNECT_SECONDS = 15.0
REDIRECTS = 5
WAITS = (0.5, 2.0, 5.0)
"""Seconds before each further try where the fault may pass (429, 5xx, timeouts, broken connections)."""
MAX_HEAD_BYTES = 1 << 20
"""Of all that precedes a body: status lines, "100 Continue" and headers."""
_BLOCK = 1 << 20
_CONTROL = re.compile(r"[^\x20-\x7e]+")
_REDIRECT = (301, 302, 303, 307, 308)


class PassingError(Exception):
    """A fault that another try may not meet."""


class LateError(PassingError):
    """The deadline has passed."""


def fetch_url(url: str) -> bytes:
    """The bytes at a URL that a row names.

    Raises:
        Reject: media_url_forbidden, media_not_found (404, 410), media_fetch_failed, media_too_large.
    """
    end = time.monotonic() + SECONDS

    def fetch() -> bytes:
        with opened(url, end) as response:
            return read_body(response, shown(url), end)

    def pause_after(error: Exception, attempts: int) -> float | None:
        if not isinstance(error, PassingError):
            return None
        if attempts > len(WAITS) or time.monotonic() + WAITS[attempts - 1] > end:
            raise Reject(RejectCode.MEDIA_FETCH_FAILED, f"{shown(url)}: {error}") from error
        return jittered(WAITS[attempts - 1])

    return retry(fetch, pause_after)


@contextmanager
def opened(
    url: str, end: float, *, headers: Mapping[str, str] | None = None, given: bool = False
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET, after its redirects, of whatever status; PassingError where a connection breaks.

    Of a URL that the person at the terminal gave (`given`) the own host may be private. Redirects lead to public
    addresses all the same; who means a private one can name it.
    """
    for hop in range(REDIRECTS + 1):
        parts = _checked(url)
        connection, link = _connect(parts, shown(url), end, given=given and hop == 0)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            sent = {"Host": parts.netloc, "User-Agent": "omniprep", "Accept-Encoding": "identity", **(headers or {})}
            with _faults():
                connection.request("GET", target, headers=sent)
                response = connection.getresponse()
            if response.status not in _REDIRECT:
                link.head_is_read()
                yield response
                return
            url = _redirected(url, response.getheader("Location"))
        finally:
            connection.close()
            link.end()
    raise Reject(RejectCode.MEDIA_FETCH_FAILED, f"{shown(url)}: more than {REDIRECTS} redirects")


@contextmanager
def _faults() -> Iterator[None]:
    """What sockets and http.client raise, as faults that may pass."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise PassingError(_printable(f"{type(error).__name__}: {error}")) from error


def _redirected(url: str, location: str | None) -> str:
    """The URL that a Location header names; rejects media_fetch_failed where it names none."""
    if not location:
        raise Reject(RejectCode.MEDIA_FETCH_FAILED, f"{shown(url)}: redirected without saying where")
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise Reject(
            RejectCode.MEDIA_FETCH_FAILED, f"{shown(url)}: redirected to what is no URL ({_printable(str(error))})"
        ) from error


def shown(url: str) -> str:
    """A URL for messages: without user, query and fragment, where secrets live, and without control characters."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "a URL that cannot be read"
    text = _printable(f"{parts.scheme}://{host}{parts.path}")
    return (text if len(text) <= 120 else text[:100] + "…") + ("?…" if parts.query else "")


def _printable(text: str) -> str:
    """What a server said, safe for a terminal."""
    return _CONTROL.sub("?", text)[:200]


def public_address(host: str, port: int, label: str) -> tuple[str, int]:
    """One public address of a host; rejects media_url_forbidden where any of its addresses is not public."""
    addresses = _resolved(host, port)
    for address, _ in addresses:
        if not is_public(address):
            raise Reject(RejectCode.MEDIA_URL_FORBIDDEN, f"{label}: leads to {address}, which is no public address")
    return addresses[0]


def _resolved(host: str, port: int) -> list[tuple[str, int]]:
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise PassingError(f"the host name cannot be resolved ({error})") from error
    if not entries:
        raise PassingError("the host name has no address")
    return [(str(address[0]), int(address[1])) for *_, address in entries]


@lru_cache(maxsize=64)
def _given_addresses(host: str, port: int) -> tuple[tuple[str, int], ...]:
    """The addresses of a host that was given by hand, looked up once: what was public then stays so."""
    return tuple(_resolved(host, port))


# Outside this range no IPv6 address is assigned to the Internet: site-local, unique local, link-local, IPv4-compatible,
# translated (::ffff:0:0:0/96, 64:ff9b:1::/48), discard-only, segment routing and multicast among them.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Inside it, or of IPv4, what the standard library's tables (which differ by version) may call global: documentation,
# AS112, the 6to4 relay, protocol assignments (ORCHID, Teredo, drones).
_SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("2001::/23", "2001:db8::/32", "3fff::/20", "2620:4f:8000::/48", "192.0.0.0/24", "192.31.196.0/24"),
        *("192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24", "240.0.0.0/4"),
    )
)


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public Internet, and embeds none that is not."""
    if "%" in text:  # a zone: link-local by nature
        return False
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address in _MAPPED or address in _NAT64:
            return is_public(str(last))
        if address not in _GLOBAL_UNICAST:
            return False
        if address.sixtofour is not None and not is_public(str(address.sixtofour)):
            return False
        if int(address) >> 32 & 0xFCFFFFFF == 0x5EFE and not is_public(str(last)):  # ISATAP, RFC 5214
            return False
    if any(address.version == network.version and address in network for network in _SPECIAL):
        return False
    return address.is_global and not address.is_multicast


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise Reject(RejectCode.MEDIA_URL_FORBIDDEN, f"not a URL: {_printable(str(error))}") from error
    if parts.scheme not in ("http", "https") or not host or not parts.netloc.isascii():
        raise Reject(RejectCode.MEDIA_URL_FORBIDDEN, f"{shown(url)}: not an http(s) URL")
    if parts.username is not None or parts.password is not None:
        raise Reject(RejectCode.MEDIA_URL_FORBIDDEN, f"{shown(url)}: a user name does not belong in a media URL")
    odd = any(ord(c) <= 32 or ord(c) == 127 for c in url) or "\\" in parts.netloc or len(host) > 253
    if odd or (port is not None and not 0 < port < 65536):
        raise Reject(
            RejectCode.MEDIA_URL_FORBIDDEN, f"{shown(url)}: not a URL (control characters, a bad host or port)"
        )
    safe = "/%:@!$&'()*+,;=~-._?"
    try:
        return parts._replace(path=quote(parts.path, safe=safe), query=quote(parts.query, safe=safe))
    except UnicodeEncodeError as error:
        raise Reject(RejectCode.MEDIA_URL_FORBIDDEN, f"{shown(url)}: not a URL (half of a character)") from error


def _connect(
    parts: SplitResult, label: str, end: float, *, given: bool
) -> "tuple[http.client.HTTPConnection, _DeadlineSocket]":
    assert parts.hostname is not None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    addresses = _given_addresses(parts.hostname, port) if given else (public_address(parts.hostname, port, label),)
    connection = http.client.HTTPConnection(parts.hostname, port)
    with _faults():
        plain = _first_connection(addresses, end)
        try:
            if parts.scheme == "https":
                # The handshake as a whole ends with the timeout, not each of its reads.
                plain = ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname)
        except BaseException:
            plain.close()
            raise
    link = _DeadlineSocket(plain, end)
    connection.sock = link
    return connection, link


def _first_connection(addresses: tuple[tuple[str, int], ...], end: float) -> socket.socket:
    for number, address in enumerate(addresses, 1):
        try:
            return socket.create_connection(address, timeout=min(CONNECT_SECONDS, seconds_left(end)))
        except OSError:
            if number == len(addresses):
                raise
    raise AssertionError("not reached")


class _DeadlineSocket:
    """What http.client needs of a socket, with one deadline for everything and a bound on the head."""

    def __init__(self, plain: socket.socket, end: float) -> None:
        self._plain, self._end = plain, end
        self.head_left: float = MAX_HEAD_BYTES

    def head_is_read(self) -> None:
        """The body begins: its size has bounds of its own."""
        self.head_left = float("inf")

    def sendall(self, data: Any) -> None:
        self._plain.settimeout(seconds_left(self._end))  # sendall holds its timeout for the whole call
        self._plain.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_DeadlineReader(self, self._plain, self._end), 64 << 10)

    def close(self) -> None:
        """Do nothing: http.client closes the socket before the answer is read where the server will close it."""

    def end(self) -> None:
        """Close the connection."""
        self._plain.close()


class _DeadlineReader(io.RawIOBase):
    def __init__(self, owner: _DeadlineSocket, plain: socket.socket, end: float) -> None:
        self._owner, self._plain, self._end = owner, plain, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._owner.head_left <= 0:
            raise http.client.HTTPException(f"more than {MAX_HEAD_BYTES:,} bytes before the content")
        self._plain.settimeout(seconds_left(self._end))
        count = self._plain.recv_into(buffer)
        self._owner.head_left -= count
        return count


def seconds_left(end: float) -> float:
    """Seconds before a deadline; LateError once it has passed."""
    left = end - time.monotonic()
    if left <= 0:
        raise LateError("not fetched in time")
    return left


def check_status(response: http.client.HTTPResponse, label: str, *good: int) -> None:
    """Go on for good statuses; PassingError for 429 and 5xx, rejects for others."""
    if response.status in good:
        return
    if response.status in (404, 410):
        raise Reject(RejectCode.MEDIA_NOT_FOUND, f"{label}: the server answers {response.status}")
    answer = f"the server answers {response.status} {_printable(response.reason)}".rstrip()
    if response.status == 429 or response.status >= 500:
        raise PassingError(answer)
    raise Reject(RejectCode.MEDIA_FETCH_FAILED, f"{label}: {answer}")


def read_body(response: http.client.HTTPResponse, label: str, end: float, *, good: tuple[int, ...] = (200,)) -> bytes:
    """The whole content of an answer; rejects as `fetch_url`, PassingError where another try may do."""
    check_status(response, label, *good)
    promised = response.length
    if promised is not None and promised > MAX_BYTES:
        raise Reject(RejectCode.MEDIA_TOO_LARGE, f"{label}: {promised:,} bytes, the limit is {MAX_BYTES:,}")
    data = bytearray()
    with _faults():
        while block := response.read1(_BLOCK):
            data += block
            seconds_left(end)
            if len(data) > MAX_BYTES:
                raise Reject(RejectCode.MEDIA_TOO_LARGE, f"{label}: more than {MAX_BYTES:,} bytes")
    if promised is not None and len(data) != promised:
        raise PassingError(f"the connection ended after {len(data):,} of {promised:,} bytes")
    if not data:
        raise Reject(RejectCode.BAD_MEDIA, f"{label}: the file is empty")
    return bytes(data)
