"""Fields of any family: what a mapper gives is what a trainer gets, whatever the layout, the join and the type."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omniprep.compiler.encode.copied_bins import _media_items as _items
from omniprep.compiler.encode.rows import make_bin
from omniprep.data.collate import collate
from omniprep.errors import OmniprepError
from omniprep.inspect.media import media_of
from omniprep.shards.affine import ARITHMETIC, affine_params, byte_floats
from omniprep.shards.codecs import with_codec
from omniprep.shards.cut import cut_row
from omniprep.shards.reader import decode
from omniprep.shards.schema import METADATA_KEY, Bin, Column, arrow_schema, read_layout, storage_dtype
from omniprep.shards.writer import serialize_bin

MODALITIES = ("image", "audio")
CLIP = {"arithmetic": "fused", "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "rescale": 1 / 255}


def flat(name, dtype, shape, modality="image", **more):
    return Column(name=name, modality=modality, kind="flat", dtype=dtype, shape=shape, **more)


COLUMNS = {
    column.name: column
    for column in (
        Column(name="token_type_ids", modality="text", kind="tokens", dtype="uint8"),
        Column(name="token_weight", modality="text", kind="tokens", dtype="float32"),
        Column(name="token_flag", modality="text", kind="tokens", dtype="bool"),
        Column(name="image_sizes", modality="image", kind="items", dtype="int32", shape=(2,)),
        Column(name="ratio", modality="image", kind="items", dtype="float64", shape=(1,), batch_axis=True),
        Column(name="has_tiles", modality="image", kind="items", dtype="bool"),
        Column(name="batch_num_images", modality="image", kind="rows", dtype="int64"),
        flat("crops", "uint8", (3, 5, 4), load="affine", params={**CLIP, "picture": "chw"}),
        flat("crops_last", "uint8", (5, 4, 3), load="affine", params={**CLIP, "picture": "hwc"}, batch_axis=True),
        flat("planes", "uint8", (2, 5, 4), load="affine", params={"arithmetic": "numpy", "rescale": 0.5}),
        flat("tiles", "uint8", (3, 5, 4), load="affine", params={**CLIP, "picture": "chw"}, join="pad"),
        flat("strips", "uint8", (12,), load="affine", params={**CLIP, "channel_run": 2}, join="pad"),
        flat("any_size", "uint8", (3, 0, 0), load="affine", params={**CLIP, "picture": "chw", "mask": "pixel_mask"}),
        flat("one_by_one", "uint8", (0, 0, 3), load="affine", params={**CLIP, "picture": "hwc"}, join="list"),
        flat("windows", "float32", (4, 6), modality="audio", params={"frames_axis": -1}),
        flat("features", "float32", (4,), modality="audio", join="pad",
             params={"frames_axis": -2, "mask": "features_mask", "mask_dtype": "bool"}),
        flat("mels", "float64", (4, 0), modality="audio",
             params={"frames_axis": -1, "pad_value": -1, "pad_to": [9], "mask": "mels_mask"}),
        flat("halves", "float16", (2,), modality="audio"),
        flat("frame_mask", "bool", (), modality="audio", join="pad"),
        flat("codes", "int16", (0,), modality="audio", join="pad", params={"pad_value": -1, "forward_dtype": "int64"}),
    )
}  # fmt: skip


def random_bin(rng, rows, columns):
    """Rows as bins of their own, of random tokens, items and units, and the items of each column."""
    bins = []
    for _ in range(rows):
        tokens = int(rng.integers(1, 7))
        counts = [int(rng.integers(0, 3)) for _ in MODALITIES]
        media = {}
        for column in columns:
            count = tokens if column.kind == "tokens" else counts[MODALITIES.index(column.modality)]
            if column.kind == "tokens":
                media[column.name] = [random_array(rng, (tokens,), column)]
            elif column.kind == "rows":
                media[column.name] = [random_array(rng, column.shape, column)] if count else []
            elif column.kind == "items":
                media[column.name] = [random_array(rng, column.shape, column) for _ in range(count)]
            else:
                shapes = [[int(rng.integers(1, 4)), *(n or int(rng.integers(1, 8)) for n in column.shape)]
                          for _ in range(count)]  # fmt: skip
                media[column.name] = [random_array(rng, shape, column) for shape in shapes]
        bins.append(
            Bin(
                input_ids=rng.integers(0, 99, tokens).astype(np.int32),
                labels=np.full(tokens, -100, np.int32),
                position_ids=None,
                cu_seqlens=np.array([0, tokens], np.int32),
                row_ids=np.zeros(1, np.int32),
                row_items=np.array([counts], np.int32),
                media=media,
            )
        )
    return bins


def random_array(rng, shape, column):
    values = rng.integers(0, 2 if column.dtype == "bool" else 200, shape)
    return values.astype(storage_dtype(column.dtype))


def floats(column, item):
    """What the declared arithmetic makes of an item, straight from its definition."""
    table = byte_floats(column.params)
    if "channel_run" in column.params:
        channel = (np.arange(item.shape[-1]) // column.params["channel_run"]) % len(table)
        return table[channel, item]
    if len(table) == 1:
        return table[0][item]
    axis = -3 if column.params["picture"] == "chw" else -1
    last = np.moveaxis(item, axis, -1)
    return np.moveaxis(table[np.arange(len(table)), last], -1, axis)


def expected(column, rows):
    """The forward argument, and the mask, as docs/format.md says them: the long way, item by item."""
    items = [array for row in rows for array in row.media[column.name]]
    if not items:
        return {}
    if column.kind == "tokens":
        value = np.concatenate(items)[None]
        return {column.name: value.astype(np.int64) if value.dtype == np.uint8 else value}
    if column.kind != "flat":
        value = np.stack(items)
        value = value.astype(np.int64) if value.dtype.kind == "i" else value
        return {column.name: value[None] if column.batch_axis else value}
    if column.load == "affine":
        items = [floats(column, item) for item in items]
    if column.join == "list":
        return {column.name: items}
    largest = [max(sizes) for sizes in zip(*(item.shape for item in items), strict=True)]
    stacked = column.join == "pad"
    if column.params.get("pad_to"):
        largest[-1] = max(largest[-1], column.params["pad_to"][0])
    parts, masks = [], []
    for item in items:
        widths = [(0, 0 if axis == 0 and not stacked else most - size)
                  for axis, (most, size) in enumerate(zip(largest, item.shape, strict=True))]  # fmt: skip
        parts.append(np.pad(item, widths, constant_values=column.params.get("pad_value", 0)))
        masks.append(np.pad(np.ones(item.shape, bool), widths))
    join = np.stack if stacked else np.concatenate
    value, mask = join(parts), join(masks)
    value = value.astype(column.params.get("forward_dtype", value.dtype))
    result = {column.name: value[None] if column.batch_axis else value}
    if "mask" in column.params:
        kept = tuple(axis for axis in range(mask.ndim) if axis not in (0, *column.padded_axes))
        result[column.params["mask"]] = mask.any(axis=kept).astype(column.params.get("mask_dtype", "int64"))
    return result


def same(given, wanted):
    if isinstance(wanted, list):
        return len(given) == len(wanted) and all(same(a, b) for a, b in zip(given, wanted, strict=True))
    array = given.numpy()
    return array.dtype == wanted.dtype and array.shape == wanted.shape and array.tobytes() == wanted.tobytes()


def stored(bins, schema):
    layout = read_layout(schema)
    return decode(serialize_bin(make_bin(bins, list(range(len(bins)))), schema), schema, layout)


@pytest.mark.parametrize("codec", ["raw", "delta", "webp", "jxl"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 4), others=st.integers(0, 3))
def test_any_column_comes_back_as_the_mapper_gave_it(codec, seed, rows, others):
    if codec == "jxl":
        pytest.importorskip("pillow_jxl", reason="JPEG XL comes with pillow-jxl-plugin (omniprep[jxl])")
    columns = with_codec(tuple(COLUMNS.values()), codec)
    schema = arrow_schema(columns, family="f", modalities=MODALITIES, mrope=False)
    rng = np.random.default_rng(seed)
    first, second = random_bin(rng, rows, columns), random_bin(rng, others, columns)
    bins = [stored(part, schema) for part in (first, second) if part]
    arguments = collate(bins)
    wanted = {}
    for column in COLUMNS.values():
        wanted |= expected(column, first + second)
    extra = {"input_ids", "labels", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    assert set(arguments) - extra - {"use_cache"} == set(wanted)  # nothing for media that no row has
    for name, value in wanted.items():
        assert same(arguments[name], value), name
    for number, row in enumerate(first):  # one row of the bin, as ds.row and repack take it
        cut = cut_row(bins[0], number)
        alone = collate([cut])
        again = make_bin([Bin(**{name: cut[name] for name in ("input_ids", "labels", "cu_seqlens", "row_ids",
                                                              "row_items")}, position_ids=None, media=_items(cut))], [0])  # fmt: skip
        assert serialize_bin(again, schema).tobytes() == serialize_bin(make_bin([row], [0]), schema).tobytes()
        for column in COLUMNS.values():
            for name, value in expected(column, [row]).items():
                assert same(alone[name], value), name


@pytest.mark.parametrize("name", ["crops", "any_size", "windows"])
def test_an_argument_of_items_that_are_all_empty_is_left_out(name):
    """Tiles of pictures too small for any: processors give no tensor, and classes fail at an empty one."""
    column = COLUMNS[name]
    if "mask" in column.params:  # which says of each item that it is empty
        column = flat(name, "uint8", (3, 0, 0))
    schema = arrow_schema([column], family="f", modalities=MODALITIES, mrope=False)
    counts = [[int(modality == column.modality) for modality in MODALITIES]]

    def one(units):
        item = np.ones((units, *(size or 2 for size in column.shape)), storage_dtype(column.dtype))
        return Bin(
            input_ids=np.ones(3, np.int32), labels=np.ones(3, np.int32), position_ids=None,
            cu_seqlens=np.array([0, 3], np.int32), row_ids=np.zeros(1, np.int32), row_items=np.array(counts, np.int32),
            media={name: [item]},
        )  # fmt: skip

    empty, full = stored([one(0)], schema), stored([one(2)], schema)
    assert name not in collate([empty]) and name not in collate([stored([one(0), one(0)], schema)])
    both = collate([empty, full])[name]
    assert both.shape[0] == 2 and torch.equal(both, collate([full])[name])


def test_join_batch_takes_items_of_one_shape_alone():
    column = flat("views", "float32", (2,), join="batch")
    schema = arrow_schema([column], family="f", modalities=MODALITIES)
    row = random_bin(np.random.default_rng(0), 1, [])[0]
    row.row_items = np.array([[2, 0]], np.int32)
    row.media = {"views": [np.ones((3, 2), np.float32), np.zeros((3, 2), np.float32)]}
    assert collate([stored([row], schema)])["views"].shape == (2, 3, 2)
    row.media["views"][1] = np.zeros((1, 2), np.float32)
    with pytest.raises(OmniprepError, match="'views': join 'batch' takes items of one shape, these are 3x2, 1x2"):
        collate([stored([row], schema)])


def test_padding_does_not_fill_the_memory():
    column = flat("any_size", "float32", (0, 0))
    schema = arrow_schema([column], family="f", modalities=MODALITIES)
    row = random_bin(np.random.default_rng(0), 1, [])[0]
    row.row_items = np.array([[2, 0]], np.int32)
    row.media = {"any_size": [np.ones((1, 1, 100_000), np.float32), np.ones((1, 100_000, 1), np.float32)]}
    with pytest.raises(OmniprepError, match="200,000 values padded to 2x100000x100000 would fill the memory"):
        collate([stored([row], schema)])


@pytest.mark.parametrize("arithmetic", ARITHMETIC[:-1])
@pytest.mark.parametrize(
    ("rescale", "normalized"), [(None, True), (1 / 255, True), (1 / 255, False), (1 / 127.5, False)]
)
def test_affine_params_are_found_from_an_example(arithmetic, rescale, normalized):
    mean, std = ([0.4, 0.5], [0.3, 0.2]) if normalized else (None, None)
    params = {"arithmetic": arithmetic, "channels": 2}
    params |= {"mean": mean, "std": std} if normalized else {}
    params |= {"rescale": rescale} if rescale else {}
    pixels = np.stack([np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8)[::-1]])[None]
    made = byte_floats(params)[np.arange(2)[:, None], pixels[0]][None]
    known = affine_params(pixels, made, 1, mean=mean, std=std, rescale=rescale)
    assert known["arithmetic"] != "table" and np.array_equal(byte_floats(known), byte_floats(params))
    unknown = affine_params(pixels, made, 1)
    assert unknown["arithmetic"] == "table" and np.array_equal(byte_floats(unknown), byte_floats(params))
    made[0, 0, 0] = 7.0  # another float for the same byte in the same channel, seen twice
    twice = np.concatenate([pixels, pixels])
    assert affine_params(twice, np.concatenate([made, made[:, :, :] * 0]), 1) is None


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
@pytest.mark.parametrize("options", [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}],
                         ids=str)  # fmt: skip
def test_affine_floats_are_those_of_a_processor(backend, options):
    pytest.importorskip("transformers.image_processing_backends", reason="transformers 4 has other modules")
    from transformers.models.clip import image_processing_clip as torchvision_clip
    from transformers.models.clip import image_processing_pil_clip as pil_clip

    cls = {"torchvision": torchvision_clip.CLIPImageProcessor, "pil": pil_clip.CLIPImageProcessorPil}[backend]
    processor = cls(do_resize=False, do_center_crop=False, do_convert_rgb=False, **options)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 60), np.uint8)
    images = [np.moveaxis(pixels, 0, -1)]
    made = np.asarray(processor(images, return_tensors="np")["pixel_values"][0])
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (None, None)
    rescale = processor.rescale_factor if processor.do_rescale else None
    params = affine_params(pixels, made, 0, mean=mean, std=std, rescale=rescale)
    assert params is not None and params["arithmetic"] != "table"
    column = flat("pixel_values", "uint8", pixels.shape, load="affine", params={**params, "picture": "chw"})
    schema = arrow_schema([column], family="f", modalities=MODALITIES)
    row = random_bin(np.random.default_rng(0), 1, [])[0]
    row.row_items, row.media = np.array([[1, 0]], np.int32), {"pixel_values": [pixels[None]]}
    arguments = collate([stored([row], schema)])
    assert arguments["pixel_values"].numpy()[0].tobytes() == made.tobytes()
    half = collate([stored([row], schema)], dtype=torch.bfloat16)["pixel_values"]
    assert torch.equal(half[0], torch.from_numpy(made).bfloat16())


JSON = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 20), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
    st.sampled_from(["concat", "batch", "pad", "list", "array", "affine", "none", "halved", "chw", "hwc", "patches",
                     "table", "numpy", "uint8", "bool", "int64", "float32", "bfloat16", "prod(image_sizes)"]),
    st.lists(st.integers(-1, 9) | st.floats(), max_size=4), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)  # fmt: skip
PARAMS = ("pad_value", "pad_to", "mask", "mask_dtype", "forward_dtype", "frames_axis", "picture", "channel_axis",
          "channel_run", "arithmetic", "channels", "mean", "std", "rescale", "table", "loader", "codec", "patch_size")  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(data=st.data(), seed=st.integers(0, 9))
def test_no_declaration_of_a_stranger_ends_in_another_error(data, seed):
    """A declaration is refused when the shard is opened, or what it makes of the values is an array or one line."""
    schema = arrow_schema(tuple(COLUMNS.values()), family="f", modalities=MODALITIES)
    rows = random_bin(np.random.default_rng(seed), 3, COLUMNS.values())
    batch = serialize_bin(make_bin(rows, [0, 1, 2]), schema)
    content = json.loads(schema.metadata[METADATA_KEY])
    for _ in range(data.draw(st.integers(1, 3))):
        column = data.draw(st.sampled_from(content["columns"]))
        keys = ["kind", "dtype", "shape", "sizes", "load", "join", "batch_axis", "modality", "name"]
        key = data.draw(st.sampled_from([*keys, *PARAMS]))
        target = column if key in keys else column.setdefault("params", {})
        if isinstance(target, dict):
            target[key] = data.draw(JSON)
    changed = schema.with_metadata({METADATA_KEY: json.dumps(content).encode()})
    try:
        layout = read_layout(changed, "packed/s.arrow")
        item = decode(batch, changed, layout)
        alone = [cut_row(item, number) for number in range(3)]
        for stored_bins in ([item], alone):
            collate(stored_bins)
        for cut in alone:
            _items(cut)
            for shown in media_of(cut):
                shown.frames()
    except OmniprepError as error:
        assert len(str(error)) < 600


@settings(max_examples=200, deadline=None)
@given(data=st.data(), seed=st.integers(0, 9))
def test_no_numbers_of_a_stranger_end_in_another_error(data, seed):
    """Sizes, shapes and counts that do not fit the values are damage, whatever they are."""
    schema = arrow_schema(tuple(COLUMNS.values()), family="f", modalities=MODALITIES)
    layout = read_layout(schema)
    whole = pa.ipc.read_record_batch(
        pa.ipc.read_message(pa.py_buffer(serialize_bin(make_bin(random_bin(np.random.default_rng(seed), 3,
                                                                           COLUMNS.values()), [0, 1, 2]), schema))), schema)  # fmt: skip
    lists = [name for name in schema.names if pa.types.is_list(schema.field(name).type)]
    name = data.draw(st.sampled_from(lists))
    kind = schema.field(name).type
    values = whole[name][0].as_py()
    if values and data.draw(st.booleans()):
        bits = {pa.uint8(): (0, 255), pa.float32(): (-(2**24), 2**24)}
        low, high = bits.get(kind.value_type, (-(2**31), 2**31 - 1))
        values[data.draw(st.integers(0, len(values) - 1))] = data.draw(st.integers(low, high) | st.integers(0, 9))
    else:
        values = data.draw(st.none() | st.just([]) | st.just([1] * 7))
    columns = [pa.array([values], kind) if n == name else whole[n] for n in schema.names]
    batch = np.frombuffer(pa.RecordBatch.from_arrays(columns, schema=schema).serialize(), np.uint8).copy()
    try:
        item = decode(batch, schema, layout)
        for number in range(len(item["row_ids"])):
            collate([cut_row(item, number)])
        collate([item])
    except OmniprepError as error:
        assert len(str(error)) < 600
