"""What the tests of dying builds share: chats with small media, a family whose decoders really die, builds in forked
processes."""

import faulthandler
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omniprep import io

# Widths of images on which the planted family dies, while a header is counted (plan) or while pixels are mapped
# (encode).
DEADLY = {
    "plan_crash": 203,
    "plan_hang": 231,
    "plan_memory": 259,
    "crash": 287,
    "hang": 315,
    "memory": 343,
    "exit": 371,
}
PLUGIN = f"""
import os, signal, time
from omniprep.families.qwen.qwen2_5_omni import Qwen25Omni
from omniprep.registry import REGISTRY

D = {DEADLY!r}

def die(how):
    if how == "crash": os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang": time.sleep(3600)
    if how == "exit": os._exit(3)
    if how == "memory":
        hoard = []
        while True: hoard.append(bytearray(b"x" * (16 << 20)))

def count(ctx, meta):
    for name, width in D.items():
        if name.startswith("plan_") and meta.width == width: die(name[5:])
    return Qwen25Omni.count_tokens(ctx, "image", meta)

def mapped(ctx, items):
    for name, width in D.items():
        if not name.startswith("plan_") and items[0].meta.width == width: die(name)
    return Qwen25Omni.map_items(ctx, "image", items)

@REGISTRY.register_family("deadly")
@REGISTRY.register_token_counter("image", count)
@REGISTRY.register_image_input_mapper(mapped)
class Deadly(Qwen25Omni):
    pass
"""


def make_chats(folder: Path, rows: int = 24, deadly: tuple[str, ...] = (), seed: int = 0, files: int = 2) -> list[Path]:
    """JSONL chats: a third with an image of their own, the deadly ones spread among them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    at = {int((n + 0.5) * rows / len(deadly)): how for n, how in enumerate(deadly)}
    written: list[list[str]] = [[] for _ in range(files)]
    for number in range(rows):
        row: dict[str, Any] = {
            "messages": [
                {"role": "user", "content": f"question {number} " + "word " * int(rng.integers(1, 40))},
                {"role": "assistant", "content": "answer " * int(rng.integers(1, 30))},
            ]
        }
        if number in at or number % 3 == 0:
            size = (
                (DEADLY[at[number]], 56) if number in at else (int(rng.integers(30, 120)), int(rng.integers(30, 120)))
            )
            name = f"{number}.png"
            Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(folder / name)
            row["messages"][0]["content"] = "<image>" + row["messages"][0]["content"]
            row["images"] = [name]
        written[number * files // rows].append(json.dumps(row))
    paths = [folder / f"chats{n}.jsonl" for n in range(files)]
    for path, lines in zip(paths, written, strict=True):
        path.write_text("\n".join(lines) + "\n")
    return paths


def plant(folder: Path) -> Path:
    path = folder / "deadly_family.py"
    path.write_text(PLUGIN)
    return path


def outcome(out: Path) -> dict[str, str]:
    """SHA-256 of every file of a finished dataset that must not depend on how the build went."""
    names = [*(out / "shards").iterdir(), *(out / n for n in ("index.parquet", "rows.parquet", "rejected.jsonl"))]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(names)}


def codes(out: Path) -> dict[str, int]:
    counts: dict[str, int] = json.loads((out / "manifest.json").read_text())["counts"]["rejected_by_code"]
    return counts


def warm(model: Path, plugin: Path | None = None) -> None:
    """Import what a build needs and make the family once, so that forked builds start in milliseconds."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch

    from omniprep.families.context import resolve_family

    torch.set_num_threads(1)
    family = resolve_family(str(model), "deadly" if plugin else None, (str(plugin),) if plugin else ())
    assert family.encoder.encode(["warm"])


def in_fork(work: Callable[[], int | None], log: Path | None = None) -> int:
    """Start `work` in a forked process (a session of its own) and return its pid; what it prints goes to `log`."""
    pid = os.fork()
    if pid:
        return pid
    try:
        faulthandler.disable()  # pytest turns it on; a planted crash is no news
        os.setsid()
        target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        status = work() or 0
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    except BaseException as error:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
        sys.stderr.flush()
        os._exit(99)


def wait_for(pid: int, seconds: float = 300) -> int:
    """Exit status of a forked process (negative: the signal that ended it)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"the build did not end within {seconds} s")


def command(inputs: list[Path], model: Path, out: Path, *more: object) -> list[str]:
    fixed = ["--model", model, "--bin-length", 512, "--shard-size", 24_000, "--out", out, "--workers", 0]
    return [str(a) for a in ("build", *inputs, *fixed, *more)]


def run_cli(args: list[str]) -> int:
    from omniprep.cli.main import run

    return run(args)


def built_locally(folder: Path, lake: str, model_dir: Path, omniprep: Any) -> tuple[Path, Path]:
    """Folders of chats, which are also put into a store under lake/in, and of a local build of them."""
    inputs = make_chats(folder / "in")
    done = omniprep(*command(inputs, model_dir, folder / "out"))
    assert done.code == 0, done.err
    for path in (folder / "in").iterdir():
        io.write_atomic(f"{lake}/in/{path.name}", path.read_bytes())
    return folder / "in", folder / "out"
