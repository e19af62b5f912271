"""--dedup exact: of equal rows the first in the order of the inputs stays, each other one is named and counted."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from media_files import picture, sound

from omniprep import PackedDataset
from omniprep.compiler.duplicates import HASH_COLUMNS, first_of_equal


def chat(word: str, tag: str = "", **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"{tag}Say {word}"}, {"role": "assistant", "content": word}],
        **more,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def build(omniprep: Any, model_dir: Path, tmp_path: Path) -> Any:
    def call(*inputs: Path, out: str = "out", workers: int = 0, code: int = 0, more: tuple[object, ...] = ()) -> Any:
        done = omniprep(
            "build", *inputs, "--model", model_dir, "--bin-length", 256, "--workers", workers, "--dedup", "exact",
            "--quiet", "--out", tmp_path / out, *more,
        )  # fmt: skip
        assert done.code == code, done.err
        return done

    return call


def rejects(out: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return {f"{Path(line['source']).name}:{line['line']}": line for line in lines}


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    """Two files: copies of texts and of media, also under other names, and rows that differ in one thing each."""
    cat, dog = picture("PNG", (56, 56)), picture("PNG", (56, 84))
    for name, data in (("cat.png", cat), ("copy.png", cat), ("dog.png", dog)):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "a.wav").write_bytes(sound("WAV"))
    first = [
        chat("one"),
        chat("two"),
        chat("one"),
        chat("see", "<image>", images=["cat.png"]),
        chat("see", "<image>", images=["copy.png"]),
        chat("see", "<image>", images=["dog.png"]),
        chat("see"),
        chat("hear", "<audio>", audios=["a.wav"]),
    ]
    weighted = chat("one")
    weighted["messages"][1]["loss"] = False
    second = [
        {"query": "Say two", "response": "two", "id": 7},  # the same chat in another form
        weighted,
        chat("hear", "<audio>", audios=["a.wav"]),
        {"messages": "bad"},
        {"messages": "bad"},
        chat("gone", "<image>", images=["absent.png"]),
        chat("gone", "<image>", images=["absent.png"]),
    ]
    return [write(tmp_path / "first.jsonl", first), write(tmp_path / "second.jsonl", second)]


EXPECTED = {
    "first.jsonl:3": "first.jsonl:1",
    "first.jsonl:5": "first.jsonl:4",
    "second.jsonl:1": "first.jsonl:2",
    "second.jsonl:3": "first.jsonl:8",
}


def test_rows_that_repeat_others_are_rejected(build: Any, omniprep: Any, tmp_path: Path, inputs: list[Path]) -> None:
    done = build(*inputs)
    out = tmp_path / "out"
    found = rejects(out)
    duplicates = {name: line for name, line in found.items() if line["code"] == "duplicate"}
    assert duplicates.keys() == EXPECTED.keys()
    for name, kept in EXPECTED.items():
        assert duplicates[name]["message"] == f"the same tokens and media as {tmp_path / kept}, which is kept"
    assert duplicates["second.jsonl:1"]["row"] == {"query": "Say two", "response": "two", "id": 7}
    counts = PackedDataset(str(out)).counts
    assert counts["rows"] == {"read": 15, "packed": 7, "rejected": 8}
    assert counts["rejected_by_code"]["duplicate"] == 4 and "duplicate" in done.out
    assert omniprep("verify", out, "--deep").code == 0
    assert counts["tokens"] == sum(row["length"] or 0 for row in PackedDataset(str(out)).rows.to_pylist())


def test_workers_and_splits_do_not_matter(
    build: Any, tmp_path: Path, inputs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import functools

    from omniprep.rows import sources

    build(*inputs)
    build(*inputs, out="two", workers=2)
    monkeypatch.setattr(
        "omniprep.compiler.output.folder.find_splits", functools.partial(sources.find_splits, split_bytes=150)
    )
    build(*inputs, out="cut")
    for name in ("index.parquet", "rows.parquet", "rejected.jsonl"):
        data = [(tmp_path / out / name).read_bytes() for out in ("out", "two", "cut")]
        assert data[0] == data[1] == data[2], name
    assert len({(tmp_path / out / "shards" / "00000.arrow").read_bytes() for out in ("out", "two", "cut")}) == 1


def test_appended_rows_are_compared_with_those_that_are_there(
    build: Any, omniprep: Any, tmp_path: Path, inputs: list[Path]
) -> None:
    build(inputs[0])
    out = tmp_path / "out"
    assert omniprep("append", out, inputs[1]).code == 0
    found = rejects(out)
    assert {name: line["code"] for name, line in found.items() if line["code"] == "duplicate"}.keys() == EXPECTED.keys()
    assert found["second.jsonl:1"]["message"].startswith(f"the same tokens and media as {tmp_path / 'first.jsonl'}:2,")
    # A row that was removed may come again, and nothing of it stays, its hash neither.
    gone = PackedDataset(str(out)).rows.to_pylist()[1]
    assert gone[HASH_COLUMNS[0]] and omniprep("remove", out, "--row", f"{inputs[0]}:2").code == 0
    assert PackedDataset(str(out)).rows.to_pylist()[1][HASH_COLUMNS[0]] == 0
    third = write(tmp_path / "third.jsonl", [chat("two"), chat("two"), chat("see", "<image>", images=["dog.png"])])
    assert omniprep("append", out, third).code == 0
    found = rejects(out)
    assert "third.jsonl:1" not in found
    assert found["third.jsonl:2"]["message"].startswith(f"the same tokens and media as {third}:1,")
    assert found["third.jsonl:3"]["message"].startswith(f"the same tokens and media as {inputs[0]}:6,")
    assert omniprep("verify", out, "--deep").code == 0
    # A repack keeps the hashes, so that appends to it find duplicates too.
    again = tmp_path / "again"
    assert omniprep("repack", out, "--bin-length", 512, "--out", again, "--quiet").code == 0
    assert omniprep("append", again, write(tmp_path / "fourth.jsonl", [chat("two"), chat("new")])).code == 0
    assert rejects(again)["fourth.jsonl:1"]["message"].startswith(f"the same tokens and media as {third}:1,")
    assert omniprep("verify", again).code == 0


def test_a_dataset_without_hashes_is_not_taken_for_one_without_duplicates(
    build: Any, omniprep: Any, tmp_path: Path, inputs: list[Path]
) -> None:
    build(inputs[0])
    out = tmp_path / "out"
    table = pq.read_table(out / "rows.parquet")
    pq.write_table(table.drop_columns(list(HASH_COLUMNS)), out / "rows.parquet")
    done = omniprep("append", out, inputs[1])
    assert done.code == 1 and "has no column 'content_hash_high'" in done.err


def test_duplicates_are_no_errors(build: Any, omniprep: Any, model_dir: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "same.jsonl", [chat("one")] * 10)
    build(path, more=("--max-error-rate", 0, "--on-error", "fail"))
    assert PackedDataset(str(tmp_path / "out")).counts["rows"] == {"read": 10, "packed": 1, "rejected": 9}
    done = omniprep("plan", path, "--dedup", "exact", "--model", model_dir, "--bin-length", 256, "--workers", 0)
    assert done.code == 0 and "duplicate" in done.out and "same.jsonl:2: duplicate: the same tokens" in done.out
    assert "... and 6 more" in done.out
    (tmp_path / "o.yaml").write_text("dedup: exact\n")
    fixed = ("--model", model_dir, "--bin-length", 256, "--workers", 0, "--out", tmp_path / "out")
    done = omniprep("build", path, "--config", tmp_path / "o.yaml", *fixed)
    assert done.code == 0 and "nothing to do" in done.err
    done = omniprep("build", path, *fixed)
    assert done.code == 1 and "--dedup: exact → none" in done.err


def test_a_killed_build_goes_on_to_the_same_bytes(
    build: Any, tmp_path: Path, inputs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(*inputs)
    for stage in ("finish", "encode"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

            def killed(*args: Any, **more: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(f"omniprep.compiler.build.{stage}", killed)
            from omniprep.compiler import build as module
            from omniprep.config import BuildConfig
            from omniprep.progress import QuietReporter

            config = PackedDataset(str(tmp_path / "out")).record
            import io

            module.build(
                BuildConfig(
                    inputs=tuple(map(str, inputs)), model=config.model, bin_length=256, workers=0, dedup="exact",
                    out=str(tmp_path / stage),
                ),
                QuietReporter(io.StringIO()),
            )  # fmt: skip
        assert not (tmp_path / stage / "manifest.json").exists()
        build(*inputs, out=stage)
        for name in ("rows.parquet", "rejected.jsonl", "shards/00000.arrow"):
            assert (tmp_path / stage / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_media_that_vanish_reject_their_row(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omniprep.compiler.plan import content_hash
    from omniprep.errors import Reject, RejectCode

    (tmp_path / "cat.png").write_bytes(picture("PNG", (56, 56)))
    path = write(tmp_path / "a.jsonl", [chat("see", "<image>", images=["cat.png"]), chat("one")])

    def gone(self: Any, source: Any) -> bytes:
        raise Reject(RejectCode.MEDIA_NOT_FOUND, f"{source.label}: no such file")

    monkeypatch.setattr(content_hash.ContentHashes, "_of_file", gone)
    build(path)
    assert {name: line["code"] for name, line in rejects(tmp_path / "out").items()} == {"a.jsonl:1": "media_not_found"}


def test_a_file_that_many_rows_show_is_read_once(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omniprep.media.source import Source

    (tmp_path / "cat.png").write_bytes(picture("PNG", (56, 56)))
    path = write(tmp_path / "a.jsonl", [chat(f"w{n}", "<image>", images=["cat.png"]) for n in range(6)])
    from omniprep.compiler.plan import content_hash

    opened: list[str] = []
    real = Source.open

    class Noted(content_hash.ContentHashes):
        def _of_file(self, source: Source) -> bytes:
            if self._files.get(source.key) is None:
                opened.append(source.label)
            return super()._of_file(source)

    monkeypatch.setattr("omniprep.compiler.plan.split_task.ContentHashes", Noted)
    build(path)
    assert len(opened) == 1 and real is Source.open


def test_first_of_equal_is_the_first() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        size = int(draw.integers(0, 60))
        high, low = (draw.integers(0, 4, size).astype(np.uint64) for _ in range(2))
        keys = list(zip(high.tolist(), low.tolist(), strict=True))
        assert first_of_equal([high, low]).tolist() == [keys.index(key) for key in keys]


def test_inline_bytes_are_compared_too(build: Any, tmp_path: Path) -> None:
    cat, dog = picture("PNG", (56, 56)), picture("PNG", (56, 84))
    (tmp_path / "cat.png").write_bytes(cat)
    table = pa.table(
        {
            "query": ["<image>what?"] * 3,
            "response": ["this"] * 3,
            "images": [[{"bytes": data, "path": None}] for data in (cat, dog, cat)],
        }
    )
    pq.write_table(table, tmp_path / "b.parquet")
    path = write(tmp_path / "a.jsonl", [{"query": "<image>what?", "response": "this", "images": ["cat.png"]}])
    build(path, tmp_path / "b.parquet")
    assert rejects(tmp_path / "out").keys() == {"b.parquet:1", "b.parquet:3"}
    shutil.rmtree(tmp_path / "out")
