"""Risk: an option of the trainer that does nothing, or something else than it says."""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, silu
from train_helpers import ARCH, forward_kwargs, make_row, small_family, small_model, write_dataset, write_model
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni

from omniprep.data import PackedDataset
from omniprep.errors import OmniprepError, UsageError
from omniprep.progress import QuietReporter
from omniprep.train import compiling
from omniprep.train import run as run_module
from omniprep.train.arguments import training_arguments
from omniprep.train.attention_choice import use_attention
from omniprep.train.batches import Batcher
from omniprep.train.batches import forward_kwargs as batch_kwargs
from omniprep.train.compiling import compile_layers, padded
from omniprep.train.config import TrainConfig
from omniprep.train.deepspeed import PRESETS, deepspeed_config
from omniprep.train.forward import ForwardPass
from omniprep.train.freeze import resolve_parts
from omniprep.train.liger import use_liger
from omniprep.train.loss import make_loss_head
from omniprep.train.model import load_trainable
from omniprep.train.packages import check_packages
from omniprep.train.trainer import BinTrainer


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> PackedDataset:
    return PackedDataset(str(write_dataset(tmp_path_factory.mktemp("options") / "d", bins=3, weighted=True)))


def losses(model, batch) -> torch.Tensor:
    kwargs = batch_kwargs(batch, torch.device("cpu"), torch.float32)
    return model(**kwargs, logits_to_keep=batch["positions"], targets=batch["targets"]).losses


@pytest.mark.parametrize("name", PRESETS)
def test_deepspeed_presets_are_what_their_names_say(name, tmp_path):
    config = deepspeed_config(name)
    zero = config["zero_optimization"]
    assert zero["stage"] == int(name[4]) and ("offload_optimizer" in zero) == name.endswith("offload")
    assert zero.get("stage3_gather_16bit_weights_on_model_save", False) == (name[4] == "3")
    file = tmp_path / "own.json"
    file.write_text(json.dumps(config | {"zero_optimization": zero | {"reduce_bucket_size": "auto"}}))
    assert deepspeed_config(str(file))["zero_optimization"]["reduce_bucket_size"] == 4096 * 4096
    file.write_text("{")
    with pytest.raises(OmniprepError, match="not valid JSON"):
        deepspeed_config(str(file))


def test_deepspeed_that_is_not_there_is_refused():
    with pytest.raises(OmniprepError, match="zero4.*no such file.*zero2_offload"):
        deepspeed_config("zero4")
    with pytest.raises(UsageError, match="--amp"):
        TrainConfig(deepspeed="zero2", amp=True)


def test_deepspeeds_configuration_reaches_the_trainer(tmp_path, monkeypatch):
    """transformers fills in the run's values; the bf16 of the weights becomes DeepSpeed's."""
    pytest.importorskip("deepspeed", reason="the package deepspeed is not installed")
    config = TrainConfig(out=str(tmp_path), device="cpu", deepspeed="zero3", dtype="bfloat16", grad_accumulation=3)
    found = training_arguments(config).hf_deepspeed_config.config
    assert found["bf16"]["enabled"] is True and found["gradient_accumulation_steps"] == 3


@pytest.mark.parametrize(
    ("options", "package"),
    [
        ({"liger": True}, "liger-kernel"),
        ({"deepspeed": "zero2"}, "deepspeed"),
        ({"report_to": ("wandb",)}, "wandb"),
        ({"report_to": ("tensorboard", "trackio")}, "trackio"),
    ],
)
def test_packages_that_are_not_there_are_named(monkeypatch, options, package):
    import importlib.util

    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n.replace("_", "-") == package else original(n))
    with pytest.raises(OmniprepError, match=f"pip install {package}"):
        check_packages(TrainConfig(**options))


@pytest.mark.parametrize(
    ("absent", "command", "message"),
    [
        ("accelerate", "train", "training needs accelerate (not installed): pip install 'omniprep[train]'"),
        ("peft", "train", "--lora needs peft (not installed): pip install 'omniprep[train]'"),
        (
            "tensorboard",
            "train",
            "--report-to tensorboard needs tensorboard (not installed): pip install 'omniprep[train]'",
        ),
        ("peft", "infer", "an adapter needs peft (not installed): pip install 'omniprep[train]'"),
        (
            "transformers",
            "infer",
            "infer needs transformers (4.57.6, but >=5.23 is wanted): pip install 'transformers>=5.23'",
        ),
        ("transformers", "train", "training needs transformers (4.57.6, but >=5.23 is wanted): pip install"),
    ],
)
def test_a_package_that_is_absent_or_old_is_one_line_before_anything_is_loaded(
    monkeypatch, tmp_path, omniprep, absent, command, message
):
    """As doctor says it; omniprep's modules that need the package are not even imported."""
    from importlib import metadata

    requires, version = metadata.requires, metadata.version

    def found(name):
        if name != absent:
            return version(name)
        if name == "transformers":
            return "4.57.6"
        raise metadata.PackageNotFoundError(name)

    wanted = [text.replace("transformers>=5;", "transformers>=5.23;") for text in requires("omniprep")]
    monkeypatch.setattr(metadata, "requires", lambda _: wanted)
    monkeypatch.setattr(metadata, "version", found)
    for module in ("omniprep.train.run", "omniprep.train.infer"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "adapter_config.json").write_text("{}")
    given = {"train": ["d", "--out", tmp_path / "run", "--lora"], "infer": ["chats.jsonl"]}[command]
    shown = omniprep(command, *given, "--model", tmp_path)
    assert shown.code == 1 and shown.err.startswith(f"Error: {message}") and len(shown.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("trained", "options", "fits"),
    [
        ({"llm"}, {}, True),
        ({"llm", "tower"}, {}, False),
        ({"aligner"}, {}, False),
        ({"llm"}, {"fsdp": True}, False),
        ({"llm"}, {"deepspeed": "zero3"}, False),
    ],
)
def test_ranks_that_would_wait_for_ever_are_refused(trained, options, fits):
    from omniprep.train.refuse import check_ranks

    if fits:
        check_ranks("AnyModel", trained, TrainConfig(**options))
    else:
        with pytest.raises(OmniprepError, match="AnyModel runs its towers only where a bin has media"):
            check_ranks("AnyModel", trained, TrainConfig(**options))


def test_padding_to_one_length_changes_no_loss(dataset):
    model = small_model().eval()
    use_attention(model, "sdpa")
    plain, longer = Batcher(dataset.layout.modalities), Batcher(dataset.layout.modalities, length=400)
    for number in range(len(dataset)):
        short, long = plain([dataset[number]]), longer([dataset[number]])
        assert long["stacked"]["input_ids"].shape == (1, 400) and long["stacked"]["position_ids"].shape == (4, 1, 400)
        assert long["stacked"]["cu_seq_lens_q"][-1] == 400 and long["tokens"] == short["tokens"]
        with torch.no_grad():
            torch.testing.assert_close(losses(model, long), losses(model, short), rtol=1e-5, atol=1e-5)
    full = plain([dataset[0]])["stacked"]
    assert padded(full, full["input_ids"].shape[1]) is full


@pytest.mark.slow
def test_layers_are_compiled_once_for_all_bins(dataset, monkeypatch):
    """One graph for every layer and bin, and the losses and gradients of the model as it was."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    batcher = Batcher(dataset.layout.modalities, length=400)
    batches = [batcher([dataset[number]]) for number in range(len(dataset))]
    found = []
    for compiled in (False, True):
        model = small_model()
        model.set_attn_implementation("eager")
        model.activation_checkpointing_enable({"use_reentrant": False})
        if compiled:
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            assert compile_layers(model, resolve_parts(model, ARCH).language_model, "eager") == 2
        values = [losses(model.train(), batch) for batch in batches]
        sum(v.sum() for v in values).backward()
        found.append(
            ([v.detach() for v in values], model.thinker.model.language_model.layers[0].mlp.up_proj.weight.grad)
        )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    for ours, theirs in zip(*(values for values, _ in found), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)


def test_row_by_row_attention_is_not_compiled():
    model = small_model()
    with pytest.raises(OmniprepError, match="use --attn varlen"):
        compile_layers(model, ("thinker.model.language_model",), "sdpa")


def liger_losses_in_torch(hidden, weight, targets, *, reduction, accum_dtype, return_token_accuracy):
    assert (reduction, accum_dtype, return_token_accuracy) == ("none", torch.float32, True)
    -(-len(targets) // min(len(targets), 1024))  # the number of chunks, for which liger-kernel divides so too
    logits = (hidden @ weight.T).float()
    losses = cross_entropy(logits, targets, reduction="none")
    return SimpleNamespace(loss=losses, token_accuracy=(logits.argmax(-1) == targets).float())


@pytest.fixture
def liger(monkeypatch) -> list[str]:
    """The two functions of liger-kernel that we call, in plain torch (its own need a GPU); what was called."""
    called: list[str] = []

    def liger_rms_norm(x, weight, eps, offset, casting_mode, in_place):
        assert (offset, casting_mode, in_place) == (0.0, "llama", False)
        called.append("norm")
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)

    def liger_swiglu(gate, up):
        called.append("swiglu")
        return silu(gate) * up

    def liger_rotary_pos_emb(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
        called.append("rope")
        return q, k

    module = ModuleType("liger_kernel.transformers.functional")
    module.liger_rms_norm, module.liger_swiglu = liger_rms_norm, liger_swiglu
    module.liger_fused_linear_cross_entropy = liger_losses_in_torch
    package = ModuleType("liger_kernel.transformers")
    package.rope = SimpleNamespace(liger_rotary_pos_emb=liger_rotary_pos_emb)
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(modeling_qwen2_5_omni, "apply_rotary_pos_emb", modeling_qwen2_5_omni.apply_rotary_pos_emb)
    return called


def test_liger_replaces_every_norm_and_swiglu_and_changes_nothing(liger):
    model = small_model().eval()
    use_attention(model, "sdpa")
    kwargs = forward_kwargs([make_row("mixed", np.random.default_rng(0))])
    with torch.no_grad():
        before = model(**kwargs).logits
        # Of each kind: 2 language layers, 2 vision blocks, the merger's norm and the last norm.
        assert use_liger(model) == 2 * 3 + 2 * 3 + 1 + 1
        after = model(**kwargs).logits
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert (liger.count("norm"), liger.count("swiglu")) == (2 * 2 + 2 * 2 + 2, 2 + 2)
    with pytest.raises(OmniprepError, match="no part"):
        use_liger(torch.nn.Linear(2, 2))
    assert use_liger(torch.nn.Linear(2, 2), required=False) == 0


def test_liger_rotates_what_lies_on_a_gpu(liger):
    use_liger(small_model())
    rotate = modeling_qwen2_5_omni.apply_rotary_pos_emb
    query, cos = torch.randn(1, 2, 3, 8), torch.randn(1, 3, 8)
    plain = rotate.plain(query, query, cos, cos)
    assert all(torch.equal(a, b) for a, b in zip(rotate(query, query, cos, cos), plain, strict=True))
    assert "rope" not in liger
    on_gpu = SimpleNamespace(is_cuda=True)
    rotate(on_gpu, on_gpu, cos, cos, unsqueeze_dim=1)
    assert liger.count("rope") == 1
    use_liger(small_model())
    assert modeling_qwen2_5_omni.apply_rotary_pos_emb is rotate, "wrapped once"


def test_kernels_that_compute_something_else_do_not_train(tmp_path, liger, monkeypatch):
    """A run with --liger compares the logits of its rows before and after."""
    folder, model = write_dataset(tmp_path / "d", bins=2), write_model(tmp_path / "model")
    datasets, config, cpu = [PackedDataset(str(folder))], TrainConfig(device="cpu", liger="on"), torch.device("cpu")
    load_trainable(small_family(model), str(model), config, cpu, datasets)
    assert "norm" in liger and "swiglu" in liger
    functional = sys.modules["liger_kernel.transformers.functional"]
    monkeypatch.setattr(functional, "liger_swiglu", lambda gate, up: gate.sigmoid() * up)
    with pytest.raises(OmniprepError, match="with --liger .*use --no-liger"):
        load_trainable(small_family(model), str(model), config, cpu, datasets)


def test_the_head_loss_by_liger_is_ours(liger, monkeypatch):
    head, ours = (torch.nn.Linear(8, 30, bias=False) for _ in range(2))
    ours.load_state_dict(head.state_dict())
    make_loss_head(head, "liger")
    make_loss_head(ours)
    hidden, targets = torch.randn(5, 8), torch.tensor([3, 1, 4, 1, 5])
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0])
    for layer in (head, ours):
        out = layer(hidden, targets)
        (out.losses * weights).sum().backward()
    assert torch.equal(head(hidden, targets).correct, ours(hidden, targets).correct)
    torch.testing.assert_close(head.weight.grad, ours.weight.grad)

    head = torch.nn.Linear(8, 30, bias=False)
    make_loss_head(head, "liger")
    states = torch.randn(0, 8, requires_grad=True)  # of a bin that fills up the last step of an epoch
    out = head(states, torch.empty(0, dtype=torch.int64))
    out.losses.sum().backward()
    assert (len(out.losses), len(out.correct)) == (0, 0)
    assert not head.weight.grad.any()

    class Unweighted(torch.autograd.Function):  # gradients as liger-kernel gave them before 0.8
        @staticmethod
        def forward(ctx, hidden, weight, targets):
            with torch.enable_grad():
                inputs = [x.detach().requires_grad_() for x in (hidden, weight)]
                losses = cross_entropy(inputs[0] @ inputs[1].T, targets, reduction="none")
                ctx.gradients = torch.autograd.grad(losses.sum(), inputs)
            return losses.detach()

        @staticmethod
        def backward(ctx, gradient):
            return *ctx.gradients, None

    def unweighted(hidden, weight, targets, **_):
        return SimpleNamespace(loss=Unweighted.apply(hidden, weight, targets), token_accuracy=torch.zeros(len(targets)))

    functional = sys.modules["liger_kernel.transformers.functional"]
    monkeypatch.setattr(functional, "liger_fused_linear_cross_entropy", unweighted)
    with pytest.raises(OmniprepError, match="other gradients of weighted losses"):
        make_loss_head(torch.nn.Linear(8, 30, bias=False), "liger")
    with pytest.raises(OmniprepError, match="no plain linear layer"):
        make_loss_head(torch.nn.Linear(8, 30), "liger")


@pytest.mark.parametrize("ours", [True, False])
def test_a_model_of_a_plug_in_gets_row_lengths_and_ours_all_numbers(dataset, ours):
    """docs/families.md: a model of one's own that has `touch_towers` gives losses too."""
    batch = Batcher(dataset.layout.modalities)([dataset[0]])
    given = {}

    def model(**kwargs):
        given.update(kwargs)
        return SimpleNamespace(losses=1, correct=2)

    cpu = SimpleNamespace(device=torch.device("cpu"))
    forward_pass = ForwardPass(fused=True, takes_numbers=ours)
    trainer = SimpleNamespace(args=cpu, weights_dtype=torch.float32, forward_pass=forward_pass)
    assert BinTrainer.token_losses(trainer, model, batch) == (1, 2)
    assert given["logits_to_keep"].equal(batch["positions"]) and given["targets"].equal(batch["targets"])
    assert ("numbers" in given) == ours and ("row_lengths" in given) != ours
    numbers = given["numbers"] if ours else SimpleNamespace(row_lengths=given["row_lengths"])
    assert list(numbers.row_lengths) == np.diff(dataset[0]["cu_seqlens"]).tolist()


def lost(losses: list[float], **options) -> str:
    """What a run says that logs these losses."""
    state = SimpleNamespace(global_step=12)
    run = SimpleNamespace(state=state, config=TrainConfig(**options), weights_dtype=torch.bfloat16)
    run.best_loss, run.bad_logs = float("inf"), 0
    with pytest.raises(OmniprepError) as caught:
        for loss in losses:
            BinTrainer._stop_when_lost(run, loss)
    return str(caught.value)


def test_a_run_that_is_lost_ends_with_the_settings_that_help():
    text = lost([2.0, float("nan")], learning_rate=3e-4)
    assert "nan at step 12" in text and "--learning-rate (now 0.0003)" in text and "--dtype float32 --amp" in text
    text = lost([2.0, 9.0, 2.1, 7.0, 8.0, 9.0])
    assert "diverges: 9.00 at step 12, after 2.00" in text and "--warmup" in text


def test_three_bad_logs_in_a_row_are_needed():
    with pytest.raises(pytest.fail.Exception):
        lost([2.0, 9.0, 9.0, 2.0, 9.0, 9.0, 3.0])


def test_memory_that_does_not_suffice_ends_with_the_settings_that_are_left(tmp_path, dataset, monkeypatch):
    """Raised within a real run; only what this run has not set is named."""
    model = write_model(tmp_path / "model")
    monkeypatch.setattr(run_module, "resolve_family", lambda *_: small_family(model))

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(BinTrainer, "token_losses", full)
    given = {"max_steps": 1, "num_workers": 0, "device": "cpu", "report_to": ("none",), "lora": True, "batch_size": 2}
    config = TrainConfig(model=str(model), data=(dataset.uri,), out=str(tmp_path / "run"), **given)
    with pytest.raises(OmniprepError) as caught:
        run_module.train(config, QuietReporter())
    text = str(caught.value)
    assert "allocate 20 GiB" in text and "--batch-size 1 with --grad-accumulation 2" in text and "--fsdp" in text
    assert "--lora" not in text and "--gradient-checkpointing" not in text


def test_help_names_what_an_option_takes(omniprep):
    shown = omniprep("train", "--help").out
    assert "--batch-size INTEGER" in shown and "zero3_offload" in shown
    assert "--shard-size BYTES" in omniprep("build", "--help").out
