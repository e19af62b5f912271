"""Types of transformers through the family that is made of their own processor: built, compared bit by bit, trained,
and their packed logits held against their own forward pass (chat_trial.py; all types: docs/chat-models.md).
"""

import json
import re
import subprocess
import sys

import pytest
from chat_trial import TOLERANCE, Trial, differences, run_trial, wrong_logits
from conftest import ROOT

from omniprep.families.chat_models import TRIALS, ChatModel, chat_models, describe_all, family_for, tried_models

# Those with a path of their own too, and five that have none.
QUICK = ("gemma3", "glm4v", "internvl", "llava_onevision", "qwen3_5", "smolvlm", "audioflamingo3")
ALONE = ("aya_vision", "idefics3", "lfm2_vl", "llava_next", "mistral3")
SLOW = (
    "qwen3_5_moe",
    "qwen2_vl",
    "gemma4",
    "cohere2_vision",
    "glmasr",
    "ovis2",
    "muse_glimmer",
    "qwen2_audio",
    "glmga",  # a config of its own and the class of another type
    "llama4",  # pixels in bfloat16
    "step3p7",  # tiles of large pictures alone
    "cosmos3_edge",  # token types for those alone who ask its processor
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # of small tensors, several are slower
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("model_type", [*QUICK, *ALONE, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_type_is_exact(model_type, tmp_path):
    trial = run_trial(model_type, tmp_path)
    assert trial.exact, trial
    assert trial.modalities, "text alone shows nothing"


def test_the_comparison_notices_what_differs():
    import torch

    ours = {"input_ids": torch.tensor([[1, 2]]), "pixel_values": torch.zeros(1, 3), "more": torch.zeros(1)}
    same = {"input_ids": torch.tensor([[1, 2]]), "pixel_values": torch.zeros(1, 3), "attention_mask": torch.ones(1, 2)}
    assert differences(ours, same) == []
    assert differences(ours, {**same, "pixel_values": torch.tensor([[0, 0, 1e-7]])}) == ["pixel_values differs"]
    assert differences(ours, {**same, "pixel_values": torch.zeros(3)}) == [
        "pixel_values has shape (1, 3), the processor's (3,)"
    ]
    assert differences(ours, {**same, "image_sizes": torch.zeros(1, 2)}) == ["image_sizes is absent"]


def test_the_comparison_of_logits_notices_a_row_that_sees_its_neighbor(tmp_path):
    import torch

    from omniprep.testing.init_model import write_model_type

    write_model_type(tmp_path, 0, "llava")
    import transformers

    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    row = {"input_ids": torch.arange(20, 30)[None]}
    with torch.no_grad():
        alone = model(**row).logits[0]
        behind = model(input_ids=torch.arange(10, 30)[None]).logits[0, 10:]
    assert wrong_logits({1: alone}, {"text": row}, tmp_path) == ""
    assert "from those of the row alone" in wrong_logits({1: behind}, {"text": row}, tmp_path)


def test_fifty_types_are_exact():
    record = json.loads(TRIALS.read_text())
    exact = [trial for trial in record["trials"] if trial["builds"] == trial["equals"] == trial["trains"] == "yes"]
    assert len(exact) >= 50
    assert all(trial["modalities"] and not trial["reason"] for trial in exact)
    assert {trial["model_type"] for trial in exact} >= {*QUICK, *ALONE, *SLOW}
    assert record["tolerance"] == TOLERANCE


def test_every_other_type_has_its_reason_in_one_line():
    for trial in json.loads(TRIALS.read_text())["trials"]:
        if not Trial(**trial).exact:
            assert trial["reason"] and "\n" not in trial["reason"], trial
        assert not re.search(r"/tmp|/root|/home", json.dumps(trial)), "a path of the machine that tried it"


def test_the_page_is_that_of_the_trials():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_chat_models.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_families_all_lists_every_type(omniprep):
    done = omniprep("families", "--all")
    assert done.code == 0, done.err
    listed = {line.split()[0]: line for line in done.out.splitlines() if line and line[0] != " "}
    assert chat_models().keys() <= listed.keys()
    assert re.search(r"llava_next +hf +image +exact", listed["llava_next"])
    assert re.search(r"qwen2_5_vl +qwen2_5_vl ", listed["qwen2_5_vl"])
    assert "processor" in listed["fuyu"] or "no small model" in listed["fuyu"]


def test_types_that_nobody_tried_are_said_to_be_new(monkeypatch):
    import transformers

    new = {"llava": "LlavaForConditionalGeneration", "brand_new": "BrandNewForConditionalGeneration"}
    monkeypatch.setattr("omniprep.families.chat_models.chat_models", lambda: new)
    monkeypatch.setattr(transformers, "__version__", "9.9.9")
    models = {model.model_type: model for model in tried_models()}
    assert models["llava"].reason == "" and dict(models["llava"].steps)["trains"] == "yes"
    assert models["brand_new"] == ChatModel(
        model_type="brand_new",
        model_class="BrandNewForConditionalGeneration",
        family="hf",
        reason="transformers names no processor for it",
    )
    from transformers.models.auto import processing_auto

    monkeypatch.setitem(processing_auto.PROCESSOR_MAPPING_NAMES, "brand_new", "LlavaProcessor")
    [model] = [model for model in tried_models() if model.model_type == "brand_new"]
    assert model.reason == "not tried: new since transformers 5.23.0"
    assert "transformers 9.9.9: 2 multimodal chat models; tried with 5.23.0: 1 exact" in describe_all()[0]


def test_a_family_of_a_plugin_answers_for_its_types():
    assert family_for("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration").name == "qwen2_5_vl"
    assert family_for("llava", "LlavaForConditionalGeneration") is None
