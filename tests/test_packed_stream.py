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
