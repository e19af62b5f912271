"""Risk: a loss that is not the reference's: another mean, another weight, another shift."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from train_helpers import forward_kwargs, make_row, small_model, write_dataset

from omniprep.data import PackedDataset, collate
from omniprep.data.loss import logits_loss, predicted
from omniprep.modalities import KINDS, row_kinds
from omniprep.train import loss as loss_module
from omniprep.train.attention_choice import use_attention
from omniprep.train.batches import Batcher
from omniprep.train.batches import forward_kwargs as batch_kwargs
from omniprep.train.loss import token_loss


def reference_loss(logits, labels, loss_scale, count):
    """ms-swift 3.9.3 trainers.py:307-408, per_token_loss_func and its caller, for one packed sequence."""
    logits = logits.float()
    shifted = torch.roll(labels, shifts=-1, dims=-1).view(-1)
    losses = cross_entropy(logits.view(-1, logits.shape[-1]), shifted, ignore_index=-100, reduction="none")
    if loss_scale is not None:
        losses = losses * torch.roll(loss_scale, shifts=-1, dims=-1).view(-1)
    return losses.sum() / count


@pytest.mark.parametrize("weighted", [False, True])
def test_the_step_loss_is_the_references(tmp_path, weighted):
    dataset = PackedDataset(str(write_dataset(tmp_path / "d", bins=2, weighted=weighted)))
    model = small_model().eval()
    use_attention(model, "sdpa")
    batcher = Batcher(dataset.layout.modalities)
    batches = [batcher([dataset[i]]) for i in range(2)]
    count = sum(len(b["targets"]) for b in batches)
    for i, batch in enumerate(batches):
        plain = collate([dataset[i]])
        assert count >= int((plain["labels"] != -100).sum()) > 0
        labels, scale = plain.pop("labels"), plain.pop("loss_scale", None)
        with torch.no_grad():
            logits = model(**plain).logits
            out = model(
                **batch_kwargs(batch, torch.device("cpu"), torch.float32),
                logits_to_keep=batch["positions"],
                targets=batch["targets"],
            )
        ours = out.losses if batch["weights"] is None else out.losses * batch["weights"]
        expected = reference_loss(logits, labels, scale, count)
        torch.testing.assert_close(ours.sum() / count, expected, rtol=1e-5, atol=1e-6)


def test_two_bins_in_one_pass_are_two_passes(tmp_path):
    dataset = PackedDataset(str(write_dataset(tmp_path / "d", bins=3, weighted=True)))
    model = small_model().eval()
    use_attention(model, "sdpa")
    batcher = Batcher(dataset.layout.modalities)

    def losses(bins):
        batch = batcher([dataset[i] for i in bins])
        with torch.no_grad():
            return model(
                **batch_kwargs(batch, torch.device("cpu"), torch.float32),
                logits_to_keep=batch["positions"],
                targets=batch["targets"],
            ).losses

    torch.testing.assert_close(losses([0, 2]), torch.cat([losses([0]), losses([2])]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [5, 100])
@pytest.mark.parametrize("fused", [True, False])
def test_losses_and_gradients_are_those_of_cross_entropy(monkeypatch, chunk, fused):
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False)
    targets, weights = torch.randint(0, 50, (23,)), torch.rand(23)
    whole = torch.randn(23, 16, requires_grad=True)
    logits = head(whole)
    losses = cross_entropy(logits, targets, reduction="none")
    (losses * weights).sum().backward()
    grad, head.weight.grad = head.weight.grad.clone(), None
    monkeypatch.setattr(loss_module, "CHUNK", chunk)
    if fused:
        loss_module.make_loss_head(head)
        assert isinstance(head, loss_module.LossHead) and torch.equal(head(whole), logits)
    parts = whole.detach().clone().requires_grad_()
    out = token_loss(parts, head, targets)
    (out.losses * weights).sum().backward()
    torch.testing.assert_close(out.losses, losses)
    assert torch.equal(out.correct, logits.argmax(-1) == targets)
    torch.testing.assert_close(parts.grad, whole.grad)
    torch.testing.assert_close(head.weight.grad, grad)


def test_no_row_predicts_the_next_and_no_label_is_lost():
    labels = torch.tensor([-100, 5, -100, 7, -100, 9])
    positions, targets, weights = predicted(labels, torch.arange(6.0))
    assert positions.tolist() == [0, 2, 4] and targets.tolist() == [5, 7, 9] and weights.tolist() == [1, 3, 5]


def test_a_bin_with_nothing_to_learn_gives_zero_and_gradients():
    model = small_model()
    use_attention(model, "sdpa")
    empty = torch.zeros(0, dtype=torch.int64)
    out = model(**forward_kwargs([make_row("text", np.random.default_rng(0))]), logits_to_keep=empty, targets=empty)
    out.losses.sum().backward()
    assert float(out.losses.sum()) == 0 and float(model.thinker.lm_head.weight.grad.abs().sum()) == 0


def test_kinds_of_rows():
    items = np.array([[0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 3], [1, 1, 0]])
    assert [KINDS[kind] for kind in row_kinds(items.T)] == ["text", "image", "audio", "video", "mixed"]
    assert row_kinds(np.zeros((3, 0)).T).tolist() == [0, 0, 0]  # a family of text alone


def test_logits_loss_is_float32():
    losses, _ = logits_loss(torch.randn(3, 7).bfloat16(), torch.tensor([1, 2, 3]))
    assert losses.dtype == torch.float32
