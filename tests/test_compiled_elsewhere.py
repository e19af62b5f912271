"""Nobody waits for numba's compiler: a process of its own compiles, once a machine, and all that is called later."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from omniprep.media import compiled
from omniprep.media.compiled import UNKEPT_AFTER, CompiledElsewhere

COMPILER = """
from pathlib import Path
from omniprep.media.compiled import CompiledElsewhere, answer_of_compiler

HERE = CompiledElsewhere("compiler_of_test:run", Path(__file__))

def run(argument):
    with HERE.compiling():
        with Path(__file__).with_name("runs").open("a") as file:
            file.write("x")
    return answer_of_compiler()

def fail(argument):
    raise RuntimeError("numba has no folder for compiled code")
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that a child can import, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "compiler_of_test.py"
    path.write_text(COMPILER)
    return path


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_child_compiles_once_a_machine_and_anew_after_a_change(source: Path) -> None:
    runs = source.with_name("runs")
    first = CompiledElsewhere("compiler_of_test:run", source)
    assert not first.is_ready(128), "the first picture of all would wait for the compiler"
    wait_for(lambda: first.is_ready(128))
    assert first.mark.exists() and runs.read_text() == "x"

    assert CompiledElsewhere("compiler_of_test:run", source).is_ready(128), "a later process has to start no child"
    assert runs.read_text() == "x"

    os.utime(source, ns=(0, 0))
    changed = CompiledElsewhere("compiler_of_test:run", source)
    assert changed.mark != first.mark and not changed.is_ready(128)
    wait_for(lambda: changed.is_ready(128))
    assert runs.read_text() == "xx"


def test_no_second_child_while_one_compiles(source: Path) -> None:
    here = CompiledElsewhere("compiler_of_test:run", source)
    with here.compiling():
        assert not here.is_ready(10**6)
        assert here._child is None
    assert here.is_ready(128) and not source.with_name("runs").exists()


def test_a_child_that_fails_leaves_the_work_to_the_libraries(source: Path) -> None:
    """Until they have cost more than compiling here, which may still be possible."""
    here = CompiledElsewhere("compiler_of_test:fail", source)
    assert not here.is_ready(128)
    assert here._child is not None
    wait_for(lambda: here._child.poll() is not None)
    assert not here.is_ready(UNKEPT_AFTER - 1) and not here.mark.exists()
    assert here.is_ready(UNKEPT_AFTER)


def test_without_numba_there_is_no_child(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_versions", list)
    here = CompiledElsewhere("compiler_of_test:run", source)
    assert not here.is_ready(10**6) and here._child is None


def test_without_a_cache_folder_each_process_has_a_child(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    here = CompiledElsewhere("compiler_of_test:run", source)
    assert not here.is_ready(128)
    wait_for(lambda: here.is_ready(128))
    assert source.with_name("runs").read_text() == "x"


def test_the_child_calls_all_that_pictures_need(fresh_python: Callable[[str], str]) -> None:
    """Each type of argument is compiled for itself: one that the child leaves out is waited for in the foreground."""
    code = """
import numpy as np
from PIL import Image
from omniprep.media import kernels, resample
from omniprep.shards.codecs import delta, delta_kernels
from omniprep.shards.codecs.picture import PictureShape

def signatures():
    functions = {**vars(kernels), **vars(delta_kernels)}
    return {name: len(f.signatures) for name, f in functions.items() if hasattr(f, "signatures")}

print(resample.compile_kernels({}), delta.compile_kernels({}))
before = signatures()
noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
shape, codec = PictureShape(1, 336, 448, 14, 14, 2), delta.Codec()
for size in ((448, 336), (640, 336), (448, 480)):  # both passes, the vertical and the horizontal one alone
    resample.resize(Image.fromarray(noise), size)
resample.resize(Image.new("RGB", (3000, 2000)), (448, 336))  # in strips
frames = resample.resize(noise[None], (448, 336))
patches = np.zeros(shape.size, np.uint8)
shape.fill_patches(patches, frames)
codec.decode(memoryview(codec.encode(patches, shape)), shape, np.zeros_like(patches))
codec.encode(np.frombuffer(patches.tobytes(), np.uint8), shape)
print(signatures() == before, [name for name, count in signatures().items() if count != before[name]])
"""
    compiled_lines, same = fresh_python(code).splitlines()
    assert compiled_lines == "b'compiled' b'compiled'" and same == "True []"
