"""Risk: a page on this machine that another site, another method or a crafted address gets more out of than its reader.

And that it answers for any bin what the shard holds, goes on after bad questions and damaged bins, and ends with Ctrl-C.
"""

import http.client
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from PIL import Image
from report_dataset import NASTY, build

from omniprep.data.dataset import PackedDataset
from omniprep.inspect.describe import rows_of_bin
from omniprep.inspect.media import media_of
from omniprep.report import answers
from omniprep.report.server import DatasetServer, Site, listen
from tests.s3_server import BUCKET, Store, store

__all__ = ["store"]


@pytest.fixture(scope="module")
def built(omniprep, model_dir, tmp_path_factory) -> Path:
    return build(omniprep, model_dir, tmp_path_factory.mktemp("served"))


def started(uri: str) -> DatasetServer:
    server = listen(0)
    server.site = Site(uri)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def stop(server: DatasetServer) -> None:
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def server(built: Path) -> Iterator[DatasetServer]:
    server = started(str(built))
    yield server
    stop(server)


def ask(server: DatasetServer, target: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest(method, target, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def get(server: DatasetServer, path: str, **parameters: object) -> dict[str, Any]:
    status, _, body = ask(server, f"{path}?{urlencode(parameters)}")
    assert status == 200, body
    return json.loads(body)


def test_every_row_of_every_bin_is_as_stored(server, built):
    dataset = PackedDataset(str(built))
    for number in range(len(dataset)):
        stored = rows_of_bin(dataset, number)
        part = get(server, "/bin", bin=number)
        assert part["count"] == len(stored) == len(part["rows"]) and part["next"] is None
        for row, shown in zip(stored, part["rows"], strict=True):
            assert (shown["source"], shown["line"], shown["tokens"]) == (row.source, row.line, row.tokens)
            media = media_of(row.arrays)
            assert [item["modality"] for item in shown["media"]] == [item.modality for item in media]
            for item, entry in zip(media, shown["media"], strict=True):
                frames = item.frames()
                assert entry["frames"] == len(frames)
                for frame in (0, len(frames) - 1):
                    status, headers, body = ask(server, f"/{entry['url']}&frame={frame}")
                    assert status == 200 and headers["Content-Type"] == "image/png"
                    assert np.array_equal(np.asarray(Image.open(io.BytesIO(body))), frames[frame])


def test_long_bins_come_in_parts_and_long_rows_on_demand(server, built, monkeypatch):
    dataset = PackedDataset(str(built))
    number = int(np.argmax(dataset.index["rows"]))
    expected = [row.start for row in rows_of_bin(dataset, number)]
    monkeypatch.setattr(answers, "ROWS_A_PART", 2)
    monkeypatch.setattr(answers, "TOKENS_A_PART", 30)
    found, first = [], 0
    while first is not None:
        part = get(server, "/bin", bin=number, first=first)
        assert 1 <= len(part["rows"]) <= 2
        found += [row["start"] for row in part["rows"]]
        cut = part["rows"][0]
        assert cut["cut"] == max(cut["tokens"] - 30, 0)
        first = part["next"]
    assert found == expected and len(found) > 2
    full = get(server, "/row", bin=number, row=0)
    assert (
        full["cut"] == 0
        and sum(p.get("n", 0) if "m" in p else sum(p.get("n", [1] * len(p["t"]))) for p in full["parts"])
        == full["tokens"]
    )


def test_a_row_is_found_by_its_source_and_line(server, built):
    dataset = PackedDataset(str(built))
    for number in range(len(dataset.rows)):
        row = dataset.rows.slice(number, 1).to_pylist()[0]
        place = get(server, "/place", name=f"<i>chats.jsonl:{row['line']}")
        assert place["bin"] == row["bin"] and place["code"] == row["code"]
        if row["bin"] is not None:
            part = get(server, "/bin", bin=place["bin"], first=place["position"])
            assert part["rows"][0]["line"] == row["line"] and part["rows"][0]["source"] == row["source"]
    for name, said in (
        ("nowhere.jsonl:1", "no sources fit"),
        ("x", "expected SOURCE:LINE"),
        ("<i>chats.jsonl:99", "has no row 99"),
    ):
        status, _, body = ask(server, f"/place?{urlencode({'name': name})}")
        assert status == 404 and said in json.loads(body)["error"]


def lines(answer: dict[str, Any]) -> list[int]:
    return [row["line"] for row in answer["rows"]]


def test_rows_are_found_by_what_they_hold(server, monkeypatch):
    assert lines(get(server, "/find", kind="image")) == [7, 8]
    assert lines(get(server, "/find", kind="text alone")) == [1, 2, 3, 4, 5, 6, 12], "of a rejected row nobody knows"
    assert lines(get(server, "/find", kind="several media")) == [11]
    assert lines(get(server, "/find", status="rejected")) == [13, 14]
    every = get(server, "/find")
    assert every["total"] == every["of"] == 14
    lengths = {row["line"]: row["length"] for row in every["rows"]}
    longest = max(filter(None, lengths.values()))
    assert lines(get(server, "/find", least=longest)) == [line for line, n in lengths.items() if n == longest]
    assert 13 not in lines(get(server, "/find", most=longest)), "a rejected row has no length"
    assert get(server, "/find", source="other.jsonl")["total"] == 0
    monkeypatch.setattr(answers, "FOUND", 4)
    found, after = [], 0
    while after is not None:
        part = get(server, "/find", after=after)
        found += lines(part)
        after = part["next"]
    assert found == list(range(1, 15))


def test_texts_are_found_in_all_bins(server, monkeypatch):
    """In parts, too, where a search takes long; together with what rows hold."""
    assert sorted(lines(get(server, "/find", text="ANSWER 日本語"))) == [1, 2, 3, 4, 5]
    (row,) = get(server, "/find", text="balls", kind="video")["rows"]
    assert row["line"] == 10 and "Balls" in row["snippet"]
    assert lines(get(server, "/find", text="balls", kind="image")) == []
    monkeypatch.setattr(answers, "SECONDS", 0.0)
    monkeypatch.setattr(answers.time, "monotonic", iter(np.arange(0, 1000, 0.6)).__next__)
    monkeypatch.setattr(answers, "SECONDS", 1.0)  # a bin and the next, then time is up
    found, after, calls = [], 0, 0
    while after is not None:
        part = get(server, "/find", text="answer", after=after)
        found += lines(part)
        after, calls = part["next"], calls + 1
    assert sorted(found) == [1, 2, 3, 4, 5] and calls > 1


def test_rejects_come_page_by_page(built, tmp_path, monkeypatch):
    folder = shutil.copytree(built, tmp_path / "data")
    written = [
        {"source": f"{n}.jsonl", "line": n, "code": ("bad_row", "empty_row")[n % 2], "message": NASTY, "row": n}
        for n in range(60)
    ]
    (folder / "rejected.jsonl").write_text("".join(json.dumps(reject) + "\n" for reject in written))
    server = started(str(folder))

    def every(**wanted: str) -> list[int]:
        found, offset = [], 0
        while offset is not None:
            part = get(server, "/rejects", offset=offset, **wanted)
            assert len(part["rejects"]) <= answers.REJECTS
            found += [reject["line"] for reject in part["rejects"]]
            offset = part["next"]
        return found

    assert every() == list(range(60)) and every(code="empty_row") == list(range(1, 60, 2))
    assert every(text="7.JSONL") == [7, 17, 27, 37, 47, 57]
    (folder / "rejected.jsonl").write_text("no line of a build\n")
    status, _, body = ask(server, "/rejects")
    assert status == 500 and "a line that no build wrote" in json.loads(body)["error"]
    assert get(server, "/bin")["rows"]
    stop(server)


HOSTS = ("127.0.0.1", "localhost", "localhost:9000", "LOCALHOST:1", "[::1]:8765")
FOREIGN = ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "127.0.0.1@evil", "[::1", "0.0.0.0", "2130706433")  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_this_machine_is_answered_under_its_names(server, host):
    assert ask(server, "/", Host=host)[0] == 200


@pytest.mark.parametrize("host", FOREIGN)
@pytest.mark.parametrize("path", ["/", "/bin?bin=0", "/nothing"])
def test_a_name_that_was_pointed_here_is_refused(server, host, path):
    """DNS rebinding: a site's own name leads here, and its script asks as if of its own server."""
    status, _, body = ask(server, path, Host=host)
    assert status == 403 and b"chats" not in body


def test_pages_of_other_sites_are_refused(server):
    for site in ("cross-site", "same-site"):
        for path in ("/bin?bin=0", "/picture?bin=0", "/"):
            assert ask(server, path, Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")[0] == 403
        assert ask(server, "/bin?bin=0", Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate")[0] == 403
        assert ask(server, "/", Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate")[0] == 200, "a link to the page"
    assert ask(server, "/bin?bin=0", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors")[0] == 200


def test_no_answer_may_be_read_or_framed_by_others(server):
    for path in ("/", "/bin?bin=0", "/nothing", "/bin?bin=x"):
        _, headers, _ = ask(server, path, Origin="https://evil.example")
        assert not [name for name in headers if name.lower().startswith("access-control")]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin" and headers["Cache-Control"] == "no-store"
    _, headers, page = ask(server, "/")
    policy = page.decode().split('Content-Security-Policy" content="')[1].split('"')[0]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe-inline'; base" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    assert NASTY.encode() not in page and b"</script><img" not in ask(server, "/bin?bin=0")[2]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT"])
def test_nothing_but_get_is_answered(server, method):
    status, headers, _ = ask(server, "/", method)
    assert status == 405 and headers["Allow"] == "GET" and headers["Connection"] == "close"


def test_an_unknown_method_or_no_http_ends_nothing(server):
    assert ask(server, "/", "BREW")[0] == 501
    for junk in (
        b"\x00\xff\x16\x03\x01\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"",
    ):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1 << 16)
    assert get(server, "/bin")["rows"]


PATHS = (
    "/manifest.json", "/../manifest.json", "/..%2fmanifest.json", "/shards/00000.arrow", "//etc/passwd", "/etc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
    "/bin/../../etc/passwd", "/page", "/index.html", "/rejected.jsonl", "/bin/", "/BIN", "/favicon.ico", "/?file=/etc/passwd/../x", "/%00",
    "http://evil.example/manifest.json", "file:///etc/passwd",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_to_a_file(server, path, built):
    status, _, body = ask(server, path)
    assert status == 200 if path.startswith("/?") else status in (403, 404)
    assert b"root:" not in body and (built / "manifest.json").read_bytes() not in body


BAD = (
    "/bin?bin=999", "/bin?bin=-1", "/bin?bin=x", "/bin?bin=1e3", "/bin?bin=%D9%A1", "/bin?bin=99999999999999999999999", "/picture?bin=0&row=0&item=99",
    "/picture?bin=0&row=999", "/picture?bin=0&frame=99999999", "/row?bin=0&row=999999", "/find?least=-5", "/find?kind=%3Cb%3E", "/find?most=x",
    "/bin?" + "&".join(f"a{n}=1" for n in range(50)), "/bin?bin=%ff", "/rejects?offset=-3", "/place?name=%00:1", "/place?name=" + "x" * 5000 + ":1",
)  # fmt: skip


@pytest.mark.parametrize("path", BAD)
def test_a_bad_question_is_one_line_and_the_next_is_answered(server, path):
    status, headers, body = ask(server, path)
    assert status in (400, 404) and headers["Content-Type"] == "application/json"
    assert json.loads(body)["error"] and len(body) < 12_000
    assert get(server, "/bin")["rows"]


def test_a_damaged_bin_is_told_and_others_are_shown(built, tmp_path):
    folder = shutil.copytree(built, tmp_path / "data")
    server = started(str(folder))
    index = PackedDataset(str(folder)).index
    shard = folder / "shards" / "00000.arrow"
    data = bytearray(shard.read_bytes())
    middle = int(index["offset"][1] + index["length"][1] // 2)
    data[middle] ^= 0xFF
    shard.write_bytes(data)
    status, _, body = ask(server, "/bin?bin=1")
    assert status == 500 and json.loads(body)["error"].startswith("bin 1: ")
    assert get(server, "/bin", bin=0)["rows"]
    stop(server)


def test_a_dataset_that_was_changed_is_read_again(built, tmp_path, omniprep):
    folder = shutil.copytree(built, tmp_path / "data")
    server = started(str(folder))
    assert get(server, "/find")["total"] == 14
    source = PackedDataset(str(folder)).rows["source"][0].as_py()
    done = omniprep("remove", folder, "--row", f"{source}:1")
    assert done.code == 0, done.err
    assert ask(server, "/")[0] == 200
    assert lines(get(server, "/find", status="removed")) == [1]
    stop(server)


def test_a_dataset_in_a_store(built, store: Store):
    import s3fs

    s3fs.S3FileSystem().put(str(built), f"{BUCKET}/served", recursive=True)
    server = started(f"s3://{BUCKET}/served")
    assert get(server, "/bin", bin=1)["rows"] == get_local(built, 1)
    assert len(get(server, "/rejects")["rejects"]) == 2
    stop(server)


def get_local(built: Path, number: int) -> list[dict[str, Any]]:
    server = started(str(built))
    rows = get(server, "/bin", bin=number)["rows"]
    stop(server)
    return rows


def test_the_server_listens_on_loopback_alone(server):
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken(built, omniprep):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = omniprep("serve", built, "--port", port, "--no-open")
        assert done.code == 2 and f"--port {port}: address already in use" in done.err and "--port (0 takes" in done.err
    first, second = listen(None), listen(None)
    assert 8765 <= first.server_port < second.server_port
    first.server_close(), second.server_close()


def test_what_is_no_dataset_is_one_line(omniprep, tmp_path):
    done = omniprep("serve", tmp_path, "--port", 0, "--no-open")
    assert done.code == 1 and "no finished omniprep dataset" in done.err and done.err.count("\n") == 1


def test_ctrl_c_ends_it_cleanly(built):
    command = [sys.executable, "-m", "omniprep", "serve", str(built), "--port", "0", "--no-open"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
    idle = socket.create_connection(("127.0.0.1", port))  # a connection that is open holds nothing up
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", f"/find?text={quote('日本語')}")
    assert len(json.loads(connection.getresponse().read())["rows"]) == 5
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    idle.close()
    assert process.returncode == 0 and err == "stopped\n"
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", port))
