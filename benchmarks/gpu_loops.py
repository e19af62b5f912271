"""Sections of benchmarks/gpu.py beside the trainer's steps on Qwen2.5-Omni: a loop of one's own, and other classes."""

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gpu_report import Bench, release
from gpu_trace import synchronize

GIB = 1 << 30

LOOPS: tuple[tuple[str, str], ...] = (
    ("omniprep's attention", "omniprep"),
    ("transformers' sdpa", "sdpa"),
)
"""Attention of the loop of docs/your-trainer.md. transformers 5.23 has no flex attention for this class."""

LONGEST = 40.0  # seconds of a loop


def loops(bench: Bench) -> None:
    """Tokens a second of a loop of one's own, on transformers' class as it is; the towers are frozen."""
    for name, attention in LOOPS:
        bench.report.guard("loops", name, lambda n=name, a=attention: measure_loop(bench, n, a), needs=15)
        release()


def measure_loop(bench: Bench, name: str, attention: str) -> None:
    """Steps of the plain class on the batches of `omniprep.loader`, with gradient checkpointing."""
    import omniprep

    device, half = bench.device, bench.device.type == "cuda"
    model = plain_model(bench.shape("3b"), device)
    if attention == "omniprep":
        omniprep.packed_attention(model)
    for tower in (model.model.visual, model.model.audio_tower):
        tower.requires_grad_(False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    dataset = omniprep.PackedDataset(str(bench.bins()["raw"]))
    batches = omniprep.loader(dataset, model=model, num_workers=0 if bench.small else 4)
    warm, timed = (1, 1) if bench.small else (3, 6)  # whole rounds of the three image bins
    losses, times, tokens = [], [], []
    if half:
        torch.cuda.reset_peak_memory_stats()
    began = last = time.perf_counter()
    # With transformers' own attention a step may take many seconds: then fewer are timed.
    while len(times) < warm + timed and (time.perf_counter() - began < LONGEST or len(times) <= warm):
        for batch in batches:
            loss = omniprep.weighted_loss(model(**batch).logits, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            synchronize(device)
            losses.append(float(loss))
            tokens.append(batch["input_ids"].numel())
            times.append((time.perf_counter() - last) * 1e3)
            last = time.perf_counter()
    step = sum(times[warm:]) / len(times[warm:])
    bench.report.row(
        "loops", name, step_ms=round(step, 1), tokens_per_s=round(sum(tokens[warm:]) / sum(times[warm:]) * 1e3),
        peak_gib=round(torch.cuda.max_memory_allocated() / GIB, 2) if half else 0.0,
        all_ms=[round(each, 1) for each in times], losses=[round(loss, 3) for loss in losses[:3]],
    )  # fmt: skip


def plain_model(folder: Path, device: torch.device) -> Any:
    """The class of transformers, as it is, in a shape with random weights, in bfloat16 on a GPU."""
    from transformers import AutoConfig, Qwen2_5OmniThinkerForConditionalGeneration

    config = AutoConfig.from_pretrained(folder).thinker_config
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5OmniThinkerForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    return model


# Classes --------------------------------------------------------------------------------------------------------------

CLASS_STEPS = 4


def classes(bench: Bench) -> None:
    """Small models of other families: `omniprep train` in bfloat16 with the attention that it chooses, beside float32.

    `bench.types` has TYPE/model and TYPE/packed of each type, as tests/chat_trial.py makes them.
    """
    for each in sorted(bench.types.iterdir()) if bench.types else ():
        if (each / "packed" / "manifest.json").is_file():
            bench.report.guard("classes", each.name, lambda each=each: measure_class(bench, each), needs=5)
            release()


def measure_class(bench: Bench, folder: Path) -> None:
    """Losses of a few steps on the device, in bfloat16 and in float32 with SDPA row by row."""
    ours, attention, seconds = class_losses(bench, folder, "auto", "auto")
    exact, _, _ = class_losses(bench, folder, "float32", "sdpa")
    worst = max(abs(a - b) / b for a, b in zip(ours, exact, strict=True))
    bench.report.row(
        "classes", folder.name, attention=attention, worst_loss=round(worst, 4), first_loss=round(exact[0], 4),
        last_loss=round(exact[-1], 4), seconds=round(seconds, 1),
    )  # fmt: skip
    falls = exact[-1] < exact[0] and ours[-1] < ours[0]
    # Of bfloat16's 8 bits a mean of a hundred losses keeps about three digits.
    wrong = not falls or not worst < 0.02 or not all(map(math.isfinite, ours))
    if wrong:
        bench.report.check(f"losses in bfloat16 against float32 ({folder.name})", round(worst, 4), 0.02)


def class_losses(bench: Bench, folder: Path, dtype: str, attention: str) -> tuple[list[float], str, float]:
    """Losses of each step of a run, the attention that was chosen, and the seconds that it took."""
    from transformers.trainer_callback import PrinterCallback

    from omniprep.progress import QuietReporter
    from omniprep.train.config import TrainConfig
    from omniprep.train.run import prepare_run

    began = time.monotonic()
    facts = json.loads((folder / "packed" / "manifest.json").read_text())
    config = TrainConfig(
        data=(str(folder / "packed"),), model=str(folder / "model"), family=facts["family"],
        out=str(Path(tempfile.mkdtemp(dir=bench.folder)) / "run"), max_steps=CLASS_STEPS, num_workers=0,
        report_to=("none",), logging_steps=1, save_steps=0, learning_rate=1e-3, warmup=0, dtype=dtype, attn=attention,
        device=bench.device.type,
    )  # fmt: skip
    torch.manual_seed(0)
    run = prepare_run(config, QuietReporter())
    run.args.save_strategy = "no"
    run.trainer.remove_callback(PrinterCallback)
    run.trainer.train()
    losses = [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]
    chosen = str(run.trainer.model.config.get_text_config()._attn_implementation)
    return losses, chosen, time.monotonic() - began
