"""A family that makes another row than the checkpoint's own processor is named by doctor and refused by build."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from omniprep.compiler.oracle import quick, trial
from omniprep.compiler.oracle.chats import dummy_chats
from omniprep.compiler.oracle.trial import chats_for, family_without_options, oracle_of, try_chats
from omniprep.errors import OmniprepError
from omniprep.families.context import resolve, resolve_family
from omniprep.testing.init_model import init_model

FAMILIES = {
    "qwen2_5_omni": {"image", "audio", "video"},
    "qwen3_omni": {"image", "audio", "video"},
    "qwen2_vl": {"image", "video"},
    "qwen2_5_vl": {"image", "video"},
    "qwen3_vl": {"image", "video"},
    "qwen2_audio": {"audio"},
}
PLUGIN = """
import numpy as np
from dataclasses import replace
from omniprep.families.kinds import Expansion
from omniprep.families.qwen.qwen2_vl import Qwen25VL
from omniprep.registry import REGISTRY, Departure


@REGISTRY.register_family("faulty", version="1")
class Faulty(Qwen25VL):
    {body}
"""
FAULTS = {
    "mean": (
        "image_mean = (0.5, 0.5, 0.5)\n    def patches_params(self, settings):\n"
        "        return {**super().patches_params({}), 'mean': (0.5, 0.5, 0.5)}",
        r"pixel_values differs in .* the processor has .*as another mean or std would make them",
    ),
    "count": (
        "def count_tokens(self, modality, meta):\n        return super().count_tokens(modality, meta) + 1",
        r"input_ids differ from token \d+ on \(138 tokens, the processor has 138\)",
    ),
    "text": (
        "chat_template = replace(Qwen25VL.chat_template, default_system='You are another assistant.')",
        r"dummy row 'text': input_ids differ from token \d+ on .*another assistant",
    ),
    "a tag, which has no label": (
        "tags = {**Qwen25VL.tags, 'image': '<|vision_start|><|image_pad|>'}",
        r"dummy row 'image: odd': input_ids differ",
    ),
    "order of patches": (
        "def image_pixels(self, item):\n        return np.ascontiguousarray(super().image_pixels(item)[::-1])",
        r"dummy row 'image: odd': pixel_values differs in",
    ),
    "positions": (
        "def positions(self, sample):\n        found = super().positions(sample)\n"
        "        return None if found is None else np.maximum(found - 1, 0)",
        r"positions differ from token \d+ on",
    ),
}


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory):
    return init_model(tmp_path_factory.mktemp("models") / "vision", "qwen2_5_vl")


@pytest.fixture
def rows(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)).save(tmp_path / "a.png")
    messages = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "Noise."}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages, "images": ["a.png"]}) + "\n")
    return tmp_path / "rows.jsonl"


@pytest.fixture
def build(omniprep, rows, vision_model, tmp_path):
    def call(*more, out="out"):
        options = ("--model", vision_model, "--bin-length", 2048, "--workers", 0, "--out", tmp_path / out, "--quiet")
        return omniprep("build", rows, *options, *more)

    return call


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "omniprep" / "checked"


def faulty(folder, body):
    path = folder / "faulty.py"
    path.write_text(PLUGIN.replace("{body}", body))
    return path


def test_dummy_chats_have_every_kind_of_row():
    chats = dummy_chats(["image", "audio", "video"])
    assert [len(chat.media) for chat in chats if chat.name.startswith("image:")] == [1, 2, 1, 1, 1, 1, 1, 5, 1, 1]
    assert any(chat.tools for chat in chats) and any(chat.turns[0][0] == "system" for chat in chats)
    assert {name for chat in chats for name in chat.modalities} == {"image", "audio", "video"}
    assert {modality for chat in chats if chat.quick for modality in chat.modalities} == {"image", "audio", "video"}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_qwen_family_equals_its_processor(name, model_dir, tmp_path):
    folder = model_dir if name == "qwen2_5_omni" else init_model(tmp_path / name, name)
    ctx = family_without_options(resolve_family(str(folder)))
    oracle = oracle_of(ctx)
    assert oracle.name.startswith("Qwen") and "qwen_omni_utils" in oracle.name
    slow = ("many", "two", "long", "tiny", "in a later turn", "behind")  # of sound: a second for each 300 s of padding
    chats = [c for c in chats_for(ctx, oracle, quick=False) if "audio" not in c.name or not c.name.endswith(slow)]
    trials = list(try_chats(ctx, oracle, chats))
    assert {modality for chat in chats for modality in chat.modalities} == FAMILIES[name]
    assert [trial.comparison.faults for trial in trials if trial.comparison.faults] == []
    taken = [trial for trial in trials if not trial.rejected]
    assert all("input_ids" in trial.comparison.equal for trial in taken) and len(taken) >= len(chats) - 1
    pixels = {name for trial in taken for name in trial.comparison.equal}
    assert {"pixel_values", "pixel_values_videos", "input_features"} & pixels and "tail" in taken[0].comparison.meant
    if "image" in FAMILIES[name]:
        assert all("positions" in trial.comparison.equal for trial in taken)


@pytest.mark.parametrize("name", ["internvl", "gemma3", "llava_onevision", "smolvlm", "audioflamingo3", "glm4v"])
def test_families_that_the_processor_makes_equal_it(name, tmp_path):
    """Tiles, text of items, arrays of one value a token, padding, windows of sound, time stamps of videos."""
    ctx = family_without_options(resolve_family(str(init_model(tmp_path / name, name)), "hf"))
    oracle = oracle_of(ctx)
    chats = chats_for(ctx, oracle, quick=False)
    trials = list(try_chats(ctx, oracle, chats))
    assert [trial.comparison.faults for trial in trials if trial.comparison.faults] == []
    taken = [trial for trial in trials if not trial.rejected]
    assert len(taken) >= len(chats) - 2 and {"pixel_values", "input_features"} & set(taken[4].comparison.equal)
    assert all("tail" not in trial.comparison.meant for trial in taken)


@pytest.mark.parametrize("name", FAULTS)
def test_build_refuses_a_family_that_differs_and_names_it(name, build, tmp_path, own_cache):
    body, said = FAULTS[name]
    plugin = faulty(tmp_path, body)
    result = build("--plugin", plugin, "--family", "faulty")
    assert result.code == 1 and result.err.count("\n") == 1, result.err
    assert re.search(said, result.err), result.err
    assert (
        "family 'faulty': dummy row" in result.err and "--family hf" in result.err and "omniprep doctor" in result.err
    )
    assert not (tmp_path / "out" / "plan").exists() and not own_cache.exists()


def test_doctor_names_each_row_that_differs(omniprep, vision_model, tmp_path):
    plugin = faulty(tmp_path, FAULTS["order of patches"][0])
    options = ("--model", vision_model, "--plugin", plugin, "--family", "faulty", "--no-logits")
    result = omniprep("doctor", *options)
    faults = [line for line in result.out.splitlines() if "FAULT" in line]
    assert result.code == 1 and len(faults) == 11 and all("pixel_values differs" in line for line in faults)
    assert result.out.count(" ok  ") > 10  # text and videos are not touched by it
    as_json = omniprep("doctor", *options, "--json")
    report = json.loads(as_json.out)
    assert as_json.code == 1 and report["faults"] == 11
    (family,) = report["families"]
    assert family["name"] == "faulty" and family["against"].startswith("Qwen2_5_VLProcessor of transformers")
    wrong = [row["chat"] for row in family["rows"] if row["comparison"]["faults"]]
    assert len(wrong) == 11 and "image: odd" in wrong and "text" not in wrong
    assert "tail" in family["meant"]


def test_what_a_family_says_is_meant_is_no_fault_but_is_said(build, tmp_path, own_cache):
    body = FAULTS["order of patches"][0]
    body += (
        "\n    departures = (Departure(what='pixel_values', reason='patches are stored backwards', modality='image'),)"
    )
    result = build("--plugin", faulty(tmp_path, body), "--family", "faulty")
    assert result.code == 0, result.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["checked"]["meant"]["pixel_values"] == "patches are stored backwards"


def test_a_check_is_made_once_and_stands_in_the_manifest(build, tmp_path, own_cache, monkeypatch):
    assert build().code == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["reference"] == "ms-swift 3.9.3"
    assert manifest["checked"]["against"].startswith("Qwen2_5_VLProcessor of transformers ")
    assert manifest["checked"]["rows"] == len([c for c in dummy_chats(["image", "video"]) if c.quick])
    assert len(list(own_cache.iterdir())) == 1
    monkeypatch.setattr(trial, "oracle_of", lambda ctx: pytest.fail("the check was made again"))
    assert build(out="again").code == 0
    again = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert again["checked"] == manifest["checked"]


def test_another_checkpoint_at_the_same_path_is_checked_again(vision_model, tmp_path, own_cache):
    folder = tmp_path / "model"
    shutil.copytree(vision_model, folder)
    quick.check_family(resolve_family(str(folder)), print)
    before = set(own_cache.iterdir())
    quick.check_family(resolve_family(str(folder)), print)
    assert set(own_cache.iterdir()) == before and len(before) == 1
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "note": 1}))
    quick.check_family(resolve_family(str(folder)), print)
    assert len(set(own_cache.iterdir())) == 2


def test_settings_that_change_within_a_process_are_read_again(vision_model, tmp_path, own_cache):
    """As between two builds of a notebook; also where size and time of the file are as they were."""
    folder = tmp_path / "model"
    shutil.copytree(vision_model, folder)

    def change(name, key, value):
        path = folder / name
        before, settings = path.stat(), json.loads(path.read_text())
        path.write_text(json.dumps({**settings, key: value}))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    change("preprocessor_config.json", "max_pixels", 500_000)
    change("tokenizer_config.json", "model_max_length", 500)
    family = resolve_family(str(folder))
    assert (family.preprocessor["max_pixels"], family.tokenizer.model_max_length) == (500_000, 500)
    quick.check_family(family, print)
    assert resolve_family(str(folder)) is family
    change("preprocessor_config.json", "max_pixels", 400_000)
    change("tokenizer_config.json", "model_max_length", 400)
    assert resolve(family.spec) is family, "a build keeps the family that it began with"
    family = resolve_family(str(folder))
    assert (family.preprocessor["max_pixels"], family.tokenizer.model_max_length) == (400_000, 400)
    quick.check_family(family, print)
    assert len(list(own_cache.iterdir())) == 2


def test_settings_that_a_hand_written_family_does_not_read_are_named(vision_model, tmp_path, own_cache):
    """A checkpoint whose processor does not normalize: the family does."""
    folder = tmp_path / "model"
    shutil.copytree(vision_model, folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "do_normalize": False}))
    with pytest.raises(OmniprepError, match=r"'image: odd': pixel_values differs .* --family hf"):
        quick.check_family(resolve_family(str(folder)), print)


def test_a_checkpoint_without_a_processor_is_said_not_to_be_compared(omniprep, tmp_path, own_cache):
    import toy

    model, rows = toy.write_checkpoint(tmp_path / "model"), toy.write_rows(tmp_path / "rows", 4)
    options = ("--model", model, "--plugin", toy.FAMILY, "--bin-length", 256, "--workers", 0, "--quiet")
    result = omniprep("build", rows, *options, "--out", tmp_path / "out")
    assert result.code == 0 and "family toy_vl: rows are not compared with a processor" in result.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["checked"].keys() == {"not_compared"} and not own_cache.exists()
    result = omniprep("doctor", "--model", model, "--plugin", toy.FAMILY)
    assert result.code == 0 and "not compared with a processor" in result.out


def test_a_cache_that_cannot_be_written_is_said(vision_model, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said = []
    result = quick.check_family(resolve_family(str(vision_model)), said.append)
    assert result["rows"] == 6 and "cannot be remembered" in said[0]


def test_logits_of_packed_rows_equal_the_plain_forward(omniprep, vision_model):
    result = omniprep("doctor", "--model", vision_model, "--logits", "--json")
    (family,) = json.loads(result.out)["families"]
    assert result.code == 0 and {trial["what"] for trial in family["logits"]} >= {"text", "image: two", "long text"}
    assert not any(trial["fault"] for trial in family["logits"])
