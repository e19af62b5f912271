"""A rank that is done leaves nothing behind that waits or warns at exit."""

import pytest
from torch import distributed

from omniprep.train import run as run_module


@pytest.mark.parametrize("ranks", ["one process", "a group"])
def test_the_process_group_is_gone_when_the_command_is_done(omniprep, tmp_path, monkeypatch, ranks):
    def train(options, progress):
        if ranks == "a group":  # as accelerate makes one under torchrun
            distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        return tmp_path / "run"

    monkeypatch.setattr(run_module, "train", train)
    try:
        result = omniprep("train", str(tmp_path), "--model", "m", "--out", str(tmp_path / "run"))
        assert result.code == 0, result.err
        assert not distributed.is_initialized()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def test_a_run_that_failed_does_not_wait_for_its_ranks(omniprep, tmp_path, monkeypatch):
    from omniprep.errors import OmniprepError

    def train(options, progress):
        raise OmniprepError("out of luck")

    monkeypatch.setattr(run_module, "train", train)
    monkeypatch.setattr(run_module, "leave_group", lambda: pytest.fail("another rank may be in an operation"))
    assert omniprep("train", str(tmp_path), "--model", "m", "--out", str(tmp_path / "run")).code == 1
