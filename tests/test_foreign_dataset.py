"""A dataset that a stranger made decides nothing: no code of its runs, no file or host of its choice is opened.

Each command that looks at a dataset is given one whose manifest asks for all of it.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SAMPLES

from omniprep.errors import UsageError
from omniprep.inspect.trust import input_refusal, model_of_dataset
from omniprep.shards.manifest import InputEntry, Manifest
from tests import toy

SECRET = "SECRET-7d1f"


@pytest.fixture(scope="module")
def base(omniprep, model_dir, tmp_path_factory) -> Path:
    """A built dataset with its input beside it."""
    folder = tmp_path_factory.mktemp("foreign")
    shutil.copy(SAMPLES / "text.jsonl", folder / "chats.jsonl")
    options = ("--model", model_dir, "--bin-length", 1024, "--workers", 0, "--quiet")
    done = omniprep("build", folder / "chats.jsonl", *options, "--out", folder / "packed")
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def foreign(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the dataset, which a test makes hostile; the process stands in its parent folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(base / "packed", tmp_path / "packed", ignore=shutil.ignore_patterns("plan", "receipts"))


def change(dataset: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = dataset / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def evil_plugin(folder: Path) -> Path:
    """A plug-in inside the dataset, as a pull may bring one under the name of a shard."""
    path = folder / "shards" / "99999.arrow"
    path.write_text(f"open({str(folder / 'PWNED')!r}, 'w').write('x')\n")
    return path


def evil_checkpoint(model_dir: Path, folder: Path) -> Path:
    """A checkpoint whose tokenizer is code of its own."""
    target = shutil.copytree(model_dir, folder / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (target / "evil.py").write_text(
        f"open({str(folder / 'PWNED')!r}, 'w').write('x')\nfrom transformers import Qwen2TokenizerFast as Evil\n"
    )
    path = target / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    path.write_text(json.dumps(settings))
    return target


COMMANDS = [
    ("verify", "--deep"), ("verify",), ("inspect",), ("stats",), ("report",), ("push", "org/x", "--dry-run"),
    ("sample", "--out", "sampled"), ("repack", "--bin-length", "512", "--out", "repacked"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_runs_code_that_a_dataset_names(command: tuple[str, ...], foreign: Path, model_dir: Path, omniprep):
    plugin, checkpoint = evil_plugin(foreign), evil_checkpoint(model_dir, foreign)

    def ask_for_everything(manifest: dict[str, Any]) -> None:
        manifest["config"] |= {
            "plugin": [str(plugin)], "trust_remote_code": True, "allow_http": True, "media_root": ["/"],
            "model": str(checkpoint), "inputs": ["/etc/passwd"], "out": "elsewhere", "overwrite": True,
        }  # fmt: skip
        manifest |= {"model": str(checkpoint), "plugin": [str(plugin)], "trust_remote_code": True}

    change(foreign, ask_for_everything)
    name, *more = command
    result = omniprep(name, foreign, *more)
    assert not (foreign / "PWNED").exists()
    assert "Traceback" not in result.err
    # A checkpoint without its code may do as well: the tokenizer of this one is that of its base class.
    assert result.code == 0 or "--trust-remote-code" in result.err, result.err


def in_a_new_process(*args: object) -> subprocess.CompletedProcess[str]:
    """A command line where no plug-in is loaded yet."""
    return subprocess.run([sys.executable, "-m", "omniprep", *map(str, args)], capture_output=True, text=True)


def test_deep_runs_code_with_the_flag_of_this_command_line(tmp_path: Path, omniprep, monkeypatch):
    """A family of a plug-in: refused with the name of the flag, encoded with it; after a repack too."""
    monkeypatch.chdir(tmp_path)
    model, rows = toy.write_checkpoint(tmp_path / "model"), toy.write_rows(tmp_path / "in", 6)
    options = ("--model", model, "--bin-length", 512, "--workers", 0, "--quiet", "--plugin", toy.FAMILY)
    assert in_a_new_process("build", rows, *options, "--out", "packed").returncode == 0
    assert omniprep("repack", "packed", "--bin-length", 1024, "--out", "larger", "--quiet").code == 0
    for dataset in ("packed", "larger"):
        without = in_a_new_process("verify", dataset, "--deep", "--quiet")
        assert without.returncode != 0 and "built with --plugin" in without.stderr, without
        assert str(toy.FAMILY) not in without.stderr, "which file to run is for the user to say"
    given = in_a_new_process("verify", "packed", "--deep", "--quiet", "--plugin", toy.FAMILY)
    assert given.returncode == 0 and "rows encoded again, to the same tensors" in given.stdout, given.stderr


def test_deep_opens_no_input_that_only_the_dataset_names(foreign: Path, tmp_path: Path, omniprep):
    """rows.parquet and the manifest point at a file of this machine; nothing of it is read or shown."""
    secret = tmp_path / "secret.jsonl"
    secret.write_text(f"{SECRET} is no JSON\n" * 60)
    table = pq.read_table(foreign / "rows.parquet")
    names = pa.array([str(secret)] * table.num_rows)
    pq.write_table(table.set_column(table.column_names.index("source"), "source", names), foreign / "rows.parquet")
    for entry in (
        [],
        [{"source": str(secret)}],
        [{"source": str(secret), "bytes": secret.stat().st_size, "mtime_ns": 1}],
    ):
        change(foreign, lambda manifest, entry=entry: manifest.update(inputs=entry))
        result = omniprep("verify", foreign, "--deep", "--quiet")
        assert result.code == 1 and SECRET not in result.out + result.err
        assert f"{secret}: not read" in result.err and f"--input {secret}" in result.err
        assert "damaged" not in result.err
    named = omniprep("verify", foreign, "--deep", "--quiet", "--input", secret)
    assert (named.code == 1 and "differs" in named.out + named.err) or "bad_json" in named.out


def test_deep_opens_no_host_that_only_the_dataset_names(foreign: Path, omniprep, monkeypatch):
    def no_connection(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "create_connection", no_connection)
    monkeypatch.setattr(socket.socket, "connect", no_connection)
    table = pq.read_table(foreign / "rows.parquet")
    column = table.column_names.index("source")
    for source in (
        "http://127.0.0.1:9/c.jsonl",
        "s3://bucket/c.jsonl",
        "hf://datasets/org/x/c.jsonl",
        "memory://c.jsonl",
    ):
        pq.write_table(table.set_column(column, "source", pa.array([source] * len(table))), foreign / "rows.parquet")
        change(
            foreign,
            lambda manifest, source=source: manifest.update(inputs=[{"source": source, "bytes": 1, "mark": "x"}]),
        )
        result = omniprep("verify", foreign, "--deep", "--quiet")
        assert result.code == 1 and "a store that you did not name" in result.err, result.err
    for command in (("verify", "--deep"), ("inspect",), ("sample", "--out", "s"), ("push", "org/x", "--dry-run")):
        change(foreign, lambda manifest: manifest.update(model="org/absent"))
        name, *more = command
        result = omniprep(name, foreign, *more)
        assert result.code == 2 and "give --model" in result.err, result.err
    assert "tokens are shown as numbers" in omniprep("report", foreign).err


def test_media_of_a_row_need_the_media_root_of_this_command_line(
    tmp_path: Path, model_dir: Path, omniprep, monkeypatch
):
    (tmp_path / "in").mkdir()
    (tmp_path / "media").mkdir()
    shutil.copy(SAMPLES / "media" / "shapes_a.png", tmp_path / "media")
    message = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "Shapes."}]
    (tmp_path / "in" / "c.jsonl").write_text(json.dumps({"messages": message, "images": ["shapes_a.png"]}) + "\n")
    options = ("--model", model_dir, "--bin-length", 512, "--workers", 0, "--quiet", "--media-root", tmp_path / "media")
    assert omniprep("build", tmp_path / "in" / "c.jsonl", *options, "--out", tmp_path / "packed").code == 0
    without = omniprep("verify", tmp_path / "packed", "--deep", "--quiet")
    assert without.code == 1 and "give that here too" in without.err and "--media-root" in without.err
    assert "damaged" not in without.err, "nothing is wrong with the dataset"
    given = omniprep("verify", tmp_path / "packed", "--deep", "--quiet", "--media-root", tmp_path / "media")
    assert given.code == 0, given.err


def test_which_inputs_are_opened(tmp_path: Path):
    file = tmp_path / "a" / "c.jsonl"
    file.parent.mkdir()
    file.write_text("{}\n")
    stat = file.stat()
    known = InputEntry(source=str(file), bytes=stat.st_size, mtime_ns=stat.st_mtime_ns)

    def refused(source: str, *named: str, uri: str = "packed", entry: InputEntry = known) -> str:
        return input_refusal(source, Manifest(format=1, shards=(), inputs=(entry,)), uri, named)

    assert refused(str(file)) == ""
    assert refused(str(tmp_path / "other.jsonl")) and refused(str(file.parent))
    touched = InputEntry(source=str(file), bytes=stat.st_size, mtime_ns=stat.st_mtime_ns + 1)
    longer = InputEntry(source=str(file), bytes=stat.st_size + 1, mtime_ns=stat.st_mtime_ns)
    for entry in (touched, longer, InputEntry(source=str(file))):
        assert "its size or " in refused(str(file), entry=entry)
        for named in (str(file), str(tmp_path), f"{tmp_path}/", f"{tmp_path}/a/../a"):
            assert refused(str(file), named, entry=entry) == ""
        for named in (f"{tmp_path}/b", f"{file}x", str(file)[:-1], "s3://bucket", f"{tmp_path}/a/c"):
            assert refused(str(file), named, entry=entry)
    assert refused(f"{tmp_path}/a/../../x", str(tmp_path / "a"))
    assert refused("saved:test", "saved") == "" and refused("saved:test", "sav")
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refused(f"{tmp_path}/pipe", entry=InputEntry(source=f"{tmp_path}/pipe"))
    assert "no such file" in refused(f"{tmp_path}/gone", entry=InputEntry(source=f"{tmp_path}/gone"))
    for uri, source, good in (
        ("s3://b/packed", "s3://b/in/c.jsonl", True), ("s3://b/packed", "s3://other/c.jsonl", False),
        ("s3://b/packed", "gs://b/c.jsonl", False), ("hf://datasets/o/n", "hf://datasets/o/n/c.jsonl", True),
        ("hf://datasets/o/n", "hf://datasets/o/m/c.jsonl", False), ("s3://b/packed", "http://b/c.jsonl", False),
        ("packed", "s3://b/c.jsonl", False), ("s3://b/packed", "s3://bb/c.jsonl", False),
    ):  # fmt: skip
        assert (refused(source, uri=uri, entry=InputEntry(source=source)) == "") == good, (uri, source)


def test_which_checkpoints_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def model(name: str, given: str | None = None) -> str:
        return model_of_dataset(given, Manifest(format=1, shards=(), model=name), "packed")

    assert model("org/any", given="org/mine") == "org/mine"
    assert model(str(tmp_path)) == str(tmp_path)
    for name in ("", "org/any", "../x/y", "s3://b/m", "http://host/m", "a\nb", str(tmp_path / "gone"), "\0"):
        with pytest.raises(UsageError, match="--model"):
            model(name)
    snapshot = tmp_path / "hub" / "models--org--any" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    assert model("org/any") == str(snapshot)
