"""What callbacks of a family see and give: facts of media items, decoded items, expansions, forward arguments."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from omniprep.media.source import Source
from omniprep.template.expand import Expansion

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaMeta:
    """What a header tells of one media item, before anything is decoded.

    Lengths are in pixels, frames and samples (audio: at the model's sampling rate, after resampling).
    """

    kind: str
    width: int = 0
    height: int = 0
    frames: int = 0
    fps: float = 0.0
    samples: int = 0
    sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) of each frame of a video that is given as a list of images."""
    reader: str = ""
    """Who decodes a video (omniprep/media/video.py)."""
    in_video: bool = False
    """The sound of a video rather than an audio of its own."""
    padded_to: int = 0
    """Samples of the longest clip of the row, for families that say `pads_clips`; else 0."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The row's own limits (chat_template_kwargs)."""


@dataclass(slots=True)
class Item:
    """One media item of a row, as probed: its header facts, its token count, and where its bytes are."""

    modality: str
    meta: MediaMeta
    tokens: int = 0
    audio: int | None = None
    """Of a video whose sound is taken too: the number of the sound among the row's audio items."""
    sources: list[Source] = field(default_factory=list)
    """One; a video given as frames has one for each frame."""
    lossless_bits: float = 8.0
    """Of a picture or video: about how many a pixel of it takes where nothing is lost (omniprep/compiler/costs.py)."""


@dataclass(slots=True)
class Sample:
    """What an input processor and a position function see of one row."""

    ids: NDArray[np.int32]
    items: dict[str, list[Item]]

    @property
    def token_counts(self) -> dict[str, list[int]]:
        """Tokens of each item, by modality."""
        return {modality: [item.tokens for item in items] for modality, items in self.items.items()}


class ReadFrames(Protocol):
    """Reads frames of a video."""

    def __call__(self, indices: Sequence[int], size: tuple[int, int] | None = None, /) -> NDArray[np.uint8]:
        """Frames (T, H, W, 3) at indices; resized to `size` (width, height) as by `resize`, each when it is decoded."""
        ...


@dataclass(slots=True)
class Decoded:
    """A decoded item for a mapper; `meta` holds the facts as decoded, not as the header promised."""

    meta: MediaMeta
    image: Any = None
    """PIL image, RGB (kind image)."""
    waveform: Array | None = None
    """float32 mono samples (kind audio)."""
    frames: "ReadFrames | None" = None
    """Kind video."""
    images: list[Any] = field(default_factory=list)
    """PIL images (a video given as a list of frames)."""


@dataclass(frozen=True, slots=True)
class Field:
    """How one forward argument is cut into items and stored; docs/format.md has the meaning of each value.

    `layout` is one of

    - "item": one small vector an item (a grid, a size);
    - "flat": a run of units an item, (units, *shape); `sizes` gives the units: a function of the mapper's result, or
      "prod(KEY)" or "KEY" of an item field; without it the shard holds them;
    - "row": one small vector for each row that has items of the modality, as the mapper gives it for the first of them;
    - "token", of modality "text": one value a token of every row, made by `Family.token_fields`.

    dtype and shape are taken from the mapper's result for a dummy where they are not given (tokens: int32). A shape is
    that of a unit, or of an item's or row's vector; 0 stands for an axis in which items differ.
    """

    modality: str
    layout: Literal["flat", "item", "row", "token"]
    dim: int = 0
    sizes: Any = None
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    load: str = "array"
    """"array" (as it is), "affine" (uint8, a float for each byte), "patches", "mel", "none", or a registered loader."""
    params: Any = field(default_factory=dict)
    """What `load` and `join` need to know: a mapping, or a function of the context that gives one."""
    join: Literal["concat", "batch", "pad", "list"] = "concat"
    """How the items of a bin become one argument ("flat")."""
    batch_axis: bool = False
    """Whether the argument has an axis of one entry in front: the bin as one row of a batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Departure:
    """Something in which a family's rows are meant to differ from what the checkpoint's AutoProcessor makes of them.

    `omniprep doctor` and the check before a build refuse every other difference.
    """

    what: str
    """"text" (the processor is then given the family's), "input_ids", "positions", "tools", or a forward argument."""
    reason: str
    modality: str = ""
    """Only in rows with such items; empty: in every row."""
    mask: str = ""
    """A mask among the processor's tensors: where it is set, values are compared all the same. Empty: they are not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelArch:
    """Module prefixes of a model's parts, for freezing and LoRA (ms-swift: register_model_arch)."""

    language_model: tuple[str, ...] = ()
    vision_tower: tuple[str, ...] = ()
    aligner: tuple[str, ...] = ()
    generator: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Take one prefix as a text, and lists, as ms-swift does."""
        for name in ("language_model", "vision_tower", "aligner", "generator"):
            prefixes = getattr(self, name) or ()
            object.__setattr__(self, name, (prefixes,) if isinstance(prefixes, str) else tuple(prefixes))


def as_json(meta: MediaMeta) -> dict[str, Any]:
    """A MediaMeta as JSON types, defaults left out."""
    plain = dataclasses.asdict(meta)
    return {k: v for k, v in plain.items() if k == "kind" or v != _META_DEFAULTS[k]}


def from_json(value: Mapping[str, Any]) -> MediaMeta:
    """The reverse of `as_json`."""
    known = dict(value)
    known["sizes"] = tuple((w, h) for w, h in known.get("sizes", ()))
    return MediaMeta(**known)


_META_DEFAULTS = dataclasses.asdict(MediaMeta(kind=""))

__all__ = [
    "Array",
    "Decoded",
    "Departure",
    "Expansion",
    "Field",
    "Item",
    "MediaMeta",
    "ModelArch",
    "Sample",
    "as_json",
    "from_json",
]
