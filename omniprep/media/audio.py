"""Audio as librosa.load gives it, without its detours: float32, mono by mean, soxr HQ to the model's rate.

libsndfile reads wav, flac, ogg and mp3; everything else (m4a, the sound of a video) is decoded by PyAV to 16-bit samples, which is
what librosa's fallback (audioread on the ffmpeg program) does. Equal to librosa 0.11 bit by bit: tests/test_audio.py.
"""

import io as _io
import math
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.media.fetch import Source

Waveform = NDArray[np.float32]
# Longer than any model takes; a bound on what a hostile header can make us decode.
MAX_SECONDS = 24 * 3600


def resampled_length(frames: int, rate: int, target: int) -> int:
    """Samples after resampling (librosa.resample: ceil(frames * target / rate), in this order of operations)."""
    return frames if rate == target else math.ceil(frames * (float(target) / rate))


def _file(source: Source) -> Any:
    return source.path if source.path is not None else _io.BytesIO(source.read())


def probe_audio(source: Source, target: int) -> int:
    """Samples at rate `target`, without decoding where the container says it exactly.

    Raises:
        Reject: bad_media, media_not_found, decode_error, audio_too_long.
    """
    try:
        info = soundfile.info(_file(source))
    except (soundfile.LibsndfileError, TypeError, ValueError):
        return len(decode_audio(source, target))
    if info.samplerate <= 0 or info.frames > info.samplerate * MAX_SECONDS:
        if info.format == "MP3":  # its header may only guess
            return len(decode_audio(source, target))
        raise Reject(RejectCode.AUDIO_TOO_LONG, f"{source.label}: longer than {MAX_SECONDS} s")
    if info.frames <= 0:
        raise Reject(RejectCode.AUDIO_TOO_SHORT, f"{source.label}: the audio is empty")
    return resampled_length(info.frames, info.samplerate, target)


def decode_audio(source: Source, target: int) -> Waveform:
    """Mono samples at rate `target`, float32.

    Raises:
        Reject: bad_media, media_not_found, decode_error, bad_audio, no_audio_track.
    """
    try:
        with soundfile.SoundFile(_file(source)) as file:
            rate, samples = file.samplerate, file.read(dtype="float32", always_2d=True).T
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        samples, rate = _decode_with_av(source, error)
    if samples.size == 0:
        raise Reject(RejectCode.AUDIO_TOO_SHORT, f"{source.label}: the audio is empty")
    return _to_mono_at(np.ascontiguousarray(samples), rate, target, source)


def decode_track(source: Source, target: int) -> Waveform:
    """The sound of a video, mono at rate `target`, float32.

    Raises:
        Reject: no_audio_track, decode_error.
    """
    samples, rate = _decode_with_av(source, None)
    return _to_mono_at(samples, rate, target, source)


def _to_mono_at(samples: Waveform, rate: int, target: int, source: Source) -> Waveform:
    mono = samples[0] if samples.shape[0] == 1 else np.mean(samples, axis=0)
    if not np.isfinite(mono).all():
        raise Reject(RejectCode.BAD_AUDIO, f"{source.label}: the waveform holds NaN or infinity")
    if rate != target:
        length = resampled_length(len(mono), rate, target)
        mono = soxr.resample(mono, rate, target, quality="soxr_hq")
        mono = np.pad(mono, (0, length - len(mono))) if len(mono) < length else mono[:length]
    return np.ascontiguousarray(mono, dtype=np.float32)


def _decode_with_av(source: Source, first_error: Exception | None) -> tuple[Waveform, int]:
    import av

    try:
        with av.open(source.path or _io.BytesIO(source.read())) as container:
            if not container.streams.audio:
                code = RejectCode.NO_AUDIO_TRACK if first_error is None else RejectCode.BAD_MEDIA
                raise Reject(code, f"{source.label}: there is no audio in the file")
            stream = container.streams.audio[0]
            stream.thread_type = "NONE"
            rate, channels = stream.rate, stream.channels
            resampler = av.AudioResampler(format="s16", layout=stream.layout, rate=rate)
            blocks = []
            for frame in container.decode(stream):
                blocks += [block.to_ndarray() for block in resampler.resample(frame)]
            blocks += [block.to_ndarray() for block in resampler.resample(None)]
    except Reject:
        raise
    except FileNotFoundError as error:
        raise Reject(RejectCode.MEDIA_NOT_FOUND, f"{source.label}: no such file") from error
    except (av.FFmpegError, ValueError, MemoryError, OSError) as error:
        detail = f"{first_error}; " if first_error else ""
        raise Reject(RejectCode.BAD_MEDIA if first_error else RejectCode.DECODE_ERROR, f"{source.label}: {detail}{error}") from error
    if not blocks:
        raise Reject(RejectCode.DECODE_ERROR, f"{source.label}: the audio track holds no samples")
    packed = np.concatenate([block.reshape(-1) for block in blocks])
    samples = packed.reshape(-1, channels).T.astype(np.float32) * np.float32(1 / 32768)
    return np.ascontiguousarray(samples), int(rate)
