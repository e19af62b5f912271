"""JSON as the reference reads it: what pyarrow makes of lines and pandas of arrays (`datasets` 3.6.0, pyarrow 26,
pandas 3.1), found by loading each text with both. What they refuse is rejected here, row by row.
"""

import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from omniprep.errors import OmniprepError, Reject
from omniprep.rows.inputs import find_inputs
from omniprep.rows.jsontext import MAX_DEPTH, parse_row, read_values
from omniprep.rows.sources import Tally, count_lines, find_splits, read_split

SURROGATE = '{"images": ["a\\ud83d.png"], "n": 1}'


def lines_of(path: Path, data: bytes, split_bytes: int = 1 << 20, limit: int = 1 << 30) -> list[tuple[int, Any]]:
    """(line from 1, content or code) of each row, numbered over the splits as a build does."""
    path.write_bytes(data)
    before, found = 0, []
    for split in find_splits(find_inputs((str(path),)), split_bytes):
        tally = Tally()
        for row in read_split(split, tally, limit):
            content = str(row.content.code) if isinstance(row.content, Reject) else row.content
            found.append((before + row.line + 1, content))
        assert tally.lines == count_lines(split)
        before += tally.lines
    return found


def rows_of(path: Path, data: bytes) -> list[Any]:
    return [content for _, content in lines_of(path, data)]


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize(
    ("row", "lines", "whole"),
    [
        ('{"instruction": "q", "input": NaN}', {"instruction": "q", "input": None}, {"instruction": "q", "input": None}),
        ('{"images": NaN, "score": 1.5}', {"images": None, "score": 1.5}, {"images": None, "score": 1.5}),
        ('{"m": [{"content": NaN, "role": "user"}]}', {"m": [{"content": None, "role": "user"}]}, {"m": [{"content": None, "role": "user"}]}),
        ('{"a": [1.5, NaN, [NaN]]}', {"a": [1.5, None, [None]]}, {"a": [1.5, None, [None]]}),
        ('{"a": "NaN and Infinity"}', {"a": "NaN and Infinity"}, {"a": "NaN and Infinity"}),
        ('{"a": Infinity, "b": -Infinity}', {"a": math.inf, "b": -math.inf}, {"a": math.inf, "b": -math.inf}),
        ('{"a": 1e400}', {"a": math.inf}, {"a": math.inf}),
        ('{"a": 1, "a": 2}', "bad_json", {"a": 2}),
        ('{"m": [{"r": 1, "r": 2}], "n": NaN}', "bad_json", {"m": [{"r": 2}], "n": None}),
        ('{"a": "tab\there"}', "bad_json", {"a": "tab\there"}),
        ('{"a": "\\u0000"}', {"a": "\0"}, {"a": "\0"}),
        (SURROGATE, "bad_column", "bad_column"),
        ('{"messages": [{"content": "\\udc00"}]}', "bad_message", "bad_message"),
        ('{"a\\ud800": 1}', "bad_column", "bad_column"),
        ('{"a": "\\ud83d\\ude00"}', {"a": "😀"}, {"a": "😀"}),
        ('{"a": ' + "[" * 127 + "]" * 127 + "}", {"a": json.loads("[" * 127 + "]" * 127)}, {"a": json.loads("[" * 127 + "]" * 127)}),
        ('{"a": ' + "[" * 128 + "]" * 128 + "}", "bad_json", "bad_json"),
        ('{"a": ' + '[{"b]":' * 3000 + '"]"' + "}]" * 3000 + "}", "bad_json", "bad_json"),
    ],
)  # fmt: skip
def test_a_row_is_what_the_reference_reads(tmp_path: Path, row: str, lines: Any, whole: Any, array: bool) -> None:
    before, after = '{"first": 1}', '{"last": 1}'
    if array:
        text, expected = f"[{before},{row},{after}]", whole
    else:
        text, expected = f"{before}\n{row}\n{after}\n", lines
    found = rows_of(tmp_path / ("a.json" if array else "a.jsonl"), text.encode())
    assert found == [{"first": 1}, expected, {"last": 1}]


def test_nan_as_loss_stays_in_lines_and_is_null_in_arrays(tmp_path: Path) -> None:
    row = '{"messages": [{"role": "user", "content": "q", "loss": NaN}], "b": NaN}'
    (line,) = rows_of(tmp_path / "a.jsonl", row.encode())
    assert math.isnan(line["messages"][0]["loss"]) and line["b"] is None
    (element,) = rows_of(tmp_path / "a.json", f"[{row}]".encode())
    assert element["messages"][0]["loss"] is None


def test_a_loss_that_is_no_number_rejects_the_row() -> None:
    from omniprep.rows.normalize import normalize

    for loss in (math.nan, math.inf, -math.inf):
        chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": loss}]
        with pytest.raises(Reject) as caught:
            normalize({"messages": chat})
        assert caught.value.code == "bad_message"


ARRAY = '[\n  {"n": 1},\n  {"n": "é,]"},\n  {"n": [3]}\n]\n'
OBJECTS = [{"n": 1}, {"n": "é,]"}, {"n": [3]}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in OBJECTS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("text", [ARRAY, ARRAY.replace("\n", ""), LINES, LINES.replace("\n", "\r\n"), "\n\n" + LINES])
def test_what_a_file_holds_decides_and_not_its_name(tmp_path: Path, name: str, text: str, mark: str) -> None:
    assert rows_of(tmp_path / name, (mark + text).encode()) == OBJECTS


def test_lines_keep_their_numbers_whatever_the_name(tmp_path: Path) -> None:
    text = LINES.replace("\n", "\n\n").encode()
    for name in ("a.jsonl", "a.json"):
        assert [line for line, _ in lines_of(tmp_path / name, text)] == [1, 3, 5]
    assert [line for line, _ in lines_of(tmp_path / "b.jsonl", ARRAY.encode())] == [1, 2, 3]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.ndjson"])
def test_objects_are_read_whatever_space_stands_between_them(tmp_path: Path, name: str) -> None:
    """As the reference's loader takes them: indented (`jq .`), lines that end in CR alone, side by side."""
    rows = [{"n": number, "m": [{"c": "é"}]} for number in range(3)]
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = tmp_path / name
    assert rows_of(path, "\n".join(json.dumps(row, indent=2) for row in rows).encode()) == rows
    assert rows_of(path, "\n".join(json.dumps({**row, "long": "x" * 100_000}, indent=2) for row in rows).encode()) == [
        {**row, "long": "x" * 100_000} for row in rows
    ]
    assert rows_of(path, "\r".join(texts).encode()) == rows
    assert rows_of(path, ("\r".join(texts) + "\r").encode("utf-16")) == rows
    assert rows_of(path, " ".join(texts).encode()) == rows
    assert rows_of(path, "\r\n".join(texts).encode()) == rows


def test_a_damaged_first_line_costs_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for first in ('{"n": ', '{"n": 1}]', "{]", '"{', '{"n": "' + "x" * 100_000):
        assert rows_of(path, (first + '\n{"n": 2}\n{"n": 3}\n').encode()) == ["bad_json", {"n": 2}, {"n": 3}]


def test_an_object_over_several_lines_is_a_row_of_json(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a.json", b'{\n "n": 1\n}\n') == [{"n": 1}]
    assert rows_of(tmp_path / "b.json", b'{\n "n": 1\n}\n{\n"n": 2}') == [{"n": 1}, {"n": 2}]
    # Of JSON lines each line is a row: one that is broken does not take the next with it.
    assert rows_of(tmp_path / "a.jsonl", b'{"n":\n{"n": 2}\n') == ["bad_json", {"n": 2}]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[{"n": 1}', "the array is cut|it is cut"),
        ('[{"n": 1},', "comma and then no element"),
        ('[{"n": 1},]', "comma and then no element"),
        ('[{"n": 1} {"n": 2}]', "a comma or ] must follow"),
        ('[{"n": 1}] x', "more follows"),
        ('[{"n": 1}]\n{"n": 2}', "more follows"),
        ('[{"n": "abc', "element 1: character 7: a text begins that does not end"),
        ('[{"n": tru', "element 1"),
        ("[nan]", "element 1"),
        ('["\\x"]', "element 1"),
        ("[" * 5000, "it is cut"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_an_array_that_is_damaged_stops_the_build(tmp_path: Path, name: str, text: str, why: str) -> None:
    with pytest.raises(OmniprepError, match=f"{name}: not valid JSON .*({why})"):
        rows_of(tmp_path / name, text.encode())


class Trickle(BytesIO):
    """A file that gives `size` bytes at most, as a store may."""

    size = 1

    def read(self, count: int | None = -1) -> bytes:
        return super().read(self.size if count is None or count < 0 else min(count, self.size))


def test_arrays_are_read_in_pieces() -> None:
    """Wherever the pieces end, the elements are the same."""
    rows = [{"n": n, "text": 'é"\\[]{},😀' * (n % 5), "f": 12.5e-3, "deep": [[{"t": True}]]} for n in range(30)]
    text = json.dumps(rows, ensure_ascii=False, indent=1).encode() + b"\n"
    for size in (1, 2, 3, 7, 64):
        file = Trickle(text)
        file.size = size
        assert [row for row, _ in read_values(file, "a.json", 1 << 20)] == rows
    assert [row for row, _ in read_values(BytesIO(b"[12345, -1.5e3 ,true]"), "a.json", 1 << 20)] == [
        12345,
        -1500.0,
        True,
    ]


def test_an_element_beyond_the_limit_stops_the_build() -> None:
    text = b'[{"n": 1}, {"n": "' + b"x" * (5 << 20) + b'"}]'
    found = read_values(BytesIO(text), "a.json", 3 << 20)
    assert next(found)[0] == {"n": 1}
    with pytest.raises(OmniprepError, match=r"a\.json: an element has more than .*--max-line-bytes"):
        next(found)


def test_marks_inside_put_together_files_are_no_text(tmp_path: Path) -> None:
    part = b"\xef\xbb\xbf" + b'{"n": 1}\n'
    for split_bytes in (5, 1 << 20):
        assert [row for _, row in lines_of(tmp_path / "a.jsonl", part * 3, split_bytes)] == [{"n": 1}] * 3


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["", " ", "1", "22", '"\u2028\x85"', "bad", "[1]"]), max_size=12),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
)
def test_byte_ranges_hold_each_line_once(
    tmp_path: Path, parts: list[str], split_bytes: int, ended: bool, end: str
) -> None:
    text = end.join(["0", *parts]) + end * ended
    expected = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                expected.append((number, json.loads(line)))
            except ValueError:
                expected.append((number, "bad_json"))
    assert lines_of(tmp_path / "a.jsonl", text.encode(), split_bytes) == expected
    assert lines_of(tmp_path / "a.jsonl", text.encode(), 1 << 20) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=True) | st.integers() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=[]), max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def checked(row: Any) -> None:
    """What a row may be, so that no later part of the build can fall over it."""
    if isinstance(row, Reject):
        row.message.encode()
        return
    json.dumps(row, ensure_ascii=False).encode()
    depth, level = 0, [row]
    while level := [
        inner for v in level if isinstance(v, list | dict) for inner in (v.values() if isinstance(v, dict) else v)
    ]:
        depth += 1
    assert depth <= MAX_DEPTH


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | json_values.map(lambda v: json.dumps(v).encode()))
@example(b"\x00")
@example(b'{"a": 1' + b"0" * 5000 + b"}")
@example(b'"\xed\xa0\xbd"')
@example(b"[" * 200_000)
@example(b'{"a":' * 900 + b"1" + b"}" * 900)
@example(b'{"a\\ud800": NaN}')
@example('{"a": "\u2028\u2029\x85"}'.encode())
def test_no_line_breaks_the_reader(data: bytes) -> None:
    row = parse_row(data)
    checked(row)
    try:
        plain = json.loads(data.decode())
    except (ValueError, RecursionError):
        assert isinstance(row, Reject)
        return
    if not isinstance(row, Reject) and b"NaN" not in data:
        assert row == plain


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.lists(json_values, max_size=4).map(lambda v: json.dumps(v).encode()))
@example(b"[" + b'{"a":' * 2000 + b"1" + b"}" * 2000 + b", 1]")
@example(b"[1")
@example(b"[1,")
@example(b'{"a": 1, "a": 2} {"a": ')
def test_no_array_breaks_the_reader(data: bytes) -> None:
    try:
        rows = [row for row, _ in read_values(BytesIO(data), "a.json", 1 << 20)]
    except OmniprepError as error:
        assert "a.json" in str(error)
        return
    for row in rows:
        checked(row)
