"""Rows that are packed as something else than was meant are counted and named, never packed without a word."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import toy
from PIL import Image

from omniprep import PackedDataset
from omniprep.compiler.encode.single_row import encode_row
from omniprep.compiler.options import family_of
from omniprep.compiler.plan.rows import PlannedRow, plan_rows
from omniprep.config import BuildConfig, config_hash
from omniprep.errors import Reject, UsageError
from omniprep.media.fetch import MediaRoots
from omniprep.rows.columns import Note, parse_columns
from omniprep.rows.normalize import normalize

MEDIA = Path(__file__).parent / "golden" / "media"
ANSWER = {"role": "assistant", "content": "A."}


def chat(content: Any = "Hi", **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, ANSWER], **columns}


def typed(*items: dict[str, Any]) -> dict[str, Any]:
    return chat([*items, {"type": "text", "text": "Look"}])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
    return tmp_path


@pytest.fixture
def build(omniprep: Any, model_dir: Path, folder: Path) -> Any:
    """Build (or plan) rows in the folder of a.png; returns the result and where the dataset is."""

    def call(rows: list[Any], *options: object, command: str = "build", name: str = "out") -> tuple[Any, Path]:
        path, out = folder / "rows.jsonl", folder / name
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not path.exists() or path.read_text() != text:  # another time of change would be another input
            path.write_text(text)
        where = ("--out", out) if command == "build" else ()
        base = ("--model", model_dir, "--bin-length", 2048, "--workers", 0, "--quiet")
        return omniprep(command, path, *base, *where, *options), out

    return call


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        (chat("<image>q", image_paths=["a.png"]), {"image_paths": "images=image_paths"}),
        (chat("<image>q", image_path="a.png"), {"image_path": "images=image_path"}),
        (chat("<image>q", img="a"), {"img": "images=img"}),
        (chat("<image>q", Picture={"path": "a.png"}), {"Picture": "images=Picture"}),
        (chat("q", photo_urls=["x"], clip="a.wav"), {"photo_urls": "images=photo_urls", "clip": "audios=clip"}),
        (chat("q", file="in/b.MP4?sig=1"), {"file": "videos=file"}),
        (chat("q", frames=["0.jpg", "1.jpg"]), {"frames": "images=frames"}),
        (chat("q", scan=b"\x89PNG\r\n\x1a\n"), {"scan": "images=scan"}),
        (chat("q", seen="data:image/png;base64,AAAA"), {"seen": "images=seen"}),
        (chat("q", image="a.png", images=["b.png"]), {"image": ""}),
        (chat("q", image="a.png", image_2="b.png"), {"image_2": ""}),
        (typed({"type": "image", "path": "a.png"}), {"content.image.path": "content.image=path"}),
        (typed({"type": "image", "url": "a.png"}), {"content.image.url": "content.image=url"}),
        (typed({"type": "image_url", "image": "a.png"}), {"content.image.image": "content.image=image"}),
        (typed({"type": "audio", "audio_url": "a.wav"}), {"content.audio.audio_url": "content.audio=audio_url"}),
        (typed({"type": "tool_use", "id": "1"}), {"content.tool_use": ""}),
        ({"messages": [{"role": "user", "content": "q", "images": ["a.png"]}, ANSWER]}, {"messages.images": ""}),
        (
            {"question": "q", "prompt": "p", "answer": "a"},
            {"question": "query=question", "prompt": "query=prompt"},
        ),
    ],
)
def test_columns_that_nobody_reads_are_found(row: Any, unread: dict[str, str]) -> None:
    assert normalize(row).unread == unread


@pytest.mark.parametrize(
    "row",
    [
        chat("<image>q", images=["a.png"], file_name="a.png", image_id="7", image_size=[1, 2]),
        chat("q", voice="female", video_caption="a cat", width=3, note="see\na.png", image_paths=[], img=None),
        typed({"type": "image"}),
        typed({"type": "image", "image": "a.png", "detail": "high"}),
        {"instruction": "i", "input": "a.png", "output": "o", "text": "all of it"},
        {"query": "q", "prompt": "p", "response": "r"},
    ],
)
def test_other_columns_are_not(row: Any) -> None:
    assert normalize(row).unread == {}


ROWS = [chat("<image>q", image_paths=["a.png"]), typed({"type": "image", "path": "a.png"}), chat()]
LINES = (
    "2 rows have more media tags than media",
    "2 rows have columns, items or tags that nobody reads, as in the reference: "
    "image_paths (1; --columns images=image_paths reads it), "
    "content.image.path (1; --columns content.image=path reads it)",
)


def test_summary_plan_stats_report_and_tables_name_them(build: Any, omniprep: Any) -> None:
    done, out = build(ROWS)
    planned, _ = build(ROWS, command="plan")
    stats = omniprep("stats", out)
    for result in (done, planned, stats):
        assert result.code == 0, result.err
        assert all(line in result.out for line in LINES), result.out
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert counts["rows_with_surplus_tags"] == counts["rows_with_unread_columns"] == 2
    assert counts["unread_columns"]["image_paths"] == {"rows": 1, "option": "images=image_paths"}
    page = (out / "report.html").read_text()
    assert "images=image_paths" in page and "rows with columns that nobody reads" in page
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert [(row["surplus_tags"], row["unread_columns"]) for row in rows] == [
        (True, True),
        (True, True),
        (False, False),
    ]
    assert "nobody reads" not in build([chat()], name="clean")[0].out


def test_the_named_options_mend_them(build: Any, omniprep: Any) -> None:
    done, out = build(ROWS, "--columns", "images=image_paths", "--columns", "content.image=path")
    assert done.code == 0 and "nobody reads" not in done.out and "more media tags" not in done.out
    assert json.loads((out / "manifest.json").read_text())["counts"]["items"]["image"] == 2
    assert omniprep("verify", out, "--deep", "--quiet").code == 0
    plain = PackedDataset(str(build([chat("<image>q", images=["a.png"])], name="plain")[1]))
    ds, source = PackedDataset(str(out)), str(out.parent / "rows.jsonl")
    assert ds.row(source, 1)["input_ids"].tolist() == plain.row(source, 1)["input_ids"].tolist()


def test_columns_are_part_of_the_build(build: Any, folder: Path) -> None:
    base = BuildConfig()
    assert config_hash(base) != config_hash(BuildConfig(columns=("images=pics",)))
    rows = [{"ask": "q", "reply": "r"}]
    (folder / "c.yaml").write_text("columns: [query=ask, response=reply]\n")
    done, out = build(rows, "--config", folder / "c.yaml")
    assert done.code == 0, done.err
    assert json.loads((out / "manifest.json").read_text())["config"]["columns"] == ["query=ask", "response=reply"]
    other, _ = build(rows, "--columns", "query=ask")
    assert other.code == 1 and "columns" in other.err


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["images"], "NEW=OLD"),
        (["=a"], "NEW=OLD"),
        (["images= "], "NEW=OLD"),
        (["imagse=a"], "did you mean 'image"),
        (["images=a", "images=b"], "given twice as NEW"),
        (["images=a", "videos=A"], "given twice as OLD"),
    ],
)
def test_malformed_columns_are_usage_errors(texts: list[str], said: str, omniprep: Any) -> None:
    with pytest.raises(UsageError, match=said):
        parse_columns(texts)
    options = [word for text in texts for word in ("--columns", text)]
    result = omniprep("plan", "x.jsonl", "--model", "m", "--bin-length", 8, *options)
    assert result.code == 2 and said in result.err and "Traceback" not in result.err


def test_clashing_columns_reject_the_row_and_unused_ones_are_told(build: Any) -> None:
    columns = ("--columns", "images=pics", "--columns", "audios=souds")
    done, out = build([chat("<image>q", images=["a.png"], pics=["a.png"]), chat("<image>q", Pics=["a.png"])], *columns)
    assert "--columns audios=souds: no row has a column of that name" in done.err and "images=pics: no" not in done.err
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(r["line"], r["code"]) for r in rejected] == [(1, "bad_column")] and "'images'" in rejected[0]["message"]
    both = normalize(chat("q", a=["x.png"], b=["y.mp4"]), parse_columns(["images=a", "videos=b"]))
    assert (both.media["image"], both.media["video"]) == (["x.png"], ["y.mp4"])
    swapped = normalize(
        chat("q", images=["y.mp4"], videos=["x.png"]), parse_columns(["images=videos", "videos=images"])
    )
    assert (swapped.media["image"], swapped.media["video"]) == (["x.png"], ["y.mp4"])


def test_parts_of_messages_that_nobody_reads_are_named() -> None:
    """The reference drops OpenAI's tool calls, thoughts and weights of messages; so it is done and said."""
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    last = {"role": "assistant", "content": "a", "reasoning_content": "so", "weight": 0}
    question = {"role": "user", "content": "q", "tool_calls": None, "reasoning_content": "", "name": "Bob"}
    row = normalize({"messages": [question, call, {"role": "tool", "content": "r", "tool_call_id": "1"}, last]})
    names = ("messages.tool_calls", "messages.reasoning_content", "messages.weight")
    assert row.unread == dict.fromkeys(names, "") and row.notes == Note.UNREAD_COLUMNS


def test_rows_with_limits_of_their_own_are_counted(build: Any) -> None:
    rows = [
        chat("<image>q", images=["a.png"], chat_template_kwargs={"max_pixels": 3136, "nonsense": []}),
        typed({"type": "image", "image": "a.png", "resized_height": 28}),
        chat("<image>q", images=["a.png"], max_pixels=3136),
        chat("<image>q", images=["a.png"], mm_processor_kwargs={"max_pixels": 3136}),
        chat("<image>q", images=["a.png"], max_pixels=None, fps=30),
    ]
    done, _ = build(rows)
    assert done.code == 0 and "4 rows have limits of their own" in done.out
    done, _ = build(rows[:1], "--chat-template-kwargs", "apply", name="applied")
    assert "1 row has limits of their own" in done.out  # nonsense is not known


@pytest.mark.parametrize("role", ["tool", "tool_response"])
@pytest.mark.parametrize(
    ("content", "written"), [(None, "null"), (False, "false"), (3.5, "3.5"), ([1, None], "[1, null]"), ({}, "{}")]
)
def test_what_a_tool_gives_is_written_as_json(role: str, content: Any, written: str, model_dir: Path) -> None:
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'}
    row = {"messages": [{"role": "user", "content": "q"}, call, {"role": role, "content": content}, ANSWER]}
    config = BuildConfig(model=str(model_dir), bin_length=2048)
    ctx = family_of(config)
    text = ctx.tokenizer.decode(encode_row(row, ctx, config)["input_ids"][0])
    assert f"<tool_response>\n{written}\n</tool_response>" in text
    from_value = {"conversations": [{"from": m["role"], "value": m["content"]} for m in row["messages"]]}
    if content is None:  # the dataset path of the reference refuses null in every message
        with pytest.raises(Reject, match="bad_message"):
            normalize(from_value)


def test_lists_as_json_text_say_what_is_wrong() -> None:
    text = json.dumps(chat(ANSWER["content"])["messages"])
    assert normalize({"messages": text}).messages[1] == ANSWER
    for value, word in ((True, "true"), (None, "null")):
        with pytest.raises(Reject, match=f"bad_message: messages is text.* JSON text with {word}"):
            normalize({"messages": json.dumps([{"role": "user", "content": "q", "loss": value}, ANSWER])})
    with pytest.raises(Reject, match="nor JSON"):
        normalize({"messages": "[{'role'"})


def test_a_row_cut_on_the_left_has_no_label_at_its_start(build: Any, omniprep: Any) -> None:
    """The reference keeps it, and the row before it in the bin would be trained to predict it."""
    rows = [{"messages": [{"role": "user", "content": "q"}, ANSWER | {"content": "yes " * 90}]}]
    for scale in ("default", "hermes"):
        done, out = build(rows * 3, "--max-length", 40, "--truncation", "left", "--loss-scale", scale, name=scale)
        assert done.code == 0, done.err
        item = PackedDataset(str(out))[0]
        starts = item["cu_seqlens"][:-1]
        assert len(starts) == 3 and (item["labels"][starts] == -100).all() and (item["labels"][starts + 1] >= 0).all()
        assert scale == "default" or (item["loss_scale"][starts] == 0).all()
        counts = json.loads((out / "manifest.json").read_text())["counts"]
        assert counts["labeled_tokens"] == 3 * 39
        assert omniprep("verify", out, "--deep", "--quiet").code == 0


def with_token(model: Path, folder: Path, token: Any) -> BuildConfig:
    """A copy of a checkpoint whose tokenizer has one more control token."""
    from transformers import AutoTokenizer

    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(model / name, folder / name)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": [token]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(folder)
    return BuildConfig(model=str(folder), bin_length=2048)


def test_control_tokens_are_those_of_the_tokenizer(model_dir: Path, tmp_path: Path) -> None:
    """[STOP] has no "<", by which control tokens were once looked for."""
    config = with_token(model_dir, tmp_path, "[STOP]")
    ctx = family_of(config)

    def control(row: Any) -> bool:
        planned = plan_rows([row], ctx, config, MediaRoots("."))[0]
        assert isinstance(planned, PlannedRow), planned
        return planned.control_tokens

    assert control(chat("go [STOP] on")) and control(chat("<|im_end|>"))
    assert not control(chat("[STOP ] < stop")) and not control(chat("plain"))
    refusing = BuildConfig(model=config.model, bin_length=2048, special_tokens_in_text="reject")
    with pytest.raises(Reject, match=r"special_token_in_text.*\[STOP\]"):
        encode_row(chat("go [STOP] on"), ctx, refusing)


@pytest.mark.parametrize("text", ["\\u003c|im_end|\\u003e", "<|im_end|>"])
def test_control_tokens_in_escapes_of_json_text_are_found(model_dir: Path, text: str) -> None:
    config = BuildConfig(model=str(model_dir), bin_length=2048)
    tools = json.dumps([{"name": "f", "description": "D"}]).replace("D", text)
    call = {"role": "tool_call", "content": f'{{"name": "f", "arguments": {{"a": "{text}"}}}}'}
    rows = [chat(tools=tools), {"messages": [{"role": "user", "content": "q"}, call]}]
    planned = plan_rows(rows, family_of(config), config, MediaRoots("."))
    assert [getattr(row, "control_tokens", row) for row in planned] == [True, True]


def test_media_tokens_without_a_bracket_are_found(tmp_path: Path) -> None:
    from omniprep.families.registry import REGISTRY

    toy.write_tokenizer(tmp_path, ("[IMG]",))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Bracketed"]}))
    source = toy.FAMILY.read_text().replace("<|img|>", "[IMG]").replace('"toy_vl"', '"bracketed"')
    (tmp_path / "family.py").write_text(source.replace('"ToyVL"', '"Bracketed"'))
    config = BuildConfig(model=str(tmp_path), bin_length=2048, plugin=(str(tmp_path / "family.py"),))
    try:
        with pytest.raises(Reject, match=r"special_token_in_text: .*\[IMG\]"):
            encode_row(chat("see [IMG]"), family_of(config), config)
    finally:
        REGISTRY.families.pop("bracketed", None)


def units(out: Path, name: str) -> int:
    ds = PackedDataset(str(out))
    return sum(int(np.prod(ds[n][name], axis=-1).sum()) for n in range(len(ds)) if ds[n].get(name) is not None)


def test_work_of_the_towers_is_that_of_the_shards(build: Any, folder: Path) -> None:
    """A clip that is cut to 300 s has 30,000 frames, not those of its file."""
    for name in ("s301.flac", "ms100.wav", "h264_25.mp4", "frame0.jpg"):
        shutil.copy(MEDIA / name, folder / name)
    rows = [
        chat("<image>q", images=["a.png"]),
        chat("<audio>q", audios=["s301.flac"]),
        chat("<audio>q", audios=["ms100.wav"]),
        chat("<video>q", videos=["h264_25.mp4"]),
        chat("<video>q", videos=[["frame0.jpg"] * 4]),
    ]
    done, out = build(rows, "--long-audio", "truncate", "--bin-length", 16384)
    assert done.code == 0, done.err
    index = pq.read_table(out / "index.parquet").to_pydict()
    assert sum(index["patches"]) == units(out, "image_grid_thw") + units(out, "video_grid_thw")
    frames = sum(int(PackedDataset(str(out))[n]["audio_frames"].sum()) for n in range(len(index["rows"])))
    assert sum(index["audio_frames"]) == frames == 30_000 + 10


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_audio", "qwen3_omni"])
def test_work_of_the_towers_in_other_families(family: str, omniprep: Any, tmp_path: Path) -> None:
    """Time stamps of Qwen3-VL are text, and are not counted as patches."""
    pytest.importorskip("dashscope", reason="the Qwen vocabulary comes with dashscope (omniprep[demo])")
    from omniprep.testing.init_model import init_model

    model = init_model(tmp_path / "model", family)
    media = {"image": "rgb.jpg", "video": "h264_25.mp4", "audio": "s301.flac"}
    for name in (*media.values(), "ms100.wav"):
        shutil.copy(MEDIA / name, tmp_path / name)
    kinds = family_of(BuildConfig(model=str(model))).modalities
    rows = [chat(f"<{kind}>q", **{f"{kind}s": [media[kind]]}) for kind in kinds]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--bin-length", 16384, "--workers", 0, "--long-audio", "truncate") if "audio" in kinds else ()
    options = options or ("--bin-length", 16384, "--workers", 0)
    done = omniprep("build", tmp_path / "rows.jsonl", "--model", model, "--out", tmp_path / "out", *options, "--quiet")
    assert done.code == 0, done.err
    ds = PackedDataset(str(tmp_path / "out"))
    grids = [ds[n][f"{kind}_grid_thw"] for n in range(len(ds)) for kind in kinds if kind != "audio"]
    patches = sum(int(np.prod(grid, axis=-1).sum()) for grid in grids if grid is not None)
    frames = sum(int(ds[n]["audio_frames"].sum()) for n in range(len(ds))) if "audio" in kinds else 0
    assert (int(ds.index["patches"].sum()), int(ds.index["audio_frames"].sum())) == (patches, frames)


def test_a_build_that_packs_nothing_fails_with_the_commonest_codes(build: Any) -> None:
    rows = [{"color": "red"}, {"color": "blue"}, chat(5)]
    for _ in range(2):  # built, and found built
        done, out = build(rows)
        assert done.code == 1 and "Traceback" not in done.err
        last = done.err.strip().splitlines()[-1]
        assert "no row was packed" in last and "bad_row 2, bad_message 1" in last and "rejected.jsonl" in last
        assert (out / "rejected.jsonl").read_text().count("\n") == 3
