"""Media that a processor is tried on: blank and noisy items of a few sizes, and videos as processors take them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from omniprep.families.kinds import MediaMeta

IMAGE_SIZES = ((300, 200), (130, 410), (64, 64), (900, 70), (1000, 800))
"""(width, height): a landscape, an upright one, a small, a thin and a large one, which processors cut into tiles."""
SAMPLES = (16_000, 40_000, 8_000)
VIDEOS = ((36, 96, 64), (40, 64, 96))
"""(frames, width, height)."""
VIDEO_FPS = 2.0


@dataclass(frozen=True, slots=True)
class VideoInput:
    """A video for a processor.

    Attributes:
        frames: Those that the processor takes of the video: uint8 (T, C, H, W), a torch tensor.
        metadata: transformers' `VideoMetadata` as a dict, with `frames_indices`.
    """

    frames: Any
    metadata: dict[str, Any]


def example_metas(modality: str) -> list[MediaMeta]:
    """Header facts of the examples of a modality."""
    if modality == "image":
        return [MediaMeta(kind="image", width=width, height=height) for width, height in IMAGE_SIZES]
    if modality == "audio":
        return [MediaMeta(kind="audio", samples=samples) for samples in SAMPLES]
    return [
        MediaMeta(kind="video", width=width, height=height, frames=frames, fps=VIDEO_FPS)
        for frames, width, height in VIDEOS
    ]


def noise(meta: MediaMeta, seed: int) -> Any:
    """An image, sound or video of random values, as the decoders give it."""
    rng = np.random.default_rng(seed)
    if meta.kind == "image":
        return picture(rng.integers(0, 256, (meta.height, meta.width, 3), np.uint8))
    if meta.kind == "audio":
        return (rng.standard_normal(meta.samples) * 0.1).astype(np.float32)
    frames = rng.integers(0, 256, (meta.frames, meta.height, meta.width, 3), np.uint8)
    return lambda indices: frames[indices]


def blank(meta: MediaMeta) -> Any:
    """A black image, silence, or a black video."""
    if meta.kind == "image":
        return picture(np.zeros((meta.height, meta.width, 3), np.uint8))
    if meta.kind == "audio":
        return np.zeros(meta.samples, np.float32)
    return lambda indices: np.zeros((len(indices), meta.height, meta.width, 3), np.uint8)


def picture(pixels: np.ndarray) -> Any:
    """A PIL image of uint8 pixels (H, W, 3)."""
    from PIL import Image

    return Image.fromarray(pixels)
