"""Tokens a second of each trainer's loop: packed shards against the same trainer that encodes JSONL on the fly.

    python benchmarks/adapters.py --model SMALL [--device cuda] [--shape 3b] [--rounds 3] [--inputs FOLDER] [--out FILE]

SMALL is a folder that `omniprep init-model` wrote; the weights of its thinker are drawn at random, in its own shape
or in that of Qwen2.5-Omni-3B or 7B, with the towers frozen and AdamW on the rest. On the fly means what most people do:
the rows of a JSONL file in a DataLoader whose collator reads pictures (Pillow) and sounds (soundfile), calls the
checkpoint's processor of transformers, and pads as many rows as a bin holds on average. Both sides have the same rows,
loop, reader processes, optimizer and model, and take turns, round by round; the median of the rounds is told. Tokens
are those of rows, without padding, of the steps after the first ones, which start readers and kernels.

On a GPU seconds are those of the clock. On the CPU, where reading and training share the cores, they are CPU seconds of
one thread that does both: there the loops are compared, and what encoding takes away from training; waiting is not.

Rows, media and shards are made from noise in a folder of their own. `--inputs FOLDER` keeps them there, and takes them
from there when it holds them (`--prepare` makes them alone): for a machine where `omniprep build` does not run. A
trainer that is not installed is left out, and named.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # readers are forks

import torch
from gpu_inputs import SHAPES, make_inputs, write_config
from record import machine, record, show, versions
from torch import Tensor, nn
from torch.utils.data import DataLoader

from omniprep import PackedDataset, loader, weighted_loss

Batch = dict[str, Any]
RATE = 1e-6


class Watch:
    """Counts what a model is given, and the seconds of the steps after the first ones.

    Args:
        model: The thinker, whose forward calls are the steps.
        warm: Steps that are not counted.
        timed: Steps that are; one more is taken, whose begin ends the last of them.
    """

    def __init__(self, model: nn.Module, warm: int, timed: int) -> None:
        self.warm, self.timed, self.steps = warm, timed, 0
        self.device = next(model.parameters()).device
        self.clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        self.tokens: list[Tensor | int] = []
        self.begin = self.end = 0.0
        self.hook = model.register_forward_pre_hook(self._called, with_kwargs=True)

    def _called(self, _: nn.Module, __: Any, batch: Batch) -> None:
        if self.steps in (self.warm, self.warm + self.timed):
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.begin, self.end = self.end, self.clock()
        if self.warm <= self.steps < self.warm + self.timed:
            mask = batch.get("attention_mask")
            self.tokens.append(batch["input_ids"].numel() if mask is None else mask.sum())
        self.steps += 1

    def tokens_per_second(self) -> float:
        """Of the timed steps."""
        self.hook.remove()
        assert self.steps == self.warm + self.timed + 1, f"{self.steps} steps"
        return sum(int(count) for count in self.tokens) / (self.end - self.begin)


class OnTheFly:
    """A collator that encodes rows of a JSONL file with the checkpoint's processor."""

    def __init__(self, folder: Path, model: Path, dtype: torch.dtype) -> None:
        from transformers import AutoProcessor

        self.folder, self.dtype = folder, dtype
        self.processor = AutoProcessor.from_pretrained(model)

    def __call__(self, rows: Sequence[Batch]) -> Batch:
        """A padded batch; every token of a row is learned from."""
        import soundfile
        from PIL import Image

        images = [Image.open(self.folder / name).convert("RGB") for row in rows for name in row["pictures"]]
        sounds = [soundfile.read(self.folder / name, dtype="float32")[0] for row in rows for name in row["sounds"]]
        text = self.processor.apply_chat_template([self.chat(row) for row in rows], tokenize=False)
        encoded = self.processor(
            text=text, images=images or None, audio=sounds or None, padding=True, return_tensors="pt"
        )
        batch = {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in encoded.items()}
        return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    @staticmethod
    def chat(row: Batch) -> list[Batch]:
        """A row as transformers' templates take it; its one medium begins the question."""
        chat = []
        for message in row["turns"]:
            content = [{"type": "text", "text": message["content"]}]
            for kind in ("image", "audio"):
                if message["content"].startswith(f"<{kind}>"):
                    content[0]["text"] = message["content"].removeprefix(f"<{kind}>")
                    content.insert(0, {"type": kind, kind: ""})
            chat.append({"role": message["role"], "content": content})
        return chat


class Bench:
    """What all loops train on.

    Args:
        folder: With rows.jsonl, media, packed/ and checkpoint/, as `make_inputs` writes it.
        device: Of the model.
        shape: Of the model, a name in `SHAPES`.
        steps: How many, not counted and counted.
        workers: Reader processes.
    """

    def __init__(self, folder: Path, device: torch.device, shape: str, steps: tuple[int, int], workers: int) -> None:
        from transformers import AutoConfig, Qwen2_5OmniThinkerForConditionalGeneration

        self.device, self.steps, self.workers = device, steps, workers
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        checkpoint = write_config(folder / "checkpoint", folder / shape, shape)
        config = AutoConfig.from_pretrained(checkpoint).thinker_config
        torch.manual_seed(0)
        with device:
            self.model = Qwen2_5OmniThinkerForConditionalGeneration._from_config(config, dtype=self.dtype)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = not any(part in name for part in ("visual.", "audio_tower."))
        self.packed = PackedDataset(str(folder / "packed"))
        lines = (folder / "rows.jsonl").read_text().splitlines()
        rows = map(json.loads, lines)
        # Other names than images and audios, by which TRL would take the dataset for one of its own.
        self.rows = [
            {"turns": row["messages"], "pictures": row.get("images", []), "sounds": row.get("audios", [])}
            for row in rows
        ]
        self.rows_a_batch = max(1, round(len(self.rows) / len(self.packed)))
        self.collator = OnTheFly(folder, checkpoint, self.dtype)
        self.scratch = folder / "run"

    @property
    def last(self) -> int:
        """Steps of a run."""
        return sum(self.steps) + 1

    def optimizer(self) -> torch.optim.Optimizer:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=RATE, fused=self.device.type == "cuda")

    def encoded(self) -> DataLoader[Batch]:
        """Batches that are encoded on the fly, on the host."""
        return DataLoader(
            self.rows, self.rows_a_batch, shuffle=True, collate_fn=self.collator, num_workers=self.workers,
            pin_memory=self.device.type == "cuda", persistent_workers=self.workers > 0,
        )  # type: ignore[arg-type, return-value]  # fmt: skip

    def arguments(self, kind: Any, batch: int, **options: Any) -> Any:
        """Of the Trainers, whose defaults are kept but for what both sides must have alike."""
        return kind(
            output_dir=str(self.scratch), max_steps=self.last, per_device_train_batch_size=batch, learning_rate=RATE,
            lr_scheduler_type="constant", report_to="none", save_strategy="no", logging_strategy="no", bf16=False,
            use_cpu=self.device.type == "cpu", dataloader_num_workers=self.workers, max_grad_norm=0,
            gradient_checkpointing=False, dataloader_persistent_workers=self.workers > 0, disable_tqdm=True, **options,
        )  # fmt: skip


# Loops: each trains `bench.last` steps, on bins where `packed`, else on rows that are encoded on the fly. -------------


def endless(batches: Any) -> Iterator[Batch]:
    while True:
        yield from batches


def plain_loop(bench: Bench, packed: bool) -> None:
    optimizer = bench.optimizer()
    if packed:
        batches = loader(bench.packed, num_workers=bench.workers, device=bench.device, model=bench.model)
    else:
        batches = bench.encoded()
    for step, batch in enumerate(endless(batches)):
        if packed:
            loss = weighted_loss(bench.model(**batch).logits, batch)
        else:
            on_device = {name: value.to(bench.device, non_blocking=True) for name, value in batch.items()}
            loss = bench.model(**on_device).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 == bench.last:
            return


def accelerate_loop(bench: Bench, packed: bool) -> None:
    from accelerate import Accelerator

    from omniprep.adapters.accelerate import loader as accelerated_loader

    accelerator = Accelerator(cpu=bench.device.type == "cpu")
    model, optimizer = accelerator.prepare(bench.model, bench.optimizer())
    if packed:
        batches = accelerated_loader(accelerator, bench.packed, model, num_workers=bench.workers)
    else:
        batches = accelerator.prepare(bench.encoded())
    for step, batch in enumerate(endless(batches)):
        outputs = model(**batch)
        accelerator.backward(weighted_loss(outputs.logits, batch) if packed else outputs.loss)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 == bench.last:
            return


def lightning_loop(bench: Bench, packed: bool) -> None:
    import lightning

    from omniprep.adapters.lightning import PackedDataModule

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = bench.model

        def training_step(self, batch: Batch, _: int) -> Tensor:
            outputs = self.model(**batch)
            return weighted_loss(outputs.logits, batch) if packed else outputs.loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return bench.optimizer()

    trainer = lightning.Trainer(
        max_steps=bench.last, accelerator="gpu" if bench.device.type == "cuda" else "cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=-1,
        default_root_dir=bench.scratch,
    )  # fmt: skip
    if packed:
        trainer.fit(Module(), datamodule=PackedDataModule(bench.packed, bench.model, num_workers=bench.workers))
    else:
        trainer.fit(Module(), bench.encoded())


def trainer_loop(bench: Bench, packed: bool) -> None:
    from transformers import Trainer, TrainingArguments

    from omniprep.adapters.transformers import PackedTrainer

    if packed:
        args = bench.arguments(TrainingArguments, 1)
        PackedTrainer(model=bench.model, args=args, train_dataset=bench.packed).train()
    else:
        args = bench.arguments(TrainingArguments, bench.rows_a_batch, remove_unused_columns=False)
        Trainer(model=bench.model, args=args, train_dataset=bench.rows, data_collator=bench.collator).train()


def trl_loop(bench: Bench, packed: bool) -> None:
    import datasets
    from trl import SFTConfig, SFTTrainer

    from omniprep.adapters.trl import PackedSFTTrainer

    tokenizer = bench.collator.processor.tokenizer
    if packed:
        PackedSFTTrainer(bench.model, bench.arguments(SFTConfig, 1), bench.packed, processing_class=tokenizer).train()
    else:
        args = bench.arguments(
            SFTConfig, bench.rows_a_batch, remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True}
        )
        SFTTrainer(
            bench.model, args, train_dataset=datasets.Dataset.from_list(bench.rows), data_collator=bench.collator,
            processing_class=tokenizer,
        ).train()  # fmt: skip


LOOPS: dict[str, tuple[str, Callable[[Bench, bool], None]]] = {
    "a loop of your own": ("torch", plain_loop),
    "Hugging Face Trainer": ("accelerate", trainer_loop),
    "accelerate": ("accelerate", accelerate_loop),
    "Lightning": ("lightning", lightning_loop),
    "TRL's SFTTrainer": ("trl", trl_loop),
}
"""Loops by the names of docs/your-trainer.md, each with the package that it needs."""


def measure(
    bench: Bench, loops: dict[str, Callable[[Bench, bool], None]], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """The median tokens a second of each loop on each side; no round begins that would not end within `seconds`."""
    found: dict[tuple[str, bool], list[float]] = {(name, packed): [] for name in loops for packed in (True, False)}
    began = time.monotonic()
    for turn in range(rounds):
        if turn and (time.monotonic() - began) * (turn + 1) / turn > seconds:
            print(f"{turn} rounds of {rounds}: {seconds:.0f} seconds are over", file=sys.stderr)
            break
        for name, loop in loops.items():
            for packed in (turn % 2 == 0, turn % 2 == 1):
                watch = Watch(bench.model, *bench.steps)
                bench.model.train()
                loop(bench, packed)
                found[name, packed].append(watch.tokens_per_second())
                side = "packed" if packed else "on the fly"
                print(f"{name}, {side}: {found[name, packed][-1]:,.0f} tokens/s", file=sys.stderr)
                bench.model.zero_grad(set_to_none=True)
                gc.collect()  # trainers hold their model, and it them
    lines = []
    for name in loops:
        packed, encoded = found[name, True], found[name, False]
        ratios = [ours / theirs for ours, theirs in zip(packed, encoded, strict=True)]
        lines.append({
            "loop": name, "packed, tokens/s": round(median(packed)), "on the fly, tokens/s": round(median(encoded)),
            "packed is faster": round(median(packed) / median(encoded), 2),
            "rounds": f"{min(ratios):.2f} to {max(ratios):.2f}",
        })  # fmt: skip
    return lines


def main() -> None:
    """Make the inputs, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1e9, help="that the rounds may take")
    parser.add_argument("--steps", type=int, nargs=2, default=(1, 2), help="not counted, and counted")
    parser.add_argument("--workers", type=int, help="reader processes (default: 8 with a GPU, else none)")
    parser.add_argument("--bin-length", type=int, default=768)
    parser.add_argument("--scale", type=float, default=0.2, help="of the sides of pictures, the seconds of sounds")
    parser.add_argument("--loops", help="some of them, by commas")
    parser.add_argument("--inputs", type=Path, help="where rows and shards are kept, or taken from")
    parser.add_argument("--prepare", action="store_true", help="make --inputs, and measure nothing")
    parser.add_argument("--out", type=Path, help="JSON (default: results/adapters.json)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="omniprep-adapters-") as name:
        folder = options.inputs or Path(name)
        if not (folder / "packed" / "manifest.json").exists():
            if not options.model:
                print("skipped: needs --model (OMNIPREP_BENCH_MODEL)")
                return
            # A picture at scale 1 has 1,370 tokens on average, a sound 470.
            tokens = options.bin_length * (sum(options.steps) + 2)
            rows = max(4, round(tokens / (1070 * options.scale**1.5)))
            make_inputs(folder, options.model, options.bin_length, rows, options.scale)
        if options.prepare:
            return
        run(options, folder)


def run(options: argparse.Namespace, folder: Path) -> None:
    """Measure on made inputs, and record."""
    named = options.loops.split(",") if options.loops else list(LOOPS)
    if unknown := [name for name in named if name not in LOOPS]:
        sys.exit(f"{', '.join(unknown)}: loops are {', '.join(LOOPS)}")
    absent = [name for name in named if find_spec(LOOPS[name][0]) is None]
    for name in absent:
        print(f"{name}: left out, {LOOPS[name][0]} is not installed")
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    if not on_gpu:
        torch.set_num_threads(1)
    workers = (8 if on_gpu else 0) if options.workers is None else options.workers
    bench = Bench(folder, device, options.shape, tuple(options.steps), workers)
    loops = {name: LOOPS[name][1] for name in named if name not in absent}
    lines = measure(bench, loops, options.rounds, options.seconds)
    facts = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu", "seconds": "clock" if on_gpu else "CPU",
        "shape": options.shape, "workers": workers,
        "steps": list(options.steps), "bins": len(bench.packed), "input_rows": len(bench.rows),
        "tokens_a_bin": round(float(bench.packed.index["tokens"].mean())), "rows_a_batch": bench.rows_a_batch,
    }  # fmt: skip
    if options.out is None:
        record("adapters", lines, **facts)
        return
    show(lines)
    options.out.write_text(json.dumps({"machine": machine(), "versions": versions(), **facts, "rows": lines}, indent=1))


if __name__ == "__main__":
    main()
