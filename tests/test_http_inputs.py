"""Inputs and datasets on web servers: read as the files they are, and no way into this machine or its network.

The servers here are on loopback, as the private servers of a person are: the URL that is given may lead there, a
redirect may not, and neither may a URL that a row names.
"""

import functools
import http.server
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from omniprep import io as files
from omniprep.errors import Reject
from omniprep.io import http_client as web
from omniprep.io import stores
from omniprep.media.fetch import MediaRoots
from tests.conftest import SAMPLES, Result

SECRET = b'{"messages": [{"role": "user", "content": "SECRET"}, {"role": "assistant", "content": "SECRET"}]}\n'


class Server(http.server.SimpleHTTPRequestHandler):
    """A folder, with byte ranges as every store gives them (`ranges`), and redirects (/to?URL)."""

    ranges = True
    asked: list[str] = []

    def do_GET(self) -> None:
        Server.asked.append(self.path)
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", unquote(self.path[4:]))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.path == "/secret.jsonl":
            return self.answer(SECRET)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        return self.answer(path.read_bytes())

    def answer(self, data: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if asked and self.ranges:
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            self.send_response(206 if first < len(data) else 416)
            total = f"bytes {first}-{last}/{len(data)}" if first < len(data) else f"bytes */{len(data)}"
            self.send_header("Content-Range", total)
            data = data[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


class PlainServer(Server):
    ranges = False


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    servers = []

    def start(folder: Path, handler: type[Server] = Server) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    Server.asked = []
    web._given_addresses.cache_clear()
    stores.web_filesystem.cache_clear()
    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WAITS", (0.01,))
    monkeypatch.setattr(web, "WAITS", (0.01,))


@pytest.mark.parametrize("handler", [Server, PlainServer])
def test_files_are_read_as_they_are(serve: Callable[..., str], tmp_path: Path, handler: type[Server]) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "a.bin").write_bytes(data)
    (tmp_path / "none").write_bytes(b"")
    site = serve(tmp_path, handler)
    assert files.exists(f"{site}/a.bin") and not files.exists(f"{site}/b.bin")
    assert files.size(f"{site}/a.bin") == len(data) and files.size(f"{site}/none") == 0
    assert files.read_bytes(f"{site}/a.bin") == data and files.read_bytes(f"{site}/none") == b""
    assert files.read_range(f"{site}/a.bin", 1000, 1077) == data[1000:1077]
    assert files.fingerprint(f"{site}/a.bin") == files.fingerprint(f"{site}/a.bin")
    with files.open_input(f"{site}/a.bin") as file:
        file.seek(-10, io.SEEK_END)
        assert file.read() == data[-10:]
        file.seek(5)
        assert file.read(6) == data[5:11]
    with pytest.raises(FileNotFoundError, match="no such object"):
        files.size(f"{site}/b.bin")
    with pytest.raises(OSError, match="read only"):
        files.write_atomic(f"{site}/new", b"x")
    with pytest.raises(OSError, match="cannot list"):
        files.list_folder(f"{site}/")


def test_a_build_from_a_web_server(
    serve: Callable[..., str], tmp_path: Path, model_dir: Path, omniprep: Callable[..., Result]
) -> None:
    """The same plan as from the folder; media beside the file are read from beside the URL."""
    chats = [json.loads(line) for line in (SAMPLES / "images.jsonl").read_text().splitlines()[:3]]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (tmp_path / "media").symlink_to(SAMPLES / "media")
    site = serve(tmp_path)
    there = omniprep("plan", f"{site}/in.jsonl", "--model", model_dir, "--bin-length", 4096, "--workers", 0, "--quiet")
    here = omniprep(
        "plan", tmp_path / "in.jsonl", "--media-root", SAMPLES, "--model", model_dir, "--bin-length", 4096,
        "--workers", 0, "--quiet",
    )  # fmt: skip
    assert there.code == here.code == 0, there.err + here.err
    counted = [[line for line in r.out.splitlines() if "tokens" in line or "rows" in line] for r in (there, here)]
    assert counted[0] == counted[1] and counted[0]


def test_a_dataset_on_a_web_server(serve: Callable[..., str], tmp_path: Path) -> None:
    from omniprep import PackedDataset
    from tests.synthetic import make_dataset

    make_dataset(tmp_path / "ds", n_rows=20)
    there, here = PackedDataset(f"{serve(tmp_path)}/ds"), PackedDataset(str(tmp_path / "ds"))
    assert len(there) == len(here)
    for number in range(len(here)):
        assert there[number]["input_ids"].tolist() == here[number]["input_ids"].tolist()


def test_media_of_a_web_server_that_redirects_cost_their_row(serve: Callable[..., str], tmp_path: Path) -> None:
    site = serve(tmp_path)
    with pytest.raises(Reject) as caught:
        MediaRoots(site).locate("to?http:%2F%2F127.0.0.1:9%2Fsecret.png")
    assert caught.value.code == "media_fetch_failed" and "no public address" in caught.value.message


@pytest.mark.parametrize("place", ["127.0.0.1", "localhost", "[::1]", "2130706433", "[::ffff:127.0.0.1]", "0"])
@pytest.mark.parametrize("command", ["plan", "build"])
def test_a_redirect_does_not_lead_into_this_network(
    serve: Callable[..., str], tmp_path: Path, model_dir: Path, omniprep: Callable[..., Result], place: str,
    command: str, quick: None,
) -> None:  # fmt: skip
    site, other = serve(tmp_path), serve(tmp_path)
    target = f"http://{place}:{other.rpartition(':')[2]}/secret.jsonl"
    out = ("--out", tmp_path / "out") if command == "build" else ()
    done = omniprep(
        command, f"{site}/to?{target}", "--model", model_dir, "--bin-length", 512, "--workers", 0, "--quiet", *out
    )
    assert done.code != 0 and "/secret.jsonl" not in Server.asked, done.out
    assert "Traceback" not in done.err and "no public address" in " ".join(done.err.split()), done.err


def test_redirects_to_the_same_private_server_are_refused_too(serve: Callable[..., str], tmp_path: Path) -> None:
    site = serve(tmp_path)
    with pytest.raises(PermissionError, match="give its URL itself"):
        files.size(f"{site}/to?/secret.jsonl")
    assert Server.asked == ["/to?/secret.jsonl"]
    assert files.read_bytes(f"{site}/secret.jsonl") == SECRET  # what is given by hand is read


def test_a_given_name_is_looked_up_once(
    serve: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """A name that answers with a private address the second time (DNS rebinding) gains nothing."""
    (tmp_path / "a").write_bytes(b"here")
    port = int(serve(tmp_path).rpartition(":")[2])
    answers = ["127.0.0.1", "127.0.0.2"]

    def lookup(host: str, port: int, *args: object, **options: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr(web.socket, "getaddrinfo", lookup)
    asked: list[object] = []
    real = socket.create_connection

    def connect(address: tuple[str, int], *args: object, **options: object) -> socket.socket:
        asked.append(address)
        monkeypatch.setattr(web.socket, "getaddrinfo", socket.getaddrinfo)
        plain = socket.socket()
        plain.connect(("127.0.0.1", port))
        return plain

    monkeypatch.setattr(web.socket, "create_connection", connect)
    for _ in range(3):
        assert files.read_bytes(f"http://name.example:{port}/a") == b"here"
    assert set(asked) == {("127.0.0.1", port)} and real


# ---- one server per misbehaviour: what it writes after a request


def misbehaving(answer: Callable[[socket.socket], None]) -> int:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(20)

    def handle(link: socket.socket) -> None:
        try:
            link.recv(9999)
            answer(link)
        except OSError:
            return
        finally:
            link.close()

    def loop() -> None:
        while True:
            link, _ = listening.accept()
            threading.Thread(target=handle, args=(link,), daemon=True).start()

    threading.Thread(target=loop, daemon=True).start()
    return int(listening.getsockname()[1])


def slowly(data: bytes, forever: bytes, wait: float) -> Callable[[socket.socket], None]:
    def answer(link: socket.socket) -> None:
        link.sendall(data)
        while True:
            link.sendall(forever)
            time.sleep(wait)

    return answer


def at_once(data: bytes) -> Callable[[socket.socket], None]:
    return lambda link: link.sendall(data)


def located(value: bytes) -> Callable[[socket.socket], None]:
    return at_once(b"HTTP/1.1 302 Found\r\nLocation: " + value + b"\r\nContent-Length: 0\r\n\r\n")


ANSWERS: dict[str, tuple[Callable[[socket.socket], None], set[str]]] = {
    "slow headers": (slowly(b"HTTP/1.1 200 OK\r\n", b"X", 0.2), {"media_fetch_failed"}),
    "slow status": (slowly(b"H", b"T", 0.2), {"media_fetch_failed"}),
    "slow body": (slowly(b"HTTP/1.1 200 OK\r\n\r\n", b"X", 0.2), {"media_fetch_failed"}),
    "a flood of 100 Continue": (slowly(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 400, 0), {"media_fetch_failed"}),
    "a slow flood of 100 Continue": (slowly(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.1), {"media_fetch_failed"}),
    "silence": (lambda link: time.sleep(30), {"media_fetch_failed"}),
    "headers without end": (slowly(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 1000, 0), {"media_fetch_failed"}),
    "a header line without end": (slowly(b"HTTP/1.1 200 OK\r\nA: ", b"b" * 5000, 0), {"media_fetch_failed"}),
    "a bad chunk": (at_once(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n"), {"media_fetch_failed"}),
    "a negative chunk": (at_once(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc"), {"media_fetch_failed"}),
    "HTTP/0.9": (at_once(b"<html>"), {"media_fetch_failed"}),
    "a status of five digits": (at_once(b"HTTP/1.1 99999 X\r\n\r\n"), {"media_fetch_failed"}),
    "a colorful reason": (at_once(b"HTTP/1.1 403 \x1b[31mred\x1b]0;t\x07\r\n\r\n"), {"media_fetch_failed"}),
    "no Location": (at_once(b"HTTP/1.1 302 F\r\nContent-Length: 0\r\n\r\n"), {"media_fetch_failed"}),
    **{
        f"Location: {value[:30]!r}": (located(value), {"media_fetch_failed", "media_url_forbidden"})
        for value in (
            b"http://[", b"http://[::1/x", b"//", b"http://m.example:99999999/", b"\xff\xfe://x", b"http://a\x00b/",
            b"gopher://127.0.0.1/", b"http://127.0.0.1:1/", b"http://[::ffff:127.0.0.1]/", b"http://2130706433/",
            b"http://0177.0.0.1/", b"http://localhost./", b"file:///etc/passwd", b"http://\xe2\x91\xa0.com/",
            b"http://" + b"a." * 200 + b"/", b"http://" + b"a" * 70 + b".example/", b"http://user:pw@m.example/",
            b"http://m\\@127.0.0.1/", b"http://[fec0::1]/", b"http://[64:ff9b::7f00:1]/", b"http://%31%32%37.0.0.1/",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("how", ANSWERS)
def test_a_server_that_misbehaves_costs_its_row_in_time(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, codes = ANSWERS[how]
    port = misbehaving(answer)
    real = web.public_address
    monkeypatch.setattr(web, "public_address", lambda h, p, label: ("127.0.0.1", p) if p == port else real(h, p, label))
    monkeypatch.setattr(web, "WAITS", ())
    monkeypatch.setattr(web, "SECONDS", 2.0)
    began = time.monotonic()
    with pytest.raises(Reject) as caught:
        MediaRoots(".", allow_http=True).locate(f"http://m.example:{port}/x")
    assert time.monotonic() - began < 8 and str(caught.value.code) in codes, caught.value
    assert caught.value.message.isprintable() and "pw" not in caught.value.message, caught.value.message


@pytest.mark.parametrize(
    "how", ["slow headers", "a slow flood of 100 Continue", "a bad chunk", "no Location", "HTTP/0.9"]
)
def test_the_same_for_inputs(how: str, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    from omniprep.io import http_files

    monkeypatch.setattr(http_files, "SECONDS", 2.0)
    web._given_addresses.cache_clear()
    stores.web_filesystem.cache_clear()
    began = time.monotonic()
    with pytest.raises(OSError):
        files.size(f"http://127.0.0.1:{misbehaving(ANSWERS[how][0])}/a.jsonl")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "address",
    ["fec0::1", "feff::1", "::127.0.0.1", "::7f00:1", "::a00:1", "64:ff9b:1::7f00:1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
     "2001:db8::5efe:7f00:1", "2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:10.0.0.1", "::ffff:0:127.0.0.1", "::ffff:0:7f00:1",
     "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001::7f00:1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "240.0.0.1", "192.88.99.1", "5f00::1",
     "100::1", "fe80::1%1", "8.8.8.8%eth0", "192.0.0.8", "2620:4f:8000::1", "3fff::1", "::", "::1", "fc00::1", "fd12::1", "ff0e::1",
     "0.0.0.0", "255.255.255.255", "100.64.0.1", "198.18.0.1", "", "x"],
)  # fmt: skip
def test_addresses_that_are_not_of_the_internet(address: str) -> None:
    assert not web.is_public(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001::1", "64:ff9b::808:808", "2002:808:808::1", "::ffff:8.8.8.8"],
)
def test_addresses_that_are(address: str) -> None:
    assert web.is_public(address)
