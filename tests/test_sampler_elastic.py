"""Risk: after a restart on another number of GPUs, bins seen twice or never, or ranks that disagree about the order;
ranks that take unequal numbers of steps, so that a job hangs; bins shared out twice, so that most are never read.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from omniprep import BinSampler
from omniprep.errors import OmniprepError


def ranks(n, world, epoch=2, state=None, **options):
    samplers = [BinSampler(n, seed=3, rank=r, world_size=world, **options) for r in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
        if state is not None:
            sampler.load_state_dict(state)
    return samplers


def take(samplers, steps):
    iterators = [iter(s) for s in samplers]
    seen = [b for _ in range(steps) for it in iterators if (b := next(it, None)) is not None]
    return seen, samplers[0].state_dict()


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 200), st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), max_size=5), st.booleans())
def test_any_changes_of_world_size_see_every_bin_once(n, stages, balanced):
    costs = np.random.default_rng(0).random(n) + 1 if balanced else None
    whole, _ = take(ranks(n, 1, costs=costs), n)
    assert sorted(whole) == list(range(n))
    seen, state = [], None
    for world, steps in stages:
        part, state = take(ranks(n, world, state=state, costs=costs, tail="ragged"), steps)
        assert sorted(seen + part) == sorted(whole[: len(seen) + len(part)]), "a prefix of the one global order"
        seen += part
    rest, state = take(ranks(n, 4, state=state, costs=costs, tail="ragged"), n)
    assert sorted(seen + rest) == list(range(n)) and state["consumed"] == n


def test_epochs_and_seeds_differ_and_repeat():
    def order(seed, epoch):
        sampler = BinSampler(500, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0) != order(0, 1) != order(1, 1) and order(0, 1) != order(1, 0)
    assert BinSampler(8, seed=1).order().tolist() == [7, 2, 0, 5, 3, 4, 1, 6], "pinned: a run resumes with any version"


def test_a_second_iteration_starts_the_epoch_again_and_a_new_epoch_forgets_the_state():
    sampler = ranks(20, 2, state={**BinSampler(20, seed=3).state_dict(), "epoch": 2, "consumed": 10})[0]
    assert len(sampler) == 5 and len(list(sampler)) == 5
    assert len(sampler) == 10 and len(list(sampler)) == 10
    sampler.load_state_dict({**sampler.state_dict(), "consumed": 20})
    assert list(sampler) == []
    sampler.load_state_dict({**sampler.state_dict(), "consumed": 10})
    sampler.set_epoch(2)
    assert len(list(sampler)) == 5, "set_epoch to the loaded epoch keeps the place"
    sampler.set_epoch(3)
    assert sampler.state_dict()["consumed"] == 0 and len(list(sampler)) == 10


def test_state_after_does_not_count_what_workers_fetched_ahead():
    sampler = BinSampler(64, seed=1, rank=0, world_size=2)
    loader = iter(DataLoader(list(range(64)), batch_size=2, sampler=sampler, num_workers=2, prefetch_factor=4))
    for _ in range(3):
        next(loader)
    assert sampler.state_dict()["consumed"] > 12, "fetched ahead"
    state = sampler.state_after(3, bins_per_step=2)
    assert state["consumed"] == 12
    later = BinSampler(64, seed=1, rank=0, world_size=1)
    later.load_state_dict(state)
    assert list(later) == later.order()[12:].tolist()
    assert later.state_after(0)["consumed"] == 12
    del loader


def epoch(n, world, **options):
    """The bins of each rank in an epoch."""
    samplers = ranks(n, world, **options)
    lengths = [len(s) for s in samplers]
    taken = [list(s) for s in samplers]
    assert lengths == [len(t) for t in taken], "len() says what comes"
    assert all(s.state_dict()["consumed"] == samplers[0].state_dict()["consumed"] for s in samplers)
    return taken


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 60))
def test_tails(n, world, consumed):
    """From any place of an epoch: equal steps for all ranks, unless it is asked for that every bin comes once."""
    consumed = min(consumed, n)
    state = {**BinSampler(n, seed=3).state_dict(), "epoch": 2, "consumed": consumed}
    order = ranks(n, 1)[0].order().tolist()
    left = order[consumed:]
    rounds, over = divmod(len(left), world)

    padded = epoch(n, world, state=state)
    assert {len(t) for t in padded} == {rounds + (over > 0)}
    dealt = [b for step in zip(*padded, strict=True) for b in step]
    assert dealt[: len(left)] == left
    again = dealt[len(left) :]
    last = order[-(world - over) :] if over else []
    assert again == (last * world)[: len(again)], "the last bins of the order come twice"

    dropped = epoch(n, world, state=state, tail="drop")
    assert [b for step in zip(*dropped, strict=True) for b in step] == left[: rounds * world]

    ragged = epoch(n, world, state=state, tail="ragged")
    assert sorted(b for t in ragged for b in t) == sorted(left)
    assert [len(t) for t in ragged] == [rounds + (r < over) for r in range(world)]


def test_ranks_take_equally_many_steps_by_default():
    assert [len(t) for t in epoch(3, 2)] == [2, 2] and [len(t) for t in epoch(1, 4)] == [1] * 4
    assert [len(t) for t in epoch(101, 8)] == [13] * 8 and set().union(*epoch(101, 8)) == set(range(101))
    for batch_size in (1, 2, 3):
        batches = [len(DataLoader(range(101), batch_size, sampler=s)) for s in ranks(101, 8)]
        assert batches == [-(-13 // batch_size)] * 8


def test_a_padded_epoch_ends_where_it_ends_on_any_number_of_ranks():
    _, state = take(ranks(7, 3), 99)
    assert state["consumed"] == 7
    assert [list(s) for s in ranks(7, 4, state=state)] == [[]] * 4


@pytest.mark.parametrize("batch_size", [1, 2])
def test_accelerate_shares_out_a_plain_sampler_and_is_refused_a_shared_one(batch_size):
    """With accelerate's own code: each process's DataLoader as `accelerator.prepare` makes it."""
    from accelerate.data_loader import prepare_data_loader

    def prepared(sampler, process, **options):
        loader = DataLoader(range(24), batch_size, sampler=sampler)
        options = {"num_processes": 2, "process_index": process, "put_on_device": False} | options
        return prepare_data_loader(loader, torch.device("cpu"), **options)

    def bins(loader):
        return [int(b) for batch in loader for b in batch]

    shared = [bins(prepared(BinSampler(24, seed=1), process)) for process in (0, 1)]
    assert sorted(shared[0] + shared[1]) == list(range(24)) and len(shared[0]) == 12
    for rank in (0, 1):
        with pytest.raises(OmniprepError, match="accelerate shares"):
            bins(prepared(BinSampler(24, seed=1, rank=rank, world_size=2), rank))
        alone = BinSampler(24, seed=1, rank=rank, world_size=2)
        assert bins(DataLoader(range(24), batch_size, sampler=alone)) == list(alone)
        one_process = prepared(BinSampler(24, seed=1, rank=rank, world_size=2), 0, num_processes=1)
        assert bins(one_process) == list(alone), "what accelerate leaves whole is taken as it is"
    with pytest.raises(OmniprepError, match="accelerate shares"):
        bins(prepared(BinSampler(24, world_size=2), 0, dispatch_batches=True, put_on_device=True))


def test_a_prepared_loader_goes_on_from_a_loaded_state_or_says_what_to_do():
    """accelerate counts the epochs of a loader from 0 and sets them: that would begin anew, without a word."""
    from accelerate.data_loader import prepare_data_loader

    sampler = BinSampler(20, seed=3)
    loader = prepare_data_loader(DataLoader(range(20), sampler=sampler), torch.device("cpu"), put_on_device=False)
    state = {**sampler.state_dict(), "epoch": 2, "consumed": 10}
    sampler.load_state_dict(state)
    with pytest.raises(OmniprepError, match=r"set_epoch\(2\)"):
        next(iter(loader))
    loader.set_epoch(2)
    rest = [int(b) for b in loader]
    assert rest == ranks(20, 1)[0].order()[10:].tolist()
    following = [int(b) for b in loader]
    assert len(following) == 20 and sampler.epoch == 3


def test_a_foreign_state_is_refused():
    state = BinSampler(10, seed=1).state_dict()
    for other in (BinSampler(11, seed=1), BinSampler(10, seed=2), BinSampler(10, seed=1, costs=np.ones(10))):
        with pytest.raises(OmniprepError, match="state has"):
            other.load_state_dict(state)
    for change in ({"consumed": 11}, {"consumed": -1}, {"consumed": None}, {"epoch": "2"}):
        with pytest.raises(OmniprepError, match="is no state"):
            BinSampler(10, seed=1).load_state_dict({**state, **change})
    with pytest.raises(OmniprepError, match="state has"):
        BinSampler(10, seed=1).load_state_dict({})


@pytest.mark.parametrize(
    "bad", [{"rank": 2, "world_size": 2}, {"rank": -1}, {"costs": np.ones(3)}, {"tail": True}, {"tail": "last"}]
)
def test_numbers_that_do_not_fit(bad):
    with pytest.raises(ValueError):
        BinSampler(10, **bad)
