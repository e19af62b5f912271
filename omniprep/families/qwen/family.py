"""What all Qwen families share: their dummy chat, and the order in which media are read."""

from typing import Any

import numpy as np

from omniprep.families.base import Family
from omniprep.families.kinds import Item, Sample


class QwenFamily(Family):
    """Base of the Qwen families."""

    reference = "ms-swift 3.9.3"

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

    def media_runs(self, sample: Sample) -> list[tuple[int, str]]:
        """(first token, modality) of each run of media tokens of an expanded row."""
        modality_of = {self.placeholder_id(modality): modality for modality in self.modalities}
        is_media = np.isin(sample.ids, list(modality_of))
        starts = np.flatnonzero(is_media & ~np.concatenate([[False], is_media[:-1]])).tolist()
        return [(start, modality_of[int(sample.ids[start])]) for start in starts]

    def media_blocks(self, sample: Sample) -> list[tuple[int, Item]]:
        """(first token, item) of each run of media tokens, for families whose items make one run each."""
        left = {
            modality: iter([item for item in items if not item.meta.in_video])
            for modality, items in sample.items.items()
        }
        return [(start, next(left[modality])) for start, modality in self.media_runs(sample)]
