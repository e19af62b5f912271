"""Risk: the one call that has all rows of a bin, and all windows and clips of a tower, attends across their borders."""

import inspect
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import varlen_reference
from small_families import FAMILIES, bin_of, core_of, load_family
from test_train_masks import MORE, WINDOWED, WORDS, language_model, rows_with_windows_equal_those_alone
from train_helpers import ARCH, forward_kwargs, make_row, small_model

from omniprep.errors import OmniprepError
from omniprep.train import compiling
from omniprep.train.attention import VARLEN
from omniprep.train.attention_choice import choose_attention, use_attention, what_kernel_lacks
from omniprep.train.compiling import compile_layers
from omniprep.train.config import TrainConfig
from omniprep.train.freeze import resolve_parts
from omniprep.train.isolation import borders, check_isolation, check_rows, text_ids, text_row
from omniprep.train.varlen import attend_segments, find_kernel

GPU = torch.device("cuda")
ROWS = ["text", "image", "audio", "video", "mixed", "text"]


@pytest.fixture(params=[*varlen_reference.VERSIONS, "installed"])
def torch_version(request, monkeypatch) -> str:
    """torch's kernel as a version of torch has it, or the one that is installed on the reference's operators."""
    if request.param == "installed":
        if not varlen_reference.compute_on_cpu():
            pytest.skip("the torch that is installed has no varlen (before 2.10)")
    else:
        module = ModuleType("torch.nn.attention.varlen")
        module.varlen_attn = varlen_reference.VERSIONS[request.param]
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    varlen_reference.CALLS.clear()
    return request.param


@pytest.fixture
def torch_2_14(monkeypatch) -> None:
    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_reference.varlen_2_14
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    varlen_reference.CALLS.clear()


def test_a_bin_is_one_call_a_layer_in_language_model_and_towers(torch_version):
    model = small_model().eval()
    kwargs = forward_kwargs([make_row(kind, np.random.default_rng(1)) for kind in ROWS])
    use_attention(model, "sdpa")
    expected = model(**kwargs).logits
    weight = model.thinker.model.language_model.layers[0].self_attn.k_proj.weight
    (wanted,) = torch.autograd.grad(expected.square().mean(), weight)
    assert not varlen_reference.CALLS
    use_attention(model, "varlen", resolve_parts(model, ARCH).towers)
    ours = model(**kwargs).logits
    scale = float(expected.detach().abs().max())
    assert len(varlen_reference.CALLS) == 6, "two layers of each tower and of the language model"
    assert varlen_reference.CALLS[-1] == kwargs["cu_seq_lens_q"].tolist()
    (found,) = torch.autograd.grad(ours.square().mean(), weight)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * scale)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    check_isolation(model, 900)
    check_rows(model, {"a text": text_row(model, 900, 512)})


def test_the_towers_are_held_against_those_of_transformers(torch_2_14, monkeypatch):
    """A kernel that is wrong in a tower alone is found by the check at the start of a run."""
    model = small_model().eval()
    use_attention(model, "varlen", resolve_parts(model, ARCH).towers)
    row = forward_kwargs([make_row("image", np.random.default_rng(1))])
    check_rows(model, {"a row with image": row})

    def wrong(*args, window_size, **options):
        return varlen_reference.varlen_2_14(*args, window_size=(0, 0) if window_size[1] else window_size, **options)

    wrong.__signature__ = inspect.signature(varlen_reference.varlen_2_14)
    monkeypatch.setattr(sys.modules["torch.nn.attention.varlen"], "varlen_attn", wrong)
    use_attention(model, "varlen", resolve_parts(model, ARCH).towers)
    with pytest.raises(OmniprepError, match="on a row with image of a bin"):
        check_rows(model, {"a row with image": row})


@pytest.mark.parametrize("case", WINDOWED)
def test_windows_of_the_configuration_go_to_the_kernel(case, torch_2_14):
    rows_with_windows_equal_those_alone(case, "varlen")
    assert varlen_reference.CALLS == [[0, 5, 75, 91, 108, 141]] * 2


def test_a_window_to_both_sides_goes_to_the_kernel(torch_version):
    kernel = find_kernel("varlen")
    if not kernel.has_window:
        pytest.skip("this torch's kernel takes no window: a model that has one is refused")
    query, key, value = torch.randn(3, 1, 2, 9, 8)
    edges = torch.tensor([0, 4, 9], dtype=torch.int32)
    ours = attend_segments(kernel, query, key, value, edges, 5, causal=False, window=2)
    place = torch.arange(9)
    near = (place[:, None] - place).abs() < 2
    near &= (place[:, None] < 4) == (place < 4)
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=near)
    torch.testing.assert_close(ours, theirs.transpose(1, 2))


@pytest.mark.parametrize(("width", "value_width"), [(8, 8), (12, 12), (20, 6)])
def test_heads_of_any_width_are_padded_to_what_the_kernel_reads(width, value_width, torch_version):
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 9, width), torch.randn(1, 2, 9, width)
    value = torch.randn(1, 2, 9, value_width)
    edges = torch.tensor([0, 4, 9], dtype=torch.int32)
    kernel = find_kernel("varlen")
    for causal, scale in ((True, None), (False, 0.3)):
        ours = attend_segments(kernel, query, key, value, edges, 5, causal=causal, scale=scale)
        rows = zip(*(x.split([4, 5], 2) for x in (query, key, value)), strict=True)
        theirs = [
            torch.nn.functional.scaled_dot_product_attention(
                *row, is_causal=causal, scale=scale or width**-0.5, enable_gqa=True
            )
            for row in rows
        ]
        torch.testing.assert_close(ours, torch.cat(theirs, 2).transpose(1, 2))


def test_autocast_computes_in_its_own_type(torch_2_14):
    heads = torch.randn(1, 2, 6, 8)
    edges = torch.tensor([0, 6], dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend_segments(find_kernel("varlen"), heads, heads, heads.bfloat16(), edges, 6, causal=True)
    assert out.dtype == torch.bfloat16


def flash_attn(monkeypatch, name: str) -> list[dict]:
    """A stand-in for a package flash-attn; the options of its calls."""
    calls = []

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0,
    ):  # fmt: skip
        calls.append({"window": window_size, "softcap": softcap, "dropout": dropout_p})
        left, right = window_size
        out = varlen_reference.varlen(q, k, v, cu_seqlens_q, max_seqlen_q, causal, softmax_scale, left, right)
        return (out, None) if name == "flash_attn_interface" else out

    module = ModuleType(name)
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_the_kernels_of_flash_attn_give_the_same(name, monkeypatch):
    calls = flash_attn(monkeypatch, "flash_attn" if name.endswith("2") else "flash_attn_interface")
    model = small_model().eval()
    kwargs = forward_kwargs([make_row(kind, np.random.default_rng(1)) for kind in ROWS])
    with torch.no_grad():
        use_attention(model, "sdpa")
        expected = model(**kwargs).logits
        use_attention(model, name, resolve_parts(model, ARCH).towers)
        found = model(**kwargs).logits
        check_isolation(model, 900)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert len(calls) >= 6
    calls.clear()
    capped = language_model("Gemma2", sliding_window=16, attn_logit_softcapping=30.0)
    use_attention(capped, name)
    ids = text_ids(20, WORDS, torch.device("cpu"))[None]
    capped(ids, position_ids=torch.arange(20)[None], use_cache=False, **borders([20], ids.device))
    assert {call["softcap"] for call in calls} == {30.0}
    assert {call["window"] for call in calls} == {(15, 0), (-1, -1)}


@pytest.mark.parametrize("case", sorted(MORE.keys() - {"chunks"}))
def test_what_the_kernel_does_not_compute_is_computed_row_by_row(case, torch_2_14):
    rows_with_windows_equal_those_alone(case, "varlen")


def test_chunks_are_not_left_to_a_kernel_for_which_transformers_refuses_them(torch_2_14, monkeypatch):
    name, options = MORE["chunks"]
    kernel, model = find_kernel("varlen"), language_model(name, **options)
    assert "chunks" in what_kernel_lacks(kernel, model)
    assert not what_kernel_lacks(kernel, language_model("Qwen2"))


def test_auto_on_a_gpu_takes_the_kernel_of_torch_then_flash_attn_then_flex_then_rows(monkeypatch):
    model = small_model()
    monkeypatch.setattr(
        "omniprep.train.attention_choice.find_kernel", lambda name: find_kernel(name) if name in there else None
    )
    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_reference.varlen_2_11
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    flash_attn(monkeypatch, "flash_attn")
    flash_attn(monkeypatch, "flash_attn_interface")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: True)
    monkeypatch.setattr("omniprep.train.attention_choice.head_width", lambda module: width)
    there, width = {"varlen", "flash_attention_2", "flash_attention_3"}, 64
    for expected in ("varlen", "flash_attention_3", "flash_attention_2", "flex_attention"):
        assert choose_attention("auto", model, GPU, half=True) == expected
        there.discard(expected)
    width = 72
    assert choose_attention("auto", model, GPU, half=True) == "sdpa", "flex takes powers of two"
    there, width = {"varlen"}, 512
    assert choose_attention("auto", model, GPU, half=True) == "sdpa"
    with pytest.raises(OmniprepError, match="heads of 512 values are more than the 256.*use --attn auto"):
        choose_attention("varlen", model, GPU, half=True)
    assert choose_attention("auto", model, GPU, half=False) == "sdpa", "kernels take 16 bits"
    assert choose_attention("auto", model, torch.device("cpu"), half=True) == "sdpa"


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("Mistral", {"sliding_window": 16}, "takes no sliding window"),
        ("Qwen2", {"attention_dropout": 0.1}, "drops no attention weights"),
        ("Gemma2", {"sliding_window": None}, "no soft cap"),
    ],
)
def test_a_kernel_that_cannot_compute_a_model_is_not_chosen(name, options, reason, monkeypatch):
    model = language_model(name, **options)
    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_reference.varlen_2_10
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    assert choose_attention("auto", model, GPU, half=True) in ("sdpa", "flex_attention")
    use_attention(model, "varlen")
    if name == "Mistral":  # the layers that the kernel lacks a window for go row by row
        check_isolation(model, WORDS)
        check_rows(model, {"a text": text_row(model, WORDS, 512)})
    with pytest.raises(OmniprepError, match=f"--attn varlen: .*{reason}.*; use --attn"):
        choose_attention("varlen", model, GPU, half=True)


@pytest.mark.parametrize("name", ["varlen", "flash_attention_2", "flash_attention_3"])
def test_an_absent_kernel_is_one_line(name, monkeypatch):
    for module in ("torch.nn.attention.varlen", "flash_attn", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OmniprepError, match=f"--attn {name}: .*; use --attn auto"):
        choose_attention(name, small_model(), GPU, half=True)
    for device, half in ((torch.device("cpu"), True), (GPU, False)):
        with pytest.raises(OmniprepError, match=f"--attn {name} needs a GPU"):
            choose_attention(name, small_model(), device, half=half)


def test_a_gpu_without_bfloat16_is_one_line(monkeypatch):
    from omniprep.train.model import weights_dtype

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    for options in ({}, {"dtype": "bfloat16"}, {"amp": True}):
        with pytest.raises(OmniprepError, match=r"\(Tesla T4\) has no bfloat16: use --dtype float32"):
            weights_dtype(TrainConfig(**options), GPU)
    assert weights_dtype(TrainConfig(dtype="float32"), GPU) == torch.float32


def test_one_graph_for_all_layers_and_bins_of_other_rows(torch_version, monkeypatch):
    """20 bins of one length, each with other rows: torch.compile sees one graph, and computes the same."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    rng = np.random.default_rng(4)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, model = small_model(), small_model()
    parts = resolve_parts(model, ARCH)
    for each in (plain, model):
        use_attention(each, "varlen", parts.towers)
        each.activation_checkpointing_enable({"use_reentrant": False})
    assert compile_layers(model, parts.language_model, "varlen") == 2
    for number in range(20):
        cuts = [0, 60] if number == 0 else sorted({0, 60, *rng.integers(1, 60, number % 7 + 1).tolist()})
        lengths = np.diff(cuts).tolist()
        ids = text_ids(60, 900, torch.device("cpu")) + number
        positions = torch.cat([torch.arange(n) for n in lengths]).expand(4, 1, -1)
        given = {"input_ids": ids[None], "position_ids": positions, **borders(lengths, ids.device)}
        ours, theirs = model.train()(**given).logits, plain.train()(**given).logits
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.detach().abs().max()))
        ours.square().mean().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert model.config.get_text_config()._attn_implementation == VARLEN


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return load_family(request.param, tmp_path_factory.mktemp(request.param))


CALLS = {"qwen2_5_omni": 6, "qwen3_omni": 6, "qwen2_audio": 2}  # Qwen2-Audio's clips, all of 30 s, are a batch of SDPA


def test_every_family_computes_the_same_by_the_kernel(family, torch_2_14, request):
    model, parts = family
    batch = bin_of(core_of(model))
    with torch.no_grad():
        use_attention(model, "sdpa")
        expected = model(**batch).logits
        use_attention(model, "varlen", parts.towers)
        found = model(**batch).logits
    assert len(varlen_reference.CALLS) == CALLS.get(request.node.callspec.params["family"], 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    check_isolation(model, WORDS)
    for module in core_of(model).children():  # as it was loaded, for the next test
        if hasattr(module, "config"):
            module.config._attn_implementation = "sdpa"


@pytest.mark.slow
def test_every_family_is_compiled_once(family, torch_2_14, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    model, parts = family
    use_attention(model, "varlen", parts.towers)
    model.activation_checkpointing_enable({"use_reentrant": False})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert compile_layers(model, parts.language_model, "varlen") == 2
    batch = bin_of(core_of(model))
    length = batch["input_ids"].shape[1]
    for cuts in ([0, length], [0, 10, length], [0, 5, 20, 30, length], [0, 3, 9, 12, length]):
        batch |= borders(np.diff(cuts).tolist(), torch.device("cpu"))
        model.train()(**batch, targets=torch.arange(6), logits_to_keep=torch.arange(6)).losses.sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
