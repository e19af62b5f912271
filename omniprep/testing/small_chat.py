"""A small random checkpoint of any multimodal chat model of transformers, made offline from its classes alone.

The configuration is shrunk by rules (shrink.py), the tokenizer learned from a few sentences (small_tokenizer.py), the
processor built by its own class with what the configuration says; weights are random. A recipe adds what classes do
not hold: the chat template of the real checkpoints, their tokens, and settings whose defaults are not theirs.
"""

import ast
import importlib
import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omniprep.errors import OmniprepError
from omniprep.families.chat_models import chat_models
from omniprep.testing.chat_templates import CHATML
from omniprep.testing.shrink import (
    is_config,
    own_fields,
    parts_of,
    picture_side,
    picture_tokens,
    readable,
    rescaled,
    small_config,
)
from omniprep.testing.small_tokenizer import PIPELINES

ENDS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What the classes of a chat model do not say."""

    template: str = CHATML
    """Chat template; MEDIA stands for the tags of media items, which are the processor's own tokens."""
    pipeline: str = "byte_level"
    ends: dict[str, str] = field(default_factory=lambda: dict(ENDS))
    special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")
    names: dict[str, str] = field(default_factory=dict)
    """Names under which the processor asks the tokenizer for tokens; those it falls back on need none."""
    config: dict[str, Any] = field(default_factory=dict)
    ids: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    """Fields of the configuration that hold ids of tokens under other names than `…_token_id`."""
    processor_class: str = ""
    """Where transformers names none for the type."""
    parts: dict[str, str] = field(default_factory=dict)
    """Classes of the processor's parts, where transformers names none for the type."""
    processor: dict[str, Any] = field(default_factory=dict)
    """Arguments of the processor's class; those of its parts under their names."""


def write_chat_model(path: Path, seed: int, model_type: str, recipe: Recipe) -> None:
    """Write a checkpoint folder with random weights."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config, processor = make_parts(model_type, recipe)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = model_class(model_type)(config)
            give_weights(model)
        model.to(torch.bfloat16).save_pretrained(path)
        processor.save_pretrained(path)
    except ImportError as error:
        raise OmniprepError(f"a small {model_type} needs a package: {one_line(error)}") from error
    except (AttributeError, KeyError, RuntimeError, StrictDataclassError, TypeError, ValueError) as error:
        if isinstance(error, OmniprepError):
            raise
        raise OmniprepError(
            f"no small model of {model_type!r}: its classes in transformers do not take the settings that init-model "
            f"derives from their defaults ({type(error).__name__}: {one_line(error)})"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def one_line(error: Exception) -> str:
    """What an exception says, without line breaks."""
    return " ".join(str(error).split())


def give_weights(model: Any) -> None:
    """Matrices as strong as those of trained models, which keep the size of what passes through them.

    Classes draw them with a deviation of 0.02, meant for widths in the thousands, or make them zero: at a width of 64
    a tower's features would vanish on their way to the logits, and a fault in them would not show.
    """
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search(r"gate(_\w+)?$", name) and parameter.numel() == 1:
                parameter.fill_(0.5)  # shut at first, where what it lets through was added to a trained model
            if parameter.ndim < 2:
                continue
            wanted, given = parameter[0].numel() ** -0.5, float(parameter.float().std())
            if parameter.ndim == 3 and parameter.shape[-1] > 1:  # experts in one tensor: each is a matrix
                wanted = parameter.shape[-1] ** -0.5
            if given == 0.0:
                parameter.normal_(std=wanted)
            elif given < wanted:
                parameter.mul_(wanted / given)


def model_class(model_type: str) -> Any:
    """The class of transformers that answers chats with media."""
    import transformers

    name = chat_models().get(model_type)
    if name is None:
        raise OmniprepError(f"transformers has no multimodal chat model of type {model_type!r}")
    return getattr(transformers, name)


def make_parts(model_type: str, recipe: Recipe) -> tuple[Any, Any]:
    """The configuration and the processor, which agree with one another."""
    from transformers import AutoConfig

    full = AutoConfig.for_model(model_type)
    processor_type = processor_class(recipe.processor_class or processor_name(model_type))
    tokenizer = make_tokenizer(full, processor_type, recipe)
    vocabulary = -(-len(tokenizer) // 64) * 64
    with readable(full):
        config = type(full)(**small_config(full, recipe.config, vocabulary))
        with readable(config):
            processor = make_processor(processor_type, config, full, tokenizer, recipe)
            give_ids(config, processor, tokenizer, recipe.ids)
    config.architectures = [model_class(model_type).__name__]
    return config, processor


def processor_name(model_type: str) -> str:
    """The processor that transformers names for a model type."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    name = PROCESSOR_MAPPING_NAMES.get(model_type)
    if name is None:
        raise OmniprepError(f"transformers names no processor for {model_type!r}")
    return name


def processor_class(name: str) -> Any:
    """A processor of transformers."""
    import transformers

    return getattr(transformers, name)


def make_tokenizer(config: Any, processor_type: Any, recipe: Recipe) -> Any:
    """A fast tokenizer with all tokens that processor, configuration and template name."""
    from transformers import PreTrainedTokenizerFast

    source = inspect.getsource(importlib.import_module(processor_type.__module__))
    names = {name: f"<|{name.removesuffix('_token')}|>" for name in asked_tokens(source)} | recipe.names
    ids = [text for texts in recipe.ids.values() for text in ([texts] if isinstance(texts, str) else texts)]
    tokens = [
        *recipe.ends.values(),
        *recipe.special,
        *names.values(),
        *ids,
        *literal_tokens(source),
        *spare_tokens(config),
    ]
    tokenizer = PIPELINES[recipe.pipeline](dict.fromkeys(tokens))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **recipe.ends,
        extra_special_tokens=names,
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )


def asked_tokens(source: str) -> list[str]:
    """Names under which a processor asks the tokenizer for tokens without a text to fall back on."""
    asked = dict.fromkeys(re.findall(r"tokenizer\.(\w+_token)(?:_id)?\b", source))
    optional = set(re.findall(r"""(?:has|get)attr\((?:self\.)?tokenizer, ["'](\w+_token)(?:_id)?["']""", source))
    standard = {"bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"}
    return [name for name in asked if name not in standard | optional and not name.startswith("add_")]


def literal_tokens(source: str) -> list[str]:
    """Texts of special tokens in a processor's code."""
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    tokens = [
        text
        for text in texts
        if isinstance(text, str) and re.fullmatch(r"<[^\s<>{}]+>|\[[A-Z_]+\]|\]<\][a-z ]+\[>\[", text)
    ]
    if "_col_" in source:  # rows and columns of tiles, written with numbers
        tokens += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    return list(dict.fromkeys(tokens))


TOKEN_FIELD = re.compile(r"(\w+?)_token_(?:id|index)")


def spare_tokens(config: Any) -> list[str]:
    """A token for each that a configuration names, for those that the processor does not know."""
    found = {
        match[1]: None
        for part in parts_of(config)
        for name in own_fields(part)
        if (match := TOKEN_FIELD.fullmatch(name))
    }
    return [f"<|{name}|>" for name in found]


def give_ids(config: Any, processor: Any, tokenizer: Any, ids: dict[str, str | tuple[str, ...]]) -> None:
    """Set the token ids of a configuration to those of the tokenizer: by the names that the processor has for them."""
    for part in parts_of(config):
        for name, texts in ids.items():
            if name in own_fields(part):
                setattr(part, name, tokenizer.convert_tokens_to_ids(texts if isinstance(texts, str) else list(texts)))
        for name, default in own_fields(part).items():
            match = TOKEN_FIELD.fullmatch(name)
            if match is None or name in ids or (default is None and getattr(part, name) is None):
                continue
            setattr(part, name, token_of(match[1], processor, tokenizer))


def token_of(name: str, processor: Any, tokenizer: Any) -> int:
    """The id of a token that a configuration calls `name`: the processor's, the tokenizer's, or the spare one."""
    token, number = getattr(tokenizer, f"{name}_token", None), getattr(processor, f"{name}_token_id", None)
    if token is None and isinstance(number, int):
        return number
    token = token or getattr(processor, f"{name}_token", None)
    if isinstance(token, str):
        return int(tokenizer.convert_tokens_to_ids(token))
    return int(tokenizer.convert_tokens_to_ids(f"<|{name}|>"))


COUNTS = ("image_seq_len", "image_seq_length", "num_image_tokens", "num_image_token")
"""Arguments of processors that hold the tokens of a picture, or of each of its tiles."""


def make_processor(processor_type: Any, config: Any, full: Any, tokenizer: Any, recipe: Recipe) -> Any:
    """The processor with its parts, with what the configuration says of the same name."""
    arguments: dict[str, Any] = {}
    accepts = inspect.signature(processor_type.__init__).parameters
    for name in processor_type.get_attributes():
        if "tokenizer" in name:
            arguments[name] = tokenizer
        else:
            part_type = part_class(name, config.model_type, processor_type.__name__, recipe.parts.get(name))
            arguments[name] = make_part(part_type, config, full, recipe.processor.get(name, {}))
    for name, parameter in accepts.items():
        value = picture_tokens(config) if name in COUNTS else found_value(config, SAME.get(name, name))
        if name not in arguments and value is not None and parameter.default is not inspect.Parameter.empty:
            arguments[name] = value
    if "num_additional_image_tokens" in accepts and found_value(config, "vision_feature_select_strategy") == "default":
        arguments["num_additional_image_tokens"] = 1  # the class token, which "default" drops
    arguments |= {
        name: value for name, value in recipe.processor.items() if name not in processor_type.get_attributes()
    }
    processor = processor_type(**{key: value for key, value in arguments.items() if key in accepts})
    processor.chat_template = recipe.template.replace("MEDIA", media_tags(processor))
    return processor


def media_tags(processor: Any) -> str:
    """The part of a chat template that writes the processor's own token for each media item."""
    tags = ""
    for modality in ("image", "video", "audio"):
        token = getattr(processor, f"{modality}_placeholder_token", None) or getattr(
            processor, f"{modality}_token", None
        )
        if token is not None:
            tags += f"{{% if item['type'] == '{modality}' %}}{{{{ {token!r} }}}}{{% endif %}}"
    return tags


def found_value(config: Any, name: str) -> Any:
    """A setting of this name in a configuration or in the parts that read media."""
    for part in (config, *(part for part in parts_of(config) if "text" not in part.model_type)):
        value = getattr(part, name, None)
        if value is not None and not is_config(value) and name not in ("chat_template", "tokenizer"):
            return value
    return None


def make_part(part_type: Any, config: Any, full: Any, given: dict[str, Any]) -> Any:
    """An image processor, video processor or feature extractor for media of the configuration's sizes."""
    defaults = part_type(**given).to_dict()
    settings: dict[str, Any] = {}
    before, after = own_side(defaults) or picture_side(full), picture_side(config)
    for key, value in defaults.items():
        if key == "image_grid_pinpoints" and (pinpoints := found_value(config, key)):
            settings[key] = pinpoints
        elif key in COUNTS:
            settings[key] = picture_tokens(config)
        elif before and after and key in SIZES:
            settings[key] = rescaled(value, before, after)
        elif isinstance(value, int) and not isinstance(value, bool):
            said = found_value(config, SAME.get(key, key))
            if isinstance(said, int):
                settings[key] = said
    return part_type(**{**settings, **given})


SIZES = (
    "size",
    "crop_size",
    "max_image_size",
    "min_image_size",
    "image_grid_pinpoints",
    "pad_size",
    "tile_size",
    "high_res_size",
)
SAME = {"merge_size": "spatial_merge_size", "feature_size": "num_mel_bins", "img_size": "image_size"}
"""Settings that a configuration has under another name."""


def own_side(defaults: dict[str, Any]) -> int | None:
    """Pixels along a side of one picture, or of one tile, in a part's own settings."""
    for key, edge in (("max_image_size", "longest_edge"), ("crop_size", "height"), ("size", "height")):
        found = defaults.get(key)
        if isinstance(found, dict) and isinstance(found.get(edge), int):
            return int(found[edge])
    return None


def part_class(name: str, model_type: str, processor: str, said: str | None) -> Any:
    """The class that AutoProcessor takes for a part of the processor.

    Where transformers names none for the type, it is that of a type with the same processor (GLM-4.5V: of GLM-4.1V).
    """
    import transformers
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

    if said:
        return getattr(transformers, said)
    mapping = {
        "image_processor": IMAGE_PROCESSOR_MAPPING_NAMES,
        "video_processor": VIDEO_PROCESSOR_MAPPING_NAMES,
    }.get(name, FEATURE_EXTRACTOR_MAPPING_NAMES)
    same = [other for other, its in PROCESSOR_MAPPING_NAMES.items() if its == processor]
    found = next((mapping[other] for other in (model_type, *same) if other in mapping), None)
    if isinstance(found, dict):
        found = found.get("torchvision") or found.get("pil")
    if found is None:
        raise OmniprepError(f"transformers names no {name} for {model_type!r}")
    return getattr(transformers, found)
