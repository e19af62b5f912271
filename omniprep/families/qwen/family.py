"""What all Qwen families share: their dummy chat, and the order in which media are read."""

from typing import Any

import numpy as np

from omniprep.families.base import Family
from omniprep.families.kinds import Sample


class QwenFamily(Family):
    """Base of the Qwen families."""

    def dummy_data(self, bin_length: int, counts: dict[str, int]) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
        """A chat with black images, one second of silence and short videos."""
        media: dict[str, list[Any]] = {
            "image": [self.blank_image(280, 280)] * counts.get("image", 0),
            "audio": [np.zeros(16000, np.float32)] * counts.get("audio", 0),
            "video": [[self.blank_image(112, 112)] * 4] * counts.get("video", 0),
        }
        media = {modality: items for modality, items in media.items() if modality in self.modalities}
        tags = "".join(f"<{modality}>" * len(items) for modality, items in media.items())
        return [{"role": "user", "content": tags + "hi"}, {"role": "assistant", "content": "ok"}], media

    def media_blocks(self, sample: Sample) -> list[tuple[int, str, int]]:
        """(first token, modality, number of the item) of each run of media tokens of an expanded row.

        For families whose runs are one item each; a run beyond the items has the number -1.
        """
        modality_of = {self.placeholder_id(modality): modality for modality in self.modalities}
        is_media = np.isin(sample.ids, list(modality_of))
        starts = np.flatnonzero(is_media & ~np.concatenate([[False], is_media[:-1]])).tolist()
        numbers = {
            modality: iter([n for n, item in enumerate(sample.items[modality]) if not item.meta.in_video])
            for modality in self.modalities
        }
        blocks = []
        for start in starts:
            modality = modality_of[int(sample.ids[start])]
            blocks.append((start, modality, next(numbers[modality], -1)))
        return blocks
