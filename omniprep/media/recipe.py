"""How the pixels of an image or a video are made of its files, as numbers that can be stored beside the files.

`--pixel-codec source` keeps files and recipes in place of pixels; its loader calls `make_pixels` with the functions
that the build decodes and resizes with. A recipe holds nothing of a family: no tokenizer or processor is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.media.source import Source

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
"""(width, height)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFile:
    """What the plan learned of a video file (`omniprep.media.video.VideoFacts`)."""

    width: int
    height: int
    frames: int
    fps: float
    reader: Literal["decord", "pyav", "pyav alone"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelRecipe:
    """From files to pixels: decode, take frames, resize, and resize once more where a processor does so."""

    size: Size
    """What each picture or frame is resized to first, as by `omniprep.media.resample.resize`."""
    seen: Size
    """What it is resized to after that, as by `resize_bytes`; usually the same size, which does nothing."""
    frames: tuple[int, ...] = ()
    """Frames of a video in order, by their indices in the file, or in the list of files; empty for an image."""
    listed: Size | None = None
    """What the images of a list of frames are resized to, as images, before they are resized to `size` as frames; None:
    to `size` at once."""
    video: VideoFile | None = None
    """None of an image, and of a video that is a list of images."""
    exif: Literal["ignore", "apply"] = "ignore"
    alpha: Literal["drop", "white", "frames"] = "drop"
    """As `omniprep.media.image.decode_image` takes them."""


def make_pixels(sources: Sequence[Source], recipe: PixelRecipe) -> Pixels:
    """The pixels (frames, height, width, 3) that a recipe makes of the files of an image (1 frame) or a video.

    Raises:
        Reject: A file cannot be decoded, or is not what the recipe was made for.
    """
    if recipe.video is not None:
        return resize_frames(_video_frames(sources[0], recipe.video, recipe.frames, recipe.size), recipe)
    indices = recipe.frames or (0,)
    pictures = {number: _picture(sources[number], recipe) for number in dict.fromkeys(indices)}
    return resize_frames(np.stack([pictures[number] for number in indices]), recipe)


def resize_frames(frames: Pixels, recipe: PixelRecipe) -> Pixels:
    """Frames in the order of the recipe, at the size that the model sees."""
    from omniprep.media.resample import resize, resize_bytes

    return resize_bytes(resize(frames, recipe.size), recipe.seen)


def _picture(source: Source, recipe: PixelRecipe) -> Pixels:
    from omniprep.media.image import decode_image
    from omniprep.media.resample import resize

    return resize(decode_image(source, exif=recipe.exif, alpha=recipe.alpha), recipe.listed or recipe.size)


def _video_frames(source: Source, video: VideoFile, indices: Sequence[int], size: Size) -> Pixels:
    """The frames at the indices, resized; only those are converted, and what they do not need is not decoded."""
    from omniprep.media.video import VideoFacts, read_frames

    _check_size(source, video)
    facts = VideoFacts(video.frames, video.fps, video.width, video.height, video.reader)
    try:
        return read_frames(source, facts, indices, size)
    except ImportError as error:  # built where decord is, read where it is not
        raise Reject(RejectCode.DECODE_ERROR, f"{source.label}: its frames need {video.reader} ({error})") from error


def _check_size(source: Source, video: VideoFile) -> None:
    """Reject a file whose frames are much larger than said: a stranger's would fill the memory before it is noticed."""
    from omniprep.media.container import open_container

    with source.open() as file, open_container(file, source, "a video") as container:
        codec = container.streams.video[0].codec_context if container.streams.video else None
        if codec is not None and codec.width * codec.height > 4 * video.width * video.height + (1 << 16):
            raise Reject(
                RejectCode.DECODE_MISMATCH,
                f"{source.label}: frames of {codec.width}x{codec.height} pixels, where {video.width}x{video.height} "
                "are stored",
            )


def decoders() -> str:
    """Names and versions of the libraries that `make_pixels` calls here, for messages."""
    from importlib.metadata import PackageNotFoundError, version

    from PIL import features

    named = []
    for package, name in (("pillow", "Pillow"), ("torch", "torch"), ("torchvision", "torchvision"), ("av", "PyAV"),
                          ("decord", "decord")):  # fmt: skip
        try:
            named.append(f"{name} {version(package)}")
        except PackageNotFoundError:
            continue
        if name == "Pillow" and (jpeg := features.version("libjpeg_turbo") or features.version("jpg")):
            named[-1] += f" with libjpeg {jpeg}"
    return ", ".join(named)
