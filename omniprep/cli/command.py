"""What commands share: help that ends with examples to paste (a test parses each of them), --quiet, and the options of
programs that follow a run.
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import click

from omniprep.cli.options import OBSERVED, SwitchOption, field_options, read_workers_option, with_switch_values
from omniprep.config import Workers
from omniprep.errors import UsageError
from omniprep.observe.command import LOG_JSON, this_command
from omniprep.observe.options import ObserveOptions
from omniprep.printable import say

if TYPE_CHECKING:
    from omniprep.progress import Reporter

Function = TypeVar("Function", bound=Callable[..., Any])

CheckPixels = Literal["first", "always", "never"]
CHECK_PIXELS = click.option(
    "--check-pixels",
    type=click.Choice(get_args(CheckPixels)),
    default="first",
    show_default=True,
    help="Of datasets in --pixel-codec source: when pixels decoded here are compared with those of the build.",
)


def _check_workers(ctx: click.Context, option: click.Parameter, value: Workers) -> Workers:
    if value != "auto" and value < 0:
        raise click.BadParameter("expected auto, or 0 or more")
    return value


WORKERS = click.option(
    "--workers",
    type=click.types.FuncParamType(read_workers_option),
    callback=_check_workers,
    default="auto",
    show_default=True,
    metavar="auto|N",
    help="Ray workers; auto: the CPUs, where the work takes long; 0: this process. The bytes are the same.",
)
RAY_ADDRESS = click.option("--ray-address", help="Join a running Ray cluster instead of starting a local one.")
QUIET = click.option("--quiet", is_flag=True, help="No progress, only the result.")


def observed(command: Function) -> Function:
    """Decorator that gives a command --quiet, which it receives, and the options of `ObserveOptions`, which
    `command_progress` reads.
    """
    return QUIET(field_options(ObserveOptions, expose_value=False, callback=_keep)(command))


def _keep(ctx: click.Context, option: click.Parameter, value: Any) -> Any:
    """Keep an option of `ObserveOptions`, checked before anything is loaded; OMNIPREP_LOG_JSON counts as --log-json."""
    given = ctx.meta.setdefault(OBSERVED, {})
    if value is not None:
        given[option.name] = value
    if option.name == "log_json":
        if value is None and os.environ.get(LOG_JSON):
            given["log_json"] = True
        if given.get("log_json"):
            this_command.write_json()
    ObserveOptions(**given)
    return value


@contextmanager
def command_progress(*, quiet: bool = False) -> "Iterator[Reporter]":
    """What the command that runs reports to: to people, and to the programs that its options name."""
    from omniprep.observe.reporter import command_reporter

    ctx = click.get_current_context()
    options = ObserveOptions(**ctx.meta.get(OBSERVED, {}))
    if options.log_json:  # of the file of --config
        this_command.write_json()
    with command_reporter(ctx.info_name or "", options, quiet=quiet) as progress:
        yield progress


def announce(command: str, inputs: Sequence[str], model: str, *, quiet: bool) -> None:
    """Tell who watches a terminal what a command is about to read, before libraries are imported that take a second.

    Logs do without: what fails leaves its one error line there, and --log-json events alone.
    """
    if sys.stderr.isatty() and not quiet and not click.get_current_context().meta.get(OBSERVED, {}).get("log_json"):
        more = f" and {len(inputs) - 1:,} more" if len(inputs) > 1 else ""
        say(f"{command} of {inputs[0]}{more} for {model}", error=True)
        from omniprep.families.tokenizer_cache import is_new

        if is_new(model):
            say(f"first use of {model} on this machine: its tokenizer is made, which takes some seconds", error=True)


class Command(click.Command):
    """A click command with a section of examples, one command line each, printed unwrapped."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.examples = tuple(examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, with switches that are given as flags; says where an option's value or place is missing."""
        self._refuse_options_as_values(args)
        try:
            return super().parse_args(ctx, with_switch_values(self.params, args))
        except click.NoSuchOption as error:
            group = ctx.parent.command if ctx.parent is not None else None
            written = [arg for arg in args if arg.startswith("-") and not arg.startswith("--")]
            long = next((f"-{arg}" for arg in written if any(f"-{arg}" in param.opts for param in self.params)), "")
            if long and len(error.option_name) == 2:  # click reads -model as -m -o -d ...
                raise click.UsageError(f"no option {long[1:]!r}; did you mean {long!r}?", ctx) from error
            if group is not None and any(error.option_name in param.opts for param in group.params):
                where = f"omniprep {error.option_name} {ctx.info_name} ..."
                raise click.UsageError(f"{error.option_name} goes before the command: {where}", ctx) from error
            raise

    def _refuse_options_as_values(self, args: Sequence[str]) -> None:
        """Refuse `--model --out x`, which click reads as a model of the name "--out"."""
        options = {name: param for param in self.params if isinstance(param, click.Option) for name in param.opts}
        for name, value in itertools.pairwise(args[: args.index("--")] if "--" in args else args):
            option = options.get(name)
            alone = option is None or option.is_flag or option.count or isinstance(option.flag_value, str)
            if not alone and not isinstance(option, SwitchOption) and value.partition("=")[0] in options:
                raise UsageError(f"{name} needs a value, and {value} follows; see `omniprep {self.name} --help`")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the options."""
        write_examples(formatter, self.examples)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write a section of examples; their lines are never wrapped, so that they can be copied."""
    if examples:
        with formatter.section("Examples"):
            for line in examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
