"""Risk: a checkpoint's own Python runs although nobody asked for it."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file
from train_helpers import write_dataset

from omniprep.errors import OmniprepError
from omniprep.families.context import resolve_family
from omniprep.train.checkpoint import POSITION
from omniprep.train.config import TrainConfig
from omniprep.train.model import load_base
from omniprep.train.resume import find_checkpoint
from omniprep.train.vision_text import model_class

CLASSES = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Model"}
CLASSES |= {"AutoModelForImageTextToText": "evil.Model", "AutoProcessor": "evil.Processor"}


@pytest.fixture(params=["known", "unknown"])
def hostile(request, model_dir, tmp_path) -> tuple[Path, Path]:
    """A copy of the small checkpoint that names classes of its own wherever transformers looks for them."""
    folder, marker = tmp_path / "ck", tmp_path / "ran"
    shutil.copytree(model_dir, folder)
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').write('ran')\nConfig = Model = Processor = Tokenizer = dict\n"
    )
    for name in ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        content["auto_map"] = CLASSES | {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
        content["auto_map"] |= {"AutoImageProcessor": "evil.Processor"}
        if name == "config.json" and request.param == "unknown":
            content["model_type"] = "evil_model"  # transformers has no class of its own for it
        path.write_text(json.dumps(content))
    generation = folder / "generation_config.json"
    held = json.loads(generation.read_text()) if generation.is_file() else {}
    generation.write_text(json.dumps(held | {"custom_generate": str(folder)}))
    return folder, marker


def test_a_checkpoint_runs_none_of_its_code(hostile, tmp_path, omniprep, monkeypatch):
    """train and infer: the weights load as transformers' own class, or one line says what the checkpoint wants."""
    import torch

    folder, marker = hostile
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    # A question on the terminal ("run the custom code? [y/N]") must not be put, let alone be answered by a script.
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    ctx = resolve_family(str(folder), "qwen2_5_omni")
    assert len(ctx.tokenizer) > 0
    if json.loads((folder / "config.json").read_text())["model_type"] == "evil_model":
        with pytest.raises(OmniprepError, match="custom code|trust_remote_code"):
            load_base(ctx, str(folder), torch.float32, "sdpa")
    else:
        load_base(ctx, str(folder), torch.float32, "sdpa")
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    data = write_dataset(tmp_path / "d", bins=1)
    omniprep("train", data, "--model", folder, "--out", tmp_path / "run", "--max-steps", 1, "--report-to", "none")
    answered = omniprep("infer", tmp_path / "chats.jsonl", "--model", folder, "--max-new-tokens", 1)
    assert "Traceback" not in answered.err
    assert not marker.exists(), "the checkpoint's own code was run"


def test_a_class_of_the_checkpoint_needs_the_flag(hostile, monkeypatch, tmp_path):
    """A family without a hook, whose checkpoint names a class that transformers does not have."""
    import torch

    folder, marker = hostile
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    ctx = resolve_family(str(folder), "qwen2_5_omni")
    monkeypatch.setattr(ctx.cls, "load_model", "")
    monkeypatch.setitem(ctx.config, "architectures", ["EvilModel"])
    with pytest.raises(OmniprepError, match="no class 'EvilModel'"):
        load_base(ctx, str(folder), torch.float32, "sdpa")
    assert not marker.exists()


def test_an_adapter_beside_a_model_is_not_loaded_with_it(model_dir, tmp_path, monkeypatch, omniprep):
    """transformers loads an adapter that lies in the model's folder, and PEFT then imports a module of its choice."""
    import torch

    folder, marker = tmp_path / "ck", tmp_path / "ran"
    shutil.copytree(model_dir, folder)
    (tmp_path / "evil_core.py").write_text(f"open({str(marker)!r}, 'w').write('ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "evil/model", "target_modules": ["q_proj"], "r": 1}
    adapter |= {"megatron_config": {}, "megatron_core": "evil_core"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    save_file({"x": torch.zeros(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(OmniprepError, match="an adapter .adapter_config.json. lies in the same folder"):
        load_base(resolve_family(str(folder), "qwen2_5_omni"), str(folder), torch.float32, "sdpa")
    data = write_dataset(tmp_path / "d", bins=1)
    trained = omniprep("train", data, "--model", folder, "--out", tmp_path / "run", "--max-steps", 1)
    assert trained.code == 1
    assert not marker.exists(), "the adapter's module was imported"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", {"watermarking_config": {"greenlist_ratio": "x"}}),
        ("config.json", {"thinker_config": 5}),
        ("config.json", {"thinker_config": {"text_config": {"hidden_size": "x"}}}),
    ],
    ids=str,
)
def test_values_of_other_types_are_one_line(name, content, model_dir, tmp_path):
    import torch

    folder = tmp_path / "ck"
    shutil.copytree(model_dir, folder)
    ctx = resolve_family(str(model_dir), "qwen2_5_omni")
    path = folder / name
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(held | content))
    with pytest.raises(OmniprepError, match="ck'"):
        load_base(ctx, str(folder), torch.float32, "sdpa")


def test_a_tokenizer_of_a_package_that_is_missing(model_dir, tmp_path):
    """The class that a tokenizer_config.json names is no reason to stop where tokenizer.json can be read."""
    folder = tmp_path / "ck"
    shutil.copytree(model_dir, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "MistralCommonBackend"}))
    # Read all the same, or one line says why not.
    try:
        assert len(resolve_family(str(folder), "qwen2_5_omni").tokenizer) > 0
    except OmniprepError as error:
        assert "tokenizer" in str(error)


def test_only_models_of_transformers_are_classes_of_a_checkpoint():
    """`architectures` may name anything that transformers exports."""
    for names in (
        ["RagRetriever"],
        ["AutoTokenizer"],
        ["pipeline"],
        ["logging"],
        [5],
        [["x"]],
        "Qwen2ForCausalLM",
        [],
        None,
    ):
        assert model_class(names) is None, names
    assert model_class(["Qwen2ForCausalLM"]).__name__ == "Qwen2ForCausalLM"


@pytest.mark.parametrize(
    "name", ["pytorch_model_fsdp_0/.metadata", ".metadata", "global_step4/mp_rank_00_model_states.pt", "custom.pkl"]
)
def test_a_checkpoint_of_others_is_not_unpickled(name: str, tmp_path: Path) -> None:
    """DeepSpeed's files and the index of torch's sharded checkpoints are pickles, which run code when they are read."""
    out, elsewhere = tmp_path / "run", tmp_path / "theirs" / "checkpoint-4"
    for checkpoint in (out / "checkpoint-4", elsewhere):
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_bytes(b"")
        position = {"position": 1, "sizes": [3], "shares": None, "seed": 42}
        (checkpoint / POSITION).write_text(json.dumps(position))
    with pytest.raises(OmniprepError, match=f"{Path(name).name} runs code of whoever wrote it.*--trust-remote-code"):
        find_checkpoint(TrainConfig(out=str(out), model="m", resume=str(elsewhere)))
    trusted = TrainConfig(out=str(out), model="m", resume=str(elsewhere), trust_remote_code=True)
    assert find_checkpoint(trusted) == elsewhere
    assert find_checkpoint(TrainConfig(out=str(out), model="m", resume="auto")) == out / "checkpoint-4"
