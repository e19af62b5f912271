"""Images through the families that count by arithmetic, beside Qwen2.5-VL's path and beside AutoProcessor itself.

python benchmarks/families.py FOLDER

FOLDER holds (or gets) a small random checkpoint of each family. Times are of this process's CPU on one thread, so other
processes matter little; each pair is measured alternately and stated as the median of the ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import record

from omniprep.families.base import Family
from omniprep.families.context import resolve_family
from omniprep.families.kinds import Decoded, MediaMeta
from omniprep.testing.init_model import init_model

TYPES = ("qwen3_5", "glm4v", "glm46v", "llava_onevision", "internvl", "gemma3", "gemma4", "smolvlm")
WIDTH, HEIGHT = 1024, 768
PAIRS = 9


def encoded(family: Family, image: Image.Image) -> None:
    """An image as a build takes it: counted, its text tokenized, its pixels mapped."""
    meta = MediaMeta(kind="image", width=image.width, height=image.height)
    family.count_row({"image": [meta]})
    family.map_row("image", [Decoded(meta, image=image)])
    if family.renderer is not None:
        family.item_text_tokens.cut(family.item_texts({"image": [meta]})["image"][0])


def by_processor(family: Any, image: Image.Image) -> None:
    """The same by AutoProcessor: one image, its tag alone as text."""
    tag = family.runner.tags["image"].written
    family.processor(text=tag, images=[[image]], return_tensors="pt")


def seconds(work: Callable[[Image.Image], None], image: Image.Image) -> float:
    """CPU seconds of one call."""
    before = time.process_time()
    work(image)
    return time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of small checkpoints, made where they are absent")
    folder: Path = parser.parse_args().folder
    torch.set_num_threads(1)
    coarse = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    families = {}
    for name in ("qwen2_5_vl", *TYPES):
        path = folder / name
        families[name] = resolve_family(str(path if path.is_dir() else init_model(path, name)))
    base, rows = families.pop("qwen2_5_vl"), []
    for name, family in families.items():
        ratios: dict[str, list[float]] = {"qwen2_5_vl": [], "AutoProcessor": []}
        own = []
        for pair in range(-2, PAIRS):  # two to warm up
            image = picture.resize((WIDTH - 2 * pair - 4, HEIGHT))  # a size that was not met before
            fast, processor, qwen = (
                seconds(work, image)
                for work in (
                    lambda image, family=family: encoded(family, image),
                    lambda image, family=family: by_processor(family, image),
                    lambda image: encoded(base, image),
                )
            )
            if pair >= 0:
                own.append(fast)
                ratios["qwen2_5_vl"].append(qwen / fast)
                ratios["AutoProcessor"].append(processor / fast)
        rows.append(
            {
                "family": f"{family.name} ({name})",
                "ms of CPU an image": round(statistics.median(own) * 1e3, 2),
                **{f"times as fast as {of}": round(statistics.median(found), 2) for of, found in ratios.items()},
            }
        )
        print(rows[-1], flush=True)
    record("families", rows)


if __name__ == "__main__":
    main()
