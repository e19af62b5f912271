"""A run that does not fit is known before it begins: the memory of a step, measured and predicted."""

import numpy as np
import torch
from train_helpers import write_dataset

from omniprep.data import PackedDataset
from omniprep.train.batches import Bins
from omniprep.train.memory import heaviest_batches, passes_peak, state_bytes


def test_optimizer_states_have_the_type_of_the_weights():
    model = torch.nn.Linear(100, 10, bias=False)
    assert state_bytes(model, "adamw_torch") == 8 * 1000
    assert state_bytes(model.bfloat16(), "adamw_torch_fused") == 4 * 1000
    assert state_bytes(model, "sgd") == 0
    assert state_bytes(model.requires_grad_(False), "adamw_torch_fused") == 0


def test_the_states_are_those_that_the_optimizer_really_keeps():
    model = torch.nn.Linear(100, 10).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 100, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    kept = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    assert state_bytes(model, "adamw_torch") == sum(t.numel() * t.element_size() for t in kept)


def test_a_measurement_leaves_no_gradient_and_no_random_number():
    model = torch.nn.Linear(8, 8)
    before = torch.random.get_rng_state()
    calls = []

    def loss():
        calls.append(model.weight.grad is None)
        return torch.nn.functional.dropout(model(torch.randn(4, 8))).sum()

    assert passes_peak(model, loss, torch.device("cpu"), 2) > 0
    assert calls == [True, False]  # the second pass finds the gradients of the first, as in accumulation
    assert model.weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), before)


def test_each_bin_that_may_need_most_memory_is_tried(tmp_path):
    datasets = [PackedDataset(str(write_dataset(tmp_path / f"d{seed}", bins=5, seed=seed))) for seed in (0, 1)]
    bins = Bins(datasets, [np.array([0, 2, 4]), None])
    tried = heaviest_batches(bins, 1)
    for name in ("tokens", "patches", "audio_frames", "cost"):
        sizes = [*datasets[0].index[name][[0, 2, 4]], *datasets[1].index[name]]
        if max(sizes) > 0:
            assert max(sizes) in [sizes[batch[0]] for batch in tried]
    assert len(tried) == len({tuple(batch) for batch in tried})
    assert all(len(batch) == 2 for batch in heaviest_batches(bins, 2))
