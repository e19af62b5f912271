"""Risk: a dataset with loss weights is trained without them, or with others than the reference's."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from train_helpers import small_model, write_dataset

from omniprep import PackedDataset, collate, weighted_loss
from omniprep.data.loss import WeightedLabels
from omniprep.errors import OmniprepError
from omniprep.train.batches import Batcher, forward_kwargs


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    return PackedDataset(write_dataset(tmp_path_factory.mktemp("weighted") / "d", bins=4, weighted=True))


@pytest.fixture(scope="module")
def model():
    """The class of transformers itself."""
    return small_model().thinker.eval()


def by_definition(logits, labels, scale):
    """ms-swift 3.9.3 trainers.py:307-408: of every labelled token, times its weight, over the number of them."""
    terms = [
        -logits[0, position - 1].double().log_softmax(-1)[label] * scale[0, position]
        for position, label in enumerate(labels[0].tolist())
        if label != -100
    ]
    return sum(terms) / len(terms)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_it_is_the_references(seed, length):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, length, 11, generator=generator, requires_grad=True)
    labels = torch.randint(0, 11, (1, length), generator=generator)
    labels[torch.rand(1, length, generator=generator) < 0.4] = -100
    labels[0, 0], labels[0, -1] = -100, 3
    scale = 3 * torch.rand(1, length, generator=generator)
    loss = weighted_loss(logits, {"labels": labels, "loss_scale": scale})
    expected = by_definition(logits, labels, scale)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    even = torch.arange(length) % 2 == 0
    count = int((labels != -100).sum())
    passes = [
        weighted_loss(
            logits, {"labels": torch.where(part, labels, -100), "loss_scale": scale}, num_items_in_batch=count
        )
        for part in (even, ~even)
    ]
    torch.testing.assert_close(passes[0] + passes[1], loss, rtol=1e-5, atol=1e-6)


def test_it_is_the_trainers(weighted, model):
    batcher, cpu = Batcher(weighted.layout.modalities), torch.device("cpu")
    for bins in ([weighted[0]], [weighted[1], weighted[2]]):
        batch = batcher(bins)
        with torch.no_grad():
            logits = model(**forward_kwargs(batch, cpu, torch.float32)).logits[0, batch["positions"]]
            terms = cross_entropy(logits, batch["targets"], reduction="none") * batch["weights"]
            mine = collate(bins)
            loss = weighted_loss(model(**mine).logits, mine)
        torch.testing.assert_close(loss, terms.sum() / len(terms))
        torch.testing.assert_close(
            loss.double(), by_definition(model(**mine).logits, mine["labels"], mine["loss_scale"])
        )


def test_of_a_dataset_without_weights_it_is_the_models_own(tmp_path, model):
    batch = collate([PackedDataset(write_dataset(tmp_path / "d", bins=1))[0]])
    with torch.no_grad():
        out = model(**batch)
    assert type(batch["labels"]) is torch.Tensor
    torch.testing.assert_close(weighted_loss(out.logits, batch), out.loss)


def test_the_models_own_loss_of_weighted_bins_is_refused(weighted, model):
    model.zero_grad()
    for batch in (collate([weighted[0]]), weighted.row("chats.jsonl", 1)):
        loss = model(**batch).loss
        for use in (
            lambda loss: loss.backward(),
            lambda loss: (loss / 4).backward(),
            lambda loss: torch.autograd.grad(loss.mean(), model.lm_head.weight),
            lambda loss: loss.item(),
            lambda loss: float(loss.detach().cpu()),
            lambda loss: f"{loss:.3f}",
        ):
            with pytest.raises(OmniprepError, match=r"omniprep\.weighted_loss"):
                use(loss)
    assert model.lm_head.weight.grad is None


def test_the_labels_are_labels_for_all_else(weighted):
    batch = collate([weighted[0]])
    labels, plain = batch["labels"], torch.from_numpy(weighted[0]["labels"]).long()[None]
    assert isinstance(labels, WeightedLabels) and labels.dtype == torch.int64 and torch.equal(labels, plain)
    for view in (labels[..., 1:].contiguous(), labels.to("cpu").clone(), labels.view(-1), labels.split(4, 1)[0]):
        assert isinstance(view, WeightedLabels), "a model shifts and flattens them, and they stay what they are"
    assert isinstance(pickle.loads(pickle.dumps(labels)), WeightedLabels)
    assert torch.equal(pickle.loads(pickle.dumps(labels)), plain)
    # Somebody's own loss that knows the weights.
    logits = torch.randn(plain.numel(), 1000, requires_grad=True)
    losses = cross_entropy(logits, labels.view(-1), reduction="none", ignore_index=-100)
    own = (losses * batch["loss_scale"].view(-1)).sum() / labels.ne(-100).sum()
    own.backward()
    assert type(own) is torch.Tensor and own.item() > 0 and logits.grad is not None


def test_they_come_out_of_reader_processes_as_they_went_in(weighted):
    loader = torch.utils.data.DataLoader(weighted, batch_size=2, num_workers=2, collate_fn=collate)
    for number, batch in enumerate(loader):
        want = collate([weighted[2 * number], weighted[2 * number + 1]])
        assert type(batch["labels"]) is WeightedLabels and torch.equal(batch["labels"], want["labels"])
        assert torch.equal(batch["loss_scale"], want["loss_scale"])
    assert number == 1


def test_a_compiled_model_is_refused_too(weighted, model):
    batch = collate([weighted[0]])

    @torch.compile(backend="eager")
    def own_loss(labels, logits):
        shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].contiguous().view(-1)
        return cross_entropy(logits[0], shifted, ignore_index=-100)

    loss = own_loss(batch["labels"], torch.randn(1, batch["labels"].numel(), 1000, requires_grad=True))
    with pytest.raises(OmniprepError, match=r"omniprep\.weighted_loss"):
        loss.backward()


def test_it_wants_the_logits_of_all_positions(weighted):
    batch = collate([weighted[0]])
    length = batch["labels"].shape[1]
    for shape in ((length, 9), (1, length - 1, 9), (1, 1, 9), (2, length, 9)):
        with pytest.raises(OmniprepError, match="every position"):
            weighted_loss(torch.zeros(shape), batch)
    nothing = {"labels": torch.full((1, 3), -100)}
    assert weighted_loss(torch.zeros(1, 3, 5), nothing).item() == 0
