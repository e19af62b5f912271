"""Try the multimodal chat models of transformers, and write the table of what came of it (docs/chat-models.md).

    python docs/make_chat_models.py --try [TYPE ...]   try all types, or these, and keep what came of it (an hour)
    python docs/make_chat_models.py                    write the page from what is kept
    python docs/make_chat_models.py --check            exit 1 where the page is stale

The trial is that of tests/chat_trial.py, each in a process of its own, with at most `SECONDS`.
"""

import contextlib
import io
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
PAGE = ROOT / "docs" / "chat-models.md"
SECONDS = 300

HEAD = """\
# Every chat model of transformers, tried

The family `hf` builds any checkpoint that has a processor, a fast tokenizer and a chat template, with the
checkpoint's own `AutoProcessor`. The other families are faster ways to the same rows ([model families](families.md)).

Each type below was tried with transformers {transformers}. A small random checkpoint was made from its own defaults
(`omniprep init-model --family TYPE`), and then tested with `hf` alone:

- *builds*: rows with text, a system prompt, one image, two images, an image in a later turn, audio and a video
  (whatever the processor takes) are packed.
- *equals*: every id and every bit of every tensor is that of `processor.apply_chat_template(..., tokenize=True)`.
- *trains*: the logits of the packed rows are those of the class's own forward pass over each row alone (to
  {tolerance:g} of their size, in float32), and two steps of `omniprep train` run.

**{exact} of {all} are exact.** The others are refused with the reason in the last column. `omniprep families --all`
prints the same for the installed version. This page is written by `python docs/make_chat_models.py`.

| type | class | media | builds | equals | trains | refused because |
| --- | --- | --- | --- | --- | --- | --- |
"""


def try_type(model_type: str, answers: Any) -> None:
    """Make, build, compare and train one type; runs in a process of its own."""
    import warnings

    warnings.filterwarnings("ignore")
    import torch
    import transformers
    from chat_trial import run_trial

    torch.set_num_threads(1)

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            trial = run_trial(model_type, Path(folder))
        answers.put(trial.as_json())


def try_types(types: list[str]) -> Iterator[dict[str, Any]]:
    """Trials of some types, one after the other."""
    # Imported here once: a trial begins in a copy of this process.
    import torchvision  # noqa: F401
    from chat_trial import Trial

    import omniprep.families.hf.family
    import omniprep.train.run  # noqa: F401
    from omniprep.families.chat_models import chat_models
    from omniprep.testing.init_model import write_model_type

    with tempfile.TemporaryDirectory() as folder:
        write_model_type(Path(folder), 0, "llava")  # fills the caches of transformers, which take 3 s
    context = multiprocessing.get_context("fork")
    for model_type in types:
        answers = context.SimpleQueue()
        process = context.Process(target=try_type, args=(model_type, answers))
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
        ended = "was not done in time" if process.exitcode is None else f"ended with {process.exitcode}"
        failed = Trial(model_type, chat_models()[model_type]).stop("builds", f"its trial {ended}")
        trial = failed.as_json() if answers.empty() else answers.get()
        print(model_type, trial["builds"], trial["equals"], trial["trains"], trial["reason"][:200], flush=True)
        yield trial


def render(record: dict[str, Any]) -> str:
    """The whole page."""
    trials = record["trials"]
    exact = sum(trial["trains"] == "yes" for trial in trials)
    page = HEAD.format(transformers=record["transformers"], exact=exact, all=len(trials), tolerance=record["tolerance"])
    for trial in trials:
        steps = " | ".join(trial[step] or "-" for step in ("builds", "equals", "trains"))
        parts = [trial["reason"], *(f"{kind}: {why}" for kind, why in trial["refused"].items())]
        reason = "; ".join(part for part in parts if part).replace("|", "\\|").replace("<", "&lt;")
        media = ", ".join(trial["modalities"]) or "-"
        page += f"| `{trial['model_type']}` | {trial['model_class']} | {media} | {steps} | {reason} |\n"
    return page


def main() -> int:
    """Try, write or check."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    from omniprep.families.chat_models import TRIALS, chat_models

    record = json.loads(TRIALS.read_text()) if TRIALS.exists() else {"trials": []}
    given = sys.argv[1:]
    if given[:1] == ["--try"]:
        import transformers
        from chat_trial import TOLERANCE

        trials = {trial["model_type"]: trial for trial in record["trials"]}
        for trial in try_types(given[1:] or list(chat_models())):
            trials[trial["model_type"]] = trial
            record = {"transformers": transformers.__version__, "tolerance": TOLERANCE, "trials": sorted_trials(trials)}
            TRIALS.write_text(json.dumps(record, indent=1) + "\n")
    if given == ["--check"]:
        if PAGE.read_text(encoding="utf-8") == render(record):
            return 0
        print("docs/chat-models.md is stale: run python docs/make_chat_models.py", file=sys.stderr)
        return 1
    PAGE.write_text(render(record), encoding="utf-8")
    return 0


def sorted_trials(trials: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """In the order of their types."""
    return [trials[model_type] for model_type in sorted(trials)]


if __name__ == "__main__":
    sys.exit(main())
