"""No row makes omniprep itself fail: `internal_error` is a defect wherever it appears, and no row ends a build.

Rows of every shape are drawn with wrong values in every place. Each must be packed or rejected with a code that says what is
wrong. Seconds in the normal tests; `make test-slow` draws 25 times as many.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from omniprep.compiler.encode.rows import MediaCache, encode_planned
from omniprep.compiler.options import family_of
from omniprep.compiler.plan.rows import PlannedRow, plan_rows
from omniprep.config import BuildConfig
from omniprep.errors import Reject
from omniprep.media.fetch import MediaRoots
from omniprep.shards.schema import arrow_schema
from omniprep.shards.writer import serialize_bin

VIDEO = Path(__file__).parent / "golden" / "media" / "h264_25.mp4"
HUGE = 10**400
TEXTS = st.one_of(
    st.sampled_from(
        [
            *(
                "",
                " ",
                "hi",
                "<image>",
                "<image>look",
                "<video><image>",
                "<audio>",
                "<bbox>",
                "<ref-object><bbox>",
                "a.png",
            ),
            *("Action: x Action Input: y", "<img>a.png</img>", "</think>", "<tool_call>", "<start-image>", "[STOP]"),
            *('{"name": "f", "arguments": {}}', '{"name": "f"}', "[{'a': 1}]", "{[]: 1}", "null", "true", "1e999"),
            *("\ud800", '"\\ud800"', "\x00", "data:image/png;base64,AAAA", "x" * 210, "9" * 5000, "[" * 300),
        ]
    ),
    st.text(max_size=8),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5000),
    st.sampled_from([HUGE, -HUGE, 2**63, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"), 0.5]),
    TEXTS,
    st.binary(max_size=4),
)
KEYS = st.sampled_from(["a", "type", "text", "image", "url", "name", "role", "content", "path", "bytes"]) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda part: st.lists(part, max_size=3) | st.dictionaries(KEYS, part, max_size=3), max_leaves=5
)
IMAGE = st.sampled_from(["a.png", {"path": "a.png"}, {"bytes": b"x", "path": "a.png"}])
CALL = st.sampled_from(['{"name": "f", "arguments": {"a": 1}}', {"name": "f", "parameters": {"b": [1]}}])
TURN = st.sampled_from(
    [
        [("user", "<image>q <ref-object>"), ("assistant", "a <bbox>")],
        [("user", "q"), ("assistant", "<think>\n\n</think>\n\na")],
        [("user", "q"), ("tool_call", CALL), ("tool_call", CALL), ("tool_response", "r"), ("assistant", "a")],
        [("user", "q"), ("assistant", "Action: f\nAction Input: x"), ("tool", "r"), ("assistant", "a")],
        [("human", "<video>q"), ("gpt", "a")],
        [("user", [{"type": "image", "image": "a.png"}, {"type": "text", "text": "q"}]), ("assistant", "a")],
        [
            ("user", [{"type": "image_url", "image_url": {"url": "a.png"}}]),
            ("assistant", [{"type": "text", "text": "a"}]),
        ],
    ]
)


@st.composite
def chats(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Messages of one to three turns, in either form, some with a system text, some with a loss."""
    turns = [turn for _ in range(draw(st.integers(1, 3))) for turn in draw(TURN)]
    turns = [("system", "s")] * draw(st.integers(0, 1)) + turns
    names = draw(st.sampled_from([("role", "content"), ("role", "content"), ("from", "value")]))
    messages = []
    for role, content in turns:
        text = draw(content) if isinstance(content, st.SearchStrategy) else content
        messages.append({names[0]: role, names[1]: json.loads(json.dumps(text))})
        if draw(st.integers(0, 5)) == 0:
            messages[-1]["loss"] = draw(st.sampled_from([True, False, 0.5]))
    return messages


BOXES = [[1, 2, 30, 20], [5.5, 6], [30, 20, 1, 2]]
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
COLUMNS = {
    "images": st.lists(IMAGE, max_size=2),
    "image": IMAGE,
    "videos": st.just([["a.png"] * 4]),
    "system": TEXTS,
    "tools": st.sampled_from(
        [[TOOL], [{"type": "function", "function": TOOL}], json.dumps([TOOL]), [json.dumps(TOOL)], []]
    ),
    "objects": st.fixed_dictionaries(
        {"ref": st.just(["x", "y"]), "bbox": st.just(BOXES)},
        optional={"bbox_type": st.sampled_from(["real", "norm1"]), "image_id": st.just([0, 0, 0])},
    ),
    "chat_template_kwargs": st.dictionaries(
        st.sampled_from(
            [
                "max_pixels",
                "min_pixels",
                "resized_height",
                "resized_width",
                "total_pixels",
                "fps",
                "nframes",
                "max_frames",
            ]
        ),
        st.integers(1, 10**6) | st.sampled_from([0.5, 28, 3136]),
        max_size=3,
    ),
    "image_paths": st.lists(IMAGE, max_size=1),
}
CHAT = st.fixed_dictionaries({"messages": chats()}, optional=COLUMNS)
AS_TEXT = st.fixed_dictionaries({"messages": chats().map(str)}, optional=COLUMNS)
PAIRS = st.fixed_dictionaries({"conversations": st.just([{"human": "q", "assistant": "a"}] * 2)}, optional=COLUMNS)
SINGLE = st.fixed_dictionaries(
    {"query": TEXTS, "response": TEXTS | st.lists(TEXTS, min_size=1, max_size=2)},
    optional={"history": st.just([["q", "a"]]), "Query": TEXTS, "prompt": TEXTS, **COLUMNS},
)
ALPACA = st.fixed_dictionaries({"instruction": TEXTS, "input": TEXTS, "output": TEXTS}, optional=COLUMNS)
RIGHT = st.one_of(CHAT, CHAT, CHAT, AS_TEXT, PAIRS, SINGLE, ALPACA)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, part in inner for found in places(part, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A copy with the value at a path changed."""
    if not path:
        return change(value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], change)
    return copy


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A right row with up to two values replaced, wrapped, doubled or left out."""
    row = draw(RIGHT)
    for _ in range(draw(st.integers(0, 2))):
        path = draw(st.sampled_from(places(row)))
        how = draw(st.sampled_from(["replace", "replace", "wrap", "double", "drop"]))
        if how == "drop":
            change = lambda part: type(part)() if isinstance(part, str | list | dict) else None  # noqa: E731
        elif how == "double":
            change = lambda part: part * 2 if isinstance(part, str | list) else [part, part]  # noqa: E731
        elif how == "wrap":
            change = lambda part: [part]  # noqa: E731
        else:
            new = draw(VALUES)
            change = lambda part, new=new: new  # noqa: E731
        row = changed(row, path, change)
    return row


ROWS = mutated()
OPTIONS = (
    {},
    {"chat_template_kwargs": "apply", "bbox_format": "new", "columns": ("images=image_paths", "content.image=path")},
    {"use_chat_template": False},
    {"loss_scale": "last_round+hermes+react", "truncation": "left", "max_length": 60, "norm_bbox": "norm1000"},
    {"surplus_tags": "reject", "special_tokens_in_text": "reject", "loss_scale": "agentflan"},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(path / "a.png")
    return path


def check(rows: list[Any], options: dict[str, Any], model: Path, folder: Path) -> None:
    """Plan and encode rows; each is packed or rejected for a reason."""
    config = BuildConfig(model=str(model), bin_length=4096, **options)
    ctx = family_of(config)
    weighted = options.get("loss_scale", "default") not in ("default", "last_round")
    schema = arrow_schema(ctx.columns, family=ctx.name, modalities=ctx.modalities, weighted=weighted)
    planned = plan_rows(rows, ctx, config, MediaRoots(str(folder)))
    assert len(planned) == len(rows)
    for raw, row in zip(rows, planned, strict=True):
        if isinstance(row, Reject):
            assert row.code != "internal_error", (row, raw)
            row.message.encode(errors="backslashreplace")
            continue
        assert isinstance(row, PlannedRow)
        try:
            encoded = encode_planned(row, ctx, config, MediaCache(0))
        except Reject as reject:
            assert reject.code != "internal_error", (reject, raw)
            continue
        assert encoded.labels[0] == -100 and len(encoded.input_ids) == row.length <= 4096
        assert encoded.loss_scale is None or np.isfinite(encoded.loss_scale).all()
        serialize_bin(encoded, schema)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "default")
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(ROWS, min_size=1, max_size=6))
def test_no_row_is_a_defect(options: dict[str, Any], rows: list[Any], model_dir: Path, folder: Path) -> None:
    check(rows, options, model_dir, folder)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "default")
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(ROWS, min_size=1, max_size=6))
def test_no_row_of_many_is_a_defect(options: dict[str, Any], rows: list[Any], model_dir: Path, folder: Path) -> None:
    check(rows, options, model_dir, folder)


NUMBERS = st.floats() | st.floats(1e300, 1.7e308) | st.integers(-100, 5000) | SCALARS
OBJECTS = st.fixed_dictionaries(
    {"ref": st.just(["x"]), "bbox": st.lists(st.lists(NUMBERS, min_size=2, max_size=4), min_size=1, max_size=2)},
    optional={"bbox_type": st.sampled_from(["real", "norm1"]), "image_id": st.lists(SCALARS, max_size=2)},
)


@pytest.mark.parametrize("norm", ["none", "norm1000"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@example(objects={"ref": ["x"], "bbox": [[1, 2, 3, 1e308]], "bbox_type": "norm1"})
@given(objects=OBJECTS)
def test_no_box_is_a_defect(objects: Any, norm: str, model_dir: Path, folder: Path) -> None:
    chat = [{"role": "user", "content": "<image><ref-object>"}, {"role": "assistant", "content": "<bbox>"}]
    rows = [{"messages": chat, "images": ["a.png"], "objects": objects}]
    rows += [{"query": "<image><ref-object>", "response": "<bbox>", "images": ["a.png"], "objects": objects}]
    check(rows, {"norm_bbox": norm}, model_dir, folder)


LIMITS = st.dictionaries(
    st.sampled_from(
        [
            *("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width", "fps", "nframes"),
            *("min_frames", "max_frames", "video_start", "video_end"),
        ]
    ),
    st.one_of(st.integers(1, 5000), st.floats(), SCALARS, st.sampled_from([10**5000, 2**53, 2**53 + 2])),
    min_size=1,
    max_size=3,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(limits=LIMITS)
def test_no_limit_of_a_row_is_a_defect(limits: dict[str, Any], model_dir: Path, folder: Path) -> None:
    shutil.copy(VIDEO, folder / "v.mp4")
    media = {"images": ["a.png"], "videos": ["v.mp4", ["a.png"] * 5]}
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], name: [item]}
        for name, items in media.items()
        for item in items
    ]
    rows = [{**row, "chat_template_kwargs": limits} for row in rows]
    check(rows, {"chat_template_kwargs": "apply"}, model_dir, folder)


BAD = "the row of this test"


def broken(real: Callable[..., Any], is_bad: Callable[..., bool]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if is_bad(*args):
            raise ZeroDivisionError(BAD)
        return real(*args, **kwargs)

    return call


def _holds(ids: Any, mark: int) -> bool:
    return bool((np.asarray(ids) == mark).any())


@pytest.mark.parametrize("where", ["tokenizer", "assemble", "lay", "write"])
def test_a_defect_costs_its_row(
    where: str, omniprep: Any, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nothing foresaw, in planning or in what is written, rejects the row with file and line; the rest is packed."""
    from omniprep.compiler.encode import shard_task
    from omniprep.compiler.plan import rows as rowplan
    from omniprep.data.dataset import PackedDataset
    from omniprep.shards import writer
    from omniprep.template.tokens import Encoder

    mark = family_of(BuildConfig(model=str(model_dir))).tokenizer("Zorn", add_special_tokens=False)["input_ids"][0]
    targets: dict[str, tuple[Any, str, Callable[..., bool]]] = {
        "tokenizer": (Encoder, "arrays", lambda _, texts: any("Zorn" in text for text in texts)),
        "assemble": (rowplan, "_assemble", lambda entry, tokens, *_: any(_holds(run, mark) for run in tokens)),
        "lay": (shard_task, "make_bin", lambda rows, *_: any(_holds(row.input_ids, mark) for row in rows)),
        "write": (writer, "_arrays", lambda item, *_: _holds(item.input_ids, mark)),
    }
    owner, name, is_bad = targets[where]
    monkeypatch.setattr(owner, name, broken(getattr(owner, name), is_bad))
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q{n}"},
                {"role": "assistant", "content": "Zorn" if n == 3 else "a"},
            ]
        }
        for n in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--model", model_dir, "--bin-length", 60, "--workers", 0, "--out", tmp_path / "out", "--quiet")
    done = omniprep("build", tmp_path / "rows.jsonl", *options)
    assert done.code == 0, done.err
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(reject["line"], reject["code"]) for reject in rejected] == [(4, "internal_error")]
    assert BAD in rejected[0]["message"] and "test_row_fuzz.py:" in rejected[0]["message"]
    assert rejected[0]["row"] == rows[3]
    ds = PackedDataset(str(tmp_path / "out"))
    packed = [line for line in range(1, 9) if line != 4]
    assert [ds.row(str(tmp_path / "rows.jsonl"), line)["input_ids"].shape[0] for line in packed] == [1] * 7
    assert omniprep("verify", tmp_path / "out", "--quiet").code == 0


def test_a_bin_that_no_row_is_to_blame_for_ends_the_build(
    omniprep: Any, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omniprep.compiler.encode import shard_task

    monkeypatch.setattr(shard_task, "make_bin", broken(shard_task.make_bin, lambda rows, *_: len(rows) > 1))
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 4)
    options = ("--model", model_dir, "--bin-length", 256, "--workers", 0, "--out", tmp_path / "out", "--quiet")
    done = omniprep("build", tmp_path / "rows.jsonl", *options)
    assert done.code == 1 and "bin 0 cannot be written" in done.err and "Traceback" not in done.err
