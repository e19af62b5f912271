"""Columns and tags that look like others that are read: the message says what was meant, and nothing is done about it."""

import json
from pathlib import Path
from typing import Any

import pytest
from media_files import picture, sound

from omniprep import PackedDataset
from omniprep.errors import Reject
from omniprep.rows.mend import odd_tags, tag_meant
from omniprep.rows.normalize import normalize

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"msgs": CHAT}, "--columns messages=msgs"),
        ({"dialog": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}, "--columns messages=dialog"),
        ({"id": 1, "turns": [{"user": "Hi", "assistant": "Ho"}]}, "--columns messages=turns"),
        ({"user": "Hi", "assistant": "Ho"}, "--columns query=user --columns response=assistant"),
        ({"promt": "Hi", "reply": "Ho"}, "--columns query=promt --columns response=reply"),
        ({"picture": "a.png", "caption": "Ho"}, "--columns response=caption"),
    ],
)
def test_a_row_without_a_chat_is_told_which_columns_mend_it(row: dict[str, Any], hint: str) -> None:
    with pytest.raises(Reject, match="no column that a chat can be read from") as caught:
        normalize(row)
    assert caught.value.message.endswith(f"; did you mean {hint}?")
    # What the hint says is accepted, and mends the row.
    pairs = tuple((new, old) for new, old in (part.split("=") for part in hint.replace("--columns ", "").split()))
    assert normalize(row, pairs).messages[-1]["content"] == "Ho"


@pytest.mark.parametrize("row", [{"id": 1, "path": "x"}, {"embedding": [1.0]}, {"x": [{"y": 1}]}, {}])
def test_what_resembles_nothing_gets_no_hint(row: dict[str, Any]) -> None:
    with pytest.raises(Reject) as caught:
        normalize(row)
    assert "did you mean" not in caught.value.message


def test_keys_of_messages_are_named() -> None:
    with pytest.raises(Reject, match=r"its keys: 'speaker', 'text'; known are role and content"):
        normalize({"messages": [{"speaker": "user", "text": "Hi"}]})


@pytest.mark.parametrize(
    ("role", "meant"),
    [("asistant", "assistant"), ("User", "user"), ("tool-respons", "tool_response"), ("Human", "human")],
)
def test_a_misspelt_role_is_told_which_one_was_meant(role: str, meant: str) -> None:
    for message in ({"role": role, "content": "Hi"}, {"from": role, "value": "Hi"}):
        with pytest.raises(Reject) as caught:
            normalize({"messages": [message, *CHAT]})
        assert caught.value.code == "bad_role" and f"message 1 has role {role!r}; known: " in caught.value.message
        assert caught.value.message.endswith(f"; did you mean {meant!r}?")


@pytest.mark.parametrize(
    "messages", [[{"role": "narrator", "content": "Hi"}], [*CHAT, {"role": "system", "content": "x"}]]
)
def test_a_role_that_resembles_none_or_has_no_place_gets_no_hint(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(Reject) as caught:
        normalize({"messages": messages})
    assert caught.value.code == "bad_role" and "did you mean" not in caught.value.message


ODD = ["<img>", "<|image|>", "[image]", "{image}", "{{image}}", "<Image>", "<image_1>", "<picture>", "<image placeholder>", "[IMG]", "<image/>"]  # fmt: skip


@pytest.mark.parametrize("tag", ODD)
def test_a_tag_that_is_none_is_found(tag: str) -> None:
    assert odd_tags([f"What is {tag}?"], {"image": ["a"], "audio": [], "video": []}) == {tag: "<image>"}


def test_what_is_no_tag_of_the_row_is_left_alone() -> None:
    media = {"image": ["a"], "audio": [], "video": []}
    for text in (
        "<image>a [image]",
        "see [audio]",
        "{imagine}",
        "an image",
        "<i>",
        "<imagemap>",
        "[1]",
        "{'image': 1}",
    ):
        assert odd_tags([text], media) == {}, text
    assert odd_tags(["<|AUDIO|> [video]"], {"image": [], "audio": ["a"], "video": ["v"]}) == {
        "<|AUDIO|>": "<audio>",
        "[video]": "<video>",
    }
    assert tag_meant("<|IMAGE|>") == "<image>" and tag_meant("<|vision_bos|>") == ""


def test_a_build_says_what_was_meant(omniprep: Any, model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("PNG", (56, 56)))
    (tmp_path / "a.wav").write_bytes(sound("WAV"))
    rows = [
        {"query": "[image]What?", "response": "a", "images": ["a.png"]},
        {"query": "<image>What?", "response": "a", "images": ["a.png"]},
        {"query": "<audio>What?", "response": "a", "wavs": ["a.wav"]},
        {"query": "<|IMAGE|>What?", "response": "a", "images": ["a.png"]},
        {"msgs": CHAT},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(out: str, *more: object) -> tuple[Any, dict[int, str], PackedDataset]:
        fixed = ("--model", model_dir, "--bin-length", 256, "--workers", 0, "--quiet", "--out", tmp_path / out)
        done = omniprep("build", tmp_path / "a.jsonl", *fixed, *more)
        assert done.code == 0, done.err
        lines = [json.loads(line) for line in (tmp_path / out / "rejected.jsonl").read_text().splitlines()]
        return done, {line["line"]: line["message"] for line in lines}, PackedDataset(str(tmp_path / out))

    done, messages, dataset = build("out")
    assert (
        "tag [image] (did you mean <image>?) (1)" in done.out and "wavs (1; --columns audios=wavs reads it)" in done.out
    )
    assert "write <image> for a medium of the row" in messages[4]
    assert messages[5].endswith("; did you mean --columns messages=msgs?")
    assert [row["unread_columns"] for row in dataset.rows.to_pylist()] == [True, False, True, False, False]
    # The picture stands before the text, as in the reference, and the text is as it was.
    _, messages, _ = build("strict", "--surplus-tags", "reject")
    assert messages[3] == "1 <audio> tags, but 0 audio items; did you mean --columns audios=wavs?"
    _, messages, dataset = build("mended", "--columns", "audios=wavs", "--columns", "messages=msgs")
    assert messages.keys() == {4} and dataset.counts["items"]["audio"] == 1
