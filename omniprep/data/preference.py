"""The losses of preference rows (DPO, KTO, ORPO) over packed bins, where each answer is a sequence of the bin.

Log-probabilities are summed by sequence; the formulas are in objective.py. `omniprep train --objective` computes its
loss with the functions of this file too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from omniprep.data.loss import CHUNK, logits_loss, predicted
from omniprep.data.objective import DPO, Objective, kto_losses, orpo_losses
from omniprep.errors import OmniprepError

IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """What an objective takes of a batch: K targets in R sequences, and which sequences are compared.

    Attributes:
        positions: int64 (K): where a token is predicted. targets: int64 (K): which.
        sequences: int64 (K): sequence of each target.
        answered: float32 (K): 1 where the target is labeled, 0 where it counts for the cross entropy of ORPO alone.
        preferred: float32 (K): 1 where the target is labeled, and of a preferred answer.
        nll: float32 (K): 1 where the target counts for the cross entropy beside the losses of pairs.
        tokens: float32 (R): labeled tokens of each sequence.
        chosen, rejected: int64: the sequences that are compared. In pairs of one number at one place (dpo, orpo), or
            each by itself (kto).
        reference: float32 (R): log-probabilities of the reference model; None where they are not stored.
        counts: Pairs (kto: sequences), and targets of the cross entropy.
    """

    positions: Tensor
    targets: Tensor
    sequences: Tensor
    answered: Tensor
    preferred: Tensor
    nll: Tensor
    tokens: Tensor
    chosen: Tensor
    rejected: Tensor
    reference: Tensor | None
    counts: tuple[int, int]


def compared(
    objective: Objective,
    *,
    labels: Tensor,
    borders: Tensor,
    pair_ids: Tensor,
    chosen: Tensor,
    reference: Tensor | None = None,
    input_ids: Tensor | None = None,
    placeholders: Sequence[int] = (),
) -> Compared:
    """What an objective takes of a batch.

    Args:
        objective: dpo, kto or orpo, with its parameters.
        labels: int64 (L).
        borders: (R+1,), of the sequences.
        pair_ids: (R,): number of each sequence's pair; -1 without a partner.
        chosen: (R,): 1 preferred or desirable, 0 rejected or undesirable, -1 without a verdict.
        reference: float32 (R).
        input_ids: int64 (L); ORPO needs it for the cross entropy of prompts.
        placeholders: Ids of the tokens that stand for media, which ORPO's cross entropy leaves out.

    Raises:
        OmniprepError: A sequence with labels that the objective cannot use.
    """
    lengths = borders.diff().long()
    sequence_of = torch.repeat_interleave(torch.arange(len(lengths), device=labels.device), lengths.to(labels.device))
    pair_ids, chosen = pair_ids.to(labels.device).long(), chosen.to(labels.device).long()
    labeled = labels != IGNORED
    tokens = torch.zeros(len(lengths), device=labels.device).index_add_(0, sequence_of, labeled.float())
    first, second = _sides(objective, pair_ids, chosen, tokens)
    learned = labels
    if objective.name == "orpo" and objective.orpo_nll == "sequence":
        if input_ids is None:
            raise OmniprepError("orpo: the cross entropy of whole sequences needs the batch's input_ids")
        whole = torch.zeros(len(lengths), dtype=torch.bool, device=labels.device).index_fill_(0, first, True)
        counted = whole[sequence_of]
        counted[borders[:-1].long()] = False  # nothing predicts the first token of a sequence
        for token in placeholders:
            counted &= input_ids != token
        learned = torch.where(counted, input_ids, labels)
    positions, targets, _ = predicted(learned)
    sequences = sequence_of[positions + 1]
    first_answers = torch.zeros(len(lengths), device=labels.device).index_fill_(0, first, 1.0)
    of_first = first_answers[sequences]
    answered = labeled[positions + 1].float()
    preferred = of_first * answered
    nll = of_first if learned is not labels else preferred
    count = len(first) + (len(second) if objective.name == "kto" else 0)
    return Compared(
        positions=positions,
        targets=targets,
        sequences=sequences,
        answered=answered,
        preferred=preferred,
        nll=nll,
        tokens=tokens,
        chosen=first,
        rejected=second,
        reference=reference,
        counts=(count, int(nll.sum()) if objective.nll_weight else 0),
    )


def _sides(objective: Objective, pair_ids: Tensor, chosen: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The preferred and the other sequences; those of bins whose labels were taken away do not count."""
    counts = tokens > 0
    if bool((counts & (chosen < 0)).any()):
        raise OmniprepError(
            f"objective {objective.name}: the batch has a row without a verdict (neither a pair nor a label)"
        )
    if objective.name == "kto":
        return (counts & (chosen == 1)).nonzero()[:, 0], (counts & (chosen == 0)).nonzero()[:, 0]
    if bool((counts & (pair_ids < 0)).any()):
        raise OmniprepError(
            f"objective {objective.name}: the batch has an answer without a partner; single verdicts are for kto"
        )
    paired = pair_ids >= 0
    sides = [(paired & (chosen == side)).nonzero()[:, 0] for side in (1, 0)]
    sides = [side[pair_ids[side].argsort()] for side in sides]
    if not torch.equal(*(pair_ids[side] for side in sides)) or len(set(pair_ids[sides[0]].tolist())) < len(sides[0]):
        raise OmniprepError(f"objective {objective.name}: a pair of the batch is not one preferred and one rejected")
    either = counts[sides[0]] | counts[sides[1]]  # none of both: a bin whose labels were taken away
    sides = [side[either] for side in sides]
    if not bool(counts[torch.cat(sides)].all()):
        raise OmniprepError(f"objective {objective.name}: an answer of a pair has no labeled token")
    return sides[0], sides[1]


def sequence_sums(values: Tensor, batch: Compared) -> Tensor:
    """Sums (R) of the values (K) of the labeled targets of each sequence, in float32."""
    zeros = torch.zeros(len(batch.tokens), dtype=torch.float32, device=values.device)
    return zeros.index_add(0, batch.sequences, values.float() * batch.answered)


@dataclass(frozen=True, slots=True)
class Terms:
    """The loss of a batch before it is divided.

    Attributes:
        losses: Sum over pairs (kto: sequences).
        nll: Sum of the cross entropy of preferred answers, unweighted.
        metrics: Name → values (of each pair or sequence), without gradients.
    """

    losses: Tensor
    nll: Tensor
    metrics: dict[str, Tensor]


def preference_terms(
    objective: Objective, token_losses: Tensor, batch: Compared, divergence: Tensor | float | None = None
) -> Terms:
    """The loss of a batch from the cross entropy (K) of its targets, before it is divided by the counts of the step.

    Args:
        objective: dpo, kto or orpo.
        token_losses: float32 (K).
        batch: Of `compared`.
        divergence: KTO: the estimate of the divergence from the reference (`divergence_of`), 0 or more.
    """
    logps = -sequence_sums(token_losses, batch)
    chosen, rejected = logps[batch.chosen], logps[batch.rejected]
    nll = (token_losses.float() * batch.nll).sum()
    if objective.name == "orpo":
        losses, metrics = orpo_losses(
            objective, chosen / batch.tokens[batch.chosen], rejected / batch.tokens[batch.rejected]
        )
        return Terms(losses.sum(), nll, metrics)
    if batch.reference is None:
        raise OmniprepError(
            f"objective {objective.name}: the batch has no reference_logps: compute them once by omniprep score DIR "
            "--model MODEL"
        )
    chosen_ratio = chosen - batch.reference[batch.chosen]
    rejected_ratio = rejected - batch.reference[batch.rejected]
    metrics = {
        "rewards/chosen": objective.beta * chosen_ratio.detach(),
        "rewards/rejected": objective.beta * rejected_ratio.detach(),
        "logps/chosen": chosen.detach(),
        "logps/rejected": rejected.detach(),
    }
    if objective.name == "dpo":
        margins = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        metrics |= {"rewards/accuracies": (margins > 0).float(), "rewards/margins": margins}
        sizes = batch.tokens[batch.chosen], batch.tokens[batch.rejected]
        return Terms(DPO[objective.type](objective, chosen_ratio, rejected_ratio, *sizes).sum(), nll, metrics)
    losses = kto_losses(objective, chosen_ratio, rejected_ratio, divergence)
    if objective.needs_divergence:
        metrics["kl"] = torch.as_tensor(divergence, device=losses.device).detach().reshape(1)
    return Terms(losses, nll, metrics)


def divergence_of(token_losses: Tensor, batch: Compared, donors: Tensor) -> tuple[Tensor, Tensor]:
    """KTO's estimate of the divergence, as a sum and a number of sequences: their quotient, at least 0, is it.

    Args:
        token_losses: float32 (K), of a batch of bins by `mismatched`, computed without gradients.
        batch: Of that batch; its `reference` are the `reference_kl_logps`.
        donors: int64: the sequences that have the answer of another row.
    """
    if batch.reference is None:
        raise OmniprepError(
            "objective kto: the bins have no reference_kl_logps: compute them once by omniprep score DIR --model MODEL"
        )
    ratios = -sequence_sums(token_losses, batch) - batch.reference
    return ratios[donors].sum().detach(), torch.full((), len(donors), dtype=torch.float32, device=ratios.device)


def total_loss(objective: Objective, terms: Terms, counts: Sequence[Tensor | float]) -> Tensor:
    """The loss: the mean over the pairs of the step, and the weighted mean of the cross entropy over its tokens.

    `counts` are those of the step, as `Compared.counts`.
    """
    pairs, tokens = (torch.as_tensor(count, device=terms.losses.device).clamp(min=1) for count in counts)
    loss = terms.losses / pairs
    return loss + objective.nll_weight * terms.nll / tokens if objective.nll_weight else loss


def preference_loss(
    logits: Tensor,
    batch: Mapping[str, Any],
    objective: Objective | Literal["dpo", "kto", "orpo"] = "dpo",
    *,
    kl: Tensor | float | None = None,
    counts: Sequence[Tensor | float] | None = None,
    placeholders: Sequence[int] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of preference rows as `omniprep train --objective` computes it.

    Args:
        logits: (1, L, words), of the model for this batch.
        batch: From `ds.collate` or `omniprep.loader`: its labels, borders, `pair_ids`, `chosen` and, for dpo and kto,
            the `reference_logps` that `omniprep score` stored.
        objective: Its name, for TRL's defaults, or an `omniprep.Objective`.
        kl: KTO: the estimate of the divergence from the reference (`omniprep.kto_divergence`).
        counts: Pairs (kto: sequences) and targets of the cross entropy that the sums are divided by (default: of this
            batch). With gradient accumulation or several ranks: those of the whole step.
        placeholders: ORPO: ids of the tokens that stand for media (`ds.record.placeholders.values()`).

    Returns:
        The loss, a float32 scalar; and TRL's metrics of this batch, name → mean.
    """
    goal = Objective(name=objective) if isinstance(objective, str) else objective
    sides = batch_compared(goal, batch, batch.get("reference_logps"), logits, placeholders)
    terms = preference_terms(goal, chunked_losses(logits, sides), sides, kl)
    loss = total_loss(goal, terms, sides.counts if counts is None else counts)
    return loss, {name: values.mean() for name, values in terms.metrics.items() if len(values)}


def kto_divergence(logits: Tensor, batch: Mapping[str, Any], donors: Tensor) -> Tensor:
    """KTO's estimate of the divergence from the reference, for `preference_loss(kl=...)`.

    Args:
        logits: Of a batch of bins by `omniprep.mismatched`, computed without gradients.
        batch: That batch.
        donors: int64: its sequences that have the answer of another row (`omniprep.mismatched`).

    Returns:
        float32 scalar, 0 or more. On several ranks TRL takes the mean over them.
    """
    goal = Objective(name="kto")
    sides = batch_compared(goal, batch, batch.get("reference_logps"), logits, ())
    total, count = divergence_of(chunked_losses(logits, sides), sides, donors.to(logits.device))
    return (total / count.clamp(min=1)).clamp(min=0)


def batch_compared(
    objective: Objective,
    batch: Mapping[str, Any],
    reference: Tensor | None,
    logits: Tensor,
    placeholders: Sequence[int],
) -> Compared:
    """`compared` of a collated batch, on the device of its logits."""
    if "pair_ids" not in batch:
        raise OmniprepError(
            f"objective {objective.name}: the batch has no pair_ids: its dataset was built of rows without preferences "
            "(docs/training.md, Preferences)"
        )
    labels: Tensor = batch["labels"].as_subclass(Tensor)
    if logits.ndim != 3 or logits.shape[:2] != labels.shape or len(labels) != 1:
        raise OmniprepError(
            f"preference_loss: logits of shape {tuple(logits.shape)} for labels of shape {tuple(labels.shape)}: it "
            "takes the logits (1, L, words) of every position of the batch"
        )
    where = logits.device
    return compared(
        objective,
        labels=labels[0].to(where),
        borders=batch["cu_seq_lens_q"].to(where),
        pair_ids=batch["pair_ids"],
        chosen=batch["chosen"],
        reference=None if reference is None else reference.to(where),
        input_ids=batch["input_ids"][0].to(where),
        placeholders=placeholders,
    )


def chunked_losses(logits: Tensor, batch: Compared) -> Tensor:
    """Cross entropy (K) of the targets from logits (1, L, words)."""
    return torch.cat(
        [
            # Made again in the backward pass, as in `weighted_loss`.
            checkpoint(lambda chunk, ids: logits_loss(logits[0, chunk], ids)[0], chunk, ids, use_reentrant=False)
            for chunk, ids in zip(torch.split(batch.positions, CHUNK), torch.split(batch.targets, CHUNK), strict=True)
        ]
    )
