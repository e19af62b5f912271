"""How pixels lie in a shard: raw, or by a codec that the column itself names in its params.

A codec is the class `Codec` of the module of its name in this folder; the names are the choices of `--pixel-codec`
(`omniprep.config.PixelCodecName`). The params say which codec wrote a column, so a shard is read without its config,
and no other column is concerned.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import get_args

from omniprep.config import PixelCodecName
from omniprep.errors import DamagedDataError, UsageError
from omniprep.shards.codecs.base import PixelCodec
from omniprep.shards.schema import Column, Layout

__all__ = ["CODECS", "codec_of", "stored_share", "with_codec", "without_codec"]

CODECS: tuple[str, ...] = get_args(PixelCodecName)


@cache
def _codec(name: str) -> PixelCodec:
    codec: PixelCodec = import_module(f"omniprep.shards.codecs.{name}").Codec()
    return codec


def with_codec(columns: Sequence[Column], name: str) -> tuple[Column, ...]:
    """The columns with pixels stored by a codec ("raw": as they are); UsageError where its library is absent."""
    if name not in CODECS:
        raise UsageError(f"--pixel-codec {name!r} is not known; known: {', '.join(CODECS)}")
    chosen = {} if name == "raw" else {"codec": name, "codec_library": _codec(name).library()}
    result = []
    for column in columns:
        if column.picture:
            params = {key: value for key, value in column.params.items() if key not in ("codec", "codec_library")}
            column = replace(column, params=params | chosen)
        result.append(column)
    return tuple(result)


def without_codec(layout: Layout) -> Layout:
    """The layout of the same bins with their pixels stored raw: equal for bins that differ in the codec alone."""
    return replace(layout, columns=with_codec(layout.columns, "raw"))


def stored_share(name: str) -> float:
    """Stored bytes by bytes of the patches, about; `name` is one of `CODECS`."""
    return 1.0 if name == "raw" else _codec(name).share


def codec_of(column: Column) -> PixelCodec:
    """The codec that a column names in its params; DamagedDataError for one that this version does not know."""
    name = column.params["codec"]
    if name not in CODECS or name == "raw":
        raise DamagedDataError(
            f"column {column.name!r}: pixel codec {name!r} is not known; known: {', '.join(CODECS)} (a newer omniprep "
            "may have written it)"
        )
    return _codec(name)
