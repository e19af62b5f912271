"""`omniprep serve`."""

import os
import sys
import webbrowser

import click

from omniprep.cli.command import CHECK_PIXELS, CheckPixels, Command
from omniprep.printable import say


@click.command(
    name="serve",
    cls=Command,
    examples=("omniprep serve packed/", "omniprep serve s3://lake/packed --port 9000 --no-open"),
)
@click.argument("dataset")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0: any that is free.  [default: 8765 or the next]")
@click.option("--no-open", is_flag=True, help="Print the address, and open no browser.")
@click.option("--model", help="Checkpoint whose tokenizer reads the tokens.  [default: the build's]")
@CHECK_PIXELS
def serve(dataset: str, port: int | None, no_open: bool, model: str | None, check_pixels: CheckPixels) -> None:
    """Serve a page on this machine that reads any bin of a dataset on demand.

    The report, and beside it every bin: by its number, by SOURCE:LINE of a row, by what rows hold or say; pictures,
    frames and spectrograms pixel by pixel as they are stored; all rejects. Only this machine can reach the page
    (127.0.0.1); over SSH: ssh -L 8765:127.0.0.1:8765 HOST. Ctrl-C ends it.
    """
    from omniprep.report.server import Site, listen

    server = listen(port)
    try:
        server.site = Site(dataset, model, check_pixels)
        if server.site.remark:
            say(server.site.remark, error=True)
        say(f"{dataset} is at {server.url}  (Ctrl-C ends it)")
        sys.stdout.flush()  # who starts this from a program waits for the address
        if not no_open and _has_display():
            webbrowser.open(server.url)
        server.serve_forever()
    except KeyboardInterrupt:
        say("stopped", error=True)
    finally:
        server.server_close()


def _has_display() -> bool:
    """Whether a browser would have a window; without one Python would open a browser of text in this terminal."""
    shown = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in shown)
