"""What a plan imports, and the tokenizer that is remembered so that it need import neither transformers nor torch."""

import json
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from omniprep.cli.command import announce
from omniprep.cli.plan_cmd import plan
from omniprep.families import tokenizer_cache, tokenizer_child
from omniprep.user_cache import cache_folder

SLOW = ("torch", "torchvision", "transformers", "ray", "matplotlib")
COMMANDS = f"""
import json, sys
from omniprep.cli.main import run
codes = [run(command) for command in json.loads(sys.argv[1])]
print(codes, [name for name in {SLOW!r} if name in sys.modules])
"""
ENDS = """
import atexit, sys, threading, time, types
from omniprep.cli import main

class Torn:
    def __del__(self):
        print("taken apart", flush=True)

def late():
    time.sleep(0.3)
    print("thread")

main.run = lambda: 3
sys.modules[sys.argv[1]] = types.ModuleType(sys.argv[1])
main.this_command.name = sys.argv[2]
held = Torn()
held.itself = held
atexit.register(print, "exit handler")
threading.Thread(target=late).start()
print("result")
main.main()
"""
TEXTS = ["<|im_start|>user\nHello  world<|im_end|>", "naïve ＡＢ 你好 123 <|image_pad|>", "x\n\n y"]
IDS = f"""
import json, sys
if sys.argv[2:]:
    import transformers  # so that the tokenizer is made in this process, with torch
from omniprep.families.context import resolve_family
family = resolve_family(sys.argv[1])
ids = family.encoder.encode({TEXTS!r})
print(json.dumps(["transformers" in sys.modules, ids, str(family.special_tokens), family.tokenizer_sha256]))
"""
THREADS = """
import sys
from omniprep.compiler.run.workers import single_threaded
with single_threaded():
    before = "torch" in sys.modules
    import torch
    within = torch.get_num_threads()
print(before, within, torch.get_num_threads())
"""


def last_line(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "omniprep" / "tokenizers"


def write_rows(folder: Path) -> Path:
    """A row of text and one of a picture."""
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(folder / "a.png")
    answer = {"role": "assistant", "content": "Gray."}
    rows = [
        {"messages": [{"role": "user", "content": "Which color?"}, answer]},
        {"messages": [{"role": "user", "content": "<image>Which color?"}, answer], "images": ["a.png"]},
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def imported(*commands: tuple[object, ...]) -> str:
    """Exit codes of commands in a new process, and which slow libraries they imported."""
    return last_line(COMMANDS, json.dumps([list(map(str, command)) for command in commands]))


def test_a_plan_of_text_and_images_imports_no_slow_library(model_dir, tmp_path, own_cache):
    asked = ("plan", write_rows(tmp_path), "--model", model_dir, "--bin-length", 2048, "--workers", "auto")
    for _ in range(2):  # the first reads the tokenizer in a process of its own
        assert imported(asked) == "[0] []"


def test_a_build_of_text_and_images_and_looks_into_it_import_no_slow_library(model_dir, tmp_path, own_cache):
    """The first build of a checkpoint on a machine: a process of its own compares the family with the processor."""
    out = tmp_path / "out"
    build = ("build", write_rows(tmp_path), "--model", model_dir, "--bin-length", 2048, "--out", out)
    looks = [(look, out) for look in ("inspect", "stats", "verify", "status")]
    assert imported(build, *looks) == "[0, 0, 0, 0, 0] ['matplotlib']", "which draws the report"
    assert list((own_cache.parent / "checked").iterdir()), "the family was not compared"


def test_sound_and_video_need_torch_and_none_of_its_friends(model_dir, tmp_path):
    samples = Path(__file__).parents[1] / "data_samples"
    inputs = (samples / "audio.jsonl", samples / "video.jsonl")
    build = ("build", *inputs, "--model", model_dir, "--bin-length", 4096, "--out", tmp_path / "out")
    assert imported(build) == "[0] ['torch', 'matplotlib']"


def test_a_remembered_tokenizer_is_that_of_transformers_and_of_these_files_alone(
    model_dir: Path, tmp_path: Path, own_cache: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model_dir / name).read_bytes())
    by_transformers = json.loads(last_line(IDS, folder, "import"))
    assert by_transformers[0] and not own_cache.exists()
    first, again = (json.loads(last_line(IDS, folder)) for _ in range(2))
    assert (first[0], again[0]) == (False, False) and first[1:] == again[1:] == by_transformers[1:]

    (kept,) = own_cache.iterdir()
    content = kept.read_bytes()
    kept.write_bytes(content.replace(b"im_start", b"im_begin"))
    assert json.loads(last_line(IDS, folder)) == first
    assert kept.read_bytes() == content, "a damaged file is written again"

    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|endoftext|>"}))
    changed = json.loads(last_line(IDS, folder))
    assert "eos_token='<|endoftext|>'" in changed[2] and len(list(own_cache.iterdir())) == 2


def test_a_tokenizer_whose_class_needs_torch_is_made_with_it(
    model_dir: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would take a more general class without a word; here it is a class that the checkpoint misnames."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((model_dir / name).read_bytes())
    settings = json.loads((model_dir / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "NoSuchTokenizer"}))
    asked = []
    monkeypatch.setattr(tokenizer_child, "call_in_child", lambda function, argument: asked.append(argument) or b"again")
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch"))
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    assert tokenizer_child.write_tokenizer({"model": str(folder), "hides_torch": True}) == b"again"
    assert asked == [{"model": str(folder), "hides_torch": False}]


def test_a_tokenizer_that_cannot_be_made_is_told_in_one_line(model_dir: Path, tmp_path: Path, own_cache: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    (folder / "tokenizer.json").write_text("{}")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": []}\n')
    command = [sys.executable, "-m", "omniprep", "plan", rows, "--model", folder, "--bin-length", "64"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "its tokenizer cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr and not own_cache.exists()


def test_a_terminal_is_told_at_once_what_is_read_and_that_the_first_time_takes_longer(
    model_dir: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def told() -> list[str]:
        with click.Context(plan):
            announce("plan", ["a.jsonl", "b.jsonl"], str(model_dir), quiet=False)
        return capsys.readouterr().err.splitlines()

    first, second = told()
    assert first == f"plan of a.jsonl and 1 more for {model_dir}"
    assert second.startswith(f"first use of {model_dir} on this machine: ")
    path = tokenizer_cache._path(str(model_dir))
    assert path is not None
    path.parent.mkdir(parents=True)
    path.touch()
    assert told() == [first]


@pytest.mark.parametrize("model", ["/no/such/folder", "a/b/c", "no/such-model"])
def test_a_model_that_is_not_there_is_left_to_who_reads_it(model: str) -> None:
    assert not tokenizer_cache.is_new(model)


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    folder = cache_folder("tokenizers")
    assert not folder.exists()
    with pytest.raises(OSError):
        folder.mkdir(parents=True)


def test_once_transformers_is_imported_nothing_is_taken_from_the_cache(model_dir, own_cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", sys)
    assert tokenizer_cache.stored_tokenizer(str(model_dir)) is None


@pytest.mark.parametrize(
    ("module", "command", "at_once"), [("torch", "build", True), ("torch", "train", False), ("json", "build", False)]
)
def test_a_process_with_torch_ends_whole_without_being_taken_apart(module: str, command: str, at_once: bool) -> None:
    """Which takes 0.8 s of CPU. Threads are awaited, exit handlers run, and what was printed arrives in a pipe."""
    done = subprocess.run([sys.executable, "-c", ENDS, module, command], capture_output=True, text=True)
    assert done.returncode == 3 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines == ["result", "thread", "exit handler", *([] if at_once else ["taken apart"])]


def test_torch_that_is_imported_while_rows_are_made_has_one_thread():
    before, within, _ = last_line(THREADS).split()
    assert (before, within) == ("False", "1")
