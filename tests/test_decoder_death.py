"""Rows that kill: a family whose callbacks crash, hang and eat memory for real costs those rows, and nothing else."""

import json
from pathlib import Path

import pytest

from tests.reliability import codes, command, in_fork, make_chats, outcome, plant, run_cli, wait_for, warm

LIMITS = ("--decode-timeout", 15, "--decode-memory", 1_500 << 20)
EXPECTED = {
    "plan_crash": "decoder_crash",
    "plan_hang": "decode_timeout",
    "plan_memory": "decode_memory",
    "crash": "decoder_crash",
    "hang": "decode_timeout",
    "memory": "decode_memory",
    "exit": "decoder_crash",
}


def build_until_done(args: list[str], log: Path, runs: int = 12) -> int:
    """Repeat a build without Ray, as a person would, until it ends well; returns how often it died."""
    for died in range(runs):
        if wait_for(in_fork(lambda: run_cli(args), log), 600) == 0:
            return died
    raise AssertionError(log.read_text()[-3000:])


def check_only_those_are_lost(inputs: list[Path], out: Path, deadly: tuple[str, ...]) -> None:
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert sorted(r["code"] for r in rejected) == sorted(EXPECTED[d] for d in deadly), rejected
    assert all(r["row"]["images"] for r in rejected)
    counts = json.loads((out / "manifest.json").read_text())["counts"]["rows"]
    lines = sum(len(path.read_text().splitlines()) for path in inputs)
    assert counts == {"read": lines, "packed": lines - len(deadly), "rejected": len(deadly)}


@pytest.mark.parametrize("deadly", [("plan_crash", "crash"), pytest.param(tuple(EXPECTED), marks=pytest.mark.slow)])
def test_in_this_process(tmp_path: Path, model_dir: Path, deadly: tuple[str, ...]) -> None:
    inputs = make_chats(tmp_path / "in", deadly=deadly)
    warm(model_dir, plant(tmp_path))
    args = command(inputs, model_dir, tmp_path / "out", "--plugin", plant(tmp_path), "--family", "deadly", *LIMITS)
    died = build_until_done(args, tmp_path / "log")
    assert 0 < died <= len(deadly)
    check_only_those_are_lost(inputs, tmp_path / "out", deadly)
    assert not list(tmp_path.glob("out/**/*.begun")) + list(tmp_path.glob("out/**/*.tmp"))


@pytest.mark.slow
def test_on_ray(tmp_path: Path, model_dir: Path) -> None:
    """One run is enough: the driver sees the dead worker. The bytes are those of a build without Ray."""
    deadly = ("plan_crash", "crash", "hang", "memory")
    inputs = make_chats(tmp_path / "in", deadly=deadly)
    more = ("--plugin", plant(tmp_path), "--family", "deadly", *LIMITS)
    log = tmp_path / "log"
    args = command(inputs, model_dir, tmp_path / "ray", *more, "--workers", 2)
    assert wait_for(in_fork(lambda: run_cli(args), log), 900) == 0, log.read_text()[-3000:]
    check_only_those_are_lost(inputs, tmp_path / "ray", deadly)
    assert "a worker died" in log.read_text()
    build_until_done(command(inputs, model_dir, tmp_path / "here", *more), log)
    assert outcome(tmp_path / "ray") == outcome(tmp_path / "here")


def test_a_death_without_a_killer_changes_nothing(tmp_path: Path, model_dir: Path) -> None:
    """A task whose mark is found is tried row by row; where no row kills, the bytes are those of an undisturbed
    build."""
    inputs = make_chats(tmp_path / "in")
    warm(model_dir)
    log = tmp_path / "log"
    for out in ("plain", "marked"):
        args = command(inputs, model_dir, tmp_path / out)
        plan = ["plan", *args[1:]]
        assert wait_for(in_fork(lambda plan=plan: run_cli(plan), log)) == 0, log.read_text()
        if out == "marked":
            (tmp_path / out / "plan" / "encode-000000.begun").touch()
        assert wait_for(in_fork(lambda args=args: run_cli(args), log)) == 0, log.read_text()
    assert outcome(tmp_path / "plain") == outcome(tmp_path / "marked")
    assert "tried one by one" in log.read_text()
    assert codes(tmp_path / "marked") == {}
