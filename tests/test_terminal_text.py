r"""Text of strangers never moves the cursor, colors a line, turns its order around or is taken for markup.

Every command that prints text of rows, names of files, reject messages or tokens is run over a dataset whose every such
text is hostile; nothing of what it prints may hold a character that a terminal obeys.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniprep.observe.events import JsonLog
from omniprep.printable import escape_json, printable, printable_json
from omniprep.progress import PlainReporter, QuietReporter

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "\x1b[2J\x1b]0;owned\x07 \u202egnp.exe \x9b31m [bold red][/z] \r\x08"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture(scope="module")
def dataset(omniprep: Any, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A dataset in a folder with brackets, of a file whose name is hostile, with packed and rejected rows."""
    folder = tmp_path_factory.mktemp("hostile")
    source = folder / f"{HOSTILE.replace('/', '')}.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"q {HOSTILE}"}, {"role": "assistant", "content": HOSTILE}]},
        {"messages": [{"role": f"user{HOSTILE}", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "images": [HOSTILE]},
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            f"{HOSTILE}": "a.png",
        },
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "pack[v2][/z]"
    options = ("--model", model_dir, "--bin-length", 512, "--workers", 0)
    done = omniprep("build", source, *options, "--out", out)
    assert done.code == 0, done.err
    planned = omniprep("plan", source, *options, "--compare", "max-length=300")
    assert planned.code == 0, planned.err
    for text in (done.out, done.err, planned.out, planned.err):
        assert not OBEYED.search(text), OBEYED.findall(text)
    assert f"{out}\n" in done.out  # the title, brackets and all
    assert r"\x1b[2J" in done.err and r"\u202egnp" in planned.out and "images=" in done.out
    return out, str(source)


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "{out}"),
        ("inspect", "{out}", "--json"),
        ("inspect", "{out}", "--row", "{source}:1"),
        ("inspect", "{out}", "--row", "{source}:2"),
        ("inspect", "{out}", "--rejected"),
        ("inspect", "{out}", "--rejected", "bad_role"),
        ("inspect", "{out}", "--rejected", "--json"),
        ("inspect", "{out}", "--row", "{source}x:9"),
        ("stats", "{out}"),
        ("status", "{out}"),
        ("status", HOSTILE),
        ("sample", "{out}", "--out", "{out}-sample", "--row", "{source}:1"),
        ("sample", "{out}", "--out", "{out}-sample", "--row", "{source}:9"),
        ("export", "{out}", "--prompts", "chats", "--out", "{out}-prompts.jsonl"),
        ("push", "{out}", "me/x", "--dry-run"),
        ("push", "{out}", HOSTILE),
        ("remove", "{out}", "--row", "{source}:99"),
        ("repack", "{out}", "--bin-length", "512", "--workers", "0", "--exclude", "{source}:9", "--out", "{out}-re"),
        ("infer", HOSTILE, "--model", HOSTILE),
        ("train", HOSTILE, "--model", HOSTILE, "--out", HOSTILE),
        ("stats", "{out}", "--json"),
        ("verify", "{out}", "--deep"),
        ("report", "{out}"),
        ("report", "{out}", "--model", HOSTILE),
        ("stats", HOSTILE),
        ("verify", HOSTILE),
        ("plan", HOSTILE, "--model", HOSTILE, "--bin-length", "8", "--workers", "0"),
        ("build", HOSTILE, f"--{HOSTILE}"),
        (HOSTILE,),
        ("doctor", "--model", HOSTILE),
    ],
    ids=lambda command: " ".join(word for word in command if word != HOSTILE).replace("{", "").replace("}", "")[:40],
)
def test_no_command_prints_what_a_terminal_obeys(command: Any, dataset: tuple[Path, str], omniprep: Any) -> None:
    out, source = dataset
    result = omniprep(*(word.format(out=out, source=source) if "{" in word else word for word in command))
    for text in (result.out, result.err):
        assert not OBEYED.search(text), OBEYED.findall(text)
    assert result.out or result.err
    assert "Traceback" not in result.err
    if "--json" in command:
        json.loads(result.out)


def test_a_damaged_dataset_with_hostile_names(dataset: tuple[Path, str], omniprep: Any, tmp_path: Path) -> None:
    """Facts of a manifest are text of strangers too."""
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(dataset[0], out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["counts"]["rejected_by_code"] = {HOSTILE: 2}
    (out / "manifest.json").write_text(json.dumps(manifest))
    shard = next((out / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-9])
    for command in (("stats", out), ("verify", out), ("inspect", out, "--rejected")):
        result = omniprep(*command)
        assert not OBEYED.search(result.out + result.err), command


@pytest.mark.parametrize("reporter", [QuietReporter, PlainReporter, lambda: JsonLog(sys.stderr, "build")])
def test_messages_of_progress(reporter: Any, capsys: pytest.CaptureFixture[str]) -> None:
    reporter().message(HOSTILE)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and not OBEYED.search(told)


def test_bars_take_no_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from omniprep.bars import RichReporter
    from omniprep.progress import WorkerStatus

    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    bars = RichReporter()
    bars.start("plan", 2, "splits [/z]")
    bars.workers("plan", [WorkerStatus(worker="host[/z]", task="[/z] split", done=0, total=1, unit="[/z]")])
    bars.message(HOSTILE)
    bars.refresh()
    bars.stop()
    assert r"\x1b[2J" in capsys.readouterr().err


@given(st.text())
def test_printable_is_safe_and_says_what_was_there(text: str) -> None:
    shown = printable(text)
    assert not OBEYED.search(shown) and "\n" not in shown and "\t" not in shown
    assert printable(shown) == shown
    assert OBEYED.search(text) or "\n" in text or "\t" in text or "\u2028" in text or len(shown) >= len(text)
    several = printable(text, lines=True)
    assert several.count("\n") == text.count("\n") and not OBEYED.search(several)


@given(
    st.recursive(st.none() | st.booleans() | st.text(), lambda part: st.lists(part) | st.dictionaries(st.text(), part))
)
def test_escaped_json_reads_back_equal(value: Any) -> None:
    for text in (printable_json(value), printable_json(value, indent=1), escape_json(json.dumps(value))):
        assert json.loads(text) == value and not OBEYED.search(text)


def test_scripts_and_emoji_stay_as_they_are() -> None:
    for text in ("naïve café", "日本語 한국어", "עברית العربية", "👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "नमस्ते क्‍ष"):
        assert printable(text) == text


def test_everything_is_printed_through_one_function() -> None:
    """A bare print of a text would pass the gate by."""
    gate = re.compile(
        r"print\(\)|print\(printable|print\(escape_json|print\(event_line|[\w)]\.print\(|file=file|click\.echo\(script|oom_score"
    )
    for path in sorted((ROOT / "omniprep").rglob("*.py")):
        if path.name != "printable.py":
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if re.search(r"\bprint\(|click\.echo\(", line):
                    assert gate.search(line), f"{path}:{number}: {line.strip()}"


def test_what_libraries_print_by_themselves_is_escaped(dataset: tuple[Path, str]) -> None:
    """Warnings and log lines quote data: matplotlib each glyph that its font lacks, transformers fields of a config.

    In a process of its own, since pytest takes both.
    """
    code = (
        "import logging, sys, warnings\n"
        "from omniprep.cli.main import run\n"
        "assert run(sys.argv[2:]) == 0 and run(sys.argv[2:]) == 0\n"
        "warnings.warn('label ' + sys.argv[1], stacklevel=1)\n"
        "logging.getLogger('some.library').error('field %s', sys.argv[1])\n"
    )
    command = ("report", str(dataset[0]), "--out", str(dataset[0].parent / "page.html"))
    done = subprocess.run([sys.executable, "-c", code, HOSTILE, *command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not OBEYED.search(done.stderr), done.stderr
    assert r"label \x1b[2J" in done.stderr and r"field \x1b[2J" in done.stderr
