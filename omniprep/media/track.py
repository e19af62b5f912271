"""Sound through FFmpeg: containers that libsndfile cannot read (m4a, webm), and the sound of videos.

16-bit samples as librosa's fallback makes them (audioread on the ffmpeg program): by that program where it is
installed, else by PyAV, whose newer decoders may differ in the last bit; the manifest names which. Samples come in
pieces, so counting holds none of them, and a file that promises too many is left as soon as it has given too many.
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
from omniprep.media.recognise import HEAD_BYTES, unreadable
from omniprep.media.source import Source, device_name

Waveform = NDArray[np.float32]
# Longer than any model takes; a bound on what a hostile header can make us decode.
MAX_SECONDS = 24 * 3600
# Of the decoded samples and the resampled ones together (float32): 37 minutes of 48 kHz in six channels, 100 in stereo.
MAX_SOUND_BYTES = 2 << 30
# 768 kHz is the highest rate that recorders write. The resampler's filter grows with the ratio of the rates.
MAX_RATE = 768_000
MIN_RATE = 100
"""A clip of one second at 1 Hz would become 16,000 samples of nothing; telemetry, no sound."""
_FFMPEG_SECONDS = 3600.0
_PIECE = 1 << 20


@dataclass(slots=True)
class _Track:
    """A stream of sound: `pieces` are interleaved 16-bit samples."""

    rate: int
    channels: int
    pieces: Iterator[bytes]


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


def check_sound(frames: int, channels: int, rate: int, target: int, label: str) -> None:
    """Hold a sound's size against the limits; called before memory is taken for it.

    Raises:
        Reject: audio_too_long, bad_media for a rate that no sound has.
    """
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
    """(frames, rate) of the sound, decoded and not kept.

    Args:
        source: The file.
        target: Rate that the sound will be resampled to, for the limits.
        decoder: "auto", "ffmpeg" or "pyav".
        first_error: What libsndfile said of a file that should be audio; None for the sound of a video.

    Raises:
        Reject: bad_media, no_audio_track, decode_error, audio_too_long.
    """
    with _open_track(source, decoder, first_error) as track:
        size = sum(len(piece) for piece in _bounded(track, target, source.label))
        return size // (2 * track.channels), track.rate


def decode_track_frames(source: Source, target: int, decoder: str, first_error: str | None) -> tuple[Waveform, int]:
    """The samples, float32 (frames, channels), and their rate; arguments and errors as of `count_track`."""
    with _open_track(source, decoder, first_error) as track:
        data = b"".join(_bounded(track, target, source.label))
        rate, channels = track.rate, track.channels
    packed = np.frombuffer(data, np.int16, len(data) // (2 * channels) * channels).reshape(-1, channels)
    return packed.astype(np.float32) * np.float32(1 / 32768), rate


def _bounded(track: _Track, target: int, label: str) -> Iterator[bytes]:
    """The pieces, until they are more than the limits allow."""
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
            with _readable_name(file) as name, _ffmpeg_track(name, file, source) as track:
                yield track


def _check_streams(file: BinaryIO, source: Source, first_error: str | None) -> tuple[int, int]:
    """(rate, channels) of the first sound in the file, as its header has them.

    Raises:
        Reject: bad_media, no_audio_track.
    """
    kind = "audio" if first_error is not None else "a video"
    with open_container(file, source, kind) as container:
        if not container.streams.audio:
            if first_error is None:
                raise Reject(RejectCode.NO_AUDIO_TRACK, f"{source.label}: there is no audio in the file")
            what = unreadable(source.head(HEAD_BYTES), "audio", first_error)
            raise Reject(RejectCode.BAD_MEDIA, f"{source.label}: {what}; there is no audio in the file")
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
def _readable_name(file: BinaryIO) -> Iterator[str]:
    """A name by which another program can open the file: the open file itself, or a copy of what is in memory."""
    name = device_name(file)
    if name is not None:
        yield name
        return
    file.seek(0)
    with tempfile.NamedTemporaryFile(prefix="omniprep-") as copy:
        shutil.copyfileobj(file, copy)
        copy.flush()
        yield copy.name


@contextmanager
def _ffmpeg_track(name: str, file: BinaryIO, source: Source) -> Iterator[_Track]:
    """16-bit samples of the program's best audio stream, as audioread asks for them; a wav header tells rate and
    channels.
    """
    command = [
        "ffmpeg", "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-format_whitelist", ",".join(FORMATS),
        "-i", name, "-vn", "-c:a", "pcm_s16le", "-f", "wav", "-",
    ]  # fmt: skip
    inherited = (file.fileno(),) if name.startswith("/dev/fd/") else ()
    with tempfile.TemporaryFile(prefix="omniprep-") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, pass_fds=inherited)
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        alarm = threading.Timer(_FFMPEG_SECONDS, end)
        alarm.start()
        try:
            assert process.stdout is not None
            facts = _read_wav_header(process.stdout)
            if facts is None:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["no samples"]
                raise Reject(RejectCode.DECODE_ERROR, f"{source.label}: {said[0].replace(name, 'the file')}")
            yield _Track(*facts, _pieces(process.stdout))
            if late.is_set():
                raise Reject(RejectCode.DECODE_TIMEOUT, f"{source.label}: ffmpeg did not end within an hour")
        finally:
            alarm.cancel()
            process.kill()
            if process.stdout is not None:
                process.stdout.close()
            process.wait()


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(_PIECE):
        yield piece


def _read_wav_header(stream: IO[bytes]) -> tuple[int, int] | None:
    """(rate, channels) of a wav that is being written to a pipe, read up to its samples; None where there is none."""
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
