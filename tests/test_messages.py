"""A natural mistake gets one line that says where it is and what to do.

Each case is a command as somebody typed it, with what its line must say. Exit status: 1 for data and the world, 2 for the
command line itself.
"""

import gzip
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from omniprep.errors import did_you_mean
from omniprep.rows.jsonfaults import json_fault
from omniprep.rows.jsontext import parse_row

ROWS = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": f"answer {number}"}]}
    for number in range(2)
]
LINES = [json.dumps(row) for row in ROWS]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
LOGIN = "\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good input, which is the working directory: messages name files as they were typed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.jsonl").write_text("\n".join(LINES) + "\n")
    return tmp_path


@pytest.fixture
def planned(omniprep: Any, model_dir: Path) -> Any:
    def call(*arguments: object, command: str = "plan") -> Any:
        return omniprep(command, *arguments, "--model", model_dir, "--bin-length", 2048, "--workers", 0)

    return call


def the_line(result: Any, code: int) -> str:
    """The only line of an error, below click's usage where there is one."""
    assert result.code == code and "Traceback" not in result.err, result
    lines = [line for line in result.err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and "defect" not in lines[0], result.err
    return lines[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (str(ROWS[0]), "column 2: a single quote, where JSON has double ones; write rows with json.dumps"),
        (LINES[0] + ",", f"column {len(LINES[0]) + 1}: a comma follows the object; remove it"),
        (LINES[0][:-1] + ",}", "a comma before a closing bracket; remove it"),
        ('{"a": [1, 2, ]}', "a comma before a closing bracket; remove it"),
        (LINES[0] + LINES[1], "more follows the object; one object a line is needed"),
        (LINES[0][:-10], "a text begins that does not end in this line"),
        ('{"messages": [', "the line ends in the middle of a value; was the file cut?"),
        ('{"a": True}', "column 7: Python's True, where JSON has true, false or null; write rows with json.dumps"),
        ('{"a": None}', "column 7: Python's None"),
        (
            "query,response",
            "column 1: no JSON: the line begins with 'query,response'; a table of columns is read as .csv",
        ),
        ("query\tresponse", "a table of columns is read as .csv or .tsv"),
        ("- messages: x", "column 1: no JSON: the line begins with '- messages: x'"),
        ('{"a": "one\ttwo"}', "column 11: a tab or other control character in a text"),
        ('{"a": "C:\\Users"}', "a backslash that escapes nothing; JSON writes a backslash as \\\\"),
        ('{"a": 1 "b": 2}', "column 9: expecting ',' delimiter"),
        ('{"a": 1, "a": 2}', "the key 'a' is written twice"),
    ],
)
def test_a_line_that_is_no_json_says_why(line: str, said: str) -> None:
    reject = parse_row(line.encode())
    assert reject.code == "bad_json" and said in reject.message, reject.message
    assert "line 1" not in reject.message  # which would contradict FILE:LINE before it


def test_other_errors_of_numbers_keep_their_text() -> None:
    assert json_fault(ValueError("Exceeds the limit")) == "Exceeds the limit"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", POINTER, "a.jsonl: is a Git LFS pointer and not the file itself; run git lfs pull"),
        ("a.json", POINTER, "a.json: is a Git LFS pointer"),
        ("a.parquet", POINTER, "a.parquet: is a Git LFS pointer"),
        ("a.jsonl.gz", POINTER, "it is no gz data, but a Git LFS pointer"),
        ("a.jsonl", LOGIN, "a.jsonl: is a web page: an error or login page was probably saved"),
        ("a.json", LOGIN, "a.json: is a web page"),
        ("a.parquet", LOGIN, "a.parquet: is a web page"),
        ("a.jsonl", "<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        ("a.jsonl.gz", "\n".join(LINES), "it is no gz data, so its name must not end in .gz"),
        ("a.jsonl.zst", "\n".join(LINES), "it is no zst data, so its name must not end in .zst"),
        ("a.jsonl", gzip.compress(b"x"), "its name must end in .gz"),
        ("a.parquet", "", "a.parquet: is empty"),
        ("a.jsonl", "", "a.jsonl: no rows (the files are empty)"),
        ("a.json", "[" + ",".join(LINES) + ",]", "element 3: a comma and then no element"),
        ("a.json", str(ROWS), "element 1: character 2: a single quote, where JSON has double ones"),
        ("a.txt", "hi", "not a kind of file that is known (.jsonl"),
    ],
)
def test_an_input_that_is_something_else(here: Path, planned: Any, name: str, content: Any, said: str) -> None:
    (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in the_line(planned(name), 1)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("plan", "nosuch.jsonl"), 1, "nosuch.jsonl: no such file"),
        (("plan", "god.jsonl"), 1, "god.jsonl: no such file; did you mean 'good.jsonl'?"),
        (("plan", "no*.jsonl"), 1, "no*.jsonl: no file matches"),
        (("plan", "empty"), 1, "empty: a folder without .jsonl"),
        (("plan", "good.jsonl", "--seed", -1), 2, "--seed must be 0 or more"),
        (("plan", "good.jsonl", "--bin-length", 0), 2, "'--bin-length': 0 is not in the range 1<=x<=2147483647"),
        (("plan", "good.jsonl", "--bin-length", -5), 2, "-5 is not in the range"),
        (("plan", "good.jsonl", "--bin-length", 10**21), 2, f"{10**21} is not in the range"),
        (("plan", "good.jsonl", "--compare", "bin-length=0"), 2, "--compare: bin-length: 0 is not in the range"),
        (("plan", "good.jsonl", "--modle", "x"), 2, "No such option '--modle'. Did you mean '--model'?"),
        (("plan", "good.jsonl", "--model", "--out", "x"), 2, "--model needs a value, and --out follows"),
        (("plan", "--plain", "good.jsonl"), 2, "--plain goes before the command: omniprep --plain plan ..."),
        (("good.jsonl",), 2, "no command 'good.jsonl'; the command comes first, such as: omniprep plan good.jsonl"),
        (("plan", "good.jsonl,other.jsonl"), 1, "give several inputs apart: good.jsonl other.jsonl"),
        (("plan", "good.jsonl other.jsonl"), 1, "give several inputs apart: good.jsonl other.jsonl"),
        (("plan", "good.jsonl/"), 1, "good.jsonl/: is a file; leave the slash at its end away"),
        (("plan", "org/name"), 1, "org/name: no such file; a dataset of the Hub is hf://datasets/org/name"),
        (("plan", "good.jsonl", "-out", "x"), 2, "no option '-out'; did you mean '--out'?"),
        (("nonsense",), 2, "no command 'nonsense'; omniprep --help lists them"),
        (("help",), 2, "no command 'help'; write omniprep --help, or omniprep COMMAND --help"),
        (("build", "good.jsonl", "--out", "/proc/x"), 1, "/proc/x: no folder can be made here; choose another --out"),
        (("build", "good.jsonl", "--out", "other.txt"), 1, "other.txt: is a file, a folder is needed"),
        (("build", "good.jsonl", "--out", "x" * 256), 1, ": the name is too long for the file system"),
        (("build", "good.jsonl", "--out", "."), 2, "good.jsonl: this input lies in --out; choose another --out"),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, tuple) else "",
)
def test_a_slip_of_the_command_line(
    here: Path, omniprep: Any, model_dir: Path, arguments: tuple[Any, ...], code: int, said: str
) -> None:
    for name in ("other.txt", "other.jsonl"):
        (here / name).write_text("x")
    (here / "empty").mkdir()
    usual = () if len(arguments) == 1 else ("--model", model_dir, "--bin-length", 2048, "--workers", 0)
    options = [value for value in usual if "--bin-length" not in arguments or value not in ("--bin-length", 2048)]
    assert said in the_line(omniprep(*arguments[:2], *options, *arguments[2:]), code)


def test_train_without_data(omniprep: Any) -> None:
    assert "no DIR of a dataset" in the_line(omniprep("train"), 2)


@pytest.mark.parametrize("command", ["inspect", "report", "stats", "verify", "status", "push", "append", "repack"])
def test_what_is_no_dataset(here: Path, omniprep: Any, command: str) -> None:
    more = {"push": ("me/x",), "append": ("good.jsonl", "--model", "m"), "repack": ("--bin-length", 8, "--out", "o")}
    call = lambda name: the_line(omniprep(command, name, *more.get(command, ())), 1)  # noqa: E731
    file = (
        "is a file; give the folder of a build" if command == "status" else "is a file, and no dataset: give the folder"
    )
    assert f"good.jsonl: {file}" in call("good.jsonl")
    (here / "packed").mkdir()
    assert "no such folder; did you mean 'packed'?" in call("pakced")
    advice = "holds no dataset, and no build that was begun" if command == "status" else "`omniprep build` makes one"
    assert advice in call("packed")
    if command != "status":
        (here / "packed" / "plan").mkdir()
        (here / "packed" / "plan" / "build.json").write_text("{}")
        assert "the command that built it, run again, finishes it (omniprep status packed)" in call("packed")
        (here / "above" / "packed").mkdir(parents=True)
        (here / "above" / "packed" / "manifest.json").write_text("{}")
        assert "did you mean 'above/packed'?" in call("above")
        (here / "above" / "packed" / "shards").mkdir()
        assert "did you mean 'above/packed'?" in call("above/packed/shards")


def test_a_second_build_of_other_inputs_says_how_to_go_on(here: Path, planned: Any) -> None:
    assert planned("good.jsonl", "--out", "packed", command="build").code == 0
    (here / "a day.jsonl").write_text(LINES[0] + "\n")
    for inputs in (("good.jsonl", "a day.jsonl"), ("a day.jsonl",)):
        line = the_line(planned(*inputs, "--out", "packed", command="build"), 1)
        assert "omniprep append packed 'a day.jsonl' adds them; or build them alone with another --out" in line
        assert "train on both folders" in line
    (here / "good.jsonl").write_text("\n".join([*LINES, LINES[0]]) + "\n")
    line = the_line(planned("good.jsonl", "--out", "packed", command="build"), 1)
    assert "a changed input cannot be appended: put its new rows into a file of their own" in line
    (here / "good.jsonl").write_text("\n".join(LINES) + "\n")
    line = the_line(planned("good.jsonl", "--max-pixels", 100_000, "--out", "packed", command="build"), 1)
    assert line.endswith("give another --out, or --overwrite to begin anew")


def test_most_rows_rejected_is_a_warning_and_all_an_error(here: Path, planned: Any) -> None:
    (here / "bad.jsonl").write_text("\n".join([LINES[0], "a", "b", "[]", '{"messages": []}', '{"x": 1}']) + "\n")
    result = planned("bad.jsonl", "--out", "most", "--quiet", command="build")
    assert result.code == 0
    warning = "Warning: 5 of 6 rows are rejected (bad_json 2, bad_row 2, empty_row 1); omniprep inspect most --rejected"
    assert result.err.splitlines()[-1].startswith(warning)
    assert "Warning: 5 of 6 rows are rejected" in planned("bad.jsonl", "--quiet").err
    (here / "half.jsonl").write_text(f"{LINES[0]}\nx\n")
    assert "Warning" not in planned("half.jsonl", "--out", "half", command="build").err
    (here / "one.jsonl").write_text("x\n")
    line = the_line(planned("one.jsonl", "--out", "none", command="build"), 1)
    assert "no row was packed, its only row was rejected (bad_json 1)" in line


def test_a_plan_lists_its_rejects_once_and_shows_them_where_it_fails(here: Path, planned: Any) -> None:
    (here / "bad.jsonl").write_text(f"{LINES[0]}\nx\n")
    result = planned("bad.jsonl")
    assert (result.out + result.err).count("bad.jsonl:2: bad_json") == 1 and "bad.jsonl:2" in result.out
    failed = planned("bad.jsonl", "--max-error-rate", 0.1)
    assert failed.code == 1 and failed.err.count("rejected: bad.jsonl:2: bad_json") == 1


def test_the_warning_is_red_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from test_progress import terminal_of

    from omniprep.cli.summary import warn_of_rejects

    for variable, colored in ((None, True), ("NO_COLOR", False)):
        terminal = terminal_of(monkeypatch)
        if variable:
            monkeypatch.setenv(variable, "1")
        warn_of_rejects({"read": 3, "packed": 1, "rejected": 2}, {"bad_[json]": 2}, "look")
        assert ("\x1b[1;31m" in terminal.getvalue()) == colored
        assert "2 of 3 rows are rejected (bad_[json] 2); look" in terminal.getvalue()


def test_text_rows_are_told_nothing_of_pictures(here: Path, planned: Any) -> None:
    assert "may have" not in planned("good.jsonl").err


@pytest.mark.parametrize(
    ("name", "offline", "said"),
    [
        ("Qwen/Qwen2.5-Omni-7B", True, "HF_HUB_OFFLINE is set; unset it, or where there is a network: hf download"),
        ("Qwen/Qwen2.5-Omni-7B", False, "the Hub cannot be reached; hf download Qwen/Qwen2.5-Omni-7B"),
        ("Qwen/Qwen2.5-Omni-7b", True, "did you mean 'Qwen/Qwen2.5-Omni-7B'?"),
        ("someone/unheard-of", True, "(or --model with the checkpoint's folder)"),
    ],
)
def test_a_right_model_name_without_the_hub(
    here: Path, omniprep: Any, monkeypatch: pytest.MonkeyPatch, name: str, offline: bool, said: str
) -> None:
    from huggingface_hub import constants

    from omniprep.families import checkpoint

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("HF_HUB_CACHE", str(here))
    checkpoint._hub_file.cache_clear()
    line = the_line(omniprep("plan", "good.jsonl", "--model", name, "--bin-length", 8, "--workers", 0), 1)
    assert said in line and "not in the local cache" in line
    assert ("did you mean" in line) == (name.endswith("7b"))


def test_a_guess_is_never_the_word_itself() -> None:
    assert did_you_mean("build", ["build"]) == "" and "'builds'" in did_you_mean("build", ["build", "builds"])


def checkpoint_of(model_dir: Path, folder: Path, **changed: str | None) -> Path:
    """A checkpoint with other text in some files (None: without them; names without .json), and no weights."""
    folder.mkdir()
    for path in model_dir.glob("*.*"):
        if path.suffix in (".json", ".txt") and changed.get(path.stem, "") is not None:
            (folder / path.name).write_bytes(path.read_bytes())
    for stem, text in changed.items():
        if text is not None:
            (folder / f"{stem}.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"config": None}, "no config.json there; give a checkpoint's folder"),
        ({"config": "{bad"}, "config.json: not a JSON file"),
        ({"config": "[]"}, "config.json: holds no object"),
        ({"config": POINTER}, "config.json: is a Git LFS pointer and not the file itself; run git lfs pull"),
        ({"tokenizer": POINTER}, "tokenizer.json: is a Git LFS pointer"),
        ({"tokenizer": "{}"}, "its tokenizer cannot be loaded"),
        (
            dict.fromkeys(("tokenizer", "tokenizer_config", "vocab", "merges", "added_tokens")),
            "has no tokenizer; copy tokenizer.json",
        ),
    ],
    ids=str,
)
def test_a_checkpoint_that_is_not_whole(here: Path, omniprep: Any, model_dir: Path, changed: Any, said: str) -> None:
    folder = checkpoint_of(model_dir, here / "model", **changed)
    (folder / "merges.txt").unlink(missing_ok="merges" in changed)
    line = the_line(omniprep("plan", "good.jsonl", "--model", "model", "--bin-length", 64, "--workers", 0), 1)
    assert said in line and "model" in line


def test_a_model_that_is_a_file(here: Path, omniprep: Any) -> None:
    line = the_line(omniprep("plan", "good.jsonl", "--model", "good.jsonl", "--bin-length", 64, "--workers", 0), 1)
    assert "model 'good.jsonl': is a file; give the checkpoint's folder" in line


def test_media_that_are_not_found_name_what_was_meant(here: Path, planned: Any) -> None:
    from PIL import Image

    (here / "pics").mkdir()
    Image.new("RGB", (56, 56)).save(here / "pics" / "a.JPG", "JPEG")
    Image.new("RGB", (56, 56)).save(here / "pics" / "b.JPG", "JPEG")
    names = ["pics\\a.JPG", "pics/a.jpg", "pics/a.png", "b.png", "/etc/passwd", "s3://bucket/dir/a.png"]
    names += ["pics/a.JPG, pics/b.JPG", "/no/such.png"]
    rows = [{**ROWS[0], "images": [name]} for name in names]
    (here / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert planned("in.jsonl", "--out", "o", command="build").code == 1
    rejected = [json.loads(line)["message"] for line in (here / "o" / "rejected.jsonl").read_text().splitlines()]
    for message in rejected[:2]:
        assert message.endswith("no such file (looked in .); there is pics/a.JPG"), message
    assert rejected[2].endswith("no such file (looked in .); --media-root adds a folder")
    assert rejected[3].endswith("b.png: no such file (looked in .); --media-root adds a folder")
    assert rejected[4].endswith("lies outside .; allow its folder with --media-root /etc")
    assert rejected[5].endswith("lies outside .; allow its folder with --media-root s3://bucket/dir")
    assert rejected[6].endswith("no such file (looked in .); several media are a list of names")
    assert rejected[7].endswith("/no/such.png: no such file")


def test_rows_in_another_form_say_what_they_hold(here: Path, planned: Any) -> None:
    question, answer = ROWS[0]["messages"]
    rows: list[Any] = [
        {"messages": [[question, answer]]},
        {"messages": ["q", "a"]},
        {"messages": [{"role": "user", "text": "q"}, answer]},
        {**ROWS[0], "images": ["a.png", ["b.png"]]},
        {**ROWS[0], "images": [None]},
    ]
    (here / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    planned("in.jsonl", "--out", "o", command="build")
    messages = [json.loads(line)["message"] for line in (here / "o" / "rejected.jsonl").read_text().splitlines()]
    assert messages[0] == "message 1 is a list and not an object with role and content"
    assert messages[1] == "message 1 is a str and not an object with role and content"
    assert messages[2] == "message 1 (user) has no content (its keys: role, text)"
    assert messages[3].endswith("{bytes, path}; item 2 is of type list")
    assert messages[4].endswith("{bytes, path}; item 1 is of type NoneType")


def test_a_media_root_that_is_not_there_is_told(here: Path, planned: Any) -> None:
    (here / "media").mkdir()
    result = planned("good.jsonl", "--media-root", "meida", "--media-root", "good.jsonl")
    assert result.code == 0
    assert "--media-root meida: no such folder; did you mean 'media'?" in result.err
    assert "--media-root good.jsonl: is a file; give its folder" in result.err


class Hidden:
    """A finder of modules by which some are not installed."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        (
            "s3fs",
            ("s3://bucket/a.jsonl",),
            "s3:// needs a package that is not installed here: pip install 'omniprep[s3]'",
        ),
        ("s3fs", ("good.jsonl", "--out", "s3://bucket/out"), "pip install 'omniprep[s3]'"),
        ("s3fs", ("good.jsonl", "--media-root", "s3://bucket/media"), "pip install 'omniprep[s3]'"),
        ("gcsfs", ("gs://bucket/a.jsonl",), "pip install gcsfs"),
        ("adlfs", ("az://bucket/a.jsonl",), "pip install adlfs"),
        ("deltalake", ("delta",), "delta: reading it needs deltalake: pip install 'omniprep[delta]'"),
        ("lance", ("lance",), "lance: reading it needs pylance: pip install 'omniprep[lance]'"),
        (
            "pyiceberg",
            ("iceberg://catalog/space.table",),
            "reading it needs pyiceberg: pip install 'omniprep[iceberg]'",
        ),
    ],
)
def test_a_missing_extra_is_named_before_the_checkpoint_is_read(
    here: Path, omniprep: Any, monkeypatch: pytest.MonkeyPatch, module: str, arguments: tuple[str, ...], said: str
) -> None:
    for folder, file in (("delta/_delta_log", f"{0:020}.json"), ("lance/_versions", "1.manifest"), ("lance/data", "x")):
        (here / folder).mkdir(parents=True, exist_ok=True)
        (here / folder / file).write_text("{}")
    for protocol in ("s3", "gs", "az"):  # fsspec keeps the classes that it imported
        monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, protocol, raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(module), *sys.meta_path])
    # The checkpoint is absent as well: what is said first needs no download.
    line = the_line(omniprep("plan", *arguments, "--model", "no/model", "--bin-length", 8, "--workers", 0), 1)
    assert said in line


@pytest.mark.parametrize(
    ("module", "command", "code", "said"),
    [
        ("pillow_jxl", ("plan", "good.jsonl", "--pixel-codec", "jxl"), 2, "pip install 'omniprep[jxl]'"),
        ("prometheus_client", ("plan", "good.jsonl", "--metrics-port", "9"), 2, "pip install 'omniprep[metrics]'"),
    ],
)
def test_a_missing_package_of_an_option(
    here: Path, omniprep: Any, monkeypatch: pytest.MonkeyPatch, module: str, command: Any, code: int, said: str
) -> None:
    known = importlib.util.find_spec
    hidden = lambda name, *rest: None if name == module else known(name, *rest)  # noqa: E731
    monkeypatch.setattr("omniprep.compiler.options.find_spec", hidden)
    monkeypatch.setattr("omniprep.observe.options.find_spec", hidden)
    assert said in the_line(omniprep(*command, "--model", "no/model", "--bin-length", 8, "--workers", 0), code)


def test_a_store_that_is_there_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    from omniprep.compiler.options import check_places

    heard: list[str] = []
    uris = SimpleNamespace(
        pixel_codec="delta", inputs=("memory://a.jsonl", "https://x/a.jsonl"), media_root=(), out="o"
    )
    check_places(uris, heard.append)  # type: ignore[arg-type]
    assert heard == []


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--learning-rate", -1, "--learning-rate must be positive"),
        ("--learning-rate", "nan", "--learning-rate must be positive"),
        ("--weight-decay", -0.1, "--weight-decay must be 0 or more"),
        ("--warmup", -1, "--warmup must be 0 or more"),
        ("--max-grad-norm", -1, "--max-grad-norm must be 0 or more"),
        ("--adam-beta2", 1, "--adam-beta2 must be from 0 to below 1"),
        ("--seed", -1, "--seed must be 0 or more"),
        ("--report-to", "wandbb", "--report-to wandbb: not known; did you mean 'wandb'?"),
        ("--report-to", "mlfow", "there are: tensorboard, wandb, trackio, none"),
    ],
)
def test_options_of_training(omniprep: Any, option: str, value: Any, said: str) -> None:
    """Found before anything is imported; a package of a misspelled name is anybody's, and never advised."""
    assert said in the_line(omniprep("train", "packed", "--model", "m", "--out", "run", option, value), 2)


def test_infer_on_a_gpu_that_is_not_there(here: Path, omniprep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = the_line(omniprep("infer", "good.jsonl", "--model", "m", "--device", "cuda"), 2)
    assert "--device cuda: torch sees no GPU here" in line


def test_init_model_spares_other_folders(here: Path, omniprep: Any) -> None:
    (here / "packed").mkdir()
    (here / "packed" / "rows.parquet").write_bytes(b"")
    assert "packed holds other files; choose an empty or a new folder" in the_line(omniprep("init-model", "packed"), 1)


def test_a_multimodal_tokenizer_without_its_processor(here: Path, omniprep: Any, model_dir: Path) -> None:
    config = json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})
    checkpoint_of(model_dir, here / "model", config=config, preprocessor_config=None)
    line = the_line(omniprep("plan", "good.jsonl", "--model", "model", "--bin-length", 64, "--workers", 0), 1)
    assert "has neither preprocessor_config.json nor processor_config.json" in line


def test_a_dataset_is_no_input_and_a_repack_of_nothing_fails(here: Path, omniprep: Any, planned: Any) -> None:
    assert planned("good.jsonl", "--out", "packed", command="build").code == 0
    assert "packed: is a built dataset, and no input; omniprep repack merges" in the_line(planned("packed"), 1)
    repacked = omniprep("repack", "packed", "--bin-length", 8, "--workers", 0, "--out", "small")
    assert "small: no row was packed, all 2 were rejected (row_too_long 2)" in the_line(repacked, 1)
    assert "'--sample': -3 is not in the range" in the_line(omniprep("verify", "packed", "--deep", "--sample", -3), 2)
    page = the_line(omniprep("report", "packed", "--out", "none/page.html"), 1)
    assert page == "Error: none/page.html: No such file or directory"


def test_doctor_of_an_unknown_family(omniprep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from omniprep.doctor import families

    monkeypatch.setattr(families, "reference_findings", lambda: ())
    line = the_line(omniprep("doctor", "--family", "qwen2_5_omn"), 2)
    assert "--family qwen2_5_omn: not registered; did you mean 'qwen2_5_omni'?" in line
