"""Rejected rows as a page shows them: code, place, reason, and the beginning of the row.

A row is not parsed and not copied whole, since inline media may make it huge.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from omniprep import io
from omniprep.errors import DamagedDataError, RejectCode
from omniprep.report.assemble import as_json, shortened
from omniprep.shards.dataset import StoredDataset
from omniprep.shards.typed import parse_json

EXAMPLES = 12
"""Rejects of each code that a report shows with their row, as long as all fit into EXAMPLE_BYTES."""
EXAMPLE_BYTES = 120_000
ROW_BYTES, MESSAGE_CHARS = 1500, 2000
BLOCK_BYTES = 1 << 20
"""Bytes that are read at once: a line may hold hundreds of MB, of which only the beginning is kept."""
_ROW_KEY = b', "row": '


def reject_codes(dataset: StoredDataset) -> list[dict[str, Any]]:
    """The codes of a dataset with their counts and meanings, the commonest first."""
    known = {str(code): code.doc for code in RejectCode}
    counts = dataset.counts["rejected_by_code"]
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return [{"code": code, "count": count, "doc": known.get(code, "")} for code, count in ordered]


def reject_facts(dataset: StoredDataset) -> dict[str, Any]:
    """Rejects by code with what the code means, and examples of each, the first in rejected.jsonl."""
    counts = dataset.counts["rejected_by_code"]
    return {"codes": reject_codes(dataset), "examples": reject_examples(dataset.table_uri("rejected.jsonl"), counts)}


def reject_examples(uri: str, counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """The first rejects of each code in a rejected.jsonl, given how many there are of each."""
    wanted = {code: min(count, EXAMPLES) for code, count in counts.items()}
    seen: Counter[str] = Counter()
    examples: list[dict[str, Any]] = []
    if not wanted or not io.exists(uri):
        return examples
    # Each code has its share of the bytes; its first example is cut to it, further ones are shown as they fit.
    share = EXAMPLE_BYTES // len(wanted)
    used: Counter[str] = Counter()
    for reject, _ in read_rejects(uri):
        code = reject["code"]
        if seen[code] < wanted.get(code, 0):
            seen[code] += 1
            while used[code] == 0 and _size(reject) > share and max(len(reject["row"]), len(reject["message"])) > 40:
                reject |= {
                    name: shortened(reject[name], max(len(reject[name]) // 2, 40)) for name in ("message", "row")
                }
            if used[code] + _size(reject) <= share or used[code] == 0:
                examples.append(reject)
                used[code] += _size(reject)
        if all(seen[code] >= count for code, count in wanted.items()):
            break
    return examples


def _size(reject: Mapping[str, Any]) -> int:
    """Bytes that a reject takes in a page."""
    return len(as_json(reject).encode(errors="replace"))


def read_rejects(uri: str, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Lines of a rejected.jsonl from a byte on: source, line, code, message, the row's beginning; and where the next
    line begins.

    Raises:
        DamagedDataError: A line that no build wrote.
    """
    with io.open_input(uri) as file:
        file.seek(offset)
        for line, length in _beginnings(file):
            offset += length
            # The row is the last value. No message can hold the key: its quotes would be escaped.
            row_start = line.find(_ROW_KEY)
            reject = parse_json(line[:row_start] + b"}", uri) if row_start >= 0 else None
            if not isinstance(reject, dict) or not isinstance(reject.get("code"), str):
                raise DamagedDataError(f"{uri}: a line that no build wrote")
            row_start += len(_ROW_KEY)
            size = length - row_start - len(b"}\n")
            text = line[row_start : row_start + min(size, ROW_BYTES)].decode(errors="ignore")
            shown = {name: reject.get(name, "") for name in ("source", "line", "code")}
            shown["message"] = shortened(str(reject.get("message", "")), MESSAGE_CHARS)
            yield {**shown, "row": text if size <= ROW_BYTES else f"{text}… ({size:,} bytes)"}, offset


def _beginnings(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Of each line what stands before its row and `ROW_BYTES` of that, and the length of the line in bytes."""
    kept, length, is_enough = bytearray(), 0, False
    while block := file.read(BLOCK_BYTES):
        start = 0
        while start < len(block):
            end = block.find(b"\n", start) + 1 or len(block)
            length += end - start
            if not is_enough:
                kept += block[start:end]
                row_start = kept.find(_ROW_KEY)
                is_enough = 0 <= row_start < len(kept) - len(_ROW_KEY) - ROW_BYTES or len(kept) > 4 * BLOCK_BYTES
            if block[end - 1 : end] == b"\n":
                yield bytes(kept), length
                kept, length, is_enough = bytearray(), 0, False
            start = end
    if length:
        yield bytes(kept), length
