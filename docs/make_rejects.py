"""Write docs/rejects.md from the enum in omniprep/errors.py; with --check only compare, and exit 1 where stale."""

import sys
from pathlib import Path

from omniprep.errors import RejectCode

PAGE = Path(__file__).resolve().parent / "rejects.md"
HEAD = """\
# Why a row was rejected

A row becomes exactly what the reference makes of it, or it is rejected with one of these codes. The code is in the
column `code` of rows.parquet and, with a message and the row itself, in rejected.jsonl. Codes are stable: a code
keeps its meaning.

This page is generated from `omniprep/errors.py` by `python docs/make_rejects.py`.

| code | when, and what to do |
| --- | --- |
"""


def render() -> str:
    """The whole page."""
    return HEAD + "".join(f"| `{code.value}` | {code.doc} |\n" for code in RejectCode)


def main() -> int:
    """Write or check the page."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(render(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == render():
        return 0
    print("docs/rejects.md is stale: run python docs/make_rejects.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
