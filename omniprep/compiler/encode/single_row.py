"""One row as a bin or a batch of its own, by the functions of the build and without files.

For tests, `verify --deep`, `doctor`, `export` and `infer`.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from omniprep.compiler.encode.rows import IGNORE, MediaCache, encode_planned, make_bin, shard_schema
from omniprep.compiler.plan.rows import plan_rows
from omniprep.config import BuildConfig
from omniprep.errors import Reject
from omniprep.families.context import FamilyContext
from omniprep.media.fetch import MediaRoots
from omniprep.modalities import MODALITIES
from omniprep.rows.columns import Columns, Preference, parse_columns
from omniprep.rows.normalize import normalize
from omniprep.rows.preference import preferred_row
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


def encode_row(
    row: Any, ctx: FamilyContext, config: BuildConfig, base_dir: str = ".", *, preferences: bool = False
) -> dict[str, torch.Tensor]:
    """One raw row as the arguments of the model's forward, equal to `PackedDataset.row` of a build with it.

    `preferences`: that of a build with preference rows, which this may be none of.
    """
    return as_batch(encode_bin(row, ctx, config, base_dir), ctx, config, preferences=preferences)


def prompt_row(
    row: Any, columns: Columns = (), *, preference: Preference = "auto", template_keys: bool = False
) -> dict[str, Any]:  # fmt: skip
    """A raw row without its last answer, and the calls that end in it, under the standard names of columns.

    Args:
        row: As it stands in the input.
        columns: The build's `--columns`.
        preference: The build's `--preference`; of a pair this is the prompt of the preferred answer.
        template_keys: Keep what a chat template of the checkpoint reads of messages.
    """
    row, columns = preferred_row(row, preference, columns)
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


def last_answer(row: Any, columns: Columns = (), preference: Preference = "auto") -> str | None:
    """The text of the last assistant message, or None; of a pair the preferred one."""
    row, columns = preferred_row(row, preference, columns)
    messages = normalize(row, columns).messages
    if not messages or messages[-1]["role"] != "assistant":
        return None
    content = messages[-1]["content"]
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def encode_prompt(row: Any, ctx: FamilyContext, config: BuildConfig, base_dir: str = ".") -> dict[str, torch.Tensor]:
    """The row's chat up to its last answer, where the model is to go on (inference); labels are all -100."""
    prompt = prompt_row(
        row, parse_columns(config.columns), preference=config.preference, template_keys=ctx.renderer is not None
    )
    # The columns have their standard names now, and only one chat is left; an answer goes on where the row ends, so no
    # pad tokens.
    config = replace(config, columns=(), pad_rows_to=0, preference="ignore")
    encoded = encode_bin(prompt, ctx, config, base_dir, generate=True)
    encoded.labels = np.full_like(encoded.labels, IGNORE)
    return as_batch(encoded, ctx, config)


def as_batch(
    encoded: Bin, ctx: FamilyContext, config: BuildConfig, *, preferences: bool = False
) -> dict[str, torch.Tensor]:
    """A bin as the arguments of the model's forward; `preferences` as of `encode_row`."""
    from omniprep.data.collate import collate
    from omniprep.shards.pairs import with_repeated_media

    preferences = preferences or encoded.pair_ids is not None
    schema = shard_schema(ctx, replace(config, pixel_codec="raw"), preferences=preferences)
    packed = make_bin([encoded], [0], preferences=preferences)
    stored = with_repeated_media(decode(serialize_bin(packed, schema), schema, read_layout(schema)))
    arguments: dict[str, torch.Tensor] = collate([stored])
    return arguments
