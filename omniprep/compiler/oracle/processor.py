"""The oracle: the checkpoint's AutoProcessor and its model's own rule of positions, called as transformers documents.

Nothing of omniprep/families/ is called here: what is compared must not be computed by what it is compared with.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from omniprep.compiler.oracle.chats import Chat, as_messages, file_name
from omniprep.errors import OmniprepError

RATE = 16_000


class NoOracleError(OmniprepError):
    """The checkpoint has no processor of its own, or none that writes chats: nothing to compare with."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without bars, and without advice of transformers to those who write calls of it."""
    from transformers import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


class Oracle:
    """A checkpoint's AutoProcessor.

    Args:
        model: Checkpoint folder or Hub name.
        trust_remote_code: Let the checkpoint's own Python code run.

    Raises:
        NoOracleError: It has none, or one without a chat template.
    """

    def __init__(self, model: str, *, trust_remote_code: bool = False) -> None:
        from transformers import AutoProcessor, ProcessorMixin

        self.model, self.trust_remote_code = model, trust_remote_code
        try:
            processor = AutoProcessor.from_pretrained(model, trust_remote_code=trust_remote_code)
        except (ValueError, KeyError, OSError, ImportError, TypeError, AttributeError) as error:
            raise NoOracleError(f"its AutoProcessor cannot be loaded: {one_line(error)}") from error
        if not isinstance(processor, ProcessorMixin):
            raise NoOracleError("it has no processor of its own (AutoProcessor gives a part of one alone)")
        # Some classes of processors are not given the template that their tokenizer has.
        processor.chat_template = processor.chat_template or getattr(processor.tokenizer, "chat_template", None)
        if not processor.chat_template:
            raise NoOracleError(f"{type(processor).__name__} has no chat template")
        self.processor: Any = processor

    @property
    def name(self) -> str:
        """What is compared with, for messages and the manifest."""
        from transformers import __version__

        return f"{type(self.processor).__name__} of transformers {__version__}"

    @property
    def sampling_rate(self) -> int:
        """Samples a second of the sound that it takes."""
        part = getattr(self.processor, "feature_extractor", None) or getattr(self.processor, "audio_processor", None)
        return int(getattr(part, "sampling_rate", RATE))

    @property
    def writes_tools(self) -> bool:
        """Whether the chat template looks at tools."""
        template = self.processor.chat_template
        return "tools" in (template if isinstance(template, str) else "".join(template.values()))

    def arguments(self, chat: Chat, folder: Path, text: str = "") -> dict[str, Any]:
        """What the processor gives for a chat; raises whatever it raises.

        Args:
            chat: The chat.
            folder: Where its media lie.
            text: Given to the processor in place of what the chat template writes.
        """
        metadata: list[dict[str, Any]] = []

        def medium(modality: str, name: str) -> Any:
            path = folder / file_name(modality, name)
            if modality != "video":
                return str(path)
            frames, facts = whole_video(path)
            metadata.append(facts)
            return frames

        items = iter([medium(*item) for item in chat.media])
        kwargs = {"videos_kwargs": {"video_metadata": metadata}} if metadata else {}
        return self.call(chat, lambda modality, name: next(items), kwargs, text)

    def call(
        self, chat: Chat, medium: Callable[[str, str], Any], processor_kwargs: dict[str, Any], text: str
    ) -> dict[str, Any]:
        """The processor's own call, on what `medium` gives for each item, with the chat's tools where it has some."""
        more: dict[str, Any] = {"tools": list(chat.tools)} if chat.tools else {}
        if text:  # as a template that writes nothing else; it is no Jinja, so braces in it must stay
            more["chat_template"] = "{{ text }}"
            more["text"] = text
        if processor_kwargs:
            more["processor_kwargs"] = processor_kwargs
        messages = as_messages(chat, medium)
        return dict(
            self.processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", **more)
        )

    def template_text(self, chat: Chat) -> str:
        """What the checkpoint's chat template writes for a chat, items as single tokens."""
        return str(self.processor.apply_chat_template(as_messages(chat, lambda modality, name: name), tokenize=False))

    @cached_property
    def config(self) -> Any:
        """config.json as transformers reads it."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.model, trust_remote_code=self.trust_remote_code)

    @cached_property
    def model_class(self) -> Any:
        """The class that config.json names; None where transformers has no such class."""
        import transformers

        return getattr(transformers, (self.config.architectures or [""])[0], None)

    @cached_property
    def skeleton(self) -> Any:
        """The model on the meta device, without weights; None where its class is not known."""
        import torch

        if self.model_class is None:
            return None
        with torch.device("meta"):
            return self.model_class(self.config)

    @cached_property
    def position_rule(self) -> Any:
        """The model's own get_rope_index; None where it has none."""
        return next((part.get_rope_index for part in _parts(self.skeleton) if hasattr(part, "get_rope_index")), None)

    @property
    def position_names(self) -> frozenset[str]:
        """Arguments of `position_rule`."""
        return frozenset(inspect.signature(self.position_rule).parameters) if self.position_rule else frozenset()

    def positions(self, arguments: Mapping[str, Any]) -> Any | None:
        """M-rope positions int64 (3, L) by the model's own rule; None where its model has none."""
        import torch

        if self.position_rule is None:
            return None
        given = dict(arguments)
        if (mask := given.get("feature_attention_mask")) is not None:
            given["audio_seqlens"] = mask.sum(1)  # as forward of the omni models calls it
        if (seconds := given.get("video_second_per_grid")) is not None:
            given["second_per_grids"] = seconds
        types = "mm_token_type_ids"  # which some processors make for those alone who ask
        if types in self.position_names and types not in given:
            given[types] = torch.tensor(self.processor.create_mm_token_type_ids(given["input_ids"].tolist()))
        known = {name: value for name, value in given.items() if name in self.position_names}
        return self.position_rule(**known)[0].to(torch.int64)[:, 0]

    @cached_property
    def forward_names(self) -> frozenset[str]:
        """Arguments that the model's forward takes by name; empty where its class is not known."""
        cls = self.model_class
        return frozenset() if cls is None else frozenset(inspect.signature(cls.forward).parameters)


def whole_video(path: Path) -> tuple[Any, dict[str, Any]]:
    """All frames of a video, uint8 (T, C, H, W), and transformers' `VideoMetadata` of it.

    Readers differ in the last bit of a color, so the processor gets the frames that omniprep decodes; which of them it
    takes is its own choice, from the metadata, as when it is given a path.
    """
    import numpy as np
    import torch

    from omniprep.media.source import Source
    from omniprep.media.video import probe_video, read_frames

    source = Source(path=str(path))
    facts = probe_video(source)
    frames = read_frames(source, facts, range(facts.frames))
    metadata = {
        "total_num_frames": facts.frames,
        "fps": facts.fps,
        "width": facts.width,
        "height": facts.height,
        "duration": facts.frames / facts.fps,
    }
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).contiguous(), metadata


def _parts(model: Any) -> list[Any]:
    """The model and the modules in it that may hold its rule of positions."""
    if model is None:
        return []
    inner = [getattr(model, name) for name in ("thinker", "model") if hasattr(model, name)]
    return [model, *inner, *(part.model for part in inner if hasattr(part, "model"))]


def one_line(error: BaseException) -> str:
    """What an exception says, without line breaks."""
    return " ".join(str(error).split())[:300]
