"""Datasets that grow and shrink: old shards stay, nothing of a removed row is left, a kill leaves the old or the new."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import picture

from omniprep import PackedDataset
from omniprep.compiler.output import commit as commit_module
from omniprep.compiler.output.holder import LEASE
from omniprep.compiler.output.ownfiles import APPEND_STATE
from omniprep.report.numbers import source_facts


def write(folder: Path, name: str, words: list[str], *, pictures: bool = False) -> Path:
    lines = []
    for number, word in enumerate(words):
        content, more = f"Say {word}", {}
        if pictures and number % 2:
            (folder / f"{word}.png").write_bytes(picture("PNG", (28 * (2 + number % 9), 28 * (1 + number % 3))))
            content, more = f"<image>{content}", {"images": [f"{word}.png"]}
        chat = [{"role": "user", "content": content}, {"role": "assistant", "content": word}]
        lines.append(json.dumps({"messages": chat, **more}) if word != "bad" else '{"messages": "secret bad"}')
    (folder / name).write_text("".join(line + "\n" for line in lines))
    return folder / name


def words(count: int, first: int = 0) -> list[str]:
    return [f"word{number}" for number in range(first, first + count)]


@pytest.fixture
def make(omniprep: Any, model_dir: Path, tmp_path: Path) -> Any:
    """Build a dataset of inputs; small shards, so that there are several."""

    def call(
        *inputs: Path, name: str = "out", bin_length: int = 128, shard_size: str = "20KB", codec: str = "delta"
    ) -> Path:
        out = tmp_path / name
        done = omniprep(
            "build", *inputs, "--model", model_dir, "--bin-length", bin_length, "--shard-size", shard_size, "--workers",
            0, "--pixel-codec", codec, "--quiet", "--out", out,
        )  # fmt: skip
        assert done.code == 0, done.err
        return out

    return call


def run(omniprep: Any, *args: object, code: int = 0) -> str:
    done = omniprep(*args, "--quiet") if args[0] in ("append", "remove", "verify") else omniprep(*args)
    assert done.code == code, done.err
    return str(done.err if code else done.out)


def content(out: Path) -> dict[str, bytes]:
    """Every file of a dataset but plans, receipts and the times in the manifest."""
    files = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_file() and not name.startswith(("plan/", "receipts/", "report.html")):
            data = path.read_bytes()
            if name == "manifest.json":
                data = json.dumps({k: v for k, v in json.loads(data).items() if k != "seconds"}).encode()
            files[name] = data
    return files


def text_of(out: Path, omniprep: Any) -> str:
    """All tokens of a dataset as text."""
    from transformers import AutoTokenizer

    dataset = PackedDataset(str(out))
    ids = np.concatenate([dataset[number]["input_ids"] for number in range(len(dataset))])
    return str(AutoTokenizer.from_pretrained(dataset.record.model).decode(ids))


def test_appended_rows_are_those_of_a_build_and_old_shards_stay(tmp_path: Path, make: Any, omniprep: Any) -> None:
    first, second = (write(tmp_path, f"{n}.jsonl", words(20, 100 * n), pictures=True) for n in (1, 2))
    out = make(first)
    before = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    assert len(before) > 1
    done = omniprep("append", out, second)
    assert done.code == 0, done.err
    fill = json.loads((out / "manifest.json").read_text())["generations"][1]["fill"]
    assert f"{100 * fill:.1f} % full; omniprep repack packs all rows anew" in done.err
    assert {name: (out / "shards" / name).read_bytes() for name in before} == before
    run(omniprep, "verify", out, "--deep", "--sample", 40)
    alone = PackedDataset(str(make(second, name="alone")))
    whole = PackedDataset(str(out))
    assert whole.counts["rows"] == {"read": 40, "packed": 40, "rejected": 0}
    for line in range(1, 21):
        row, same = whole.row(str(second), line), alone.row(str(second), line)
        assert row.keys() == same.keys()
        assert all(
            np.array_equal(np.asarray(row[name]), np.asarray(same[name])) for name in row if hasattr(row[name], "shape")
        )
    manifest = json.loads((out / "manifest.json").read_text())
    assert [entry["command"] for entry in manifest["generations"]] == ["build", "append"]
    assert manifest["generations"][1]["rows"]["packed"] == 20 and 0 < manifest["generations"][1]["fill"] <= 1
    assert [Path(entry["source"]).name for entry in manifest["inputs"]] == ["1.jsonl", "2.jsonl"]
    assert not list(out.glob("*-0*")) and not list((out / "plan").glob("append*"))


def test_the_same_appends_give_the_same_bytes(tmp_path: Path, make: Any, omniprep: Any) -> None:
    inputs = [write(tmp_path, f"{n}.jsonl", words(15, 100 * n)) for n in range(3)]
    outs = [make(inputs[0], name=name) for name in ("a", "b")]
    for out, workers in zip(outs, (0, 2), strict=True):
        for path in inputs[1:]:
            run(omniprep, "append", out, path, "--workers", workers)
    assert content(outs[0]) == content(outs[1])


def test_what_a_dataset_has_is_left_out_and_a_changed_input_stops(tmp_path: Path, make: Any, omniprep: Any) -> None:
    first, second = write(tmp_path, "1.jsonl", words(4)), write(tmp_path, "2.jsonl", words(4, 10))
    out = make(first)
    done = omniprep("append", out, tmp_path / "*.jsonl")
    assert done.code == 0 and "1.jsonl: " in done.err and "has it already; left out" in done.err
    same = content(out)
    done = omniprep("append", out, tmp_path / "*.jsonl")
    assert done.code == 0 and "nothing to do" in done.err and content(out) == same
    assert "this append wrote" not in done.err + done.out  # which would be of an earlier append
    second.write_text(second.read_text() + "\n")
    error = run(omniprep, "append", out, tmp_path / "*.jsonl", code=1)
    assert "2.jsonl: was changed since" in error and content(out) == same


def test_a_build_of_a_changed_dataset_has_nothing_to_do(tmp_path: Path, make: Any, omniprep: Any) -> None:
    """Begun anew it would lose what was appended, and bring back what was removed."""
    first, second = write(tmp_path, "1.jsonl", words(4)), write(tmp_path, "2.jsonl", words(4, 10))
    out = make(first)
    run(omniprep, "append", out, second)
    run(omniprep, "remove", out, "--row", f"{first}:1")
    same = content(out)
    assert make(first) == out and content(out) == same
    (out / "rows.parquet").unlink()
    done = omniprep("build", first, "--model", PackedDataset(str(out)).record.model, "--bin-length", 128, "--shard-size", "20KB", "--workers", 0, "--out", out)  # fmt: skip
    assert done.code == 1 and "appended or removed since it was built" in done.err
    assert (out / "manifest.json").exists()


def test_removed_rows_leave_nothing(tmp_path: Path, make: Any, omniprep: Any) -> None:
    first = write(tmp_path, "1.jsonl", [*words(20), "bad"], pictures=True)
    out = make(first)
    before = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    rows = {row["line"]: row for row in PackedDataset(str(out)).rows.to_pylist()}
    gone = [2, 7, 21]
    run(omniprep, "remove", out, *(part for line in gone for part in ("--row", f"{first}:{line}")))
    dataset = PackedDataset(str(out))
    now = {row["line"]: row for row in dataset.rows.to_pylist()}
    assert [line for line, row in now.items() if row["status"] == "removed"] == gone
    assert all(now[line]["bin"] is None and now[line]["code"] is None and now[line]["trained"] == 0 for line in gone)
    assert dataset.counts["rows"] == {"read": 21, "packed": 18, "rejected": 0, "removed": 3}
    assert dataset.counts["tokens"] == sum(row["length"] for line, row in rows.items() if line not in gone)
    text = text_of(out, omniprep)
    assert "Say word1<" not in text and "Say word6<" not in text and "Say word2<" in text
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"secret bad" not in everything
    assert not list((out / "plan").glob("*.arrow"))
    # Only shards that held them were written again.
    shard_of = PackedDataset(str(out)).index["shard"]
    kept = set(before) & {path.name for path in (out / "shards").iterdir()}
    assert all((out / "shards" / name).read_bytes() == before[name] for name in kept) and kept
    assert len(shard_of) == dataset.counts["bins"]
    run(omniprep, "verify", out, "--deep", "--sample", 18)
    facts = source_facts(dataset.rows, np.zeros(21, np.int64))
    assert [(fact["rows"], fact["rejected"]) for fact in facts] == [(21, 0)]
    for line, row in rows.items():
        if line not in gone:
            assert len(dataset.row(str(first), line)["input_ids"][0]) == row["length"]


def test_files_of_removed_rows_leave_a_dataset_that_keeps_files(tmp_path: Path, make: Any, omniprep: Any) -> None:
    first = write(tmp_path, "1.jsonl", words(8), pictures=True)
    out = make(first, codec="source")
    before = PackedDataset(str(out))
    stored = (tmp_path / "word1.png").read_bytes()
    assert stored in b"".join(path.read_bytes() for path in (out / "shards").iterdir())
    kept = {line: before.row(str(first), line) for line in (4, 6, 8)}
    run(omniprep, "remove", out, "--row", f"{first}:2")
    assert stored not in b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    run(omniprep, "verify", out, "--deep")
    for line, row in kept.items():
        assert np.array_equal(PackedDataset(str(out)).row(str(first), line)["pixel_values"], row["pixel_values"])


def test_bins_and_shards_that_lose_all_rows_go(tmp_path: Path, make: Any, omniprep: Any) -> None:
    first, second = write(tmp_path, "1.jsonl", words(20)), write(tmp_path, "2.jsonl", words(20, 100))
    out = make(first, second, shard_size="1B")  # a shard a bin
    run(omniprep, "remove", out, "--source", "*/1.jsonl")
    dataset = PackedDataset(str(out))
    assert dataset.counts["rows"] == {"read": 40, "packed": 20, "rejected": 0, "removed": 20}
    assert len(dataset.record.shards) == len(list((out / "shards").iterdir()))
    run(omniprep, "verify", out)
    text = text_of(out, omniprep)
    assert "Say word1<" not in text and "Say word101<" in text
    run(omniprep, "remove", out, "--source", "*")
    assert PackedDataset(str(out)).counts["rows"]["removed"] == 40 and not list((out / "shards").iterdir())


def test_append_after_remove_and_remove_after_append(tmp_path: Path, make: Any, omniprep: Any) -> None:
    inputs = [write(tmp_path, f"{n}.jsonl", words(10, 100 * n)) for n in range(3)]
    out = make(inputs[0])
    run(omniprep, "remove", out, "--row", f"{inputs[0]}:3")
    run(omniprep, "append", out, inputs[1])
    run(omniprep, "remove", out, "--row", f"{inputs[1]}:4", "--row", f"{inputs[0]}:5")
    run(omniprep, "append", out, inputs[2])
    run(omniprep, "verify", out, "--deep", "--sample", 40)
    rows = PackedDataset(str(out)).rows.to_pylist()
    assert [(Path(row["source"]).name, row["line"]) for row in rows if row["status"] == "removed"] == [("0.jsonl", 3), ("0.jsonl", 5), ("1.jsonl", 4)]  # fmt: skip
    assert PackedDataset(str(out)).counts["rows"] == {"read": 30, "packed": 27, "rejected": 0, "removed": 3}
    # A repack evens out the bins and leaves removed rows away.
    run(omniprep, "repack", out, "--bin-length", 256, "--out", tmp_path / "again", "--quiet")
    run(omniprep, "verify", tmp_path / "again")
    assert PackedDataset(str(tmp_path / "again")).counts["rows"] == {"read": 27, "packed": 27, "rejected": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--row", "{first}:99"), "has no row 99 in"),
        (("--row", "{first}:0"), "has no row 0 in"),
        (("--row", "1.jsn:1"), "1.jsn is no input of"),
        (("--row", "nonsense"), "write it as SOURCE:LINE"),
        (("--source", "*.parquet"), "no source fits"),
        (("--rows", "absent.txt"), "absent.txt: No such file"),
        ((), "nothing to remove: give --row"),
    ],
)
def test_a_row_that_is_not_there_changes_nothing(
    tmp_path: Path, make: Any, omniprep: Any, options: tuple[str, ...], message: str
) -> None:
    first = write(tmp_path, "1.jsonl", words(4))
    out = make(first)
    same = content(out)
    error = run(omniprep, "remove", out, "--row", f"{first}:1", *(o.format(first=first) for o in options), code=2) if options else run(omniprep, "remove", out, code=2)  # fmt: skip
    assert message in error and content(out) == same


def test_rows_of_a_file_and_rows_removed_before(tmp_path: Path, make: Any, omniprep: Any) -> None:
    first = write(tmp_path, "1.jsonl", words(6))
    out = make(first)
    (tmp_path / "list.txt").write_text(
        f"{first}:1\n\n" + json.dumps({"source": str(first), "line": 2, "code": "x"}) + "\n"
    )
    run(omniprep, "remove", out, "--rows", tmp_path / "list.txt")
    assert PackedDataset(str(out)).counts["rows"]["removed"] == 2
    same = content(out)
    done = omniprep("remove", out, "--rows", tmp_path / "list.txt")
    assert done.code == 0 and "2 of these rows were removed before" in done.err and content(out) == same


# Kills


class Killed(BaseException):
    pass


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", ["append", "remove"])
def test_a_kill_at_any_write_leaves_the_old_or_the_new(
    command: str, every: int, tmp_path: Path, make: Any, omniprep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file that appears or goes is a moment to die at; then the dataset is read, and the command run again."""
    monkeypatch.setattr(f"omniprep.compiler.{command}.write_dataset_report", lambda *args: None)  # a second each time
    first, second = write(tmp_path, "1.jsonl", [*words(12), "bad"]), write(tmp_path, "2.jsonl", words(8, 100))
    base = make(first, name="base")
    args = (second,) if command == "append" else ("--row", f"{first}:2", "--row", f"{first}:13")
    finished = tmp_path / "finished"
    shutil.copytree(base, finished)
    old = content(base)
    replace, unlink = os.replace, os.unlink
    left = [10**9]

    def step() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    def counted_replace(source: Any, target: Any, **more: Any) -> None:
        step()
        replace(source, target, **more)

    monkeypatch.setattr(os, "replace", counted_replace)
    run(omniprep, command, finished, *args)
    new, steps = content(finished), 10**9 - left[0]
    assert new != old and steps > 8
    for moment in [*range(0, steps, every), steps - 1]:
        out = tmp_path / f"killed-{moment}"
        shutil.copytree(base, out)
        left[0] = moment
        with pytest.raises(Killed):
            omniprep(command, out, *args, "--quiet")
        left[0] = 10**9
        (out / LEASE).unlink(missing_ok=True)  # of this process, which goes on living
        counts = PackedDataset(str(out)).counts["rows"]
        dataset = PackedDataset(str(out))
        assert counts in (
            json.loads(old["manifest.json"])["counts"]["rows"],
            json.loads(new["manifest.json"])["counts"]["rows"],
        )
        assert (
            dataset.rows.num_rows == counts["read"]
            and sum(len(dataset[n]["row_ids"]) for n in range(len(dataset))) == counts["packed"]
        )
        run(omniprep, command, out, *args)
        assert content(out) == new, moment
        run(omniprep, "verify", out)
        shutil.rmtree(out)
    assert unlink is os.unlink


def test_an_append_that_was_stopped_is_finished_or_dropped(
    tmp_path: Path, make: Any, omniprep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [write(tmp_path, f"{n}.jsonl", words(10, 100 * n)) for n in range(3)]
    out = make(inputs[0])

    def killed(*args: Any, **more: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("omniprep.compiler.append.commit", killed)
        omniprep("append", out, inputs[1], "--quiet")
    assert (out / Path(*APPEND_STATE)).exists()
    assert "an append that was stopped is not done" in run(omniprep, "append", out, inputs[2], code=1)
    assert "an append that was stopped is not done" in run(omniprep, "remove", out, "--row", f"{inputs[0]}:1", code=1)
    run(omniprep, "append", out, inputs[2], "--overwrite")
    run(omniprep, "verify", out)
    assert [Path(e["source"]).name for e in json.loads((out / "manifest.json").read_text())["inputs"]] == [
        "0.jsonl",
        "2.jsonl",
    ]


def test_two_appends_at_once(tmp_path: Path, make: Any, omniprep: Any) -> None:
    inputs = [write(tmp_path, f"{n}.jsonl", words(10, 100 * n)) for n in range(2)]
    out = make(inputs[0])
    hold = (
        "import sys,time\nfrom omniprep.compiler.output.lease import hold\n"
        f"with hold({str(out)!r}):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert "another build is at work there" in run(omniprep, "append", out, inputs[1], code=1)
        assert other.stdin is not None
        other.stdin.close()
    run(omniprep, "append", out, inputs[1])


def test_a_reader_between_manifest_and_tables_tries_again(
    tmp_path: Path, make: Any, omniprep: Any, monkeypatch: Any
) -> None:
    inputs = [write(tmp_path, f"{n}.jsonl", words(10, 100 * n)) for n in range(2)]
    out = make(inputs[0])
    before = (out / "manifest.json").read_bytes()
    run(omniprep, "append", out, inputs[1])
    after = (out / "manifest.json").read_bytes()
    (out / "manifest.json").write_bytes(before)
    from omniprep.shards import dataset as module

    read, calls = module.read_index, []

    def read_late(uri: str) -> Any:
        (out / "manifest.json").write_bytes(after)  # the append ends just now
        calls.append(uri)
        return read(uri)

    monkeypatch.setattr(module, "read_index", read_late)
    assert PackedDataset(str(out)).counts["rows"]["read"] == 20 and len(calls) == 2


def test_another_tokenizer_or_a_missing_flag_stops_an_append(
    tmp_path: Path, make: Any, omniprep: Any, model_dir: Path
) -> None:
    first, second = write(tmp_path, "1.jsonl", words(4)), write(tmp_path, "2.jsonl", words(4, 10))
    out = make(first)
    other = tmp_path / "model"
    shutil.copytree(model_dir, other)
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    vocabulary["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert "another tokenizer" in run(omniprep, "append", out, second, "--model", other, code=1)
    assert "no such option" in run(omniprep, "append", out, second, "--bin-length", 64, code=2).lower()


def test_tables_of_a_change_are_named_by_the_manifest_alone() -> None:
    from omniprep.errors import DamagedDataError
    from omniprep.shards.manifest import parse_manifest

    with pytest.raises(DamagedDataError, match="tables"):
        parse_manifest({"format": 1, "shards": [], "tables": "../x"}, "m")
    assert commit_module.next_tag({}) == "00000001"
