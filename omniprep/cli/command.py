"""What commands share: help that ends with examples to paste (a test parses each of them), and --quiet."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import click

from omniprep.cli.options import read_workers_option, with_switch_values
from omniprep.config import Workers

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


class Command(click.Command):
    """A click command with a section of examples, one command line each, printed unwrapped."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.examples = tuple(examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, with switches that are given as flags."""
        return super().parse_args(ctx, with_switch_values(self.params, args))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the options."""
        write_examples(formatter, self.examples)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write a section of examples; their lines are never wrapped, so that they can be copied."""
    if examples:
        with formatter.section("Examples"):
            for line in examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
