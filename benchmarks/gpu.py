"""What `omniprep train` reaches on a GPU, and where the time goes: about five minutes on one bare machine.

    python benchmarks/gpu.py --model SMALL --out RESULT.json [--only kernels,steps] [--seconds 300] [--quick]

SMALL is a folder that `omniprep init-model` wrote (its weights are not read). Models of the shape of Qwen2.5-Omni-3B
and 7B are drawn on the device; bins of 16,384 tokens are built from made-up media (gpu_inputs.py). All that is measured
is the trainer's own: `prepare_run` gives model, data and trainer as `omniprep train` has them, and a callback watches
its steps (gpu_trace.py).

Sections, with their share of the five minutes:
    kernels    15 s  pixels to floats against a plain copy, copies from the host
    attention  40 s  row by row, variable length and flex, by length of rows (the bins are built meanwhile)
    steps     140 s  by attention, LoRA, liger, checkpointing; profiles, waits of the host, waits for data
    preferences 30 s `omniprep score`, then steps of DPO on pairs
    memory     60 s  the dry run's peak against training's; LoRA on the 7B
    loader     45 s  readers and codecs
    loops      40 s  a loop of one's own on transformers' class, by attention
    classes    3 s a type, of small models of other families (--types)

A section that fails is reported and the others go on. The result is written after every line, so that a machine that
goes away leaves what it had measured. Goals are checked, not asserted: what came of them stands in table and JSON.
gpu_carry.sh prepares what a machine without a network needs.
"""

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_inputs import build_bins, random_weights, write_config
from gpu_kernels import attention, kernels
from gpu_loops import classes, loops
from gpu_report import Bench, Report, release
from gpu_trace import StepWatch, analyze, synchronize, tensors
from record import machine, show, versions

from omniprep.progress import QuietReporter

GIB = 1 << 30
PEAK_OF_NOTHING = 1e12
"""FLOP/s that stand for those of a device whose peak is not known, such as a CPU."""


# Steps ----------------------------------------------------------------------------------------------------------------

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("full", {"profiled": 3}),
    ("lora", {"lora": True, "profiled": 3}),
    ("full, checkpointing", {"gradient_checkpointing": "on"}),
    ("full, sound bin", {"data": "sound"}),
    ("lora, checkpointing", {"lora": True, "gradient_checkpointing": "on"}),
    ("lora, float32 adapters", {"lora": True, "lora_dtype": "float32"}),
    ("full, no liger", {"liger": "off"}),
    ("lora, no liger", {"lora": True, "liger": "off"}),
    ("full, liger's loss of the head", {"head_loss": "liger"}),
    ("full, row by row", {"attn": "sdpa", "gradient_checkpointing": "on"}),
    ("full, flex", {"attn": "flex_attention", "gradient_checkpointing": "on"}),
    ("full, compiled", {"torch_compile": True, "gradient_checkpointing": "on"}),
)
"""Runs on the 3B's shape, those that matter most first; what an entry does not name is as `omniprep train` chooses it,
checkpointing among it (off where the steps fit without)."""


def steps(bench: Bench) -> None:
    """A step of an image bin in each variant."""
    for name, options in VARIANTS[:4] if bench.quick else VARIANTS:
        needs = 30 if "compiled" in name else 15
        bench.report.guard(
            "steps", name, lambda name=name, options=options: measure_steps(bench, name, **options), needs
        )
        release()


def measure_steps(
    bench: Bench, name: str, *, data: str = "raw", shape: str = "3b", profiled: int = 0, **options: Any
) -> None:
    """Train a few steps and report them.

    Args:
        bench: As always.
        name: Of the run.
        data: Which bins.
        shape: Of the model.
        profiled: Steps to profile.
        options: Of `TrainConfig`.
    """
    from omniprep.train.run import prepare_run

    report, device = bench.report, bench.device
    warm, timed = (1, 1) if bench.small else (3, 6)  # whole rounds of the three image bins
    config = train_config(bench, shape, data, max_steps=StepWatch.steps(warm, timed, profiled), **options)
    began = time.monotonic()
    with random_weights(device):
        run = prepare_run(config, QuietReporter())
    ready = time.monotonic() - began
    run.args.save_strategy = "no"
    watch = StepWatch(run.trainer, warm, timed, profiled)
    run_steps(run, watch)
    times, logs = watch.step_ms(), [entry for entry in run.trainer.state.log_history if "loss" in entry]
    step = sum(times) / len(times)
    bins = run.data.bins
    tokens = sum(int(d.index["tokens"].sum()) for d in bins.datasets) / len(bins)
    longest = max(int(d.index["tokens"].max()) for d in bins.datasets)
    report.row(
        "steps", name, step_ms=round(step, 1), tokens_per_s=round(tokens / step * 1e3),
        mfu=round(counted_mfu(run, step), 4), data_wait_ms=round(watch.wait_ms(), 2),
        peak_gib=round(watch.peak / GIB, 2), ready_s=round(ready, 1), all_ms=[round(t, 1) for t in times],
        checkpointing=run.trainer.config.gradient_checkpointing, loss=round(logs[-1]["loss"], 3),
        longest_bin=longest, attention=str(run.trainer.model.config.get_text_config()._attn_implementation),
        towers_with_gradients=sorted(watch.tower_gradients),
    )  # fmt: skip
    report.check(f"towers with a backward pass ({name})", len(watch.tower_gradients), 0)
    if profiled:
        trace = analyze(watch.profiler, profiled, device)
        report.row("steps", f"{name}, profile", **trace)
        report.check(f"share of the step that the GPU is busy ({name})", round(trace["busy"], 4), 0.95, at_least=True)
        report.row(
            "steps", f"{name}, waits of the host in a step", number=watch.stalls(), by_code=dict(watch.waits or {})
        )
        report.check(f"waits of the host in a step ({name})", watch.stalls(), 2)
        if not options.get("lora"):  # whose step is full of small kernels; the goal is for the full one
            report.check(f"counted MFU ({name})", round(counted_mfu(run, step), 4), 0.4, at_least=True)
        report.check(f"share of the step waiting for data ({name})", round(watch.wait_ms() / step, 4), 0.01)
    leave(run)


def train_config(bench: Bench, shape: str, data: str, **options: Any) -> Any:
    """Options of a run, as the command line would give them."""
    from omniprep.train.config import TrainConfig

    out = Path(tempfile.mkdtemp(dir=bench.folder)) / "run"
    fixed = {
        "save_steps": 0,
        "report_to": ("none",),
        "logging_steps": 1000,
        "num_workers": 0 if bench.small else 4,
    }
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    assert options.keys() <= known, options.keys() - known
    return TrainConfig(
        data=(str(bench.bins()[data]),), model=str(bench.shape(shape)), out=str(out), **{**fixed, **options}
    )


def run_steps(run: Any, watch: Any) -> None:
    """Train to the end of the run, watched; nothing is printed or saved."""
    from transformers.trainer_callback import PrinterCallback

    run.trainer.remove_callback(PrinterCallback)
    run.trainer.add_callback(watch)
    run.trainer.train()
    synchronize(run.args.device)


def counted_mfu(run: Any, step_ms: float) -> float:
    """Share of the device's peak that the operations of a mean bin are, as the trainer's log counts them."""
    meter, bins = run.trainer.meter, run.data.bins
    work = [meter.work.of(run.data.batcher([bins[number]])) for number in range(len(bins))]
    return sum(work) / len(work) / (step_ms / 1e3) / (meter.peak or PEAK_OF_NOTHING)


def leave(run: Any) -> None:
    """Let go of a run, so that its memory is free for the next."""
    trainer = run.trainer
    trainer.callback_handler.callbacks.clear()
    for name in ("optimizer", "lr_scheduler", "model"):
        setattr(trainer.callback_handler, name, None)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = None
    release()


# Preferences ----------------------------------------------------------------------------------------------------------


def preferences(bench: Bench) -> None:
    """`omniprep score`, then steps of DPO, which begins with the reference itself: its first loss is the log of 2."""
    bench.report.guard("steps", "score", lambda: measure_score(bench))
    release()
    bench.report.guard(
        "steps", "dpo", lambda: measure_steps(bench, "dpo", data="pairs", profiled=3, objective="dpo"), needs=15
    )
    release()


def measure_score(bench: Bench) -> None:
    """Seconds of `omniprep score` with a model of the 3B's shape, its making included."""
    from omniprep.data import PackedDataset
    from omniprep.train.config import ScoreConfig
    from omniprep.train.score import score

    pairs, shape = bench.bins()["pairs"], bench.shape("3b")
    (shape / "model.safetensors").touch()  # of what scores hash; the weights are drawn
    began = time.monotonic()
    with random_weights(bench.device):
        score(ScoreConfig(data=(str(pairs),), model=str(shape), num_workers=0 if bench.small else 4), QuietReporter())
    tokens = int(PackedDataset(str(pairs)).index["tokens"].sum())
    bench.report.row("steps", "score", seconds=round(time.monotonic() - began, 1), tokens=tokens)


# Memory ---------------------------------------------------------------------------------------------------------------

MEMORY: tuple[tuple[str, dict[str, Any]], ...] = (
    ("7B, LoRA, checkpointing", {"shape": "7b", "lora": True, "gradient_checkpointing": "on"}),
    ("3B, full", {"shape": "3b"}),
    ("7B, LoRA", {"shape": "7b", "lora": True}),
    ("3B, LoRA", {"shape": "3b", "lora": True}),
)


def memory(bench: Bench) -> None:
    """Peak that the dry run foretells, and the one that training reaches."""
    for name, options in MEMORY[-1:] if bench.small else MEMORY[:1] if bench.quick else MEMORY:
        bench.report.guard(
            "memory", name, lambda name=name, options=options: measure_memory(bench, name, **options), needs=20
        )
        release()


def measure_memory(bench: Bench, name: str, *, shape: str, **options: Any) -> None:
    """The dry run, then steps of training with the same options."""
    from omniprep.train.dry_run import heavy_data, measure_run
    from omniprep.train.run import prepare_run

    config = train_config(bench, shape, "raw", max_steps=1, dry_run=True, **options)
    with random_weights(bench.device):
        run = prepare_run(config, QuietReporter(), heavy_data)
    foretold = measure_run(run).peak
    leave(run)
    del run
    warm, timed = 1, 3
    config = train_config(bench, shape, "raw", max_steps=warm + timed, **options)
    with random_weights(bench.device):
        run = prepare_run(config, QuietReporter())
    run.args.save_strategy = "no"
    checkpointing = run.trainer.config.gradient_checkpointing
    longest = max(int(d.index["tokens"].max()) for d in run.data.bins.datasets)
    watch = StepWatch(run.trainer, warm, timed)
    run_steps(run, watch)
    reached = watch.peak or foretold  # on the CPU the peak is the process's, which only grows
    leave(run)
    bench.report.row(
        "memory", name, dry_run_gib=round(foretold / GIB, 3), training_gib=round(reached / GIB, 3),
        off=round(foretold / reached - 1, 4), checkpointing=checkpointing, longest_bin=longest,
    )  # fmt: skip
    bench.report.check(f"dry run's peak against training's ({name})", round(abs(foretold / reached - 1), 4), 0.02)
    if (shape, options.get("gradient_checkpointing")) == ("7b", "on"):
        bench.report.check(f"peak memory, GiB ({name}, image bins)", round(reached / GIB, 2), 30.0)


# Loader ---------------------------------------------------------------------------------------------------------------


def loader(bench: Bench) -> None:
    """Milliseconds a bin onto the device, by number of readers and codec."""
    for codec in ("raw", "delta", "webp"):
        for workers in (0, 1) if bench.small else (4,) if bench.quick else (0, 1, 2, 4, 8):
            what = f"{codec}, {workers} readers"
            bench.report.guard(
                "loader", what, lambda c=codec, w=workers, what=what: measure_loader(bench, c, w, what), needs=6
            )


def measure_loader(bench: Bench, codec: str, workers: int, what: str) -> None:
    """The trainer's own loader, its batches taken as fast as they come, for three seconds at most."""
    from omniprep.data import PackedDataset

    config = train_config(bench, "small", codec, max_steps=1000, num_workers=workers)
    dataset = PackedDataset(config.data[0])
    batches = loader_of(dataset, config, bench.device)
    iterator = iter(batches)
    began = time.perf_counter()
    next(iterator)
    first = time.perf_counter() - began
    ahead = 2 + workers * 4  # batches that were read while the first was waited for
    for _ in range(2 if bench.small else ahead):
        next(iterator)
    synchronize(bench.device)
    began, number, limit = time.perf_counter(), 0, 0.1 if bench.small else 2.5
    while time.perf_counter() - began < limit:
        batch = next(iterator)
        number += 1
    synchronize(bench.device)
    took = (time.perf_counter() - began) / number * 1e3
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors(batch))
    iterator.close()
    bench.report.row(
        "loader", what, ms_a_bin=round(took, 2), gb_per_s=round(size / took / 1e6, 3), first_ms=round(first * 1e3),
        bins=number,
    )  # fmt: skip


def loader_of(dataset: Any, config: Any, device: torch.device) -> Any:
    """Batches of a dataset, epoch after epoch, as a run reads them."""
    from omniprep.train.arguments import training_arguments
    from omniprep.train.batches import BatchLoader, make_loader
    from omniprep.train.data import prepare_data

    args = training_arguments(config)
    data = prepare_data([dataset], [], config, args, None)
    inner = make_loader(data.bins, data.stream, data.batcher, config.num_workers, device.type == "cuda")
    return BatchLoader(inner, config.max_steps, device)


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "kernels": kernels,
    "attention": attention,
    "steps": steps,
    "preferences": preferences,
    "memory": memory,
    "loader": loader,
    "loops": loops,
    "classes": classes,
}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas, in their order")
    parser.add_argument("--seconds", type=float, default=300.0, help="what does not fit into this time is left out")
    parser.add_argument("--quick", action="store_true", help="a few of each section: about two minutes")
    parser.add_argument("--types", type=Path, help="for the section classes: TYPE/model and TYPE/packed of each type")
    parser.add_argument("--small", action="store_true", help="small sizes, to test this script (also on a CPU)")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"--only: no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if not options.model:
        print("skipped: needs --model (OMNIPREP_BENCH_MODEL)")
        return 0
    if not options.small and not torch.cuda.is_available():
        print("skipped: no GPU (--small tests the script without one)")
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(tempfile.mkdtemp(prefix="omniprep-gpu-"))
    try:
        measure(options, chosen, device, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def measure(options: argparse.Namespace, chosen: list[str], device: torch.device, folder: Path) -> None:
    """All chosen sections; the bins are built meanwhile by processes of their own."""
    from concurrent.futures import ThreadPoolExecutor

    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU (nothing here is a measurement)"
    facts = {
        "device": card,
        "cuda": torch.version.cuda,
        "machine": machine(),
        "versions": versions(),
        "small": options.small,
    }
    report = Report(options.out, options.seconds, facts)
    report.row("machine", card, torch=torch.__version__)
    small = options.small
    shape = write_config(options.model, folder / "model-build", "small")
    with ThreadPoolExecutor(1) as pool:
        # 33 rows of pictures fill three bins to 98 %, 29 of sounds one.
        sizes = (1024, 6, 4, 0.25) if small else (16384, 33, 29, 1.0)
        built = pool.submit(build_bins, folder / "data", shape, *sizes)
        bench = Bench(
            report=report, device=device, model=options.model, folder=folder, small=small,
            quick=options.quick or small, bins=built.result, types=options.types,
        )  # fmt: skip
        for name in chosen:
            began = time.monotonic()
            report.guard(name, "section", lambda name=name: SECTIONS[name](bench))
            report.row(name, "section took", seconds=round(time.monotonic() - began, 1))
            release()
    print()
    show([{k: v for k, v in row.items() if not isinstance(v, (dict, list))} for row in report.rows if "step_ms" in row])
    show(report.checks)


if __name__ == "__main__":
    sys.exit(main())
