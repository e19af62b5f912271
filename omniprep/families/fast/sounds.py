"""Sounds in windows: Audio Flamingo 3.

Sources (transformers 5): `_process_audio` and `_get_audio_token_length` of processing_audioflamingo3.py;
models/whisper/feature_extraction_whisper.py, whose mask has an audio frame for each hop that a window's samples begin.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from omniprep.families.fast.rules import CountedByRule, Rule
from omniprep.families.kinds import MediaMeta
from omniprep.families.registry import REGISTRY


@REGISTRY.register_family(
    "audioflamingo3",
    hf_architectures=["AudioFlamingo3ForConditionalGeneration"],
    model_types=["audioflamingo3"],
    checkpoints=["nvidia/audio-flamingo-3-hf"],
    requires=["transformers>=5"],
)
class AudioFlamingo3(CountedByRule):
    """Audio Flamingo 3: one sound a row, cut into windows."""

    def rules(self) -> Mapping[str, Rule]:
        """Sounds, from their samples."""
        return {"audio": self.audio_tokens}

    def audio_tokens(self, metas: Sequence[MediaMeta]) -> dict[str, Any]:
        """How many tokens each sound has."""
        extractor = self.part("audio")
        window = int(self.settings("audio")["sampling_rate"] * extractor.chunk_length)
        most = int(self.processor.max_audio_len // extractor.chunk_length) * window
        counts = []
        for meta in metas:
            full, rest = divmod(min(meta.samples, most), window)
            frames = full * -(-window // extractor.hop_length) + -(-rest // extractor.hop_length)
            counts.append(self.processor._get_audio_token_length(frames))
        return {"num_audio_tokens": counts}
