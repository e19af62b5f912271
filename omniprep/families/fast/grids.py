"""Images in patches of a grid: Qwen3.5, GLM-4.1V, GLM-4.5V and GLM-4.6V.

Sources (transformers 5): `_preprocess` of models/qwen2_vl/image_processing_qwen2_vl.py and
models/glm4v/image_processing_glm4v.py (models/glm46v has the same): an image is resized by `smart_resize` and cut into
patches, and `image_grid_thw` is (1, rows of patches, columns of patches). `smart_resize` is that of the module of the
checkpoint's image processor. Videos are counted by the processor.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omniprep.families.fast.rules import CountedByRule, Rule
from omniprep.families.kinds import MediaMeta
from omniprep.families.registry import REGISTRY


class Grids(CountedByRule):
    """Images as grids of patches."""

    def rules(self) -> Mapping[str, Rule]:
        """Images, from their resized size."""
        return {"image": self.image_grids}

    def image_grids(self, metas: Sequence[MediaMeta]) -> dict[str, Any]:
        """The grid of each image in patches."""
        patch = self.settings("image")["patch_size"]
        sizes = [self.smart_resize(meta.height, meta.width) for meta in metas]
        return {"image_grid_thw": np.array([(1, height // patch, width // patch) for height, width in sizes])}

    def smart_resize(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the image processor resizes an image to."""
        settings = self.settings("image")
        size: tuple[int, int] = sys.modules[type(self.part("image")).__module__].smart_resize(
            height=height,
            width=width,
            factor=settings["patch_size"] * settings["merge_size"],
            min_pixels=settings["size"].shortest_edge,
            max_pixels=settings["size"].longest_edge,
            **self.frames_of_image(),
        )
        return size

    def frames_of_image(self) -> dict[str, int]:
        """More arguments of `smart_resize`."""
        return {}


@REGISTRY.register_family(
    "qwen3_5",
    hf_architectures=["Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"],
    model_types=["qwen3_5", "qwen3_5_moe"],
    checkpoints=["Qwen/Qwen3.5-27B", "Qwen/Qwen3.5-35B-A3B"],
    requires=["transformers>=5"],
)
class Qwen35(Grids):
    """Qwen3.5, dense and of experts. Which thoughts of a chat are kept, its template says."""


@REGISTRY.register_family(
    "glm4v",
    hf_architectures=[
        *("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration", "Glm46VForConditionalGeneration"),
    ],
    model_types=["glm4v", "glm4v_moe", "glm46v"],
    checkpoints=["zai-org/GLM-4.1V-9B-Thinking", "zai-org/GLM-4.5V", "zai-org/GLM-4.6V"],
    requires=["transformers>=4.57"],
)
class Glm4v(Grids):
    """GLM-4.1V, GLM-4.5V and GLM-4.6V."""

    def frames_of_image(self) -> dict[str, int]:
        """An image counts as one pair of frames."""
        frames = self.settings("image")["temporal_patch_size"]
        return {"num_frames": frames, "temporal_factor": frames}
