"""Makes the media files of the parity tests: every container, mode and size that a rule of the template depends on.

    python tests/golden/make_media.py [OUT]

Everything is drawn from formulas and fixed seeds; nothing is copied from anywhere. The files are committed, since
encoders differ between library versions and even between runs:
run this only to add a file, and remake the fixtures afterwards.
Needs numpy, Pillow, soundfile and PyAV.
"""

import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "media"


def picture(width, height, seed=0, noise=12):
    """RGB uint8 (height, width, 3): gradients, a disc, stripes and a little noise, so that every resize shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    u, v = x / max(width - 1, 1), y / max(height - 1, 1)
    red = 255 * u
    green = 255 * v
    blue = 127 + 120 * np.sin(9 * u + 5 * v + seed)
    rgb = np.stack([red, green, blue], -1)
    disc = (u - 0.4) ** 2 + (v - 0.55) ** 2 < 0.05
    rgb[disc] = [240, 30 + 5 * seed % 200, 40]
    rgb[(x.astype(int) % 17 == 3) & (v < 0.3)] = [10, 10, 90]
    rgb += rng.normal(0, noise, rgb.shape) if noise else 0
    return np.clip(rgb, 0, 255).astype(np.uint8)


def image(width, height, seed=0, noise=12):
    return Image.fromarray(picture(width, height, seed, noise))


def png(path, array, color_type, depth, interlaced=False):
    """A PNG by hand, for what Pillow does not write: Adam7, 16-bit color. array (height, width, channels)."""
    array = array.astype(">u2" if depth == 16 else "u1")
    height, width = array.shape[:2]
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    raw = b""
    for x0, y0, dx, dy in passes if interlaced else [(0, 0, 1, 1)]:
        part = array[y0::dy, x0::dx]
        if part.size:
            raw += b"".join(b"\0" + row.tobytes() for row in part)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(interlaced))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    path.write_bytes(data)


def make_images():
    def at(name):
        return OUT / name

    image(200, 150, 1).save(at("rgb.jpg"), quality=85)
    image(123, 77, 2).save(at("progressive.jpg"), quality=80, progressive=True)
    image(90, 60, 3).convert("L").save(at("gray.jpg"), quality=85)
    image(80, 64, 4).convert("CMYK").save(at("cmyk.jpg"), quality=85)
    exif = Image.Exif()
    exif[0x0112] = 6
    image(120, 60, 5).save(at("exif6.jpg"), quality=85, exif=exif)
    image(57, 99, 6).save(at("444.jpg"), quality=95, subsampling=0)
    image(97, 61, 7).save(at("rgb.png"))
    alpha = np.tile(np.linspace(0, 255, 100).astype(np.uint8), (80, 1))[..., None]
    Image.fromarray(np.concatenate([picture(100, 80, 8), alpha], -1)).save(at("rgba.png"))
    image(64, 64, 9).convert("P", palette=Image.Palette.ADAPTIVE, colors=16).save(at("palette.png"))
    image(70, 50, 10).convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(
        at("palette_transparent.png"), transparency=3
    )
    image(50, 40, 11).convert("1").save(at("bilevel.png"))
    image(33, 91, 12).convert("L").save(at("gray.png"))
    image(60, 45, 13).convert("LA").save(at("gray_alpha.png"))
    y, x = np.mgrid[0:48, 0:52]
    ramp = (x * 1300 + y * 7).astype(np.uint16)
    png(at("gray16.png"), ramp[..., None], 0, 16)
    png(at("rgb16.png"), picture(44, 36, 14).astype(np.uint16) * 257 - 3, 2, 16)
    png(at("interlaced.png"), picture(59, 47, 15), 2, 8, interlaced=True)
    image(140, 90, 16).save(at("lossy.webp"), quality=70)
    image(50, 70, 17).save(at("lossless.webp"), lossless=True)
    Image.fromarray(np.concatenate([picture(64, 48, 18), 255 - picture(64, 48, 19)[..., :1]], -1)).save(
        at("alpha.webp"), quality=70
    )
    frames = [image(48, 40, 20 + i) for i in range(3)]
    frames[0].save(at("animated.webp"), save_all=True, append_images=frames[1:], duration=100, quality=60)
    image(61, 43, 24).save(at("rgb.bmp"))
    image(75, 55, 25).save(at("lzw.tiff"), compression="tiff_lzw")
    image(40, 30, 26).convert("CMYK").save(at("cmyk.tiff"), compression="tiff_lzw")
    Image.fromarray((np.mgrid[0:30, 0:34][1] * 9.5 - 20).astype(np.float32)).save(at("float.tiff"))
    Image.fromarray((np.mgrid[0:30, 0:34][1] * 2000).astype(np.int32)).save(at("int32.tiff"))
    image(66, 44, 27).save(at("static.gif"))
    gif = [image(40, 30, 30 + i, noise=0).convert("P", palette=Image.Palette.ADAPTIVE, colors=32) for i in range(3)]
    gif[0].save(at("animated.gif"), save_all=True, append_images=gif[1:], duration=100, transparency=2, disposal=2)
    for width, height in [
        (1, 1),
        (20, 15),
        (1, 50),
        (50, 1),
        (27, 400),
        (900, 5),
        (800, 4),
        (3, 600),
        (603, 3),
        (28, 28),
        (56, 84),
        (300, 42),
    ]:
        image(width, height, width + height).save(at(f"s{width}x{height}.png"))
    image(4200, 3100, 40, noise=0).resize((4200, 3100)).save(at("large.webp"), quality=10, method=4)
    image(1600, 1200, 41, noise=0).save(at("medium.jpg"), quality=20)
    whole = at("rgb.jpg").read_bytes()
    at("truncated.jpg").write_bytes(whole[: len(whole) // 2])
    at("empty.png").write_bytes(b"")
    at("not_an_image.png").write_bytes(b"This is text, whatever the name says.\n")


def sound(seconds, rate, seed=0, channels=1):
    """float64 (samples, channels): two tones, a chirp and noise in bursts, amplitude below 0.6."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    wave = 0.25 * np.sin(2 * np.pi * (220 + 30 * seed) * t) + 0.15 * np.sin(2 * np.pi * (300 + 200 * t) * t)
    wave = wave + 0.05 * rng.standard_normal(len(t)) * (np.sin(7 * t) > 0)
    return np.stack([wave * (1 - 0.4 * c) + 0.02 * c * np.cos(900 * t) for c in range(channels)], -1)


def make_audio():
    def wav(name, seconds, rate, seed, channels=1, subtype="PCM_16", **options):
        soundfile.write(OUT / name, sound(seconds, rate, seed, channels), rate, subtype=subtype, **options)

    wav("mono16k.wav", 1.0, 16000, 1)
    wav("stereo44k.wav", 0.7, 44100, 2, 2)
    wav("mono8k.wav", 1.3, 8000, 3)
    wav("stereo48k.wav", 0.4, 48000, 4, 2)
    wav("pcm24.wav", 0.5, 22050, 5, 1, "PCM_24")
    wav("float.wav", 0.5, 16000, 6, 1, "FLOAT")
    wav("double11k.wav", 0.4, 11025, 7, 2, "DOUBLE")
    wav("u8.wav", 0.8, 16000, 8, 1, "PCM_U8")
    wav("ulaw8k.wav", 0.9, 8000, 9, 1, "ULAW")
    wav("six48k.wav", 0.1, 48000, 10, 6)
    wav("mono.aiff", 0.3, 32000, 11)
    for milliseconds in (0, 1, 10, 15, 20, 21, 25, 30, 40, 100):
        wav(f"ms{milliseconds}.wav", milliseconds / 1000, 16000, 12)
    soundfile.write(OUT / "samples321.wav", sound(321 / 16000, 16000, 12), 16000)
    soundfile.write(OUT / "samples1.wav", sound(1 / 16000, 16000, 12), 16000)
    wav("speech.mp3", 3.2, 44100, 13, 1, "MPEG_LAYER_III", format="MP3")
    wav("stereo.mp3", 1.1, 24000, 14, 2, "MPEG_LAYER_III", format="MP3")
    cut = (OUT / "stereo.mp3").read_bytes()  # its header promises more than there is
    (OUT / "cut.mp3").write_bytes(cut[: len(cut) * 2 // 3])
    with av.open(OUT / "no_xing.mp3", "w", format="mp3", container_options={"write_xing": "0"}) as file:
        stream = file.add_stream("libmp3lame", rate=22050, layout="mono", options={"qscale": "4"})
        pcm = np.int16(sound(0.9, 22050, 20).reshape(1, -1) * 32767)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm), format="s16", layout="mono")
        frame.sample_rate = 22050
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    wav("mono32k.flac", 0.8, 32000, 15, 1, "PCM_16", format="FLAC")
    wav("stereo24.flac", 0.3, 44100, 16, 2, "PCM_24", format="FLAC")
    wav("stereo.ogg", 1.5, 44100, 17, 2, "VORBIS", format="OGG")
    wav("mono.opus", 1.2, 48000, 18, 1, "OPUS", format="OGG")
    nan = sound(0.2, 16000, 19).astype(np.float32)
    nan[500] = np.nan
    soundfile.write(OUT / "nan.wav", nan, 16000, subtype="FLOAT")
    for name, seconds, rate in [("s300.flac", 300.0, 8000), ("s301.flac", 301.5, 8000), ("s30.flac", 30.0, 16000)]:
        whole = np.zeros(round(seconds * rate))
        for start in range(0, len(whole), 25 * rate):
            burst = sound(0.2, rate, 20)[:, 0][: len(whole) - start]
            whole[start : start + len(burst)] = burst
        whole[-rate // 5 :] = sound(0.2, rate, 21)[:, 0]
        soundfile.write(OUT / name, whole, rate, subtype="PCM_16")
    mux(OUT / "tone.m4a", audio=("aac", sound(1.4, 44100, 22, 2), 44100))
    mux(OUT / "tone.webm", audio=("libopus", sound(0.9, 48000, 23, 1), 48000))
    (OUT / "not_audio.wav").write_bytes(b"RIFFnope" * 20)
    data = (OUT / "mono16k.wav").read_bytes()
    (OUT / "truncated.wav").write_bytes(data[: len(data) // 3])


def movie(width, height, frames, seed=0):
    """RGB frames of a disc and a grating that move."""
    y, x = np.mgrid[0:height, 0:width]
    for i in range(frames):
        phase = i / 6
        base = 110 + 70 * np.sin(x / max(width, 1) * 8 + phase + seed) + 40 * np.cos(y / max(height, 1) * 6 - phase)
        frame = np.stack([base, 230 - base * 0.7, 90 + 60 * np.sin(phase + y / max(height, 1) * 3) + 0 * base], -1)
        disc = (x - width * (0.2 + 0.6 * ((i * 0.07) % 1))) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 5) ** 2
        frame[disc] = [250, 220, 40]
        frame[: max(2, height // 12), : 1 + (i * 3) % width] = [20, 20, 20]
        yield np.clip(frame, 0, 255).astype(np.uint8)


def mux(path, video=None, audio=None, options=None, times=None, format=None):
    """video (codec, frames, rate, bit rate options); audio (codec, float (samples, channels), rate)."""
    with av.open(str(path), "w", format=format, options=options or {}) as box:
        box.flags |= 0x400  # bit exact: no encoder names
        streams = []
        if video:
            codec, frames, rate, settings = video
            frames = list(frames)
            stream = box.add_stream(codec, rate=Fraction(rate).limit_denominator(100000), options=settings)
            stream.width, stream.height = frames[0].shape[1], frames[0].shape[0]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.thread_count = 1
            if times:
                stream.codec_context.time_base = Fraction(1, 1000)
            streams.append(stream)
        if audio:
            codec, wave, rate_a = audio
            track = box.add_stream(codec, rate=rate_a, layout="stereo" if wave.shape[1] == 2 else "mono")
        if video:
            for i, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = times[i] if times else i
                if times:
                    frame.time_base = Fraction(1, 1000)
                box.mux(stream.encode(frame))
            box.mux(stream.encode(None))
        if audio:
            data = np.clip(np.round(wave * 32767), -32768, 32767).astype(np.int16)
            size = track.codec_context.frame_size or 1024
            resampler = av.AudioResampler(
                format=track.codec_context.format, layout=track.codec_context.layout, rate=rate_a, frame_size=size
            )
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(data.reshape(1, -1)), format="s16", layout=track.codec_context.layout.name
            )
            frame.sample_rate, frame.pts, frame.time_base = rate_a, 0, Fraction(1, rate_a)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                box.mux(track.encode(part))
            box.mux(track.encode(None))


def rotate(source, target, degrees):
    """Writes the display matrix into the video's tkhd box."""
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd")
    one = 1 << 16
    matrix = {90: (0, one, 0, -one, 0, 0), 180: (-one, 0, 0, 0, -one, 0)}[degrees]
    start = at + 4 + 40  # version 0: 4 + 20 + 8 + 8 bytes before the matrix
    data[start : start + 24] = struct.pack(">6i", *matrix)
    target.write_bytes(data)


def make_video():
    x264 = {"crf": "30", "preset": "medium", "x264-params": "threads=1"}
    ntsc = Fraction(24000, 1001)

    def film(
        name,
        size,
        frames,
        rate,
        seed=0,
        tone=None,
        codec="libx264",
        settings=None,
        audio_codec="aac",
        rate_a=44100,
        channels=2,
        **more,
    ):
        audio = (audio_codec, sound(tone, rate_a, seed, channels), rate_a) if tone else None
        mux(OUT / name, (codec, movie(*size, frames, seed), rate, settings or dict(x264)), audio, **more)

    film("h264_25.mp4", (96, 64), 50, 25, 1)
    film("h264_23976.mp4", (120, 90), 60, ntsc, 2)
    film("odd30.mp4", (80, 60), 37, 30, 3)
    for frames in (1, 2, 3, 5, 7):
        film(f"frames{frames}.mp4", (64, 64), frames, 2, frames)
    film("portrait.mp4", (64, 144), 30, 15, 4)
    film("sound25.mp4", (96, 64), 50, 25, 5, tone=2.0)
    film("sound_longer.mp4", (64, 64), 15, 10, 6, tone=5.3, channels=1, rate_a=16000)
    film("sound_shorter.mp4", (64, 48), 60, 10, 7, tone=1.1, rate_a=48000)
    film(
        "sound_mp3.avi",
        (80, 64),
        30,
        12.5,
        8,
        tone=2.3,
        codec="mpeg4",
        settings={"qscale": "8"},
        audio_codec="libmp3lame",
    )
    film("mjpeg.avi", (64, 48), 12, 6, 9, codec="mjpeg", settings={"qscale": "8"})
    film("pcm.mov", (64, 56), 24, 12, 10, tone=0.6, audio_codec="pcm_s16le", rate_a=16000, channels=1)
    film(
        "vp9.webm",
        (88, 72),
        30,
        10,
        11,
        tone=2.5,
        codec="libvpx-vp9",
        settings={"crf": "40", "b": "0", "cpu-used": "4"},
        audio_codec="libopus",
        rate_a=48000,
    )
    film("vp9_silent.webm", (64, 64), 20, 10, 12, codec="libvpx-vp9", settings={"crf": "40", "b": "0", "cpu-used": "4"})
    film("h264.mkv", (64, 80), 25, 12, 13)
    film(
        "hevc.mp4",
        (96, 96),
        12,
        8,
        14,
        codec="libx265",
        settings={"crf": "32", "x265-params": "pools=1:frame-threads=1:log-level=none"},
    )
    film("hd.mp4", (1920, 1080), 8, 4, 15, settings={"crf": "36", "preset": "medium", "x264-params": "threads=1"})
    film("minute.mp4", (64, 64), 62, 1, 16, settings={"crf": "36", "preset": "medium", "x264-params": "threads=1"})
    film("narrow48.mp4", (48, 64), 8, 4, 22)
    film("fast60.mp4", (64, 64), 90, 60, 17)
    film("wide.mp4", (640, 8), 8, 4, 19)
    film("intra10.mp4", (64, 64), 20, 10, 20, settings={"crf": "34", "g": "1", "x264-params": "threads=1"})
    vfr = [0, 40, 80, 200, 240, 600, 640, 1000, 1040, 1080, 1500, 1900]
    film("vfr.mp4", (64, 64), len(vfr), 25, 18, times=vfr)
    rotate(OUT / "h264_25.mp4", OUT / "rotated90.mp4", 90)
    rotate(OUT / "h264_25.mp4", OUT / "rotated180.mp4", 180)
    data = (OUT / "h264_25.mp4").read_bytes()
    (OUT / "truncated.mp4").write_bytes(data[: len(data) // 2])
    (OUT / "not_video.mp4").write_bytes(b"nothing to see" * 30)
    for i, frame in enumerate(movie(120, 80, 5, 21)):
        Image.fromarray(frame).save(OUT / f"frame{i}.jpg", quality=80)
    Image.fromarray(np.concatenate([picture(60, 40, 50), picture(60, 40, 51)[..., :1]], -1)).save(
        OUT / "frame_rgba.png"
    )


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    make_images()
    make_audio()
    make_video()
    sizes = sorted((p.stat().st_size, p.name) for p in OUT.iterdir())
    print(f"{len(sizes)} files, {sum(s for s, _ in sizes) / 1e6:.2f} MB; largest {sizes[-8:]}")
