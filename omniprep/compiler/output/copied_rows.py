"""The rows of a repack: what the new tables say of rows that were copied is what the old ones did.

Their bins are made by compiler/encode/copied_bins.py.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.merged_names import renamed_input
from omniprep.compiler.output.folder import BuildIdentity
from omniprep.compiler.output.manifest import versions
from omniprep.compiler.pack import Assignment, Rows
from omniprep.compiler.plan.file import PREFERENCE_FACTS
from omniprep.compiler.plan.split_task import merge_unread
from omniprep.config import BuildConfig
from omniprep.errors import DamagedDataError
from omniprep.rows.columns import Note
from omniprep.rows.longline import parse_line
from omniprep.rows.preference import Verdict
from omniprep.shards.codecs import codec_names, recoded
from omniprep.shards.dataset import StoredDataset


@dataclass(slots=True)
class Chosen:
    """Rows of the old datasets that go on, in order."""

    table: pa.Table
    """rows.parquet of all datasets, the chosen lines alone."""
    dataset: NDArray[np.int64]
    """Which dataset each line is of."""
    line: NDArray[np.int64]
    """Its line in that dataset's rows.parquet."""
    renamed: Sequence[Mapping[str, str]] = field(default_factory=tuple)
    """Of each dataset, the new names of its inputs that have one (compiler/merged_names.py)."""
    ended: frozenset[str] = frozenset()
    """Inputs that stay known although none of their rows may go on: those of removed and of excluded rows. So an append
    of the whole lake leaves them out, and does not bring such rows back."""


@dataclass(slots=True)
class CopiedRows:
    """Rows of finished datasets: an `Origin` (compiler/output/manifest.py)."""

    datasets: Sequence[StoredDataset]
    chosen: Chosen
    rows: Rows
    """Facts of the chosen rows; those too long for the new bins have length 0 and a code."""
    assignment: Assignment
    plan_hash: str
    config: BuildConfig
    """Of the repack."""
    identity: BuildIdentity

    def facts(self, shard_seconds: float) -> dict[str, Any]:
        """As `Origin.facts`; what the first source says, where sources have to agree."""
        entries = (
            renamed_input(entry, names)
            for ds, names in zip(self.datasets, self.chosen.renamed, strict=True)
            for entry in ds.manifest["inputs"]
        )
        inputs = {entry["source"]: entry for entry in entries}
        kept = set(self.chosen.table["source"].unique().to_pylist()) | self.chosen.ended
        first = self.datasets[0].manifest
        return {
            **{name: value for name, value in first.items() if name not in ("generations", "tables")},
            "omniprep": versions()["omniprep"],
            "inputs": [entry for source, entry in inputs.items() if source in kept],
            "seconds": {"repack": round(shard_seconds, 1)},
            "needed_flags": list(dict.fromkeys(flag for ds in self.datasets for flag in ds.record.needed_flags)),
            "video_readers": self._video_readers(),
            "pixel_codecs": codec_names(recoded(self.datasets[0].layout.columns, self.config.pixel_codec)),
            "repacked_from": [
                {"uri": ds.uri, "plan_sha256": ds.manifest.get("plan_sha256"), "sha256": entry["sha256"]}
                for ds, entry in zip(self.datasets, self.identity.inputs, strict=True)
            ],
            "chosen": {name: self.identity.config[name] for name in ("source", "kind", "exclude")},
        }

    def _video_readers(self) -> dict[str, int]:
        """Videos by who decoded them, summed over the sources; which rows they are of is not kept."""
        total = Counter[str]()
        for dataset in self.datasets:
            counts = dataset.manifest.get("video_readers")
            for name, count in counts.items() if isinstance(counts, dict) else ():
                total[name] += count if isinstance(count, int) else 0
        return dict(sorted(total.items()))

    @property
    def left_out(self) -> dict[str, int]:
        """As `Origin.left_out`: what was left out of the sources was never a row of theirs."""
        return {}

    def unread(self) -> dict[str, list[Any]]:
        """As `Origin.unread`, summed over the sources.

        The sources say for each column how many rows have it, and for each row only whether it has any such column. So
        after a choice of rows the number of a column is the most that it can be.
        """
        total: dict[str, list[Any]] = {}
        with_note = int(((self.rows.facts["notes"] & Note.UNREAD_COLUMNS) > 0).sum())
        for dataset in self.datasets if with_note else ():
            columns = dataset.record.counted(dataset.uri).unread_columns
            merge_unread(total, {name: (column.rows, column.option) for name, column in columns.items()})
        return {name: [min(rows, with_note), option] for name, (rows, option) in total.items()}

    def lines(self, part: slice) -> tuple[pa.Array, NDArray[np.int64]]:
        """As `Origin.lines`."""
        table = self.chosen.table.slice(part.start, part.stop - part.start)
        return table["source"].combine_chunks(), table["line"].to_numpy()

    def rejected(self, numbers: NDArray[np.int64], late: dict[int, dict[str, Any]]) -> Iterator[bytes]:
        """As `Origin.rejected`: lines of the sources as they were; rows that are too long now have no content."""
        assert not late, "nothing is decoded, so nothing is rejected late"
        rows = self.chosen.table.select(["source", "line", "length"]).take(pa.array(numbers)).to_pylist()
        old_names = [{new: old for old, new in names.items()} for names in self.chosen.renamed]
        old_lines = [_rejected_lines(dataset) for dataset in self.datasets]
        for number, row in zip(numbers.tolist(), rows, strict=True):
            if row["length"] is not None:  # it was packed
                reject = {"source": row["source"], "line": row["line"], "code": self.rows.facts["code"][number]}
                message = f"{row['length']} tokens, the limit is {self.config.stored_limit}"
                yield json.dumps({**reject, "message": message, "row": None}, ensure_ascii=False).encode() + b"\n"
                continue
            # Both are in the order of the input rows, so each file is read once, line by line.
            index = self.chosen.dataset[number]
            key = old_names[index].get(row["source"], row["source"]), row["line"]
            line = next((line for old_key, line in old_lines[index] if old_key == key), None)
            if line is None:
                uri = self.datasets[index].uri
                raise DamagedDataError(f"{uri}: rejected.jsonl lacks the row {key[0]}:{key[1]}; see omniprep verify")
            yield line if key[0] == row["source"] else _with_source(line, key[0], row["source"])


def _rejected_lines(dataset: StoredDataset) -> Iterator[tuple[tuple[str, int], bytes]]:
    """Source and line number of each line of rejected.jsonl, and the line."""
    uri = dataset.table_uri("rejected.jsonl")
    if not io.exists(uri):
        return
    with io.open_input(uri) as file:
        for number, line in enumerate(file, 1):
            try:
                reject = parse_line(line)
                key = str(reject["source"]), int(reject["line"])
            except (ValueError, KeyError, TypeError) as error:
                raise DamagedDataError(f"{uri}: line {number} is no rejected row ({error})") from error
            yield key, line


def _with_source(line: bytes, old: str, new: str) -> bytes:
    """A line of rejected.jsonl with another source; the row, of perhaps hundreds of MB, is not parsed."""
    head = b'{"source": ' + json.dumps(old, ensure_ascii=False).encode(errors="replace")
    if not line.startswith(head):  # another program wrote it
        return json.dumps({**parse_line(line), "source": new}, ensure_ascii=False).encode(errors="replace") + b"\n"
    return b'{"source": ' + json.dumps(new, ensure_ascii=False).encode(errors="replace") + line[len(head) :]


def with_verdicts(table: pa.Table) -> pa.Table:
    """rows.parquet with the columns of preference rows: those of a dataset of ordinary rows say that it has none."""
    if "verdict" in table.column_names:
        return table
    lengths = table["length"].fill_null(0).to_numpy()
    values = {name: np.zeros(len(lengths), dtype) for name, dtype in PREFERENCE_FACTS.items()}
    values |= {"verdict": np.full(len(lengths), Verdict.NONE, np.int8), "chosen_length": lengths.astype(np.int32)}
    for name, array in values.items():
        table = table.append_column(name, pa.array(array))
    return table
