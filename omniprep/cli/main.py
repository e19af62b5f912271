"""The `omniprep` command: a table of commands, each imported when it is called, and the exit codes of errors.

`omniprep --help` imports click and nothing else (0.15 s); torch, pyarrow, transformers and Ray are imported in the
functions that use them. Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted. Progress goes to standard error,
results to standard output.
"""

import atexit
import importlib
import io
import os
import re
import signal
import sys
import threading
import traceback
from typing import cast

import click

from omniprep import __version__
from omniprep.cli.command import write_examples
from omniprep.errors import OmniprepError, Terminated, UsageError, did_you_mean
from omniprep.garbage import collect_seldom
from omniprep.observe.command import LOG_JSON, this_command
from omniprep.printable import printable, quote_libraries
from omniprep.progress import PLAIN

# Each command's line in --help. The command is found by its name: `init_model` in omniprep/cli/init_model_cmd.py.
COMMANDS = {
    "build": "Compile chats into a packed dataset.",
    "plan": "Lengths, fill, bytes and rejects of a build, before anything is decoded.",
    "inspect": "Show what the model will see of a bin or a row.",
    "report": "Write report.html: what is in a dataset, on one page; or compare two.",
    "serve": "A page on this machine that reads any bin of a dataset on demand.",
    "stats": "The numbers of a dataset, as a table or JSON.",
    "sample": "Write rows back as readable JSONL with their media.",
    "export": "Prompts for training by rewards: chats, or token ids for vLLM.",
    "status": "How far a build is, who works on it, and how to go on.",
    "verify": "Check a dataset's checksums and that no row was lost.",
    "repack": "Another bin length, seed or choice of rows, with no decode.",
    "append": "Add new inputs to a built dataset; what is there stays byte for byte.",
    "remove": "Take rows out of a dataset for good.",
    "push": "Upload a dataset to the Hugging Face Hub; resumable.",
    "pull": "Download a pushed dataset.",
    "score": "Store a reference model's log-probabilities of preference rows.",
    "train": "Train a model on datasets; under torchrun on many GPUs.",
    "infer": "Answer chat rows with a trained model.",
    "families": "Model families: from where, for which checkpoints, limits and options.",
    "doctor": "Versions, families, and dummy rows through every family.",
    "completion": "Print the completion script of a shell.",
    "init-model": "Make a small random Qwen2.5-Omni checkpoint with the real vocabulary.",
}


INTERRUPTED = 130
TRAINING = ("train", "infer", "score")
"""Commands that hold memory of GPUs, and connections between them: they keep Python's ways."""
"""Exit status after Ctrl-C, as shells have it: 128 and the number of the signal."""
SHOW_CURSOR = "\x1b[?25h"

EXAMPLES = (
    "omniprep plan chats/*.jsonl --model Qwen/Qwen2.5-Omni-7B --bin-length 16384",
    "omniprep build chats/*.jsonl --model Qwen/Qwen2.5-Omni-7B --bin-length 16384 --out packed/ --workers 16",
    "omniprep inspect packed/",
    "omniprep train packed/ --model Qwen/Qwen2.5-Omni-7B --out run/ --lora",
)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; a wrong name gets a suggestion."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which people need them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        return cast(click.Command, getattr(importlib.import_module(f"omniprep.cli.{name}_cmd"), name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a wrong name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = did_you_mean(args[0], COMMANDS)
            if not hint and os.path.exists(args[0]):
                hint = f"; the command comes first, such as: omniprep plan {args[0]} --model ..."
            elif args[0] == "help":
                hint = "; write omniprep --help, or omniprep COMMAND --help"
            elif not hint:
                hint = "; omniprep --help lists them"
            raise click.UsageError(f"no command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, so that none is imported for --help."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the commands."""
        write_examples(formatter, EXAMPLES)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="omniprep", message="%(prog)s %(version)s")
@click.option("--plain", is_flag=True, help="Progress as plain lines, also on a terminal.")
@click.option("--log-json", is_flag=True, help="Standard error as lines of JSON, for log collectors.")
@click.pass_context
def cli(ctx: click.Context, plain: bool, log_json: bool) -> None:
    """Compile multimodal chats once, offline, into packed shards that a trainer only has to copy.

    `omniprep COMMAND --help` shows a command's options and examples.
    """
    for enabled, variable in ((plain, PLAIN), (log_json, LOG_JSON)):
        if enabled:
            os.environ[variable] = "1"
    this_command.name = ctx.invoked_subcommand or ""
    if ctx.invoked_subcommand not in TRAINING:
        collect_seldom()
    if os.environ.get(LOG_JSON):
        this_command.write_json()


def run(args: list[str] | None = None) -> int:
    """Run one command line and return its exit code; only a defect of omniprep shows a traceback."""
    quote_libraries()
    this_command.begin(sys.argv[1:] if args is None else args)
    try:
        return _run(args)
    finally:
        this_command.end()


def _run(args: list[str] | None) -> int:
    try:
        result = cli.main(args, prog_name="omniprep", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        _tell(UsageError(error.format_message()), shown.getvalue().rstrip("\n"), lines=True)
        return error.exit_code
    except UsageError as error:
        _tell(error, f"Error: {error}")
        return 2
    except OmniprepError as error:
        if os.environ.get("OMNIPREP_TRACEBACK"):
            traceback.print_exception(error)
        _tell(error, f"Error: {error}")
        return 1
    except (KeyboardInterrupt, click.Abort) as error:
        terminated = isinstance(error, Terminated) or isinstance(error.__context__, Terminated)
        what = "Terminated" if terminated else "Interrupted"
        _tell(error, f"{what}. The same command again goes on where this one stopped.")
        return 1 if terminated else INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): without this the interpreter's last flush would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None or isinstance(error.filename, int):
            raise  # omniprep should have caught it and named the file: a defect
        name = re.sub(r"\.[0-9a-f]{8}\.tmp$", "", os.fsdecode(error.filename))  # what the file was to become
        _tell(error, f"Error: {name}: {error.strerror}")
        return 1


def _tell(error: BaseException, text: str, *, lines: bool = False) -> None:
    """Print what ended a command on standard error: as a line of text, or as an event where the stream is JSON."""
    if this_command.plain is None:
        print(printable(text, lines=lines), file=sys.stderr, flush=True)
    elif (line := this_command.error_line(error)) is not None:
        print(printable(line), file=sys.stderr, flush=True)


def main() -> None:
    """Entry point of the console script."""
    # transformers 5 warns seven times about the talker's ids in every Qwen2.5-Omni config; workers inherit this.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        code = run()
    except KeyboardInterrupt:  # another Ctrl-C, while the first was told
        code = INTERRUPTED
    if code == INTERRUPTED:
        # From here on Ctrl-C ends the process at once: Python would print tracebacks of its own shutdown.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if sys.stderr.isatty():
            sys.stderr.write(SHOW_CURSOR)  # if a Ctrl-C kept the bars from doing it
            sys.stderr.flush()
    elif "torch" in sys.modules and "ray" not in sys.modules and this_command.name not in TRAINING:
        end_at_once(code)
    sys.exit(code)


def end_at_once(code: int) -> None:
    """End the process as Python does, but without taking its modules apart: with torch that takes 0.8 s of CPU.

    Threads are awaited, exit handlers run and streams are flushed. Returns where a stream cannot be: Python says so.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # what Python calls first when it ends; it also ends pools
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # the reader has gone, or a stream is closed
        return
    os._exit(code)
