"""Push and pull where the Hub or the network fails: tried again, gone on with, or one line that says what to do."""

import contextlib
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import fake_hub
import pytest
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from omniprep.hub import client
from omniprep.io import hub_faults
from omniprep.progress import QuietReporter
from tests.reliability import make_chats

REPO = "org/chats"
HTTP_LIBRARIES = ("requests", "httpx", "httpx2")


@pytest.fixture(scope="module")
def built(omniprep, model_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    make_chats(folder / "in", rows=24)
    inputs = sorted((folder / "in").glob("*.jsonl"))
    options = ("--bin-length", 512, "--shard-size", 40_000, "--workers", 0, "--quiet")
    done = omniprep("build", *inputs, "--model", model_dir, "--out", folder / "packed", *options)
    assert done.code == 0, done.err
    assert len(list((folder / "packed" / "shards").iterdir())) > 1
    return folder / "packed"


@pytest.mark.slow
def test_push_and_pull_through_broken_connections(
    built: Path, hub: fake_hub.Hub, python: fake_hub.Python, tmp_path: Path
):
    """Each kind of request breaks once, a commit also after it was made; what arrives is the dataset, sent once."""
    hub.repos[REPO] = fake_hub.Repo(private=True)
    hub.repos[REPO].branches["main"] = {"shards/99999.arrow": b"of an older build", "shards/99998.arrow": b"too"}
    hub.faults += [
        ("POST", "/api/repos/create", 0, ""), ("GET", "/tree/", 0, ""), ("POST", "/preupload/", 0, ""),
        ("PUT", "/lfs/", 0, ""), ("POST", "/commit/", 0, ""), ("POST", "/commit/", 502, "bad gateway"),
        ("POST", "/commit/", 1, ""), ("POST", "/commit/", 1, ""), ("POST", "/commit/", 1, ""),
    ]  # fmt: skip
    pushed = python("-m", "omniprep", "push", built, REPO)
    assert hub.faults == [] and "no answer from the Hub" in pushed.stderr
    files = hub.repos[REPO].branches["main"]
    assert {name for name in files if name.startswith("shards/")} == {
        f"shards/{path.name}" for path in (built / "shards").iterdir()
    }
    assert files["manifest.json"] == (built / "manifest.json").read_bytes()
    puts = [line for line in hub.log if line.startswith("PUT /lfs/")]
    assert len(puts) == len(set(puts)) + 1, "a large file was sent twice, beyond the one whose upload broke"

    out = tmp_path / "pulled"
    hub.faults += [("GET", "/api/datasets/", 0, ""), ("HEAD", "/resolve/", 0, ""), ("GET", "/resolve/", 0, "")]
    python("-m", "omniprep", "pull", REPO, "--out", out)
    assert hub.faults == []
    for name in ("manifest.json", "index.parquet", "rows.parquet", "rejected.jsonl"):
        assert (out / name).read_bytes() == (built / name).read_bytes()
    assert {p.name: p.read_bytes() for p in (out / "shards").iterdir()} == {
        p.name: p.read_bytes() for p in (built / "shards").iterdir()
    }


def test_a_pull_that_was_stopped_goes_on_and_never_keeps_an_old_file(
    built: Path, hub: fake_hub.Hub, python: fake_hub.Python, tmp_path: Path
):
    hub.repos[REPO] = fake_hub.Repo(private=False)
    files = {str(p.relative_to(built)): p.read_bytes() for p in built.rglob("*") if p.is_file()}
    hub.repos[REPO].branches["main"] = {
        name: data for name, data in files.items() if not name.startswith(("plan/", "receipts/"))
    }
    out = tmp_path / "pulled"
    hub.faults += [("HEAD", "/resolve/", 403, "gated")]
    assert "403" in python("-m", "omniprep", "pull", REPO, "--out", out, code=1).stderr
    assert not (out / "manifest.json").exists()
    hub.log.clear()
    python("-m", "omniprep", "pull", REPO, "--out", out)
    python("-m", "omniprep", "verify", out, "--quiet")
    fetched = sum(line.startswith("GET") and "/resolve/" in line for line in hub.log)
    assert 0 < fetched < len(hub.repos[REPO].branches["main"]), "what the first pull had fetched came again"

    shard = out / "shards" / "00000.arrow"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    hub.log.clear()
    python("-m", "omniprep", "pull", REPO, "--out", out)
    python("-m", "omniprep", "verify", out, "--quiet")
    gets = [line for line in hub.log if line.startswith("GET") and "/resolve/" in line]
    assert len(gets) == 2, "the shard of another content, and the manifest that was taken away for it"


def test_a_pull_of_a_hostile_repository_writes_known_names_alone(
    built: Path, hub: fake_hub.Hub, python: fake_hub.Python, tmp_path: Path
):
    good = (
        "manifest.json",
        "index.parquet",
        "rows.parquet",
        "rejected.jsonl",
        *(f"shards/{p.name}" for p in (built / "shards").iterdir()),
    )
    bad = (
        "../escape.arrow", "shards/../../escape.arrow", "shards/..%2f..%2fescape.arrow", "shards\\..\\..\\e.arrow", "shards/x.arrow",
        str(tmp_path / "absolute.arrow").lstrip("/"), "shards/.git/00000.arrow", ".cache/huggingface/x", "plan/build.json", "evil.py",
        "shards/a/../../../00000.arrow", "README.md",
    )  # fmt: skip
    hub.repos[REPO] = fake_hub.Repo(private=False)
    hub.repos[REPO].branches["main"] = {name: (built / name).read_bytes() for name in good} | dict.fromkeys(bad, b"pwn")
    out = tmp_path / "deep" / "er" / "out"
    python("-m", "omniprep", "pull", REPO, "--out", out)
    written = {
        str(path.relative_to(tmp_path))
        for path in tmp_path.rglob("*")
        if path.is_file() and path.read_bytes() == b"pwn"
    }
    assert not written
    inside = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and ".cache" not in path.parts}
    assert inside == set(good)


def test_a_pull_writes_through_no_link(built: Path, hub: fake_hub.Hub, python: fake_hub.Python, tmp_path: Path):
    hub.repos[REPO] = fake_hub.Repo(private=False)
    names = ("manifest.json", "index.parquet", "rows.parquet", "shards/00000.arrow")
    hub.repos[REPO].branches["main"] = {name: (built / name).read_bytes() for name in names}
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (outside / "00000.arrow").write_text("mine")
    out.mkdir()
    (out / "shards").symlink_to(outside)
    said = python("-m", "omniprep", "pull", REPO, "--out", out, "--quiet", code=1).stderr
    assert f"{out / 'shards'}: a symbolic link" in said.splitlines()[-1]
    assert (outside / "00000.arrow").read_text() == "mine" and not (out / "manifest.json").exists()


@pytest.mark.parametrize("where", ["offline", "unreachable"])
def test_a_dry_run_needs_no_network(where: str, built: Path, python: fake_hub.Python):
    """Offline nothing is asked; a Hub that hangs up is asked once, not tried again and again for half a minute."""
    connections = 0
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            nonlocal connections
            with contextlib.suppress(OSError):  # the server is closed: the test is over
                while True:
                    server.accept()[0].close()
                    connections += 1

        threading.Thread(target=hang_up, daemon=True).start()
        endpoint = {"HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}"}
        env = {"HF_HUB_OFFLINE": "1"} | endpoint if where == "offline" else endpoint
        dry = python("-m", "omniprep", "push", built, REPO, "--dry-run", **env)
    for name in ("shards/00000.arrow", "manifest.json", "README.md", "preview/train.parquet"):
        assert f"  {name}\n" in dry.stdout, dry.stdout
    assert "would send" in dry.stdout and "without those that the Hub may have already" in dry.stderr
    assert connections == (0 if where == "offline" else 1)


def test_without_a_network_push_and_pull_say_so_in_one_line(built: Path, python: fake_hub.Python, tmp_path: Path):
    for command in (("push", built, REPO, "--quiet"), ("pull", REPO, "--out", tmp_path / "x", "--quiet")):
        offline = python("-m", "omniprep", *command, code=1, HF_HUB_OFFLINE="1")
        assert "HF_HUB_OFFLINE is set" in offline.stderr and offline.stderr.count("\n") == 1
        gone = python("-m", "omniprep", *command, code=1, HF_ENDPOINT="http://127.0.0.1:9")
        assert "http://127.0.0.1:9 does not answer" in gone.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("status", "said"), [(401, "hf auth login"), (403, "your token may not"), (404, "no such dataset or model")]
)
def test_a_repository_that_may_not_be_seen(
    status: int, said: str, hub, built: Path, python: fake_hub.Python, tmp_path: Path
):
    hub.repos[REPO] = fake_hub.Repo(private=True)
    for command, request in (
        (("pull", REPO, "--out", tmp_path / "x"), ("GET", "/api/datasets/")),
        (("push", built, REPO), ("POST", "/commit/")),
    ):
        hub.faults += [(*request, status, "no")]
        done = python("-m", "omniprep", *command, "--quiet", code=1)
        last = done.stderr.splitlines()[-1]
        assert f"{REPO}: the Hub says {status}" in last and said in last


def test_no_http_library_but_that_of_huggingface_hub_is_needed(built: Path, python: fake_hub.Python, tmp_path: Path):
    """What pip installs with huggingface_hub must do: the others come with development tools only."""
    own = hub_faults._HTTP_ERROR.__module__.split(".")[0]
    assert own in HTTP_LIBRARIES
    other = [name for name in HTTP_LIBRARIES if name != own]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({other!r}))  # an import of one of these fails
from omniprep.cli.main import run
assert run(["push", {str(built)!r}, {REPO!r}, "--quiet"]) == 0
assert run(["pull", {REPO!r}, "--out", {str(tmp_path / "p")!r}]) == 0
"""
    python("-c", code)


def http_error(status: int, **headers: str) -> HfHubHTTPError:
    """An error as the installed huggingface_hub raises it."""
    library = sys.modules[hub_faults._HTTP_ERROR.__module__.split(".")[0]]
    if library.__name__ == "requests":
        response = library.Response()
        response.status_code, response.headers = status, headers
    else:
        response = library.Response(status, headers=headers, request=library.Request("GET", "http://x"))
    return HfHubHTTPError(f"{status} of the Hub", response=response)


def transport_error() -> Exception:
    library = sys.modules[hub_faults._HTTP_ERROR.__module__.split(".")[0]]
    kind = library.ConnectionError if library.__name__ == "requests" else library.ReadError
    return kind("connection reset by peer")


def wrapped(outer: Exception, cause: Exception) -> Exception:
    outer.__cause__ = cause
    return outer


@pytest.mark.parametrize(
    ("make", "passing"),
    [
        (lambda: http_error(412), True),
        (lambda: http_error(429), True),
        (lambda: http_error(503), True),
        (lambda: http_error(403), False),
        (lambda: http_error(404), False),
        (transport_error, True),
        (lambda: ConnectionResetError("reset"), True),
        (lambda: TimeoutError("late"), True),
        (lambda: wrapped(RuntimeError("Error while uploading"), transport_error()), True),
        (lambda: wrapped(RuntimeError("Error while uploading"), http_error(500)), True),
        (lambda: wrapped(RuntimeError("Error while uploading"), http_error(401)), False),
        (lambda: wrapped(LocalEntryNotFoundError("not in the cache"), transport_error()), True),
        (lambda: OfflineModeIsEnabled("offline"), None),
        (lambda: RuntimeError("a defect"), None),
        (lambda: FileNotFoundError("a file of ours"), None),
    ],
)
def test_which_faults_are_tried_again(make: Callable[[], Exception], passing: bool | None, monkeypatch):
    fault = hub_faults.fault_of(make())
    assert passing is None if fault is None else fault.passing == passing
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    calls = 0

    def request() -> str:
        nonlocal calls
        calls += 1
        raise make()

    error = make()
    with pytest.raises(type(error)):
        client.retry(request, QuietReporter())
    assert calls == (client.ATTEMPTS if passing else 1) and len(pauses) == calls - 1
    assert pauses == sorted(pauses)


def test_a_checkpoint_whose_connection_breaks_is_one_line(monkeypatch):
    from omniprep.errors import OmniprepError
    from omniprep.families.checkpoint import _hub_file, checkpoint_file
    from omniprep.inspect.vocabulary import load_vocabulary

    for make in (transport_error, lambda: http_error(503), lambda: ConnectionResetError("reset")):

        def download(*args: object, make=make, **kwargs: object) -> str:
            raise make()

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        _hub_file.cache_clear()
        for call in (lambda: checkpoint_file("org/model", "config.json"), lambda: load_vocabulary("org/model")):
            with pytest.raises(OmniprepError, match="org/model"):
                call()


@pytest.mark.parametrize(
    ("make", "tries"),
    [
        (transport_error, 6),
        (lambda: http_error(503), 6),
        (lambda: http_error(404), 1),
        (lambda: OfflineModeIsEnabled("offline"), 1),
    ],
)
def test_files_read_over_hf_are_tried_again_by_the_same_rule(make: Callable[[], Exception], tries: int, monkeypatch):
    """`io` knows no HTTP library by name: whatever huggingface_hub raises of its own is a fault of the store."""
    from omniprep import io

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    calls = 0

    def cat_file(self: HfFileSystem, path: str) -> bytes:
        nonlocal calls
        calls += 1
        raise make()

    monkeypatch.setattr(HfFileSystem, "cat_file", cat_file)
    with pytest.raises(OSError):
        io.read_bytes("hf://datasets/org/x/manifest.json")
    assert calls == tries


def test_the_pause_is_as_long_as_the_hub_asks(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    answers = iter([http_error(429, **{"Retry-After": "37"}), http_error(429, **{"Retry-After": "9" * 12})])

    def request() -> str:
        for error in answers:
            raise error
        return "done"

    assert client.retry(request, QuietReporter()) == "done"
    assert pauses == [37.0, client.MOST_PAUSE]


def test_a_name_that_is_none_is_refused_before_anything_is_done(built: Path, python: fake_hub.Python):
    for name in ("chats", "a/b/c"):
        assert "ORG/NAME" in python("-m", "omniprep", "push", built, name, "--dry-run", code=2).stderr
    assert "org/b ad" in python("-m", "omniprep", "push", built, "org/b ad", "--dry-run", code=1).stderr
