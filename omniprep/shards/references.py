"""reference_logps.parquet: log-probabilities that a reference model gives the answers of a dataset, computed once.

`omniprep score` writes the file beside index.parquet; shards and manifest stay as they are. It says which model made
it, and of which content: after an append, a removal of rows or a repack it is of another content and is not used. A
line is a sequence of a bin, bins in the order of index.parquet.
"""

import json
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omniprep import io
from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.shards.index import read_parquet_table
from omniprep.shards.names import REFERENCES
from omniprep.shards.typed import parse_json, typed_record

FORMAT = 1
_KEY = b"omniprep"
_SCHEMA = pa.schema([("bin", pa.int64()), ("reference_logps", pa.float32()), ("reference_kl_logps", pa.float32())])


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceModel:
    """What computed the log-probabilities of a dataset, and of which content."""

    format: int = FORMAT
    content: str
    """`content_hash` of the dataset."""
    model: str
    """The checkpoint as it was named to `omniprep score`, for messages."""
    weights: str
    """XXH3-128 of its weights (`omniprep.train.score.weights_hash`)."""
    adapter: str = ""
    """XXH3-128 of the weights of an adapter on it; empty without one."""
    dtype: str = ""
    attention: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class References:
    """The log-probabilities of all bins.

    Attributes:
        made_by: What computed them.
        begins: int64 (bins + 1): the first line of each bin.
        logps: float32 (sequences): sums over the labeled tokens of each sequence.
        kl_logps: The same of mismatched answers (KTO), or None where they were not computed.
    """

    made_by: ReferenceModel
    begins: np.ndarray
    logps: np.ndarray
    kl_logps: np.ndarray | None

    def of_bin(self, number: int, sequences: int) -> dict[str, np.ndarray]:
        """The values of a bin: reference_logps (R,) and, where they were computed, reference_kl_logps (R,)."""
        start, end = self.begins[number : number + 2].tolist()
        if end - start != sequences:
            raise DamagedDataError(
                f"{REFERENCES}: has {end - start} values for the {sequences} sequences of bin {number}"
            )
        values = {"reference_logps": self.logps[start:end]}
        return values if self.kl_logps is None else {**values, "reference_kl_logps": self.kl_logps[start:end]}


def write_references(uri: str, values: References) -> None:
    """Write the file of a dataset at once: a run that is killed leaves the one before it, or none."""
    columns = {
        "bin": np.repeat(np.arange(len(values.begins) - 1), np.diff(values.begins)),
        "reference_logps": values.logps.astype(np.float32),
    }
    if values.kl_logps is not None:
        columns["reference_kl_logps"] = values.kl_logps.astype(np.float32)
    schema = pa.schema([_SCHEMA.field(name) for name in columns])
    text = json.dumps(asdict(values.made_by), sort_keys=True)
    with (
        io.atomic_writer(io.join(uri, REFERENCES)) as file,
        pq.ParquetWriter(file, schema, compression="zstd", store_schema=False) as writer,
    ):
        writer.write_table(pa.table(columns, schema=schema))
        writer.add_key_value_metadata({_KEY: text.encode()})


def read_references(uri: str, bins: int) -> References | None:
    """Read the file of a dataset, which may be a stranger's; None where there is none.

    Raises:
        DamagedDataError: It cannot be read, or is not of this form.
        OmniprepError: It is of a newer format.
    """
    path = io.join(uri, REFERENCES)
    if not io.exists(path):
        return None
    # A log-probability takes 3 bytes compressed, the number of its bin a few bits.
    table = read_parquet_table(path, _SCHEMA, nulls=(), most_rows_a_byte=4, optional=("reference_kl_logps",))
    text = (table.schema.metadata or {}).get(_KEY)
    if text is None:
        raise DamagedDataError(f"{path}: does not say which model made it")
    content = parse_json(text, path)
    if isinstance(content, dict) and content.get("format") != FORMAT:
        raise OmniprepError(f"{path}: of a newer format: compute it again by omniprep score")
    made_by = typed_record(ReferenceModel, content, path)
    numbers = table["bin"].to_numpy()
    if len(numbers) and (numbers[0] < 0 or numbers[-1] >= bins or (np.diff(numbers) < 0).any()):
        raise DamagedDataError(f"{path}: its lines are not in the order of the bins")
    logps = {name: table[name].to_numpy() for name in table.column_names if name in _SCHEMA.names[1:]}
    if not all(np.isfinite(values).all() for values in logps.values()):
        raise DamagedDataError(f"{path}: a log-probability is no number")
    return References(
        made_by=made_by,
        begins=np.searchsorted(numbers, np.arange(bins + 1)),
        logps=logps["reference_logps"],
        kl_logps=logps.get("reference_kl_logps"),
    )
