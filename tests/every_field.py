"""A family whose mapper gives every kind of field (a plug-in of tests/test_fields_build.py)."""

import numpy as np

from omniprep.registry import REGISTRY, Field, SupportsMultiModal

CLIP = {"arithmetic": "fused", "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "rescale": 1 / 255}
IMAGE, AUDIO = "<|img|>", "<|aud|>"


@REGISTRY.register_loader("halved", version="2")
def halved(values, params):
    """Bytes as half their value."""
    return values.float() / params["by"]


def map_image(ctx, items):
    """As many crops of 6 x 8 as the image is wide, and the image itself."""
    (item,) = items
    pixels = np.asarray(item.image)
    small = np.asarray(item.image.resize((8, 6)))
    crops = np.stack([np.roll(small, number) for number in range(1 + pixels.shape[1] // 64)])
    return {
        "pixel_values": np.ascontiguousarray(crops.transpose(0, 3, 1, 2)),
        "whole": pixels[None],
        "flags": (pixels[..., 0] > 100)[None].astype(np.int64),
        "image_sizes": np.array([pixels.shape[:2]], np.int64),
        "first_width": np.array([pixels.shape[1]], np.int64),
        "listed": pixels[:2].astype(np.float32),
        "halves": crops[:, 0, 0],
    }


def map_audio(ctx, items):
    """Frames of 5 numbers, and windows of 16 of them."""
    (item,) = items
    frames = np.resize(item.waveform, (1 + len(item.waveform) // 3000, 5)).astype(np.float32)
    windows = np.resize(frames, (1 + len(frames) // 16, 16, 5)).transpose(0, 2, 1)
    return {"frames": frames, "windows": np.ascontiguousarray(windows)}


def token_fields(ctx, sample):
    """Which tokens are of images, and a number for each."""
    return {
        "token_type_ids": (sample.ids == ctx.placeholder_id("image")).astype(np.int64),
        "position_in_row": np.arange(len(sample.ids), dtype=np.float32),
    }


@REGISTRY.register_family("every_field", hf_architectures=["EveryField"])
@REGISTRY.register_image_input_mapper(map_image)
@REGISTRY.register_input_mapper("audio", map_audio)
@REGISTRY.register_token_counter("image", lambda ctx, meta: 2 + meta.width // 64)
@REGISTRY.register_token_counter("audio", lambda ctx, meta: 1 + meta.samples // 3000)
@REGISTRY.register_max_multimodal_tokens("image", 100)
@REGISTRY.register_max_multimodal_tokens("audio", 100)
@REGISTRY.register_token_fields(token_fields)
class EveryField(SupportsMultiModal):
    """Made for tests alone."""

    limits = {"image": None, "audio": None}
    placeholders = {"image": IMAGE, "audio": AUDIO}
    fields = {
        "token_type_ids": Field("text", "token", dtype="uint8"),
        "position_in_row": Field("text", "token", dtype="float32"),
        "pixel_values": Field("image", "flat", load="affine", join="pad", params={**CLIP, "picture": "chw"}),
        "whole": Field("image", "flat", dtype="uint8", shape=(0, 0, 3), load="affine", batch_axis=True,
                       params={**CLIP, "picture": "hwc", "mask": "whole_mask"}),
        "flags": Field("image", "flat", dtype="bool", shape=(0, 0), batch_axis=True,
                       params={"forward_dtype": "int64"}),
        "image_sizes": Field("image", "item"),
        "first_width": Field("image", "row"),
        "listed": Field("image", "flat", dtype="float32", shape=(0, 3), join="list"),
        "halves": Field("image", "flat", load="halved", params={"by": 2}),
        "frames": Field("audio", "flat", join="pad", params={"mask": "frames_mask", "frames_axis": -2}),
        "windows": Field("audio", "flat", params={"frames_axis": -1, "frames_per_second": 100}),
    }  # fmt: skip
