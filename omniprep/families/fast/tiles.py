"""Images in tiles, crops, or as many tokens as their shape allows: LLaVA-OneVision, InternVL, Gemma, SmolVLM.

Sources (transformers 5) stand at each class. What the image processor's class says of a size itself is asked of it: it
reads nothing but the size. Videos are counted by the processor.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omniprep.families.fast.rules import CountedByRule, Rule
from omniprep.families.kinds import MediaMeta
from omniprep.families.registry import REGISTRY


@REGISTRY.register_family(
    "llava_onevision",
    hf_architectures=["LlavaOnevisionForConditionalGeneration"],
    model_types=["llava_onevision"],
    checkpoints=["llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava-hf/llava-onevision-qwen2-7b-ov-hf"],
    requires=["transformers>=4.57"],
)
class LlavaOnevision(CountedByRule):
    """LLaVA-OneVision: an image that is alone in its row is cut into tiles, several are not.

    Sources: `replace_image_token` and `_get_number_of_features` of processing_llava_onevision.py, which read the size
    of each image, how many images the row has, and the size of a tile; `_preprocess` of
    image_processing_llava_onevision.py.
    """

    def rules(self) -> Mapping[str, Rule]:
        """Images, from the sizes of all of a row."""
        return {"image": self.tiles}

    def tiles(self, metas: Sequence[MediaMeta]) -> dict[str, Any]:
        """What the image processor says of a row's images, and a tile that holds nothing."""
        settings = self.settings("image")
        size = settings["crop_size"] if settings["do_center_crop"] else settings["size"]
        sides = (size.height or size.shortest_edge, size.width or size.shortest_edge)
        return {
            "batch_num_images": [len(metas)],
            "image_sizes": np.array([(meta.height, meta.width) for meta in metas]),
            "pixel_values": [[np.broadcast_to(np.uint8(0), sides)]],
        }


@REGISTRY.register_family(
    "internvl",
    hf_architectures=["InternVLForConditionalGeneration"],
    model_types=["internvl"],
    checkpoints=["OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3-8B-hf"],
    requires=["transformers>=4.57"],
)
class InternVL(CountedByRule):
    """InternVL 2.5 to 3.5 as transformers has them.

    Sources: `replace_image_token` of processing_internvl.py; `get_number_of_image_patches` of
    models/got_ocr2/image_processing_got_ocr2.py, which calls the size of a tile `patch_size`.
    """

    def rules(self) -> Mapping[str, Rule]:
        """Images, from their tiles."""
        return {"image": self.tiles}

    def tiles(self, metas: Sequence[MediaMeta]) -> dict[str, Any]:
        """How many tiles each image has."""
        settings = self.settings("image")
        settings = {**settings, "patch_size": settings["size"]}
        count = self.part("image").get_number_of_image_patches
        return {"num_patches": [count(meta.height, meta.width, settings) for meta in metas]}


@REGISTRY.register_family(
    "gemma3",
    hf_architectures=["Gemma3ForConditionalGeneration"],
    model_types=["gemma3"],
    checkpoints=["google/gemma-3-4b-it", "google/gemma-3-12b-it", "google/gemma-3-27b-it"],
    requires=["transformers>=4.57"],
)
class Gemma3(CountedByRule):
    """Gemma 3: as many tokens for every image, and crops where pan and scan is asked for.

    Sources: `replace_image_token` of processing_gemma3.py; `pan_and_scan_batched` of image_processing_gemma3.py, which
    reads the shape of an image and cuts it.
    """

    def rules(self) -> Mapping[str, Rule]:
        """Images, from their crops."""
        return {"image": self.crops}

    def crops(self, metas: Sequence[MediaMeta]) -> dict[str, Any]:
        """How many crops each image has."""
        settings = self.settings("image")
        if not settings["do_pan_and_scan"]:
            return {"num_crops": [0] * len(metas)}
        names = ("min_crop_size", "max_num_crops", "min_ratio_to_activate")
        given = {f"pan_and_scan_{name}": settings[f"pan_and_scan_{name}"] for name in names}
        cut = self.part("image").pan_and_scan_batched
        blanks = (np.broadcast_to(np.uint8(0), (meta.height, meta.width)) for meta in metas)  # takes no memory
        return {"num_crops": [len(cut(blank, **given)) for blank in blanks]}


@REGISTRY.register_family(
    "gemma4",
    hf_architectures=["Gemma4ForConditionalGeneration"],
    model_types=["gemma4"],
    checkpoints=["google/gemma-4-E2B-it", "google/gemma-4-12B-it"],
    requires=["transformers>=5"],
)
class Gemma4(CountedByRule):
    """Gemma 4: an image keeps its shape, within a number of tokens. Sounds and videos are counted by the processor.

    Sources: `replace_image_token` of processing_gemma4.py; `_preprocess` and `get_aspect_ratio_preserving_size` of
    image_processing_gemma4.py.
    """

    def rules(self) -> Mapping[str, Rule]:
        """Images, from their resized size."""
        return {"image": self.soft_tokens}

    def soft_tokens(self, metas: Sequence[MediaMeta]) -> dict[str, Any]:
        """How many tokens each image has."""
        settings = self.settings("image")
        patch, pooled = settings["patch_size"], settings["pooling_kernel_size"]
        resized = sys.modules[type(self.part("image")).__module__].get_aspect_ratio_preserving_size
        counts = []
        for meta in metas:
            height, width = resized(
                height=meta.height,
                width=meta.width,
                patch_size=patch,
                max_patches=settings["max_soft_tokens"] * pooled**2,
                pooling_kernel_size=pooled,
            )
            counts.append((height // patch) * (width // patch) // pooled**2)
        return {"num_soft_tokens_per_image": counts}


@REGISTRY.register_family(
    "smolvlm",
    hf_architectures=["SmolVLMForConditionalGeneration"],
    model_types=["smolvlm"],
    checkpoints=["HuggingFaceTB/SmolVLM2-2.2B-Instruct"],
    requires=["transformers>=4.57", "num2words"],
)
class SmolVLM(CountedByRule):
    """SmolVLM 2: rows and columns of tiles, which its text names.

    Sources: `replace_image_token` of processing_smolvlm.py; `_preprocess`, `resize_for_vision_encoder` and
    `split_images` of image_processing_smolvlm.py. Its own `get_number_of_image_patches` gives other numbers where the
    longest edge is not a multiple of a tile's side.
    """

    def rules(self) -> Mapping[str, Rule]:
        """Images, from their tiles."""
        return {"image": self.tiles}

    def tiles(self, metas: Sequence[MediaMeta]) -> dict[str, Any]:
        """Rows and columns of each image's tiles."""
        tiles = [self.grid(meta.width, meta.height) for meta in metas]
        return {"rows": [[rows for rows, _ in tiles]], "cols": [[columns for _, columns in tiles]]}

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tiles; none where one tile is enough."""
        settings = self.settings("image")
        if not settings["do_image_splitting"]:
            return 0, 0
        side = settings["max_image_size"]["longest_edge"]
        resized = sys.modules[type(self.part("image")).__module__].get_resize_output_image_size
        blank = np.broadcast_to(np.uint8(0), (height, width))  # takes no memory; its shape alone is read
        height, width = resized(blank, settings["size"].longest_edge)
        aspect = width / height
        if width >= height:
            columns = math.ceil(width / side)
            rows = math.ceil(int(columns * side / aspect) / side)
        else:
            rows = math.ceil(height / side)
            columns = math.ceil(int(rows * side * aspect) / side)
        return (rows, columns) if max(rows, columns) > 1 else (0, 0)
