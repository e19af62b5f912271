"""`doctor` must notice what is missing, and a family whose counter, expansion and tensors disagree."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from qwen_omni_utils.v2_5 import vision_process

from omniprep.doctor.families import reference_findings, try_family
from omniprep.doctor.machine import decoders, fast_paths, packages
from omniprep.families.context import resolve_family


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


def test_each_package_has_one_line():
    """Training asks for a newer transformers than the rest does: still one line, the worse of the two."""
    names = [finding.name.lower().replace("_", "-") for finding in packages()]
    assert len(names) == len(set(names))


def test_a_package_that_one_part_alone_finds_too_old_says_so(monkeypatch):
    asked = ["transformers<6,>=4.57", 'transformers>=5; extra == "train"', "click>=8.1"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda package: asked)
    monkeypatch.setattr(
        importlib.metadata, "version", lambda package: {"transformers": "4.57.1", "click": "8.2"}[package]
    )
    found = {finding.name: finding for finding in packages()}
    assert set(found) == {"transformers", "click"} and found["click"].state == "ok"
    assert found["transformers"].state == "absent" and "omniprep train" in found["transformers"].text


def test_the_sizes_and_frame_choices_equal_the_installed_qwen_omni_utils(omniprep, model_dir):
    findings = reference_findings()
    assert [finding.state for finding in findings] == ["ok"] * 5, findings
    counts = [int(finding.text.split()[0]) for finding in findings]
    assert counts[0] > 2000 and counts[1] > 1000 and counts[2] > 5000 and counts[3] > 1000 and counts[4] >= 8
    result = omniprep("doctor", "--model", model_dir)
    assert result.code == 0 and "frames taken         ok" in result.out


def test_a_version_that_chooses_otherwise_is_named_with_the_first_input(monkeypatch, omniprep, model_dir):
    whole = vision_process.smart_nframes

    def other(ele, total_frames, video_fps):
        return whole(ele, total_frames, video_fps) + 2 * (total_frames == 121 and video_fps == 30.0)

    monkeypatch.setattr(vision_process, "smart_nframes", other)
    finding = next(f for f in reference_findings() if f.state != "ok")
    assert (finding.name, finding.state) == ("frames taken", "differs")
    asked = "121 frames at 30 a second, asked for 0.5 a second, 4 to 768 frames"
    assert f"gives 6 for {asked}; omniprep gives 4" in finding.text
    result = omniprep("doctor", "--model", model_dir)
    assert result.code == 1 and "DIFFERS" in result.out and "121 frames at 30 a second" in result.out
    assert result.err == "1 fault\n"


def test_sizes_that_differ_are_a_fault_but_the_lost_floor_of_thin_pictures_is_none(monkeypatch):
    whole = vision_process.smart_resize

    def floorless(height, width, factor=28, min_pixels=None, max_pixels=None):
        h, w = whole(height, width, factor, min_pixels, max_pixels)
        return (0, w) if height == 3 and h == factor else (h, w)

    monkeypatch.setattr(vision_process, "smart_resize", floorless)
    assert reference_findings()[0].state == "ok"
    monkeypatch.setattr(vision_process, "smart_resize", lambda *a, **k: tuple(s + 28 for s in whole(*a, **k)))
    images, frames = reference_findings()[:2]
    assert images.state == frames.state == "differs" and "a picture of 1x1" in images.text


def test_qwen_omni_utils_is_a_core_dependency():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert any(text.startswith("qwen-omni-utils") for text in project["dependencies"])


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


def test_slow_ways_are_told_from_fast_ones(monkeypatch, fresh_python):
    assert {finding.name: finding for finding in fast_paths()}["pictures"].state == "ok"
    code = "import sys; sys.modules['numba'] = None\nfrom omniprep.doctor.machine import fast_paths\n"
    code += "for finding in fast_paths(): print(finding.name, finding.state, finding.fix, sep='|')"
    slow = {name: rest for name, *rest in (line.split("|") for line in fresh_python(code).splitlines())}
    assert slow["pictures"][0] == slow["video frames"][0] == "slow" and "numba" in slow["pictures"][1]
    monkeypatch.setattr("omniprep.media.video.backend", lambda: "pyav")
    assert {finding.name: finding for finding in decoders()}["video"].state == "slow"


def test_an_unknown_model_is_one_line(omniprep, tmp_path):
    result = omniprep("doctor", "--model", tmp_path)
    assert result.code == 1 and "config.json" in result.err and "Traceback" not in result.err


def test_packages_of_an_extra_that_is_absent_are_one_line(capsys):
    from omniprep.cli.doctor_cmd import show
    from omniprep.doctor.machine import Finding

    absent = [Finding(name, "absent", "not installed; training needs it", "pip install x") for name in ("peft", "trl")]
    show(
        "packages",
        [Finding("click", "ok", "8.1"), *absent, Finding("s3fs", "absent", "not installed", "pip install y")],
    )
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split("  -> ")[-1] for line in lines[1:]] == ["pip install x", "pip install y"]
    assert lines[1].startswith("  peft, trl ")


def test_what_is_meant_to_differ_is_said_once():
    from omniprep.doctor.families import FamilyReport

    known = set()
    first, second = (FamilyReport(name, "1", "here", against="its processor") for name in ("a", "b"))
    first.meant = {"tail": "nothing follows it"}
    second.meant = {"tail": "nothing follows it", "mask": "no padding"}
    assert list(first.lines(known))[-2:] == ["  what differs and is meant to:", "    tail: nothing follows it"]
    assert list(second.lines(known))[-2:] == ["  what differs and is meant to, as above: tail:", "    mask: no padding"]
