"""Fixtures that several files share: a small checkpoint, and the command line as a function."""

import atexit
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import fake_hub
import pytest

# Tests never reach out: a missing checkpoint must fail here, not ask the Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# Builds remember there that a family equals its processor; a test must not trust what another version wrote.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="omniprep-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "data_samples"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen2.5-Omni checkpoint; OMNIPREP_TEST_MODEL names one that exists, to save its 15 seconds."""
    given = os.environ.get("OMNIPREP_TEST_MODEL")
    if given:
        return Path(given)
    pytest.importorskip("dashscope", reason="the Qwen vocabulary comes with dashscope (omniprep[demo])")
    from omniprep.testing.init_model import init_model

    return init_model(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="session")
def omniprep() -> Callable[..., Result]:
    """Run a command line in this process; the result has its exit code and both streams."""
    from omniprep.cli.main import run

    def call(*args: object) -> Result:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = run([str(arg) for arg in args])
            except SystemExit as exit:
                code = int(exit.code or 0)
        return Result(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def fresh_python() -> Callable[[str], str]:
    """Run code in a new interpreter and return what it prints; for tests of what an import brings in."""
    import subprocess

    def call(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        return done.stdout

    return call


@pytest.fixture
def hub() -> Iterator[fake_hub.Hub]:
    """A Hugging Face Hub on localhost, empty."""
    hub, server = fake_hub.start()
    yield hub
    server.shutdown()


@pytest.fixture
def python(hub: fake_hub.Hub, tmp_path: Path) -> fake_hub.Python:
    """Run Python or omniprep with `hub` as the Hub; asserts the exit code (`code`, default 0)."""
    return fake_hub.python_with_hub(hub, tmp_path / "hf")
