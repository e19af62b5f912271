"""Progress must never disturb results: all of it on standard error, plain where there is no terminal."""

import dataclasses
import io
import re
import sys
import time

import pytest

from omniprep.bars import RichReporter, reporter, stage_line, worker_line
from omniprep.compiler.run.cluster import ray_session
from omniprep.compiler.run.worker_status import progress_listener, report_progress
from omniprep.compiler.run.workers import run_tasks
from omniprep.progress import (
    PlainReporter,
    QuietReporter,
    Stage,
    WorkerStatus,
    duration,
    short,
    size,
)


def test_plain_lines_tell_rate_tokens_and_rejects():
    stream = io.StringIO()
    plain = PlainReporter(stream, interval=0.0)
    plain.start("plan", 10)
    plain.advance("plan", 4, tokens=400, rejects=1)
    plain.advance("plan", 6, tokens=600)
    plain.finish("plan")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("plan: 4/10 rows, ") and "tokens/s" in lines[0] and "1 rejected" in lines[0]
    assert " left" in lines[0] and " left" not in lines[1]
    assert lines[2].startswith("plan: 10 rows in ")


def test_plain_is_not_chatty():
    stream = io.StringIO()
    plain = PlainReporter(stream, interval=60)
    plain.start("encode", None, "bins")
    for _ in range(1000):
        plain.advance("encode")
    assert stream.getvalue() == ""


def test_quiet_says_messages_only():
    stream = io.StringIO()
    quiet = QuietReporter(stream)
    quiet.start("plan", 1)
    quiet.advance("plan")
    quiet.finish("plan")
    quiet.message("3 rows were rejected")
    assert stream.getvalue() == "3 rows were rejected\n"


def test_the_right_reporter_for_a_pipe(capsys):
    with reporter() as progress:
        progress.start("plan", 1)
        progress.advance("plan")
        progress.finish("plan")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("plan: 1 row")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch) -> Terminal:
    """Standard error as a terminal with colors; in the test itself, since pytest takes it over after the fixtures."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    for name in ("NO_COLOR", "OMNIPREP_PLAIN", "OMNIPREP_LOG_JSON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    return stream


COLOR = re.compile(r"\x1b\[[0-9;]*(3[0-9]|38;5;\d+)m")


def test_bars_have_color_but_with_no_color(monkeypatch):
    terminal = terminal_of(monkeypatch)

    def show() -> str:
        terminal.truncate(0)
        with reporter() as progress:
            progress.start("encode", 2, "bins")
            progress.advance("encode", tokens=5)
            progress.finish("encode")
        return terminal.getvalue()

    assert COLOR.search(show())
    monkeypatch.setenv("NO_COLOR", "1")
    text = show()
    assert "encode" in text and not COLOR.search(text)


@pytest.mark.parametrize(("name", "value"), [("OMNIPREP_PLAIN", "1"), ("TERM", "dumb")])
def test_plain_lines_on_a_terminal(monkeypatch, name, value):
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv(name, value)
    with reporter() as progress:
        progress.start("plan", 1)
        progress.advance("plan")
        progress.finish("plan")
    assert terminal.getvalue().startswith("plan: 1 row in ") and "\x1b" not in terminal.getvalue()


def test_workers_have_lines_of_their_own_below_the_stage(monkeypatch):
    terminal = terminal_of(monkeypatch)
    with reporter() as progress:
        assert progress.nested
        progress.start("encode", 30, "shards")
        many = [WorkerStatus(f"worker {n}", f"shard {n + 4}", n, 40, "bins") for n in range(1, 13)]
        progress.workers("encode", many)
        progress.refresh()
        shown = terminal.getvalue()
        assert "worker 8" in shown and "and 4 workers more" in shown and "worker 9" not in shown
        terminal.truncate(0)
        progress.workers("encode", [WorkerStatus("worker 2", "shard 40", 7, 9, "bins")])
        progress.refresh()
        assert "shard 40" in terminal.getvalue() and "worker 8" not in terminal.getvalue()
        progress.finish("encode")
        terminal.truncate(0)
        progress.refresh()
        assert "encode" in terminal.getvalue() and "worker" not in terminal.getvalue()


def test_what_a_task_tells_is_heard_now_and_then(monkeypatch):
    heard = []
    report_progress("nobody", 1, 2, "bins")
    with progress_listener(lambda *told: heard.append(told)):
        for number in range(1000):
            report_progress("shard 3", number, 1000, "bins")
        with progress_listener(None):
            report_progress("deeper", 1, 2, "bins")
    report_progress("after", 1, 2, "bins")
    assert heard[0] == ("shard 3", 0, 1000, "bins") and len(heard) < 10


def test_bars_on_a_terminal(monkeypatch):
    stream = terminal_of(monkeypatch)
    with reporter() as progress:
        assert isinstance(progress, RichReporter)
        progress.start("encode", 2, "bins")
        progress.advance("encode", tokens=5)
        progress.message("a [bold]line[/bold]")
        progress.finish("encode")
    assert "encode" in stream.getvalue() and "a [bold]line[/bold]" in stream.getvalue()


LARGEST = {"done": 12_345_678, "tokens": 31_234_567_890, "rejects": 1_234_567}


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
@pytest.mark.parametrize("total", [None, 1, 12_345_679])
@pytest.mark.parametrize("ended", [False, True])
def test_no_number_of_a_bar_is_cut(monkeypatch, width, total, ended):
    """What has no room is left out whole: all that is shown is a piece of the line of an endless terminal."""
    monkeypatch.setattr(time, "monotonic", lambda: 10_000.0)
    for scale in (1, 1000, 10**7):
        counts = {name: value // scale for name, value in LARGEST.items()}
        stage = Stage("encode", total, "shards", began=5000.0, moved=9999.0, **counts)
        if ended:
            stage.end()
        shown, whole = (stage_line(stage, columns).plain for columns in (width, 10_000))
        assert len(shown) <= width and "…" not in shown
        assert set(re.findall(r"[\d.,:]*\d[kMG]?", shown)) <= set(re.findall(r"[\d.,:]*\d[kMG]?", whole))
        assert stage.count() in shown
        if width >= 80 and ended:
            assert " in 1:23:20 h" in shown
    status = WorkerStatus("worker 12", "shard 12345", 12_345, 123_456, "bins")
    shown = worker_line(status, width).plain
    assert len(shown) <= width and "12,345/123,456 bins" in shown and ("shard 12345" in shown or "shard" not in shown)


def test_the_time_left_runs_down_while_nothing_is_reported(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stage = Stage("encode", 10, "shards", began=now)
    now += 10
    stage.add(1, 0, 0)
    assert stage.seconds_left() == pytest.approx(90)
    shown = stage_line(stage, 80).plain
    now += 30
    assert stage.seconds_left() == pytest.approx(60) and stage_line(stage, 80).plain != shown
    now += 60  # overdue: a shard has taken 100 seconds, so nine take 900
    assert stage.seconds_left() == pytest.approx(900)


def test_workers_tell_the_time_left_before_the_first_shard_is_done(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stage = Stage("encode", 4, "shards", began=now)
    now += 20
    stage.take_status([WorkerStatus("1", "shard 0", 30, 40, "bins"), WorkerStatus("2", "shard 1", 10, 40, "bins")])
    assert stage.under_way == 1.0 and stage.seconds_left() == pytest.approx(60)
    assert "━━━---------" in stage_line(stage, 80).plain and "0/4 shards, 1:00 min left" in stage_line(stage, 80).plain
    stage.take_status([WorkerStatus("1", "split 3", 500, None, "rows")])  # how far it is cannot be known
    assert stage.under_way == 0.0


def test_slow_rates_are_of_a_minute():
    stage = Stage("encode", 10, "shards", began=time.monotonic() - 100)
    stage.add(1, 0, 0)
    assert stage.facts() == "0.6 shards/min"


def test_a_terminal_of_ascii_gets_ascii(monkeypatch):
    class Ascii(Terminal):
        encoding = "ascii"

    monkeypatch.setattr(sys, "stderr", stream := Ascii())
    for name in ("NO_COLOR", "OMNIPREP_PLAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with reporter() as progress:
        progress.start("encode", 2)
        progress.finish("encode")
    assert "###" in stream.getvalue() and stream.getvalue().isascii()


def test_remaining_needs_a_total_and_a_rate():
    assert Stage("s", None, "rows").remaining() == "" and Stage("s", 5, "rows").remaining() == ""
    assert Stage("s", 5, "rows", done=5).remaining() == "" and Stage("s", 5, "rows", done=1).remaining()


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0.0"), (7.31, "7.3"), (120, "120"), (1234, "1.2k"), (310_000, "310k"), (4.5e6, "4.5M")]
)
def test_short(value, text):
    assert short(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.42, "0.4 s"), (59.4, "59 s"), (187, "3:07 min"), (3729, "1:02:09 h")])
def test_duration(value, text):
    assert duration(value) == text


@pytest.mark.parametrize(("value", "text"), [(512, "512 B"), (3 << 20, "3.0 MiB"), (5 << 40, "5.0 TiB")])
def test_size(value, text):
    assert size(value) == text


def test_what_was_done_before_is_no_part_of_the_rate_and_the_time_left():
    stage = Stage("encode", 100, "shards", began=time.monotonic() - 10)
    stage.add(90, 9000, 0)
    stage.resume({"done": 90, "tokens": 9000})
    assert stage.seconds_left() is None and "0.0 shards/s" in stage.facts() and "tokens/s" not in stage.facts()
    stage.add(5, 500, 0)
    assert stage.seconds_left() == pytest.approx(10, rel=0.05)
    assert "0.5 shards/s, 50.0 tokens/s" in stage.facts().replace("49.9", "50.0")


@pytest.mark.parametrize("bars", [False, True])
def test_reporters_of_people_learn_what_was_done_before(monkeypatch, bars):
    if bars:
        terminal_of(monkeypatch)
    with reporter() as progress:
        progress.start("encode", 10, "shards")
        progress.advance("encode", 8)
        progress.event("resumed", {"stage": "encode", "done": 8, "tokens": 0})
        assert progress.stages["encode"].before == 8
        progress.finish("encode")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_whoever_runs_the_tasks_shows_what_is_under_way(tmp_path, workers):
    @dataclasses.dataclass(frozen=True)
    class Task:  # in here, so that it travels to Ray's worker by value
        number: int
        out: str = ""
        fence: None = None
        isolate: bool = False

        def run(self):
            import time

            from omniprep.compiler.run.worker_status import report_progress

            for number in range(4):
                report_progress(f"shard {self.number}", number, 4, "bins")
                time.sleep(0.35)
            return self.number

    shown = []
    tasks = [Task(7), Task(8)]
    marks = [str(tmp_path / str(task.number)) for task in tasks]
    with ray_session(workers, None):
        results = dict(run_tasks(tasks, workers, marks, print, lambda statuses: shown.append(list(statuses))))
    assert results == {0: 7, 1: 8}
    reports = [status for statuses in shown for status in statuses]
    assert {status.task for status in reports} == {"shard 7", "shard 8"} and {s.total for s in reports} == {4}
    assert {status.worker for status in reports} == ({""} if workers == 0 else {"worker 1"})
    assert max(status.done for status in reports) > 0
