"""Audio as librosa.load returns it, with fewer steps: float32, mono by mean, resampled to the model's rate by soxr HQ.

libsndfile reads wav, flac, ogg and mp3. It gets an open file, never a path, because the reference calls
`librosa.load(BytesIO(...))` and libsndfile reads the two differently: given a path, it skips an ID3 tag before a WAV
completely; given a file, the sound ends as many bytes early as the tag is long. Everything else (m4a, the sound of a
video) goes through FFmpeg (omniprep/media/track.py). Equal to librosa 0.11 bit by bit: tests/test_media_exact.py.

Sizes are checked before memory is allocated: `MAX_SECONDS`, `MAX_SOUND_BYTES`, `MAX_RATE` of omniprep/media/track.py.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.media.guard import library_faults, said
from omniprep.media.source import Source
from omniprep.media.track import Waveform, check_sound, count_track, decode_track_frames

_BLOCK = 1 << 16
"""Frames decoded at a time to count them."""
# With a fixed number of bytes per sample the header's length follows from the size of the data. For the other subtypes
# (ADPCM, MP3, GSM, Vorbis, Opus, ALAC, DWVW) headers round up to blocks, guess, or count what the decoder then drops,
# so those files are decoded to count their frames.
_FIXED_WIDTH = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
# libsndfile's SF_COUNT_MAX stands for a FLAC whose header says 0 samples, "unknown".
_UNKNOWN_FRAMES = 1 << 62

# libsndfile looks in the working folder for the "resource fork" of a file without a name (macOS and netatalk write
# such files) and, if there is one, reads it instead of an MP3 that has no tag.
_RESOURCE_FORKS = ("._", ".AppleDouble")


def resampled_length(frames: int, rate: int, target: int) -> int:
    """Samples after resampling (librosa.resample: ceil(frames * target / rate), in this order of operations)."""
    return frames if rate == target else math.ceil(frames * (float(target) / rate))


def probe_audio(source: Source, target: int, decoder: str = "auto", *, of_video: bool = False) -> int:
    """Samples at rate `target`, without decoding where the header is exact.

    libsndfile is not asked to read the sound of a video. Rejects bad_media, media_not_found, decode_error,
    audio_too_long, audio_too_short and no_audio_track.
    """
    with source.fetched() as local, _open_sound(local, target, of_video) as sound:
        if isinstance(sound, soundfile.SoundFile):
            frames, rate = _count(sound, local), int(sound.samplerate)
        else:
            frames, rate = count_track(local, target, decoder, sound)
    if frames <= 0:
        raise Reject(RejectCode.AUDIO_TOO_SHORT, f"{source.label}: the audio is empty")
    return resampled_length(frames, rate, target)


def decode_audio(source: Source, target: int, decoder: str = "auto", *, of_video: bool = False) -> Waveform:
    """Mono samples at rate `target`, float32; arguments and errors are those of `probe_audio`, and bad_audio."""
    with source.fetched() as local, _open_sound(local, target, of_video) as sound:
        if isinstance(sound, soundfile.SoundFile):
            with library_faults(source.label, RejectCode.DECODE_ERROR):
                samples, rate = sound.read(dtype="float32", always_2d=True), int(sound.samplerate)
        else:
            samples, rate = decode_track_frames(local, target, decoder, sound)
    if samples.size == 0:
        raise Reject(RejectCode.AUDIO_TOO_SHORT, f"{source.label}: the audio is empty")
    return _to_mono_at(samples, rate, target, source)


class _QuietFile:
    """A file for libsndfile that answers impossible seeks (a damaged header may ask for one before the start) with 0.

    An exception would have the same result, since cffi returns 0 for it, but cffi also prints its traceback.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._refused = file, False
        self.readinto, self.read = file.readinto, file.read  # type: ignore[attr-defined]  # all files of Source.open

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            self._refused = False
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            self._refused = True
            return 0

    def tell(self) -> int:
        refused, self._refused = self._refused, False
        return 0 if refused else self._file.tell()


@contextmanager
def _open_sound(source: Source, target: int, of_video: bool) -> "Iterator[soundfile.SoundFile | str | None]":
    """The file opened by libsndfile, its header checked; libsndfile's message where it cannot; None for a video."""
    if of_video:
        yield None
        return
    with source.open() as file:
        try:
            with library_faults("libsndfile", RejectCode.BAD_MEDIA):
                sound = soundfile.SoundFile(_QuietFile(file))
        except Reject as reject:
            assert isinstance(reject.__cause__, Exception)
            _check_resource_fork(file, reject)
            yield said(reject.__cause__)
            return
        with sound:
            _check_header(sound, source, target)
            yield sound


def _check_resource_fork(file: BinaryIO, reject: Reject) -> None:
    """Say why libsndfile cannot read an MP3 where a resource fork in the working folder is the reason."""
    forks = [name for name in _RESOURCE_FORKS if os.path.exists(name)]
    file.seek(0)
    start = file.read(2)
    if forks and len(start) == 2 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0:  # an MP3 frame
        raise Reject(
            RejectCode.DECODE_ERROR,
            f"libsndfile takes {forks[0]!r} in the current folder for a part of every MP3; run in another folder",
        ) from reject


def _check_header(sound: "soundfile.SoundFile", source: Source, target: int) -> None:
    """Reject a header that promises more than the limits allow, before memory is allocated for it."""
    if sound.frames >= _UNKNOWN_FRAMES:
        raise Reject(
            RejectCode.BAD_MEDIA,
            f"{source.label}: the header does not say how long the sound is (a {sound.format} that was written to a "
            "pipe); write it again as a file: ffmpeg -i OLD NEW",
        )
    if not sound.seekable():  # soundfile then cannot read a whole file, so the reference fails too
        raise Reject(
            RejectCode.DECODE_ERROR,
            f"{source.label}: {sound.format} with {sound.subtype} cannot be read as a whole; convert it to 16-bit WAV",
        )
    check_sound(sound.frames, sound.channels, int(sound.samplerate), target, source.label)


def _count(sound: "soundfile.SoundFile", source: Source) -> int:
    """Frames that decoding gives: as in the header where that is exact and the last frame exists, else counted."""
    with library_faults(source.label, RejectCode.DECODE_ERROR):
        frames = int(sound.frames)
        if sound.subtype in _FIXED_WIDTH and sound.format not in ("MP3", "OGG") and sound.seekable() and frames > 0:
            try:
                sound.seek(frames - 1)
                if len(sound.read(2, dtype="float32", always_2d=True)) == 1:
                    return frames
            except soundfile.LibsndfileError:
                pass  # the file is cut: decoding from the start counts what is there, or raises
            sound.seek(0)
        counted, block = 0, np.empty((_BLOCK, sound.channels), np.float32)
        # A short read ends the sound here because it ends the single read of `decode_audio`; after a damaged part of an
        # MP3, another read would go on.
        while (read := len(sound.read(dtype="float32", always_2d=True, out=block))) == _BLOCK:
            counted += read
        return counted + read


def _to_mono_at(samples: Waveform, rate: int, target: int, source: Source) -> Waveform:
    """Mono at another rate, of samples (frames, channels) in C order.

    The mean is taken over the transposed view, as in librosa: from eight channels on, numpy adds the channels of a
    contiguous (channels, frames) array in another order.
    """
    mono: NDArray[np.float32] = samples[:, 0] if samples.shape[1] == 1 else np.mean(samples.T, axis=0)
    if not np.isfinite(mono).all():
        raise Reject(RejectCode.BAD_AUDIO, f"{source.label}: the waveform holds NaN or infinity")
    if rate != target:
        length = resampled_length(len(mono), rate, target)
        with library_faults(source.label, RejectCode.DECODE_ERROR):
            mono = soxr.resample(mono, rate, target, quality="soxr_hq")
        mono = np.pad(mono, (0, length - len(mono))) if len(mono) < length else mono[:length]
    return np.ascontiguousarray(mono, dtype=np.float32)
