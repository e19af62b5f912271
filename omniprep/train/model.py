"""The model of a run: loaded through its family, its attention made safe for bins, its trainable part chosen.

A family names a hook `load_model` ("module:function", or a function of path, dtype, attn_implementation) where the
checkpoint's own class cannot train on bins; any other is loaded as the class that its config.json names.
"""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel
from transformers.utils import find_adapter_config_file

from omniprep.data import PackedDataset
from omniprep.errors import OmniprepError
from omniprep.families.loading import named_function
from omniprep.train.any_class import AnyPacked, load_any
from omniprep.train.attention import KERNELS
from omniprep.train.attention_choice import check_attention, choose_attention, use_attention
from omniprep.train.checkpoint import complete, source_folder
from omniprep.train.compiling import compile_layers
from omniprep.train.config import TrainConfig
from omniprep.train.deepspeed import gathered, is_shared_out, keep_names
from omniprep.train.freeze import Parts, freeze, keep_inputs_plain, lora_regex, resolve_parts
from omniprep.train.isolation import (
    check_bins,
    check_isolation,
    check_losses,
    check_replaced,
    check_rows,
    chosen_rows,
    last_rows,
    later_rows,
    media_rows,
    text_row,
)
from omniprep.train.liger import use_liger, uses_liger
from omniprep.train.loss import make_loss_head
from omniprep.train.structure import derive_parts
from omniprep.train.varlen import HALF_TYPES


def weights_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Type of the weights: as asked, or bfloat16 on a GPU and float32 on the CPU; refuses emulated bfloat16."""
    wanted = config.dtype
    if wanted == "auto":
        wanted = "bfloat16" if device.type == "cuda" and not config.amp else "float32"
    in_half = config.amp or wanted == "bfloat16"
    if device.type == "cuda" and in_half and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise OmniprepError(
            f"this GPU ({torch.cuda.get_device_name(device)}) has no bfloat16: use --dtype float32, without --amp"
        )
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]


def load_base(
    ctx: Any, path: str, dtype: torch.dtype, attention: str, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a checkpoint (a run's too) as its family wants it; refuse one without weights, class or this attention."""
    hook = loading_hook(ctx)
    try:
        if find_adapter_config_file(path) is not None:
            # transformers would load it too, of any kind, those by which PEFT imports a module by name among them.
            raise OmniprepError(
                f"model {path!r}: an adapter (adapter_config.json) lies in the same folder as the model, and would be "
                "loaded with it: keep the two in folders of their own"
            )
        if hook is not None:
            model: PreTrainedModel = hook(path, dtype, attention)
            return model
        names = ctx.config.get("architectures")
        return load_any(path, names, dtype, attention, trust_remote_code=trust_remote_code)
    except (OSError, ImportError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        # TypeError and those after it: a config that holds text where transformers counts on a number.
        if isinstance(error, OmniprepError):
            raise
        kind = "" if isinstance(error, (OSError, ImportError, ValueError)) else f"{type(error).__name__}: "
        raise OmniprepError(f"model {path!r}: {kind}{' '.join(str(error).split())[:300]}") from error


def loading_hook(ctx: Any) -> Any:
    """The function of the family that loads its checkpoints, or None where it names none."""
    # Of the class: read off the object, a function would be bound to it and get the family as its first argument.
    hook = getattr(getattr(ctx, "cls", ctx), "load_model", None)
    return named_function(ctx.name, "load_model", hook) if hook else None


def load_trainable(
    ctx: Any, path: str, config: TrainConfig, device: torch.device, datasets: Sequence[PackedDataset]
) -> tuple[PreTrainedModel, Parts]:
    """The model with isolated rows and with its trainable part chosen (full training; LoRA follows by `add_lora`).

    Rows of `datasets` show whether it computes on bins what it should.
    """
    dtype = weights_dtype(config, device)
    half = config.amp or dtype in HALF_TYPES
    check_attention(config.attn, device, half=half)
    # Towers are loaded with sdpa: they have no flex attention. `use_attention` sets the language model's.
    loaded = "eager" if config.attn == "eager" else "sdpa"
    model = load_base(ctx, path, dtype, loaded, trust_remote_code=config.trust_remote_code)
    model.config.use_cache = False
    keep_inputs_plain(model)
    keep_names(model)
    parts = parts_of(model, ctx)
    attention = choose_attention(config.attn, model, device, half=half)
    use_attention(model, attention, parts.towers)
    # The kernels take 16 bits, which weights in float32 become under autocast alone.
    in_half = torch.autocast(device.type, torch.bfloat16) if config.amp and attention in KERNELS else nullcontext()
    with gathered(model), in_half:
        if not is_shared_out(model):  # kernels run on a GPU alone; and there the rows take no time
            model.to(device)
        make_loss_head(model.get_output_embeddings(), config.head_loss)
        try:
            rows = check_packing(model, datasets, dtype)
        except RuntimeError as error:
            # What a kernel refuses at its first call (a GPU, a width of heads), and what flex attention cannot compile.
            if isinstance(error, torch.OutOfMemoryError) or attention not in (*KERNELS, "flex_attention"):
                raise
            reason = " ".join(str(error).split())[:200]
            raise OmniprepError(f"--attn {attention} cannot compute this model: {reason}; use --attn sdpa") from error
        if uses_liger(config, device):
            check_replaced(model, rows, lambda: use_liger(model, required=config.liger == "on"), "--liger")
        if config.fsdp:  # it moves the weights itself, a part to each rank
            model.to("cpu")
    if config.torch_compile:
        compile_layers(model, parts.language_model, attention)
    freeze(model, parts, config)
    return model, parts


def parts_of(model: PreTrainedModel, ctx: Any) -> Parts:
    """The parts of a model: as its family names them, or as its class is built (structure.py)."""
    if ctx.arch.vision_tower or not isinstance(model, AnyPacked):
        return resolve_parts(model, ctx.arch)
    return derive_parts(model)


def check_packing(
    model: PreTrainedModel, datasets: Sequence[PackedDataset], dtype: torch.dtype
) -> dict[str, dict[str, Any]]:
    """Refuse a model that computes something else on bins than on rows (isolation.py); gives the rows it tried."""
    embeddings: Any = model.get_input_embeddings()
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None) or embeddings.num_embeddings
    mrope = datasets[0].layout.mrope
    if isinstance(model, AnyPacked):
        # Small pictures, whose axes are those of text, would hide it from the comparison below.
        if not mrope and model.makes_mrope:
            raise OmniprepError(
                f"the dataset has no m-rope positions, which {type(model).__name__} makes of every row with media: "
                "build it again"
            )
        model.prove(vocabulary)
    check_isolation(model, vocabulary, mrope=mrope)
    longest = max(d.record.bin_length for d in datasets)
    rows = {"a long row of text": text_row(model, vocabulary, longest, mrope=mrope)}
    device = next(model.parameters()).device
    rows |= media_rows(datasets, device, dtype)
    check_rows(model, rows)
    check_bins(model, chosen_rows(datasets) | later_rows(datasets) | last_rows(datasets), device, dtype)
    if isinstance(model, AnyPacked):
        check_losses(model, rows)
    return rows


def add_lora(model: PreTrainedModel, parts: Parts, config: TrainConfig, checkpoint: Path | None = None) -> Any:
    """Freeze the model and give it LoRA adapters on the modules that `lora_regex` names.

    Raises:
        OmniprepError: The targets match nothing, or the checkpoint has other adapters.
    """
    from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict

    targets = lora_regex(model, parts, config)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        # In mixtures of experts PEFT 0.21 keeps of a regular expression the last parts of the names alone (q_proj),
        # which frozen towers have too.
        exclude_modules=f"(?!(?:{targets})$).*",
    )
    wanted = {name for name, _ in model.named_modules() if re.fullmatch(targets, name)}
    try:
        # PEFT would turn adapters of bfloat16 weights into float32: every adapter then casts what it reads and gives.
        adapted = get_peft_model(model, lora, autocast_adapter_dtype=False)
    except ValueError as error:
        raise OmniprepError(f"--target-regex {config.target_regex!r}: {' '.join(str(error).split())[:300]}") from error
    # PEFT's forward pass for a CAUSAL_LM also hands inputs_embeds, labels and more of its own to the model, which one
    # of a plug-in need not take; that of the class behind it hands on what it gets.
    adapted.forward = MethodType(PeftModel.forward, adapted)
    given = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    if given != wanted:
        raise OmniprepError(
            f"PEFT gives adapters to other modules than {targets!r:.200} names, such as "
            f"{min(given ^ wanted)}: choose others by --target-regex"
        )
    if config.lora_dtype != "auto":
        adapter_type = {"bfloat16": torch.bfloat16, "float32": torch.float32}[config.lora_dtype]
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(adapter_type)
    if checkpoint is not None:
        if not (checkpoint / "adapter_model.safetensors").is_file():
            raise OmniprepError(f"--resume {checkpoint}: no adapter there, but --lora is on")
        other = f"--resume {checkpoint}: its adapters are not those of these options (--lora-rank, --freeze-…)"
        try:
            result = set_peft_model_state_dict(adapted, load_peft_weights(str(checkpoint), device="cpu"))
        except RuntimeError as error:  # of other shapes
            raise OmniprepError(other) from error
        if result.unexpected_keys or any("lora_" in name for name in result.missing_keys):
            raise OmniprepError(other)
    return adapted


def merge_lora(model: str, adapter: Path, out: Path, ctx: Any, dtype: torch.dtype) -> None:
    """Write `model` with an adapter merged into its weights."""
    from peft import PeftModel

    if not (adapter / "adapter_config.json").is_file():
        raise OmniprepError(f"{adapter}: no LoRA adapter there (adapter_config.json is missing)")
    merged = PeftModel.from_pretrained(load_base(ctx, model, dtype, "sdpa"), str(adapter)).merge_and_unload()
    out.mkdir(parents=True, exist_ok=True)
    merged.save_pretrained(out)
    complete(out, source_folder(model), tuple(ctx.arch.generator), dtype, ctx.saved_files)
