"""Whisper's log-mel spectrogram of a clip padded to 300 s (or less), cut to its valid frames, without computing the
padding.

Source: transformers WhisperFeatureExtractor._torch_extract_fbank_features. A frame reaches n_fft/2 samples to each
side, so zeros up to ceil(n/160)*160 + 480 samples give the same valid frames bit for bit (a 5 s clip: 100 times
faster); silence beyond them cannot raise the maximum that the dynamic range is cut from. tests/test_media_exact.py
compares with the extractor in the same run.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

HOP = 160


def audio_frames(samples: int, padded_to: int | None = None) -> int:
    """Valid mel frames of a clip: the extractor's attention mask, every 160th sample; `padded_to` may bound them."""
    frames = -(-samples // HOP)
    return frames if padded_to is None else min(frames, padded_to // HOP)


@lru_cache(maxsize=4)
def _filters(n_fft: int, mels: int, rate: int) -> tuple[Any, Any]:
    import torch
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=1 + n_fft // 2,
        num_mel_filters=mels,
        min_frequency=0.0,
        max_frequency=rate / 2,
        sampling_rate=rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).to(torch.float32), torch.hann_window(n_fft)


def log_mel(
    waveform: NDArray[np.float32], settings: Mapping[str, Any], padded_to: int | None = None
) -> NDArray[np.uint16]:
    """The spectrogram of one clip.

    Args:
        waveform: float32 mono samples at the model's rate, at most the extractor's n_samples.
        settings: preprocessor_config.json (n_fft, feature_size, sampling_rate).
        padded_to: Samples that the extractor pads the clip to (default: its n_samples); at their end it has no zeros to
            look at, but the mirrored clip.

    Returns:
        bfloat16 bits (feature_size, frames).
    """
    import torch

    n_fft = int(settings.get("n_fft", 400))
    filters, window = _filters(n_fft, int(settings.get("feature_size", 128)), int(settings.get("sampling_rate", 16000)))
    longest = int(settings.get("n_samples", 4_800_000)) if padded_to is None else padded_to
    frames = audio_frames(len(waveform), longest)
    padded = np.zeros((1, min(frames * HOP + 480, longest)), np.float32)
    padded[0, : len(waveform)] = waveform
    stft = torch.stft(torch.from_numpy(padded), n_fft, HOP, window=window, return_complex=True)
    power = (stft[..., :-1].abs() ** 2).contiguous()
    log = torch.clamp(filters.T @ power, min=1e-10).log10()
    log = torch.maximum(log, log.max(dim=2, keepdim=True)[0].max(dim=1, keepdim=True)[0] - 8.0)
    log = (log + 4.0) / 4.0
    bits: NDArray[np.uint16] = log[0, :, :frames].to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
    return bits
