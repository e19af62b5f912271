"""plan/placement.arrow: what tells a shard's task its rows, so that the tasks themselves stay small."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from omniprep.compiler.encode.shard_task import EncodeTask
from omniprep.compiler.plan.placement import Placement, placement_path, read_placement, write_placement
from omniprep.compiler.run.stages import Stage
from omniprep.errors import DamagedDataError

SHARDS = [
    Placement(np.array([5, 3, 8, 9]), np.array([0, 0, 1, 1], np.int32), np.array([5, 3, 0, 1], np.int32), np.array([0, 1, 4])),
    Placement(np.array([2**40]), np.array([7], np.int32), np.array([0], np.int32), np.array([0, 1])),
]  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    for generation in ("", "1f3a9c40"):
        write_placement(str(tmp_path), generation, iter(SHARDS))
        for number, shard in enumerate(SHARDS):
            back = read_placement(str(tmp_path), generation, number)
            for name in ("rows", "splits", "within", "offsets"):
                assert np.array_equal(getattr(back, name), getattr(shard, name)), name


def test_a_placement_of_other_bytes_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    write_placement(str(tmp_path), "", iter(SHARDS))
    path = Path(placement_path(str(tmp_path), ""))
    with pytest.raises(DamagedDataError, match=r"placement\.arrow"):
        read_placement(str(tmp_path), "", 2)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content.replace(b"within", b"withim")):
        path.write_bytes(damaged)
        with pytest.raises(DamagedDataError, match=r"placement\.arrow"):
            read_placement(str(tmp_path), "", 0)
    disordered = Placement(*[np.arange(3)] * 3, np.array([0, 1, 2, 3]))  # type: ignore[arg-type]
    write_placement(str(tmp_path), "", iter([disordered]))
    batch = path.read_bytes()
    path.write_bytes(batch.replace(np.arange(3, dtype=np.int32).tobytes(), np.array([0, 2, 1], np.int32).tobytes()))
    with pytest.raises(DamagedDataError, match="not in order"):
        read_placement(str(tmp_path), "", 0)


def test_a_task_is_no_larger_for_more_rows(tmp_path: Path, model_dir: Path, omniprep, monkeypatch) -> None:
    """Ray keeps arguments above 100 KB in its object store, and spills them to disk where many wait."""
    sizes: list[int] = []
    run = Stage.run

    def measured(stage, tasks, *args):
        sizes.extend(len(pickle.dumps(task)) for task in tasks if isinstance(task, EncodeTask))
        return run(stage, tasks, *args)

    monkeypatch.setattr(Stage, "run", measured)
    for rows in (3, 3000):
        row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        (tmp_path / f"{rows}.jsonl").write_text((json.dumps(row) + "\n") * rows)
        args = ("--model", model_dir, "--bin-length", 64, "--workers", 0, "--quiet", "--out", tmp_path / str(rows))
        assert omniprep("build", tmp_path / f"{rows}.jsonl", *args).code == 0
    assert len(sizes) == 2 and abs(sizes[0] - sizes[1]) < 16 and sizes[1] < 16_000
