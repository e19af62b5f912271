"""Risk: a dataset in a store that trains otherwise than the same one on disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_hub
import pytest
from s3_server import BUCKET, store  # noqa: F401
from train_helpers import small_family, write_dataset, write_model

from omniprep.progress import QuietReporter
from omniprep.train import run as run_module
from omniprep.train.config import TrainConfig

HERE = Path(__file__).parent
OPTIONS = {"max_steps": 3, "num_workers": 0, "logging_steps": 1, "learning_rate": 1e-3, "save_steps": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", bins=4)


def logged(out: Path) -> list[tuple[float, float]]:
    history = json.loads((out / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    return [(x["loss"], x["grad_norm"]) for x in history if "loss" in x]


def train(model: Path, data: str, out: Path, **options) -> list[tuple[float, float]]:
    given = OPTIONS | {"device": "cpu", "report_to": ("none",)} | options
    run_module.train(TrainConfig(model=str(model), data=(data,), out=str(out), **given), QuietReporter())
    return logged(out)


@pytest.fixture(scope="module")
def expected(model, data, tmp_path_factory) -> list[tuple[float, float]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "resolve_family", lambda *_: small_family(model))
        return train(model, str(data), tmp_path_factory.mktemp("local"))


def test_training_from_s3_is_training_from_disk(store, model, data, expected, tmp_path, monkeypatch):  # noqa: F811
    """With a reader process, which opens the store anew after the fork."""
    import s3fs

    s3fs.S3FileSystem(use_listings_cache=False).put(str(data), f"{BUCKET}/packed", recursive=True)
    monkeypatch.setattr(run_module, "resolve_family", lambda *_: small_family(model))
    assert train(model, f"s3://{BUCKET}/packed", tmp_path / "run", num_workers=1) == expected
    assert any("packed/shards" in path for _, path, _ in store.requests)


@pytest.mark.slow
def test_training_from_the_hub_is_training_from_disk(model, data, expected, tmp_path):
    hub, server = fake_hub.start()
    files = {str(p.relative_to(data)): p.read_bytes() for p in data.rglob("*") if p.is_file()}
    hub.repos["org/packed"] = fake_hub.Repo(private=False, branches={"main": files})
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, str(HERE / "train_worker.py"), str(model), "hf://datasets/org/packed"]
    command += [str(tmp_path / "run"), json.dumps(OPTIONS)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=HERE)
    server.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    assert logged(tmp_path / "run") == expected
    assert any("/resolve/" in line and "shards" in line for line in hub.log)
