"""Media paths equal the libraries that define them, in the same run: librosa, Whisper's extractor, Qwen's
processors."""

import io
import json
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from qwen_omni_utils.v2_5 import vision_process as utils
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from omniprep.data.device import unpack_pixels
from omniprep.errors import Reject
from omniprep.families.kinds import MediaMeta
from omniprep.families.mel import audio_frames, log_mel, mel_filters
from omniprep.families.qwen.audio import audio_tokens
from omniprep.families.qwen.media import CLIP_MEAN as MEAN
from omniprep.families.qwen.media import CLIP_STD as STD
from omniprep.families.qwen.vision import (
    Limits,
    frame_count,
    frame_indices,
    image_patches,
    most_image_tokens,
    most_video_tokens,
    plan_video,
    smart_resize,
    video_patches,
)
from omniprep.media.audio import decode_audio, probe_audio, resampled_length
from omniprep.media.source import Source
from tests.media_files import SOUNDS, id3_tag, sound, wav_of, waveform

MEDIA = Path(__file__).parent / "golden" / "media"
SETTINGS = {"n_fft": 400, "feature_size": 128, "sampling_rate": 16000, "n_samples": 4_800_000}
SIDE = st.integers(1, 6000)


@settings(max_examples=150, deadline=None)
@given(SIDE, SIDE, st.integers(1, 4000), st.integers(1, 16384))
def test_smart_resize_equals_qwen_omni_utils(height: int, width: int, least: int, most: int) -> None:
    low, high = min(least, most) * 784, max(least, most) * 784
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(Reject, match="aspect_ratio"):
            smart_resize(height, width, 28, low, high)
        return
    theirs = utils.smart_resize(height, width, 28, low, high)
    if min(theirs) < 28:  # 0.0.9 lost the floor of one factor that 0.0.8 (the reference) has
        return
    assert smart_resize(height, width, 28, low, high) == theirs


@settings(max_examples=150, deadline=None)
@given(SIDE, SIDE, st.integers(1, 4000), st.integers(1, 16384))
def test_the_most_tokens_of_an_image_is_a_bound(height: int, width: int, least: int, most: int) -> None:
    limits = Limits(min_pixels=min(least, most) * 784, max_pixels=max(least, most) * 784)
    if max(height, width) > 200 * min(height, width):
        return
    h, w = smart_resize(height, width, 28, limits.min_pixels, limits.max_pixels)
    assert h * w // 784 <= most_image_tokens(limits)


@settings(max_examples=200, deadline=None)
@given(SIDE, SIDE, st.integers(2, 4000), st.floats(1, 120), st.integers(4, 900), st.integers(1, 800))
def test_the_most_tokens_of_a_video_is_a_bound(h: int, w: int, frames: int, fps: float, most: int, low: int) -> None:
    limits = Limits(fps_max_frames=most, video_min_pixels=low * 784)
    if max(h, w) > 200 * min(h, w):
        return
    plan = plan_video(MediaMeta(kind="video", width=w, height=h, frames=frames, fps=fps), limits)
    assert len(plan.indices) // 2 * plan.height * plan.width // 784 <= most_video_tokens(limits)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5000), st.floats(0.5, 240), st.floats(0.1, 30), st.integers(1, 40), st.integers(2, 900))
def test_frame_count_equals_qwen_omni_utils(frames: int, fps: float, rate: float, least: int, most: int) -> None:
    limits = Limits(fps=rate, fps_min_frames=least, fps_max_frames=most)
    wanted = {"fps": rate, "min_frames": least, "max_frames": min(most, frames)}
    try:
        theirs = utils.smart_nframes(wanted, frames, fps)
    except ValueError:
        with pytest.raises(Reject):
            frame_count(frames, fps, limits, {})
        return
    assert frame_count(frames, fps, limits, {}) == theirs
    indices = torch.linspace(0, frames - 1, theirs).round().long().tolist()
    assert list(frame_indices(0, frames - 1, theirs)) == indices


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 10_000_000), st.sampled_from([8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000]))
def test_resampled_length_is_librosas(frames: int, rate: int) -> None:
    assert resampled_length(frames, rate, 16000) == (
        frames if rate == 16000 else int(np.ceil(frames * (16000.0 / rate)))
    )


@pytest.mark.parametrize("samples", [321, 5000, 16000, 47_999, 160_000, 160_123])
def test_mel_equals_the_extractor_padded_to_300_seconds(samples: int) -> None:
    wave = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=300, n_fft=400, hop_length=160)
    both = extractor(wave, sampling_rate=16000, padding="max_length", return_attention_mask=True, return_tensors="pt")
    frames = int(both["attention_mask"].sum())
    assert frames == audio_frames(samples)
    expected = both["input_features"][0, :, :frames].to(torch.bfloat16)
    assert torch.equal(torch.from_numpy(log_mel(wave, SETTINGS)).view(torch.bfloat16), expected)


@pytest.mark.parametrize(
    ("n_fft", "mels", "rate"),
    [(400, 128, 16000), (400, 80, 16000), (512, 64, 44100), (1024, 128, 24000), (64, 8, 1500)],
)
def test_mel_filters_are_those_of_transformers(n_fft: int, mels: int, rate: int) -> None:
    theirs = mel_filter_bank(1 + n_fft // 2, mels, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    assert mel_filters(n_fft, mels, rate).tobytes() == theirs.tobytes()


def test_mel_at_the_very_end_of_300_seconds() -> None:
    wave = np.random.default_rng(1).normal(0, 0.1, 4_799_900).astype(np.float32)
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=300, n_fft=400, hop_length=160)
    expected = extractor(wave, sampling_rate=16000, padding="max_length", return_tensors="pt")["input_features"][0]
    assert torch.equal(torch.from_numpy(log_mel(wave, SETTINGS)).view(torch.bfloat16), expected.to(torch.bfloat16))


@pytest.mark.parametrize("tokens", [1, 2, 7, 750, 7500])
def test_audio_tokens_are_25_a_second(tokens: int) -> None:
    assert all(audio_tokens(frames) == -(-frames // 2) // 2 for frames in range(4 * tokens - 3, 4 * tokens + 3))


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_audio_equals_librosa(tmp_path: Path, rate: int, channels: int, kind: str) -> None:
    if kind == "MP3" and rate == 8000 and channels == 2:
        rate = 32000
    wave = np.random.default_rng(rate).normal(0, 0.2, (rate + 77, channels)).clip(-1, 1)
    path = tmp_path / f"sound.{kind.lower()}"
    soundfile.write(path, wave, rate, format=kind)
    expected, _ = librosa.load(path, sr=16000)
    ours = decode_audio(Source(path=str(path)), 16000)
    assert np.array_equal(ours, expected)
    assert probe_audio(Source(path=str(path)), 16000) == len(expected)
    assert np.array_equal(decode_audio(Source(data=path.read_bytes()), 16000), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8, 9, 16])
def test_the_mean_over_channels_is_librosas(channels: int) -> None:
    """With eight channels and more, numpy adds in another order where the array lies otherwise in memory."""
    data = io.BytesIO()
    soundfile.write(data, waveform(4000, channels, seed=channels), 16000, format="WAV", subtype="FLOAT")
    expected, _ = librosa.load(io.BytesIO(data.getvalue()), sr=16000)
    assert np.array_equal(decode_audio(Source(data=data.getvalue()), 16000), expected)


PREFIXES = {
    "id3": id3_tag(100),
    "odd id3": id3_tag(101),
    "long id3": id3_tag(6000),
    "two tags": id3_tag(50) + id3_tag(71),
    "empty tag": id3_tag(0),
    "newline": b"\n",
    "zeros": bytes(4),
    "mark": b"\xef\xbb\xbf",
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", SOUNDS)
def test_bytes_before_a_sound_count_as_in_the_reference(tmp_path: Path, kind: str, prefix: str) -> None:
    """A path gives what the bytes give: `librosa.load(BytesIO(file))`, which ends a tagged WAV early."""
    data = PREFIXES[prefix] + sound(kind)
    path = tmp_path / f"sound.{kind.lower()}"
    path.write_bytes(data)
    sources = (Source(path=str(path)), Source(data=data), Source(data=memoryview(data)))
    try:
        expected, _ = librosa.load(io.BytesIO(data), sr=16000)
    except soundfile.LibsndfileError:  # the reference fails: any way of reading it must agree with the others
        results = []
        for source in sources:
            try:
                results.append(decode_audio(source, 16000))
            except Reject as reject:
                results.append(str(reject.code))
        assert all(np.array_equal(results[0], other) for other in results[1:])
        return
    for source in sources:
        assert probe_audio(source, 16000) == len(expected)
        assert np.array_equal(decode_audio(source, 16000), expected)


SUBTYPES = [
    (kind, subtype)
    for kind in ("WAV", "AIFF", "W64", "CAF", "AU", "OGG", "VOC", "SVX", "PAF", "NIST", "XI")
    for subtype in soundfile.available_subtypes(kind)
    # Without those that libsndfile only reads; `wav_of` makes an MP3 in a WAV.
    if soundfile.check_format(kind, subtype) and subtype not in ("MPEG_LAYER_III", "DWVW_12")
]


@pytest.mark.parametrize(("kind", "subtype"), SUBTYPES, ids="-".join)
def test_every_subtype_is_counted_as_it_is_decoded(kind: str, subtype: str) -> None:
    """Block codecs round up, ADPCM pads, MP3 guesses: the count is of what libsndfile decodes, or a reject."""
    data = sound(kind, subtype, frames=24_123)
    source = Source(data=data)
    try:
        expected, _ = librosa.load(io.BytesIO(data), sr=16000)
    except (ValueError, soundfile.LibsndfileError):  # not seekable: soundfile cannot read it as a whole
        for read in (probe_audio, decode_audio):
            with pytest.raises(Reject, match="decode_error"):
                read(source, 16000)
        return
    assert probe_audio(source, 16000) == len(expected)
    assert np.array_equal(decode_audio(source, 16000), expected)


@pytest.mark.parametrize("codec", ["libmp3lame", "adpcm_ms", "adpcm_ima_wav", "pcm_mulaw", "pcm_f32le"])
def test_a_wav_with_a_compressed_format_tag_is_counted_by_decoding(codec: str) -> None:
    data = wav_of(codec)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        promised = file.frames
    expected, _ = librosa.load(io.BytesIO(data), sr=16000)
    assert probe_audio(Source(data=data), 16000) == len(expected)
    assert np.array_equal(decode_audio(Source(data=data), 16000), expected)
    if codec == "libmp3lame":
        assert promised != len(expected)


def test_counts_from_headers_equal_decoding() -> None:
    """Every sound file of the fixtures: the header's length is the decoded length."""
    compared = 0
    for path in sorted(MEDIA.iterdir()):
        if path.suffix in (".wav", ".mp3", ".flac", ".ogg"):
            source = Source(path=str(path))
            try:
                decoded = decode_audio(source, 16000)
            except Reject:
                continue
            assert probe_audio(source, 16000) == len(decoded), path.name
            compared += 1
    assert compared > 20


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31))
def test_image_patches_equal_the_processor(h: int, w: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (28 * h, 28 * w, 3), np.uint8)
    processor = Qwen2VLImageProcessor(image_mean=MEAN, image_std=STD, min_pixels=3136, max_pixels=12845056)
    expected = processor(Image.fromarray(pixels), do_resize=False, return_tensors="pt")["pixel_values"]
    ours = unpack_pixels(torch.from_numpy(image_patches(pixels)), mean=MEAN, std=STD)
    assert torch.equal(ours, expected)


def test_video_patches_equal_image_patches_of_their_frames() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 56, 84, 3), np.uint8)
    patches = video_patches(frames).reshape(2, -1, 3, 2, 14, 14)
    for t in range(4):
        assert np.array_equal(patches[t // 2, :, :, t % 2].reshape(-1, 588), image_patches(frames[t]))


def test_inline_and_file_images_are_the_same(tmp_path: Path) -> None:
    from omniprep.media.image import decode_image, probe_image

    buffer = io.BytesIO()
    Image.new("RGBA", (40, 30), (10, 200, 30, 0)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    inline, file = Source(data=buffer.getvalue()), Source(path=str(tmp_path / "a.png"))
    assert probe_image(inline) == probe_image(file) == (40, 30)
    assert decode_image(file).getpixel((0, 0)) == decode_image(inline).getpixel((0, 0)) == (10, 200, 30)
    assert decode_image(file, alpha="white").getpixel((0, 0)) == (255, 255, 255)


def test_settings_are_those_of_the_small_checkpoint(model_dir: Path) -> None:
    stored = json.loads((model_dir / "preprocessor_config.json").read_text())
    assert {k: stored[k] for k in SETTINGS} == SETTINGS
