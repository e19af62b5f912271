"""Lakes after several commands: what one of them leaves behind is what the next one goes on from."""

import json
from pathlib import Path
from typing import Any

import pytest

from omniprep import PackedDataset
from omniprep.cli.summary import count_lines
from omniprep.report.numbers import totals


def write(path: Path, words: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    chats = [[{"role": "user", "content": f"Say {w}"}, {"role": "assistant", "content": w}] for w in words]
    path.write_text("".join(json.dumps({"word": w, "messages": c}) + "\n" for w, c in zip(words, chats, strict=True)))
    return path


@pytest.fixture
def run(omniprep: Any, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command in `tmp_path`, so that names are relative as people give them; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(command: str, *args: object, code: int = 0) -> str:
        more: tuple[object, ...] = ("--quiet",) if command in ("build", "repack") else ()
        if command == "build":
            more += ("--model", model_dir, "--bin-length", 256, "--workers", 0)
        done = omniprep(command, *args, *more)
        assert done.code == code, done.err
        return str(done.out + done.err)

    return call


def inputs(out: str) -> list[str]:
    return [entry["source"] for entry in json.loads(Path(out, "manifest.json").read_text())["inputs"]]


def test_the_numbers_that_are_shown_add_up(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "a.jsonl", ["one", "two", "three", "four"])
    run("build", "a.jsonl", "--out", "lake", "--where", "word <> 'four'")
    run("remove", "lake", "--row", "a.jsonl:1")
    shown = dict(count_lines(totals(PackedDataset("lake").manifest), {}))
    rows = [shown[f"rows {name}"] for name in ("read", "packed", "rejected", "removed", "left out by --where")]
    assert rows == ["3", "2", "0", "1", "1"]
    assert "rows removed" in run("stats", "lake")


@pytest.mark.parametrize("how", ["remove", "exclude"])
def test_rows_that_were_taken_out_do_not_come_back_through_a_repack(tmp_path: Path, run: Any, how: str) -> None:
    write(tmp_path / "a.jsonl", ["one", "two"])
    write(tmp_path / "b.jsonl", ["three"])
    run("build", "a.jsonl", "b.jsonl", "--out", "lake")
    more: tuple[str, ...] = ("--exclude-source", "a.jsonl")
    if how == "remove":
        run("remove", "lake", "--source", "a.jsonl")
        more = ()
    run("repack", "lake", "--bin-length", 256, "--out", "even", *more)
    assert inputs("even") == ["a.jsonl", "b.jsonl"]
    assert "nothing to do" in run("append", "even", "a.jsonl", "b.jsonl")
    assert PackedDataset("even").counts["rows"]["read"] == 1
    run("verify", "even", "--deep")
    # A choice of sources is of another kind: what it leaves can be appended.
    run("repack", "lake", "--bin-length", 256, "--out", "part", "--source", "b.jsonl", *more)
    assert inputs("part")[-1] == "b.jsonl"


def test_rows_that_a_merge_has_under_another_name_are_not_merged_again(tmp_path: Path, run: Any) -> None:
    for day in ("day1", "day2"):
        (tmp_path / day).mkdir()
    write(tmp_path / "a.jsonl", ["one", "two"])
    run("build", "a.jsonl", "--out", "day1/out")
    write(tmp_path / "a.jsonl", ["three", "four", "five"])
    run("build", "a.jsonl", "--out", "day2/out")
    write(tmp_path / "more.jsonl", ["six"])
    run("build", "more.jsonl", "./a.jsonl", "--out", "again")
    run("repack", "day1/out", "day2/out", "--bin-length", 256, "--out", "both")
    for one, other in (("both", "day1/out"), ("day2/out", "both"), ("day2/out", "again")):
        error = run("repack", one, other, "--bin-length", 512, "--out", "twice", code=1)
        assert "one input line is in two of the datasets" in error and not Path("twice").exists()
    run("repack", "both", "day1/out", "--bin-length", 512, "--out", "rest", "--exclude-source", "day1/out/a.jsonl")
    assert PackedDataset("rest").counts["rows"]["packed"] == 5


def test_a_file_by_two_names_is_built_once(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "a.jsonl", ["one", "two"])
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    said = run("build", "a.jsonl", "./a.jsonl", "link.jsonl", tmp_path / "a.jsonl", "--out", "lake")
    assert PackedDataset("lake").counts["rows"]["read"] == 2 and inputs("lake") == ["a.jsonl"]
    assert "link.jsonl: is a.jsonl by another name; left out" in said
    error = run("build", "a.jsonl#1", "link.jsonl#1", "--out", "drawn", code=2)
    assert "link.jsonl: is a.jsonl by another name" in error and "give it once" in error
    # A copy is a file of its own.
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    run("build", "a.jsonl", "copy.jsonl", "--out", "copies")
    assert PackedDataset("copies").counts["rows"]["read"] == 4


def test_another_draw_of_a_file_is_not_taken_for_the_one_that_is_there(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "a.jsonl", [f"word{number}" for number in range(9)])
    run("build", "a.jsonl#3", "--out", "lake")
    assert "nothing to do" in run("append", "lake", "a.jsonl#3")
    for other in ("a.jsonl#5", "a.jsonl"):
        error = run("append", "lake", other, code=1)
        assert "a.jsonl: lake has 3 rows of it, drawn by #N, and these would be others" in error
    # Of two draws of a file a merge takes no row twice.
    run("build", "a.jsonl#8", "--out", "eight")
    error = run("repack", "lake", "eight", "--bin-length", 256, "--out", "both", code=1)
    assert "one input line is in two of the datasets" in error
    # All rows of a file hold any draw of it.
    run("build", "a.jsonl", "--out", "whole")
    assert "nothing to do" in run("append", "whole", "a.jsonl#3")


def test_a_repacked_dataset_that_was_split_says_what_an_append_lacks(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "a.jsonl", [f"word{number}" for number in range(20)])
    write(tmp_path / "b.jsonl", [f"other{number}" for number in range(20)])
    run("build", "a.jsonl", "--out", "lake", "--split-by", "rows", "--eval-fraction", 0.3)
    run("repack", "lake", "--bin-length", 512, "--out", "even")
    assert "repack the one for evaluation into even-eval first" in run("append", "even", "b.jsonl", code=1)
    run("repack", "lake-eval", "--bin-length", 512, "--out", "even-eval")
    run("append", "even", "b.jsonl")
    counts = [PackedDataset(name).counts["rows"]["packed"] for name in ("even", "even-eval")]
    assert sum(counts) == 40 and min(counts) > 0


def test_copies_of_a_removed_row_are_named(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "a.jsonl", ["one", "two", "one"])
    run("build", "a.jsonl", "--out", "lake", "--dedup", "exact")
    said = run("remove", "lake", "--row", "a.jsonl:1")
    assert "remove them too where the text must go: a.jsonl:3" in said
    assert "Say one" in Path("lake/rejected.jsonl").read_text()
    assert "their copies" not in run("remove", "lake", "--row", "a.jsonl:2", "--row", "a.jsonl:3")
    assert Path("lake/rejected.jsonl").read_text() == ""
