"""Risk: several ranks of another trainer learn something else than one does.

Two ranks over gloo must have the losses of one with both bins in a batch: the mean over the labeled tokens of the step,
of all ranks. Float32, plain gradient descent, and steps in which one rank alone has images, or sound.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapters_worker import optimizer_of
from train_helpers import thinker_of, write_dataset, write_model

import omniprep
from omniprep import BinSampler, PackedDataset

HERE = Path(__file__).parent
STEPS = 9
KINDS = ("text", "text", "text", "image", "image", "image", "audio", "audio", "audio", "video", "video", "video")
TYPES = {"model_types": ["qwen2_5_omni", "qwen2_5_omni_thinker"]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PackedDataset:
    """Six bins of one kind of row each: 9 steps of two are three epochs."""
    folder = write_dataset(tmp_path_factory.mktemp("data") / "d", bins=6, kinds=KINDS, weighted=True, **TYPES)
    return PackedDataset(folder)


@pytest.fixture(scope="module")
def alone(checkpoint, data) -> list[float]:
    """One rank, two bins a batch."""
    model, losses = thinker_of(checkpoint), []
    optimizer, bins = optimizer_of(model), omniprep.loader(data, batch_size=2, model=model)
    for epoch in range(3):
        bins.set_epoch(epoch)
        for batch in bins:
            loss = omniprep.weighted_loss(model(**batch).logits, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert len(losses) == STEPS
    return losses


def on_two_ranks(trainer, checkpoint, data, out, steps=STEPS):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [HERE / "adapters_worker.py", checkpoint, data.uri, out, trainer, str(steps)]
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def close(losses, expected):
    assert len({round(loss, 3) for loss in expected}) > len(expected) // 2, "a loss that changes"
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=2e-6, atol=0)


def test_two_ranks_of_accelerate(checkpoint, data, alone, tmp_path):
    close(on_two_ranks("accelerate", checkpoint, data, tmp_path / "losses.json"), alone)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["transformers", "lightning"])
def test_two_ranks_of_a_trainer(checkpoint, data, alone, trainer, tmp_path):
    if trainer == "lightning":
        pytest.importorskip("lightning", reason="lightning is of omniprep[adapters]")
    close(on_two_ranks(trainer, checkpoint, data, tmp_path / "losses.json"), alone)


@pytest.mark.slow
def test_ranks_that_do_not_divide_the_bins_have_equally_many_steps(checkpoint, tmp_path):
    """accelerate, which shares out the Trainer's bins, fills the last step with the first ones of the epoch."""
    seven = PackedDataset(write_dataset(tmp_path / "d", bins=7, **TYPES))
    order = list(BinSampler(7, costs=seven.costs, seed=42))
    shares = on_two_ranks("shares", checkpoint, seven, tmp_path / "shares.json", 0)
    assert shares == [order[0::2], [*order[1::2], order[0]]]
