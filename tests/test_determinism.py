"""The same bytes whatever the number of workers, the cluster, the order in which tasks end, or the thread settings."""

import os
import random
from pathlib import Path

import pytest

from tests.reliability import command, in_fork, make_chats, outcome, run_cli, wait_for, warm


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> tuple[list[Path], dict[str, str]]:
    """Inputs, and the outcome of a build in one process."""
    folder = tmp_path_factory.mktemp("here")
    warm(model_dir)
    inputs = make_chats(folder / "in", rows=40, files=4)
    assert wait_for(in_fork(lambda: run_cli(command(inputs, model_dir, folder / "out")), folder / "log")) == 0
    return inputs, outcome(folder / "out")


def build(args: list[str], log: Path, before: object = None) -> None:
    def work() -> int:
        if callable(before):
            before()
        return run_cli(args)

    assert wait_for(in_fork(work, log), 900) == 0, log.read_text()[-3000:]


def test_a_second_time(tmp_path: Path, model_dir: Path, here) -> None:
    build(command(here[0], model_dir, tmp_path / "out"), tmp_path / "log")
    assert outcome(tmp_path / "out") == here[1]


def test_tasks_in_any_order(tmp_path: Path, model_dir: Path, here) -> None:
    """Tasks run, and end, in a shuffled order: each stage takes its tasks by effort, which is random here."""
    from omniprep.compiler.run.stages import Stage

    for seed in range(3):

        def shuffled(seed: int = seed) -> None:
            rng, in_order = random.Random(seed), Stage.run

            def in_disorder(stage, tasks, efforts=()):
                return in_order(stage, tasks, efforts=[rng.random() for _ in tasks])

            Stage.run = in_disorder

        build(command(here[0], model_dir, tmp_path / str(seed)), tmp_path / "log", shuffled)
        assert outcome(tmp_path / str(seed)) == here[1]


def test_thread_settings(tmp_path: Path, model_dir: Path, here) -> None:
    import torch

    def many() -> None:
        os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = "4"
        torch.set_num_threads(4)

    build(command(here[0], model_dir, tmp_path / "out"), tmp_path / "log", many)
    assert outcome(tmp_path / "out") == here[1]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers(tmp_path: Path, model_dir: Path, here, workers: int) -> None:
    build(command(here[0], model_dir, tmp_path / "out", "--workers", workers), tmp_path / "log")
    assert outcome(tmp_path / "out") == here[1]
