"""Prompt files of `omniprep export --prompts tokens`: their columns, and what vLLM's `generate` is given of a line.

Contract: vLLM's TokensPrompt (vllm/inputs/llm.py). `prompt_token_ids` hold one placeholder an item, since vLLM expands
them itself. `multi_modal_data` holds decoded pictures and frames: vLLM takes a dictionary of tensors for an image or a
video only as finished embeddings ("image_embeds" with "image_grid_thw"), never as "pixel_values". For the audio of
Qwen2.5-Omni it takes the spectrogram ("input_audio_features", "audio_feature_lengths").
"""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from omniprep.errors import OmniprepError

_FORMAT = b"omniprep.prompts"
_MEDIA = pa.struct(
    [
        ("modality", pa.string()),
        ("uuid", pa.string()),
        ("pictures", pa.list_(pa.binary())),
        ("features", pa.binary()),
        ("bands", pa.int32()),
    ]
)
PROMPT_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("line", pa.int64()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("answer_token_ids", pa.list_(pa.int32())),
        ("answer", pa.string()),
        ("media", pa.list_(_MEDIA)),
    ],
    metadata={_FORMAT: b"1"},
)
"""A line a prompt. Of `media`, in the order of their placeholders: `pictures` are PNG, one of an image and one a frame
of a video; `features` a spectrogram, bfloat16 (bands, audio frames), of an audio."""


def read_prompts(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The prompts of a file that `omniprep export --prompts tokens` wrote, in its order.

    Yields:
        source (str), line (int): The row in the build's inputs. prompt: a dictionary for vLLM's `LLM.generate`.
        answer (str), answer_token_ids (list of int): The row's last answer, for rewards.

    Raises:
        OmniprepError: The file is not such a file.
    """
    try:
        file = pq.ParquetFile(os.fspath(path), pre_buffer=False)
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise OmniprepError(f"{path}: no file of prompts ({' '.join(str(error).split())[:200]})") from error
    with file:
        if (file.schema_arrow.metadata or {}).get(_FORMAT) != PROMPT_SCHEMA.metadata[_FORMAT]:
            raise OmniprepError(f"{path}: not written by omniprep export --prompts tokens")
        for batch in file.iter_batches(batch_size=16):  # 16 rows of ten pictures of 1 MB each are 160 MB
            for line in batch.to_pylist():
                yield {
                    "source": line["source"],
                    "line": line["line"],
                    "prompt": vllm_prompt(line["prompt_token_ids"], line["media"]),
                    "answer": line["answer"],
                    "answer_token_ids": line["answer_token_ids"],
                }


def vllm_prompt(prompt_token_ids: list[int], media: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A TokensPrompt of vLLM for the columns of a line."""
    prompt: dict[str, Any] = {"prompt_token_ids": prompt_token_ids}
    if not media:
        return prompt
    items: dict[str, list[Any]] = {}
    uuids: dict[str, list[str]] = {}
    for item in media:
        modality = item["modality"]
        uuids.setdefault(modality, []).append(item["uuid"])
        items.setdefault(modality, []).append(_spectrogram(item) if modality == "audio" else _pictures(item))
    if "audio" in items:
        spectrograms = items["audio"]
        items["audio"] = {  # type: ignore[assignment]  # one dictionary for all clips of the prompt
            "input_audio_features": torch.cat(spectrograms, dim=1),
            "audio_feature_lengths": torch.tensor([one.shape[1] for one in spectrograms]),
        }
    prompt |= {"multi_modal_data": items, "multi_modal_uuids": uuids}
    if "image" in items or "video" in items:
        # The pictures have the size that the model sees. A processor would resize those outside its own limits again.
        prompt["mm_processor_kwargs"] = {"do_resize": False}
    if "video" in items:
        prompt["mm_processor_kwargs"]["do_sample_frames"] = False
    return prompt


def _pictures(item: Mapping[str, Any]) -> Any:
    """A PIL image, or the frames of a video as uint8 (frames, height, width, 3)."""
    pictures = [Image.open(io.BytesIO(png)).convert("RGB") for png in item["pictures"]]
    return pictures[0] if item["modality"] == "image" else np.stack([np.asarray(picture) for picture in pictures])


def _spectrogram(item: Mapping[str, Any]) -> torch.Tensor:
    """float32 (bands, audio frames)."""
    values = np.frombuffer(item["features"], np.int16).reshape(item["bands"], -1)
    return torch.from_numpy(values.copy()).view(torch.bfloat16).float()
