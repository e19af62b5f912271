"""Replay docs/first-dataset.md: run its commands in a new folder, and write what they show into the page.

    python docs/make_transcript.py [--model CHECKPOINT]            write the page
    python docs/make_transcript.py [--model CHECKPOINT] --check    compare, and exit 1 where the page is stale
    python docs/make_transcript.py --until build --check           only the commands up to the first `omniprep build`

The page holds two kinds of blocks that are replayed:

- a block below `<!-- file: NAME -->` is saved under that name;
- a `console` block is commands (lines that begin with "$ ") and what each of them shows in a terminal of 80 columns. An
  exit code other than 0 is a last line "(exit code N)".

`data_samples` of the repository lies in the folder. With --model, the command `omniprep init-model model` is not run
(it takes 15 seconds): the checkpoint is linked in its place, and what the page shows of it stays. Times, rates, losses
and generated answers differ between runs or machines, so --check compares them as N (`without_varying_numbers`).
"""

import argparse
import difflib
import os
import re
import sys
import tempfile
from pathlib import Path

from terminal import watch

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "first-dataset.md"
COLUMNS = 80
BLOCK = re.compile(r"^(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
INIT_MODEL = "omniprep init-model model"
NUMBER = r"\d[\d,]*(?:\.\d+)?"
VARYING = (
    (r"\b\d+:\d\d(?::\d\d)?(?: (?:min|h)\b)?", "N s"),  # times above a minute
    (rf",? *{NUMBER}[kMG]? ?\w+/s\b", ""),  # rates: bars leave out those that find no room
    (rf"\b{NUMBER} (?:s|ms|min)\b", "N s"),
    (rf"(loss|lr|grad norm|accuracy|data wait|tokens/s) +{NUMBER}(?:e[-+]\d+)?", r"\1 N"),  # of training
    (r'"response": "(?:[^"\\]|\\.)*"', '"response": "N"'),
    (r"[━╸╺─]{5,}", "━"),  # bars as long as the texts beside them let them be
    (r"[ \t]+", " "),  # columns that are as wide as the numbers in them
)
"""What differs from run to run: patterns, and what is compared in their place."""


def without_varying_numbers(text: str) -> str:
    """A text of a terminal with N for times, rates and losses."""
    for pattern, stands in VARYING:
        text = re.sub(pattern, stands, text)
    return "\n".join(line.strip() for line in text.splitlines())


def run(command: str, folder: Path) -> str:
    """What a command shows."""
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # What an earlier command remembered of a checkpoint is not there for a reader either.
        "XDG_CACHE_HOME": str(folder / ".cache"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    screen, code = watch(["bash", "-c", command], folder, COLUMNS, env=env)
    # Paths of this machine are not the reader's.
    shown = screen.text().replace(str(folder), "~/first") + "\n"
    return shown.lstrip("\n") + (f"(exit code {code})\n" if code else "")


def replay(page: str, folder: Path, model: Path | None, until: str = "") -> str:
    """The page with what its commands show now.

    Args:
        page: The text of the page.
        folder: An empty folder, in which they run.
        model: A checkpoint in place of what `omniprep init-model model` makes.
        until: Name of the last omniprep command that is run; the rest of the page stays as it is.
    """
    (folder / "data_samples").symlink_to(ROOT / "data_samples")
    done, start = "", 0
    for block in BLOCK.finditer(page):
        if block["file"]:
            (folder / block["file"]).write_text(block["text"])
        if block["language"] != "console":
            continue
        done += page[start : block.start("text")]
        for part in re.findall(r"^\$ .*\n(?:(?!\$ ).*\n)*", block["text"], re.MULTILINE):
            typed, _, shown = part.partition("\n")
            command = typed.removeprefix("$ ")
            if command == INIT_MODEL and model is not None:
                (folder / "model").symlink_to(model.resolve())
            else:
                shown = run(command, folder)
            done += f"{typed}\n{shown}"
            if until and command.startswith(f"omniprep {until} "):
                return done + page[block.start("text") + block["text"].index(part) + len(part) :]
        start = block.end("text")
    return done + page[start:]


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Checkpoint in place of the one that the page makes.")
    parser.add_argument("--until", default="", metavar="COMMAND", help="Stop after the first omniprep COMMAND.")
    parser.add_argument("--check", action="store_true", help="Compare, and exit 1 where the page is stale.")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="omniprep-transcript-") as folder:
        new = replay(page, Path(folder).resolve(), options.model, options.until)
    if not options.check:
        PAGE.write_text(new, encoding="utf-8")
        return 0
    shown, expected = (without_varying_numbers(text).splitlines() for text in (new, page))
    differences = list(difflib.unified_diff(expected, shown, "docs/first-dataset.md", "as it is now", lineterm=""))
    if differences:
        print(*differences, "run python docs/make_transcript.py", sep="\n", file=sys.stderr)
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(main())
