"""A small web server for one dataset on this machine: its report, and any bin of it on demand.

It listens on loopback alone and answers GET alone, by Python's own http.server; no name that is asked for ever becomes
a path. Pages of other sites are kept out: a request must name this machine as its host (a site may let its own name
point here: DNS rebinding), and may not come from a page of another origin. There is no password: whoever has an account
on this machine can read what it shows.
"""

import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, cast
from urllib.parse import parse_qs, urlsplit

from omniprep.errors import OmniprepError, UsageError
from omniprep.printable import say
from omniprep.report.answers import Answers, NotFoundError
from omniprep.report.assemble import as_json
from omniprep.report.numbers import MOST_SOURCES, source_facts_of
from omniprep.report.page import collect, page, vocabulary_or_remark
from omniprep.shards.dataset import StoredDataset
from omniprep.shards.manifest import read_manifest

LOOPBACK = "127.0.0.1"
PORT, PORTS_TRIED = 8765, 20
OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
"""Hosts that a request may name; any port, since an SSH tunnel has another one at its other end."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "frame-ancestors 'none'",  # beside that of the page, which cannot say this
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
IDLE_SECONDS = 60


class Query:
    """The parameters of a request, each once."""

    def __init__(self, text: str) -> None:
        try:
            given = parse_qs(text, keep_blank_values=True, max_num_fields=16, errors="strict")
        except ValueError as error:
            raise UsageError(f"parameters that cannot be read: {error}") from error
        self._given = {name: values[-1] for name, values in given.items()}

    def text(self, name: str) -> str:
        """A text, "" where it was not given."""
        return self._given.get(name, "")

    def optional(self, name: str) -> int | None:
        """A number from 0, None where none was given."""
        text = self.text(name)
        if text and not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise UsageError(f"{name} is a number from 0, not {text[:40]!r}")
        return int(text) if text else None

    def number(self, name: str) -> int:
        """A number from 0, which is the default."""
        return self.optional(name) or 0


class Site:
    """The dataset that is served, read again where it has changed; its answers come one at a time."""

    def __init__(
        self, uri: str, model: str | None = None, check_pixels: Literal["first", "always", "never"] = "first"
    ) -> None:
        self._uri, self._model, self._check_pixels = uri, model, check_pixels
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        dataset = StoredDataset(self._uri, check_pixels=self._check_pixels)
        vocabulary, self.remark = vocabulary_or_remark(dataset, self._model)
        data = collect(dataset, vocabulary, shown=0)
        data["statuses"] = dataset.rows["status"].unique().to_pylist()
        data["source_names"] = [fact["source"] for fact in source_facts_of(dataset)[:MOST_SOURCES]]
        data["kinds"] = ["image", "audio", "video", "several media", "text alone"]
        if "verdict" in dataset.rows.column_names:
            data["kinds"] += ["preference pair", "preference verdict"]
        self._page = page(data, served=True).encode(errors="replace")
        self._answers = Answers(dataset, vocabulary)

    def answer(self, path: str, query: Query) -> tuple[str, bytes]:
        """Content type and body for a path.

        Raises:
            NotFoundError: There is no such path, bin, row or picture.
            OmniprepError: A parameter is wrong, or the dataset is damaged.
        """
        with self._lock:
            if path == "/":
                if read_manifest(self._uri)[1] != self._answers.dataset.manifest:
                    self._open()
                return "text/html; charset=utf-8", self._page
            if path == "/picture":
                names = ("bin", "row", "item", "frame")
                return "image/png", self._answers.picture(*(query.number(name) for name in names))
            return "application/json", as_json(self._json(path, query)).encode(errors="replace")

    def _json(self, path: str, query: Query) -> dict[str, Any]:
        answers = self._answers
        if path == "/bin":
            return answers.bin(query.number("bin"), query.number("first"))
        if path == "/row":
            return answers.row(query.number("bin"), query.number("row"))
        if path == "/place":
            return answers.place(query.text("name"))
        if path == "/find":
            wanted: dict[str, Any] = {name: query.text(name) for name in ("kind", "source", "status", "text")}
            wanted |= {name: query.optional(name) for name in ("least", "most")}
            return answers.find(wanted, query.number("after"))
        if path == "/rejects":
            return answers.rejects(query.text("code"), query.text("text"), query.number("offset"))
        raise NotFoundError("there is nothing at this address")


class Handler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def version_string(self) -> str:
        """Who answers, without versions."""
        return "omniprep"

    def do_GET(self) -> None:
        """Answer, or say why not in one line."""
        try:
            if reason := self._refusal():
                self._send(403, "text/plain; charset=utf-8", reason.encode())
                return
            parts = urlsplit(self.path)
            site = cast(DatasetServer, self.server).site
            self._send(200, *site.answer(parts.path, Query(parts.query)))
        except ConnectionError:
            self.close_connection = True  # the browser has left
        except NotFoundError as error:
            self._fault(404, error)
        except UsageError as error:
            self._fault(400, error)
        except (OmniprepError, OSError, ValueError) as error:
            self._fault(500, error)
        except Exception as error:
            say(f"{self.path[:200]}: {type(error).__name__}: {error}", error=True)
            self._fault(500, OmniprepError("a defect of omniprep; the terminal has more"))

    def _refusal(self) -> str:
        """Why a request is not answered, or ""."""
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name.lower() not in OWN_NAMES:
            return f"This server answers requests to {LOOPBACK} and localhost alone.\n"
        # Browsers say where a request comes from; a link from elsewhere to the page itself is no harm.
        origin = self.headers.get("Sec-Fetch-Site", "none")
        is_visit = self.headers.get("Sec-Fetch-Mode") == "navigate" and urlsplit(self.path).path == "/"
        if origin not in ("none", "same-origin") and not is_visit:
            return "This server answers no pages of other sites.\n"
        return ""

    def _fault(self, status: int, error: Exception) -> None:
        self._send(status, "application/json", as_json({"error": str(error)}).encode(errors="replace"))

    def _send(self, status: int, kind: str, body: bytes, more: Mapping[str, str] | None = None) -> None:
        try:
            self.send_response(status)
            fields = {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS, **(more or {})}
            for name, value in fields.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True

    def _refuse_method(self) -> None:
        self.close_connection = True  # what follows the head was not read
        self._send(405, "text/plain; charset=utf-8", b"GET alone.\n", {"Allow": "GET", "Connection": "close"})

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse_method

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a page asks for hundreds of pictures."""


class DatasetServer(ThreadingHTTPServer):
    """The server: a thread a connection, all of which end with the process."""

    daemon_threads = True
    site: Site

    def __init__(self, port: int) -> None:
        super().__init__((LOOPBACK, port), Handler)

    @property
    def url(self) -> str:
        """Where its page is."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is no news; anything else is one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            say(f"{type(error).__name__}: {error}", error=True)


def listen(port: int | None) -> DatasetServer:
    """A server that has its port: `port` itself (0: any that is free), without one `PORT` or the next that is free.

    Raises:
        UsageError: The port is taken, or may not be used.
    """
    for number in range(PORT, PORT + PORTS_TRIED) if port is None else (port,):
        try:
            return DatasetServer(number)
        except OSError as error:
            fault = error
    advice = "name another with --port (0 takes any that is free)"
    raise UsageError(f"--port {number}: {(fault.strerror or str(fault)).lower()}; {advice}")
