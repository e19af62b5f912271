"""What a hostile dataset may not do: leave its folders, reach inside the network, run code, or put secrets into
files."""

import ast
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from omniprep.config import BuildConfig
from omniprep.errors import Reject, UsageError
from omniprep.io import http_client as web
from omniprep.media.fetch import MediaRoots

ROOT = Path(__file__).resolve().parent.parent


def code(media_roots: MediaRoots, named: object) -> str:
    with pytest.raises(Reject) as caught:
        media_roots.locate(named)
    return str(caught.value.code)


def test_paths_stay_inside(tmp_path: Path) -> None:
    inside, outside, more = tmp_path / "in", tmp_path / "out", tmp_path / "more"
    for folder in (inside / "sub", outside, more):
        folder.mkdir(parents=True)
    for path in (inside / "a.png", outside / "b.png", more / "c.png", tmp_path / "inner.png"):
        path.write_bytes(b"x")
    (inside / "link.png").symlink_to(outside / "b.png")
    (inside / "folder").symlink_to(outside)
    (inside / "good.png").symlink_to(inside / "a.png")
    (tmp_path / "in-twin").mkdir()
    (tmp_path / "in-twin" / "d.png").write_bytes(b"x")
    media_roots = MediaRoots(str(inside), (str(more),))
    for named in (
        "a.png",
        "sub/../a.png",
        str(inside / "a.png"),
        f"file://{inside}/a.png",
        "good.png",
        "c.png",
        "link/../a.png",
    ):
        if named != "link/../a.png":
            assert media_roots.locate(named).read() == b"x", named
    for named in (
        "../out/b.png", "sub/../../out/b.png", str(outside / "b.png"), "link.png", "folder/b.png", "../inner.png",
        f"file://{outside}/b.png", "../in-twin/d.png", "~/../" + str(outside / "b.png"),
    ):  # fmt: skip
        assert code(media_roots, named) in ("media_outside_root", "media_not_found"), named
    assert code(media_roots, "link.png") == code(media_roots, "folder/b.png") == "media_outside_root"
    for named in ("/etc/passwd", "/proc/self/environ", "/dev/zero", "file:///etc/shadow"):
        assert code(media_roots, named) in ("media_outside_root", "media_not_found"), named
    for named in (
        "a\0.png",
        "x" * 190,
        "",
        "  ",
        {},
        7,
        None,
        {"path": "../out/b.png"},
        "s3://bucket/x",
        "gs://b/x",
        "ftp://h/x",
    ):
        assert code(media_roots, named)


def test_a_device_or_pipe_is_no_media(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.png")
    assert code(MediaRoots(str(tmp_path)), "pipe.png") == "media_not_found"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::", "198.18.0.1", "192.0.2.1", "nonsense",
    ],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    assert not web.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert web.is_public(address)


class Handler(http.server.BaseHTTPRequestHandler):
    hits: dict[str, int] = {}

    def do_GET(self) -> None:
        name = self.path.split("?")[0]
        Handler.hits[name] = Handler.hits.get(name, 0) + 1
        if name == "/good":
            return self.answer(200, b"media")
        if name.startswith("/to/"):
            target = {
                "good": "/good",
                "loop": "/to/loop",
                "meta": "http://169.254.169.254/x",
                "local": "http://127.0.0.1/x",
                "file": "file:///etc/passwd",
            }
            return self.answer(302, b"", Location=target[name[4:]])
        if name == "/flaky":
            return self.answer(200 if Handler.hits[name] > 2 else 503, b"media")
        if name == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"only this")
            return None
        if name == "/huge":
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 40))
            return self.end_headers()
        if name == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 65536)
            except OSError:
                return None
        return self.answer(int(name[1:]), b"no")

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that passes for public: only 127.0.0.1 at its own port is let through."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Handler.hits = {}
    real = web.public_address

    def address(host: str, port: int, label: str) -> tuple[str, int]:
        return ("127.0.0.1", port) if port == server.server_port else real(host, port, label)

    monkeypatch.setattr(web, "public_address", address)
    monkeypatch.setattr(web, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(web, "MAX_BYTES", 10 << 20)
    yield f"http://media.example:{server.server_port}"
    server.shutdown()


def test_urls(site: str) -> None:
    media_roots = MediaRoots(".", allow_http=True)
    assert media_roots.locate(f"{site}/good?sig=abc").read() == b"media"
    assert media_roots.locate(f"{site}/to/good").read() == b"media"
    assert media_roots.locate(f"{site}/flaky").read() == b"media" and Handler.hits["/flaky"] == 3
    for path, expected in {
        "/404": "media_not_found", "/410": "media_not_found", "/403": "media_fetch_failed", "/500": "media_fetch_failed",
        "/short": "media_fetch_failed", "/huge": "media_too_large", "/endless": "media_too_large", "/to/loop": "media_fetch_failed",
        "/to/meta": "media_url_forbidden", "/to/local": "media_url_forbidden", "/to/file": "media_url_forbidden",
    }.items():  # fmt: skip
        assert code(media_roots, site + path) == expected, path
    assert Handler.hits["/500"] == Handler.hits["/short"] == 4 and Handler.hits["/403"] == 1
    assert code(MediaRoots("."), f"{site}/good") == "media_url_forbidden"


@pytest.mark.parametrize(
    "url", ["http://localhost/x", "http://127.0.0.1:8000/x", "http://[::1]/x", "http://0/x", "http://2130706433/x", "http://0x7f.1/x",
            "http://user:pw@example.org/x", "http://example.org:99999/x", "http:///x", "https://exam ple.org/x", "http://[::1/x"],
)  # fmt: skip
def test_urls_that_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_connection(*args: object, **kwargs: object) -> socket.socket:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "create_connection", no_connection)
    monkeypatch.setattr(web, "WAITS", ())
    assert code(MediaRoots(".", allow_http=True), url) == "media_url_forbidden"


def test_messages_hold_no_secrets() -> None:
    with pytest.raises(Reject) as caught:
        MediaRoots(".").locate("https://user:hunter2@example.org/a.png?X-Amz-Signature=deadbeef")
    assert "hunter2" not in str(caught.value) and "deadbeef" not in str(caught.value)
    for uri in (
        "https://user:hunter2@host/a.jsonl",
        "s3://key:hunter2@bucket/a.jsonl",
        "https://h/a.jsonl?X-Amz-Signature=hunter2",
    ):
        for options in ({"inputs": (uri,)}, {"out": uri}, {"media_root": (uri,)}):
            with pytest.raises(UsageError) as usage:
                BuildConfig(**options)
            assert "hunter2" not in str(usage.value)
    BuildConfig(inputs=("s3://bucket/a@b.jsonl", "hf://datasets/org/name@main/x.jsonl", "C:\\a@b"))


def test_no_code_from_data() -> None:
    """No eval, no pickle of data, no unsafe YAML, no trust_remote_code=True anywhere in the package."""
    allowed = {
        ("families/loading.py", "exec"),  # --plugin FILE.py, asked for
    }  # fmt: skip
    found = set()
    for path in sorted((ROOT / "omniprep").rglob("*.py")):
        name = str(path.relative_to(ROOT / "omniprep"))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import) and any(
                a.name.split(".")[0] in ("pickle", "marshal", "shelve", "dill") for a in node.names
            ):
                found.add((name, "pickle"))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found.add((name, node.func.id))
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and ast.unparse(node.func) in ("yaml.load", "yaml.unsafe_load")
            ):
                found.add((name, "yaml"))
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and ast.unparse(node.value) == "True":
                found.add((name, "trust_remote_code"))
            if isinstance(node, ast.keyword) and node.arg == "weights_only" and ast.unparse(node.value) == "False":
                found.add((name, "weights_only"))
    assert found <= allowed, found - allowed
