"""Risk: a bin trained on twice, or never; another order after a resume."""

import numpy as np
import pytest
from train_helpers import write_dataset

from omniprep.compiler.costs import CostModel
from omniprep.data import PackedDataset
from omniprep.errors import UsageError
from omniprep.train.batches import Bins
from omniprep.train.config import TrainConfig, parse_source
from omniprep.train.data import costs
from omniprep.train.stream import BinStream, Mixture


def taken(mixture, total, start, steps, world, batch=1, accumulation=1):
    """Bins of each optimizer step, over all ranks."""
    streams = [
        list(
            BinStream(
                mixture,
                total=total,
                start=start,
                steps=steps,
                rank=r,
                world_size=world,
                batch_size=batch,
                accumulation=accumulation,
            )
        )
        for r in range(world)
    ]
    assert len({len(s) for s in streams}) == 1
    return [
        [b for k in range(accumulation) for s in streams for b in s[step * accumulation + k]] for step in range(steps)
    ]


@pytest.mark.parametrize("costs", [None, np.random.default_rng(0).random(53)])
def test_each_bin_once_an_epoch_on_any_number_of_ranks(costs):
    mixture = Mixture(sizes=[40, 13], seed=1, costs=costs)
    whole = [b for step in taken(mixture, 106, 0, 106, 1) for b in step]
    assert sorted(whole[:53]) == list(range(53)) == sorted(whole[53:]) and whole[:53] != whole[53:]
    for world, batch, accumulation in [(3, 1, 1), (2, 2, 3), (8, 1, 2)]:
        size = world * batch * accumulation
        steps = -(-106 // size)
        seen = [b for step in taken(mixture, 106, 0, steps, world, batch, accumulation) for b in step]
        assert [b for b in seen if b >= 0] == whole, "only the places after the end do not count"
        assert len(seen) == steps * size


def test_resume_in_the_middle_of_an_epoch_on_another_number_of_ranks():
    mixture = Mixture(sizes=[53], seed=4)
    whole = [b for step in taken(mixture, 106, 0, 106, 1) for b in step]
    first = [b for step in taken(mixture, 106, 0, 5, 3, accumulation=2) for b in step]
    rest = [b for step in taken(mixture, 106, len(first), 38, 2) for b in step]
    assert first + rest == whole


def test_weights_are_kept_and_no_bin_comes_again_before_all_came():
    mixture = Mixture(sizes=[30, 70], shares=[0.75, 0.25], seed=2)
    stream = np.array([mixture.at(p) for p in range(1000)])
    assert abs((stream < 30).sum() - 750) <= 1
    for low, high in [(0, 30), (30, 100)]:
        own = stream[(stream >= low) & (stream < high)]
        counts = np.bincount(own - low, minlength=high - low)
        assert counts.max() - counts.min() <= 1
    again = Mixture(sizes=[30, 70], shares=[0.75, 0.25], seed=2)
    assert [again.at(p) for p in range(990, 1000)] == stream[990:].tolist()


def test_three_datasets_share_out_every_epoch_exactly():
    mixture = Mixture(sizes=[7, 11, 3], shares=[0.2, 0.5, 0.3], seed=0)
    for epoch in range(6):
        assert len(mixture.order(epoch)) == 21


def test_sources_with_weights():
    assert parse_source("out_a:0.7") == ("out_a", 0.7)
    assert parse_source("s3://bucket/x") == ("s3://bucket/x", None)
    assert parse_source("s3://bucket/x:2") == ("s3://bucket/x", 2.0)
    with pytest.raises(UsageError):
        parse_source("a:-1")


@pytest.mark.parametrize(
    "bad",
    [
        {"batch_size": 0},
        {"merge_lora": True},
        {"eval_fraction": 1.0},
        {"fsdp": True, "deepspeed": "x"},
        {"data": ("a:0",)},
    ],
)
def test_options_that_no_run_could_use(bad):
    with pytest.raises(UsageError):
        TrainConfig(**bad)


@pytest.mark.parametrize(
    ("options", "products"), [({}, 0), ({"freeze_vit": False}, 2), ({"lora": True, "freeze_vit": False}, 1)]
)
def test_towers_that_train_cost_their_backward_pass(tmp_path, options, products):
    dataset = PackedDataset(str(write_dataset(tmp_path / "d", bins=5)))
    index, model = dataset.index, CostModel()
    assert index["patches"].any() and index["audio_frames"].any()
    forward = model.patch * index["patches"] + model.audio_frame * index["audio_frames"]
    work, tower_work = costs([dataset], Bins([dataset]), TrainConfig(**options))
    np.testing.assert_allclose(work, index["cost"] + products * forward)
    if products:
        np.testing.assert_allclose(tower_work, (1 + products) * forward)
    else:
        assert tower_work is None
