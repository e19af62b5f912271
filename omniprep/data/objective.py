"""What is learned from preferences: an objective with its parameters, and the formulas of its losses.

Formulas and names are TRL's (1.16: DPOTrainer, KTOTrainer, ORPOTrainer); label smoothing of the sigmoid loss and
`rpo_alpha` are those of ms-swift 3.9.3 (TRL 0.23). tests/test_preference_loss.py holds values and gradients against
TRL's own code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from omniprep.errors import OmniprepError, UsageError

OBJECTIVES = ("dpo", "kto", "orpo")


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What is learned from preferences, with TRL's names and defaults."""

    name: Literal["dpo", "kto", "orpo"] = "dpo"
    beta: float = 0.1
    """How strongly the model is held to its reference (ORPO: weight of the odds ratio)."""
    loss_type: str | None = None
    """One of `LOSS_TYPES[name]` (default: the first)."""
    label_smoothing: float = 0.0
    """DPO, sigmoid and robust: probability that a verdict is wrong."""
    rpo_alpha: float | None = None
    """DPO: weight of the cross entropy of preferred answers, which is added."""
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    orpo_nll: Literal["sequence", "answer"] = "sequence"
    """ORPO: whether its cross entropy is that of the preferred sequence, prompt included but without the placeholders
    of media (TRL), or of its labeled tokens alone (ms-swift)."""

    def __post_init__(self) -> None:
        """Refuse what no loss has."""
        if self.name not in OBJECTIVES:
            raise UsageError(f"--objective {self.name!r} is none of {', '.join(OBJECTIVES)}")
        types = LOSS_TYPES[self.name]
        if self.loss_type is not None and self.loss_type not in types:
            raise UsageError(f"--loss-type {self.loss_type!r}: --objective {self.name} has {', '.join(types)}")
        smooth = self.name == "dpo" and self.type in ("sigmoid", "robust")
        numbers = {
            "--beta": (self.beta > 0, "must be positive"),
            "--label-smoothing": (0 <= self.label_smoothing < 0.5, "is a probability from 0 to below 0.5"),
            "--desirable-weight": (self.desirable_weight >= 0, "must be 0 or more"),
            "--undesirable-weight": (self.undesirable_weight >= 0, "must be 0 or more"),
            "--rpo-alpha": (self.rpo_alpha is None or self.rpo_alpha > 0, "must be positive"),
        }
        for option, (good, rule) in numbers.items():
            if not good:
                raise UsageError(f"{option} {rule}")
        if self.label_smoothing and not smooth:
            raise UsageError("--label-smoothing is of --objective dpo with --loss-type sigmoid or robust")
        if self.rpo_alpha is not None and self.name != "dpo":
            raise UsageError("--rpo-alpha is of --objective dpo")
        if self.name != "kto" and (self.desirable_weight, self.undesirable_weight) != (1.0, 1.0):
            raise UsageError("--desirable-weight and --undesirable-weight are of --objective kto")
        if self.name != "orpo" and self.orpo_nll != "sequence":
            raise UsageError("--orpo-nll is of --objective orpo")

    @property
    def type(self) -> str:
        """The loss type, with the default of the objective."""
        return self.loss_type or LOSS_TYPES[self.name][0]

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities of a reference model are needed."""
        return self.name != "orpo"

    @property
    def needs_divergence(self) -> bool:
        """Whether the divergence from the reference is estimated, on answers of other rows."""
        return self.name == "kto" and self.type == "kto"

    @property
    def nll_weight(self) -> float:
        """Weight of the cross entropy of preferred answers beside the losses of pairs."""
        return 1.0 if self.name == "orpo" else (self.rpo_alpha or 0.0)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what `preference_terms` measures: TRL's."""
        rewards = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
        if self.name == "kto":
            return (*rewards, "kl") if self.needs_divergence else rewards
        paired = (*rewards, "rewards/accuracies", "rewards/margins")
        return (*paired, "log_odds_chosen", "log_odds_ratio") if self.name == "orpo" else paired


PairLoss = Callable[[Objective, Tensor, Tensor, Tensor, Tensor], Tensor]


def _sigmoid(o: Objective, chosen: Tensor, rejected: Tensor, *_: Tensor) -> Tensor:
    margin = o.beta * (chosen - rejected)
    return -logsigmoid(margin) * (1 - o.label_smoothing) - logsigmoid(-margin) * o.label_smoothing


def _robust(o: Objective, chosen: Tensor, rejected: Tensor, *_: Tensor) -> Tensor:
    margin = o.beta * (chosen - rejected)
    difference = -logsigmoid(margin) * (1 - o.label_smoothing) + logsigmoid(-margin) * o.label_smoothing
    return difference / (1 - 2 * o.label_smoothing)


def _hinge(o: Objective, chosen: Tensor, rejected: Tensor, *_: Tensor) -> Tensor:
    return relu(1 - o.beta * (chosen - rejected))


def _ipo(o: Objective, chosen: Tensor, rejected: Tensor, chosen_size: Tensor, rejected_size: Tensor) -> Tensor:
    # Means over tokens, as the authors of IPO confirmed to TRL: else the target 1 / (2 beta) would depend on lengths.
    return torch.square(chosen / chosen_size - rejected / rejected_size - 1 / (2 * o.beta))


def _sigmoid_norm(o: Objective, chosen: Tensor, rejected: Tensor, chosen_size: Tensor, rejected_size: Tensor) -> Tensor:
    return -logsigmoid(o.beta * (chosen / chosen_size - rejected / rejected_size))


def _nca_pair(o: Objective, chosen: Tensor, rejected: Tensor, *_: Tensor) -> Tensor:
    better, worse = o.beta * chosen, o.beta * rejected
    return -logsigmoid(better) - 0.5 * logsigmoid(-better) - 0.5 * logsigmoid(-worse)


def _sppo_hard(o: Objective, chosen: Tensor, rejected: Tensor, *_: Tensor) -> Tensor:
    return torch.square(chosen - 0.5 / o.beta) + torch.square(rejected + 0.5 / o.beta)


def _apo_zero(o: Objective, chosen: Tensor, rejected: Tensor, *_: Tensor) -> Tensor:
    return 1 - torch.sigmoid(o.beta * chosen) + torch.sigmoid(o.beta * rejected)


def _apo_down(o: Objective, chosen: Tensor, rejected: Tensor, *_: Tensor) -> Tensor:
    return torch.sigmoid(o.beta * chosen) + 1 - torch.sigmoid(o.beta * (chosen - rejected))


DPO: dict[str, PairLoss] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "nca_pair": _nca_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "sigmoid_norm": _sigmoid_norm,
}
LOSS_TYPES: Mapping[str, tuple[str, ...]] = {
    "dpo": tuple(DPO),
    "kto": ("kto", "apo_zero_unpaired"),
    "orpo": ("odds_ratio",),
}
"""Loss types of each objective, the default first."""


def kto_losses(o: Objective, chosen: Tensor, rejected: Tensor, divergence: Tensor | float | None) -> Tensor:
    """The sum over sequences."""
    if o.type == "apo_zero_unpaired":
        desirable, undesirable = 1 - torch.sigmoid(o.beta * chosen), torch.sigmoid(o.beta * rejected)
    else:
        if divergence is None:
            raise OmniprepError(
                "objective kto: give the estimate of the divergence (kl), or take --loss-type apo_zero_unpaired, which "
                "needs none"
            )
        desirable = 1 - torch.sigmoid(o.beta * (chosen - divergence))
        undesirable = 1 - torch.sigmoid(o.beta * (divergence - rejected))
    return o.desirable_weight * desirable.sum() + o.undesirable_weight * undesirable.sum()


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of x < 0 without cancellation; -27.6 where x is 0, an answer of which the model is certain."""
    x = torch.clamp(x, max=-1e-12)
    near = x > -0.6931472  # -log 2, where both forms are equally exact (Mächler 2012)
    # `where` passes gradients of both forms, so each gets an argument that is harmless to it.
    small, large = torch.where(near, x, -0.6931472), torch.where(near, -0.6931472, x)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def orpo_losses(o: Objective, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of pairs from mean log-probabilities of their tokens."""
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    ratio = logsigmoid(log_odds)
    better, worse = o.beta * chosen.detach(), o.beta * rejected.detach()
    metrics = {
        "rewards/chosen": better,
        "rewards/rejected": worse,
        "logps/chosen": chosen.detach(),
        "logps/rejected": rejected.detach(),
        "rewards/accuracies": (better > worse).float(),
        "rewards/margins": better - worse,
        "log_odds_chosen": log_odds.detach(),
        "log_odds_ratio": ratio.detach(),
    }
    return -o.beta * ratio, metrics
