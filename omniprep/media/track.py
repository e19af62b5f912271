"""Sound through FFmpeg: containers that libsndfile cannot read (m4a, webm), and the sound of videos.

Gives the 16-bit samples of librosa's fallback (audioread on the ffmpeg program): by that program where it is installed,
else by PyAV, whose newer decoders may differ in the last bit; the manifest names the one used. Samples are decoded in
pieces, so counting them takes no memory and a file that is too long is rejected once that much of it is decoded.
"""

import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import OmniprepError, Reject, RejectCode
from omniprep.media.container import FORMATS, open_container
from omniprep.media.guard import library_faults
from omniprep.media.recognize import HEAD_BYTES, unreadable
from omniprep.media.source import Source, named

Waveform = NDArray[np.float32]
MAX_SECONDS = 24 * 3600
"""Longer than any model accepts; limits what a hostile header can make us decode."""
MAX_SOUND_BYTES = 2 << 30
"""Most bytes of the decoded and the resampled samples together (float32): at 48 kHz, 37 minutes of six channels or 100
of stereo."""
MAX_RATE = 768_000
"""The highest rate that recorders write; the resampler's filter grows with the ratio of the rates."""
MIN_RATE = 100
"""Lower rates are telemetry, not sound: a second at 1 Hz would become 16,000 samples of nothing."""
_FFMPEG_SECONDS = 3600.0
_PIECE = 1 << 20


@dataclass(slots=True)
class _Track:
    """A sound being decoded: `pieces` are bytes of interleaved 16-bit samples."""

    rate: int
    channels: int
    pieces: Iterator[bytes]


def sound_decoder(asked: str = "auto") -> Literal["ffmpeg", "pyav"]:
    """Which decoder reads containers that libsndfile cannot read: "ffmpeg" (the program) or "pyav"."""
    installed = shutil.which("ffmpeg") is not None
    if asked == "ffmpeg" and not installed:
        raise OmniprepError(
            "--audio-decoder ffmpeg: the program is not on PATH of this machine; install it or use --audio-decoder pyav"
        )
    if asked == "auto":
        return "ffmpeg" if installed else "pyav"
    return "ffmpeg" if asked == "ffmpeg" else "pyav"


def check_sound(frames: int, channels: int, rate: int, target: int, label: str) -> None:
    """Reject a sound beyond the limits (audio_too_long, bad_media), before memory is allocated for it."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise Reject(
            RejectCode.BAD_MEDIA, f"{label}: a sample rate of {rate:,} Hz; from {MIN_RATE} to {MAX_RATE:,} is read"
        )
    if frames > rate * MAX_SECONDS:
        raise Reject(RejectCode.AUDIO_TOO_LONG, f"{label}: longer than {MAX_SECONDS} s")
    resampled = 0 if rate == target else frames * target // rate
    needed = 4 * (frames * channels + resampled)
    if needed > MAX_SOUND_BYTES:
        raise Reject(
            RejectCode.AUDIO_TOO_LONG,
            f"{label}: {frames / rate:.0f} s of {channels} channels at {rate:,} Hz are {needed >> 20:,} MiB decoded, "
            f"the limit is {MAX_SOUND_BYTES >> 20:,} MiB",
        )


def count_track(source: Source, target: int, decoder: str, first_error: str | None) -> tuple[int, int]:
    """(frames, rate) of a sound by decoding it piece by piece, up to the limits at rate `target`.

    `first_error` is libsndfile's message about a file that should be audio; None for the sound of a video.
    """
    with _open_track(source, decoder, first_error) as track:
        size = sum(len(piece) for piece in _bounded(track, target, source.label))
        return size // (2 * track.channels), track.rate


def decode_track_frames(source: Source, target: int, decoder: str, first_error: str | None) -> tuple[Waveform, int]:
    """Samples, float32 (frames, channels), and their rate; arguments and errors are those of `count_track`."""
    with _open_track(source, decoder, first_error) as track:
        data = b"".join(_bounded(track, target, source.label))
        rate, channels = track.rate, track.channels
    packed = np.frombuffer(data, np.int16, len(data) // (2 * channels) * channels).reshape(-1, channels)
    return packed.astype(np.float32) * np.float32(1 / 32768), rate


def _bounded(track: _Track, target: int, label: str) -> Iterator[bytes]:
    """The pieces of a track, up to the limit; rejects audio_too_long, or decode_error where there are none."""
    size = 0
    for piece in track.pieces:
        size += len(piece)
        check_sound(size // (2 * track.channels), track.channels, track.rate, target, label)
        yield piece
    if not size:
        raise Reject(RejectCode.DECODE_ERROR, f"{label}: the audio track holds no samples")


@contextmanager
def _open_track(source: Source, decoder: str, first_error: str | None) -> Iterator[_Track]:
    with source.open() as file:
        rate, channels = _check_streams(file, source, first_error)
        if sound_decoder(decoder) == "pyav":
            with _pyav_track(file, source, rate, channels) as track:
                yield track
        else:
            with named(file) as name, _ffmpeg_track(name, source) as track:
                yield track


def _check_streams(file: BinaryIO, source: Source, first_error: str | None) -> tuple[int, int]:
    """(rate, channels) of the file's first audio stream, from its header; rejects bad_media, no_audio_track."""
    kind = "audio" if first_error is not None else "a video"
    with open_container(file, source, kind) as container:
        if not container.streams.audio:
            if first_error is None:
                raise Reject(RejectCode.NO_AUDIO_TRACK, f"{source.label}: there is no audio in the file")
            description = unreadable(source.head(HEAD_BYTES), "audio", first_error)
            raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: {description}; there is no audio in the file")
        with library_faults(source.label, RejectCode.DECODE_ERROR):
            stream = container.streams.audio[0]
            codec = stream.codec_context
            if codec is None:
                raise Reject(RejectCode.DECODE_ERROR, f"{source.label}: FFmpeg has no decoder for its sound")
            rate, channels = int(stream.rate or 0), int(stream.channels or 0)
    if channels < 1:
        raise Reject(RejectCode.DECODE_ERROR, f"{source.label}: the audio track says no number of channels")
    check_sound(0, channels, rate, rate, source.label)
    return rate, channels


@contextmanager
def _pyav_track(file: BinaryIO, source: Source, rate: int, channels: int) -> Iterator[_Track]:
    import av

    with open_container(file, source, "audio") as container:
        stream: Any = container.streams.audio[0]

        def pieces() -> Iterator[bytes]:
            with library_faults(source.label, RejectCode.DECODE_ERROR):
                stream.thread_type = "NONE"
                resampler = av.AudioResampler(format="s16", layout=stream.layout, rate=rate)
                for frame in container.decode(stream):
                    for block in resampler.resample(frame):
                        yield block.to_ndarray().tobytes()
                for block in resampler.resample(None):
                    yield block.to_ndarray().tobytes()

        yield _Track(rate, channels, pieces())


@contextmanager
def _ffmpeg_track(name: str, source: Source) -> Iterator[_Track]:
    """The audio stream that ffmpeg chooses, with audioread's options; rate and channels are of the WAV header."""
    command = [
        "ffmpeg", "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-format_whitelist", ",".join(FORMATS),
        "-i", name, "-vn", "-c:a", "pcm_s16le", "-f", "wav", "-",
    ]  # fmt: skip
    inherited = (int(name.removeprefix("/dev/fd/")),) if name.startswith("/dev/fd/") else ()
    with tempfile.TemporaryFile(prefix="omniprep-") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, pass_fds=inherited)
        stdout = process.stdout
        assert stdout is not None
        timed_out = threading.Event()

        def kill() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(_FFMPEG_SECONDS, kill)
        timer.start()
        try:
            rate_and_channels = _read_wav_header(stdout)
            if rate_and_channels is None:
                errors.seek(0)
                message = (errors.read().decode(errors="replace").strip().splitlines() or ["no samples"])[-1]
                raise Reject(RejectCode.DECODE_ERROR, f"{source.label}: {message.replace(name, 'the file')}")
            yield _Track(*rate_and_channels, iter(lambda: stdout.read(_PIECE), b""))
            if timed_out.is_set():
                raise Reject(RejectCode.DECODE_TIMEOUT, f"{source.label}: ffmpeg did not end within an hour")
        finally:
            timer.cancel()
            process.kill()
            stdout.close()
            process.wait()


def _read_wav_header(stream: IO[bytes]) -> tuple[int, int] | None:
    """Read a WAV from a pipe up to its samples: (rate, channels), or None where the stream ends before them."""
    rate = channels = 0
    if len(stream.read(12)) < 12:
        return None
    while len(head := stream.read(8)) == 8:
        name, size = head[:4], struct.unpack("<I", head[4:])[0]
        if name == b"data":
            return (rate, channels) if rate and channels else None
        body = stream.read(size + size % 2)
        if name == b"fmt ":
            channels, rate = struct.unpack_from("<HI", body, 2)
    return None
