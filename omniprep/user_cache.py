"""The folder of the user's cache in which omniprep keeps what it makes once on a machine.

`$XDG_CACHE_HOME/omniprep`, else `~/.cache/omniprep`. Everything there may be deleted at any time: it is made again.
Where it cannot be written, each process makes it again.
"""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder below it, which may not exist."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(home).expanduser()
    except (
        RuntimeError
    ):  # a user without a home, as in some containers: a folder that cannot be made, so nothing is kept
        folder = Path(os.devnull)
    return folder / "omniprep" / name
