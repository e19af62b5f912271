"""What is read of a checkpoint's processor: its parts, the token of each modality, the options that its parts have."""

import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import OmniprepError, Reject
from omniprep.families.hf.runner import Outcome, Runner, Tag, Unusable, audio_part, refusals
from omniprep.modalities import MODALITIES

KWARGS = {"image": "images_kwargs", "video": "videos_kwargs", "audio": "audio_kwargs"}
_PREFIX = {"image": "", "video": "video_", "audio": "audio_"}
_NAMED = {
    "fps": ("video", "fps"),
    "fps_min_frames": ("video", "min_frames"),
    "fps_max_frames": ("video", "max_frames"),
    "num_frames": ("video", "num_frames"),
    "video_total_pixels": ("video", "total_pixels"),
}
"""Options of builds that are called otherwise than arguments of the processor: modality, argument."""
_NO_OPTIONS = frozenset(
    (
        *("return_tensors", "device", "data_format", "input_data_format", "disable_grouping", "do_convert_rgb"),
        *("video_metadata", "return_metadata", "sampling_rate", "raw_speech", "padding"),
        *("max_length", "truncation", "pad_to_multiple_of", "return_attention_mask", "text_kwargs"),
    )
)
"""Arguments that say how a call is made, not what rows become."""


@contextmanager
def one_line(model: str) -> Iterator[None]:
    """Turn whatever a checkpoint's own classes raise while they are tried into one line that names the checkpoint."""
    try:
        yield
    except OmniprepError:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = str(error) or f"in {where.name}, {Path(where.filename).name}"  # some are raised without a word
        reason = error.message if isinstance(error, Reject) else f"{type(error).__name__}: {said}"
        reason = " ".join(reason.split())[:400]
        raise OmniprepError(f"model {model!r}: its processor cannot be used: {reason}") from error


def check_processor(processor: Any, model: str) -> None:
    """Refuse a checkpoint that has neither a processor with a fast tokenizer nor a fast tokenizer."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "is_fast"):
        raise OmniprepError(
            f"model {model!r}: its processor ({type(processor).__name__}) has no tokenizer, so no chat can be written"
        )
    if not tokenizer.is_fast:
        raise OmniprepError(f"model {model!r}: only fast tokenizers (tokenizer.json) are supported")


def part_of(processor: Any, modality: str) -> Any:
    """The image processor, video processor or feature extractor of a processor; None where it has none."""
    return audio_part(processor) if modality == "audio" else getattr(processor, f"{modality}_processor", None)


def processor_name(processor: Any) -> str:
    """What datasets call the processor: its class, and the version of transformers."""
    import transformers

    return f"transformers {transformers.__version__} {type(processor).__name__}"


def item_tags(processor: Any) -> dict[str, Tag]:
    """Modality → what the chat template writes for an item, and the token in it that the processor replaces.

    The token is the processor's own where the template writes it, else all that the template writes for an item. A
    modality that the template writes nothing for, or fails at, is absent.
    """
    tags = {}
    for modality in MODALITIES:
        if part_of(processor, modality) is None:
            continue
        written = written_for_item(processor, modality)
        own = getattr(processor, f"{modality}_token", None)
        if isinstance(own, str) and own and written.count(own) == 1:
            before, _, after = written.partition(own)
            tags[modality] = Tag(before, own, after)
        elif written:
            tags[modality] = Tag("", written, "")
    return tags


def tokens_of_items(processor: Any) -> list[str]:
    """The tokens that items are made of, as far as the tokenizer cuts them out of a text before anything else."""
    added = {str(token.content) for token in processor.tokenizer.added_tokens_decoder.values() if not token.single_word}
    owners = (processor, processor.tokenizer)
    named = [getattr(owner, f"{modality}_token", None) for modality in MODALITIES for owner in owners]
    return [token for token in dict.fromkeys(named) if token in added]


def written_for_item(processor: Any, modality: str) -> str:
    """What the chat template writes more for a question with an item than for one without; "" for nothing."""
    item, text = {"type": modality, modality: f"<{modality}>"}, {"type": "text", "text": "a question"}
    try:
        with_item, without = (
            processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
            for content in ([item, text], [text])
        )
    except Exception:  # a template may raise anything for a medium that it does not know
        return ""
    if not isinstance(with_item, str) or not isinstance(without, str):
        return ""
    before = _alike(with_item, without)
    after = _alike(with_item[before:][::-1], without[before:][::-1])
    return with_item[before : len(with_item) - after]


def _alike(left: str, right: str) -> int:
    """How many characters two texts begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def tensors_of_tokens(runner: Runner) -> frozenset[str]:
    """Names of the tensors that have one value a token, beside ids and attention mask."""
    outcome = runner.of_text
    if isinstance(outcome, Reject):
        return frozenset()
    length = len(outcome.ids)
    return frozenset(
        name for name, value in outcome.tensors.items() if tuple(getattr(value, "shape", ())) == (1, length)
    )


def check_uncut(runner: Runner) -> None:
    """Refuse a processor that cuts long texts: its tokenizer has a max_length (tokenizer.json, or its config)."""
    tokenizer = runner.processor.tokenizer
    most = tokenizer.init_kwargs.get("max_length")
    if not isinstance(most, int) or isinstance(runner.of_text, Reject):
        return
    text = "x " * (most + 8)
    with refusals():
        cut = np.asarray(runner.processor(text=text, return_tensors="np", **runner.settings)["input_ids"]).reshape(-1)
    if len(cut) < len(tokenizer(text, truncation=False, add_special_tokens=False)["input_ids"]):
        raise Unusable(
            f"{type(runner.processor).__name__} cuts every chat after {most:,} tokens: remove truncation from "
            "tokenizer.json and max_length from tokenizer_config.json"
        )


def usable_options(processor: Any) -> dict[str, tuple[str, str]]:
    """Options that a build may set: name → modality and argument of the processor's part."""
    options: dict[str, tuple[str, str]] = {}
    for modality in MODALITIES:
        part = part_of(processor, modality)
        arguments = getattr(getattr(part, "valid_kwargs", None), "__annotations__", {})
        for argument in sorted(set(arguments) - _NO_OPTIONS):
            options[f"{_PREFIX[modality]}{argument}"] = (modality, argument)
        for name, (owner, argument) in _NAMED.items():
            if owner == modality and argument in arguments:
                options[name] = (modality, argument)
    return options


def settings_of(processor: Any, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The kwargs of the processor's parts for the options that a build sets (None: not set)."""
    known = usable_options(processor)
    settings: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        if value is not None:
            modality, argument = known[name]
            settings.setdefault(KWARGS[modality], {})[argument] = value
    return settings


def part_settings(runner: Runner, modality: str) -> dict[str, Any]:
    """The arguments that a part of a processor works with: those of the call, else its own, brought into one form.

    As `preprocess` of transformers' image_processing_utils.py does it.
    """
    part = part_of(runner.processor, modality)
    kwargs = dict(runner.merged(modality)[KWARGS[modality]])
    for name in getattr(getattr(part, "valid_kwargs", None), "__annotations__", ()):
        kwargs.setdefault(name, getattr(part, name, None))
    return dict(part._standardize_kwargs(**kwargs)) if modality == "image" else kwargs


class TokenTypes:
    """Arrays of one value a token (token_type_ids, mm_token_type_ids) of rows, from their ids alone."""

    def __init__(self, processor: Any, names: Collection[str], outcomes: Sequence[Outcome]) -> None:
        """Learn how each array follows from ids, on what the processor made of examples.

        Raises:
            Unusable: One does not.
        """
        self._processor = processor
        self._tables: dict[str, dict[int, int]] = {}
        for name in names:
            known = [(np.array(outcome.ids), np.asarray(outcome.tensors[name])[0]) for outcome in outcomes]
            if all(np.array_equal(self._by_processor(ids), values) for ids, values in known):
                continue
            table: dict[int, int] = {}
            for ids, values in known:
                for token, value in zip(ids.tolist(), values.tolist(), strict=True):
                    if table.setdefault(token, value) != value:
                        raise Unusable(f"{name!r} of {type(processor).__name__} does not follow from the token ids")
            self._tables[name] = {token: value for token, value in table.items() if value}

    def of(self, name: str, ids: NDArray[Any]) -> NDArray[np.int64]:
        """The array of a row's ids, (L,)."""
        table = self._tables.get(name)
        if table is None:
            return self._by_processor(ids)
        result = np.zeros(len(ids), np.int64)
        for token, value in table.items():
            result[ids == token] = value
        return result

    def _by_processor(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        make = getattr(self._processor, "create_mm_token_type_ids", None)
        if make is None:
            return np.empty(0, np.int64)
        return np.asarray(make([ids.tolist()])[0], np.int64)
