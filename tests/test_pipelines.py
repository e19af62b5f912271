"""Every recipe in pipelines/ runs as it stands on the sample data; only model, output and workers are the test's."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from omniprep.cli.options import make_config
from omniprep.config import BuildConfig
from omniprep.train.config import TrainConfig

PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))
TRAIN = {"mixed_train.yaml"}
# Their inputs lie in an object store, which tests/test_s3.py brings along.
ELSEWHERE = {"s3_cluster.yaml"}
BUILDS = [path for path in PIPELINES if path.name not in TRAIN | ELSEWHERE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_recipe_is_valid_and_commented(path):
    make_config(TrainConfig if path.name in TRAIN else BuildConfig, {}, str(path))
    text = path.read_text()
    assert text.startswith("#") and f"pipelines/{path.name}" in text


@pytest.mark.parametrize("path", BUILDS, ids=lambda path: path.stem)
def test_recipe_builds(path, folder, model_dir, omniprep, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = folder / path.stem
    done = omniprep("build", "--config", path, "--model", model_dir, "--out", out, "--workers", 0, "--quiet")
    assert done.code == 0, done.err
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    broken = any("*" in name for name in yaml.safe_load(path.read_text())["inputs"])
    assert counts["bins"] > 0 and (counts["rows"]["rejected"] == 0) != broken, counts


def test_mixed_training_runs(folder, model_dir, omniprep, monkeypatch):
    pytest.importorskip("peft", reason="training wants omniprep[train]")
    monkeypatch.chdir(ROOT)
    path = ROOT / "pipelines" / "mixed_train.yaml"
    data = []
    for entry in yaml.safe_load(path.read_text())["data"]:
        name, weight = Path(entry).name.split(":")
        assert (folder / name / "manifest.json").exists(), "test_recipe_builds comes first"
        data.append(f"{folder / name}:{weight}")
    run = ("--model", model_dir, "--out", folder / "run", "--device", "cpu", "--max-steps", 2, "--quiet")
    done = omniprep("train", *data, "--config", path, *run)
    assert done.code == 0, done.err
    assert (folder / "run").is_dir()
