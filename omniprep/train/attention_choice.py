"""Which attention a run takes (`--attn`), and how a model is set to it.

`choose_attention` takes the first of these that can run:
- varlen, flash_attention_3, flash_attention_2: one call of a variable-length kernel for all rows (`VARLEN`); vision and
  audio towers attend by it too.
- flex_attention: transformers makes the block mask from the text positions (first of the four rows of position_ids).
  transformers 5.23 does so only without attention mask and with use_cache=False, else it mixes rows without a word.
- sdpa: row by row (`ROWS`).
- eager, only by name: how transformers defines a model, with a mask as for flex_attention.
"""

import importlib.util
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from omniprep.errors import OmniprepError
from omniprep.train.attention import KERNELS, ROWS, TOWERS, VARLEN, varlen_attention
from omniprep.train.structure import MEDIA_INPUTS, find_decoder
from omniprep.train.varlen import LARGEST_HEAD, VarlenKernel, find_kernel


def check_attention(wanted: str, device: torch.device, *, half: bool) -> None:
    """Refuse an `--attn` that cannot run on this machine, before a model is loaded.

    `half` says whether attention computes in 16 bits: weights of 16 bits, or autocast.
    """
    if wanted in KERNELS:
        if device.type != "cuda" or not half:
            raise OmniprepError(f"--attn {wanted} needs a GPU and --dtype bfloat16 (or --amp); use --attn sdpa")
        if find_kernel(wanted) is None:
            missing = {
                "varlen": f"torch {torch.__version__} has no torch.nn.attention.varlen (from 2.10 on it does)",
                "flash_attention_2": "the package flash-attn is not installed",
                "flash_attention_3": "the package flash-attn-3 (flash_attn_interface) is not installed",
            }[wanted]
            raise OmniprepError(f"--attn {wanted}: {missing}; use --attn auto")
    if wanted == "flex_attention" and device.type != "cuda":
        raise OmniprepError("--attn flex_attention needs a GPU; use --attn sdpa")


def choose_attention(wanted: str, model: PreTrainedModel, device: torch.device, *, half: bool) -> str:
    """Resolve `--attn` for a loaded model to one of the names in this module's docstring, or refuse it."""
    check_attention(wanted, device, half=half)
    if wanted in KERNELS:
        kernel = find_kernel(wanted)
        assert kernel is not None
        lacking = what_kernel_lacks(kernel, model)
        if lacking:
            raise OmniprepError(f"--attn {wanted}: {lacking}; use --attn auto, or --attn sdpa")
        return wanted
    if wanted != "auto":
        return wanted
    if device.type != "cuda" or not half:
        return "sdpa"
    found = {name: kernel for name in KERNELS if (kernel := find_kernel(name)) is not None}
    for name, kernel in found.items():
        if not what_kernel_lacks(kernel, model):
            return name
    if found:
        # Llama 4's chunks, say. Flex attention compiles once for each length of a bin and each kind of layer, and gives
        # up after eight: loading and four steps of a small Llama 4 took 64 s on an H100.
        return "sdpa"
    width = head_width(language_model(model))
    # Older versions of flex attention take heads whose width is a power of two, and all need Triton.
    compiles = importlib.util.find_spec("triton") is not None and width >= 16 and width & (width - 1) == 0
    return "flex_attention" if compiles and width <= LARGEST_HEAD else "sdpa"


def what_kernel_lacks(kernel: VarlenKernel, model: PreTrainedModel) -> str:
    """Why a variable-length kernel cannot compute a language model; "" where it can."""
    config = model.config.get_text_config()
    width = head_width(language_model(model))
    if width > LARGEST_HEAD:
        return f"heads of {width} values are more than the {LARGEST_HEAD} that the kernel takes"
    if getattr(config, "attn_logit_softcapping", None) and not kernel.has_softcap:
        return "its kernel has no soft cap of scores, which this model has"
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "attention_chunk_size", None) and (kinds is None or "chunked_attention" in kinds):
        return "transformers gives no attention of this kind the chunks that this model attends in"
    windowed = "sliding_attention" in kinds if kinds else getattr(config, "sliding_window", None) is not None
    if windowed and not kernel.has_window:
        return f"its kernel in torch {torch.__version__} takes no sliding window, which this model has"
    if getattr(config, "attention_dropout", 0.0) and not kernel.has_dropout:
        return f"its kernel drops no attention weights, and the model's attention_dropout is {config.attention_dropout}"
    return ""


def language_model(model: PreTrainedModel) -> nn.Module:
    """The module of the language model: the one that has its configuration; the whole model where none does."""
    text = model.config.get_text_config()
    return next((m for m in model.modules() if getattr(m, "config", None) is text and m is not model), model)


def language_configs(model: PreTrainedModel) -> list[Any]:
    """The configurations that the layers of a language model read which attention is theirs from.

    Of a class that trains as it is (any_class.py), every one in its language model but those of towers in there: it may
    be a part of the model's or a copy.
    """
    text = model.config.get_text_config()
    configs = {id(text): text}
    if getattr(model, "row_borders", None) is not None:
        decoder = find_decoder(model)
        towers = {
            part
            for module in decoder.modules()
            if getattr(module, "main_input_name", "") in MEDIA_INPUTS
            for part in module.modules()
        }
        for module in decoder.modules():
            config = module.__dict__.get("config")
            if module not in towers and isinstance(config, PreTrainedConfig):
                configs[id(config)] = config
    return list(configs.values())


def set_attention(configs: Iterable[Any], name: str) -> None:
    """Set an attention in configurations, and not, as the setter does, in their parts, which may be those of towers."""
    for config in configs:
        config._attn_implementation_internal = name


def head_width(module: nn.Module) -> int:
    """Values of the widest attention head in a module; 0 where its layers do not say."""
    widths = (getattr(layer, "head_dim", None) for layer in module.modules())
    return max((width for width in widths if isinstance(width, int)), default=0)


def use_attention(model: PreTrainedModel, name: str, towers: Iterable[str] = ()) -> None:
    """Let a model attend by an implementation, each row of a bin alone.

    The model must have been loaded with transformers' sdpa (or eager): towers that do not give borders to their
    attention keep that.
    """
    language = language_configs(model)
    if next(model.parameters()).is_cuda or torch.cuda.is_available():
        # cuDNN plans anew for each length that it has not seen: 98 ms each, where the kernel itself takes 0.3.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if name not in KERNELS:
        set_attention(language, ROWS if name == "sdpa" else name)
        return
    kernel = find_kernel(name)
    assert kernel is not None
    for registered in (VARLEN, TOWERS):
        AttentionInterface.register(registered, partial(varlen_attention, kernel=kernel))
    set_attention(language, VARLEN)
    for prefix in towers:
        tower = model.get_submodule(prefix)
        config = getattr(tower, "config", None)
        if (
            config is not None
            and not any(config is one for one in language)
            and takes_borders(tower)
            and head_width(tower) <= LARGEST_HEAD
        ):
            config._attn_implementation = TOWERS


def takes_borders(tower: nn.Module) -> bool:
    """Whether a tower's layers take the borders of windows, images and clips."""
    return any("cu_seqlens" in inspect.signature(type(layer).forward).parameters for layer in tower.modules())


@contextmanager
def own_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The language model with transformers' own attention `name`, and the towers as they were loaded (sdpa)."""
    language = {id(config): config for config in language_configs(model)}
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)} | language
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for key, config in configs.items():
            if key not in language and config._attn_implementation == TOWERS:
                config._attn_implementation_internal = "sdpa"
        set_attention(language.values(), name)
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
