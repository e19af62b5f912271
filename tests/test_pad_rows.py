"""Risk: --pad-rows-to changes what is learned, or leaves a row that parallel ranks cannot cut evenly."""

import json
import shutil

import numpy as np
import pytest
from conftest import SAMPLES

from omniprep import PackedDataset

INPUTS = [SAMPLES / f"{name}.jsonl" for name in ("images", "audio", "video", "text")]
SIZES = ("--max-pixels", 28 * 28 * 60, "--video-max-pixels", 28 * 28 * 20, "--fps-max-frames", 4, "--workers", 0)
MULTIPLE = 24


@pytest.fixture(scope="module")
def folders(omniprep, model_dir, tmp_path_factory):
    """The same rows, plain and padded; weighted, so that the weights of pad tokens are seen."""
    folder = tmp_path_factory.mktemp("pad")
    options = ("--model", model_dir, "--bin-length", 960, *SIZES, "--loss-scale", "hermes")
    for name, more in (("plain", ()), ("padded", ("--pad-rows-to", MULTIPLE))):
        done = omniprep("build", *INPUTS, *options, *more, "--out", folder / name)
        assert done.code == 0, done.err
    return folder


def test_rows_end_in_pad_tokens_that_are_not_learned(folders):
    from transformers import AutoTokenizer

    plain, padded = PackedDataset(folders / "plain"), PackedDataset(folders / "padded")
    pad = AutoTokenizer.from_pretrained(plain.record.model).pad_token_id
    rows = {(row["source"], row["line"]): row for row in padded.rows.to_pylist() if row["status"] == "packed"}
    before = {(row["source"], row["line"]): row for row in plain.rows.to_pylist() if row["status"] == "packed"}
    assert rows.keys() == before.keys() and len(rows) > 10
    kinds = set()
    for key, row in rows.items():
        ours, theirs = padded.row(*key), plain.row(*key)
        length = before[key]["length"]
        assert row["length"] == -(-length // MULTIPLE) * MULTIPLE == ours["input_ids"].shape[1]
        for name in ("input_ids", "labels", "loss_scale", "position_ids"):
            assert np.array_equal(ours[name][..., :length], theirs[name]), name
        assert (ours["input_ids"][0, length:] == pad).all() and (ours["labels"][0, length:] == -100).all()
        assert (ours["loss_scale"][0, length:] == 0).all()
        steps = np.diff(ours["position_ids"][..., length - 1 :].numpy())
        assert (steps == 1).all(), "the positions of text at the end"
        media = {name for name in theirs if name.startswith(("pixel", "input_f", "image_g", "video_g"))}
        assert all(np.array_equal(ours[name], theirs[name]) for name in media)
        kinds |= media
    assert {"pixel_values", "pixel_values_videos", "input_features"} <= kinds
    for number in range(len(padded)):
        borders = padded[number]["cu_seqlens"]
        assert (borders % MULTIPLE == 0).all() and borders[-1] <= 960
    assert padded.counts["tokens"] == sum(row["length"] for row in rows.values())


def test_verify_plan_append_and_repack_know_the_pad_tokens(folders, omniprep, model_dir, tmp_path):
    done = omniprep("verify", folders / "padded", "--deep")
    assert done.code == 0, done.err + done.out
    built = omniprep("build", INPUTS[3], "--model", model_dir, "--bin-length", 960, *SIZES, "--pad-rows-to", 40,
                     "--max-length", 900, "--out", tmp_path / "d")  # fmt: skip
    assert built.code == 0, built.err
    done = omniprep("append", tmp_path / "d", INPUTS[0], "--workers", 0)
    assert done.code == 0, done.err
    lengths = np.array([n for n in PackedDataset(tmp_path / "d").rows["length"].to_pylist() if n is not None])
    assert len(lengths) > 5 and (lengths % 40 == 0).all()
    # Rows are copied with their pad tokens, and a limit of 900 tokens lets rows of 920 pass.
    done = omniprep("repack", tmp_path / "d", "--bin-length", 1920, "--out", tmp_path / "r")
    assert done.code == 0, done.err
    again = [n for n in PackedDataset(tmp_path / "r").rows["length"].to_pylist() if n is not None]
    assert sorted(again) == sorted(lengths.tolist())


def test_what_does_not_fit_is_refused(folders, omniprep, model_dir, tmp_path):
    done = omniprep("plan", INPUTS[3], "--model", model_dir, "--bin-length", 1000, "--pad-rows-to", 64)
    assert done.code == 2 and "--bin-length must be a multiple" in done.err
    done = omniprep("plan", INPUTS[3], "--model", model_dir, "--bin-length", 1024, "--pad-rows-to", -1)
    assert done.code == 2 and "0 or more" in done.err
    done = omniprep("repack", folders / "plain", folders / "padded", "--bin-length", 960, "--out", tmp_path / "r")
    assert done.code == 1 and "a multiple of both" in done.err


OTHER = ("--bin-length", 1920, "--seed", 3, "--shard-size", 1_000_000)


def files(folder):
    names = ("index.parquet", "rows.parquet", *sorted(p.relative_to(folder) for p in (folder / "shards").iterdir()))
    return {str(name): (folder / name).read_bytes() for name in names}


def test_repacked_with_pad_tokens_is_freshly_built_byte_for_byte(folders, omniprep, model_dir, tmp_path):
    """Of plain rows, of rows that are padded to a part of it already, and of both."""
    fresh = ("--model", model_dir, *SIZES, "--loss-scale", "hermes", *OTHER, "--pad-rows-to", 48, "--quiet")
    done = omniprep("build", *INPUTS, *fresh, "--out", tmp_path / "fresh")
    assert done.code == 0, done.err
    for name in ("plain", "padded"):
        done = omniprep("repack", folders / name, *OTHER, "--pad-rows-to", 48, "--out", tmp_path / name, "--quiet")
        assert done.code == 0, done.err
        assert files(tmp_path / name) == files(tmp_path / "fresh")
        mine, theirs = (json.loads((tmp_path / n / "manifest.json").read_text()) for n in (name, "fresh"))
        assert all(mine[key] == theirs[key] for key in theirs.keys() - {"seconds"})
        assert omniprep("verify", tmp_path / name, "--deep").code == 0


def test_a_limit_counts_no_pad_tokens(omniprep, model_dir, tmp_path):
    """Rows longer than --max-length are rejected, be their pad tokens counted or not."""
    options = ("--model", model_dir, *SIZES, "--bin-length", 400, "--quiet")
    done = omniprep("build", INPUTS[3], *options, "--out", tmp_path / "plain")
    assert done.code == 0, done.err
    longest = max(n for n in PackedDataset(tmp_path / "plain").rows["length"].to_pylist() if n is not None)
    for bin_length in (-(-longest // 40) * 40, longest // 40 * 40):
        more = ("--bin-length", bin_length, "--pad-rows-to", 40, "--quiet")
        built = omniprep("build", INPUTS[3], "--model", model_dir, *SIZES, *more, "--out", tmp_path / f"b{bin_length}")
        copied = omniprep("repack", tmp_path / "plain", *more, "--out", tmp_path / f"r{bin_length}")
        assert built.code == copied.code == 0, built.err + copied.err
        assert files(tmp_path / f"b{bin_length}") == files(tmp_path / f"r{bin_length}")


def test_pad_tokens_that_a_repack_cannot_put_there_are_refused(folders, omniprep, model_dir, tmp_path):
    def refused(*arguments):
        done = omniprep("repack", *arguments, "--out", tmp_path / "r")
        assert done.code != 0 and len(done.err.strip().splitlines()) <= 3 and not (tmp_path / "r").exists(), done.err
        return done.err

    for multiple in (0, 40):  # the bin length is a multiple of both
        assert "give a multiple of 24" in refused(folders / "padded", "--bin-length", 960, "--pad-rows-to", multiple)
    assert "must be a multiple" in refused(folders / "plain", "--bin-length", 960, "--pad-rows-to", 47)
    shutil.copytree(folders / "plain", tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    del manifest["pad_token"]
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    assert "names no pad token" in refused(tmp_path / "old", "--bin-length", 960, "--pad-rows-to", 48)
    done = omniprep("build", INPUTS[3], "--model", model_dir, "--bin-length", 960, *SIZES, "--dedup", "exact", "--out",
                    tmp_path / "hashed")  # fmt: skip
    assert done.code == 0, done.err
    assert "--dedup exact" in refused(tmp_path / "hashed", "--bin-length", 960, "--pad-rows-to", 48)
