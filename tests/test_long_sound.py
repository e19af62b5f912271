"""Videos with sound of 27 to 118 s against what ms-swift 3.9.3 made of them, where bfloat16 decides the order.

tests/golden/long_sound.json holds the ids, grids and hashes; the videos are made here by the code that made them there.
"""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from omniprep.compiler.encode.single_row import encode_row
from omniprep.compiler.options import family_of
from omniprep.config import BuildConfig
from omniprep.testing.init_model import init_model

GOLDEN = Path(__file__).resolve().parent / "golden"
TRUTH = json.loads((GOLDEN / "long_sound.json").read_text())


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"golden_{name}", GOLDEN / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker, codec = _module("make_long_sound"), _module("codec")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("videos")
    maker.write_videos(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(model_dir: Path, tmp_path_factory: Any) -> Any:
    """A function family → checkpoint."""

    def find(family: str) -> Path:
        if family == "qwen2_5_omni":
            return model_dir
        given = os.environ.get("OMNIPREP_TEST_FAMILIES")
        if given:
            return Path(given) / family
        pytest.importorskip("dashscope", reason="the Qwen vocabulary comes with dashscope (omniprep[demo])")
        return init_model(tmp_path_factory.mktemp(family) / "model", family)

    return find


def test_the_fixtures_hold_every_length_of_both_families() -> None:
    assert set(TRUTH) == {"qwen2_5_omni", "qwen3_omni"}
    assert all(set(rows) == set(maker.ROWS) for rows in TRUTH.values())


@pytest.mark.slow
@pytest.mark.parametrize("family", TRUTH)
def test_long_videos_with_sound_equal_the_reference(family: str, videos: Path, checkpoint: Any) -> None:
    config = BuildConfig(model=str(checkpoint(family)), bin_length=65536, **maker.OPTIONS)
    ctx = family_of(config)
    for name, row in maker.ROWS.items():
        found = maker.facts_of(encode_row(row, ctx, config, str(videos)), codec.pack_numbers)
        assert found == TRUTH[family][name], name
