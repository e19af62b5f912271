"""Whether a processor's floats of pixels follow from bytes, proved on noise, so that bytes can be stored."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omniprep.errors import Reject
from omniprep.families.hf.forms import Form, same_values, to_numpy
from omniprep.families.hf.runner import Example, Runner
from omniprep.shards.affine import affine_params

WITHOUT_ARITHMETIC = {"do_rescale": False, "do_normalize": False}
"""Kwargs by which image and video processors give the bytes that they would make floats of."""
PIXEL_SETTINGS = {"image": "images_kwargs", "video": "videos_kwargs"}


def learn_pixels(
    runner: Runner, modality: str, examples: Sequence[Example], forms: Mapping[str, Form]
) -> dict[str, dict[str, Any]]:
    """By tensor of floats, the arithmetic that makes it of bytes; {} where one is not made of bytes."""
    floats = [name for name, form in forms.items() if form.dtype == "float32" and form.layout == "flat"]
    if modality not in PIXEL_SETTINGS or not floats or any(forms[name].is_list for name in floats):
        return {}
    part = getattr(runner.processor, f"{modality}_processor")
    settings = {PIXEL_SETTINGS[modality]: WITHOUT_ARITHMETIC}
    try:
        outcomes = [runner.run({modality: [example.item]}, settings) for example in examples]
    except Reject:
        return {}
    for example, outcome in zip(examples, outcomes, strict=True):
        rest = set(example.outcome.tensors) - set(floats)
        if set(outcome.tensors) != set(example.outcome.tensors) or outcome.texts != example.outcome.texts:
            return {}
        if not all(same_values(outcome.tensors[name], example.outcome.tensors[name]) for name in rest):
            return {}
    params = {}
    for name in floats:
        pairs = [
            (as_bytes(to_numpy(outcome.tensors[name])), to_numpy(example.outcome.tensors[name]))
            for outcome, example in zip(outcomes, examples, strict=True)
        ]
        found = _arithmetic(pairs, part, runner.settings.get(PIXEL_SETTINGS[modality], {}))
        if found is None:
            return {}
        params[name] = found | (patch_params(part, name, forms, examples) if "channel_run" in found else {})
    return params


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to 255 as bytes, as some processors put them into a buffer of floats; others as they are."""
    if array.dtype != np.float32:
        return array
    pixels = array.astype(np.uint8)
    return pixels if (pixels == array).all() else array


def _arithmetic(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], part: Any, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The arithmetic of (bytes, floats) of the examples, and which axis holds the channels."""

    def setting(name: str) -> Any:
        return settings.get(name, getattr(part, name, None))

    mean, std, rescale = (setting(name) for name in ("image_mean", "image_std", "rescale_factor"))
    if not setting("do_normalize"):
        mean = std = None
    if not setting("do_rescale"):
        rescale = None
    if any(pixels.dtype != np.uint8 or pixels.shape != floats.shape or not pixels.ndim for pixels, floats in pairs):
        return None
    lists = [list(value) if isinstance(value, list | tuple) else None for value in (mean, std)]
    for layout in _channel_layouts(pairs[0][0], getattr(part, "patch_size", None)):
        by_channel = [[_channels_first(array, layout) for array in pair] for pair in pairs]
        if any(array is None for pair in by_channel for array in pair):
            continue
        pixels, floats = (np.concatenate([pair[side] for pair in by_channel], axis=1) for side in (0, 1))
        params = affine_params(pixels, floats, 0, mean=lists[0], std=lists[1], rescale=rescale)
        if params is not None:
            return {**params, **layout}
    return None


def _channel_layouts(pixels: np.ndarray, patch_size: Any) -> list[dict[str, Any]]:
    """Where the channels may stand, as params of a column: whole pictures, or flat patches of which each channel has a
    run of values (channels first in a patch, last, or in the middle of a patch of several frames).
    """
    layouts: list[dict[str, Any]] = [{"picture": "chw"}, {"picture": "hwc"}]
    runs = [pixels.shape[-1] // 3, 1]
    if isinstance(patch_size, int):
        runs.append(patch_size**2)
    return layouts + [{"channel_run": run} for run in runs if run and pixels.shape[-1] % (3 * run) == 0]


def _channels_first(array: np.ndarray, layout: Mapping[str, Any]) -> np.ndarray | None:
    """(3, values) of an array whose channels stand as the layout says; None where they cannot."""
    run = layout.get("channel_run")
    if run is not None:
        return np.ascontiguousarray(np.moveaxis(array.reshape(-1, 3, run), 1, 0)).reshape(3, -1)
    axis = {"chw": -3, "hwc": -1}[layout["picture"]]
    if array.ndim < 4 or array.shape[axis] != 3:
        return None
    return np.ascontiguousarray(np.moveaxis(array, axis, 0)).reshape(3, -1)


def patch_params(part: Any, name: str, forms: Mapping[str, Form], examples: Sequence[Example]) -> dict[str, Any]:
    """How patches make pictures (by which they are compressed), where they are in Qwen2-VL's form; else {}."""
    patch, merge, frames = (getattr(part, key, None) for key in ("patch_size", "merge_size", "temporal_patch_size"))
    if not all(isinstance(size, int) for size in (patch, merge, frames)):
        return {}
    assert isinstance(patch, int) and isinstance(frames, int)
    if forms[name].shape != (3 * frames * patch**2,):
        return {}
    for grid, form in forms.items():
        units = [
            (len(example.outcome.tensors[name]), to_numpy(example.outcome.tensors[grid]))
            for example in examples
            if form.layout == "flat" and form.shape == (3,) and form.dtype in ("int32", "int64")
        ]
        if units and all(vector.shape == (1, 3) and vector.prod() == number for number, vector in units):
            sides = {"patch_size": patch, "merge_size": merge, "temporal_patch_size": frames}
            return {"picture": "patches", "sizes": f"prod({grid})", **sides}
    return {}
