"""How pixels lie in a shard: raw, compressed, or as the files that they are made of, as the column's params say.

A codec is the class `Codec` of the module of its name in this folder; the names are the choices of `--pixel-codec`
(`omniprep.config.PixelCodecName`). The params say which codec wrote a column, so a shard is read without its config,
and no other column is concerned.
"""

from collections.abc import Container, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import get_args

from omniprep.config import PixelCodecName
from omniprep.errors import DamagedDataError, UsageError
from omniprep.shards.codecs.base import PatchCodec, PixelCodec
from omniprep.shards.schema import Column, Layout

__all__ = [
    *(
        "CODECS",
        "FALLBACK",
        "chosen_codec",
        "codec_names",
        "codec_of",
        "load_speed",
        "recoded",
        "size_of_delta",
        "with_codec",
    ),
    "without_codec",
]

CODECS: tuple[str, ...] = get_args(PixelCodecName)
RAW_SPEED = 10e9
"""Raw patches are read and no more (benchmarks/results/load_codecs.json)."""
FALLBACK = "delta"
"""What stores pixels that do not follow from a file alone, where `source` is asked for."""


@cache
def _codec(name: str) -> PixelCodec:
    codec: PixelCodec = import_module(f"omniprep.shards.codecs.{name}").Codec()
    return codec


def with_codec(columns: Sequence[Column], name: str, from_files: Container[str] = ()) -> tuple[Column, ...]:
    """The columns with pixels stored by a codec ("raw": as they are); UsageError where its library is absent.

    `from_files` names the columns that `source` can store; it stores other pixels by `FALLBACK`.
    """
    if name not in CODECS:
        raise UsageError(f"--pixel-codec {name!r} is not known; known: {', '.join(CODECS)}")
    result = []
    for column in columns:
        if column.picture:
            own = FALLBACK if name == "source" and column.name not in from_files else name
            chosen = {} if own == "raw" else {"codec": own, "codec_library": _codec(own).library()}
            params = {key: value for key, value in column.params.items() if key not in ("codec", "codec_library")}
            column = replace(column, params=params | chosen)
        result.append(column)
    return tuple(result)


def recoded(columns: Sequence[Column], name: str) -> tuple[Column, ...]:
    """The columns of a dataset with another codec; `source` keeps what is stored as files."""
    return with_codec(columns, name, {key for key, codec in codec_names(columns).items() if codec == "source"})


def chosen_codec(columns: Sequence[Column]) -> str | None:
    """The --pixel-codec that a dataset's columns are stored by; None where none holds pictures."""
    names = set(codec_names(columns).values())
    return "source" if "source" in names else min(names, default=None)


def without_codec(layout: Layout) -> Layout:
    """The layout of the same bins with their pixels stored raw: equal for bins that differ in the codec alone."""
    return replace(layout, columns=with_codec(layout.columns, "raw"))


def size_of_delta(name: str) -> float:
    """Stored bytes of pictures by those that delta takes, about; `name` is not raw, for source its fallback counts."""
    codec = _codec(FALLBACK if name == "source" else name)
    assert isinstance(codec, PatchCodec), name
    return codec.size_of_delta


def load_speed(name: str) -> float:
    """Bytes of patches that a core loads in a second, about; `name` is one of `CODECS`."""
    return RAW_SPEED if name == "raw" else _codec(name).speed


def codec_names(columns: Sequence[Column]) -> dict[str, str]:
    """The codec of each column that holds pictures, by the column's name."""
    return {column.name: column.params.get("codec", "raw") for column in columns if column.picture}


def codec_of(column: Column) -> PixelCodec:
    """The codec that a column names in its params; DamagedDataError for one that this version does not know."""
    name = column.params["codec"]
    if name not in CODECS or name == "raw":
        raise DamagedDataError(
            f"column {column.name!r}: pixel codec {name!r} is not known; known: {', '.join(CODECS)} (a newer omniprep "
            "may have written it)"
        )
    return _codec(name)
