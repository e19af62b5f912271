"""Progress must never disturb results: all of it on standard error, plain where there is no terminal."""

import io
import json

import pytest

from omniprep.progress import JsonReporter, PlainReporter, QuietReporter, Stage, duration, reporter, short, size


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
    assert captured.out == "" and captured.err.startswith("plan: 1 rows")


def test_bars_on_a_terminal(monkeypatch):
    import sys

    from omniprep.progress import RichReporter

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    with reporter() as progress:
        assert isinstance(progress, RichReporter)
        progress.start("encode", 2, "bins")
        progress.advance("encode", tokens=5)
        progress.message("a [bold]line[/bold]")
        progress.finish("encode")
    assert "encode" in stream.getvalue() and "a [bold]line[/bold]" in stream.getvalue()


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


def test_json_lines_tell_what_the_plain_ones_tell():
    stream = io.StringIO()
    reporter = JsonReporter(stream, interval=0)
    reporter.start("encode", 2, "shards")
    reporter.advance("encode", tokens=10, rejects=1)
    reporter.message("a word")
    reporter.finish("encode")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["progress", "message", "finish"]
    assert lines[0]["stage"] == "encode" and lines[0]["tokens"] == 10 and lines[0]["total"] == 2
    assert lines[1]["text"] == "a word" and all(line["time"] > 0 for line in lines)
