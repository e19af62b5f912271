"""Risk: hours on a machine that runs out of memory at the costliest bin, which a dry run had said would fit."""

from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from train_helpers import Messages, small_family, write_dataset, write_model

from omniprep.data import PackedDataset
from omniprep.errors import OmniprepError
from omniprep.progress import QuietReporter
from omniprep.train import dry_run as dry_run_module
from omniprep.train import memory as memory_module
from omniprep.train import run as run_module
from omniprep.train.config import TrainConfig
from omniprep.train.memory import GIB, advise, fits_without_checkpointing, longest_bin, state_bytes, weight_bytes


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(autouse=True)
def _family(model, monkeypatch):
    monkeypatch.setattr(run_module, "resolve_family", lambda *_: small_family(model))


def config(model, data, out, **options) -> TrainConfig:
    fixed = {"device": "cpu", "num_workers": 0, "report_to": ("none",), "save_steps": 0}
    return TrainConfig(model=str(model), data=(str(data),), out=str(out), **(fixed | options))


def tensor_peak(call) -> int:
    """Most bytes of tensors that were made while something runs and lived at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("options", [{}, {"lora": True}, {"grad_accumulation": 4, "gradient_checkpointing": False}])
def test_a_dry_run_reaches_the_peak_of_training(model, tmp_path, options):
    """The same weights, optimizer states, gradients and activations, counted by torch's allocator.

    On bins that are alike: the dry run has the batch before and after a heavy one as heavy, which in a short training on
    few different bins may not happen, and batches are much of what so small a model holds.
    """
    data = write_dataset(tmp_path / "data", kinds=("mixed",))
    run_module.train(config(model, data, tmp_path / "c", dry_run=True), QuietReporter())  # fills caches of libraries
    trying = config(model, data, tmp_path / "a", dry_run=True, max_steps=1, **options)
    run = run_module.prepare_run(trying, QuietReporter(), dry_run_module.heavy_data)
    foretold = tensor_peak(lambda: dry_run_module.measure_run(run))
    # Twice through the data: in its first step the optimizer has no states yet.
    training = config(model, data, tmp_path / "b", max_steps=12, **options)
    run = run_module.prepare_run(training, QuietReporter())
    run.args.save_strategy = "no"
    reached = tensor_peak(run.trainer.train)
    assert foretold == pytest.approx(reached, rel=0.02)


def test_nothing_is_written_and_the_report_has_the_numbers(model, data, tmp_path):
    messages = Messages()
    out = tmp_path / "run"
    run_module.train(config(model, data, out, dry_run=True), messages)
    assert not out.exists()
    text = messages.lines[-1]
    tokens = max(PackedDataset(str(data)).index["tokens"])
    assert f"{tokens:,} tokens" in text and "GiB at most" in text and "s a step" in text and "\n" not in text


def test_an_earlier_run_in_out_stays_and_does_not_hinder(model, data, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoint-5").mkdir(parents=True)
    (out / "train_config.yaml").write_text("kept: true\n")
    run_module.train(config(model, data, out, dry_run=True), QuietReporter())
    assert sorted(p.name for p in out.iterdir()) == ["checkpoint-5", "train_config.yaml"]
    assert (out / "train_config.yaml").read_text() == "kept: true\n"


@pytest.mark.parametrize("fitting", [3, 0])
def test_out_of_memory_is_one_line_with_what_would_fit(model, data, tmp_path, monkeypatch, fitting):
    """`fitting`: the number of the try with fewer rows that fits; 0: none."""
    tries = []

    def no_room(run):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def passes(model, loss, device, passes):
        tries.append(float(loss().detach()))
        if len(tries) == fitting:
            return weight_bytes(model) + 1000
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(dry_run_module, "measure_run", no_room)
    monkeypatch.setattr(memory_module, "passes_peak", passes)
    monkeypatch.setattr(dry_run_module, "SHORTEST", 16)
    monkeypatch.setattr(memory_module, "device_bytes", lambda device: 1 << 40)
    with pytest.raises(OmniprepError) as error:
        run_module.train(config(model, data, tmp_path / "run", dry_run=True), QuietReporter())
    text = str(error.value)
    assert "\n" not in text and "20.00 GiB" in text and "--lora" in text and "omniprep repack --bin-length" in text
    assert ("tokens would fit as it is" in text) == bool(fitting)
    assert len(tries) == fitting if fitting else len(tries) > 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("where", ["make_model", "choose_checkpointing"])
def test_a_model_that_does_not_fit_is_one_line_too(model, data, tmp_path, monkeypatch, dry_run, where):
    def no_room(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(run_module, where, no_room)
    with pytest.raises(OmniprepError, match=r"out of memory.*20\.00 GiB.*try .*--lora") as error:
        run_module.train(config(model, data, tmp_path / "run", dry_run=dry_run), QuietReporter())
    assert "\n" not in str(error.value)


def test_a_bin_that_fits_is_as_long_as_the_memory_beyond_the_weights():
    assert longest_bin(peak=30 * GIB, fixed=20 * GIB, tokens=10_000, capacity=80 * GIB) == 52_000 // 256 * 256
    assert longest_bin(peak=30 * GIB, fixed=20 * GIB, tokens=10_000, capacity=16 * GIB) == 0


def test_advice_has_bin_length_and_lora_unless_it_is_on():
    linear = torch.nn.Linear(1 << 14, 1 << 14, bias=False).bfloat16()  # 0.5 GiB
    options = {"data": ("d",), "model": "m", "out": "o"}
    lines = advise(TrainConfig(**options), linear, 4 * GIB, 1024, 10 * GIB)
    assert "4.0 of 10.0 GiB (40%) fits" in lines[0] and "--bin-length" in lines[0]
    assert "--lora would take about 2.5 GiB" in lines[1]  # without 0.5 GiB of gradients and twice that of states
    assert "leaves too little" in advise(TrainConfig(**options), linear, 9.8 * GIB, 1024, 10 * GIB)[0]
    assert len(advise(TrainConfig(**options, lora=True), linear, 4 * GIB, 1024, 10 * GIB)) == 1


@pytest.mark.parametrize(("room", "said"), [(100 * GIB, "fits, and saves"), (GIB // 64, "too close")])
def test_the_advice_tries_the_step_without_checkpointing(model, data, tmp_path, monkeypatch, room, said):
    """As on a GPU, whose memory is made up here; the passes are real, after those of the dry run."""
    trying = config(model, data, tmp_path / "a", dry_run=True, max_steps=1, gradient_checkpointing="on")
    run = run_module.prepare_run(trying, QuietReporter(), dry_run_module.heavy_data)
    measured = dry_run_module.measure_run(run)
    monkeypatch.setattr(memory_module, "device_bytes", lambda device: room)
    lines = list(dry_run_module.advice(run.trainer, run.data, measured, trying, torch.device("cpu")))
    assert len(lines) == 3 and lines[0].startswith("memory: ") and lines[1].startswith("--lora")
    assert lines[2].startswith("without --gradient-checkpointing: ") and said in lines[2]
    assert not any(p.grad is not None for p in run.trainer.model.parameters())


@pytest.mark.parametrize(("room", "fits"), [(20 * GIB, True), (GIB // 8, False)])
def test_whether_a_step_fits_without_checkpointing(monkeypatch, room, fits):
    monkeypatch.setattr(memory_module, "device_bytes", lambda device: room)
    monkeypatch.setattr(memory_module, "peak_bytes", lambda device: GIB)
    model = torch.nn.Linear(8, 8)
    given = TrainConfig(data=("d",), model="m", out="o", optimizer="adamw_torch")
    cpu = torch.device("cpu")
    found = fits_without_checkpointing(model, lambda: model(torch.ones(8)).sum(), given, cpu)
    assert found == (fits, GIB + state_bytes(model, "adamw_torch"))
    several = fits_without_checkpointing(model, lambda: model(torch.ones(8)).sum(), given, cpu, world_size=2)
    assert several[1] == found[1] + weight_bytes(model) // 2  # and the buckets of the gradients


def test_passes_that_do_not_fit_are_no_traceback():
    def loss():
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = torch.nn.Linear(8, 8)
    given = TrainConfig(data=("d",), model="m", out="o")
    assert fits_without_checkpointing(model, loss, given, torch.device("cpu")) == (False, None)
