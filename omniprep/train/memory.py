"""What to change when the device's memory is not enough, most effective and least costly first."""

from omniprep.train.config import TrainConfig

__all__ = ["explain_memory"]


def explain_memory(config: TrainConfig, error: BaseException) -> str:
    """One line: what happened, and the settings that help with this run's options."""
    advice = []
    if config.batch_size > 1:
        advice.append(f"--batch-size 1 with --grad-accumulation {config.batch_size * config.grad_accumulation}")
    if not config.gradient_checkpointing:
        advice.append("--gradient-checkpointing")
    if not config.lora:
        advice.append("--lora")
    if not (config.fsdp or config.deepspeed):
        advice.append("--fsdp on several GPUs")
    if config.dtype == "float32":
        advice.append("--dtype bfloat16")
    advice.append("shorter bins (omniprep repack --bin-length, or --max-bin-patches at build)")
    first = " ".join(str(error).split())[:160]
    return f"the device is out of memory ({first}); try {', '.join(advice)}. --dry-run tries the costliest bin first"
