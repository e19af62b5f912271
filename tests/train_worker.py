"""One rank of a run on the small family: `torchrun … train_worker.py MODEL DATA OUT OPTIONS_JSON`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from train_helpers import small_family

from omniprep.progress import QuietReporter
from omniprep.train import run as run_module
from omniprep.train import score as score_module
from omniprep.train import widths
from omniprep.train.batches import Bins
from omniprep.train.config import ScoreConfig, TrainConfig


def main() -> None:
    model, data, out, options = sys.argv[1:]
    run_module.resolve_family = score_module.resolve_family = lambda *_: small_family(Path(model))
    if "deepspeed" in options:  # its shared-memory collectives for CPUs would be compiled here: minutes
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    given = json.loads(options)
    if given.pop("padded", False):  # as on a GPU; 48 and 64 become 50 and 70
        widths.PADDED_DEVICES, widths.MULTIPLE = ("cpu",), 10
    seen = given.pop("seen", None)
    if seen:  # bins that this rank reads, for the test that counts them
        original = Bins.__getitem__

        def record(self: Bins, number: int) -> dict[str, Any]:
            with open(f"{seen}.{os.getpid()}", "a") as file:
                print(number, file=file)
            return original(self, number)

        Bins.__getitem__ = record
    if given.pop("score", False):
        score_module.score(ScoreConfig(model=model, data=(data,), device="cpu", num_workers=0), QuietReporter())
    config = TrainConfig(model=model, data=(data,), out=out, device="cpu", report_to=("none",), **given)
    run_module.train(config, QuietReporter())


if __name__ == "__main__":
    main()
