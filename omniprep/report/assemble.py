"""Put a page together from the pieces in omniprep/report/web: one frame, one style, scripts that pages share.

A page loads nothing but, where it is served, from its own server: its Content-Security-Policy forbids every other
request and admits only the script whose hash it has. Texts of a dataset are embedded as JSON (with `<` escaped) and set
as text, never as markup, so a row that holds HTML is shown and not run.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np


def resource(name: str) -> str:
    """The text of a piece."""
    return files("omniprep.report").joinpath("web", name).read_text(encoding="utf-8")


def fill(template: str, parts: Mapping[str, str]) -> str:
    """A template with each %%NAME%% replaced once; what replaces it is not looked through again."""
    pieces = template.split("%%")
    return "".join(piece if number % 2 == 0 else parts[piece] for number, piece in enumerate(pieces))


def as_json(data: Any) -> str:
    """Data as JSON text that may stand inside a script element: only "<" could end it there, or open a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), default=_default)
    return text.replace("<", "\\u003c")


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters: a longer one without its middle."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - most // 2 - 1) :]}"


def _default(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON type")


def policy(script: str, *, served: bool = False) -> str:
    """The Content-Security-Policy of a page with this script; a served page may ask its own server."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = "; connect-src 'self'; img-src data: 'self'" if served else "; img-src data:"
    return (
        f"default-src 'none'{own}; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )


def assemble(
    data: Mapping[str, Any], main: str, sections: Mapping[str, str], scripts: Sequence[str], *, served: bool = False
) -> str:
    """A whole page as HTML.

    Args:
        data: What the scripts show, as JSON types.
        main: HTML of the page's content.
        sections: Ids of the sections that the head leads to, and their names.
        scripts: Names of the pieces of script, in order.
        served: Whether a server of ours answers the page's requests.
    """
    script = "".join(resource(name) for name in scripts)
    links = " ".join(f'<a href="#{name}">{text}</a>' for name, text in sections.items())
    parts = {"POLICY": policy(script, served=served), "STYLE": resource("style.css"), "NAV": links, "MAIN": main}
    return fill(resource("frame.html"), {**parts, "DATA": as_json(data), "APP": script})
