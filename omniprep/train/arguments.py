"""A run's options as the Trainer's arguments."""

import dataclasses
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainingArguments

from omniprep.errors import OmniprepError
from omniprep.train.config import TrainConfig
from omniprep.train.deepspeed import deepspeed_config

NEVER = 1 << 40  # a number of steps that no run reaches


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """The Trainer's arguments; an OmniprepError where the process sees several GPUs."""
    args = schedule_arguments(config) | device_arguments(config)
    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    assert args.keys() <= known, args.keys() - known
    arguments = TrainingArguments(**args)
    if arguments.n_gpu > 1:
        raise OmniprepError(
            f"{arguments.n_gpu} GPUs are visible to one process: use torchrun --nproc-per-node {arguments.n_gpu} "
            "-m omniprep train …, or set CUDA_VISIBLE_DEVICES=0"
        )
    if config.deepspeed and arguments.world_size > 1:
        from deepspeed import init_distributed

        init_distributed(auto_mpi_discovery=False)  # ZeRO-3 shares the weights out while they are loaded
    return arguments


def schedule_arguments(config: TrainConfig) -> dict[str, Any]:
    """What is learned, and when it is logged, evaluated and saved."""
    return {
        "output_dir": config.out or "run",
        "max_steps": max(config.max_steps, 1),
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.grad_accumulation,
        "learning_rate": config.peak_lr,
        "weight_decay": config.weight_decay,
        "adam_beta2": config.adam_beta2,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup,
        "max_grad_norm": config.max_grad_norm,
        "logging_steps": config.steps_between_logs(config.max_steps or NEVER),  # run.py knows the steps of epochs
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "no" if config.dry_run else "steps",
        "save_steps": config.save_steps or NEVER,
        "save_total_limit": config.save_total_limit,
        "eval_strategy": "steps" if config.eval_steps and (config.eval_data or config.eval_fraction) else "no",
        "eval_steps": config.eval_steps or None,
        "seed": config.seed,
        "report_to": [] if "none" in config.report_to else list(config.report_to),
        "run_name": Path(config.out).name or None,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "ignore_data_skip": True,
    }


def device_arguments(config: TrainConfig) -> dict[str, Any]:
    """Where and how the model computes. Liger's kernels and torch.compile are put into the model (model.py)."""
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and not on_cpu)
    sharding: dict[str, Any] = {}
    if config.fsdp:
        sharding = {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
    if config.deepspeed:
        sharding = {"deepspeed": deepspeed_config(config.deepspeed)}
    fused = "adamw_torch" if on_cpu else "adamw_torch_fused"
    return {
        "optim": fused if config.optimizer == "auto" else config.optimizer,
        "bf16": config.amp or bool(config.deepspeed and half),
        "activation_checkpointing": config.gradient_checkpointing != "off",
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": on_cpu,
        "ddp_find_unused_parameters": False,
        **sharding,
    }


def quiet_libraries() -> None:
    """Keep the libraries' remarks about things that are meant off the terminal."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*")
    warnings.filterwarnings("ignore", module=r"torch\.(distributed|utils\.checkpoint|optim).*")
