"""moto's S3 on loopback behind a layer that counts requests and can make some fail."""

import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib import request

import pytest

BUCKET = "lake"
HANG_SECONDS = 4


@dataclass
class Store:
    """A running server; `fault` may answer a request (method, path) with an HTTP status, "hang" it, "reset" its
    connection, or answer 400 with another word as the code (ExpiredToken)."""

    url: str
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, Range header) of all requests."""
    fault: Callable[[str, str], int | str | None] = lambda method, path: None
    faults: int = 0

    def names(self, prefix: str = "") -> list[str]:
        import s3fs

        fs = s3fs.S3FileSystem(use_listings_cache=False)
        return sorted(name.removeprefix(f"{BUCKET}/") for name in fs.find(f"{BUCKET}/{prefix}"))


@pytest.fixture(scope="module")
def store() -> Iterable[Store]:
    pytest.importorskip("s3fs", reason="s3fs is not installed (omniprep[s3])")
    pytest.importorskip("moto.server", reason="moto is not installed (omniprep[test])")
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    inner = DomainDispatcherApplication(create_backend_app)
    made = Store("")

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        made.requests.append((method, path, environ.get("HTTP_RANGE", "")))
        answer = made.fault(method, path)
        if answer is None:
            return inner(environ, start)  # type: ignore[no-any-return]
        made.faults += 1
        if answer == "hang":
            time.sleep(HANG_SECONDS)
            answer = 503
        if answer == "reset":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        codes = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}
        code, answer = (answer, 400) if isinstance(answer, str) else (codes[answer], answer)
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        start(f"{answer} injected", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [] if method == "HEAD" else [body]

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", made.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret-4711")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        import s3fs

        # moto's state belongs to the process, in which another file of tests may have used it.
        request.urlopen(request.Request(f"{made.url}/moto-api/reset", method="POST")).close()
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem(use_listings_cache=False).mkdir(BUCKET)
        yield made
        s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()
