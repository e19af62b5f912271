"""One training run from its options to its saved model; what `omniprep train` calls on every rank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from omniprep.data import PackedDataset
from omniprep.families.context import resolve_family
from omniprep.progress import Reporter
from omniprep.train.arguments import quiet_libraries, training_arguments
from omniprep.train.batches import BatchLoader, make_loader
from omniprep.train.checkpoint import source_folder, weights_hash
from omniprep.train.checkpointing import choose_checkpointing
from omniprep.train.config import TrainConfig
from omniprep.train.console import ConsoleCallback, LastStepCallback
from omniprep.train.data import RunData, open_datasets, prepare_data, step_of
from omniprep.train.dry_run import dry_run
from omniprep.train.facts import facts_of_manifest, write_facts
from omniprep.train.folder import OPTIONS, prepare_folder
from omniprep.train.freeze import Parts, compute_frozen_towers_without_gradients
from omniprep.train.memory import memory_errors_as_one_line
from omniprep.train.model import add_lora, load_trainable, merge_lora, weights_dtype
from omniprep.train.packages import check_packages
from omniprep.train.preference import (
    check_mismatches,
    check_objective,
    check_references,
    without_dropout,
)
from omniprep.train.refuse import check_datasets, check_family
from omniprep.train.resume import changes, find_checkpoint, identity
from omniprep.train.structure import describe_parts
from omniprep.train.trainer import BinTrainer
from omniprep.train.widths import pad_widths, pads_widths


def train(config: TrainConfig, reporter: Reporter) -> Path:
    """Train, and save the model to `config.out`, which is returned."""
    if config.dry_run:
        return dry_run(config, reporter, prepare_run)
    with memory_errors_as_one_line(config):
        run = prepare_run(config, reporter)
    trainer, args = run.trainer, run.args
    set_console(trainer, reporter)
    out = Path(config.out)
    if args.should_save:
        out.mkdir(parents=True, exist_ok=True)
        options = config.to_dict()
        del options["overwrite"]  # the file may be given to --config: it must not remove the run that it came from
        (out / OPTIONS).write_text(yaml.safe_dump(options, sort_keys=False))
    with memory_errors_as_one_line(trainer.config):
        trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
        if trainer.evaluated_at != trainer.state.global_step:  # --eval-steps may have fallen on the last step
            trainer.evaluate()
    save(trainer, run.ctx, config, args)
    return out


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run before its first step.

    Attributes:
        trainer: The trainer, with model, data and the step that it begins at.
        args: Its arguments.
        ctx: Family context of the model.
        data: What it reads.
        checkpoint: Where it goes on from, or None.
    """

    trainer: BinTrainer
    args: TrainingArguments
    ctx: Any
    data: RunData
    checkpoint: Path | None


def _family(config: TrainConfig, datasets: Sequence[PackedDataset]) -> str | None:
    """The family of the model: as asked, else that of datasets which were built with --family hf, which any model of
    transformers may be; None: found from the checkpoint's config.
    """
    if config.family is None and datasets and all(len(ds) and ds.layout.family == "hf" for ds in datasets):
        return "hf"
    return config.family


def prepare_run(
    config: TrainConfig, reporter: Reporter, choose_data: Callable[[RunData], RunData] = lambda data: data
) -> Run:
    """Everything of a run but its steps: options and data checked, the model loaded and proven, the trainer made."""
    quiet_libraries()
    check_packages(config)
    args = training_arguments(config)
    datasets, evaluation = (open_datasets(sources, config) for sources in (config.data, config.eval_data))
    ctx = resolve_family(config.model, _family(config, datasets), config.plugin, None, config.trust_remote_code)
    check_datasets([*datasets, *evaluation], ctx)
    check_family(ctx, config)
    for text in check_preferences([*datasets, *evaluation], config, args.device):
        reporter.message(text)
    checkpoint = find_checkpoint(config)
    data = choose_data(prepare_data(datasets, evaluation, config, args, checkpoint))
    this_run = identity(config, datasets, ctx)
    for text in changes(checkpoint, this_run) if checkpoint is not None else ():
        reporter.message(text)
    if args.should_save:
        prepare_folder(config, checkpoint)
    model, parts = make_model(ctx, config, args.device, checkpoint, data.bins.datasets)
    if args.should_save and parts.towers and not ctx.arch.vision_tower:
        reporter.message(describe_parts(base_of(model), parts))
    started = step_of(checkpoint)
    args.max_steps = started + data.stream.steps
    args.logging_steps = config.steps_between_logs(args.max_steps)
    batches = make_loader(data.bins, data.stream, data.batcher, config.num_workers, args.device.type == "cuda")
    trainer = BinTrainer(
        model=model,
        args=args,
        config=config,
        parts=parts,
        data=data,
        loader=BatchLoader(batches, args.max_steps * config.grad_accumulation, args.device),
        source=source_folder(config.model),
        dtype=weights_dtype(config, args.device),
        generator=tuple(ctx.arch.generator),
        saved_files=tuple(ctx.saved_files),
        identity=this_run,
        facts=[facts_of_manifest(d.uri, d.record) for d in datasets],
    )
    trainer.started_at = trainer.logged_at = started
    choose_checkpointing(trainer, data, reporter)
    return Run(trainer=trainer, args=args, ctx=ctx, data=data, checkpoint=checkpoint)


def check_preferences(datasets: Sequence[PackedDataset], config: TrainConfig, device: torch.device) -> list[str]:
    """Refuse datasets that the objective cannot learn from, or whose reference is not the model that training begins
    with; what to say about the rest.
    """
    objective = config.preference
    check_objective(datasets, objective)
    if objective is None or not objective.needs_reference:
        return []
    told = check_mismatches(datasets) if objective.needs_divergence else []
    # All ranks of a machine read the same files: 15 GB of weights take seconds from the cache of its disk.
    weights, dtype = weights_hash(source_folder(config.model)), str(weights_dtype(config, device))
    return told + check_references(
        datasets, objective, config.model, weights, dtype.removeprefix("torch."), other=config.other_reference
    )


def base_of(model: Any) -> torch.nn.Module:
    """The model within PEFT's wrapper, or as it is."""
    base: torch.nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def make_model(
    ctx: Any, config: TrainConfig, device: torch.device, checkpoint: Path | None, datasets: Sequence[PackedDataset]
) -> tuple[torch.nn.Module, Parts]:
    """The model, with its adapters where they train; weights come from the checkpoint where there is one."""
    whole = checkpoint is not None and not config.lora and (checkpoint / "config.json").is_file()
    model, parts = load_trainable(ctx, str(checkpoint) if whole else config.model, config, device, datasets)
    transformers.set_seed(config.seed)
    trained = add_lora(model, parts, config, checkpoint) if config.lora else model
    if config.preference is not None:
        without_dropout(trained)
    if pads_widths(device, config.deepspeed):
        pad_widths(trained, config.optimizer)
    compute_frozen_towers_without_gradients(trained, parts)
    return trained, parts


def save(trainer: BinTrainer, ctx: Any, config: TrainConfig, args: TrainingArguments) -> None:
    """Write the trained model to the run's folder, and the merged one where it is asked for."""
    trainer.check_weights()
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(config.out)
    if config.merge_lora and args.should_save:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # else ZeRO-3 would share the model out over ranks that are not here
        out = Path(config.out)
        merge_lora(config.model, out, out / "merged", ctx, dtype=weights_dtype(config, args.device))
        if trainer.facts:
            write_facts(out / "merged", trainer.facts)


def leave_group() -> None:
    """Close the connections between the ranks of a finished run, before a rank's process ends.

    NCCL's threads would else outlive the run and warn at exit, or wait there for a rank that has left. Not for a run
    that failed: its other ranks may be in the middle of an operation.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def set_console(trainer: BinTrainer, reporter: Reporter) -> None:
    """Replace the Trainer's printing of log lines by omniprep's, on rank 0."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LastStepCallback)
    if trainer.is_world_process_zero():
        trainer.add_callback(ConsoleCallback(reporter))
