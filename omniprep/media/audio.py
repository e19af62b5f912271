"""Audio as librosa.load gives it, without its detours: float32, mono by mean, soxr HQ to the model's rate.

libsndfile reads wav, flac, ogg and mp3. Everything else (m4a, the sound of a video) becomes 16-bit samples as librosa's
fallback makes them (audioread on the ffmpeg program): by that program where it is installed, else by PyAV, whose newer
decoders may differ in the last bit; the manifest names which. Equal to librosa 0.11 bit by bit: tests/test_audio.py.
"""

import math
import shutil
import struct
import subprocess
import tempfile
from typing import Any, Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from omniprep.errors import OmniprepError, Reject, RejectCode
from omniprep.media.container import refuse_lists
from omniprep.media.fetch import Source

Waveform = NDArray[np.float32]
# Longer than any model takes; a bound on what a hostile header can make us decode.
MAX_SECONDS = 24 * 3600


def resampled_length(frames: int, rate: int, target: int) -> int:
    """Samples after resampling (librosa.resample: ceil(frames * target / rate), in this order of operations)."""
    return frames if rate == target else math.ceil(frames * (float(target) / rate))


def _file(source: Source) -> Any:
    return source.path if source.path is not None else source.open()


def sound_decoder(asked: str = "auto") -> Literal["ffmpeg", "pyav"]:
    """What decodes containers that libsndfile cannot read: "ffmpeg" (the program) or "pyav".

    Raises:
        OmniprepError: ffmpeg is asked for and absent.
    """
    found = shutil.which("ffmpeg") is not None
    if asked == "ffmpeg" and not found:
        raise OmniprepError(
            "--audio-decoder ffmpeg: the program is not on PATH of this machine; install it or use --audio-decoder pyav"
        )
    if asked == "auto":
        return "ffmpeg" if found else "pyav"
    return "ffmpeg" if asked == "ffmpeg" else "pyav"


def probe_audio(source: Source, target: int, decoder: str = "auto") -> int:
    """Samples at rate `target`, without decoding where the container says it exactly.

    Raises:
        Reject: bad_media, media_not_found, decode_error, audio_too_long.
    """
    try:
        info = soundfile.info(_file(source))
    except (soundfile.LibsndfileError, TypeError, ValueError):
        return len(decode_audio(source, target, decoder))
    frames = info.frames
    if info.format == "MP3":  # without a Xing header the number of frames is a guess from the size of the file
        frames = len(_read(source)[0])
    if info.samplerate <= 0 or frames > info.samplerate * MAX_SECONDS:
        raise Reject(RejectCode.AUDIO_TOO_LONG, f"{source.label}: longer than {MAX_SECONDS} s")
    if frames <= 0:
        raise Reject(RejectCode.AUDIO_TOO_SHORT, f"{source.label}: the audio is empty")
    return resampled_length(frames, info.samplerate, target)


def decode_audio(source: Source, target: int, decoder: str = "auto") -> Waveform:
    """Mono samples at rate `target`, float32.

    Raises:
        Reject: bad_media, media_not_found, decode_error, bad_audio, no_audio_track.
    """
    try:
        frames, rate = _read(source)
        samples = frames.T
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        samples, rate = _decode_container(source, error, decoder)
    if samples.size == 0:
        raise Reject(RejectCode.AUDIO_TOO_SHORT, f"{source.label}: the audio is empty")
    return _to_mono_at(np.ascontiguousarray(samples), rate, target, source)


def _read(source: Source) -> tuple[Waveform, int]:
    """What libsndfile decodes, (frames, channels) and their rate.

    Raises:
        Reject: decode_error, of a file that it opens and cannot read.
        LibsndfileError, TypeError, ValueError: It cannot open the file.
    """
    with soundfile.SoundFile(_file(source)) as file:
        try:
            return file.read(dtype="float32", always_2d=True), file.samplerate
        except (soundfile.LibsndfileError, ValueError, MemoryError) as error:
            raise Reject(RejectCode.DECODE_ERROR, f"{source.label}: {error}") from error


def decode_track(source: Source, target: int, decoder: str = "auto") -> Waveform:
    """The sound of a video, mono at rate `target`, float32.

    Raises:
        Reject: no_audio_track, decode_error.
    """
    samples, rate = _decode_container(source, None, decoder)
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


def _decode_container(source: Source, first_error: Exception | None, decoder: str) -> tuple[Waveform, int]:
    if sound_decoder(decoder) == "pyav":
        return _decode_with_av(source, first_error)
    import av

    refuse_lists(source)
    try:
        with av.open(source.path or source.open()) as container:
            sound = bool(container.streams.audio)
    except (av.FFmpegError, ValueError, OSError):
        return _decode_with_av(source, first_error)  # says what is wrong with the file
    if not sound:
        return _decode_with_av(source, first_error)
    if source.path is not None:
        return _run_ffmpeg(source.path, source.label)
    with tempfile.NamedTemporaryFile(prefix="omniprep-") as file:
        file.write(source.read())
        file.flush()
        return _run_ffmpeg(file.name, source.label)


def _run_ffmpeg(path: str, label: str) -> tuple[Waveform, int]:
    """16-bit samples of the program's best audio stream, as audioread asks for them; a wav header tells rate and
    channels.
    """
    command = [
        "ffmpeg",
        "-nostdin",
        "-v",
        "error",
        "-protocol_whitelist",
        "file,pipe",
        "-i",
        path,
        "-vn",
        "-c:a",
        "pcm_s16le",
        "-f",
        "wav",
        "-",
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=3600, check=False)
    except subprocess.TimeoutExpired as error:
        raise Reject(RejectCode.DECODE_TIMEOUT, f"{label}: ffmpeg did not end within an hour") from error
    data = done.stdout
    at, channels, rate = 12, 0, 0
    while at + 8 <= len(data):
        name, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        at += 8
        if name == b"data":
            break
        if name == b"fmt ":
            channels, rate = struct.unpack_from("<HI", data, at + 2)
        at += size + size % 2
    if not channels or not rate or at >= len(data):
        detail = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no samples"]
        raise Reject(RejectCode.DECODE_ERROR, f"{label}: {detail[0]}")
    packed = np.frombuffer(data, np.int16, (len(data) - at) // (2 * channels) * channels, at)
    samples = packed.reshape(-1, channels).T.astype(np.float32) * np.float32(1 / 32768)
    return np.ascontiguousarray(samples), int(rate)


def _decode_with_av(source: Source, first_error: Exception | None) -> tuple[Waveform, int]:
    import av

    refuse_lists(source)
    try:
        with av.open(source.path or source.open()) as container:
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
        raise Reject(
            RejectCode.BAD_MEDIA if first_error else RejectCode.DECODE_ERROR, f"{source.label}: {detail}{error}"
        ) from error
    if not blocks:
        raise Reject(RejectCode.DECODE_ERROR, f"{source.label}: the audio track holds no samples")
    packed = np.concatenate([block.reshape(-1) for block in blocks])
    samples = packed.reshape(-1, channels).T.astype(np.float32) * np.float32(1 / 32768)
    return np.ascontiguousarray(samples), int(rate)
