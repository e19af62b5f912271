"""What is read of folders, globs, saved datasets and tables: the right files, all of them, and said how many."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omniprep import io
from omniprep.errors import OmniprepError, Reject
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import find_splits, numbered, read_split

LINES = "".join(json.dumps({"n": n}) + "\n" for n in range(3))
ROWS = [{"n": n} for n in range(3)]


def read(*patterns: object, split: str | None = None) -> list[Any]:
    splits = find_splits(find_inputs(tuple(map(str, patterns)), split))
    return [row.content for part in splits for row in read_split(part)]


def said(*patterns: object, split: str | None = None) -> list[str]:
    words: list[str] = []
    find_inputs(tuple(map(str, patterns)), split, words.append)
    return words


# Splits
@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import datasets

    path = tmp_path_factory.mktemp("splits") / "saved"
    parts = {name: datasets.Dataset.from_list([{"n": name}]) for name in ("train", "test", "validation")}
    datasets.DatasetDict(parts).save_to_disk(str(path))
    datasets.DatasetDict(a=parts["train"], b=parts["test"]).save_to_disk(str(path.with_name("other")))
    parts["train"].save_to_disk(str(path.with_name("single")))
    return path


def test_of_a_saved_dict_the_split_train_is_read(splits: Path) -> None:
    assert read(splits) == [{"n": "train"}]
    assert said(splits) == [f"{splits}: the split train; left out: test, validation"]
    assert read(f"{splits}:test") == read(splits, split="test") == [{"n": "test"}]
    assert read(f"{splits}:test", splits, split="validation") == [{"n": "test"}, {"n": "validation"}]
    assert find_inputs((f"{splits}:test",))[0].source == f"{splits}:test"


def test_without_train_the_user_is_asked(splits: Path) -> None:
    other = splits.with_name("other")
    with pytest.raises(
        OmniprepError, match="no split 'train'; it has a, b: choose one with .*other:NAME or --split NAME"
    ):
        read(other)
    assert read(f"{other}:b") == [{"n": "test"}]
    with pytest.raises(OmniprepError, match="no split 'tset'; did you mean 'test'"):
        read(f"{splits}:tset")
    with pytest.raises(OmniprepError, match="a saved dataset without splits"):
        read(f"{splits.with_name('single')}:test")


def test_a_split_of_what_has_none_is_a_usage_error(
    tmp_path: Path, splits: Path, model_dir: Path, omniprep: Callable[..., Any]
) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    for args in ([f"{tmp_path}/a.jsonl:test"], [f"{tmp_path}/a.jsonl", "--split", "test"]):
        done = omniprep("plan", *args, "--model", model_dir, "--bin-length", 2048, "--workers", 0)
        assert done.code in (1, 2) and "split" in done.err and "Traceback" not in done.err
    (tmp_path / "b:test").write_text("")  # a name that exists is no split
    (tmp_path / "b:test.jsonl").write_text(LINES)
    assert read(tmp_path / "b:test.jsonl") == ROWS


def test_datasets_on_the_hub_give_train_or_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    parts = {name: datasets.Dataset.from_list([{"n": name}]) for name in ("train", "test")}

    def load(name: str, split: str) -> datasets.Dataset:
        assert name == "org/name"
        if split not in parts:
            raise ValueError(f"Unknown split {split!r}. Should be one of {list(parts)}.")
        return parts[split]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read("hf://datasets/org/name") == [{"n": "train"}]
    assert read("hf://datasets/org/name:test") == read("hf://datasets/org/name", split="test") == [{"n": "test"}]
    with pytest.raises(OmniprepError, match=r"Should be one of \['train', 'test'\].*choose a split"):
        read("hf://datasets/org/name:dev")


def test_a_local_folder_is_not_taken_for_the_dataset_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets.load_dataset("org/name")` reads ./org/name where there is one."""
    (tmp_path / "org/name").mkdir(parents=True)
    (tmp_path / "org/name/train.jsonl").write_text('{"n": "local"}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OmniprepError, match="there is a folder org/name here"):
        read("hf://datasets/org/name")
    assert read("./org/name") == [{"n": "local"}]


@pytest.mark.parametrize(
    "named",
    [
        ["train.jsonl", "test.jsonl"],
        ["train/a.jsonl", "test/a.jsonl"],
        ["data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"],
        ["x_train.jsonl", "x_eval.jsonl"],
    ],
)
def test_splits_by_name_in_a_folder_are_not_mixed(tmp_path: Path, named: list[str]) -> None:
    for number, name in enumerate(named):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"n": number}))
    with pytest.raises(OmniprepError, match="holds the splits test, train"):
        read(tmp_path)
    assert read(f"{tmp_path}:train") == read(tmp_path, split="train") == [{"n": 0}]
    assert read(f"{tmp_path}:test") == [{"n": 1}]
    assert said(f"{tmp_path}:test") == [f"{tmp_path}: 1 file; left out: 1 of other splits"]
    assert len(read(*(tmp_path / name for name in named))) == 2


def test_files_of_splits_that_are_read_all_the_same_are_counted(tmp_path: Path, splits: Path) -> None:
    """A glob reads what it matches, and a folder without files of train all that is in it; both say what that is."""
    for name in ("chats.jsonl", "test.jsonl", "more/dev-1.jsonl", "config.json"):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_text(json.dumps({"n": name}))
    folder = tmp_path / "x"
    told = ", 1 of the split test, 1 of the split validation (by their names)"
    assert said(folder) == [f"{folder}: 3 files{told}; left out: 1 of other kinds"]
    assert said(f"{folder}:test") == [f"{folder}: 1 file; left out: 1 of other kinds, 2 of other splits"]
    assert said(f"{folder}/**/*.jsonl") == [f"{folder}/**/*.jsonl: 3 files{told}"]
    assert "1 of the split test (by their names)" in said(f"{splits}/t*")[-1]


def test_words_that_merely_hold_a_splits_name_are_no_split(tmp_path: Path) -> None:
    for name in ("training_day.jsonl", "constraints.jsonl", "devices.jsonl", "contest.jsonl"):
        (tmp_path / name).write_text(json.dumps({"n": 0}))
    assert len(read(tmp_path)) == 4


# Folders


def make_tree(at: Path) -> None:
    for name in (
        "a.jsonl",
        "b/c.jsonl",
        "b/d/e.json",
        "._a.jsonl",
        ".cache/x.jsonl",
        "b/.h.jsonl",
        "__MACOSX/._a.jsonl",
        "_temporary/0/p.jsonl",
        "_f.jsonl",
        "readme.md",
        "dataset_info.json",
    ):
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text(json.dumps({"n": name}) + "\n")


def test_folders_are_read_whole_and_hidden_files_left_out(tmp_path: Path) -> None:
    make_tree(tmp_path)
    seen = [row["n"] for row in read(tmp_path)]
    assert seen == ["_f.jsonl", "a.jsonl", "b/c.jsonl", "b/d/e.json"]
    assert said(tmp_path) == [f"{tmp_path}: 4 files; left out: 5 hidden, 2 of other kinds"]
    assert [row["n"] for row in read(f"{tmp_path}/.cache")] == [".cache/x.jsonl"]  # asked for by name
    assert [row["n"] for row in read(tmp_path / "._a.jsonl")] == ["._a.jsonl"]


def test_folders_of_a_store_as_those_of_the_disk(tmp_path: Path) -> None:
    make_tree(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            io.write_atomic(f"memory://tree/{path.relative_to(tmp_path)}", path.read_bytes())
    assert read("memory://tree") == read(tmp_path)
    assert said("memory://tree") == ["memory://tree: 4 files; left out: 5 hidden, 2 of other kinds"]
    assert [e.source for e in find_inputs(("memory://tree/b/*.jsonl",))] == ["memory:///tree/b/c.jsonl"]


def test_globs_say_what_they_gave(tmp_path: Path) -> None:
    make_tree(tmp_path)
    assert said(f"{tmp_path}/*.jsonl") == [f"{tmp_path}/*.jsonl: 2 files"]
    assert said(f"{tmp_path}/b*") == [f"{tmp_path}/b: 2 files; left out: 1 hidden", f"{tmp_path}/b*: 2 files"]
    assert [row["n"] for row in read(f"{tmp_path}/**/*.json*")] == [
        "_f.jsonl",
        "a.jsonl",
        "b/c.jsonl",
        "b/d/e.json",
        "dataset_info.json",
    ]
    with pytest.raises(OmniprepError, match=r"readme\.md: not a kind of file that is known"):
        read(f"{tmp_path}/*")


def test_a_folder_of_hidden_files_alone_says_so(tmp_path: Path) -> None:
    (tmp_path / ".a.jsonl").write_text(LINES)
    with pytest.raises(OmniprepError, match=r"a folder without .*\(files left out: 1 hidden\)"):
        read(tmp_path)


def test_links_in_folders_are_followed_once(tmp_path: Path) -> None:
    make_tree(tmp_path / "data")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "m.jsonl").write_text(json.dumps({"n": "m"}))
    os.symlink(tmp_path / "more", tmp_path / "data" / "link")
    os.symlink(tmp_path / "data", tmp_path / "data" / "b" / "loop")
    assert [row["n"] for row in read(tmp_path / "data")] == ["_f.jsonl", "a.jsonl", "b/c.jsonl", "b/d/e.json", "m"]


def test_saved_datasets_inside_a_folder(splits: Path) -> None:
    (splits.parent / "loose.jsonl").write_text(json.dumps({"n": "loose"}))
    with pytest.raises(OmniprepError, match="other: no split 'train'"):
        read(splits.parent)
    (splits.with_name("other") / "dataset_dict.json").write_text('{"splits": ["a", "train"]}')
    os.rename(splits.with_name("other") / "b", splits.with_name("other") / "train")
    assert [row["n"] for row in read(splits.parent)] == ["loose", "test", "train", "train"]


# Tables


def make_table(at: Path, kind: str, deep: str = "") -> Path:
    """A folder as the table format lays it out; its files hold rows that the table itself does not have any more."""
    marks = {
        "Delta": ("_delta_log/00000000000000000000.json", "part-0.parquet"),
        "Iceberg": ("metadata/00000-aa.metadata.json", "data/part-0.parquet"),
        "Iceberg v1": ("metadata/v1.metadata.json", "data/part-0.parquet"),
        "Lance": ("_versions/1.manifest", "data/part-0.parquet"),
        "Hudi": (".hoodie/hoodie.properties", "2024/part-0.parquet"),
    }
    mark, data = marks[kind]
    data = f"{os.path.dirname(data)}/{deep}/{os.path.basename(data)}".lstrip("/") if deep else data
    for name in (mark, data):
        (at / name).parent.mkdir(parents=True, exist_ok=True)
    (at / mark).write_text("{}")
    pq.write_table(pa.Table.from_pylist([{"n": "deleted"}]), at / data)
    return at / data


@pytest.mark.parametrize("deep", ["", "day=1"])
@pytest.mark.parametrize("kind", ["Delta", "Iceberg", "Iceberg v1", "Lance", "Hudi"])
def test_files_of_tables_are_refused_however_they_are_reached(tmp_path: Path, kind: str, deep: str) -> None:
    data = make_table(tmp_path / "lake" / "table", kind, deep)
    (tmp_path / "lake" / "a.jsonl").write_text(LINES)
    table = tmp_path / "lake" / "table"
    store = f"memory://{tmp_path.name}"
    for path in tmp_path.rglob("*"):
        if path.is_file():
            io.write_atomic(f"{store}/{path.relative_to(tmp_path)}", path.read_bytes())
    below = data.relative_to(tmp_path)
    files = [
        tmp_path / "lake", data, f"{data.parent}/*.parquet", f"{tmp_path}/**/*.parquet",
        f"{store}/lake", f"{store}/{below}", f"{store}/lake/**/*.parquet",
    ]  # fmt: skip
    if data.parent != table:
        files += [data.parent, f"{store}/{below.parent}"]
    tables: list[object] = [table, f"{tmp_path}/lake/*", f"{store}/lake/table"]
    for name in files + tables * (kind == "Hudi"):
        with pytest.raises(OmniprepError, match=f"table: is a {kind.split()[0]} table"):
            find_inputs((str(name),))
    for name in tables * (kind != "Hudi"):  # the table itself, which its own library reads
        assert kind.split()[0].lower() in [entry.kind for entry in find_inputs((str(name),))]
    assert find_inputs((str(tmp_path / "lake" / "a.jsonl"),))


def test_a_folder_called_metadata_makes_no_table(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "facts.json").write_text("{}")
    (tmp_path / ".venv" / "_versions").mkdir(parents=True)
    (tmp_path / ".venv" / "_versions" / "x.py").write_text("")
    pq.write_table(pa.Table.from_pylist([{"n": 1}]), tmp_path / "a.parquet")
    assert read(tmp_path) == [{"n": 1}, {}]


# Names


def test_names_that_are_not_utf8_are_told(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.jsonl"
    try:
        with open(name, "w") as file:
            file.write(LINES)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    for given in (os.fsdecode(name), tmp_path, f"{tmp_path}/*.jsonl"):
        with pytest.raises(OmniprepError, match=r"caf\\xe9\.jsonl: the name is not valid UTF-8; rename"):
            read(given)


@pytest.mark.parametrize("option", ["inputs", "out", "media_root", "model", "system", "plugin"])
def test_options_that_are_not_utf8_are_told(option: str) -> None:
    """A manifest could not hold them: the build ended when it was written."""
    from omniprep.config import BuildConfig
    from omniprep.errors import UsageError

    value = "caf\udce9"
    with pytest.raises(UsageError, match=r"\\ud83d: not valid UTF-8"):  # as YAML may hold
        BuildConfig(system="\ud83d")
    with pytest.raises(UsageError, match=r"caf\\xe9: not valid UTF-8"):
        BuildConfig(**{option: (value,) if option in ("inputs", "media_root", "plugin") else value})


def test_no_command_that_writes_names_down_takes_undecoded_ones(tmp_path: Path, omniprep: Callable[..., Any]) -> None:
    """A training run ended when its weights were to be saved, a repack and init-model with a traceback."""
    value = f"{tmp_path}/caf\udce9"
    for command in (
        ("train", value, "--model", "m", "--out", tmp_path / "run"),
        ("train", "packed", "--model", "m", "--out", value),
        ("repack", value, "--bin-length", 64, "--out", tmp_path / "new"),
        ("init-model", value),
    ):
        done = omniprep(*command)
        assert done.code == 2 and "caf\\xe9: not valid UTF-8; rename" in done.err, command
    assert not list(tmp_path.iterdir())


def test_paths_with_a_scheme_mark_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:").mkdir()
    (tmp_path / "odd:" / "a.jsonl").write_text(LINES)
    for name in ("odd://a.jsonl", "./odd://a.jsonl", f"{tmp_path}/odd://a.jsonl", "odd://*.jsonl", f"{tmp_path}/odd:/"):
        assert read(name) == ROWS, name
    assert io.is_local("./s3://x") and not io.is_local("s3://x") and not io.is_local("simplecache::file:///etc/passwd")


@pytest.mark.parametrize(
    "name", ["weird://bucket/a.jsonl", "weird://bucket/*.jsonl", "simplecache::file:///etc/a.jsonl"]
)
def test_schemes_that_nobody_knows(name: str) -> None:
    with pytest.raises(OmniprepError, match="is no kind of store that is known.*given as ./"):
        read(name)


def test_media_messages_with_odd_names_are_text() -> None:
    assert Reject("media_not_found", "did you mean 'caf\udce9.png'").message == "did you mean 'caf\\udce9.png'"


# Rows drawn: INPUT#N


def drawn(*patterns: object, seed: int = 0, split_bytes: int = 1 << 20) -> list[tuple[str, int]]:
    splits = find_splits(find_inputs(tuple(map(str, patterns))), split_bytes, seed)
    return [(Path(split.source).name, line) for split, line, _ in numbered(splits)]


def test_rows_are_drawn_by_the_seed_from_all_files_of_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr("omniprep.rows.formats.hf.HF_ROWS", 7)
    rows = [{"n": n} for n in range(30)]
    lines = "\n\n".join(map(json.dumps, rows)) + "\nbad\n"
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(lines)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "d.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet", row_group_size=4)
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "f"))
    for name in ("a.jsonl", "c.jsonl.gz", "d.json", "e.parquet", "f"):
        found = drawn(f"{tmp_path}/{name}#7")
        every = dict.fromkeys(drawn(tmp_path / name))
        assert len(found) == 7 and found == [place for place in every if place in set(found)]
        assert found != drawn(f"{tmp_path}/{name}#7", seed=1)
        assert len(drawn(f"{tmp_path}/{name}#{len(every)}")) == len(every)
        with pytest.raises(OmniprepError, match=f"draws more rows than there are .{len(every)}"):
            drawn(f"{tmp_path}/{name}#{len(every) + 1}")
    # However the file is cut, and wherever it lies; blank lines are none of the rows.
    first = drawn(f"{tmp_path}/a.jsonl#7")
    assert first == drawn(f"{tmp_path}/a.jsonl#7", split_bytes=5) and all(line % 2 or line == 60 for _, line in first)
    monkeypatch.chdir(tmp_path)
    io.write_atomic("memory://draw/a.jsonl", lines.encode())
    assert first == drawn("a.jsonl#7") == drawn("memory://draw/a.jsonl#7")
    both = drawn(f"{tmp_path}/*.jsonl#20")
    assert len(both) == 20 and len({name for name, _ in both}) == 2
    assert len(drawn("a.jsonl#5", "b.jsonl#6", "d.json")) == 5 + 6 + 30
    content = [row["n"] for row in read(f"{tmp_path}/d.json#7")]
    assert content == [line - 1 for _, line in drawn(f"{tmp_path}/d.json#7")]


def test_draws_that_cannot_be_meant(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "b#2").mkdir()
    (tmp_path / "b#2" / "a.jsonl").write_text(LINES)
    assert len(drawn(tmp_path / "b#2")) == 3  # a name that exists is no draw
    assert len(drawn(f"{tmp_path}/b#2#1")) == 1
    with pytest.raises(OmniprepError, match="draws no row"):
        drawn(f"{tmp_path}/a.jsonl#0")
    with pytest.raises(OmniprepError, match=r"a\.jsonl: is given twice"):
        drawn(f"{tmp_path}/a.jsonl#1", f"{tmp_path}/a.jsonl")
    with pytest.raises(OmniprepError, match="no such file"):
        drawn(f"{tmp_path}/a.jsonl#x")


def test_a_build_of_drawn_rows_counts_those(
    tmp_path: Path, splits: Path, model_dir: Path, omniprep: Callable[..., Any]
) -> None:
    chats = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(40)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    args = ("--model", model_dir, "--bin-length", 512, "--workers", 0, "--out", tmp_path / "out")
    done = omniprep("build", f"{tmp_path}/a.jsonl#7", *args)
    assert done.code == 0 and "7 of 40 rows, drawn with seed 0" in done.err, done.err
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]["rows"] == {
        "read": 7,
        "packed": 7,
        "rejected": 0,
    }
    rows = pq.read_table(tmp_path / "out" / "rows.parquet")
    assert [("a.jsonl", line) for line in rows["line"].to_pylist()] == drawn(f"{tmp_path}/a.jsonl#7")
    assert omniprep("verify", tmp_path / "out", "--deep").code == 0
    assert "nothing to do" in omniprep("build", f"{tmp_path}/a.jsonl#7", *args).err
