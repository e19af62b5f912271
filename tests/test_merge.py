"""Datasets of several days in one: every row stays addressable and distinct, whatever its file was called."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import picture

from omniprep import PackedDataset


def day(folder: Path, name: str, word: str, rows: int = 6) -> Path:
    """A file of chats in a folder of its own, with a picture and a row that is rejected."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.png").write_bytes(picture("PNG", (56, 28 * (1 + len(word) % 4))))
    lines = []
    for number in range(rows):
        text, more = f"Say {word} {number}", {}
        if number == 1:
            text, more = f"<image>{text}", {"images": ["a.png"]}
        chat = [{"role": "user", "content": text}, {"role": "assistant", "content": f"{word} {number}"}]
        lines.append(json.dumps({"messages": chat, **more}))
    lines.append(json.dumps({"messages": f"broken {word}"}))
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder / name


@pytest.fixture
def build(omniprep: Any, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Build inside a folder, of names relative to it, as a job of that day does."""

    def call(folder: Path, *names: str, out: str = "packed", bin_length: int = 256) -> Path:
        monkeypatch.chdir(folder)
        done = omniprep(
            "build", *names, "--model", model_dir, "--bin-length", bin_length, "--shard-size", "20KB", "--workers", 0,
            "--quiet", "--out", out,
        )  # fmt: skip
        assert done.code == 0, done.err
        monkeypatch.undo()
        return folder / out

    return call


@pytest.fixture
def days(tmp_path: Path, build: Any) -> list[Path]:
    packed = []
    for number in (1, 2):
        day(tmp_path / f"day{number}", "part.jsonl", f"word{'x' * number}")
        packed.append(build(tmp_path / f"day{number}", "part.jsonl"))
    return packed


def merge(omniprep: Any, out: Path, *datasets: Path, code: int = 0, more: tuple[object, ...] = ()) -> str:
    done = omniprep("repack", *datasets, "--bin-length", 512, "--out", out, "--quiet", *more)
    assert done.code == code, done.err
    return str(done.err)


def sources(out: Path) -> list[str]:
    return sorted(set(PackedDataset(str(out)).rows["source"].to_pylist()))


def same_row(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(np.asarray(one[name]), np.asarray(other[name])) for name in one if hasattr(one[name], "shape")
    )


def test_files_of_one_name_keep_every_row_apart(tmp_path: Path, days: list[Path], omniprep: Any) -> None:
    out = tmp_path / "both"
    merge(omniprep, out, *days)
    assert sources(out) == ["day1/packed/part.jsonl", "day2/packed/part.jsonl"]
    both = PackedDataset(str(out))
    assert both.counts["rows"] == {"read": 14, "packed": 12, "rejected": 2}
    for number, folder in enumerate(days, 1):
        alone = PackedDataset(str(folder))
        for line in range(1, 7):
            assert same_row(both.row(f"day{number}/packed/part.jsonl", line), alone.row("part.jsonl", line))
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(entry["source"], entry["line"]) for entry in rejected] == [
        ("day1/packed/part.jsonl", 7), ("day2/packed/part.jsonl", 7),
    ]  # fmt: skip
    assert [entry["row"]["messages"] for entry in rejected] == ["broken wordx", "broken wordxx"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert [(entry["source"], entry["given"]) for entry in manifest["inputs"]] == [
        ("day1/packed/part.jsonl", "part.jsonl"), ("day2/packed/part.jsonl", "part.jsonl"),
    ]  # fmt: skip


def test_all_commands_know_the_rows_of_a_merge(
    tmp_path: Path, days: list[Path], omniprep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "both"
    merge(omniprep, out, *days)
    for number in (1, 2):  # each day's rows from its folder: the file of the other day has the same name there
        monkeypatch.chdir(tmp_path / f"day{number}")
        deep = omniprep("verify", out, "--deep", "--quiet", "--sample", 20)
        other = 3 - number
        assert f"day{number}/packed/part.jsonl" not in deep.err and f"day{other}/packed/part.jsonl" in deep.err
        assert "its build read part.jsonl" in deep.err and "damaged" not in deep.err
    monkeypatch.chdir(tmp_path)
    deep = omniprep("verify", out, "--deep", "--quiet", "--sample", 20, "--input", "day1", "--input", "day2")
    assert deep.code == 0 and "12 rows" in deep.out, deep.out + deep.err
    removed = omniprep(
        "remove", out, "--row", "day2/packed/part.jsonl:3", "--row", "day1/packed/part.jsonl:7", "--quiet"
    )
    assert removed.code == 0, removed.err
    assert b"broken wordx" + b'"' not in (out / "rejected.jsonl").read_bytes()
    rows = PackedDataset(str(out)).rows.to_pylist()
    assert [(row["source"], row["line"]) for row in rows if row["status"] == "removed"] == [
        ("day1/packed/part.jsonl", 7), ("day2/packed/part.jsonl", 3),
    ]  # fmt: skip
    day(tmp_path / "day3", "part.jsonl", "third")
    monkeypatch.chdir(tmp_path / "day3")
    assert omniprep("append", out, "part.jsonl", "--quiet").code == 0
    assert sources(out) == ["day1/packed/part.jsonl", "day2/packed/part.jsonl", "part.jsonl"]
    monkeypatch.chdir(tmp_path)  # names are relative to where the command runs, so this is another one
    again = omniprep("append", out, "day3/part.jsonl")
    assert again.code == 0 and "day3/part.jsonl: has the content of part.jsonl, which" in again.err
    monkeypatch.chdir(tmp_path)
    assert omniprep("verify", out, "--quiet").code == 0


def test_what_a_merge_renamed_is_not_appended_again(
    tmp_path: Path, days: list[Path], omniprep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "both"
    merge(omniprep, out, *days)
    before = (out / "manifest.json").read_bytes()
    for number in (1, 2):
        monkeypatch.chdir(tmp_path / f"day{number}")
        done = omniprep("append", out, "part.jsonl")
        assert done.code == 0 and "nothing to do" in done.err
    assert (out / "manifest.json").read_bytes() == before


def test_a_merge_of_merges_and_folders_of_one_name(tmp_path: Path, build: Any, omniprep: Any) -> None:
    packed = []
    for week in (1, 2):
        for number in (1, 2):
            day(tmp_path / f"week{week}" / f"day{number}", "part.jsonl", f"w{week}d{number}")
            packed.append(build(tmp_path / f"week{week}" / f"day{number}", "part.jsonl", out="p"))
    for week in (1, 2):
        merge(omniprep, tmp_path / f"week{week}" / "all", *packed[2 * week - 2 : 2 * week])
        assert sources(tmp_path / f"week{week}" / "all") == ["day1/p/part.jsonl", "day2/p/part.jsonl"]
    merge(omniprep, tmp_path / "once", *packed)
    names = [f"week{week}/day{number}/p/part.jsonl" for week in (1, 2) for number in (1, 2)]
    assert sources(tmp_path / "once") == names
    merge(omniprep, tmp_path / "twice", tmp_path / "week1" / "all", tmp_path / "week2" / "all")
    assert sources(tmp_path / "twice") == [
        f"week{week}/all/day{number}/p/part.jsonl" for week in (1, 2) for number in (1, 2)
    ]
    given = [entry["given"] for entry in json.loads((tmp_path / "twice" / "manifest.json").read_text())["inputs"]]
    assert given == ["part.jsonl"] * 4
    one, two = (PackedDataset(str(tmp_path / name)) for name in ("once", "twice"))
    assert same_row(one.row(names[2], 4), two.row("week2/all/day1/p/part.jsonl", 4))


def test_only_names_that_clash_change(tmp_path: Path, days: list[Path], build: Any, omniprep: Any) -> None:
    day(tmp_path / "day3", "other.jsonl", "other")
    third = build(tmp_path / "day3", "other.jsonl")
    merge(omniprep, tmp_path / "all", *days, third)
    assert sources(tmp_path / "all") == ["day1/packed/part.jsonl", "day2/packed/part.jsonl", "other.jsonl"]
    # A choice goes by the new names, and by the end of them.
    merge(omniprep, tmp_path / "one", *days, third, more=("--source", "day2/packed/part.jsonl"))
    assert sources(tmp_path / "one") == ["day2/packed/part.jsonl"]
    merge(omniprep, tmp_path / "two", *days, third, more=("--source", "part.jsonl"))
    assert sources(tmp_path / "two") == ["day1/packed/part.jsonl", "day2/packed/part.jsonl"]


def test_a_new_name_that_is_taken_gets_a_longer_one(
    tmp_path: Path, build: Any, days: list[Path], omniprep: Any
) -> None:
    day(tmp_path / "x" / "day1" / "packed", "part.jsonl", "taken")
    third = build(tmp_path / "x", "day1/packed/part.jsonl")
    merge(omniprep, tmp_path / "all", *days, third)
    top = f"{tmp_path.name}/"
    assert sources(tmp_path / "all") == sorted(
        ["day1/packed/part.jsonl", f"{top}day1/packed/part.jsonl", f"{top}day2/packed/part.jsonl"]
    )


def test_parts_of_one_input_stay_one(tmp_path: Path, build: Any, omniprep: Any) -> None:
    day(tmp_path / "day", "part.jsonl", "word")
    whole = build(tmp_path / "day", "part.jsonl")
    merge(omniprep, tmp_path / "text", whole, more=("--kind", "text"))
    merge(omniprep, tmp_path / "image", whole, more=("--kind", "image"))
    merge(omniprep, tmp_path / "again", tmp_path / "text", tmp_path / "image")
    assert sources(tmp_path / "again") == ["part.jsonl"]
    error = merge(omniprep, tmp_path / "x", whole, tmp_path / "text", code=1)
    assert "one input line is in two of the datasets (part.jsonl:1, in " in error and not (tmp_path / "x").exists()


def test_a_dataset_given_twice_is_named(tmp_path: Path, days: list[Path], omniprep: Any) -> None:
    (tmp_path / "link").symlink_to(days[0])
    for second in (days[0], tmp_path / "link", tmp_path / "day1" / ".." / "day1" / "packed"):
        error = merge(omniprep, tmp_path / "x", days[0], second, code=1)
        assert "is given twice" in error and str(second) in error
    shutil.copytree(days[0], tmp_path / "copy")
    error = merge(omniprep, tmp_path / "x", *days, tmp_path / "copy", code=1)
    assert "its shards are those of" in error and "copy" in error
    assert not (tmp_path / "x").exists()


def test_two_days_that_share_a_file_of_another_content_and_one_of_the_same(
    tmp_path: Path, build: Any, omniprep: Any
) -> None:
    """A and B have the same file (two choices of it), C another one of its name: A and B are still held together."""
    day(tmp_path / "day1", "part.jsonl", "word")
    day(tmp_path / "day2", "part.jsonl", "other")
    whole, other = build(tmp_path / "day1", "part.jsonl"), build(tmp_path / "day2", "part.jsonl")
    merge(omniprep, tmp_path / "text", whole, more=("--kind", "text"))
    merge(omniprep, tmp_path / "image", whole, more=("--kind", "image"))
    merge(omniprep, tmp_path / "all", tmp_path / "text", tmp_path / "image", other)
    assert sources(tmp_path / "all") == ["packed/part.jsonl", "text/part.jsonl"]
    assert PackedDataset(str(tmp_path / "all")).counts["rows"]["packed"] == 12
    error = merge(omniprep, tmp_path / "x", whole, tmp_path / "text", other, code=1)
    assert "one input line is in two of the datasets" in error


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path, build: Any, omniprep: Any) -> None:
    days = []
    for number in (1, 2):  # enough rows for shards of some bins each: one shard would be one worker's work
        day(tmp_path / f"day{number}", "part.jsonl", f"word{'x' * number}", rows=150)
        days.append(build(tmp_path / f"day{number}", "part.jsonl"))
    for workers in (0, 2):
        merge(omniprep, tmp_path / f"w{workers}", *days, more=("--workers", workers, "--shard-size", "4KB"))
    shards = {
        workers: {path.name: path.read_bytes() for path in (tmp_path / f"w{workers}" / "shards").iterdir()}
        for workers in (0, 2)
    }
    assert shards[0] == shards[2] and len(shards[0]) > 2
    for name in ("rows.parquet", "index.parquet", "rejected.jsonl"):
        assert (tmp_path / "w0" / name).read_bytes() == (tmp_path / "w2" / name).read_bytes()
