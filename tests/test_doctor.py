"""`doctor` must notice what is missing, and a family whose counter, expansion and tensors disagree."""

import importlib.metadata

import pytest

from omniprep.checkup import decoders, fast_paths, packages
from omniprep.doctor import try_family
from omniprep.families.context import resolve_family
from omniprep.media import resample


def test_every_modality_agrees(model_dir, tmp_path):
    trials = try_family(resolve_family(str(model_dir)), tmp_path)
    assert [trial.what for trial in trials] == ["image", "audio", "video", "image + audio + video"]
    assert not any(trial.fault for trial in trials) and all(trial.counter == trial.expansion > 0 for trial in trials)


def test_a_mapper_that_loses_data_is_a_fault(model_dir, tmp_path, monkeypatch):
    ctx = resolve_family(str(model_dir))
    whole = type(ctx).map_item

    def short(self, modality, decoded):
        mapped = whole(self, modality, decoded)
        return {
            k: v[..., :-1] if k == "input_features" else v[:-1] if v.shape[-1] > 3 else v for k, v in mapped.items()
        }

    monkeypatch.setattr(type(ctx), "map_item", short)
    trials = try_family(ctx, tmp_path)
    assert all("units" in trial.fault for trial in trials), trials


def test_the_command_prints_versions_and_trials(model_dir, omniprep):
    result = omniprep("doctor", "--model", model_dir)
    assert result.code == 0 and result.out.count("ok  counter") == 4
    for text in ("transformers ", "\nmedia\n", "libsndfile", "\nfast paths\n", "words are remembered"):
        assert text in result.out, text


def test_every_package_that_is_asked_for_is_looked_for():
    found = {finding.name for finding in packages()}
    assert {"torch", "ray", "click", "peft", "s3fs"} <= found and not {"pytest", "ruff"} & found


@pytest.mark.parametrize(
    ("name", "versions", "state", "fix"),
    [
        ("soxr", {}, "missing", "pip install 'soxr>=0.5'"),
        ("click", {"click": "7.0"}, "missing", "pip install 'click>=8.1'"),
        ("peft", {}, "absent", "pip install 'omniprep[train]'"),
        ("dashscope", {}, "absent", "pip install 'omniprep[demo]'"),
    ],
)
def test_what_is_missing_is_said_with_the_command_that_installs_it(monkeypatch, omniprep, name, versions, state, fix):
    whole = importlib.metadata.version

    def version(package: str) -> str:
        if package == name:
            if package in versions:
                return versions[package]
            raise importlib.metadata.PackageNotFoundError(package)
        return whole(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    finding = next(finding for finding in packages() if finding.name == name)
    assert (finding.state, finding.fix) == (state, fix)
    if state == "missing":
        result = omniprep("doctor")
        assert result.code == 1 and f"-> {fix}" in result.out and "MISSING" in result.out and "family" not in result.out
        assert result.err.count("\n") == 1


def test_slow_ways_are_told_from_fast_ones(monkeypatch):
    fast = {finding.name: finding for finding in fast_paths()}
    assert fast["pictures"].state == "ok"
    monkeypatch.setattr(resample, "_kernels", lambda: None)
    resample._side.cache_clear()
    resample._checked.cache_clear()
    try:
        slow = {finding.name: finding for finding in fast_paths()}
    finally:
        resample._side.cache_clear()
        resample._checked.cache_clear()
    assert slow["pictures"].state == slow["video frames"].state == "slow" and "numba" in slow["pictures"].fix
    monkeypatch.setattr("omniprep.media.video.backend", lambda: "pyav")
    assert {finding.name: finding for finding in decoders()}["video"].state == "slow"


def test_an_unknown_model_is_one_line(omniprep, tmp_path):
    result = omniprep("doctor", "--model", tmp_path)
    assert result.code == 1 and "config.json" in result.err and "Traceback" not in result.err
