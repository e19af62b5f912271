"""Inputs, media and output on Google Cloud Storage: gcsfs against an emulator on loopback (`pip install gcsfs
gcp-storage-emulator`). Skipped where the two are absent."""

import functools
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from train_helpers import small_family, write_dataset, write_model

from omniprep import PackedDataset, io
from omniprep.progress import QuietReporter
from omniprep.train import run as run_module
from omniprep.train.config import TrainConfig
from tests.reliability import built_locally, command, outcome

LAKE = "gs://lake"


class Faults:
    """Which requests (method, path) are answered with an HTTP status instead of by the emulator."""

    status: Callable[[str, str], int | None] = staticmethod(lambda method, path: None)
    made = 0


@pytest.fixture(scope="module")
def faults() -> Iterator[Faults]:
    with pytest.MonkeyPatch.context() as patch:
        # Read on import: the emulator has no gRPC, by which gcsfs would ask what kind of bucket it is.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")
    from gcp_storage_emulator.storage import Storage

    found = Faults()

    class Handler(emulator.RequestHandler):  # type: ignore[name-defined, misc]
        def parse_request(self) -> bool:
            if not super().parse_request():
                return False
            status = found.status(self.command, self.path)
            if status is None:
                return True
            found.made += 1
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.dumps({"error": {"code": status, "message": "injected"}}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return False

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that hangs up before it has read everything is no news."""

    server = Quiet(("127.0.0.1", 0), functools.partial(Handler, Storage(use_memory_fs=True)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("NO_PROXY", "127.0.0.1")
        import fsspec

        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        patch.setattr("gcsfs.retry.min", lambda *_: 0.0, raising=False)  # its own tries: at once, not after 1 to 32 s
        gcsfs.GCSFileSystem.clear_instance_cache()
        fsspec.filesystem("gs").mkdir("lake")
        yield found
        gcsfs.GCSFileSystem.clear_instance_cache()
    server.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, faults: Faults) -> None:
    faults.status, faults.made = lambda method, path: None, 0
    monkeypatch.setattr("omniprep.io.stores.WAITS", (0.05, 0.05, 0.1, 0.1, 0.2))
    monkeypatch.setattr("omniprep.compiler.output.lease.SETTLE", 0.05)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, omniprep, faults: Faults) -> Path:
    """A local build of chats that are also put into the bucket."""
    return built_locally(tmp_path_factory.mktemp("local"), LAKE, model_dir, omniprep)[1]


def build(omniprep, model_dir: Path, out: str) -> Any:
    args = command([], model_dir, Path("x"))
    args[args.index("x")] = out
    return omniprep(*args, f"{LAKE}/in/*.jsonl")


def fetch(uri: str, folder: Path) -> Path:
    for path in io.filesystem(uri)[0].find(uri):
        target = folder / path.removeprefix(uri.removeprefix("gs://") + "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(io.read_bytes(f"gs://{path}"))
    return folder


def test_from_gcs_to_gcs_through_a_stop(omniprep, model_dir: Path, local: Path, faults: Faults, tmp_path: Path) -> None:
    """Refused after some uploads, then every fifth request failing: the bytes of a local build, nothing done twice."""
    out, uploads, count = f"{LAKE}/built", itertools.count(), itertools.count()
    faults.status = lambda method, path: 403 if "uploadType" in path and next(uploads) > 14 else None
    stopped = build(omniprep, model_dir, out)
    assert stopped.code == 1 and "denied" in stopped.err.splitlines()[-1], stopped.err
    faults.status = lambda method, path: None
    finished = {name: io.fingerprint(f"{out}/receipts/{name}") for name in io.list_folder(f"{out}/receipts")}
    assert finished and not io.exists(f"{out}/manifest.json")
    faults.status = lambda method, path: 503 if next(count) % 5 == 0 else None
    done = build(omniprep, model_dir, out)
    assert done.code == 0 and faults.made > 10, done.err
    faults.status = lambda method, path: None
    assert {name: io.fingerprint(f"{out}/receipts/{name}") for name in finished} == finished
    found, expected = outcome(fetch(out, tmp_path / "copy")), outcome(local)
    assert {name for name in {*found, *expected} if found.get(name) != expected.get(name)} <= {"rows.parquet"}
    assert "lease.json" not in io.list_folder(out)
    assert "already built" in build(omniprep, model_dir, out).err
    for deep in ((), ("--deep",)):
        checked = omniprep("verify", out, *deep)
        assert checked.code == 0, checked.out + checked.err
    here, there = PackedDataset(local), PackedDataset(out, cache_dir=tmp_path / "cache", cache_bytes=1 << 30)
    for number in range(len(here)):
        assert all(np.array_equal(here[number][key], there[number][key]) for key in ("input_ids", "labels", "row_ids"))


def test_errors_that_stay(omniprep, model_dir: Path, local: Path, faults: Faults) -> None:
    for status in (401, 403):
        faults.status, faults.made = lambda method, path, status=status: status, 0
        with pytest.raises(PermissionError) as caught:
            io.read_bytes(f"{LAKE}/in/chats0.jsonl")
        assert caught.value.filename == f"{LAKE}/in/chats0.jsonl" and faults.made == 1, faults.made
    faults.status = lambda method, path: 503
    with pytest.raises(OSError, match="after 6 tries"):
        io.read_bytes(f"{LAKE}/in/chats0.jsonl")
    faults.status = lambda method, path: None
    with pytest.raises(FileNotFoundError):
        io.read_bytes(f"{LAKE}/in/absent.jsonl")
    done = build(omniprep, model_dir, "gs://no-such-bucket-here/out")
    assert done.code == 1 and "no-such-bucket-here" in done.err and "Traceback" not in done.err


def test_a_large_object_goes_up_in_parts(faults: Faults) -> None:
    data = np.random.default_rng(0).bytes((64 << 20) + 5)
    io.write_atomic(f"{LAKE}/large", data)
    assert io.read_bytes(f"{LAKE}/large") == data and io.read_range(f"{LAKE}/large", 100, 300) == data[100:300]


def test_training_from_gcs_is_training_from_disk(tmp_path: Path, faults: Faults, monkeypatch) -> None:
    """With a reader process, which opens the store anew after the fork."""
    model, data = write_model(tmp_path / "model"), write_dataset(tmp_path / "data", bins=4)
    for path in data.rglob("*"):
        if path.is_file():
            io.write_atomic(f"{LAKE}/packed/{path.relative_to(data)}", path.read_bytes())
    monkeypatch.setattr(run_module, "resolve_family", lambda *_: small_family(model))
    losses = []
    for number, where in enumerate((str(data), f"{LAKE}/packed")):
        out = tmp_path / f"run{number}"
        fixed = {"max_steps": 3, "num_workers": number, "logging_steps": 1, "learning_rate": 1e-3, "save_steps": 0}
        config = TrainConfig(model=str(model), data=(where,), out=str(out), device="cpu", report_to=("none",), **fixed)
        run_module.train(config, QuietReporter())
        history = json.loads((out / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
        losses.append([(entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry])
    assert losses[0] == losses[1] and len(losses[0]) == 3
