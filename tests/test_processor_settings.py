"""What the checkpoint's processors are set to, whichever files say it, and what they are called with."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

from omniprep import unpack_pixels
from omniprep.families.context import resolve_family
from omniprep.families.kinds import Decoded, Field, MediaMeta
from omniprep.families.records import FamilySpec
from omniprep.families.registry import Registry
from omniprep.registry import SupportsMultiModal
from omniprep.testing.init_model import init_model

MEAN, STD = [0.2, 0.3, 0.4], [0.6, 0.7, 0.8]


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory):
    """A checkpoint of Qwen2.5-VL whose pictures are normalized otherwise than CLIP's."""
    folder = init_model(tmp_path_factory.mktemp("models") / "vision", "qwen2_5_vl")
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        path = folder / name
        if path.is_file():
            path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": MEAN, "image_std": STD}))
    return folder


def saved_by_transformers_5(model, folder):
    """The same checkpoint with the processor as transformers 5 saves it: processor_config.json alone."""
    folder.mkdir()
    for path in model.iterdir():
        if path.name not in ("preprocessor_config.json", "video_preprocessor_config.json"):
            shutil.copy(path, folder)
    AutoProcessor.from_pretrained(model).save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()
    return folder


def noise(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Decoded(MediaMeta(kind="image", width=width, height=height), image=Image.fromarray(pixels))


@pytest.mark.parametrize("stale", [False, True])
def test_settings_of_processor_config_alone_are_used(vision_model, tmp_path, stale):
    folder = saved_by_transformers_5(vision_model, tmp_path / "saved")
    if stale:  # processor_config.json goes first
        old = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "Qwen2VLImageProcessor"}
        for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
            (folder / name).write_text(json.dumps(old))
    ctx = resolve_family(str(folder))
    picture = noise(56, 84)
    patches = ctx.map_item("image", picture)["pixel_values"]
    column = next(column for column in ctx.columns if column.name == "pixel_values")
    ours = unpack_pixels(torch.from_numpy(patches), mean=column.params["mean"], std=column.params["std"])
    theirs = AutoProcessor.from_pretrained(folder).image_processor([picture.image], return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, theirs)
    videos = next(column for column in ctx.columns if column.name == "pixel_values_videos")
    assert videos.params["mean"] == tuple(MEAN) and videos.params["std"] == tuple(STD)


def test_settings_of_sound_come_from_their_own_part(model_dir, tmp_path):
    folder = saved_by_transformers_5(model_dir, tmp_path / "saved")
    assert "image_processor" in json.loads((folder / "processor_config.json").read_text())
    whole, saved = resolve_family(str(model_dir)), resolve_family(str(folder))
    wave = np.random.default_rng(0).standard_normal(4_000).astype(np.float32)
    sound = Decoded(MediaMeta(kind="audio", samples=len(wave)), waveform=wave)
    assert saved.audio_preprocessor["n_fft"] == 400 and saved.most_samples == whole.most_samples == 4_800_000
    for name, array in whole.map_item("audio", sound).items():
        assert np.array_equal(array, saved.map_item("audio", sound)[name])


def test_the_default_mapper_calls_the_image_processor_as_the_processor_does(model_dir, tmp_path):
    """InternVL's tiles are on by a default of its processor's class, not by preprocessor_config.json."""
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = AutoTokenizer.from_pretrained(model_dir, extra_special_tokens=names | {"video_token": "<video>"})
    tokenizer.add_special_tokens({"additional_special_tokens": [*names.values(), "<video>"]})
    size = {"height": 28, "width": 28}
    images = GotOcr2ImageProcessor(size=size, crop_to_patches=False, min_patches=1, max_patches=6)
    InternVLProcessor(images, tokenizer, InternVLVideoProcessor(size=size), image_seq_length=1).save_pretrained(
        tmp_path
    )
    (tmp_path / "config.json").write_text('{"model_type": "internvl", "architectures": ["X"]}')
    body = {
        "limits": {"image": None},
        "placeholders": {"image": "<IMG_CONTEXT>"},
        "fields": {
            "pixel_values": Field("image", "flat", sizes=lambda mapped: mapped["num_patches"]),
            "num_patches": Field("image", "item", load="none"),
        },
    }
    registry = Registry()
    cls = registry.register_image_input_mapper()(type("Tiles", (SupportsMultiModal,), body))
    cls = registry.register_token_counter("image", lambda ctx, meta: 4)(registry.register_max_image_tokens(4)(cls))
    registry.register_family("tiles")(cls)
    ctx = cls(registry.families["tiles"], FamilySpec(model=str(tmp_path)), {})
    picture = noise(96, 64)
    ours = ctx.map_item("image", picture)["pixel_values"]
    processor = AutoProcessor.from_pretrained(tmp_path)
    theirs = processor(images=[picture.image], text="<IMG_CONTEXT>", return_tensors="pt")["pixel_values"]
    assert len(theirs) > 1 and np.array_equal(ours, theirs.numpy())
