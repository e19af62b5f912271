"""Risk: a loader with a state of its own (torchdata, torchtitan) goes on with other bins than those that are left."""

import json
from itertools import islice

import pytest
import torch
from train_helpers import write_dataset

from omniprep import BinSampler, PackedDataset, PackedStream
from omniprep.errors import OmniprepError


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    return PackedDataset(write_dataset(tmp_path_factory.mktemp("stream") / "d", bins=7))


def numbers(ds, batches):
    """Bins of batches of one, by their first row: rows are numbered from bin to bin, three a bin."""
    by_ids = {tuple(ds[i]["input_ids"].tolist()): i for i in range(len(ds))}
    return [by_ids[tuple(torch.as_tensor(b["input_ids"]).flatten().tolist())] for b in batches]


def expected(ds, epoch=0, **ranks):
    sampler = BinSampler(len(ds), costs=ds.costs, **ranks)
    sampler.set_epoch(epoch)
    return list(sampler)


def loader(stream, workers, kind=torch.utils.data.DataLoader, **options):
    return kind(stream, batch_size=1, num_workers=workers, collate_fn=stream.dataset.collate, **options)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_workers_of_each_rank_share_its_bins(ds, workers):
    for world in (1, 2):
        for rank in range(world):
            stream = PackedStream(ds, rank=rank, world=world)
            assert numbers(ds, loader(stream, workers)) == expected(ds, rank=rank, world_size=world)
            assert len(stream) == len(expected(ds, rank=rank, world_size=world))


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_see_the_epoch_that_is_set(ds, persistent):
    stream = PackedStream(ds, rank=0, world=1)
    batches = loader(stream, 2, persistent_workers=persistent)
    for epoch in (0, 3, 1):
        stream.set_epoch(epoch)
        assert numbers(ds, batches) == expected(ds, epoch)


def test_it_may_go_on_without_an_end(ds):
    stream = PackedStream(ds, rank=1, world=2, tail="drop", repeat=True)
    want = [n for epoch in range(4) for n in expected(ds, epoch, rank=1, world_size=2, tail="drop")]
    assert numbers(ds, islice(stream, 10)) == want[:10]
    again = PackedStream(ds, rank=1, world=2, tail="drop", repeat=True)
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert numbers(ds, islice(again, 2)) == want[10:]
    with pytest.raises(TypeError, match="no length"):
        len(stream)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_without_an_end_stay_in_one_epoch(ds, workers):
    """7 bins on 2 or 3 workers: one of them has fewer bins in an epoch, and must not run ahead."""
    for first in (0, 2):
        want = [n for epoch in range(first, first + 4) for n in expected(ds, epoch)]
        stream = PackedStream(ds, epoch=first, repeat=True)
        assert numbers(ds, islice(loader(stream, workers), 25)) == want[:25]


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdatas_loader_resumes_after_epochs_without_an_end(ds, workers):
    module = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is of omniprep[adapters]")
    first = loader(PackedStream(ds, epoch=1, repeat=True), workers, module.StatefulDataLoader)
    want = [n for epoch in range(1, 5) for n in expected(ds, epoch)]
    for steps in (6, 9):
        batches = iter(first)
        assert numbers(ds, islice(batches, steps)) == want[:steps]
        again = loader(PackedStream(ds, repeat=True), workers, module.StatefulDataLoader)
        again.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert numbers(ds, islice(again, 12)) == want[steps : steps + 12]


def test_a_state_is_after_what_was_yielded(ds):
    stream, order = PackedStream(ds, epoch=2), expected(ds, 2)
    for taken in range(8):
        bins = iter(stream)
        assert numbers(ds, islice(bins, taken)) == order[:taken]
        again = PackedStream(ds)
        again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        again.set_epoch(2)
        assert numbers(ds, again) == order[taken:]
        again.set_epoch(3)
        assert again.state_dict()["taken"] == 0 and numbers(ds, again) == expected(ds, 3)


def test_a_state_of_something_else_is_refused(ds):
    state = PackedStream(ds).state_dict()
    for other in (PackedStream(ds, seed=1), PackedStream(ds, rank=1, world=2), PackedStream(ds, rank=0, world=2)):
        with pytest.raises(OmniprepError, match=r"would repeat and leave out bins.*omniprep\.loader"):
            other.load_state_dict(state)
    for wrong in ({}, [], {**state, "taken": "1"}):
        with pytest.raises(OmniprepError, match="is no state of a PackedStream"):
            PackedStream(ds).load_state_dict(wrong)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("steps", [0, 1, 4, 7])
def test_torchdatas_loader_resumes_after_any_step(ds, workers, steps):
    module = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is of omniprep[adapters]")
    make = module.StatefulDataLoader
    first = loader(PackedStream(ds, epoch=1), workers, make)
    batches, order = iter(first), expected(ds, 1)
    assert numbers(ds, islice(batches, steps)) == order[:steps]
    state = json.loads(json.dumps(first.state_dict()))
    stream = PackedStream(ds)
    second = loader(stream, workers, make)
    second.load_state_dict(state)
    assert numbers(ds, second) == order[steps:]
    stream.set_epoch(2)
    assert numbers(ds, second) == expected(ds, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_torchtitans_loader_resumes_each_rank(ds, workers):
    """Its trainer takes pairs (inputs, labels), and saves the state of each data-parallel rank under its number."""
    module = pytest.importorskip(
        "torchtitan.components.dataloader", reason="packages of its own: tests/other_trainers.sh"
    )

    def pairs(items):
        batch = ds.collate(items)
        return batch, batch.pop("labels")

    def make(rank):
        stream = PackedStream(ds, rank=rank, world=2, tail="drop", repeat=True)
        return module.ParallelAwareDataloader(stream, rank, 2, batch_size=1, collate_fn=pairs, num_workers=workers)

    for rank in range(2):
        want = [n for epoch in range(3) for n in expected(ds, epoch, rank=rank, world_size=2, tail="drop")]
        first = make(rank)
        batches = iter(first)
        assert numbers(ds, [inputs for inputs, _ in islice(batches, 4)]) == want[:4]
        inputs, labels = next(batches)
        assert labels.shape == inputs["input_ids"].shape and "labels" not in inputs
        again = make(rank)
        again.load_state_dict(first.state_dict())
        assert numbers(ds, [inputs for inputs, _ in islice(again, 4)]) == want[5:9]
