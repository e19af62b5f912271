"""What programs read of a run: events against their schema, metrics scraped while it runs, and `omniprep status`."""

import json
import os
import re
import socket
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from reliability import in_fork, make_chats, wait_for

from omniprep.compiler.output import progress_file
from omniprep.compiler.output.lease import NAME
from omniprep.compiler.run import stages
from omniprep.errors import DamagedDataError, OmniprepError, UsageError, error_code
from omniprep.families.errors import FamilyError
from omniprep.observe.events import events_schema
from omniprep.observe.metrics import serve_metrics
from omniprep.observe.options import ObserveOptions

VALIDATOR = jsonschema.Draft202012Validator(events_schema())


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a log; each fits the schema."""
    events = [json.loads(line) for line in text.splitlines()]
    for event in events:
        VALIDATOR.validate(event)
    return events


def names_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


@pytest.fixture
def chats(tmp_path: Path) -> list[Path]:
    """Two files of chats with pictures; the second has two lines that are no rows, and a picture that is not there."""
    paths = make_chats(tmp_path / "chats")
    missing = {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "no"}]}
    with paths[1].open("a") as file:
        file.write("{broken\n[]\n" + json.dumps({**missing, "images": ["absent.png"]}) + "\n")
    return paths


@pytest.fixture
def build(chats: list[Path], model_dir: Path, omniprep):
    options = ("--model", model_dir, "--bin-length", 512, "--shard-size", 20_000, "--workers", 0)
    return lambda *more: omniprep("build", *chats, *options, *more)


@pytest.mark.parametrize("place", ["before", "after", "environment", "config"])
def test_events_of_a_build(build, chats, model_dir, omniprep, tmp_path, monkeypatch, place) -> None:
    monkeypatch.setenv("OMNIPREP_LOG_JSON", "1" if place == "environment" else "")
    out, monkeyed = tmp_path / "out", ()
    if place == "config":
        (tmp_path / "c.yaml").write_text("log-json: true\nseed: 0\n")
        monkeyed = ("--config", tmp_path / "c.yaml")
    if place == "before":
        done = omniprep(
            "--log-json", "build", *chats, "--model", model_dir, "--bin-length", 512, "--shard-size", 20_000,
            "--workers", 0, "--out", out,
        )  # fmt: skip
    else:
        done = build("--out", out, *monkeyed, *(("--log-json",) if place == "after" else ()))
    assert done.code == 0, done.err
    events = events_of(done.err)
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert names_of(events)[0] == "started" and names_of(events)[-1] == "finished"
    assert events[-1]["counts"] == counts and events[-1]["generations"] == 1
    assert {event["command"] for event in events} == {"build"}
    staged = [(e["event"], e["stage"]) for e in events if e["event"] in ("stage_started", "stage_finished")]
    ordered = [
        (end, stage) for stage in ("plan", "pack", "encode", "commit") for end in ("stage_started", "stage_finished")
    ]
    assert staged == ordered
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    told = [event for event in events if event["event"] == "reject"]
    keys = ("source", "line", "code", "message")
    assert [[row[key] for key in keys] for row in told] == [[row[key] for key in keys] for row in rejected]
    assert len(told) == 3
    shards = [event for event in events if event["event"] == "shard_finished"]
    assert sorted(shard["path"] for shard in shards) == sorted(f"shards/{p.name}" for p in (out / "shards").iterdir())
    assert sum(shard["rows"] for shard in shards) == counts["rows"]["packed"]
    assert sum(shard["tokens"] for shard in shards) == counts["tokens"]
    assert names_of(events).count("lease_taken") == names_of(events).count("lease_released") == 1
    assert "rows read" in done.out  # results stay on standard output


def test_every_reject_is_an_event_where_people_see_two_of_a_code(chats, model_dir, omniprep, tmp_path) -> None:
    with chats[0].open("a") as file:
        file.write("{broken\n" * 7)
    log = tmp_path / "events.jsonl"
    done = omniprep(
        "build", *chats, "--model", model_dir, "--bin-length", 512, "--workers", 0, "--out", tmp_path / "out",
        "--log-file", log,
    )  # fmt: skip
    assert done.code == 0
    codes = Counter(event["code"] for event in events_of(log.read_text()) if event["event"] == "reject")
    assert codes["bad_json"] == 8 and len(re.findall("^rejected: .*bad_json", done.err, re.M)) == 2


def test_duplicates_are_rejects_too(model_dir, omniprep, tmp_path) -> None:
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "no"}]}
    (tmp_path / "c.jsonl").write_text(3 * (json.dumps(row) + "\n"))
    done = omniprep(
        "build", tmp_path / "c.jsonl", "--model", model_dir, "--bin-length", 512, "--workers", 0, "--dedup", "exact",
        "--out", tmp_path / "out", "--log-json",
    )  # fmt: skip
    events = events_of(done.err)
    assert [event["line"] for event in events if event["event"] == "reject"] == [2, 3]
    (counted,) = [event for event in events if event["event"] == "rows_rejected"]
    assert counted["rejects_by_code"] == events[-1]["counts"]["rejected_by_code"] == {"duplicate": 2}


def test_a_log_file_takes_each_run_and_leaves_standard_error_to_people(build, tmp_path) -> None:
    log, out = tmp_path / "events.jsonl", tmp_path / "out"
    first = build("--out", out, "--log-file", log)
    assert first.code == 0 and "plan: " in first.err and '"event"' not in first.err
    assert build("--out", out, "--log-file", log).code == 0
    names = names_of(events_of(log.read_text()))
    assert names.count("started") == names.count("finished") == 2
    failed = build("--out", out, "--log-file", tmp_path / "none" / "x.jsonl")
    assert failed.code == 2 and f"--log-file {tmp_path}/none/x.jsonl: No such file" in failed.err


def test_what_ends_a_command_is_its_last_event(build, omniprep, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("OMNIPREP_LOG_JSON", "")
    assert build("--out", out, "--quiet").code == 0
    other = build("--out", out, "--seed", 3, "--log-json")
    last = events_of(other.err)[-1]
    assert other.code == 1 and last["event"] == "failed" and last["code"] == "failed"
    assert "--seed: 0 → 3" in last["message"]
    early = events_of(omniprep("build", "--log-json", "--bin-length", "x").err)
    assert names_of(early) == ["failed"] and early[0]["command"] == "build" and early[0]["code"] == "usage"
    unknown = omniprep("--log-json", "status", tmp_path / "none")
    assert names_of(events_of(unknown.err)) == ["failed"] and unknown.code == 1

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("omniprep.compiler.build.assign_bins", interrupt)
    stopped = build("--out", tmp_path / "two", "--log-json")
    ended = [event for event in events_of(stopped.err) if event["event"] in ("interrupted", "failed", "finished")]
    assert stopped.code == 130 and [event["event"] for event in ended] == ["interrupted"]
    assert ended[0]["signal"] == "SIGINT"


def test_codes_of_errors() -> None:
    errors = (UsageError(""), OmniprepError(""), DamagedDataError(""), FileNotFoundError(), ZeroDivisionError())
    assert [error_code(error) for error in errors] == ["usage", "failed", "damaged_data", "os", "defect"]
    assert re.fullmatch("[a-z_]+", error_code(FamilyError("x")))


def test_other_commands_have_events_too(build, omniprep, chats, model_dir, tmp_path) -> None:
    out = tmp_path / "out"
    assert build("--out", out, "--quiet").code == 0
    (more,) = make_chats(tmp_path / "more", rows=6, files=1, seed=5)
    commands = (
        ("append", out, more, "--model", model_dir, "--workers", 0),
        ("remove", out, "--row", f"{more}:2"),
        ("verify", out),
        ("repack", out, "--bin-length", 700, "--out", tmp_path / "other"),
        ("plan", more, "--model", model_dir, "--bin-length", 512, "--workers", 0),
    )
    for command in commands:
        done = omniprep(*command, "--log-json")
        assert done.code == 0, done.err
        events = events_of(done.err)
        assert names_of(events)[0] == "started" and names_of(events)[-1] == "finished", command
        assert {event["command"] for event in events} == {command[0]}
    generations = json.loads(omniprep("status", out, "--json").out)["finished"]["generations"]
    assert [entry["command"] for entry in generations] == ["build", "append", "remove"]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def scrape(port: int) -> dict[str, float]:
    """The samples of a scrape, by name with labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def check_final_metrics(samples: dict[str, float], out: Path) -> None:
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert samples['omniprep_rows_total{stage="plan"}'] == counts["rows"]["read"]
    assert samples['omniprep_rows_total{stage="encode"}'] == counts["rows"]["packed"]
    assert samples['omniprep_tokens_total{stage="encode"}'] == counts["tokens"]
    for code, count in counts["rejected_by_code"].items():
        assert samples[f'omniprep_rejected_rows_total{{code="{code}",stage="plan"}}'] == count
    shards = list((out / "shards").iterdir())
    assert samples['omniprep_bytes_total{stage="encode"}'] == sum(path.stat().st_size for path in shards)
    assert samples['omniprep_stage_done_total{stage="encode",unit="shards"}'] == len(shards)
    assert samples['omniprep_stage_queue{stage="encode",unit="shards"}'] == 0
    assert samples['omniprep_stage_running{stage="encode"}'] == 0


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_metrics_while_a_build_runs_and_at_its_end(build, tmp_path, monkeypatch, workers) -> None:
    port, out, scraped = free_port(), tmp_path / "out", []
    count = stages.Stage._count

    def scraping(self: stages.Stage, *args: Any, **more: Any) -> None:
        count(self, *args, **more)
        scraped.append(scrape(port))

    monkeypatch.setattr(stages.Stage, "_count", scraping)
    monkeypatch.setattr(
        "omniprep.cli.summary.finished_facts",
        lambda out, manifest: scraped.append(scrape(port)) or {"out": out, "counts": manifest["counts"]},
    )
    assert build("--out", out, "--metrics-port", port, "--workers", workers, "--quiet").code == 0
    done = 'omniprep_stage_done_total{stage="encode",unit="shards"}'
    shards = len(list((out / "shards").iterdir()))
    assert [samples[done] for samples in scraped if done in samples] == [*range(1, shards + 1), shards]
    queue = 'omniprep_stage_queue{stage="encode",unit="shards"}'
    assert all(samples[done] + samples[queue] == shards for samples in scraped if done in samples)
    check_final_metrics(scraped[-1], out)
    with pytest.raises(OSError):
        scrape(port)  # it is served while the command runs


def test_a_port_that_is_taken_ends_the_command_before_its_work(build, tmp_path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = build("--out", tmp_path / "out", "--metrics-port", port)
    assert done.code == 2 and f"--metrics-port {port}: cannot listen on 127.0.0.1:{port} (" in done.err
    assert not (tmp_path / "out").exists()


def test_metrics_without_their_package_or_with_a_bad_port(omniprep, monkeypatch, fresh_python) -> None:
    find = "omniprep.observe.options.find_spec"
    monkeypatch.setattr(find, lambda name: None)
    done = omniprep("build", "x.jsonl", "--model", "m", "--bin-length", 8, "--out", "o", "--metrics-port", 9400)
    assert done.code == 2 and "pip install 'omniprep[metrics]'" in done.err
    monkeypatch.undo()
    assert "1 to 65535" in omniprep("verify", "x", "--metrics-port", 70000).err
    code = """
import sys
from importlib import util
import omniprep.observe.options as options
options.find_spec = lambda name: None
from omniprep.cli.main import run
run(["build", "x.jsonl", "--model", "m", "--bin-length", "8", "--out", "o", "--metrics-port", "9400"])
print([name for name in ("torch", "transformers", "ray", "pyarrow") if name in sys.modules])
"""
    assert fresh_python(code).strip().endswith("[]")


def test_metrics_are_on_loopback_unless_asked() -> None:
    pytest.importorskip("prometheus_client", reason="prometheus-client is not installed (omniprep[metrics])")
    assert ObserveOptions().metrics_host == "127.0.0.1"
    port = free_port()
    with serve_metrics("127.0.0.1", port):
        for address, listens in (("127.0.0.1", True), ("127.0.0.2", False)):  # 0.0.0.0 would take both
            with socket.socket() as client:
                assert (client.connect_ex((address, port)) == 0) == listens
    with pytest.raises(UsageError, match="cannot listen on 203.0.113.7"), serve_metrics("203.0.113.7", free_port()):
        pass


def test_status_of_a_finished_dataset_and_of_nothing(build, omniprep, tmp_path) -> None:
    out = tmp_path / "out"
    assert build("--out", out, "--quiet").code == 0
    assert not (out / "plan" / "progress.json").exists()
    shown = omniprep("status", out)
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert shown.code == 0 and shown.out.startswith(f"{out}: finished\n")
    assert f"{counts['rows']['read']} rows read: {counts['rows']['packed']} packed, 3 rejected" in shown.out
    (tmp_path / "empty").mkdir()
    for name, said in (("empty", "holds no dataset, and no build that was begun"), ("none", "no such folder")):
        nothing = omniprep("status", tmp_path / name)
        assert nothing.code == 1 and said in nothing.err


def test_status_while_a_build_runs(build, omniprep, tmp_path, monkeypatch) -> None:
    """Asked after each shard; the file is written often here."""
    monkeypatch.setattr(progress_file, "SECONDS", 0.01)
    out, seen = tmp_path / "out", []
    count = stages.Stage._count

    def asking(self: stages.Stage, *args: Any, **more: Any) -> None:
        count(self, *args, **more)
        time.sleep(0.1)
        seen.append(json.loads(omniprep("status", out, "--json").out))

    monkeypatch.setattr(stages.Stage, "_count", asking)
    assert build("--out", out, "--quiet").code == 0
    encoding = [status for status in seen if status["stages"][-1]["stage"] == "encode"]
    shards = len(list((out / "shards").iterdir()))
    assert [status["stages"][-1]["done"] for status in encoding] == list(range(1, shards + 1))
    for status in seen:
        assert status["state"] == "running" and status["command"] == "build" and status["advice"] == ""
        assert status["lease"]["liveness"] == "alive"
    last = encoding[-2]["stages"][-1]
    assert last["total"] == shards and last["rate"] > 0 and last["eta_seconds"] is not None
    assert encoding[-1]["progress"]["rejects_by_code"] == {"bad_json": 1, "bad_row": 1, "media_not_found": 1}
    assert not (out / "plan" / "progress.json").exists()
    assert json.loads(omniprep("status", out, "--json").out)["state"] == "finished"


def killed_build(chats: list[Path], model_dir: Path, out: Path) -> int:
    """A build whose process dies after its second shard; returns the id that it had."""
    from omniprep.cli.main import run

    def work() -> int:
        progress_file.SECONDS = 0.01
        count, counted = stages.Stage._count, []

        def dying(self: stages.Stage, *args: Any, **more: Any) -> None:
            count(self, *args, **more)
            counted.append(self.name)
            if counted.count("encode") == 2:
                time.sleep(0.2)
                (out.parent / "pid").write_text(str(os.getpid()))
                os._exit(9)

        stages.Stage._count = dying  # type: ignore[method-assign]
        return run(
            ["build", *map(str, chats), "--model", str(model_dir), "--bin-length", "512", "--shard-size", "20000",
             "--workers", "0", "--quiet", "--out", str(out)]
        )  # fmt: skip

    pid = in_fork(work)
    assert wait_for(pid) == 9
    return pid


def test_status_after_the_driver_was_killed_and_from_another_machine(
    build, chats, model_dir, omniprep, tmp_path
) -> None:
    out = tmp_path / "out"
    pid = killed_build(chats, model_dir, out)
    dead = omniprep("status", out)
    assert dead.code == 0 and dead.out.startswith(f"{out}: build killed\n")
    assert re.search(r"^encode: 2/\d+ shards", dead.out, re.M), dead.out
    assert f"process {pid} on {socket.gethostname()} worked on it, and is gone" in dead.out
    assert f"omniprep build {chats[0]} {chats[1]} --model {model_dir}" in dead.out and "absent.png" in dead.out
    holder = json.loads((out / NAME).read_text())
    for age, state, liveness in ((5, "running", "fresh"), (500, "killed", "stale")):
        (out / NAME).write_text(json.dumps({**holder, "host": "other", "time": time.time() - age}))
        seen = json.loads(omniprep("status", out, "--json").out)
        assert (seen["state"], seen["lease"]["liveness"], seen["lease"]["host"]) == (state, liveness, "other")
    (out / NAME).write_text(json.dumps(holder))
    (out / "plan" / "progress.json").unlink()  # killed before the first was written: the receipts tell
    bare = json.loads(omniprep("status", out, "--json").out)
    assert bare["state"] == "killed" and bare["stages"][1]["done"] == 2 and bare["stages"][1]["total"] > 2
    again = build("--out", out, "--log-json")
    resumed = [event for event in events_of(again.err) if event["event"] == "resumed"]
    assert again.code == 0 and [event["done"] for event in resumed] == [len(resumed) and resumed[0]["done"], 2]
    taken = next(event for event in events_of(again.err) if event["event"] == "lease_taken")
    assert taken["from"] == {"host": socket.gethostname(), "pid": pid}


def test_status_of_a_build_that_failed(build, omniprep, tmp_path) -> None:
    out = tmp_path / "out"
    assert build("--out", out, "--max-error-rate", 0.01).code == 1
    seen = json.loads(omniprep("status", out, "--json").out)
    assert seen["state"] == "failed" and seen["lease"] is None
    assert "--max-error-rate 0.01" in seen["progress"]["error"]["message"] and "goes on from here" in seen["advice"]
    assert "error (failed): 3 of " in omniprep("status", out).out
    assert build("--out", out).code == 0 and not (out / "plan" / "progress.json").exists()
    assert omniprep("verify", out).code == 0


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b'{"command": 3}', b"\xff", b'{"command": "build", "state": "running", "time": 1, "began": "x"}'],
)
def test_status_of_a_progress_file_that_is_none(build, omniprep, tmp_path, content) -> None:
    out = tmp_path / "out"
    assert build("--out", out, "--max-error-rate", 0.01).code == 1
    (out / "plan" / "progress.json").write_bytes(content)
    shown = omniprep("status", out)
    assert shown.code == 1 and str(out / "plan" / "progress.json") in shown.err and shown.err.count("\n") == 1
    assert build("--out", out).code == 0


def test_a_refused_folder_gets_no_progress_file(build, tmp_path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert build("--out", out).code == 1
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_progress_file_that_cannot_be_written_is_told_once_and_ends_nothing(build, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(progress_file, "SECONDS", 0.01)
    write, tried = progress_file.io.write_atomic, threading.Event()

    def failing(uri: str, data: bytes) -> None:
        if uri.endswith("progress.json"):
            tried.set()
            raise OSError(28, "No space left on device", uri)
        write(uri, data)

    monkeypatch.setattr(progress_file.io, "write_atomic", failing)
    done = build("--out", tmp_path / "out")
    assert done.code == 0 and tried.is_set()
    assert done.err.count("so omniprep status shows an older state") == 1
