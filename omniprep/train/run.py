"""One training run from its options to its saved model; what `omniprep train` calls on every rank."""

import dataclasses
import importlib.util
import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from omniprep.data import PackedDataset
from omniprep.errors import OmniprepError
from omniprep.families.context import resolve_family
from omniprep.progress import Reporter
from omniprep.train.batches import Batcher, BatchLoader, Bins, make_loader, number_sources
from omniprep.train.checkpoint import last_checkpoint, read_position, source_folder
from omniprep.train.config import TrainConfig, parse_source
from omniprep.train.console import ConsoleCallback
from omniprep.train.dry_run import dry_run
from omniprep.train.memory import explain_memory
from omniprep.train.model import add_lora, load_trainable, weights_dtype
from omniprep.train.refuse import check_datasets
from omniprep.train.stream import BinStream, Mixture
from omniprep.train.trainer import BinTrainer

__all__ = ["train"]

NEVER = 1 << 40  # a number of steps that no run reaches
SPLIT_SEED = 20  # the evaluation split must not move when --seed does


def train(config: TrainConfig, reporter: Reporter) -> Path:
    """Train, and save the model to `config.out`.

    Args:
        config: The run's options.
        reporter: Where progress goes.

    Returns:
        The folder of the trained model.

    Raises:
        OmniprepError: The data do not fit the model, or the run has failed in a way that an option mends.
    """
    quiet_libraries()
    check_packages(config)
    args = training_arguments(config)
    datasets = [PackedDataset(parse_source(d)[0], verify=config.verify) for d in config.data]
    evaluation = [PackedDataset(parse_source(d)[0], verify=config.verify) for d in config.eval_data]
    ctx = resolve_family(config.model, config.family, config.plugin)
    check_datasets([*datasets, *evaluation], ctx)
    checkpoint = find_checkpoint(config)
    device = args.device
    whole = checkpoint is not None and not config.lora and (checkpoint / "config.json").is_file()
    path = str(checkpoint) if whole else config.model
    model, parts = load_trainable(ctx, path, config, device)
    transformers.set_seed(config.seed)
    trained = add_lora(model, parts, config, checkpoint) if config.lora else model
    names, numbers = number_sources(datasets) if config.log_sources else ((), [])
    bins, held_out = split_bins(datasets, config, numbers)
    batcher = Batcher(datasets[0].layout.modalities, names)
    mixture = Mixture(
        sizes=[len(b) for b in bins.bins],
        shares=shares(datasets, bins, config),
        seed=config.seed,
        costs=costs(datasets, bins),
    )
    stream = make_stream(mixture, config, args, checkpoint)
    pin = device.type == "cuda"
    if config.dry_run:
        return dry_run(trained, bins, mixture, batcher, config, device, weights_dtype(config, device), reporter)
    batches = make_loader(bins, stream, batcher, config.num_workers, pin)
    started = step_of(checkpoint)
    args.max_steps = started + stream.steps
    loader = BatchLoader(batches, args.max_steps * config.grad_accumulation, device)
    trainer = BinTrainer(
        model=trained,
        args=args,
        config=config,
        parts=parts,
        stream=stream,
        loader=loader,
        evaluation=evaluation_loader(evaluation, held_out, Batcher(batcher.modalities), config, args),
        batcher=batcher,
        source=source_folder(config.model),
        dtype=weights_dtype(config, device),
        generator=tuple(ctx.arch.generator),
    )
    trainer.started_at = trainer.logged_at = started
    set_console(trainer, reporter)
    out = Path(config.out)
    if args.should_save:
        out.mkdir(parents=True, exist_ok=True)
        (out / "train_config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        raise OmniprepError(explain_memory(config, error)) from error
    trainer.evaluate()
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(out))
    if config.merge_lora and args.should_save:
        from omniprep.train.merge import merge_lora

        merge_lora(config.model, out, out / "merged", ctx, dtype=weights_dtype(config, device))
    return out


def check_packages(config: TrainConfig) -> None:
    """Refuse options whose packages are not installed.

    Raises:
        OmniprepError: Names the package.
    """
    needed = {"accelerate": "training"}
    needed |= {"peft": "--lora"} if config.lora else {}
    needed |= {"liger_kernel": "--liger"} if config.liger else {}
    needed |= {"deepspeed": "--deepspeed"} if config.deepspeed else {}
    needed |= {name: f"--report-to {name}" for name in config.report_to if name != "none"}
    for package, what in needed.items():
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            hint = "'omniprep[train]'" if package in ("accelerate", "peft", "tensorboard") else name
            raise OmniprepError(f"{what} needs the package {name}: pip install {hint}")


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """The Trainer's arguments."""
    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    sharding: dict[str, Any] = {}
    if config.fsdp:
        sharding = {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
    args: dict[str, Any] = {
        "output_dir": config.out or "run",
        "max_steps": max(config.max_steps, 1),
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.grad_accumulation,
        "learning_rate": config.peak_lr,
        "weight_decay": config.weight_decay,
        "adam_beta2": config.adam_beta2,
        "optim": config.optimizer,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup,
        "max_grad_norm": config.max_grad_norm,
        "logging_steps": config.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": config.save_steps or NEVER,
        "save_total_limit": config.save_total_limit,
        "eval_strategy": "steps" if config.eval_steps and (config.eval_data or config.eval_fraction) else "no",
        "eval_steps": config.eval_steps or None,
        "seed": config.seed,
        "bf16": config.amp,
        "activation_checkpointing": config.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "report_to": [] if "none" in config.report_to else list(config.report_to),
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "ignore_data_skip": True,
        "use_cpu": config.device == "cpu" or not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "torch_compile": config.torch_compile,
        "use_liger_kernel": config.liger,
        "deepspeed": config.deepspeed,
        **sharding,
    }
    assert args.keys() <= known, args.keys() - known
    arguments = TrainingArguments(**args)
    if arguments.n_gpu > 1:
        raise OmniprepError(
            f"{arguments.n_gpu} GPUs are visible to one process: use torchrun --nproc-per-node {arguments.n_gpu} "
            "-m omniprep train …, or set CUDA_VISIBLE_DEVICES=0"
        )
    return arguments


def find_checkpoint(config: TrainConfig) -> Path | None:
    """The checkpoint to go on from, or None."""
    if config.resume is None:
        return None
    found = last_checkpoint(Path(config.out)) if config.resume == "auto" else Path(config.resume)
    if found is not None:
        read_position(found)
    return found


def step_of(checkpoint: Path | None) -> int:
    """Optimizer steps a checkpoint has behind it."""
    if checkpoint is None:
        return 0
    return int(json.loads((checkpoint / "trainer_state.json").read_text())["global_step"])


def split_bins(
    datasets: list[PackedDataset], config: TrainConfig, sources: list[np.ndarray]
) -> tuple[Bins, list[np.ndarray]]:
    """The bins to train on, and those held out of each dataset (--eval-fraction)."""
    kept, held = [], []
    for number, dataset in enumerate(datasets):
        order = np.random.Generator(np.random.PCG64([SPLIT_SEED, number])).permutation(len(dataset))
        count = round(config.eval_fraction * len(dataset))
        if config.eval_fraction and len(dataset) > 1:
            count = min(max(count, 1), len(dataset) - 1)
        held.append(np.sort(order[:count]))
        kept.append(np.sort(order[count:]))
    return Bins(datasets, kept, sources), held


def costs(datasets: list[PackedDataset], bins: Bins) -> np.ndarray:
    """Cost of each bin that takes part, as the build reckoned it."""
    return np.concatenate([d.costs[b] for d, b in zip(datasets, bins.bins, strict=True)])


def shares(datasets: list[PackedDataset], bins: Bins, config: TrainConfig) -> list[float] | None:
    """Share of the bins of an epoch of each dataset, from the weights in --data; None where none is given.

    Raises:
        OmniprepError: Some have a weight and some have none.
    """
    weights = [parse_source(d)[1] for d in config.data]
    if all(w is None for w in weights):
        return None
    if any(w is None for w in weights):
        raise OmniprepError("give every dataset a weight (DIR:WEIGHT), or none")
    given = np.array(weights, dtype=np.float64)
    if config.weight_by == "tokens":
        given /= [d.index["tokens"][b].mean() for d, b in zip(datasets, bins.bins, strict=True)]
    return [float(x) for x in given / given.sum()]


def make_stream(mixture: Mixture, config: TrainConfig, args: TrainingArguments, checkpoint: Path | None) -> BinStream:
    """This rank's way through the data, from the checkpoint's place.

    Raises:
        OmniprepError: The checkpoint was made with other data, weights or seed; or nothing is left to do.
    """
    start = done = 0
    if checkpoint is not None:
        state, done = read_position(checkpoint), step_of(checkpoint)
        now = {"sizes": list(mixture.sizes), "shares": mixture.shares, "seed": mixture.seed}
        changed = [key for key in now if state[key] != now[key]]
        if changed:
            names = {"sizes": "--data", "shares": "the weights of --data", "seed": "--seed"}
            raise OmniprepError(
                f"--resume {checkpoint}: made with other data: {', '.join(names[c] for c in changed)} changed"
            )
        start = state["position"]
    step = args.world_size * config.batch_size * config.grad_accumulation
    if config.max_steps:
        steps = config.max_steps - done
        total = start + steps * step
    else:
        total = round(config.epochs * mixture.epoch_bins)
        steps = math.ceil((total - start) / step)
    if steps <= 0:
        raise OmniprepError(
            f"--resume {checkpoint}: nothing is left to do after its step {done}; raise --max-steps or --epochs"
        )
    return BinStream(
        mixture,
        total=total,
        start=start,
        steps=steps,
        rank=args.process_index,
        world_size=args.world_size,
        batch_size=config.batch_size,
        accumulation=config.grad_accumulation,
    )


def evaluation_loader(
    datasets: list[PackedDataset],
    held_out: list[np.ndarray],
    batcher: Batcher,
    config: TrainConfig,
    args: TrainingArguments,
) -> BatchLoader | None:
    """Batches to evaluate on, shared out over the ranks, or None."""
    if datasets:
        bins = Bins(datasets)
    elif any(len(h) for h in held_out):
        bins = Bins([PackedDataset(parse_source(d)[0], verify=config.verify) for d in config.data], held_out)
    else:
        return None
    each = math.ceil(len(bins) / (args.world_size * config.batch_size))
    stream = BinStream(
        Mixture(sizes=[len(bins)]),
        total=len(bins),
        start=0,
        steps=each,
        rank=args.process_index,
        world_size=args.world_size,
        batch_size=config.batch_size,
    )
    loader = make_loader(bins, stream, batcher, min(config.num_workers, 2), args.device.type == "cuda")
    return BatchLoader(loader, each, args.device)


def set_console(trainer: BinTrainer, reporter: Reporter) -> None:
    """Replace the Trainer's own printing by ours, on rank 0."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if trainer.is_world_process_zero():
        trainer.add_callback(ConsoleCallback(reporter))


def quiet_libraries() -> None:
    """Keep the libraries' remarks about things that are meant off the terminal."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*")
    warnings.filterwarnings("ignore", module=r"torch\.(distributed|utils\.checkpoint|optim).*")
