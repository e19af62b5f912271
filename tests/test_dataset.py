"""Risk: a model input that differs from what was stored, memory reused under a live tensor, damage not noticed."""

import dataclasses
import gc
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from synthetic import COLUMNS, MEAN, MODALITIES, PATCHES, STD, make_bin, make_dataset, make_row
from torch.utils.data import DataLoader

from omniprep import BinSampler, PackedDataset, collate, stack, to_model, unpack_pixels
from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.shards.index import INDEX_SCHEMA
from omniprep.shards.schema import arrow_schema, read_layout
from omniprep.train.batches import Bins


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "out"
    return folder, make_dataset(folder, n_rows=60)


def row_kwargs(row):
    """What the model must get for one row, straight from the definition."""
    length = len(row["input_ids"])
    kwargs = {
        "input_ids": torch.tensor(row["input_ids"]).long()[None],
        "labels": torch.tensor(row["labels"]).long()[None],
        "position_ids": torch.tensor(np.concatenate([np.arange(length)[None], row["position_ids"]])).long()[:, None],
    }
    for name, pixels in (("image_grid_thw", "pixel_values"), ("video_grid_thw", "pixel_values_videos")):
        if row["media"][name]:
            kwargs[name] = torch.tensor(np.stack(row["media"][name]))
            stored = np.concatenate(row["media"][pixels]).reshape(-1, 3, 1 if name[0] == "i" else 2, 196)
            copies = np.repeat(stored, 2, 2) if stored.shape[2] == 1 else stored
            mean, std = (np.array(v, np.float32).reshape(3, 1, 1) * np.float32(255) for v in (MEAN, STD))
            kwargs[pixels] = torch.tensor((copies.astype(np.float32) - mean) / std).reshape(-1, 1176)
    clips = [torch.tensor(c.view(np.int16)).view(torch.bfloat16).float() for c in row["media"]["input_features"]]
    if clips:
        kwargs["input_features"] = torch.stack(clips)
        kwargs["feature_attention_mask"] = torch.ones(1, clips[0].shape[1], dtype=torch.int64)
    return kwargs


def assert_same(got, want):
    assert got["use_cache"] is False, "else transformers looks for no borders of rows"
    assert {k for k in got if k[:3] not in ("cu_", "max", "use")} == set(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


def test_every_row_alone_is_what_was_given(built):
    folder, rows = built
    ds = PackedDataset(folder)
    for i, row in enumerate(rows):
        if i % 13 == 12:
            with pytest.raises(OmniprepError, match="bad_json"):
                ds.row(f"{'ab'[i % 2]}.jsonl", i // 2 + 1)
            continue
        got = ds.row(f"{'ab'[i % 2]}.jsonl", i // 2 + 1)
        assert_same(got, row_kwargs(row))
        assert got["cu_seq_lens_q"].tolist() == [0, len(row["input_ids"])] and got["cu_seq_lens_q"].dtype == torch.int32
    with pytest.raises(OmniprepError, match="no row 99"):
        ds.row("a.jsonl", 99)
    with pytest.raises(OmniprepError, match=r"c\.jsonl is no input"):
        ds.row("c.jsonl", 1)


def test_bins_are_their_rows_end_to_end(built):
    folder, rows = built
    ds = PackedDataset(str(folder))
    assert sorted(i for b in range(len(ds)) for i in ds[b]["row_ids"]) == [i for i in range(60) if i % 13 != 12]
    for numbers in ([0], [1, 0], [2, 3, 1]):
        bins = [ds[b] for b in numbers]
        batch = collate(bins)
        want = [row_kwargs(rows[i]) for b in bins for i in b["row_ids"]]
        for name in ("input_ids", "labels", "position_ids"):
            assert torch.equal(batch[name], torch.cat([w[name] for w in want], -1)), name
        for name in ("image_grid_thw", "video_grid_thw", "pixel_values", "pixel_values_videos"):
            parts = [w[name] for w in want if name in w]
            assert torch.equal(batch[name], torch.cat(parts)) if parts else name not in batch
        clips = [w["input_features"][0] for w in want if "input_features" in w]
        for i, clip in enumerate(clips):
            count = clip.shape[1]
            assert (
                torch.equal(batch["input_features"][i, :, :count], clip)
                and not batch["input_features"][i, :, count:].any()
            )
            assert batch["feature_attention_mask"][i].sum() == count
        starts = (batch["position_ids"][0, 0] == 0).nonzero().flatten()
        assert torch.equal(batch["cu_seq_lens_k"][:-1].long(), starts)
        assert batch["cu_seq_lens_q"][-1] == batch["input_ids"].shape[1]
        assert batch["max_length_q"] == batch["max_length_k"] == int(batch["cu_seq_lens_q"].diff().max())


def test_loss_scale_only_where_weighted(built, tmp_path):
    assert "loss_scale" not in collate([PackedDataset(built[0])[0]])
    rows = make_dataset(tmp_path / "w", n_rows=20, weighted=True)
    ds = PackedDataset(tmp_path / "w")
    batch = collate([ds[0]], dtype=torch.bfloat16)
    want = np.concatenate([rows[i]["loss_scale"] for i in ds[0]["row_ids"]])
    assert batch["loss_scale"].dtype == torch.float32 and np.array_equal(batch["loss_scale"][0], want)


def copies_of(folder, tmp_path, **changes):
    """The bins of a dataset, and of one that differs in what its shards declare."""
    ds = PackedDataset(folder)
    other = dict(ds[1])
    other["layout"] = dataclasses.replace(other["layout"], **changes)
    other["columns"] = other["layout"].columns
    return [ds[0], other]


@pytest.mark.parametrize("make", [collate, stack])
def test_bins_of_two_kinds_are_no_batch(built, tmp_path, make):
    make_dataset(tmp_path / "w", n_rows=20, weighted=True)
    plain, weighted = PackedDataset(built[0])[0], PackedDataset(tmp_path / "w")[0]
    for bins in ([plain, weighted], [weighted, plain], [plain, plain, weighted]):
        with pytest.raises(OmniprepError, match="one without"):
            make(bins)
    with pytest.raises(OmniprepError, match="two families, 'synthetic' and 'other'"):
        make(copies_of(built[0], tmp_path, family="other"))
    columns = list(PackedDataset(built[0]).layout.columns)
    columns[2] = dataclasses.replace(columns[2], params={**PATCHES, "mean": [0.5, 0.5, 0.5]})
    with pytest.raises(OmniprepError, match="normalized in different ways"):
        make(copies_of(built[0], tmp_path, columns=tuple(columns)))
    with pytest.raises(OmniprepError, match="normalized in different ways"):
        make(copies_of(built[0], tmp_path, modalities=("audio", "image", "video")))
    with pytest.raises(OmniprepError, match="at least one bin"):
        make([])


def test_bins_that_differ_in_the_codec_alone_are_a_batch(built, tmp_path):
    columns = list(PackedDataset(built[0]).layout.columns)
    columns[2] = dataclasses.replace(columns[2], params={**PATCHES, "codec": "webp", "codec_library": "libwebp 1"})
    bins = copies_of(built[0], tmp_path, columns=tuple(columns))
    assert torch.equal(stack(bins)["input_ids"], stack([PackedDataset(built[0])[n] for n in (0, 1)])["input_ids"])


def test_a_family_without_mrope_gets_the_positions_of_its_model(built, tmp_path):
    """transformers takes four rows for m-rope models alone; Qwen2-Audio's class takes (1, L)."""
    bins = [PackedDataset(built[0])[n] for n in (0, 2)]
    rows = collate(bins)["position_ids"]
    plain = [{**b, "layout": dataclasses.replace(b["layout"], mrope=False)} for b in bins]
    assert rows.shape[:2] == (4, 1) and torch.equal(collate(plain)["position_ids"], rows[0])
    columns = PackedDataset(built[0]).layout.columns
    for mrope in (True, False):
        schema = arrow_schema(columns, family="f", modalities=MODALITIES, mrope=mrope)
        assert read_layout(schema).mrope is mrope


def test_dtype_is_the_last_rounding(built):
    ds = PackedDataset(built[0])
    items = [ds[0], ds[1]]
    exact, rounded = collate(items), collate(items, device="cpu", dtype=torch.bfloat16)
    for name in ("pixel_values", "pixel_values_videos", "input_features"):
        assert rounded[name].dtype == torch.bfloat16 and torch.equal(rounded[name], exact[name].to(torch.bfloat16)), (
            name
        )


def test_pixels_equal_the_image_processor():
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    picture = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    out = Qwen2VLImageProcessor()(images=[Image.fromarray(picture)], return_tensors="pt", do_resize=False)
    _, h, w = out["image_grid_thw"][0].tolist()
    patches = picture.transpose(2, 0, 1).reshape(3, h // 2, 2, 14, w // 2, 2, 14).transpose(1, 4, 2, 5, 0, 3, 6)
    stored = torch.from_numpy(np.ascontiguousarray(patches).reshape(h * w, 588))
    assert torch.equal(unpack_pixels(stored, mean=MEAN, std=STD), out["pixel_values"])
    with pytest.raises(ValueError, match="587"):
        unpack_pixels(stored[:, :587], mean=MEAN, std=STD)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_makes_the_same_floats(built):
    items = [PackedDataset(built[0])[0]]
    host, device = collate(items), collate(items, device="cuda")
    for name, value in host.items():
        assert torch.equal(device[name].cpu(), value) if isinstance(value, torch.Tensor) else device[name] == value, (
            name
        )


def test_one_bin_is_not_copied(built):
    ds = PackedDataset(built[0])
    number = next(b for b in range(len(ds)) if "pixel_values" in ds[b])
    item = ds[number]
    assert stack([item])["pixel_values"].data_ptr() == item["pixel_values"].ctypes.data
    assert all(
        np.shares_memory(item["input_ids"].base, v) for v in item.values() if isinstance(v, np.ndarray) and v.size
    )


def test_buffers_are_not_reused_under_live_tensors(built):
    ds = PackedDataset(built[0])
    alive = [(b, stack([ds[b]])) for b in range(len(ds))]
    want = {
        b: stack([{k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in ds[b].items()}])
        for b in range(len(ds))
    }
    for b, got in alive:
        for name, value in want[b].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(got[name], value)
    del alive, got
    gc.collect()
    places = {ds[b % len(ds)]["input_ids"].base.ctypes.data for b in range(50)}
    assert len(places) <= 9, "and when nothing is alive, the pool is used again"


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loader_with_workers_and_pinned_memory(built, context):
    ds = PackedDataset(built[0])
    ds[0]  # opened before the fork
    sampler = BinSampler(len(ds), seed=1, costs=ds.costs)
    loader = DataLoader(
        ds,
        batch_size=2,
        sampler=sampler,
        collate_fn=stack,
        num_workers=2,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=True,
        multiprocessing_context=multiprocessing.get_context(context),
    )
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = sampler.order().tolist()
        batches = [to_model(batch) for batch in loader]
        assert len(batches) == -(-len(ds) // 2)
        for k, batch in enumerate(batches):
            want = collate([ds[b] for b in order[2 * k : 2 * k + 2]])
            assert batch.keys() == want.keys()
            for name, value in want.items():
                assert torch.equal(batch[name], value) if isinstance(value, torch.Tensor) else batch[name] == value


def test_pickle_takes_no_files_along(built):
    ds = PackedDataset(built[0], verify="always")
    ds[0], ds.rows
    again = pickle.loads(pickle.dumps(ds))
    assert again.verify == "always" and np.array_equal(again[3]["input_ids"], ds[3]["input_ids"])
    assert again.rows.num_rows == 60


def test_damage_is_named_once_read(built, tmp_path):
    make_dataset(tmp_path / "d", n_rows=30)
    shard = tmp_path / "d" / "shards" / "00000.arrow"
    ds = PackedDataset(tmp_path / "d")
    where = int(ds.index["offset"][1] + ds.index["length"][1]) - 100
    ds[1]
    data = bytearray(shard.read_bytes())
    data[where] ^= 1
    shard.write_bytes(data)
    ds[1]  # verified before, so not again
    for verify in ("first", "always"):
        with pytest.raises(DamagedDataError, match=r"bin 1: .*00000\.arrow is damaged"):
            PackedDataset(tmp_path / "d", verify=verify)[1]
    PackedDataset(tmp_path / "d", verify="never")[1]
    data[int(ds.index["offset"][1])] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(DamagedDataError, match=r"bin 1: .*00000\.arrow"):
        PackedDataset(tmp_path / "d", verify="never")[1]
    shard.write_bytes(data[: where + 10])
    with pytest.raises(DamagedDataError, match=r"bin 1: .*00000\.arrow: ends at byte"):
        PackedDataset(tmp_path / "d")[1]
    shard.unlink()
    with pytest.raises(DamagedDataError, match=r"bin 1: .*00000\.arrow"):
        PackedDataset(tmp_path / "d")[1]


def test_what_is_no_dataset_is_said(built, tmp_path):
    with pytest.raises(OmniprepError, match="no finished omniprep dataset"):
        PackedDataset(tmp_path)
    with pytest.raises(OmniprepError, match="verify"):
        PackedDataset(built[0], verify="sometimes")
    manifest = json.loads((built[0] / "manifest.json").read_text())
    (tmp_path / "index.parquet").write_bytes((built[0] / "index.parquet").read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(OmniprepError, match="format 2"):
        PackedDataset(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "shards": manifest["shards"][:-1]}))
    with pytest.raises(DamagedDataError, match=r"index\.parquet"):
        PackedDataset(tmp_path)
    with pytest.raises(IndexError):
        PackedDataset(built[0])[10_000]


def test_a_remote_dataset_reads_the_same(built):
    import fsspec

    folder, _ = built
    fs = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"/ds/{path.relative_to(folder).as_posix()}", path.read_bytes())
    near, far = PackedDataset(folder), PackedDataset("memory://ds")
    for b in range(len(near)):
        for name, value in collate([near[b]]).items():
            other = collate([far[b]])[name]
            assert torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value


def test_several_bins_are_laid_end_to_end(built):
    folder, _ = built
    ds = PackedDataset(folder)
    for numbers in ([0, 1], [3, 0, -1], list(range(len(ds))), [1, 1]):
        items = [ds[number] for number in numbers]
        stacked = stack(items)
        assert stacked["input_ids"][0].tolist() == np.concatenate([item["input_ids"] for item in items]).tolist()
        for name in ("pixel_values", "pixel_values_videos"):
            holding = [item[name] for item in items if name in item]
            assert (name in stacked) == bool(holding)
            if holding:
                assert np.array_equal(stacked[name].numpy(), np.concatenate(holding))


def test_a_held_out_bin_of_the_trainer_has_no_labels(built):
    ds = PackedDataset(built[0])
    bins = Bins([ds, ds], [None, np.array([2, 0])], [np.arange(100, dtype=np.int16)] * 2)
    for number, (dataset, bin_number) in {0: (0, 0), ~2: (0, 2), len(ds): (1, 2), ~(len(ds) + 1): (1, 0)}.items():
        item, stored = bins[number], bins.datasets[dataset][bin_number]
        assert all(np.array_equal(item[name], stored[name]) for name in ("input_ids", "cu_seqlens", "row_ids"))
        assert np.array_equal(item["sources"], stored["row_ids"])
        if number >= 0:
            assert np.array_equal(item["labels"], stored["labels"])
        else:
            assert (item["labels"] == -100).all()


def test_a_damaged_bin_is_named(built, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(built[0], folder)
    index = PackedDataset(folder).index
    with (folder / "shards" / "00000.arrow").open("r+b") as file:
        file.seek(int(index["offset"][1] + index["length"][1]) - 100)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    ds = PackedDataset(folder)
    ds[0]
    with pytest.raises(DamagedDataError, match=r"bin 1: .*00000\.arrow is damaged"):
        ds[1]


def test_first_batch_of_ten_thousand_shards(built, tmp_path):
    """One real shard under 10,000 names, 50 bins each."""
    folder, _ = built
    ds = PackedDataset(folder)
    index = pq.read_table(folder / "index.parquet")
    picked = np.tile(np.arange(4), 125_000)
    big = index.take(picked).set_column(
        0, INDEX_SCHEMA.field("shard"), [np.repeat(np.arange(10_000, dtype=np.int32), 50)]
    )
    pq.write_table(big, tmp_path / "index.parquet")
    (tmp_path / "shards").mkdir()
    shards = []
    for i in range(10_000):
        path = f"shards/{i:05d}.arrow"
        os.link(folder / "shards" / "00000.arrow", tmp_path / path)
        shards.append({**ds.manifest["shards"][0], "path": path, "bins": 50})
    (tmp_path / "manifest.json").write_text(json.dumps({**ds.manifest, "shards": shards}))
    many = PackedDataset(tmp_path)
    sampler = BinSampler(len(many), seed=0, costs=many.costs)
    next(iter(DataLoader(many, sampler=sampler, collate_fn=stack)))
    assert _open_shards(tmp_path) == 1
    for b in range(0, len(many), 5000):
        many[b]
    assert _open_shards(tmp_path) == 64


def _open_shards(folder: Path) -> int:
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(os.readlink(link).startswith(f"{folder}/") for link in links)


def test_importing_the_loader_needs_neither_transformers_nor_ray():
    code = (
        "import sys, omniprep; assert 'torch' not in sys.modules; import omniprep.data; omniprep.pack; "
        "bad = {'transformers', 'ray', 'datasets', 'huggingface_hub', 'qwen_omni_utils'} & set(sys.modules); assert not bad, bad; "
        "assert 'PackedDataset' in dir(omniprep)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_synthetic_covers_every_column(built):
    ds = PackedDataset(built[0])
    seen = set().union(*(ds[b].keys() for b in range(len(ds))))
    assert {c.name for c in COLUMNS} <= seen
    assert ds.layout.modalities == MODALITIES and make_bin([make_row(0, 9)], [0]).row_items.shape == (1, 3)
