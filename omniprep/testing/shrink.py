"""A small configuration of any class of transformers, from the class's own defaults by the names of its fields.

All widths become 64, all depths 2: then whatever must agree (a tower's output and the language model's input, heads
times their size and the width) agrees, without a line written for the class.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

WIDTH, INNER, HEADS, GROUPS, HEAD, LAYERS, EXPERTS = 64, 96, 4, 2, 16, 2, 4
SIDE = 8
"""Patches along each side of a picture of the configured size."""

KEY_VALUE_HEADS = r"(.*_)?(num_key_value_heads|num_kv_heads|n_kv_heads)"
BY_NAME: tuple[tuple[str, Any], ...] = (
    # Attention with compressed keys and values (DeepSeek), and with state (Mamba, gated delta nets).
    (r"q_lora_rank|kv_lora_rank|o_lora_rank|index_head_dim|qk_head_dim|global_head_dim|v_head_dim", HEAD),
    (r"qk_nope_head_dim|qk_rope_head_dim|rope_head_dim", HEAD // 2),
    (r"linear_(key|value)_head_dim|mamba_d_head|mamba_head_dim|ssm_head_dim", HEAD),
    (r"linear_num_key_heads", GROUPS),
    (r"linear_num_value_heads|mamba_n_heads|mamba_num_heads", HEADS),
    (r"ssm_state_size|mamba_d_state", HEAD),
    (r"(n_)?groups|n_group|topk_group|mamba_n_groups", 1),
    # Experts.
    (r"(moe_)?num_experts|n_routed_experts|num_local_experts|moe_num_experts", EXPERTS),
    (r"num_experts_per_tok|moe_k|moe_topk|num_experts_per_token|top_k_experts", 2),
    (r"first_k_dense_replace|moe_layer_start_index", 1),
    (r"n_shared_experts|moe_num_shared_experts|num_shared_experts", 1),
    # Layers, heads and widths.
    (r"(.*_)?(num_hidden_layers|depth|encoder_layers|decoder_layers|num_layers|n_layers|num_blocks)", LAYERS),
    (KEY_VALUE_HEADS, GROUPS),
    (r"(.*_)?(num_attention_heads|num_heads|attention_heads|n_heads|num_query_heads)", HEADS),
    (r"(attention_)?head_dim", HEAD),
    (r"(.*_)?(intermediate_size|ffn_dim|mlp_dim|inner_dim|ffn_hidden_size|ffn_size)", INNER),
    (
        r"(.*_)?(hidden_size|embed_dim|d_model|hidden_dim|projection_dim|output_dim|output_proj_dims|out_dim|width)",
        WIDTH,
    ),
    (r"max_position_embeddings|max_window_layers", 32768),
    (r"hidden_size_per_layer_input", HEAD),
    (r"num_kv_shared_layers", 0),
)
"""Pattern of a field's whole name → its value. A field that is absent (None) by default stays so."""


def small_config(
    config: Any, more: dict[str, Any], vocabulary: int, given: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Arguments of the configuration's class for a small one.

    Args:
        config: One with all defaults.
        more: Values that replace what the rules give, by field; of parts, in a dict of their own.
        vocabulary: Tokens.
        given: Fields that the configuration of the whole model sets, where this is one of its parts.
    """
    from transformers import AutoConfig

    kwargs: dict[str, Any] = {}
    specs = type(config).sub_configs_defaults
    fields = own_fields(config) | {name: getattr(config, name, None) for name in sorted(given)}
    for name, default in fields.items():
        full: Any = getattr(config, name, None)
        if full is None and name in specs and specs[name].optional and name not in more:
            full = specs[name].default_config  # a part that not every checkpoint has
        if is_config(full) and (another := more.get(name, {}).get("model_type")):
            full = AutoConfig.for_model(another)
        if is_config(full):
            said = dict(specs[name].init_kwargs) if name in specs else {}
            part = small_config(full, more.get(name, {}), vocabulary, frozenset(said))
            kwargs[name] = {"model_type": full.model_type, **said, **part}
        elif (default is not None or name in given) and (value := small_value(name, full, vocabulary)) is not None:
            kwargs[name] = HEADS if re.fullmatch(KEY_VALUE_HEADS, name) and each_has_its_own(config, name) else value
    kwargs |= pictures(config, more.get("patch_size"))
    kwargs |= {name: tokens for name in PICTURE_TOKENS if (tokens := picture_tokens(config, name)) is not None}
    if isinstance(pinpoints := getattr(config, "image_grid_pinpoints", None), list):
        kwargs["image_grid_pinpoints"] = rescaled(pinpoints, picture_side(config), picture_side(type(config)(**kwargs)))
    kwargs |= {name: value for name, value in more.items() if name not in specs}
    return with_positions(config, with_layers(config, kwargs))


def pictures(config: Any, patch: int | None) -> dict[str, Any]:
    """The size of pictures, in the form that the configuration has it in; `patch`: another size of patches."""
    side, patch = getattr(config, "image_size", None), patch or getattr(config, "patch_size", None)
    if side is None or patch is None:
        return {}
    numbers = [SIDE * (patch if isinstance(patch, int) else patch[0])] * (1 if isinstance(side, int) else len(side))
    return {"image_size": numbers[0] if isinstance(side, int) else type(side)(numbers)}


def each_has_its_own(config: Any, name: str) -> bool:
    """Whether every head of queries has keys and values of its own: then it is so in the small one."""
    fields = own_fields(config)
    return fields.get(name) in [fields.get(key) for key in ("num_attention_heads", "num_heads", "n_heads")]


PICTURE_TOKENS = ("image_seq_length", "mm_tokens_per_image")


def picture_tokens(config: Any, name: str = "") -> int | None:
    """Tokens of a picture of `SIDE` by `SIDE` patches, after the configuration's downsampling.

    Args:
        config: The whole model's, full or small.
        name: A field that holds them, which must be there.
    """
    if name and not isinstance(getattr(config, name, None), int):
        return None
    if hasattr(config, "mm_tokens_per_image"):  # any square number: the projector averages to it
        return (SIDE // 2) ** 2
    for part in parts_of(config):
        for field, power in (("downsample_ratio", 1), ("scale_factor", -1), ("pixel_shuffle_ratio", 1)):
            if isinstance(factor := getattr(part, field, None), int | float):
                return int((SIDE * factor**power) ** 2)
    return SIDE**2


@contextmanager
def readable(config: Any) -> Iterator[None]:
    """Settings that layers may have of their own can be read as those of all, in a configuration and its parts.

    transformers refuses that otherwise (Gemma 4's heads are wider in layers of full attention).
    """
    configs = parts_of(config)
    for part in configs:
        part.__dict__["allow_global_per_layer_attribute_access"] = True
    try:
        yield
    finally:
        for part in configs:
            part.__dict__.pop("allow_global_per_layer_attribute_access", None)


def is_config(value: Any) -> TypeGuard[Any]:
    """Whether a value is a configuration of transformers."""
    return hasattr(value, "model_type") and hasattr(value, "to_dict")


def own_fields(config: Any) -> dict[str, Any]:
    """Fields of a configuration that its class, or the one that has it as a part, adds, with their defaults."""
    from transformers import PreTrainedConfig

    base = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    fields = {}
    for field in dataclasses.fields(type(config)):
        if field.name in base - {"tie_word_embeddings"}:
            continue
        default = field.default if field.default is not dataclasses.MISSING else None
        if default is None and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        fields[field.name] = default
    return fields


def small_value(name: str, default: Any, vocabulary: int) -> Any:
    """What replaces a field's default; None to keep it."""
    if default is None or isinstance(default, bool | str):
        return None
    if isinstance(default, list | tuple | dict) or default == 0:  # 0: what the class does without
        return None
    if re.fullmatch(r"(.*_)?(vocab_size|vocabulary_size)", name):
        return vocabulary
    if re.fullmatch(r"sliding_window|attention_chunk_size", name):
        return WIDTH
    for pattern, value in BY_NAME:
        if re.fullmatch(pattern, name):
            return value if not isinstance(default, float) else None
    return None


def with_layers(config: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """One layer of each kind, where the full configuration has several; numbers of layers within the depth."""
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    if len(kinds) > 1 and "layer_types" not in kwargs:
        kwargs["layer_types"], kwargs["num_hidden_layers"] = kinds, len(kinds)
    for name, default in own_fields(config).items():
        if name not in kwargs and re.fullmatch(r".*(layer|block|visual|attn)_index(es)?|.*_layers_?idx", name):
            full = default or getattr(config, name, None)
            if isinstance(full, list | tuple):
                kwargs[name] = type(full)(range(min(len(full), LAYERS)))
        elif name not in kwargs and re.fullmatch(r".*feature_layers?", name):
            full = default or getattr(config, name, None)
            if isinstance(full, list | tuple):  # layers whose outputs are put together: the last and the one before
                kwargs[name] = type(full)(n % 2 - 2 if layer < 0 else n % 2 for n, layer in enumerate(full))
    return kwargs


def with_positions(config: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Sections of m-rope for heads of this size, where the modelling code splits them."""
    if "max_position_embeddings" not in own_fields(config) or "rope_parameters" in kwargs:
        return kwargs
    if not reads_sections(config):
        return kwargs
    full = dict(getattr(config, "rope_parameters", None) or {})
    head = kwargs.get("head_dim") or kwargs["hidden_size"] // kwargs["num_attention_heads"]
    half = int(head * full.get("partial_rotary_factor", 1.0)) // 2
    interleaved = bool(full.get("mrope_interleaved")) or "interleaved" in modelling_source(config)
    split = {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": sections(half, interleaved=interleaved)}
    kinds = [kind for kind, rope in full.items() if isinstance(rope, dict)]  # each kind of layer has its own
    if kinds or set(full) <= set(getattr(config, "layer_types", None) or ()):
        kinds = (
            list(dict.fromkeys(kwargs.get("layer_types") or config.layer_types))
            if hasattr(config, "layer_types")
            else []
        )
    kwargs["rope_parameters"] = {kind: {**split, **(full.get(kind) or {})} for kind in kinds} or {**split, **full}
    kwargs["rope_parameters"].update({} if kinds else {"mrope_section": split["mrope_section"]})
    return kwargs


def sections(half: int, *, interleaved: bool) -> list[int]:
    """Frequencies of time, height and width; interleaved ones are taken by threes, so height and width have a third."""
    third = half // 3 if interleaved else (half + 1) // 3
    return [half - 2 * third, third, third]


def reads_sections(config: Any) -> bool:
    """Whether the modelling code of a configuration reads `mrope_section`."""
    return "mrope_section" in modelling_source(config)


def modelling_source(config: Any) -> str:
    """The text of the module beside the configuration's that holds its models."""
    import importlib

    name = type(config).__module__.replace("configuration_", "modeling_")
    try:
        return inspect.getsource(sys.modules.get(name) or importlib.import_module(name))
    except ModuleNotFoundError:  # of a class without models of its own
        return ""


def parts_of(config: Any) -> list[Any]:
    """A configuration and all its parts."""
    parts = [config.__dict__.get(name) for name in own_fields(config)]
    return [config, *(inner for part in parts if is_config(part) for inner in parts_of(part))]


def picture_side(config: Any) -> int | None:
    """Pixels along a side of the pictures that the vision tower takes."""
    for part in parts_of(config):
        side = getattr(part, "image_size", None)
        if side is not None:
            return int(side if isinstance(side, int) else side[0])
    return None


def rescaled(value: Any, before: int | None, after: int | None) -> Any:
    """Sizes in pixels, for pictures of side `after` where they were for `before`; what is no multiple of it stays."""
    if isinstance(value, dict):
        if {"height", "width"} == set(value):
            return {"height": after, "width": after}
        return {key: rescaled(number, before, after) for key, number in value.items()}
    if isinstance(value, list | tuple):
        return [rescaled(number, before, after) for number in value]
    if not before or not after:
        return value
    return value // before * after if isinstance(value, int) and value % before == 0 else value
