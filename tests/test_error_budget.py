"""Rejects while a build runs: the first ones told with source and line, --on-error fail, --max-error-rate, the summary."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omniprep.rows import sources
from tests.reliability import outcome


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files cut into many splits: broken JSON in lines 3, 17, 18 and 30, blank lines before them, and in line 25 a
    picture whose header is good and whose body is not."""
    monkeypatch.setattr(
        "omniprep.compiler.output.folder.find_splits", functools.partial(sources.find_splits, split_bytes=300)
    )
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:4000])

    def line(number: int) -> str:
        if number in (2, 5, 20):
            return ""
        if number in (3, 17, 18, 30):
            return '{"messages": [' + "x" * number
        row = {
            "messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "yes " * number}]
        }
        if number in (24, 25):
            row["messages"][0]["content"] = "<image>" + str(row["messages"][0]["content"])
            row["images"] = ["cut.png" if number == 25 else "whole.png"]
        return json.dumps(row)

    (tmp_path / "first.jsonl").write_text("".join(line(n) + "\n" for n in (1, 4, 6)))
    (tmp_path / "second.jsonl").write_text("".join(line(n) + "\n" for n in range(1, 33)))
    return tmp_path


@pytest.fixture
def build(inputs: Path, omniprep, model_dir: Path):
    names = [inputs / "first.jsonl", inputs / "second.jsonl"]
    options = ("--model", model_dir, "--bin-length", 512, "--shard-size", 10_000, "--workers", 0)
    return lambda *more: omniprep("build", *names, *options, *more)


def test_the_first_of_each_code_are_told_with_source_and_line(build, inputs: Path) -> None:
    done = build("--out", inputs / "out")
    assert done.code == 0, done.err
    told = [line for line in done.err.splitlines() if line.startswith("rejected: ")]
    second = inputs / "second.jsonl"
    assert [line.split(": ")[1:3] for line in told] == [
        [f"{second}:3", "bad_json"],
        [f"{second}:17", "bad_json"],
        [f"{second}:25", "decode_error"],
    ]
    assert "more of this code are not shown" in told[1]
    lines = [json.loads(text) for text in (inputs / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["line"], row["code"]) for row in lines] == [
        (3, "bad_json"), (17, "bad_json"), (18, "bad_json"), (25, "decode_error"), (30, "bad_json"),
    ]  # fmt: skip
    assert lines[3]["row"]["images"] == ["cut.png"] and lines[0]["row"] is None
    assert "bad_json" in done.out and "decode_error" in done.out and "rejected.jsonl" in done.out + done.err


def test_on_error_fail_ends_at_the_first(build, inputs: Path) -> None:
    done = build("--out", inputs / "out", "--on-error", "fail")
    assert done.code == 1
    assert f"{inputs / 'second.jsonl'}:3: bad_json: " in done.err.splitlines()[-1]
    assert not (inputs / "out" / "manifest.json").exists()


def test_the_error_rate(build, inputs: Path) -> None:
    """4 of 32 rows fail while planning, one more while encoding; a larger budget goes on with what is done."""
    done = build("--out", inputs / "out", "--max-error-rate", 0.1)
    assert done.code == 1 and "4 of 32 rows are rejected, more than --max-error-rate 0.1" in done.err.splitlines()[-1]
    assert not list((inputs / "out" / "shards").iterdir())
    done = build("--out", inputs / "out", "--max-error-rate", 0.13)
    assert done.code == 1 and "5 of 32 rows are rejected, more than --max-error-rate 0.13" in done.err.splitlines()[-1]
    assert "rejected.jsonl" in done.err.splitlines()[-1] and not (inputs / "out" / "manifest.json").exists()
    shards = {path.name: path.stat().st_mtime_ns for path in (inputs / "out" / "shards").iterdir()}
    done = build("--out", inputs / "out", "--max-error-rate", 0.5)
    assert done.code == 0, done.err
    assert shards == {path.name: path.stat().st_mtime_ns for path in (inputs / "out" / "shards").iterdir()}
    assert build("--out", inputs / "plain").code == 0
    assert outcome(inputs / "out") == outcome(inputs / "plain")


def test_inputs_that_change_while_they_are_read(build, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import omniprep.compiler.plan.split_task as planning

    real = planning.read_split

    def grows(split: sources.Split, *more):
        with (inputs / "second.jsonl").open("a") as file:
            file.write("\n")
        return real(split, *more)

    monkeypatch.setattr(planning, "read_split", grows)
    done = build("--out", inputs / "out")
    assert done.code == 1 and f"input {inputs / 'second.jsonl'} was changed while it was read" in done.err
    assert str(inputs / "first.jsonl") not in done.err.splitlines()[-1]
