"""One row as a bin or a batch of its own, by the functions of the build and without files.

For tests, `verify --deep`, `doctor`, `export` and `infer`.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from omniprep.compiler.encode.rows import IGNORE, MediaCache, encode_planned, shard_schema
from omniprep.compiler.plan.rows import plan_rows
from omniprep.config import BuildConfig
from omniprep.errors import Reject
from omniprep.families.context import FamilyContext
from omniprep.media.fetch import MediaRoots
from omniprep.modalities import MODALITIES
from omniprep.rows.columns import Columns, parse_columns
from omniprep.rows.normalize import normalize
from omniprep.shards.reader import decode
from omniprep.shards.schema import Bin, read_layout
from omniprep.shards.writer import serialize_bin


def encode_bin(
    row: Any, ctx: FamilyContext, config: BuildConfig, base_dir: str = ".", *, generate: bool = False
) -> Bin:
    """One raw row as a bin of its own, or its Reject; `generate` leaves the last answer open (inference)."""
    config = replace(config, pixel_codec="raw")  # what is read at once need be neither compressed nor left in files
    media_roots = MediaRoots(base_dir, config.media_root, config.allow_http)
    planned = plan_rows([row], ctx, config, media_roots, generate=generate)[0]
    if isinstance(planned, Reject):
        raise planned
    return encode_planned(planned, ctx, config, MediaCache(0))


def encode_row(row: Any, ctx: FamilyContext, config: BuildConfig, base_dir: str = ".") -> dict[str, torch.Tensor]:
    """One raw row as the arguments of the model's forward, equal to `PackedDataset.row` of a build with it."""
    return as_batch(encode_bin(row, ctx, config, base_dir), ctx, config)


def prompt_row(row: Any, columns: Columns = (), *, template_keys: bool = False) -> dict[str, Any]:
    """A raw row without its last answer, and the calls that end in it, under the standard names of columns.

    Args:
        row: As it stands in the input.
        columns: The build's `--columns`.
        template_keys: Keep what a chat template of the checkpoint reads of messages.
    """
    chat = normalize(row, columns, template_keys=template_keys)
    while chat.messages and chat.messages[-1]["role"] in ("assistant", "tool_call"):
        chat.messages.pop()
    system = [] if chat.system is None else [{"role": "system", "content": chat.system}]
    prompt = {
        "messages": [*system, *chat.messages],
        **{MODALITIES[modality].column: items for modality, items in chat.media.items()},
        "objects": chat.objects,
        "tools": chat.tools,
        "chat_template_kwargs": chat.kwargs,
    }
    return {name: value for name, value in prompt.items() if value or name == "messages"}


def last_answer(row: Any, columns: Columns = ()) -> str | None:
    """The text of the last assistant message, or None."""
    messages = normalize(row, columns).messages
    if not messages or messages[-1]["role"] != "assistant":
        return None
    content = messages[-1]["content"]
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def encode_prompt(row: Any, ctx: FamilyContext, config: BuildConfig, base_dir: str = ".") -> dict[str, torch.Tensor]:
    """The row's chat up to its last answer, where the model is to go on (inference); labels are all -100."""
    prompt = prompt_row(row, parse_columns(config.columns), template_keys=ctx.renderer is not None)
    # The columns have their standard names now; an answer goes on where the row ends, so no pad tokens.
    config = replace(config, columns=(), pad_rows_to=0)
    encoded = encode_bin(prompt, ctx, config, base_dir, generate=True)
    encoded.labels = np.full_like(encoded.labels, IGNORE)
    return as_batch(encoded, ctx, config)


def as_batch(encoded: Bin, ctx: FamilyContext, config: BuildConfig) -> dict[str, torch.Tensor]:
    """A bin as the arguments of the model's forward."""
    from omniprep.data.collate import collate

    schema = shard_schema(ctx, replace(config, pixel_codec="raw"))
    stored = decode(serialize_bin(encoded, schema), schema, read_layout(schema))
    arguments: dict[str, torch.Tensor] = collate([stored])
    return arguments
