"""`omniprep completion`."""

import click
from click.shell_completion import get_completion_class

from omniprep.cli.command import Command
from omniprep.errors import UsageError


@click.command(
    name="completion",
    cls=Command,
    examples=(
        "omniprep completion bash >> ~/.bashrc",
        "omniprep completion zsh >> ~/.zshrc",
        "omniprep completion fish > ~/.config/fish/completions/omniprep.fish",
    ),
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in SHELL."""
    script = get_completion_class(shell)
    if script is None:
        raise UsageError(f"no completion for {shell}")
    click.echo(script(context.find_root().command, {}, "omniprep", "_OMNIPREP_COMPLETE").source())
