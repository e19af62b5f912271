"""A manifest that a stranger wrote becomes a typed record that cannot hold what runs code, or one clear error."""

import dataclasses
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import make_dataset

from omniprep.config import BuildConfig, RowOptions, Trust, build_config, row_options_as_json, shaping
from omniprep.data.dataset import PackedDataset
from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.shards.manifest import Manifest, parse_manifest
from omniprep.shards.names import is_dataset_file, is_shard_path
from omniprep.shards.typed import parse_json, typed_record

WHERE = "packed/manifest.json"
TRUST = {"plugin": ["evil.py"], "trust_remote_code": True, "allow_http": True, "media_root": ["/"]}


def whole() -> dict[str, Any]:
    """A manifest with every field, as a build writes it."""
    config = BuildConfig(
        inputs=("chats.jsonl",), model="org/model", out="packed", bin_length=256, plugin=("family.py",), media_root=("/data",),
        trust_remote_code=True, allow_http=True, fps=1.5, limit_mm_per_row=("image=8",),
    )  # fmt: skip
    return {
        "format": 1, "omniprep": "0.1.0", "family": "qwen2_5_omni", "model": "org/model", "tokenizer_sha256": "ab",
        "preprocessor_sha256": "cd", "config": shaping(config), "config_sha256": "ef", "plan_sha256": "01",
        "versions": {"torch": "2.6"}, "video_backend": "decord", "bin_length": 256, "fill": 0.9,
        "inputs": [{"source": "chats.jsonl", "bytes": 5, "mtime_ns": 7}, {"source": "s3://b/c.jsonl", "bytes": 1, "mark": "e"}],
        "counts": {
            "rows": {"read": 3, "packed": 2, "rejected": 1}, "tokens": 9, "labeled_tokens": 4, "bins": 1,
            "rejected_by_code": {"bad_json": 1}, "rows_with_control_tokens": 0, "rows_without_labels": 0, "items": {"image": 2},
        },
        "seconds": {"plan": 0.5, "encode": 1.5},
        "shards": [{"path": "shards/00000.arrow", "bins": 1, "bytes": 10, "sha256": "ff"}],
    }  # fmt: skip


def test_what_a_build_writes_is_read_back_but_for_trust() -> None:
    manifest, plain = parse_manifest(whole(), WHERE)
    assert manifest.config == RowOptions(bin_length=256, fps=1.5, limit_mm_per_row=("image=8",))
    assert manifest.counts is not None and manifest.counts.items == {"image": 2} and manifest.counts.rows.read == 3
    assert manifest.inputs[0].mtime_ns == 7 and manifest.inputs[1].mark == "e"
    assert manifest.needed_flags == ("--media-root", "--allow-http", "--plugin", "--trust-remote-code")
    assert not plain["config"].keys() & {*TRUST, "inputs", "model", "out"}
    assert parse_manifest(plain, WHERE) == (manifest, plain), "what is shown can be parsed again, flags included"
    assert pickle.loads(pickle.dumps(manifest)) == manifest


def test_no_record_can_hold_what_runs_code_or_opens_folders() -> None:
    """By class: a field that a later version adds to one of them has to be put on one side or the other."""
    trust = {field.name for field in dataclasses.fields(Trust)}
    assert trust == set(TRUST)
    places = {"inputs", "model", "out", "ray_address", "workers", "overwrite"}
    for record in (RowOptions, Manifest):
        names = {field.name for field in dataclasses.fields(record)}
        assert not names & trust and (record is Manifest or not names & places)
    options = typed_record(RowOptions, {**TRUST, "seed": 3, "inputs": ["/etc/passwd"]}, "x")
    assert options == RowOptions(seed=3)
    with pytest.raises((AttributeError, TypeError)):
        options.plugin = ("evil.py",)  # type: ignore[attr-defined]
    built = build_config(options, Trust(), model="m")
    assert (built.plugin, built.trust_remote_code, built.allow_http, built.media_root) == ((), False, False, ())


def test_opening_a_dataset_takes_nothing_of_trust(tmp_path: Path) -> None:
    make_dataset(tmp_path / "d", 20)
    path = tmp_path / "d" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": {**TRUST, "seed": 4}}))
    ds = PackedDataset(tmp_path / "d")
    assert ds.record.config == RowOptions(seed=4) and "plugin" not in ds.manifest["config"]
    assert pickle.loads(pickle.dumps(ds)).record == ds.record


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shards": None}, "shards"),
        ({"shards": [{"path": "shards/00000.arrow"}]}, "'bins' is absent"),
        ({"shards": [{"path": "shards/00000.arrow", "bins": "1"}]}, "shards[0]: bins"),
        ({"shards": [{"path": "shards/00000.arrow", "bins": True}]}, "shards[0]: bins"),
        ({"shards": [{"path": "shards/00000.arrow", "bins": -1}]}, "negative"),
        ({"shards": [{"path": "shards/00000.arrow", "bins": 1.0}]}, "shards[0]: bins"),
        ({"shards": [7]}, "shards[0]"),
        ({"counts": {"rows": {"read": 1}}}, "counts: rows: 'packed' is absent"),
        ({"counts": []}, "counts"),
        ({"bin_length": 1 << 63}, "bin_length"),
        ({"bin_length": "256"}, "bin_length"),
        ({"fill": math.nan}, "fill"),
        ({"fill": math.inf}, "fill"),
        ({"fill": 10**400}, "fill"),
        ({"model": ["a"]}, "model"),
        ({"model": "\ud800"}, "model"),
        ({"versions": {"torch": 2}}, "versions: torch"),
        ({"versions": "2"}, "versions"),
        ({"config": "x"}, "config"),
        ({"config": {"max_length": "9"}}, "config: max_length"),
        ({"config": {"truncation": "sideways"}}, "config: truncation"),
        ({"config": {"truncation": ["left"]}}, "config: truncation"),
        ({"config": {"bin_length": -1}}, "--bin-length must be from 1 to"),
        ({"config": {"limit_mm_per_row": "image=8"}}, "config: limit_mm_per_row"),
        ({"config": {"limit_mm_per_row": [8]}}, "config: limit_mm_per_row[0]"),
        ({"inputs": [{"bytes": 1}]}, "inputs[0]: 'source' is absent"),
        ({"seconds": {"plan": "long"}}, "seconds: plan"),
    ],
)
def test_a_field_of_another_type_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DamagedDataError) as caught:
        parse_manifest({**whole(), **change}, WHERE)
    assert str(caught.value).startswith(WHERE) and said in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../secret", "shards/../../secret", "shards/../manifest.json", "shards\\..\\x.arrow", "shards/x.arrow",
        "shards/a/00000.arrow", "shards/00000.arrow\n", "shards/00000.arrow/", "shards//00000.arrow", "", ".", "shards/.arrow",
        "s3://b/shards/00000.arrow", "file:///etc/passwd", "shards/..%2f00000.arrow", "shards/00000.arrow\0", "Shards/00000.arrow",
        "shards/٠٠٠٠٠.arrow", "shards/00000-../x.arrow", "./shards/00000.arrow", "shards/00000.pkl",
    ],
)  # fmt: skip
def test_a_shard_has_the_name_of_a_shard(path: str) -> None:
    assert not is_shard_path(path) and not is_dataset_file(path)
    content = whole()
    content["shards"][0]["path"] = path
    with pytest.raises(DamagedDataError, match="is no name of a shard"):
        parse_manifest(content, WHERE)


def test_names_of_shards_and_files() -> None:
    for path in ("shards/00000.arrow", "shards/123456.arrow", "shards/00001-4f2a9c.arrow"):
        assert is_shard_path(path) and is_dataset_file(path)
    for path in ("README.md", "preview/train.arrow", "plots/fill.png", ".gitattributes", "plan/state.json"):
        assert not is_dataset_file(path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xfe", "not UTF-8"), (b"{", "not valid JSON"), (b"[" * 100_000, "nested too deep"), (b"", "not valid JSON"),
        (b'{"format": ' + b"9" * 5000 + b"}", "not valid JSON"), (b'{"a": 1} x', "not valid JSON"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_json(data: bytes, said: str) -> None:
    with pytest.raises(DamagedDataError, match=said):
        parse_json(data, WHERE)


def test_a_manifest_too_large_is_not_read(tmp_path: Path) -> None:
    make_dataset(tmp_path / "d", 20)
    with (tmp_path / "d" / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(DamagedDataError, match="too many for a manifest"):
        PackedDataset(tmp_path / "d")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["a/b", "../x", "shards/00000.arrow"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def paths_in(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(found for key, inner in items for found in paths_in(inner, (*at, key)))]


PATHS = [path for path in paths_in(whole()) if path]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(PATHS), JSON | st.just("remove")), min_size=1, max_size=3))
def test_fuzz_manifest(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    """Any value anywhere: a record without trust whose shards lie in the dataset, or an OmniprepError of one line."""
    content = whole()
    for path, value in changes:
        target: Any = content
        try:
            for key in path[:-1]:
                target = target[key]
            if value == "remove":
                del target[path[-1]]
            else:
                target[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took this place away
    try:
        manifest, plain = parse_manifest(content, WHERE)
    except OmniprepError as error:
        assert "\n" not in str(error) and WHERE in str(error)
        return
    assert all(is_shard_path(shard.path) for shard in manifest.shards)
    assert not plain["config"].keys() & TRUST.keys()
    assert typed_record(RowOptions, row_options_as_json(manifest.config), "again") == manifest.config
    assert parse_manifest(json.loads(json.dumps(plain)), WHERE)[0] == manifest


@settings(max_examples=200, deadline=None)
@given(JSON | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
def test_fuzz_manifest_that_is_anything(content: Any) -> None:
    with pytest.raises(OmniprepError):
        parse_manifest(content, WHERE)
