"""The Hugging Face Trainer over packed bins: its launch, optimizer, schedule, sharding and logging, our data, loss and
checkpoints.

What is ours, and why:
- Data: one long "epoch" that starts where the checkpoint stopped, so that the Trainer never skips or re-reads
  (stream.py).
- Loss: terms of labeled tokens, weighted as the reference does, over the number of labeled tokens of the whole step
  on all ranks: the gradient of a step is that of one big batch, however it is split. So it is with preferences, whose
  losses are divided by the pairs of the step.
- Checkpoints: whole ones in the original layout, `data_state.json` last. Weights are restored by loading the checkpoint
  itself (run.py), since the Trainer would compare its names with the module's and skip all of them silently.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, save_fsdp_optimizer
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments

from omniprep.data.loss import apply_weights
from omniprep.data.preference import divergence_of, preference_terms, total_loss
from omniprep.data.prefetch import moved
from omniprep.errors import OmniprepError
from omniprep.train.any_class import AnyPacked
from omniprep.train.batches import BatchLoader, forward_kwargs
from omniprep.train.checkpoint import complete, write_position
from omniprep.train.config import TrainConfig
from omniprep.train.data import RunData
from omniprep.train.facts import RowFacts, write_facts
from omniprep.train.flops import StepWork
from omniprep.train.forward import ForwardPass, touches_towers
from omniprep.train.freeze import Parts, keep_frozen_in_eval, parameter_groups
from omniprep.train.isolation import filler_rows
from omniprep.train.meter import Meter, metric_means
from omniprep.train.preference import step_counts
from omniprep.train.refuse import check_ranks
from omniprep.train.vision_text import Packed
from omniprep.train.widths import with_padded_states, without_padding


class BinTrainer(Trainer):  # type: ignore[misc]
    """Trains on `BatchLoader`'s batches.

    `model` is wrapped by PEFT when adapters train; `args.max_steps` is the whole run's; `source` is the checkpoint that
    training began with, `generator` its prefixes that are not loaded, `saved_files` patterns of more files of it that
    are copied. `identity` (resume.py) and `facts` (facts.py) say what the run is of and how rows were encoded, for its
    checkpoints.
    """

    optimizer: Any
    control: Any
    logged_at = 0

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        config: TrainConfig,
        parts: Parts,
        data: RunData,
        loader: BatchLoader,
        source: Path,
        dtype: torch.dtype,
        generator: tuple[str, ...],
        saved_files: tuple[str, ...] = (),
        identity: dict[str, Any],
        facts: Sequence[RowFacts],
    ) -> None:
        self.identity, self.facts = identity, facts
        self.config, self.parts, self.stream, self.loader = config, parts, data.stream, loader
        self.evaluation, self.source, self.weights_dtype, self.generator = data.evaluation, source, dtype, generator
        self.saved_files = saved_files
        self.started_at = 0  # optimizer steps before this process
        self.evaluated_at = -1  # the step of the last evaluation of this process
        self.best_loss, self.bad_logs = math.inf, 0
        super().__init__(model=model, args=args, eval_dataset=data.evaluation)
        self.loss_is_scaled_for_ga = True
        base: Any = model.get_base_model() if config.lora else model  # type: ignore[operator]
        self.objective = data.batcher.objective
        self.meter = Meter(data.batcher.kinds, data.batcher.sources, args.device, StepWork(base, parts), self.objective)
        self.forward_pass = ForwardPass.of(base)
        trained = {parts.part_of(n) for n, p in base.named_parameters() if p.requires_grad}
        keep_frozen_in_eval(model, parts)
        if isinstance(base, Packed):
            data.batcher.geometry = base.geometry  # before a reader process starts with it
        if touches_towers(base):
            # With one rank too: else weights of a tower would decay in a step or not, depending on the number of ranks.
            base.touch_towers = args.world_size > 1 or bool(trained & {"tower", "aligner"})
        elif isinstance(base, AnyPacked):
            shared = args.world_size > 1 and bool(config.fsdp or config.deepspeed)
            if shared or trained & {"tower", "aligner"}:  # with one rank too, as above
                data.batcher.fillers = filler_rows(data.bins.datasets)
        elif args.world_size > 1 and parts.towers:
            check_ranks(type(base).__name__, trained, config)

    def create_accelerator_and_postprocess(self) -> None:
        """Let --fsdp hold on the CPU too, where accelerate 1.15 would leave it out without a word."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and self.accelerator.distributed_type == DistributedType.MULTI_CPU:
            self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            self.accelerator.state.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True
        if self.config.fsdp and not self.is_fsdp_enabled:
            raise OmniprepError("--fsdp needs several ranks: torchrun --nproc-per-node N -m omniprep train …")

    # Data

    def get_train_dataloader(self) -> BatchLoader:
        """The run's batches; not handed to accelerate, which would share them out again."""
        return self.loader

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """What the step's sums are divided by, on all ranks: its labeled tokens; of preferences `step_counts`."""
        counts = self.local_items(batch_samples)
        if self.args.world_size == 1:
            return counts
        many = counts if isinstance(counts, tuple) else (counts,)
        # Filled in on the device: a copy from the host would wait for it.
        filled = torch.stack([torch.full((), count, dtype=torch.int64, device=device) for count in many])
        summed: Tensor = self.accelerator.reduce(filled)
        return summed if isinstance(counts, tuple) else summed[0]

    def local_items(self, batches: list[dict[str, Any]]) -> int | tuple[int, int]:
        """The same of some batches of this rank alone."""
        return sum(len(b["targets"]) for b in batches) if self.objective is None else step_counts(batches)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Nothing: `compute_loss` takes the batch as it is."""
        return inputs

    # Loss

    def token_losses(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Losses (K) in float32 and hits (K) of a batch's targets."""
        kwargs = forward_kwargs(batch, self.args.device, self.weights_dtype)
        return self.forward_pass.losses(
            model, kwargs, batch["positions"], batch["targets"], batch["numbers"], self.args.device
        )

    def divergence(self, model: nn.Module, batch: dict[str, Any], *, everywhere: bool = True) -> Tensor | None:
        """KTO's estimate of the divergence from the reference: over the sequences of one pass of all ranks (or of this
        rank alone), as TRL has it; None for an objective without one.

        Before the pass that is learned from: models keep the borders of rows of their last pass for the backward one.
        """
        other = batch["mismatched"]
        if other is None:
            return None
        device = self.args.device
        with torch.no_grad():
            passed = {"stacked": {**batch["stacked"], **other.stacked}}
            kwargs = forward_kwargs(passed, device, self.weights_dtype)
            sides = moved(other.sides, device)
            losses, _ = self.forward_pass.losses(model, kwargs, sides.positions, sides.targets, other.numbers, device)
            sums = torch.stack(divergence_of(losses, sides, other.donors.to(device)))
        total, count = self.accelerator.reduce(sums) if everywhere else sums
        return (total / count.clamp(min=1)).clamp(min=0)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        everywhere: bool = True,
    ) -> Tensor:
        """The step's share of the mean over all labeled tokens, or pairs, times the ranks, since these are averaged.

        Without `everywhere` no rank waits for another.
        """
        assert num_items_in_batch is not None
        divergence = self.divergence(model, inputs, everywhere=everywhere)
        losses, correct = self.token_losses(model, inputs)
        if self.objective is not None:
            terms = preference_terms(self.objective, losses, moved(inputs["sides"], self.args.device), divergence)
            self.meter.add(losses, correct, inputs)
            self.meter.add_metrics(terms.metrics)
            return total_loss(self.objective, terms, num_items_in_batch) * self.args.world_size
        weighted = apply_weights(losses, inputs["weights"])
        self.meter.add(weighted, correct, inputs)
        count = (
            num_items_in_batch.clamp(min=1) if isinstance(num_items_in_batch, Tensor) else max(num_items_in_batch, 1)
        )
        return weighted.sum() / count * self.args.world_size

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: the Trainer's own count walks over all modules in every pass; the meter logs what is computed."""
        return 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW (or --optimizer) with a group for tower, aligner and language model."""
        if self.optimizer is None:
            trained = self.model if model is None else model
            decay = set(self.get_decay_parameter_names(trained))
            groups = parameter_groups(trained, self.parts, self.config, decay)
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = cls(groups, **kwargs)
        return self.optimizer

    # Log

    @property
    def position(self) -> int:
        """Bins of the global sequence consumed so far."""
        return self.stream.start + (self.state.global_step - self.started_at) * self.stream.step_bins

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add our measures to a training log, and end a run that has gone wrong."""
        self.state.epoch = min(self.position, self.stream.total) / self.stream.mixture.epoch_bins
        if "loss" in logs:
            steps = self.state.global_step - self.logged_at
            logs |= self.meter.take(self.loader.waited, steps, self.accelerator.reduce)
            self.logged_at = self.state.global_step
            if logs["learned_tokens"]:  # a loss of nothing is 0, which no later loss could match
                self._stop_when_lost(logs["loss"])
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Tensor | float | None, *args: Any, **kwargs: Any
    ) -> None:
        """Read loss and gradient norm for a log line at once: the Trainer would wait for each."""
        logs = self.control.should_log and self.state.global_step > self._globalstep_last_logged
        if logs and self.args.world_size == 1 and isinstance(grad_norm, Tensor):
            loss, grad_norm = torch.stack([tr_loss, grad_norm.to(tr_loss)]).tolist()
            tr_loss.zero_()
            tr_loss = torch.tensor(loss)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def check_weights(self) -> None:
        """Refuse to save weights that are not finite on any rank: a step may lose them before its loss is logged."""
        lost = torch.zeros(1, device=self.args.device)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                held = parameter.to_local() if isinstance(parameter, DTensor) else parameter
                lost += (~torch.isfinite(held.detach())).any().to(lost.device)
        if float(self.accelerator.reduce(lost)):
            self._stop_when_lost(math.nan)

    def _stop_when_lost(self, loss: float) -> None:
        """Raise when the loss is no number, or has stayed far above its best for three logs."""
        step, rate = self.state.global_step, self.config.peak_lr
        if not math.isfinite(loss):
            raise OmniprepError(
                f"the loss is {loss} at step {step}: lower --learning-rate (now {rate:g}) or --max-grad-norm"
                + ("" if self.weights_dtype == torch.float32 else ", or use --dtype float32 --amp")
                + "; the last good checkpoint is in --out (--resume auto)"
            )
        self.bad_logs = self.bad_logs + 1 if loss > max(3 * self.best_loss, self.best_loss + 3) else 0
        self.best_loss = min(self.best_loss, loss)
        if self.bad_logs >= 3:
            raise OmniprepError(
                f"the loss diverges: {loss:.2f} at step {step}, after {self.best_loss:.2f}: "
                f"lower --learning-rate (now {rate:g}) or --max-grad-norm, or lengthen --warmup; --resume auto goes on"
            )

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss and accuracy over the evaluation bins, and metrics of preferences, over all ranks."""
        if self.evaluation is None:
            return {}
        self.evaluated_at = self.state.global_step
        self.model_wrapped.eval()
        objective, device = self.objective, self.args.device
        names = () if objective is None else objective.metrics
        # Loss, cross entropy beside it, hits, metrics: their sums, and what each is divided by.
        totals = torch.zeros(2, 3 + len(names), dtype=torch.float64, device=device)
        with torch.no_grad():
            for batch in self.evaluation:
                divergence = self.divergence(self.model_wrapped, batch)
                losses, correct = self.token_losses(self.model_wrapped, self._prepare_inputs(batch))
                if objective is None:
                    sums = [apply_weights(losses, batch["weights"]).sum(), losses.new_zeros(()), correct.sum()]
                    counts: list[float] = [len(losses), 0, len(losses)]
                else:
                    sides = moved(batch["sides"], device)
                    terms = preference_terms(objective, losses, sides, divergence)
                    values = [terms.metrics[name] for name in names]
                    hits = (correct * sides.preferred).sum()
                    sums = [terms.losses, terms.nll, hits, *(value.sum() for value in values)]
                    counts = [*sides.counts, float(sides.preferred.sum()), *(len(value) for value in values)]
                totals += torch.stack([torch.stack([part.double() for part in sums]), totals.new_tensor(counts)])
        sums, counts = self.accelerator.reduce(totals).tolist()
        loss, nll, accuracy = (total / max(count, 1.0) for total, count in zip(sums[:3], counts[:3], strict=True))
        if objective is not None:
            loss += objective.nll_weight * nll
        metrics = {"eval_loss": loss, "eval_token_accuracy": accuracy}
        metrics |= {f"eval_{name}": mean for name, mean in metric_means(names, [*sums[3:], *counts[3:]]).items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Save and resume

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save a whole checkpoint, or an adapter."""
        if state_dict is not None:  # from FSDP: gathered on GPUs, still in shards on the CPU
            state_dict = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in state_dict.items()}
            state_dict = {n: t.wait() if isinstance(t, AsyncCollectiveTensor) else t for n, t in state_dict.items()}
        super()._save(output_dir, without_padding(self.model, state_dict))
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        if self.facts:
            write_facts(folder, self.facts)
        if not self.config.lora:
            complete(folder, self.source, self.generator, self.weights_dtype, self.saved_files)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save all, and last the position in the data, which marks the checkpoint as complete."""
        self.check_weights()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.is_dir():
            mixture = self.stream.mixture
            state = {
                "position": self.position,
                "sizes": list(mixture.sizes),
                "shares": mixture.shares,
                "seed": mixture.seed,
                **self.identity,
            }
            write_position(folder, state)

    @property
    def gathers(self) -> bool:
        """Whether FSDP gathers weights to save them (else each rank saves its shards)."""
        return self.is_fsdp_enabled and "FULL" in str(self.accelerator.state.fsdp_plugin.state_dict_type)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Leave out the second copy of the weights that the Trainer writes for FSDP."""
        if not self.gathers:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the Trainer, and the states in the shapes of this run's weights."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            with_padded_states(self.optimizer)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: the run has loaded the checkpoint as its model; but for weights saved in shards."""
        if self.is_fsdp_enabled and not self.gathers:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
