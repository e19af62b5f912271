"""Small media files of every kind that is read, made by the libraries that write them; none is stored in the project."""

import io
from functools import lru_cache

import av
import numpy as np
import soundfile
from PIL import Image

SOUNDS = ("WAV", "FLAC", "MP3", "OGG", "AIFF", "AU", "CAF", "W64", "RF64")
PICTURES = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF")
VIDEOS = ("mp4", "matroska", "avi", "mov", "webm", "mpegts", "flv")


def waveform(frames: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.2, (frames, channels)).clip(-1, 1).astype(np.float32)


@lru_cache(maxsize=64)
def sound(kind: str, subtype: str | None = None, rate: int = 16000, frames: int = 8000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform(frames, channels), rate, format=kind, subtype=subtype)
    return file.getvalue()


@lru_cache(maxsize=64)
def picture(kind: str, size: tuple[int, int] = (48, 32), mode: str = "RGB", frames: int = 1) -> bytes:
    rng = np.random.default_rng(sum(size))
    images = [
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode) for _ in range(frames)
    ]
    file = io.BytesIO()
    more = {"save_all": True, "append_images": images[1:]} if frames > 1 else {}
    images[0].save(file, kind, **more)
    return file.getvalue()


@lru_cache(maxsize=64)
def video(
    container: str = "mp4", codec: str = "mpeg4", size: tuple[int, int] = (64, 48), frames: int = 8, sound: str = ""
) -> bytes:
    """A video of random blocks at 8 frames a second, with a second of noise where `sound` names a codec."""
    if container == "webm":
        codec = "libvpx"
    if container == "flv":
        codec = "flv"
    file = io.BytesIO()
    rng = np.random.default_rng(frames)
    with av.open(file, "w", format=container) as target:
        stream = target.add_stream(codec, rate=8)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        noise = target.add_stream(sound, rate=16000, layout="mono") if sound else None
        for _ in range(frames):
            pixels = np.repeat(np.repeat(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8), 8, 0), 8, 1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                target.mux(packet)
        for packet in stream.encode(None):
            target.mux(packet)
        if noise is not None:
            format_ = noise.codec_context.format.name
            samples = (waveform(16000)[:, 0] * 32767).astype(np.int16).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            frame.sample_rate = 16000
            resampler = av.AudioResampler(format_, "mono", 16000, frame_size=noise.codec_context.frame_size or None)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                for packet in noise.encode(part):
                    target.mux(packet)
            for packet in noise.encode(None):
                target.mux(packet)
    return file.getvalue()


def id3_tag(size: int) -> bytes:
    """An ID3v2 tag of `size` bytes after its header, as taggers put before any file."""
    return b"ID3\x03\x00\x00" + bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0)) + bytes(size)


def wav_of(codec: str, frames: int = 24_000) -> bytes:
    """A WAV with a compressed format tag, as call recorders write; the length in its header is a guess."""
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as target:
        stream = target.add_stream(codec, rate=16000, layout="mono")
        size = stream.codec_context.frame_size or 1024
        samples = (waveform(frames)[:, 0] * 32767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
        frame.sample_rate = 16000
        resampler = av.AudioResampler(stream.codec_context.format.name, "mono", 16000, frame_size=size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            for packet in stream.encode(part):
                target.mux(packet)
        for packet in stream.encode(None):
            target.mux(packet)
    return file.getvalue()
