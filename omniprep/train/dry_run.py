"""The costliest bin, forward and backward, before hours are spent: does it fit, and how long does a step take?"""

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omniprep.data.loss import logits_loss
from omniprep.progress import Reporter
from omniprep.train.batches import Batcher, Bins, forward_kwargs
from omniprep.train.config import TrainConfig
from omniprep.train.freeze import keep_frozen_in_eval
from omniprep.train.stream import Mixture

__all__ = ["dry_run"]


def dry_run(
    model: Any,
    bins: Bins,
    mixture: Mixture,
    batcher: Batcher,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    reporter: Reporter,
) -> Path:
    """Run one forward and backward pass on the costliest bins of the data, and report.

    Returns:
        `config.out`, untouched.
    """
    order = np.argsort(mixture.costs)[::-1] if mixture.costs is not None else np.arange(len(bins))
    batch = batcher([bins[int(i)] for i in order[: config.batch_size]])
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.to(device).train()
    keep_frozen_in_eval(model)
    began = time.perf_counter()
    kwargs = forward_kwargs(batch, device, dtype)
    positions, targets = batch["positions"].to(device), batch["targets"].to(device)
    if hasattr(model.get_base_model() if config.lora else model, "touch_towers"):
        loss = model(**kwargs, logits_to_keep=positions, targets=targets).losses.mean()
    else:
        loss = logits_loss(model(**kwargs).logits[0][positions], targets)[0].mean()
    loss.backward()
    value, seconds = float(loss.detach()), time.perf_counter() - began
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    reporter.message(
        f"dry run: the costliest {config.batch_size} of {len(bins)} bins: {batch['tokens']:,} tokens, "
        f"{len(targets):,} of them predicted; "
        f"loss {value:.3f}; {seconds:.2f} s forward and backward; {memory:.2f} GiB at most; {trained:,} weights train "
        "(the optimizer needs 8 bytes more for each)"
    )
    return Path(config.out)
