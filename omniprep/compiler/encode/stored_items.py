"""Which pixels `--pixel-codec source` can leave in their files, and the items that it stores.

A family says by `pixel_recipe` how its pixels follow from a file. That is believed only where it was tried: noise is
mapped by the family and made by the recipe, and both must give the same patches. Other columns are stored by delta.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from omniprep.config import BuildConfig
from omniprep.errors import Reject
from omniprep.families.base import Family
from omniprep.families.context import FamilyContext
from omniprep.families.kinds import Decoded, Item, MediaMeta
from omniprep.media.image import decode_image
from omniprep.media.recipe import PixelRecipe, make_pixels, resize_frames
from omniprep.media.resample import resize
from omniprep.media.source import Source
from omniprep.shards.codecs import codec_of, with_codec
from omniprep.shards.codecs.base import PictureCodec
from omniprep.shards.codecs.picture import picture_shapes
from omniprep.shards.files import MediaFile, StoredItem, patches_digest
from omniprep.shards.schema import Column

Array = NDArray[Any]
_TRIED_SIZES = ((180, 140), (60, 310))
"""(width, height) of the noise: wide and tall, no multiples of a patch."""


def codec_columns(ctx: FamilyContext, config: BuildConfig) -> tuple[Column, ...]:
    """The family's columns with the codec of the build; UsageError where its library is absent."""
    return with_codec(ctx.columns, config.pixel_codec, file_columns(ctx, config.pixel_codec).values())


@lru_cache(maxsize=8)
def file_columns(ctx: FamilyContext, pixel_codec: str) -> dict[str, str]:
    """Modality → its column of pixels, where files are stored in place of pixels."""
    if pixel_codec != "source" or ctx.by_row or type(ctx).load_image is not Family.load_image:
        return {}
    result = {}
    for modality in ctx.modalities:
        columns = [column for column in ctx.columns if column.modality == modality and column.picture == "patches"]
        if len(columns) == 1 and _recipes_hold(ctx, modality, columns[0]):
            result[modality] = columns[0].name
    return result


@lru_cache(maxsize=8)
def picture_columns(ctx: FamilyContext, pixel_codec: str) -> tuple[Column, ...]:
    """The columns whose pictures are compressed one by one, with their codec."""
    columns = with_codec(ctx.columns, pixel_codec, file_columns(ctx, pixel_codec).values())
    return tuple(c for c in columns if "codec" in c.params and isinstance(codec_of(c), PictureCodec))


def read_files(item: Item) -> tuple[Item, tuple[MediaFile, ...]]:
    """An item whose sources are the bytes of its files, which are then decoded and stored as one and the same."""
    files = tuple(MediaFile.of(source.read()) for source in item.sources)
    sources = [Source(data=file.data, name=source.label) for file, source in zip(files, item.sources, strict=True)]
    return replace(item, sources=sources), files


def stored_item(
    item: Item, files: tuple[MediaFile, ...], patches: Array, ctx: FamilyContext, config: BuildConfig
) -> StoredItem:
    """What is stored of an item of `file_columns` that gave these patches."""
    recipe = ctx.pixel_recipe(item.modality, item.meta)
    assert recipe is not None, item.modality
    exif: Any = config.exif or ctx.exif
    alpha: Literal["drop", "white", "frames"] = config.alpha
    if item.meta.sizes and alpha != "white":
        alpha = "frames"
    if recipe.video is None:
        recipe = replace(recipe, exif=exif, alpha=alpha)
    return StoredItem(files, recipe, patches_digest(patches))


def _recipes_hold(ctx: FamilyContext, modality: str, column: Column) -> bool:
    """Whether recipes give the patches that the family maps, of noise."""
    try:
        return all(_recipe_holds(ctx, modality, column, size) for size in _TRIED_SIZES)
    except Reject:  # limits that refuse pictures of these sizes: nothing is proved
        return False


def _recipe_holds(ctx: FamilyContext, modality: str, column: Column, size: tuple[int, int]) -> bool:
    noise = np.random.default_rng(0).integers(0, 256, (8, size[1], size[0], 3), np.uint8)
    width, height = size
    if modality == "image":
        source = _png(noise[0])
        decoded = Decoded(MediaMeta(kind="image", width=width, height=height), image=decode_image(source))
        return _equal(ctx, modality, column, decoded, [source], None)
    if modality != "video":
        return False
    meta = MediaMeta(kind="video", width=width, height=height, frames=len(noise), fps=2.0)

    def read(indices: Sequence[int], size: tuple[int, int] | None = None, /) -> Array:
        frames = noise[list(indices)]
        return frames if size is None else resize(frames, size)

    decoded = Decoded(meta, frames=read)
    if not _equal(ctx, modality, column, decoded, [], noise):
        return False
    sources = [_png(frame) for frame in noise[:5]]  # an odd number: the last one fills a pair
    listed = replace(meta, frames=len(sources), sizes=(size,) * len(sources))
    images = [decode_image(source, alpha="frames") for source in sources]
    return _equal(ctx, modality, column, Decoded(listed, images=images), sources, None)


def _equal(
    ctx: FamilyContext, modality: str, column: Column, decoded: Decoded, sources: list[Source], frames: Array | None
) -> bool:
    recipe: PixelRecipe | None = ctx.pixel_recipe(modality, decoded.meta)
    if recipe is None:
        return False
    arguments = ctx.map_item(modality, decoded)
    expected = arguments[column.name]
    pixels = make_pixels(sources, recipe) if frames is None else resize_frames(frames[list(recipe.frames)], recipe)
    count, shape = picture_shapes(column, len(expected), arguments[column.size_source()[0]][0])
    if shape is None or pixels.size != expected.size or pixels.shape[1:3] != (shape.height, shape.width):
        return False
    patches = np.empty_like(expected)
    for own, picture in zip(np.split(patches, count), np.split(pixels, count), strict=True):
        shape.fill_patches(own, picture)
    return np.array_equal(patches, expected)


def _png(pixels: Array) -> Source:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Source(data=file.getvalue())
