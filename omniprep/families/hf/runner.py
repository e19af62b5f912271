"""Runs a checkpoint's own processor on the media of a row: what each item becomes in the text, and the tensors.

Processors of transformers write the text of items in their own ways (`replace_image_token` and the like, or a
`__call__` of their own), but all give the finished text to their tokenizer. So the tokenizer is replaced by one that
keeps the text, and each item's token stands between two characters of a private-use area, which no processor touches:
between them is what the item became.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from omniprep.errors import OmniprepError, Reject, RejectCode
from omniprep.families.hf.examples import VideoInput
from omniprep.families.kinds import MediaMeta
from omniprep.modalities import MODALITIES

BEFORE, AFTER = "\ue0f0", "\ue0f1"
"""Stand around each item's token in the text that a processor is given."""
_BETWEEN = re.compile(f"{BEFORE}(.*?){AFTER}", re.DOTALL)
NOT_MEDIA = ("input_ids", "attention_mask", "labels", "text_replacement_offsets", "video_metadata", "num_image_tokens")
"""What processors return beside media, and what only they themselves read."""
_ARGUMENT = {"image": "images", "video": "videos", "audio": "audio"}
_AUDIO_ARGUMENTS = ("audio", "audios")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a processor made of a row's items.

    Attributes:
        texts: By modality, what each item's token became.
        ids: Token ids of the whole text.
        tensors: Everything else that it returned, on the host; lists of tensors stay lists.
    """

    texts: dict[str, list[str]]
    ids: list[int]
    tensors: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Example:
    """An item that the processor took, and what it made of it."""

    meta: MediaMeta
    item: Any
    outcome: Outcome

    def text(self) -> str:
        """What its token became."""
        return self.outcome.texts[self.meta.kind][0]


@dataclass(frozen=True, slots=True)
class Tag:
    """What a chat template writes for an item: the token that the processor replaces, and what stands around it."""

    before: str
    token: str
    after: str

    @property
    def written(self) -> str:
        """All of it."""
        return self.before + self.token + self.after


class Unusable(OmniprepError):
    """A processor from which no family can be made; says why."""


class WidenedTag(Unusable):
    """The processor replaces more than the token of an item."""


class Runner:
    """A processor, called as `apply_chat_template` calls it."""

    def __init__(self, processor: Any, tags: Mapping[str, Tag], settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Take a processor, the tag of each modality, and the kwargs of its parts that were asked for."""
        self.processor, self.tags = copy.copy(processor), dict(tags)
        self.settings = {name: dict(kwargs) for name, kwargs in settings.items() if kwargs}
        self._texts: list[str] = []
        self._merged_kwargs: dict[str, Any] = {}
        self.optional: dict[str, dict[str, Any]] = {}
        """By modality, tensors that only some items give, without an entry: what the others have of them."""
        self.processor.tokenizer = _recording(processor.tokenizer, self._texts)

    @property
    def rate(self) -> int:
        """Samples a second that sounds are loaded at."""
        return int(getattr(audio_part(self.processor), "sampling_rate", None) or 16_000)

    @cached_property
    def adds_special_tokens(self) -> bool:
        """Whether the processor has its tokenizer add its own tokens (bos) to a text that does not begin with it."""
        plain = list(self.processor.tokenizer("x", add_special_tokens=False)["input_ids"])
        if isinstance(self.of_text, Reject):
            return list(self.processor.tokenizer("x")["input_ids"]) != plain
        return self.of_text.ids != plain

    @cached_property
    def of_text(self) -> Outcome | Reject:
        """What the processor makes of a text without media, or why it takes none."""
        try:
            return self.run({})
        except Reject as reject:
            return reject

    def run(
        self, items: Mapping[str, Sequence[Any]], settings: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Outcome:
        """The items of a row through the processor.

        Args:
            items: By modality, what the processor takes: images, samples at `rate`, `VideoInput`s.
            settings: More kwargs of its parts ("images_kwargs", ...).

        Raises:
            Reject: processor_refused, with what the processor said.
        """
        order = [(modality, number) for modality in MODALITIES for number in range(len(items.get(modality, ())))]
        text = "".join(f"{BEFORE}{self.tags[modality].written}{AFTER}" for modality, _ in order) or "x"
        kwargs = self._kwargs(items, settings or {})
        self._texts.clear()
        with _one_thread(), refusals():
            batch = self.processor(text=text, **self._media(items), **kwargs)
        ids = np.asarray(batch["input_ids"]).reshape(-1).tolist()
        tensors = {name: _plain(value) for name, value in batch.items() if name not in NOT_MEDIA and value is not None}
        absent = {name: value for modality, _ in order for name, value in self.optional.get(modality, {}).items()}
        return Outcome(self._item_texts(order), ids, {**absent, **tensors})

    @cached_property
    def has_parts(self) -> bool:
        """Whether the processor's call is transformers' own, whose parts may be called one by one."""
        from transformers import ProcessorMixin

        own = type(self.processor).__call__ is ProcessorMixin.__call__
        return own and hasattr(ProcessorMixin, "_process_images")

    def run_part(
        self, modality: str, items: Sequence[Any], settings: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Outcome:
        """What `run` gives for items of one modality, without ids: the steps of the call that concern them.

        The text is neither put together nor tokenized, which is a fifth of a call for a small image. For processors
        that have parts (`has_parts`), and only where both ways were seen to agree (study.py).
        """
        kwargs = self.merged(modality, items, settings)
        with _one_thread(), refusals():
            media = self._media({modality: items})
            images, _, videos, audio = self.processor.prepare_inputs_layout(text=None, **media)
            if modality == "image":
                data, texts = self.processor._process_images(images, **kwargs["images_kwargs"])
            elif modality == "video":
                data, texts = self.processor._process_videos(videos, **kwargs["videos_kwargs"])
            else:
                data, texts = self.processor._process_audio(audio, **kwargs["audio_kwargs"])
        unread = (*self.processor.unused_input_names, *NOT_MEDIA)
        tensors = {name: _plain(value) for name, value in data.items() if name not in unread and value is not None}
        return Outcome({modality: list(texts)}, [], {**self.optional.get(modality, {}), **tensors})

    def merged(
        self, modality: str, items: Sequence[Any] = (), settings: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, dict[str, Any]]:
        """The kwargs of each part of the processor; remembered where they do not depend on the items."""
        settings = settings or {}
        key = repr((modality, bool(items), settings))
        if modality == "video" or key not in self._merged_kwargs:
            self._merged_kwargs[key] = self.processor._merge_kwargs(
                self.processor.valid_processor_kwargs,
                tokenizer_init_kwargs=self.processor.tokenizer.init_kwargs,
                **self._kwargs({modality: items}, settings),
            )
        return self._merged_kwargs[key]

    def written(self, pieces: Sequence[str], items: Mapping[str, Sequence[Any]]) -> str:
        """What the processor gives its tokenizer for a text without marks: pieces with the items' tags between them."""
        order = [modality for modality in MODALITIES for _ in items.get(modality, ())]
        text = pieces[0] + "".join(
            self.tags[modality].written + piece for modality, piece in zip(order, pieces[1:], strict=True)
        )
        self._texts.clear()
        with _one_thread(), refusals():
            self.processor(text=text, **self._media(items), **self._kwargs(items, {}))
        return self._texts[-1] if self._texts else ""

    def _media(self, items: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        arguments: dict[str, Any] = {"images": None, "videos": None, "audio": None}
        if items.get("image"):
            arguments["images"] = [list(items["image"])]
        if items.get("video"):
            arguments["videos"] = [[video.frames for video in items["video"]]]
        if items.get("audio"):
            arguments["audio"] = list(items["audio"])
        return arguments

    def _kwargs(self, items: Mapping[str, Sequence[Any]], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The kwargs of a call: those asked for, and what `apply_chat_template` adds for sounds and videos."""
        names = (*self.settings, *settings)
        merged = {name: {**self.settings.get(name, {}), **settings.get(name, {})} for name in names}
        kwargs: dict[str, Any] = {**merged, "return_tensors": "pt"}
        if items.get("audio"):
            kwargs["sampling_rate"] = self.rate
        videos: Sequence[VideoInput] = items.get("video", ())
        if videos:
            more = {"video_metadata": [dict(video.metadata) for video in videos], "do_sample_frames": False}
            kwargs["videos_kwargs"] = {**kwargs.get("videos_kwargs", {}), **more}
        return kwargs

    def frame_indices(self, metadata: Mapping[str, Any]) -> list[int]:
        """Which frames of a video the processor takes (`preprocess` of transformers' video_processing_utils.py).

        Args:
            metadata: Of the whole video, as transformers' loaders give it.
        """
        from transformers.video_utils import VideoMetadata

        part = self.processor.video_processor
        merged = self.processor._merge_kwargs(
            self.processor.valid_processor_kwargs, tokenizer_init_kwargs=self.processor.tokenizer.init_kwargs
        )
        kwargs = {**merged["videos_kwargs"], **self.settings.get("videos_kwargs", {})}
        for name in part.valid_kwargs.__annotations__:
            kwargs.setdefault(name, getattr(part, name, None))
        asked = any(self.settings.get("videos_kwargs", {}).get(name) is not None for name in ("fps", "num_frames"))
        if not (kwargs.pop("do_sample_frames", None) or asked):
            return list(range(metadata["total_num_frames"]))
        if metadata["fps"] is None:
            raise Reject(
                RejectCode.PROCESSOR_REFUSED,
                "the processor samples frames, and takes none of a list of images; give a video file, or set "
                "--family-option video_do_sample_frames=False",
            )
        for name in ("input_data_format", "do_convert_rgb", "device", "video_metadata", "return_tensors"):
            kwargs.pop(name, None)
        with refusals():
            indices = part.sample_frames(metadata=VideoMetadata(**metadata), **kwargs)
        return [int(index) for index in indices]

    def as_input(self, meta: MediaMeta, decoded: Any) -> Any:
        """What the processor takes of a decoded item: images and samples as they are, of a video some frames.

        Args:
            meta: Facts of the item.
            decoded: Image, samples, or a function of frame indices that gives uint8 (T, H, W, 3).
        """
        if meta.kind != "video":
            return decoded
        import torch

        metadata = video_metadata(meta)
        indices = self.frame_indices(metadata)
        frames = torch.from_numpy(np.ascontiguousarray(decoded(indices))).permute(0, 3, 1, 2).contiguous()
        return VideoInput(frames, {**metadata, "frames_indices": indices})

    def without_values(self, meta: MediaMeta) -> Any:
        """An image or a video of a size, as a tensor that holds nothing (torch's meta device)."""
        import torch

        if meta.kind == "image":
            return torch.empty((3, meta.height, meta.width), dtype=torch.uint8, device="meta")
        metadata = video_metadata(meta)
        indices = self.frame_indices(metadata)
        frames = torch.empty((len(indices), 3, meta.height, meta.width), dtype=torch.uint8, device="meta")
        return VideoInput(frames, {**metadata, "frames_indices": indices})

    def _item_texts(self, order: Sequence[tuple[str, int]]) -> dict[str, list[str]]:
        texts: dict[str, list[str]] = {modality: [] for modality in MODALITIES}
        if not order:
            return texts
        found = next((pieces for text in reversed(self._texts) if (pieces := _BETWEEN.findall(text))), [])
        if len(found) != len(order):
            raise Unusable(
                f"{type(self.processor).__name__} moves the places of media in the text ({len(order)} items, "
                f"{len(found)} places)"
            )
        for (modality, _), text in zip(order, found, strict=True):
            tag = self.tags[modality]
            if not text.startswith(tag.before) or not text.endswith(tag.after):
                raise WidenedTag(f"{type(self.processor).__name__} replaces what stands around {tag.token!r} too")
            texts[modality].append(text[len(tag.before) : len(text) - len(tag.after)])
        return texts

    @cached_property
    def ends(self) -> tuple[str, str]:
        """What the processor writes before and after every text (a bos that its template leaves out).

        Raises:
            Unusable: It changes the text itself.
        """
        if isinstance(self.of_text, Reject):
            return "", ""
        text = "A question, and\n an answer. "
        written = self.written((text,), {})
        if text not in written:
            raise Unusable(f"{type(self.processor).__name__} changes the text of a chat")
        before, _, after = written.partition(text)
        return before, after

    def widen(self, modality: str) -> None:
        """Take all that the template writes for an item as what the processor replaces."""
        self.tags[modality] = Tag("", self.tags[modality].written, "")


def video_metadata(meta: MediaMeta) -> dict[str, Any]:
    """The `VideoMetadata` of transformers of a whole video, as its loaders fill it in."""
    if len(set(meta.sizes)) > 1:
        raise Reject(RejectCode.PROCESSOR_REFUSED, "the frames of a video that is given as images have several sizes")
    if meta.sizes:  # a list of images has no times and no size of its own
        unknown = dict.fromkeys(("fps", "duration", "width", "height"))
        return {"total_num_frames": meta.frames, **unknown}
    return {
        "total_num_frames": meta.frames,
        "fps": meta.fps,
        "width": meta.width,
        "height": meta.height,
        "duration": meta.frames / meta.fps,
        "video_backend": "torchcodec",
    }


def audio_part(processor: Any) -> Any:
    """The feature extractor of a processor, None where it has none."""
    return getattr(processor, "audio_processor", None) or getattr(processor, "feature_extractor", None)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what a processor raises into the reject processor_refused, with its message."""
    try:
        yield
    except (OmniprepError, Reject, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:400]
        raise Reject(RejectCode.PROCESSOR_REFUSED, f"{type(error).__name__}: {reason}") from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: sums of several threads differ in their last bits, and a worker has one core."""
    import torch

    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _recording(tokenizer: Any, texts: list[str]) -> Any:
    """A tokenizer that does the same and keeps the texts that it is given."""
    base = type(tokenizer)

    def keep(text: Any) -> None:
        texts.extend([text] if isinstance(text, str) else [part for part in text or () if isinstance(part, str)])

    def call(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        keep(text)
        return base.__call__(self, text, *args, **kwargs)

    def encode(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        keep(text)
        return base.encode(self, text, *args, **kwargs)

    recording = copy.copy(tokenizer)
    recording.__class__ = type(base.__name__, (base,), {"__call__": call, "encode": encode})
    return recording


def _plain(value: Any) -> Any:
    """Tensors as they are; nested lists of tensors or numbers as one list of tensors."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value)
    if isinstance(value, list | tuple) and value and all(isinstance(part, int | float | bool) for part in value):
        return torch.tensor(value)
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        flat = [entry for part in parts for entry in (part if isinstance(part, list) else [part])]
        return flat if all(isinstance(part, torch.Tensor) for part in flat) else value
    return value
