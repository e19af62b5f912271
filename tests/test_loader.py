"""Risk: the loop that a stranger writes trains on less than the batch has, on the wrong bins, or on bins twice."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from train_helpers import small_config, small_model, write_dataset

import omniprep
from omniprep import BinSampler, PackedDataset
from omniprep.data import prefetch
from omniprep.data.loss import WeightedLabels
from omniprep.errors import DamagedDataError, OmniprepError

TYPES = {"model_types": ["qwen2_5_omni", "qwen2_5_omni_thinker"], "model": "small"}


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    return PackedDataset(write_dataset(tmp_path_factory.mktemp("loader") / "d", bins=7, **TYPES))


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    return PackedDataset(write_dataset(tmp_path_factory.mktemp("loader") / "w", bins=3, weighted=True, **TYPES))


def same(batch, expected):
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(batch[name], value) if isinstance(value, torch.Tensor) else batch[name] == value, name


def ids(batches):
    return [tuple(batch["input_ids"][0].tolist()) for batch in batches]


def bin_ids(ds, numbers):
    return [tuple(ds[int(n)]["input_ids"].tolist()) for n in numbers]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_it_is_what_the_dataset_collates_in_the_order_of_the_sampler(ds, workers, size):
    order = list(BinSampler(len(ds), seed=5, costs=ds.costs))
    batches = list(omniprep.loader(ds, batch_size=size, num_workers=workers, seed=5))
    assert len(batches) == -(-7 // size)
    for number, batch in enumerate(batches):
        same(batch, ds.collate([ds[i] for i in order[size * number :][:size]]))
        same(batch, omniprep.collate([ds[i] for i in order[size * number :][:size]]))
    assert batches[0]["use_cache"] is False and batches[0]["pixel_values"].dtype == torch.float32


def test_a_batch_of_a_reader_process_is_one_buffer_that_nobody_copies(ds):
    for batch in omniprep.loader(ds, num_workers=1, device="meta"):
        assert batch["input_ids"].device.type == "meta"
    inner = omniprep.loader(ds, num_workers=1)._loader
    for packed in inner:
        assert isinstance(packed, prefetch.OneBuffer) and packed.buffer.is_shared()
        stacked, buffer = packed.to(torch.device("cpu"))
        storages = {t.untyped_storage().data_ptr() for t in prefetch.tensors(stacked)}
        assert storages == {buffer.untyped_storage().data_ptr()}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("worlds", [(1, 1), (2, 3), (3, 1)])
def test_a_run_resumes_after_any_step_on_other_ranks(ds, workers, worlds):
    before, after = worlds
    for steps in (0, 1, 2):
        seen, states = [], []
        for rank in range(before):
            loader = omniprep.loader(ds, num_workers=workers, rank=rank, world=before, epoch=3)
            batches = iter(loader)
            seen += ids(next(batches) for _ in range(steps))
            states.append(json.loads(json.dumps(loader.state_dict())))  # after the readers have gone on
            batches.close()
        assert all(state == states[0] for state in states)
        for rank in range(after):
            loader = omniprep.loader(ds, rank=rank, world=after, tail="ragged")
            loader.load_state_dict(states[0])
            assert loader.epoch == 3
            loader.set_epoch(3)
            seen += ids(loader)
        assert sorted(seen) == sorted(bin_ids(ds, range(len(ds)))), (steps, "each bin once")


def test_epochs_follow_each_other_and_set_epoch_says_another(ds):
    loader = omniprep.loader(ds)
    orders = []
    for epoch in (0, 1, 5):
        sampler = BinSampler(len(ds), costs=ds.costs)
        sampler.set_epoch(epoch)
        orders.append(bin_ids(ds, sampler))
    assert len({tuple(order) for order in orders}) == 3
    assert ids(loader) == orders[0] and loader.epoch == 1
    assert ids(loader) == orders[1] and loader.epoch == 2
    loader.set_epoch(5)
    first = next(iter(loader))
    assert ids([first]) == orders[2][:1]
    assert ids(loader) == orders[2], "an iteration that was left is begun anew"
    assert ids(omniprep.loader(ds, epoch=5)) == orders[2]


@pytest.mark.parametrize(("tail", "steps"), [("pad", (3, 3, 3)), ("drop", (2, 2, 2)), ("ragged", (3, 2, 2))])
def test_bins_that_do_not_divide_among_the_ranks(ds, tail, steps):
    loaders = [omniprep.loader(ds, rank=rank, world=3, tail=tail) for rank in range(3)]
    assert tuple(len(loader) for loader in loaders) == steps
    seen = [ids(loader) for loader in loaders]
    assert tuple(map(len, seen)) == steps
    assert len({i for part in seen for i in part}) == (6 if tail == "drop" else 7)


def test_the_rank_is_that_of_the_process(ds, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    sampler = omniprep.loader(ds).sampler
    assert (sampler.rank, sampler.world_size) == (1, 3)
    sampler = omniprep.loader(ds, rank=0, world=2).sampler
    assert (sampler.rank, sampler.world_size) == (0, 2)
    with pytest.raises(OmniprepError, match="go together"):
        omniprep.loader(ds, world=2)
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(OmniprepError, match="WORLD_SIZE=many"):
        omniprep.loader(ds)
    with pytest.raises(OmniprepError, match="rank 2 of 2"):
        omniprep.loader(ds, rank=2, world=2)


DISTRIBUTED = """
import sys, omniprep, torch
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=int(sys.argv[3]), world_size=2)
ds = omniprep.PackedDataset(sys.argv[1])
print([tuple(b["input_ids"][0].tolist()) for b in omniprep.loader(ds, num_workers=1)])
"""


def test_two_processes_share_the_bins(ds, tmp_path):
    environment = {n: v for n, v in os.environ.items() if n not in ("RANK", "WORLD_SIZE")}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", DISTRIBUTED, ds.uri, tmp_path / "store", str(rank)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    for rank, (out, _) in enumerate(outputs):
        assert eval(out) == bin_ids(ds, BinSampler(len(ds), rank=rank, world_size=2, costs=ds.costs))


def test_a_batch_has_no_weights_that_a_model_would_ignore(weighted):
    model = small_model().thinker
    loader = omniprep.loader(weighted, model=model, num_workers=1)
    for number, batch in zip(BinSampler(3, costs=weighted.costs), loader, strict=True):
        assert "loss_scale" not in batch and type(batch["labels"]) is WeightedLabels
        full = omniprep.collate([weighted[number]])
        assert torch.equal(batch["labels"].loss_scale, full["loss_scale"])
        with torch.no_grad():
            out = model(**batch)
            loss = omniprep.weighted_loss(out.logits, batch)
            torch.testing.assert_close(loss, omniprep.weighted_loss(out.logits, full), rtol=0, atol=0)
            assert torch.equal(loss, omniprep.weighted_loss(out.logits, batch["labels"])), "the labels are enough"
            unweighted = omniprep.weighted_loss(out.logits, {"labels": full["labels"].as_subclass(torch.Tensor)})
        assert not torch.isclose(loss, unweighted)
        with pytest.raises(OmniprepError, match=r"omniprep\.weighted_loss"):
            out.loss.item()


def test_labels_keep_their_weights_only_where_they_still_belong_to_them(weighted):
    labels = weighted.collate([weighted[0]])["labels"]
    logits = torch.zeros(1, labels.shape[1], 9)
    for kept in (labels.clone(), labels.to("cpu", torch.int64), labels.detach(), labels.contiguous()):
        assert torch.equal(kept.loss_scale, labels.loss_scale)
    for lost in (labels.roll(-1), labels[:, :], labels.view(1, -1)):
        with pytest.raises(OmniprepError, match="lost their weights"):
            omniprep.weighted_loss(logits, lost)


def test_a_bin_of_another_dataset_is_refused(ds, weighted, tmp_path):
    other = PackedDataset(write_dataset(tmp_path / "d", bins=1))
    foreign = {**other[0], "layout": replace(other.layout, family="elsewhere")}
    with pytest.raises(OmniprepError, match="two families, 'small' and 'elsewhere'"):
        ds.collate([foreign])
    with pytest.raises(OmniprepError, match="loss weights"):
        ds.collate([weighted[0]])
    with pytest.raises(OmniprepError, match="loss weights"):
        omniprep.loader([ds, weighted])
    with pytest.raises(OmniprepError, match="at least one bin"):
        ds.collate([])
    joined = omniprep.loader([ds, other], epoch=2)
    assert sorted(ids(joined)) == sorted(bin_ids(ds, range(7)) + bin_ids(other, range(1)))


def test_a_model_that_the_dataset_is_not_for_is_refused(ds, tmp_path):
    whole = small_model()
    assert omniprep.check_model(ds, whole.thinker) == frozenset()
    from transformers import Qwen2_5OmniForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

    model = Qwen2_5OmniForConditionalGeneration(small_config())
    with pytest.raises(OmniprepError, match=r"no forward pass of its own: give its part that trains, model\.thinker"):
        omniprep.loader(ds, model=model)
    other = Qwen2ForCausalLM(Qwen2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9))
    with pytest.raises(OmniprepError, match="is of model type 'qwen2'"):
        omniprep.loader(ds, model=other)
    for part, fault in (
        (model.thinker.model, "takes no labels"),
        (model.thinker.model.language_model, "'qwen2_5_omni_text'"),
    ):
        with pytest.raises(OmniprepError, match=fault):
            omniprep.loader(ds, model=part)
    # Of a dataset built before manifests had the model types: by the family, and by what the forward pass names.
    old = PackedDataset(write_dataset(tmp_path / "old", bins=1))
    assert old.record.model_types == ()
    with pytest.raises(OmniprepError, match=r"takes no .*pixel_values.* \(of .*image"):
        omniprep.loader(old, model=other)
    with pytest.raises(OmniprepError, match="takes no .*labels"):
        omniprep.loader(old, model=model.thinker.model)


class Strict(nn.Module):
    """A class without `**kwargs`, and without arguments for borders or a cache."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))

    def forward(
        self, input_ids, labels, position_ids, pixel_values=None, image_grid_thw=None, pixel_values_videos=None,
        video_grid_thw=None, input_features=None, feature_attention_mask=None,
    ):  # fmt: skip
        return input_ids.shape


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, **batch):
        return self.inner(**batch)


def test_arguments_that_a_class_may_lack_are_left_out(ds):
    model = Strict()
    for batch in omniprep.loader(ds, model=model, num_workers=1):
        assert model(**batch)[0] == 1 and not {"use_cache", "cu_seq_lens_q", "max_length_k"} & batch.keys()
        assert batch.get("pixel_values", model.weight).dtype == torch.bfloat16, "the type of the model's weights"
    for wrapped in (Wrapper(model), torch.compile(model, backend="eager")):
        omniprep.loader(ds, model=wrapped)
    with pytest.raises(OmniprepError, match="takes no feature_attention_mask, image_grid_thw"):
        omniprep.check_model(ds, OnlyText())


class OnlyText(nn.Module):
    def forward(self, input_ids, labels, position_ids, **ignored):
        return input_ids


def test_wrapped_models_are_looked_into(ds):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(small_model().thinker, LoraConfig(target_modules=["q_proj"]))
    assert omniprep.check_model(ds, adapted) == frozenset()
    assert omniprep.check_model(ds, nn.DataParallel(adapted)) == frozenset()
    with pytest.raises(OmniprepError, match="takes no"):
        omniprep.check_model(ds, nn.DataParallel(OnlyText()))


def test_what_a_reader_process_raises_is_one_line(tmp_path):
    folder = write_dataset(tmp_path / "d", bins=2)
    (shard,) = (folder / "shards").iterdir()
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 255
    shard.write_bytes(bytes(data))
    for workers in (0, 1):
        with pytest.raises(DamagedDataError) as raised:
            list(omniprep.loader(PackedDataset(folder), num_workers=workers))
        assert "\n" not in str(raised.value) and str(raised.value).startswith("bin ")


def test_numbers_that_do_not_fit(ds):
    for wrong in ({"batch_size": 0}, {"num_workers": -1}):
        with pytest.raises(OmniprepError, match="at least"):
            omniprep.loader(ds, **wrong)
    with pytest.raises(OmniprepError, match="no bins"):
        omniprep.loader([])
    loader = omniprep.loader(ds)
    with pytest.raises(OmniprepError, match="num_bins"):
        loader.load_state_dict({**loader.state_dict(), "num_bins": 99})


def test_the_collate_of_a_dataset_goes_into_a_data_loader(ds):
    loader = torch.utils.data.DataLoader(ds, batch_size=2, num_workers=1, collate_fn=partial(ds.collate))
    for number, batch in enumerate(loader):
        same(batch, ds.collate([ds[i] for i in range(2 * number, min(2 * number + 2, 7))]))
    assert number == 3 and np.all(ds.costs > 0)
