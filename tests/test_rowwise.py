"""Families whose items depend on their neighbors, or whose attributes depend on the checkpoint."""

import numpy as np
import pytest
import toy

from omniprep.compiler.encode.rows import MediaCache, encode_planned
from omniprep.compiler.plan.rows import plan_rows
from omniprep.config import BuildConfig
from omniprep.errors import Reject
from omniprep.families import errors
from omniprep.families.loading import load_families
from omniprep.families.records import FamilySpec
from omniprep.media.fetch import MediaRoots
from omniprep.registry import REGISTRY, Field, Registry, SupportsMultiModal


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.write_checkpoint(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return toy.write_rows(tmp_path_factory.mktemp("rows"), 4).parent


@pytest.fixture(scope="module")
def toy_family():
    load_families((str(toy.FAMILY),))
    return REGISTRY.families["toy_vl"].cls


def make(model, cls, *decorators):
    registry = Registry()
    for decorate in decorators:
        cls = decorate(registry)(cls)
    registry.register_family("odd", hf_architectures=["ToyVL"])(cls)
    record = registry.families["odd"]
    return record.cls(record, FamilySpec(model=str(model)), {"architectures": ["ToyVL"]})


def encode(family, media, images, **options):
    row = {
        "messages": [{"role": "user", "content": "<image>" * len(images)}, {"role": "assistant", "content": "x"}],
        "images": list(images),
    }
    config = BuildConfig(model="m", bin_length=4096, **options)
    cache = MediaCache()
    planned = plan_rows([row], family, config, MediaRoots(str(media), (), False))[0]
    if isinstance(planned, Reject):
        raise planned
    return encode_planned(planned, family, config, cache)


def count_tiles(ctx, items):
    """Two tokens for an only image, one for each of several, as a processor does that tiles only images alone."""
    return {"image": [2 if len(items["image"]) == 1 else 1] * len(items["image"])}


def map_tiles(ctx, items):
    tiles = 2 if len(items) == 1 else 1
    return [{"tiles": np.full((tiles, 3), item.meta.width % 256, np.uint8)} for item in items]


def test_items_are_counted_and_mapped_with_their_neighbors(model, media):
    class Tiles(SupportsMultiModal):
        limits = {"image": None}
        placeholders = {"image": "<|img|>"}
        fields = {"tiles": Field("image", "flat", sizes=lambda arguments: len(arguments["tiles"]))}

    family = make(
        model,
        Tiles,
        lambda registry: registry.register_row_counter(count_tiles),
        lambda registry: registry.register_row_mapper("image", map_tiles),
    )
    assert family.by_row and not family.maxima
    placeholder = family.token_id("<|img|>")
    alone = encode(family, media, ["1.png"])
    assert (alone.input_ids == placeholder).sum() == 2
    assert [tiles[:, 0].tolist() for tiles in alone.media["tiles"]] == [[128, 128]]
    both = encode(family, media, ["1.png", "0.png"])
    assert (both.input_ids == placeholder).sum() == 2
    assert [tiles[:, 0].tolist() for tiles in both.media["tiles"]] == [[128], [70]]


def test_a_row_counter_that_leaves_an_item_out(model, media, toy_family):
    family = make(
        model, type("Short", (toy_family,), {}), lambda registry: registry.register_row_counter(lambda ctx, items: {})
    )
    with pytest.raises(errors.CallbackError, match="the row counter gives .* for 1 image items"):
        encode(family, media, ["1.png"])


def test_a_row_mapper_that_leaves_an_item_out(model, media, toy_family):
    decorate = lambda registry: registry.register_row_mapper("image", lambda ctx, items: [])  # noqa: E731
    family = make(model, type("Short", (toy_family,), {}), decorate)
    with pytest.raises(errors.TokenCountMismatchError, match="the row mapper of image gives 0 items for 1"):
        encode(family, media, ["1.png"])


def test_attributes_are_functions_of_the_family_on_its_checkpoint(model, media, toy_family):
    class FromCheckpoint(toy_family):
        def limits(self):
            return {"image": 1 if self.config["architectures"] == ["ToyVL"] else None}

        placeholders = lambda ctx: {"image": "<|img|>"}  # noqa: E731

    family = make(model, FromCheckpoint)
    assert family.limits == {"image": 1} and family.placeholders == {"image": "<|img|>"}
    with pytest.raises(Reject, match="2 image items, the limit is 1"):
        encode(family, media, ["1.png", "0.png"])


def test_a_family_says_whether_its_reference_reads_exif(model, media, toy_family):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (96, 32)).save(media / "turned.jpg", exif=exif)
    turned = make(model, type("Turned", (toy_family,), {"exif": "apply"}))
    assert encode(turned, media, ["turned.jpg"]).media["image_hw"][0].tolist() == [3, 1]
    assert encode(turned, media, ["turned.jpg"], exif="ignore").media["image_hw"][0].tolist() == [1, 3]
    assert encode(make(model, toy_family), media, ["turned.jpg"]).media["image_hw"][0].tolist() == [1, 3]


def test_item_texts_are_placeholders_by_default(model, toy_family):
    from omniprep.families.kinds import MediaMeta

    family = make(model, toy_family)
    metas = [MediaMeta(kind="image", width=64, height=32), MediaMeta(kind="image", width=32, height=32)]
    assert family.item_texts({"image": metas}) == {"image": ["<|img|><|img|>", "<|img|>"]}
