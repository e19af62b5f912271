"""Every command and every piece of Python in the tutorials runs, in order, on the repository's sample data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import fake_hub
import pytest
from conftest import ROOT

TUTORIALS = ("first-dataset.md", "sharing.md", "migrating-from-ms-swift.md")


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS)
def test_tutorial_runs(page, model_dir, tmp_path):
    for name in ("data_samples", "pipelines"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "build" / "demo").mkdir(parents=True)
    (tmp_path / "build" / "demo" / "model").symlink_to(model_dir)
    hub, server = fake_hub.start()
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    blocks = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert blocks
    for language, text in blocks:
        # The model is there already: making it is a test of its own.
        lines = [line for line in text.splitlines() if not line.startswith("omniprep init-model")]
        shell = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
        done = subprocess.run([*shell, "\n".join(lines)], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    server.shutdown()
