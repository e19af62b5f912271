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

    return torch.from_numpy(mel_filters(n_fft, mels, rate)).to(torch.float32), torch.hann_window(n_fft)


def mel_filters(n_fft: int, mels: int, rate: int) -> NDArray[np.float64]:
    """Triangular filters on Slaney's mel scale, each of the same area: float64 (n_fft // 2 + 1, mels).

    Source: transformers audio_utils.mel_filter_bank (norm "slaney", mel_scale "slaney", from 0 to rate / 2 Hz), in the
    same order of operations and so with the same bits, without the 0.8 s that its import takes.
    """
    # Linear up to 1000 Hz, which are 15 mel; logarithmic beyond.
    top = rate / 2
    highest = 3.0 * top / 200.0 if top < 1000.0 else 15.0 + np.log(top / 1000.0) * (27.0 / np.log(6.4))
    centers_in_mel = np.linspace(0.0, highest, mels + 2)
    centers = 200.0 * centers_in_mel / 3.0
    is_log = centers_in_mel >= 15.0
    centers[is_log] = 1000.0 * np.exp(np.log(6.4) / 27.0 * (centers_in_mel[is_log] - 15.0))
    frequencies = np.linspace(0, rate // 2, 1 + n_fft // 2)
    widths = np.diff(centers)
    slopes = centers[None] - frequencies[:, None]
    filters = np.maximum(np.zeros(1), np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))
    filters *= (2.0 / (centers[2:] - centers[:-2]))[None]
    return filters


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
