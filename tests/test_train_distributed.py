"""Risk: several ranks that hang, or learn something else than one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_helpers import write_dataset, write_model, write_preferences

from omniprep.shards.references import read_references

HERE = Path(__file__).parent
# Plain gradient descent: Adam would make whole steps out of rounding where a gradient is nothing.
COMMON = {
    "max_steps": 3,
    "learning_rate": 1e-2,
    "optimizer": "sgd",
    "num_workers": 0,
    "logging_steps": 1,
    "save_steps": 2,
}


def launch(ranks: int, model: Path, data: Path, out: Path, launcher: str = "torchrun", steps: int = 0, **options):
    start = [sys.executable]
    if launcher == "accelerate":
        # Its --cpu would start one process, or MPI; the run itself finds that there is no GPU.
        start += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(ranks)]
        start += [
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            "0",
        ]
    elif ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    start += [str(HERE / "train_worker.py"), str(model), str(data), str(out), json.dumps(COMMON | options)]
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(start, env=env, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr[-3000:]
    logs = json.loads((out / f"checkpoint-{steps or options.get('max_steps', 3)}" / "trainer_state.json").read_text())[
        "log_history"
    ]
    return [x for x in logs if "loss" in x]


def weights(folder: Path):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Bins of one kind of row each, so that in most steps only one rank has images, or sound."""
    root = tmp_path_factory.mktemp("distributed")
    kinds = ("text", "text", "text", "image", "image", "image", "audio", "audio", "audio", "video", "video", "video")
    folder = write_dataset(root / "d", bins=8, kinds=kinds, weighted=True)
    return write_model(root / "model"), folder, root


@pytest.fixture(scope="module")
def alone(files):
    model, data, root = files
    options = {"grad_accumulation": 2, "freeze_vit": False, "freeze_aligner": False}
    return launch(1, model, data, root / "alone", **options), weights(root / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "ddp padded", "fsdp", "fsdp padded", "accelerate", "zero2", "zero3"])
def test_two_ranks_learn_what_one_does_with_two_passes(files, alone, kind):
    model, data, root = files
    options = {"freeze_vit": False, "freeze_aligner": False, "fsdp": "fsdp" in kind, "padded": "padded" in kind}
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed", reason="the package deepspeed is not installed")
        options["deepspeed"] = kind
    launcher = "accelerate" if kind == "accelerate" else "torchrun"
    logs = launch(2, model, data, root / kind, launcher, **options)
    for ours, theirs in zip(logs, alone[0], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert ours["token_accuracy"] == theirs["token_accuracy"]
    found = weights(root / kind)
    assert found.keys() == alone[1].keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, alone[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks_in_the_middle_of_an_epoch(files, alone):
    """Two ranks for two of the four steps of an epoch, then one rank with twice the passes: the run that never broke."""
    model, data, root = files
    options = {"freeze_vit": False, "freeze_aligner": False, "seen": str(root / "seen")}
    launch(2, model, data, root / "two", max_steps=2, **options)
    last = str(root / "two" / "checkpoint-2")
    rest = launch(1, model, data, root / "then_one", grad_accumulation=2, resume=last, max_steps=4, **options)
    for ours, theirs in zip(rest[:3], alone[0], strict=True):
        assert (ours["step"], ours["epoch"]) == (theirs["step"], theirs["epoch"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    bins = [int(line) for file in root.glob("seen.*") for line in file.read_text().split()]
    assert sorted(bins) == list(range(8)), "every bin of the epoch once"


@pytest.mark.slow
def test_an_epoch_of_three_bins_on_two_ranks_ends_and_is_that_of_one(files, tmp_path):
    """Two steps on each rank, the second with a place that counts nothing: none waits for the other for ever."""
    model, _, _ = files
    data = write_dataset(tmp_path / "d", bins=3)
    options = {"max_steps": 0, "epochs": 1, "save_steps": 0, "freeze_vit": False, "freeze_aligner": False}
    logs = launch(2, model, data, tmp_path / "two", steps=2, **options)
    alone = launch(1, model, data, tmp_path / "one", steps=2, grad_accumulation=2, **options)
    assert [(x["step"], x["epoch"]) for x in logs] == [(x["step"], x["epoch"]) for x in alone]
    assert len(logs) == 2 and logs[-1]["epoch"] == 1.0
    for ours, theirs in zip(logs, alone, strict=True):
        assert ours["learned_tokens"] == theirs["learned_tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp_lora", "fsdp", "fsdp padded", "fsdp_lora"])
def test_ranks_resume(files, kind):
    model, data, root = files
    options = {"lora": "lora" in kind, "fsdp": "fsdp" in kind, "max_steps": 4, "optimizer": "adamw_torch"}
    options |= {"padded": True, "freeze_vit": False} if "padded" in kind else {}
    whole = launch(2, model, data, root / f"{kind}_whole", **options)
    again = launch(
        2, model, data, root / f"{kind}_again", resume=str(root / f"{kind}_whole" / "checkpoint-2"), **options
    )
    keys = ("step", "loss", "grad_norm", "learning_rate", "epoch")
    assert [[x[k] for k in keys] for x in again] == [[x[k] for k in keys] for x in whole]
    expected, found = weights(root / f"{kind}_whole"), weights(root / f"{kind}_again")
    assert expected.keys() == found.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "fsdp"), [("dpo", True), ("kto", False), ("kto", True)])
def test_two_ranks_score_and_prefer_what_one_does_with_two_bins(files, tmp_path, objective, fsdp):
    """Bins of other numbers of pairs on each rank; KTO's divergence is over the bins of both."""
    model, _, _ = files
    sizes, logs, stored = (2, 1, 3, 2, 1, 2), {}, {}
    for ranks in (1, 2):
        data = write_preferences(tmp_path / f"data-{ranks}", sizes=sizes, paired=objective == "dpo")
        options = {"objective": objective, "score": True, "save_steps": 0, "batch_size": 3 - ranks}
        logs[ranks] = launch(ranks, model, data, tmp_path / f"run-{ranks}", fsdp=fsdp and ranks == 2, **options)
        stored[ranks] = read_references(str(data), len(sizes))
    assert stored[1].made_by == stored[2].made_by and (stored[1].begins == stored[2].begins).all()
    assert stored[2].logps == pytest.approx(stored[1].logps, rel=1e-6)
    for ours, theirs in zip(logs[2], logs[1], strict=True):
        for name in (
            "loss",
            "rewards/chosen",
            "rewards/margins",
            "logps/rejected",
            *(["kl"] if objective == "kto" else []),
        ):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
