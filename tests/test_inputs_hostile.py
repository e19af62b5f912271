"""Inputs made to fill the memory, to lead to other files, or to end the process: bounded, refused, or rejected.

The fuzzers run for seconds here and for minutes under the mark `slow`; what they found stands as examples.
"""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omniprep.errors import OmniprepError, Reject
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import count_lines, find_splits, read_split

SLOW = [pytest.param(150, id="some"), pytest.param(20_000, id="many", marks=pytest.mark.slow)]
SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}
ROWS = [{"n": n, "t": "é" * n} for n in range(40)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def read(path: Path, limit: int = 1 << 30, split_bytes: int = 1 << 20) -> list[Any]:
    splits = find_splits(find_inputs((str(path),)), split_bytes)
    return [row.content for split in splits for row in read_split(split, max_line_bytes=limit)]


# Long lines


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "u.jsonl"])
@pytest.mark.parametrize("split_bytes", [100_000, 1 << 30])
def test_a_line_beyond_the_limit_costs_itself(tmp_path: Path, name: str, split_bytes: int) -> None:
    texts = ['{"n": 1}', '{"n": "' + "x" * 3_000_000 + '"}', '{"n": "' + "y" * (2_500_000 - 9) + '"}', '{"n": 2}']
    assert len(texts[2]) == 2_500_000
    data = "\n".join(texts).encode("utf-16" if name.startswith("u") else "utf-8")
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else zst(data) if name.endswith("zst") else data)
    first, long, just, last = read(path, limit=2_500_000, split_bytes=split_bytes)
    assert (first, last) == ({"n": 1}, {"n": 2}) and just == json.loads(texts[2])
    assert isinstance(long, Reject) and long.code == "line_too_long" and "3,000,010 bytes" in long.message
    assert sum(map(count_lines, find_splits(find_inputs((str(path),)), split_bytes))) == 4
    assert isinstance(read(path, limit=2_499_999, split_bytes=split_bytes)[2], Reject)


def test_the_limit_is_an_option_of_the_build(tmp_path: Path, model_dir: Path, omniprep: Callable[..., Any]) -> None:
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(chat)}\n{json.dumps({**chat, 'id': 'x' * 2000})}\n")
    out = tmp_path / "out"
    args = ("build", tmp_path / "a.jsonl", "--model", model_dir, "--bin-length", 256, "--workers", 0, "--out", out)
    done = omniprep(*args, "--max-line-bytes", "1KiB")
    assert done.code == 0, done.err
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert counts["rows"] == {"read": 2, "packed": 1, "rejected": 1} and counts["rejected_by_code"] == {
        "line_too_long": 1
    }
    reject = json.loads((out / "rejected.jsonl").read_text())
    assert (reject["line"], reject["row"]) == (2, None)
    assert (
        omniprep("plan", tmp_path / "a.jsonl", "--model", model_dir, "--bin-length", 256, "--max-line-bytes", 0).code
        == 2
    )


BOMB = """
import resource, sys
from omniprep.errors import OmniprepError
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import find_splits, read_split
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for split in find_splits(find_inputs((sys.argv[1],))):
        for row in read_split(split, max_line_bytes=8 << 20):
            print(row.content)
except OmniprepError as error:
    print("stopped:", error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize("size", [192, pytest.param(6144, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "begin", "fill", "end"),
    [
        ("a.jsonl", b'{"n": 1}\n{"t": "', b"x", b'"}\n{"n": 2}\n'),
        ("a.jsonl", b"", b"[", b""),
        ("a.jsonl", b'{"n": 1}\n', b" ", b"\n"),
        ("a.json", b'[{"n": 1}, "', b"x", b'"]'),
        ("a.json", b'[{"n": 1}, {"t":', b"[", b"]]"),
        ("a.json", b'[{"n": 1}', b" ", b"]"),
    ],
)
@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_a_bomb_does_not_fill_the_memory(
    tmp_path: Path, codec: str, name: str, begin: bytes, fill: bytes, end: bytes, size: int
) -> None:
    """Some KB that become hundreds of MB: what is held follows the limit (8 MiB here) and not the file."""
    path = tmp_path / f"{name}.{codec}"
    stream = (
        gzip.open(path, "wb", 1) if codec == "gz" else pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd")
    )
    with stream as file:
        file.write(begin)
        for _ in range(size):
            file.write(fill * (1 << 20))
        file.write(end)
    done = subprocess.run([sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True, check=True)
    *said, grown = done.stdout.splitlines()
    assert int(grown) < 130 << 10, done.stdout  # pyarrow itself takes 60 MiB
    if fill != b" " or name == "a.jsonl":
        bounded = ("line_too_long", "--max-line-bytes", "nested more than 128 deep, and its end is not near")
        assert any(words in line for line in said for words in bounded), said
    assert "MemoryError" not in done.stdout and "RecursionError" not in done.stdout


# Compressed files


def changed(draw: Any, data: bytes) -> bytes:
    """A few bytes altered, taken out or put in."""
    parts = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(parts)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "drop"]))
        if kind == "flip" and at < len(parts):
            parts[at] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del parts[at:]
        elif kind == "insert":
            parts[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "repeat":
            parts += data
        else:
            del parts[at : at + draw(st.integers(1, 20))]
    return bytes(parts)


@pytest.mark.parametrize("examples", SLOW)
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.json.zst", "a.json.gz"])
def test_damaged_archives_stop_the_build_or_are_whole(tmp_path: Path, name: str, examples: int) -> None:
    text = json.dumps(ROWS).encode() if ".json." in name else LINES
    whole = gzip.compress(text, mtime=0) if name.endswith("gz") else zst(text)
    path = tmp_path / name

    @settings(max_examples=examples, **SETTINGS)
    @given(st.data())
    def try_one(data: st.DataObject) -> None:
        path.write_bytes(changed(data.draw, whole))
        try:
            rows = read(path, limit=1 << 20)
        except OmniprepError as error:
            assert str(path) in str(error)
            return
        if name.endswith("gz"):  # which has a checksum; Arrow writes zstd without one
            assert (rows[: len(ROWS)] == ROWS and len(rows) % len(ROWS) == 0) or rows == []

    try_one()


# Saved datasets


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import datasets

    path = tmp_path_factory.mktemp("saved") / "data"
    datasets.Dataset.from_list([{"n": 1, "images": ["a.png"]}]).save_to_disk(str(path))
    datasets.Dataset.from_list([{"n": "secret"}]).save_to_disk(str(path.with_name("secret")))
    return path


def secret_file(saved: Path) -> Path:
    (found,) = saved.with_name("secret").glob("*.arrow")
    return found


@pytest.mark.parametrize("key", ["_data_files", "_indices_data_files"])
@pytest.mark.parametrize(
    "form",
    [
        "../secret/{}",
        "{at}/{}",
        "./../secret/{}",
        "..\\secret\\{}",
        "file://{at}/{}",
        "memory://x/{}",
        "link.arrow",
        "",
        "..",
        None,
        3,
    ],
)
def test_state_json_leads_to_no_other_file(saved: Path, key: str, form: Any) -> None:
    secret = secret_file(saved)
    state = json.loads((saved / "state.json").read_text())
    link = saved / "link.arrow"
    if not link.is_symlink():
        link.symlink_to(secret)
    name = form.format(secret.name, at=secret.parent) if isinstance(form, str) else form
    hostile = {**state, key: [{"filename": name}]}
    before = (saved / "state.json").read_text()
    try:
        (saved / "state.json").write_text(json.dumps(hostile))
        with pytest.raises(OmniprepError, match=r"state\.json: "):
            read(saved)
    finally:
        (saved / "state.json").write_text(before)
    assert read(saved) == [{"n": 1, "images": ["a.png"]}]


@pytest.mark.parametrize("names", [["../secret"], ["/etc"], ["train", ".."], "train", [1], None, ["a/b"], ["train\0"]])
def test_dataset_dict_json_names_folders_beside_it(tmp_path: Path, saved: Path, names: Any) -> None:
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": names}))
    for split in ("", ":train"):
        with pytest.raises(OmniprepError, match=r"dataset_dict\.json: must name splits"):
            find_inputs((f"{tmp_path}{split}",))


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.sampled_from(["..", "../secret/data-00000-of-00001.arrow", "arrow", "torch", "Image", "Value"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["_data_files", "filename", "features", "_type", "dtype", "_format_type", "_split", "_fingerprint", "_indices_data_files", "splits", "n", "feature"]), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@pytest.mark.parametrize("examples", SLOW)
@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
def test_any_state_is_read_or_refused(saved: Path, name: str, examples: int) -> None:
    good = (saved / name).read_text()

    @settings(max_examples=examples, **SETTINGS)
    @given(st.data())
    def try_one(data: st.DataObject) -> None:
        value = data.draw(json_values)
        if data.draw(st.booleans()):
            value = {**json.loads(good), **(value if isinstance(value, dict) else {"n": value})}
        text = json.dumps(value).encode()
        (saved / name).write_bytes(changed(data.draw, text) if data.draw(st.booleans()) else text)
        try:
            rows = read(saved)
        except OmniprepError as error:
            assert str(saved) in str(error)
            return
        assert "secret" not in str(rows)

    try:
        try_one()
    finally:
        (saved / name).write_text(good)


def test_media_columns_of_saved_datasets_stay_inside_the_roots(tmp_path: Path, model_dir: Path) -> None:
    """Lists of media too: paths in them are paths of rows, held to the folder and --media-root."""
    import datasets

    from omniprep.compiler.encode.single_row import encode_row
    from omniprep.compiler.options import family_of
    from omniprep.config import BuildConfig

    outside = tmp_path / "outside.png"
    outside.write_bytes((Path(__file__).parent / "golden" / "media" / "s28x28.png").read_bytes())
    text = datasets.Value("string")
    picture = {
        "bytes": datasets.Value("binary"),
        "path": text,
    }  # an Image as Arrow holds it; saving one takes its bytes in
    image, named = datasets.Image(), {"bytes": None, "path": str(outside)}
    chat = [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}]
    for number, (stored, typed, images) in enumerate(((picture, image, named), ([picture], [image], [named]))):
        features = datasets.Features({"messages": [{"role": text, "content": text}], "images": stored})
        folder = tmp_path / f"saved{number}"
        datasets.Dataset.from_list([{"messages": chat, "images": images}], features).save_to_disk(str(folder))
        info = json.loads((folder / "dataset_info.json").read_text())
        info["features"]["images"] = datasets.Features({"images": typed}).to_dict()["images"]
        (folder / "dataset_info.json").write_text(json.dumps(info))
        (split,) = find_splits(find_inputs((str(tmp_path / f"saved{number}"),)))
        (row,) = read_split(split)
        for roots, code in (((), "media_outside_root"), ((str(tmp_path),), "")):
            config = BuildConfig(model=str(model_dir), bin_length=4096, media_root=roots)
            try:
                encode_row(row.content, family_of(config), config, split.base)
                found = ""
            except Reject as reject:
                found = reject.code
            assert found == code


# Rows


@pytest.mark.parametrize(
    "row",
    [
        {"tools": json.dumps([{"type": "function", "function": {"name": "\ud83d", "parameters": {}}}])},
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "tool_call", "content": '{"name": "f", "arguments": {"a": "\\ud83d"}}'},
                {"role": "tool_response", "content": "r"},
                {"role": "assistant", "content": "a"},
            ]
        },
        {"messages": "[{'role': 'user', 'content': '\\ud83d'}, {'role': 'assistant', 'content': 'a'}]"},
        {
            "messages": "[{'role': 'user', 'content': [{'type': 'image', 'image': 'caf\\udce9.png'}]}, {'role': 'assistant', 'content': 'a'}]"
        },
    ],
)
def test_half_characters_that_come_from_text_in_text_cost_their_row(
    tmp_path: Path, model_dir: Path, row: dict[str, Any]
) -> None:
    """What is parsed once more holds what the reader could not see: it ended the build in the tokenizer or the plan."""
    from omniprep.compiler.options import family_of
    from omniprep.compiler.plan.file import to_batch
    from omniprep.compiler.plan.rows import plan_rows
    from omniprep.config import BuildConfig
    from omniprep.media.fetch import MediaRoots

    picture = (Path(__file__).parent / "golden" / "media" / "s28x28.png").read_bytes()
    try:
        with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
            file.write(picture)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps({**chat, **row})}\n{json.dumps(chat)}\n")
    config = BuildConfig(model=str(model_dir), bin_length=4096)
    rows = read(tmp_path / "a.jsonl")
    bad, good = plan_rows(rows, family_of(config), config, MediaRoots(str(tmp_path)))
    assert (
        isinstance(bad, Reject)
        and bad.code in ("bad_message", "bad_tools", "media_not_found")
        and not isinstance(good, Reject)
    )
    assert to_batch([0, 1], [bad, good], [b"{}", None]).num_rows == 2
