"""Risk: what only a GPU has (one call for all rows, Liger's kernels) computes something else than a class nobody wrote for.

The kernels are stood in for by their arithmetic in plain torch; which modules and towers get them is what is tried.
benchmarks/gpu.py trains these classes with the kernels themselves.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import varlen_reference
from any_rows import one_bin, rows_of
from test_train_any_class import loaded, positioned, words
from torch.nn.functional import silu

from omniprep.errors import OmniprepError
from omniprep.testing.init_model import init_model
from omniprep.train.attention import TOWERS
from omniprep.train.attention_choice import choose_attention, use_attention
from omniprep.train.isolation import check_isolation
from omniprep.train.liger import use_liger
from omniprep.train.masks import tower_mask
from omniprep.train.structure import derive_parts

GPU = torch.device("cuda")
# GLM-4V's patch merger has the four parts of a SwiGLU layer behind others; PaddleOCR-VL's tower asks for a mask of
# hidden states without a batch; Qwen3-VL's towers go by borders too; InternVL's and LLaVA's by none.
TYPES = ("glm4v", "glm4v_moe", "paddleocr_vl", "qwen3_vl", "internvl", "llava_onevision")


@pytest.fixture(scope="module", params=TYPES)
def checkpoint(request, tmp_path_factory):
    """The type, the model as it is loaded for training, and a bin of rows with and without pictures."""
    folder = tmp_path_factory.mktemp("kernels") / request.param
    init_model(folder, request.param)
    model = loaded(folder)
    made = one_bin(positioned(model, rows_of(str(folder))))
    if not model.mrope:
        made["position_ids"] = torch.cat([torch.arange(n) for n in made["row_lengths"]])[None]
    return request.param, model, made


def test_the_kernel_for_all_rows_computes_what_sdpa_computes_row_by_row(checkpoint, monkeypatch):
    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_reference.varlen_2_14
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    name, model, packed = checkpoint
    parts = derive_parts(model)
    with torch.no_grad():
        use_attention(model, "sdpa", parts.towers)
        expected = model(**packed).logits
        use_attention(model, "varlen", parts.towers)
        varlen_reference.CALLS.clear()
        found = model(**packed).logits
    assert varlen_reference.CALLS
    tower = model.get_submodule(parts.towers[0])
    by_borders = tower.config._attn_implementation == TOWERS
    assert by_borders == (name not in ("internvl", "llava_onevision"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    check_isolation(model, words(model), mrope=model.mrope)
    tower.config._attn_implementation = "sdpa"
    use_attention(model, "sdpa", parts.towers)


def test_ligers_kernels_replace_only_layers_that_they_compute(checkpoint, monkeypatch):
    functional = ModuleType("liger_kernel.transformers.functional")

    def norm(x, weight, eps, offset, casting, in_place):
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)

    functional.liger_rms_norm, functional.liger_swiglu = norm, lambda gate, up: silu(gate) * up
    package = ModuleType("liger_kernel.transformers")
    package.rope = SimpleNamespace()
    for module in (ModuleType("liger_kernel"), package, functional):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    _, model, packed = checkpoint
    with torch.no_grad():
        expected = model(**packed).logits
        replaced = use_liger(model, required=False)
        found = model(**packed).logits
    for module in model.modules():
        module.__dict__.pop("forward", None)  # as the class has it
    assert replaced
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_auto_takes_rows_where_the_kernel_cannot_compute_a_class(tmp_path, monkeypatch):
    """Flex attention, which it took for Llama 4's chunks, compiled for a minute on a GPU and then gave up compiling."""
    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_reference.varlen_2_14
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    init_model(tmp_path / "m", "llama4")
    assert choose_attention("auto", loaded(tmp_path / "m"), GPU, half=True) == "sdpa"


def test_a_tower_with_padding_beside_its_borders_is_refused():
    assert tower_mask(12, 7, 7) is None
    with pytest.raises(OmniprepError, match="by borders and by a mask at once.*--attn sdpa"):
        tower_mask(1, 7, 7, attention_mask=torch.ones(1, 7))
