"""--split-by rows: two datasets of one build, whose rows are the same whatever the machine, the order and the appends."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from media_files import picture

from omniprep import PackedDataset
from omniprep.rows.parts import is_for_eval

FRACTION = 0.3


def chat(number: int, **more: Any) -> dict[str, Any]:
    return {"query": f"question {number}", "response": f"answer {number}", **more}


def write(path: Path, numbers: range | list[int], **more: Any) -> Path:
    path.write_text("".join(json.dumps(chat(number, **more)) + "\n" for number in numbers))
    return path


@pytest.fixture
def build(omniprep: Any, model_dir: Path, tmp_path: Path) -> Any:
    def call(*args: object, out: str = "out", code: int = 0, split: bool = True) -> Any:
        options = ("--split-by", "rows", "--eval-fraction", FRACTION) if split else ()
        fixed = ("--model", model_dir, "--bin-length", 256, "--quiet", "--out", tmp_path / out, *options)
        workers = () if "--workers" in args else ("--workers", 0)
        done = omniprep("build", *args, *fixed, *workers)
        assert done.code == code, done.err
        return done

    return call


def lines(out: Path) -> set[tuple[str, int]]:
    return {(Path(row["source"]).name, row["line"]) for row in PackedDataset(str(out)).rows.to_pylist()}


def expected(numbers: range, name: str, seed: int = 0) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    chosen = {(name, place + 1) for place, n in enumerate(numbers) if is_for_eval(chat(n), (), FRACTION, seed)}
    return {(name, place + 1) for place in range(len(numbers))} - chosen, chosen


def content(folder: Path) -> dict[str, bytes]:
    return {
        name: (folder / name).read_bytes()
        for name in ("index.parquet", "rows.parquet", "rejected.jsonl", *(f"shards/{p.name}" for p in (folder / "shards").iterdir()))
    }  # fmt: skip


def test_two_datasets_share_the_rows(build: Any, omniprep: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", range(60))
    path.write_text(path.read_text() + '{"query": 5\n')  # a row that cannot be read is counted once
    done = build(path)
    train, chosen = expected(range(60), "a.jsonl")
    assert lines(tmp_path / "out") == train | {("a.jsonl", 61)} and lines(tmp_path / "out-eval") == chosen
    assert 10 < len(chosen) < 26
    for name, own, other in (("out", 61 - len(chosen), len(chosen)), ("out-eval", len(chosen), 61 - len(chosen))):
        counts = PackedDataset(str(tmp_path / name)).counts["rows"]
        assert (counts["read"], counts["other_part"]) == (own, other)
        assert omniprep("verify", tmp_path / name, "--deep").code == 0
    assert "rows of the other part" in done.out and str(tmp_path / "out-eval") in done.out
    # Another seed puts other rows there; the same command again has nothing to do.
    assert "nothing to do" in build(path).err
    build(path, "--seed", 1, out="seed")
    assert lines(tmp_path / "seed-eval") == expected(range(60), "a.jsonl", 1)[1] != chosen


def test_a_part_does_not_depend_on_form_order_or_machine(build: Any, tmp_path: Path) -> None:
    """Copies of a chat are in one part: in another form, with other columns, in another file, appended or not."""
    numbers = list(range(40))
    random.Random(0).shuffle(numbers)
    write(tmp_path / "a.jsonl", list(range(40)))
    write(tmp_path / "b.jsonl", numbers, id="x")
    rows = [
        {"messages": [{"role": "user", "content": c["query"]}, {"role": "assistant", "content": c["response"], "loss": n % 2 == 0}]}
        for n, c in ((n, chat(n)) for n in range(40))
    ]  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(rows))
    pq.write_table(pa.table({"prompt": [f"question {n}" for n in range(40)], "answer": [f"answer {n}" for n in range(40)]}), tmp_path / "d.parquet")  # fmt: skip
    build(tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.json", tmp_path / "d.parquet")
    chosen = {line for _, line in expected(range(40), "a")[1]}
    found: dict[str, set[int]] = {}
    for name, line in lines(tmp_path / "out-eval"):
        found.setdefault(name, set()).add(numbers[line - 1] + 1 if name == "b.jsonl" else line)
    assert found == dict.fromkeys(("a.jsonl", "b.jsonl", "c.json", "d.parquet"), chosen)


def test_a_part_is_fixed_for_good() -> None:
    """These rows must stay where they are in every version, or appends would mix the parts."""
    rows = [chat(n) for n in range(20)]
    rows.append({"query": "<image>what?", "response": "this", "images": ["pics/a.png"]})
    rows.append({"query": "<image>what?", "response": "this", "images": [{"bytes": b"\x89PNG", "path": None}]})
    assert [n for n, row in enumerate(rows) if is_for_eval(row, (), 0.5, 0)] == FIXED


FIXED = [4, 7, 9, 10, 15, 16, 18]


def test_what_names_media_counts_and_not_where_they_lie(tmp_path: Path) -> None:
    from omniprep.io.tar import Member, MemberName

    share = [
        sum(is_for_eval({"query": "<image>q", "response": "a", "images": [f"{n}.png"]}, (), 0.5, 0) for n in range(400))
    ]
    assert 150 < share[0] < 250
    member = Member("0001.png", 512, 100)
    rows = [{"query": "<image>q", "response": "a", "images": [MemberName.of(tar, member)]} for tar in ("/a.tar", "s3://b/c.tar")]  # fmt: skip
    for seed in range(20):
        assert len({is_for_eval(row, (), 0.5, seed) for row in rows}) == 1
    renamed = [({"frage": f"{n}", "response": "a"}, {"query": f"{n}", "response": "a"}) for n in range(30)]
    assert all(is_for_eval(a, (("query", "frage"),), 0.5, 0) == is_for_eval(b, (), 0.5, 0) for a, b in renamed)
    assert not is_for_eval([1], (), 0.999, 0) and not is_for_eval({"messages": "bad"}, (), 0.999, 0)


def test_appends_grow_both(build: Any, omniprep: Any, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", range(40)), write(tmp_path / "b.jsonl", range(20, 70))
    build(first)
    shards = {path: path.read_bytes() for path in tmp_path.glob("out*/shards/*")}
    done = omniprep("append", tmp_path / "out", first, second)
    assert done.code == 0 and done.out.count("rows packed") == 2, done.err
    train, chosen = zip(expected(range(40), "a.jsonl"), expected(range(20, 70), "b.jsonl"), strict=True)
    assert lines(tmp_path / "out") == train[0] | train[1] and lines(tmp_path / "out-eval") == chosen[0] | chosen[1]
    assert all(path.read_bytes() == data for path, data in shards.items())
    for name in ("out", "out-eval"):
        assert omniprep("verify", tmp_path / name, "--deep").code == 0
    # A file none of whose rows is for evaluation grows the other alone, and both know it.
    alone = [n for n in range(100, 140) if not is_for_eval(chat(n), (), FRACTION, 0)][:3]
    assert omniprep("append", tmp_path / "out", write(tmp_path / "c.jsonl", alone)).code == 0
    assert len(lines(tmp_path / "out")) == len(train[0] | train[1]) + 3
    assert omniprep("verify", tmp_path / "out-eval").code == 0
    assert "nothing to do" in omniprep("append", tmp_path / "out", tmp_path / "c.jsonl").err
    done = omniprep("append", tmp_path / "out-eval", tmp_path / "c.jsonl")
    assert done.code == 2 and "append to the dataset that they were split from" in done.err
    shutil.rmtree(tmp_path / "out-eval")
    done = omniprep("append", tmp_path / "out", write(tmp_path / "d.jsonl", range(3)))
    assert done.code == 1 and "out-eval too, which cannot be opened" in done.err


@pytest.mark.parametrize("command", ["build", "append"])
def test_a_kill_between_the_two_or_within_is_made_good(
    command: str, build: Any, omniprep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = write(tmp_path / "a.jsonl", range(40)), write(tmp_path / "b.jsonl", range(40, 80))

    def run(out: str) -> None:
        if command == "build":
            build(first, out=out)
        else:
            done = omniprep("append", tmp_path / out, second, "--quiet")
            assert done.code == 0, done.err

    class Killed(BaseException):
        pass

    if command == "append":
        build(first, out="whole")
    for moment in range(4):  # the encoding and the end of either
        if command == "append":
            for name in ("", "-eval"):
                shutil.copytree(tmp_path / f"whole{name}", tmp_path / f"{moment}{name}")
        left = [moment]

        def dies(real: Any, left: list[int] = left) -> Any:
            def call(*args: Any, **more: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return real(*args, **more)

            return call

        with monkeypatch.context() as patch, pytest.raises(Killed):
            for name in ("encode", "finish" if command == "build" else "commit"):
                module = f"omniprep.compiler.{command}"
                patch.setattr(f"{module}.{name}", dies(getattr(__import__(module, fromlist=[name]), name)))
            run(str(moment))
        run(str(moment))
    run("whole")
    for moment in range(4):
        for name in ("", "-eval"):
            assert content(tmp_path / f"{moment}{name}") == content(tmp_path / f"whole{name}")


def test_overwrite_begins_both_anew(build: Any, omniprep: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", range(40))
    build(path)
    write(tmp_path / "a.jsonl", range(40, 90))
    assert "was changed" in build(path, code=1).err
    build(path, "--overwrite")
    train, chosen = expected(range(40, 90), "a.jsonl")
    assert lines(tmp_path / "out") == train and lines(tmp_path / "out-eval") == chosen
    # Without a split the folder is another build's.
    assert "--split-by: rows → none" in build(path, split=False, code=1).err


def test_workers_draws_and_where_go_along(build: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", range(60))
    build(path, "--workers", 2)
    build(path, out="one")
    for name in ("", "-eval"):
        assert content(tmp_path / f"out{name}") == content(tmp_path / f"one{name}")
    build(f"{path}#20", "--where", "query != 'question 3'", out="drawn")
    drawn = [PackedDataset(str(tmp_path / name)).counts["rows"] for name in ("drawn", "drawn-eval")]
    assert sum(rows["packed"] for rows in drawn) == 20
    assert all(rows["filtered"] == 1 and rows["packed"] + rows["other_part"] == 20 for rows in drawn)
    assert lines(tmp_path / "drawn-eval") <= lines(tmp_path / "out-eval")


def test_pictures_are_split_and_a_plan_shows_both(build: Any, omniprep: Any, model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(picture("PNG", (56, 56)))
    rows = [{**chat(n), "query": f"<image>question {n}", "images": ["p.png"]} for n in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build(tmp_path / "a.jsonl", "--dedup", "exact")
    assert len(lines(tmp_path / "out") | lines(tmp_path / "out-eval")) == 30
    fixed = ("--model", model_dir, "--bin-length", 256, "--workers", 0)
    done = omniprep("plan", tmp_path / "a.jsonl", *fixed, "--split-by", "rows", "--eval-fraction", FRACTION, "--out", tmp_path / "planned")  # fmt: skip
    assert done.code == 0 and "--eval-fraction" in done.out
    build(tmp_path / "a.jsonl", out="planned")  # goes on from both plans


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--split-by", "rows"), 2, "need each other"),
        (("--eval-fraction", "0.1"), 2, "need each other"),
        (("--split-by", "rows", "--eval-fraction", "1"), 2, "from 0 to less than 1"),
        (("--split-by", "rows", "--eval-fraction", "1e-9"), 1, "--eval-fraction 1e-09 of 20 rows gives none"),
        (("--split-by", "rows", "--eval-fraction", "0.999999"), 1, "of 20 rows takes them all"),
        (("--part", "eval"), 2, "No such option"),
    ],
)
def test_what_cannot_be_split(build: Any, tmp_path: Path, options: tuple[str, ...], code: int, message: str) -> None:
    done = build(write(tmp_path / "a.jsonl", range(20)), *options, split=False, code=code)
    assert message.lower() in done.err.lower()
