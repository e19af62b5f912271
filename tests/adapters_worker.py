"""One rank of other trainers' loops: `torchrun … adapters_worker.py MODEL DATA OUT TRAINER STEPS`.

Rank 0 writes the losses of the steps, means over the labeled tokens of all ranks, to OUT, as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from train_helpers import thinker_of
from transformers import TrainingArguments

from omniprep import PackedDataset, weighted_loss
from omniprep.adapters.accelerate import labeled_tokens, loader
from omniprep.adapters.transformers import PackedTrainer

RATE = 1e-2


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Plain gradient descent: Adam would make whole steps out of rounding where a gradient is nothing."""
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)


def trainer_of_transformers(model: Any, data: PackedDataset, out: Path, steps: int) -> list[float]:
    args = TrainingArguments(
        output_dir=str(out.parent), max_steps=steps, learning_rate=RATE, lr_scheduler_type="constant", optim="sgd",
        per_device_train_batch_size=1, logging_steps=1, report_to="none", use_cpu=True, save_strategy="no",
        disable_tqdm=True, max_grad_norm=0, seed=0,
    )  # fmt: skip
    trainer = PackedTrainer(model=model, args=args, train_dataset=data)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def loop_of_accelerate(model: Any, data: PackedDataset, out: Path, steps: int) -> list[float]:
    accelerator, losses = Accelerator(cpu=True), []
    model, optimizer = accelerator.prepare(model, optimizer_of(model))
    bins = loader(accelerator, data, model)
    for epoch in range(steps):
        bins.set_epoch(epoch)
        for batch in bins:
            labeled = labeled_tokens(accelerator, [batch])
            loss = weighted_loss(model(**batch).logits, batch, labeled) * accelerator.num_processes
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(accelerator.reduce(loss.detach(), "mean").item())
            if len(losses) == steps:
                return losses
    return losses


def loop_of_lightning(model: Any, data: PackedDataset, out: Path, steps: int) -> list[float]:
    import lightning

    from omniprep.adapters.lightning import PackedDataModule, labeled_on_all_ranks

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.losses = model, []

        def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
            loss = weighted_loss(self.model(**batch).logits, batch, labeled_on_all_ranks(self, batch))
            self.losses.append(self.trainer.strategy.reduce(loss.detach(), reduce_op="mean").item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self)

    module = Module()
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=out.parent,
    )  # fmt: skip
    trainer.fit(module, datamodule=PackedDataModule(data, model))
    return module.losses


def shares_of_transformers(model: Any, data: PackedDataset, out: Path, steps: int) -> list[list[int]]:
    """Bins that each rank gets in one epoch of the Trainer's loader."""
    args = TrainingArguments(output_dir=str(out.parent), use_cpu=True, report_to="none", per_device_train_batch_size=1)
    trainer = PackedTrainer(model=model, args=args, train_dataset=data)
    by_ids = {tuple(data[number]["input_ids"].tolist()): number for number in range(len(data))}
    mine = [by_ids[tuple(batch["input_ids"].flatten().tolist())] for batch in trainer.get_train_dataloader()]
    return trainer.accelerator.gather(torch.tensor([mine])).tolist()


TRAINERS = {
    "transformers": trainer_of_transformers,
    "accelerate": loop_of_accelerate,
    "lightning": loop_of_lightning,
    "shares": shares_of_transformers,
}


def main() -> None:
    checkpoint, folder, out, trainer, steps = sys.argv[1:]
    found = TRAINERS[trainer](thinker_of(Path(checkpoint)), PackedDataset(folder), Path(out), int(steps))
    if torch.distributed.get_rank() == 0:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
