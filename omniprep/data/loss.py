"""The loss of a bin with the weights of its tokens, and labels that keep a model's own loss from leaving them out.

The reference (ms-swift 3.9.3 trainers.py:307-408): cross entropy on float32 logits of labels shifted by one, times
loss_scale where the strategy is weighted, summed and divided by the number of labeled tokens (not by the sum of the
weights). `omniprep train` computes its loss with the functions of this file too.

The models of transformers accept any keyword argument, so they would take `loss_scale` and ignore it. The labels of a
weighted batch are therefore `WeightedLabels`: an int64 tensor like any other, except that a loss which torch reduces
from them without the weights can be neither differentiated nor read. Those of a batch of preference rows are
`PreferenceLabels`: the rejected answers are labeled too, so a loss of language modeling would train on them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, nll_loss
from torch.utils.checkpoint import checkpoint

from omniprep.errors import OmniprepError

LOSS_FIELDS = frozenset({"labels", "loss_scale", "pair_ids", "chosen", "reference_logps"})
"""Fields of a batch that are of its loss, not arguments of a forward pass that gives logits."""
NOT_FOR_LANGUAGE_MODELING = (
    "this dataset holds preference rows: a loss of language modeling would train on the rejected answers as on the "
    "preferred ones. Train with omniprep train --objective dpo, kto or orpo, call omniprep.preference_loss, "
    "or build with --preference ignore to train on the preferred answers alone"
)
CHUNK = 1024
"""Positions whose float32 logits exist at once: 1024 positions of 152,064 words are 0.6 GB."""


def weighted_loss(
    logits: Tensor, batch: Mapping[str, Any] | Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """The loss of a bin as `omniprep train` computes it: with `loss_scale` where the dataset is weighted.

    Args:
        logits: (1, L, words), of the model for this batch: `model(**batch).logits`.
        batch: From `omniprep.loader`, `ds.collate` or `collate`, or its labels (1, L) alone, which carry the weights of
            a weighted dataset. Without weights every labeled token counts 1.
        num_items_in_batch: Labeled tokens that the sum is divided by (default: those of this batch). With gradient
            accumulation or several ranks: those of the whole step, so that the step equals one large batch.

    Returns:
        float32 scalar.

    Raises:
        OmniprepError: The logits are not those of all L positions, or something that was done to the labels has lost
            their weights; or the batch holds preference rows.
    """
    labels: Tensor = batch if isinstance(batch, Tensor) else batch["labels"]
    if isinstance(labels, PreferenceLabels) or (not isinstance(batch, Tensor) and "chosen" in batch):
        raise OmniprepError(f"weighted_loss: {NOT_FOR_LANGUAGE_MODELING}")
    scale: Tensor | None = None if isinstance(batch, Tensor) else batch.get("loss_scale")
    if scale is None and isinstance(labels, WeightedLabels):
        scale = labels.loss_scale
        if scale is None:
            raise OmniprepError(
                "weighted_loss: these labels of a weighted dataset have lost their weights on the way (a view or slice "
                "of them has none): give it the batch as it came, or its labels"
            )
    if logits.ndim != 3 or logits.shape[:2] != labels.shape or len(labels) != 1:
        raise OmniprepError(
            f"weighted_loss: logits of shape {tuple(logits.shape)} for labels of shape {tuple(labels.shape)}: it takes "
            "the logits (1, L, words) of every position of the batch"
        )
    positions, targets, weights = predicted(
        labels.as_subclass(Tensor)[0].to(logits.device), None if scale is None else scale[0].to(logits.device)
    )
    losses = torch.cat(
        [
            # Made again in the backward pass: kept, the float32 copies of a 32k bin would take 20 GB.
            checkpoint(lambda chunk, ids: logits_loss(logits[0, chunk], ids)[0], chunk, ids, use_reentrant=False)
            for chunk, ids in zip(torch.split(positions, CHUNK), torch.split(targets, CHUNK), strict=True)
        ]
    )
    count = torch.as_tensor(len(targets) if num_items_in_batch is None else num_items_in_batch, device=losses.device)
    return apply_weights(losses, weights).sum() / count.clamp(min=1)


def predicted(labels: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Positions (K) whose next token is labeled, the targets (K) there, their weights (K) or None.

    The first label of each row is -100, so no row predicts the next.
    """
    positions = (labels[1:] != -100).nonzero()[:, 0]
    return positions, labels[positions + 1], None if scale is None else scale[positions + 1]


def logits_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (K) in float32 and hits (K) of logits (K, words)."""
    logits = logits.float()
    return cross_entropy(logits, targets, reduction="none"), logits.detach().argmax(-1) == targets


def apply_weights(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Losses (K), each times its weight (K) where there are weights."""
    return losses if weights is None else losses * weights.to(losses.device)


class UnweightedLoss(Tensor):
    """A loss of weighted labels that left the weights out; arithmetic passes that fact on, and using it raises."""

    why = (
        "this loss ignores loss_scale: the dataset was built with a weighted --loss-scale, and the model's own loss "
        "knows no weights. Use loss = omniprep.weighted_loss(model(**batch).logits, batch)"
    )

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Refuse gradients and numbers of this loss; everything else as torch does it."""
        if func in _USES_OF_A_LOSS:
            raise OmniprepError(cls.why)
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


class LossOfRejected(UnweightedLoss):
    """A loss of language modeling over preferred and rejected answers alike; using it raises."""

    why = NOT_FOR_LANGUAGE_MODELING


class WeightedLabels(Tensor):
    """Labels (1, L) of a weighted dataset, with their weights in `loss_scale`; see the module.

    Views, copies and slices of them are `WeightedLabels` again; copies alone keep the weights. Losses by token
    (`reduction="none"`), counts and comparisons are what they are for plain labels, so a loss that applies the weights
    itself works as it stands. A fused loss that never calls torch's `cross_entropy` or `nll_loss` (Liger's, say) is not
    noticed.
    """

    loss_scale: Tensor | None = None
    """float32 (1, L)."""
    reduced: ClassVar[type[UnweightedLoss]] = UnweightedLoss
    """What a loss becomes that torch reduces from them."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Mark a loss that was reduced without the weights; see the class."""
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        if not isinstance(result, WeightedLabels):
            return result
        if func in _COPIES and isinstance(args[0], WeightedLabels):
            result.loss_scale = args[0].loss_scale
        with torch._C.DisableTorchFunctionSubclass():
            if func in (cross_entropy, nll_loss):
                return result.as_subclass(result.reduced if result.ndim == 0 else Tensor)
            return result.as_subclass(Tensor) if result.is_floating_point() else result


class PreferenceLabels(WeightedLabels):
    """Labels (1, L) of a batch of preference rows, with their weights, where there are any.

    Everything that gives losses or log-probabilities by token works as with plain labels.
    """

    reduced = LossOfRejected


def with_weights(labels: Tensor, loss_scale: Tensor) -> WeightedLabels:
    """Labels (1, L) that carry their weights (1, L)."""
    weighted = labels.as_subclass(WeightedLabels)
    weighted.loss_scale = loss_scale
    return weighted


def of_preferences(labels: Tensor) -> PreferenceLabels:
    """Labels (1, L) of a batch that holds rejected answers too; weights that they carry stay."""
    scale = labels.loss_scale if isinstance(labels, WeightedLabels) else None
    guarded = labels.as_subclass(PreferenceLabels)
    guarded.loss_scale = scale
    return guarded


_COPIES = frozenset(
    (Tensor.to, Tensor.cuda, Tensor.cpu, Tensor.clone, Tensor.detach, Tensor.contiguous, Tensor.pin_memory)
)
"""What gives the same labels elsewhere, position by position, so that their weights still belong to them."""
_USES_OF_A_LOSS = frozenset(
    (
        *(Tensor.backward, torch.autograd.backward, torch.autograd.grad),
        *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__float__, Tensor.__format__),
    )
)
