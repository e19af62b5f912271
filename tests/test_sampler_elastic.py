"""Risk: after a restart on another number of GPUs, bins seen twice or never, or ranks that disagree about the order."""

import numpy as np
import pytest
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
        part, state = take(ranks(n, world, state=state, costs=costs), steps)
        assert sorted(seen + part) == sorted(whole[: len(seen) + len(part)]), "a prefix of the one global order"
        seen += part
    rest, state = take(ranks(n, 4, state=state, costs=costs), n)
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


def test_drop_last_gives_all_ranks_as_many_steps():
    counts = [(len(s), len(list(s))) for s in ranks(101, 8, drop_last=True)]
    assert counts == [(12, 12)] * 8
    assert [len(s) for s in ranks(101, 8)] == [13] * 5 + [12] * 3
    state = {**BinSampler(101, seed=3).state_dict(), "epoch": 2, "consumed": 96}
    assert [len(list(s)) for s in ranks(101, 2, drop_last=True, state=state)] == [2, 2]


def test_a_foreign_state_is_refused():
    state = BinSampler(10, seed=1).state_dict()
    for other in (BinSampler(11, seed=1), BinSampler(10, seed=2), BinSampler(10, seed=1, costs=np.ones(10))):
        with pytest.raises(OmniprepError, match="state has"):
            other.load_state_dict(state)


@pytest.mark.parametrize("bad", [{"rank": 2, "world_size": 2}, {"rank": -1}, {"costs": np.ones(3)}])
def test_numbers_that_do_not_fit(bad):
    with pytest.raises(ValueError):
        BinSampler(10, **bad)
