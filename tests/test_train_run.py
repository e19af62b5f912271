"""Risk: a run that learns something else than it says, or that a resume changes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from train_helpers import small_family, write_dataset, write_model

from omniprep.data import PackedDataset
from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.families.kinds import ModelArch
from omniprep.progress import QuietReporter
from omniprep.train import run as run_module
from omniprep.train.batches import Batcher, Bins, number_sources
from omniprep.train.config import TrainConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(autouse=True)
def _family(model, monkeypatch):
    monkeypatch.setattr(run_module, "resolve_family", lambda *_: small_family(model))


def train(model, data, out, **options):
    defaults = {
        "max_steps": 4,
        "learning_rate": 1e-3,
        "num_workers": 0,
        "logging_steps": 1,
        "report_to": ("none",),
        "device": "cpu",
    }
    config = TrainConfig(model=str(model), data=(str(data),), out=str(out), **(defaults | options))
    run_module.train(config, QuietReporter())
    state = json.loads(
        (
            sorted((p.parent for p in Path(out).glob("checkpoint-*/data_state.json")), key=lambda p: int(p.name[11:]))[
                -1
            ]
            / "trainer_state.json"
        ).read_text()
    )
    return [x for x in state["log_history"] if "loss" in x]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_training_lowers_the_loss_and_saves_a_whole_checkpoint(model, data, tmp_path):
    logs = train(model, data, tmp_path / "run", max_steps=8, epochs=1, save_steps=0)
    assert logs[-1]["loss"] < logs[0]["loss"]
    assert {"token_accuracy", "tokens_per_s", "data_wait_ms", "grad_norm", "learning_rate"} <= set(logs[-1])
    before, after = tensors(model), tensors(tmp_path / "run")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("thinker.model.", "thinker.lm_head.")) for name in changed)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["enable_audio_output"] is True and config["architectures"] == ["Qwen2_5OmniForConditionalGeneration"]
    assert (tmp_path / "run" / "spk_dict.pt").exists() and (tmp_path / "run" / "preprocessor_config.json").exists()
    assert (tmp_path / "run" / "train_config.yaml").exists()


@pytest.mark.parametrize("lora", [False, True])
def test_resume_is_exact(model, data, tmp_path, lora):
    options = {
        "max_steps": 7,
        "grad_accumulation": 2,
        "lora": lora,
        **({"lora_dropout": 0.1} if lora else {}),
        "freeze_vit": False,
        "freeze_aligner": False,
    }
    whole = train(model, data, tmp_path / "whole", save_steps=3, **options)
    first = tmp_path / "whole" / "checkpoint-3"
    rest = train(model, data, tmp_path / "rest", save_steps=0, resume=str(first), **options)
    same = [{k: x[k] for k in ("loss", "grad_norm", "learning_rate", "epoch", "step", "token_accuracy")} for x in whole]
    assert [{k: x[k] for k in same[0]} for x in rest] == same
    a, b = tensors(tmp_path / "whole"), tensors(tmp_path / "rest")
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        x, y = (torch.load(tmp_path / d / "checkpoint-7" / name, weights_only=False) for d in ("whole", "rest"))
        assert str(x) == str(y)


# Some names of Qwen/Qwen2.5-Omni-7B's model.safetensors.index.json, which ms-swift and vLLM look for.
ORIGINAL = {
    "thinker.model.embed_tokens.weight", "thinker.model.norm.weight", "thinker.lm_head.weight",
    "thinker.model.layers.0.self_attn.q_proj.bias", "thinker.model.layers.0.mlp.down_proj.weight",
    "thinker.visual.patch_embed.proj.weight", "thinker.visual.blocks.0.attn.q.weight",
    "thinker.visual.blocks.0.norm1.weight", "thinker.visual.merger.ln_q.weight", "thinker.visual.merger.mlp.0.bias",
    "thinker.audio_tower.conv1.weight", "thinker.audio_tower.layers.0.self_attn.q_proj.weight",
    "thinker.audio_tower.ln_post.bias", "thinker.audio_tower.proj.weight",
    "thinker.audio_tower.audio_bos_eos_token.weight", "talker.thinker_to_talker_proj.weight",
}  # fmt: skip


def test_a_checkpoint_has_the_layout_of_the_original(model, data, tmp_path):
    """Names, shapes and types of all tensors, each in the file that the index names."""
    train(model, data, tmp_path / "run", max_steps=1)
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        assert index.keys() >= ORIGINAL
        assert index.keys() == json.loads((model / "model.safetensors.index.json").read_text())["weight_map"].keys()
        for name, source in tensors(model).items():
            with safe_open(folder / index[name], "pt") as file:
                there = file.get_slice(name)
                assert tuple(there.get_shape()) == tuple(source.shape) and there.get_dtype() == "F32"


def test_checkpoint_is_loaded_by_transformers(model, data, tmp_path):
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    train(model, data, tmp_path / "run", max_steps=2)
    loaded, info = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        tmp_path / "run", output_loading_info=True
    )
    assert not info["missing_keys"]
    with safe_open(tmp_path / "run" / "model-thinker.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("thinker.model.norm.weight"), loaded.model.language_model.norm.weight)


def test_adapter_is_loaded_by_peft_and_merged(model, data, tmp_path):
    from peft import PeftModel
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    from omniprep.train.model import load_base

    out = tmp_path / "run"
    train(model, data, out, lora=True, merge_lora=True, freeze_vit=False, learning_rate=1e-2)
    assert {p.name for p in out.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json", "train_config.yaml"}
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model)
    loaded = PeftModel.from_pretrained(load_base(small_family(model), str(model), torch.float32, "sdpa"), out)
    assert sum(float(p.abs().sum()) for n, p in loaded.named_parameters() if "lora_B" in n) > 0, (
        "trained weights are there"
    )
    merged = loaded.merge_and_unload().state_dict()
    before, after = tensors(model), tensors(out / "merged")
    assert before.keys() == after.keys()
    assert torch.equal(
        after["thinker.model.layers.0.mlp.up_proj.weight"],
        merged["thinker.model.language_model.layers.0.mlp.up_proj.weight"],
    )
    assert not torch.equal(
        before["thinker.visual.blocks.0.attn.q.weight"], after["thinker.visual.blocks.0.attn.q.weight"]
    )
    assert torch.equal(before["thinker.visual.merger.mlp.0.weight"], after["thinker.visual.merger.mlp.0.weight"])
    assert torch.equal(before["talker.thinker_to_talker_proj.weight"], after["talker.thinker_to_talker_proj.weight"])
    _, info = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(out / "merged", output_loading_info=True)
    assert not info["missing_keys"]


def test_resume_auto_takes_the_last_whole_checkpoint(model, data, tmp_path):
    out = tmp_path / "run"
    train(model, data, out, max_steps=4, save_steps=2, resume="auto")
    (out / "checkpoint-9").mkdir()  # a kill while it was written: no data_state.json
    logs = train(model, data, out, max_steps=6, save_steps=2, resume="auto")
    assert [x["step"] for x in logs] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(OmniprepError, match="nothing is left"):
        train(model, data, out, max_steps=6, resume="auto")
    with pytest.raises(OmniprepError, match="--seed changed"):
        train(model, data, out, max_steps=8, resume="auto", seed=1)


def test_only_the_last_checkpoints_are_kept(model, data, tmp_path):
    train(model, data, tmp_path / "run", max_steps=4, save_steps=1, save_total_limit=2)
    assert {p.name for p in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}


def test_evaluation_bins_are_held_out(model, data, tmp_path, monkeypatch):
    seen = []
    original = Bins.__getitem__

    def record(self, number):
        seen.append((id(self), int(self.bins[0][number if number >= 0 else ~number])))
        return original(self, number)

    monkeypatch.setattr(Bins, "__getitem__", record)
    train(model, data, tmp_path / "run", max_steps=5, eval_fraction=0.34, eval_steps=2)
    trained = {b for who, b in seen if who == seen[0][0]}
    held = {b for who, b in seen if who != seen[0][0]}
    assert len(held) == 2 and len(trained) == 4 and not trained & held
    history = json.loads((tmp_path / "run" / "checkpoint-5" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_loss" in x and x["step"] == 2 for x in history)


def test_each_bin_is_trained_once_in_an_epoch(model, data, tmp_path, monkeypatch):
    counted = []
    original = Batcher.__call__

    def record(self, bins):
        batch = original(self, bins)
        counted.append(len(batch["targets"]))
        return batch

    monkeypatch.setattr(Batcher, "__call__", record)
    logs = train(model, data, tmp_path / "run", max_steps=0, epochs=1, grad_accumulation=4)
    assert len(logs) == 2 and logs[-1]["epoch"] == 1.0
    assert len(counted) == 8 and counted[6:] == [0, 0] and all(counted[:6]), (
        "the last step's empty places count nothing"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "other"}, "family 'small', the model is of family 'other'"),
        ({"tokenizer_sha256": "2" * 64}, "another tokenizer"),
        ({"tokenizer": range(1001)}, "embeddings for 1000 tokens, its tokenizer 1001"),
        ({"positions": 512}, "bins of 1024 tokens, the model has 512 positions"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(model, tmp_path, change, message):
    from omniprep.train.refuse import check_datasets, text_config

    folder = write_dataset(tmp_path / "d", bins=1, tokenizer_sha256="1" * 64)
    ctx = small_family(model)
    check_datasets([PackedDataset(str(folder))], ctx)
    ctx.name = change.get("family", ctx.name)
    ctx.tokenizer = change.get("tokenizer", ctx.tokenizer)
    ctx.tokenizer_sha256 = change.get("tokenizer_sha256", ctx.tokenizer_sha256)
    if "positions" in change:
        text_config(ctx.config)["max_position_embeddings"] = change["positions"]
    with pytest.raises(OmniprepError, match=message):
        check_datasets([PackedDataset(str(folder))], ctx)


COUNTS = {"rows": {"read": 3, "packed": 3, "rejected": 0}, "tokens": 90, "bins": 1, "labeled_tokens": 0}


def test_a_dataset_with_nothing_to_learn_or_other_pixels_is_refused(model, tmp_path):
    from omniprep.train.refuse import check_datasets, check_family

    ctx = small_family(model)
    silent = write_dataset(tmp_path / "silent", bins=1, counts=COUNTS)
    with pytest.raises(OmniprepError, match="nothing to learn"):
        check_datasets([PackedDataset(str(silent))], ctx)
    data = PackedDataset(str(write_dataset(tmp_path / "d", bins=1)))
    pixels = ctx.columns[2]
    params = pixels.params | {"mean": [0.48, 0.46, 0.41]}
    ctx.columns = (*ctx.columns[:2], dataclasses.replace(pixels, params=params), *ctx.columns[3:])
    with pytest.raises(OmniprepError, match=r"other mean of pixel_values \(\[0\.5, 0\.5, 0\.5\], not \[0\.48"):
        check_datasets([data], ctx)
    params = pixels.params | {"mean": tuple(pixels.params["mean"])}  # as families write them
    ctx.columns = (*ctx.columns[:2], dataclasses.replace(pixels, params=params), *ctx.columns[3:])
    check_datasets([data], ctx)
    check_family(ctx, TrainConfig())
    ctx.arch = ModelArch(language_model=("model",))
    with pytest.raises(OmniprepError, match="names no tower"):
        check_family(ctx, TrainConfig())
    check_family(ctx, TrainConfig(freeze_vit=False, freeze_aligner=False))
    ctx.load_model = ""
    check_family(ctx, TrainConfig())  # the modules of a class of transformers are found


def test_steps_without_a_label_are_no_reason_to_stop(model, tmp_path, monkeypatch):
    """Bins of prompts alone: their loss is 0, which must not count as the best loss that the run has had."""
    folder = write_dataset(tmp_path / "d", bins=6)
    original = Batcher.__call__
    seen = []

    def unlabeled(self, bins):
        seen.append(len(bins))
        return original(
            self, [b | {"labels": np.full_like(b["labels"], -100)} for b in bins] if len(seen) < 3 else bins
        )

    monkeypatch.setattr(Batcher, "__call__", unlabeled)
    logs = train(model, folder, tmp_path / "run", max_steps=6)
    assert [log["learned_tokens"] > 0 for log in logs] == [False, False, True, True, True, True]
    assert [log["loss"] for log in logs[:2]] == [0, 0] and logs[2]["loss"] > 3


@pytest.mark.parametrize(
    ("max_steps", "options", "logged"),
    [
        (3, {}, [1, 2, 3]),
        (23, {}, [1, 5, 10, 15, 20, 23]),
        (3, {"logging_steps": 100}, [1, 3]),
        (4, {"eval_fraction": 0.34, "eval_steps": 2}, [1, 2, 3, 4]),
    ],
)
def test_short_runs_print_their_losses_and_each_evaluation_once(
    model, data, tmp_path, monkeypatch, capsys, max_steps, options, logged
):
    monkeypatch.chdir(tmp_path)  # as typed: run/ with a slash
    train(model, data, "run/", **{"max_steps": max_steps, "logging_steps": None, "save_steps": max_steps, **options})
    lines = capsys.readouterr().err.splitlines()
    assert [int(line.split("/")[0].removeprefix("step ")) for line in lines if "  loss " in line] == logged
    evaluated = [line.split("/")[0] for line in lines if "eval loss" in line]
    assert evaluated == (["step 2", "step 4"] if options.get("eval_steps") else [])
    assert [line for line in lines if line.startswith("checkpoint")] == [f"checkpoint run/checkpoint-{max_steps}"]


@pytest.mark.parametrize("save_steps", [1, 0])
def test_weights_that_are_no_numbers_are_never_saved(model, data, tmp_path, save_steps):
    """Also where no loss is logged between the step that lost them and the next checkpoint, or the end."""
    options = {"learning_rate": 1e30, "max_grad_norm": 0, "warmup": 0, "logging_steps": 100}
    with pytest.raises(OmniprepError, match="--learning-rate"):
        train(model, data, tmp_path / "run", max_steps=3, save_steps=save_steps, **options)
    for path in (tmp_path / "run").rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values()), path
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_a_target_that_matches_nothing_is_named(model, data, tmp_path):
    with pytest.raises(OmniprepError, match=r"--target-regex '.*no_such_layer'"):
        train(model, data, tmp_path / "run", lora=True, target_regex=".*no_such_layer")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_bin_ends_the_run_with_one_line(model, tmp_path, workers):
    folder = write_dataset(tmp_path / "d", bins=2)
    shard = folder / "shards" / "00000.arrow"
    content = bytearray(shard.read_bytes())
    index = PackedDataset(str(folder)).index
    content[int(index["offset"][1]) + int(index["length"][1]) - 500] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(DamagedDataError, match="bin 1") as caught:
        train(model, folder, tmp_path / "run", num_workers=workers)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"amp": True, "dtype": "float32"}, {"attn": "eager"}])
def test_other_types_and_attentions_train(model, data, tmp_path, options):
    logs = train(model, data, tmp_path / "run", max_steps=6, freeze_vit=False, freeze_aligner=False, **options)
    assert logs[-1]["loss"] < logs[0]["loss"]
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["dtype"]
    assert saved == options.get("dtype", "float32")


def test_packages_that_are_not_there_are_named(model, data, tmp_path):
    with pytest.raises(OmniprepError, match="pip install liger-kernel"):
        train(model, data, tmp_path / "run", liger=True)


def test_a_loss_that_is_no_number_ends_with_advice(model, data, tmp_path):
    with pytest.raises(OmniprepError, match="--learning-rate"):
        train(model, data, tmp_path / "run", learning_rate=1e30, max_grad_norm=0, warmup=0, max_steps=6)


def test_dry_run_takes_the_costliest_bin(model, data, tmp_path, capsys):
    config = TrainConfig(
        model=str(model), data=(str(data),), out=str(tmp_path / "run"), dry_run=True, device="cpu", num_workers=0
    )
    run_module.train(config, QuietReporter())
    most = max(PackedDataset(str(data)).index["tokens"])
    assert f"{most:,} tokens" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_losses_by_kind_and_source(model, data, tmp_path):
    logs = train(model, data, tmp_path / "run", max_steps=2, batch_size=3, log_sources=True)
    parts = [logs[0][f"loss_{kind}"] for kind in ("text", "image", "audio", "video", "mixed")]
    assert min(parts) < logs[0]["loss"] < max(parts)
    names, numbers = number_sources([PackedDataset(str(data))] * 2)
    assert names == ("chats",) and [n.tolist() for n in numbers] == [[0] * 18] * 2
    assert "loss_source_chats" not in logs[0], "one source is the whole"


def test_mixture_of_two_datasets(model, data, tmp_path):
    other = write_dataset(tmp_path / "other", bins=3, seed=5)
    out = tmp_path / "run"
    config = TrainConfig(
        model=str(model),
        data=(f"{data}:0.25", f"{other}:0.75"),
        out=str(out),
        max_steps=3,
        num_workers=0,
        device="cpu",
        report_to=("none",),
        weight_by="bins",
    )
    run_module.train(config, QuietReporter())
    state = json.loads((out / "checkpoint-3" / "data_state.json").read_text())
    assert {k: state[k] for k in ("position", "sizes", "shares", "seed")} == {
        "position": 3, "sizes": [6, 3], "shares": [0.25, 0.75], "seed": 42
    }  # fmt: skip
