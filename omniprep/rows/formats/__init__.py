"""How each form of input that is not JSON is cut into splits and read: a module a form, named as its kind.

A module has the functions of `Format`. It is imported when an input of its kind is met, since the libraries of tables
(deltalake, pyiceberg, pylance) are optional.
"""

import importlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

from omniprep.errors import OmniprepError
from omniprep.rows.choosing import Chooser
from omniprep.rows.inputs import Input
from omniprep.rows.split import Split


class Format(Protocol):
    """What a module of this package has."""

    def splits(self, entry: Input) -> Iterator[Split]:
        """The splits of an input, in the order of its rows."""

    def count_rows(self, split: Split) -> int:
        """Number of rows of a split."""

    def read_rows(self, split: Split, max_row_bytes: int, chooser: Chooser | None = None) -> Iterator[Any]:
        """The rows of a split: dicts, or a `Reject` for one that cannot be read.

        `SKIPPED` stands for a row that `chooser` does not choose (rows/choosing.py).
        """

    def fingerprint(self, split: Split) -> dict[str, Any]:
        """Facts that change when the input does, cheap to get; empty where there are none."""


def format_of(kind: str) -> Format:
    """The module that reads splits of a kind."""
    return cast(Format, importlib.import_module(f"omniprep.rows.formats.{kind}"))


def library(module: str, package: str, uri: str) -> Any:
    """An optional library; OmniprepError with the command that installs it where it is absent."""
    extra = package.removeprefix("py").removesuffix("lake")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise OmniprepError(f"{uri}: reading it needs {package}: pip install 'omniprep[{extra}]' ({error})") from error


_MAX_BATCH_BYTES = 512 << 20
"""Half of the memory that a task asks for: a row is converted while its batch is held."""


@contextmanager
def faults_named(uri: str, what: str, *errors: type[Exception]) -> Iterator[None]:
    """What a table's library raises in the block, Arrow's and the system's errors among it, as one OmniprepError.

    Args:
        uri: The table.
        what: Such as "a Delta table".
        errors: Further exceptions of the library.
    """
    import pyarrow as pa

    try:
        yield
    except OmniprepError:  # a ValueError too
        raise
    except (pa.ArrowException, OSError, ValueError, *errors) as error:
        raise OmniprepError(f"{uri}: cannot be read as {what}: {' '.join(str(error).split())}") from error


def few_rows(group_bytes: int, group_rows: int) -> int:
    """Rows to read at a time so that they hold about 8 MB: a group of rows may have gigabytes of inline media."""
    return max(1, min(64, (8 << 20) * group_rows // max(group_bytes, 1)))


def rows_of_dictionaries(group: Any, columns: Collection[str] | None, rows: int) -> int:
    """At most `rows`, and so few that they take 512 MiB whatever they repeat.

    A dictionary of Parquet stores a value once that each row may repeat: a file of 2 kB can hold a thousand rows of
    50 MB. The values of a row are at most all that its column's dictionary holds.

    Args:
        group: Metadata of the row group.
        columns: Names of those that are read; None for all.
        rows: How many would be read at a time otherwise.
    """
    chunks = [group.column(number) for number in range(group.num_columns)]
    repeated = sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
        and any("DICTIONARY" in encoding for encoding in chunk.encodings)
        and (columns is None or chunk.path_in_schema.split(".")[0] in columns)
    )
    return max(1, min(rows, _MAX_BATCH_BYTES // max(repeated, 1)))
