"""Preference rows: both answers are what ms-swift makes of them, a pair never loses its partner, and nothing trains on a
rejected answer without a word.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SAMPLES
from test_parity import MEDIA, _load, compare, json_types

from omniprep import PackedDataset, PackedStream, collate, loader
from omniprep.config import BuildConfig
from omniprep.data.loss import PreferenceLabels
from omniprep.errors import OmniprepError, Reject

preference = _load("preference_cases")
TRUTH = json.loads((Path(__file__).parent / "golden" / "preference.json").read_text())
CASES = preference.CASES


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


def answers_of(row: Any, model_dir: Path, base: Path, **options: Any) -> list[dict[str, torch.Tensor]]:
    """The forward arguments of each answer of a row, as of a bin of its own."""
    from omniprep.compiler.encode.rows import make_bin, shard_schema
    from omniprep.compiler.encode.single_row import encode_bin
    from omniprep.compiler.options import family_of
    from omniprep.data.collate import collate
    from omniprep.shards.cut import cut_row
    from omniprep.shards.pairs import with_repeated_media
    from omniprep.shards.reader import decode
    from omniprep.shards.schema import read_layout
    from omniprep.shards.writer import serialize_bin

    config = BuildConfig(model=str(model_dir), bin_length=32768, pixel_codec="raw", **options)
    ctx = family_of(config)
    encoded = make_bin([encode_bin(row, ctx, config, str(base))], [0], preferences=True)
    schema = shard_schema(ctx, config, preferences=True)
    item = with_repeated_media(decode(serialize_bin(encoded, schema), schema, read_layout(schema)))
    return [collate([cut_row(item, number)]) for number in range(len(item["row_ids"]))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_answers_equal_the_reference(case, model_dir):
    truth, row = TRUTH["cases"][case.name], json_types(case.row)
    assert case.why or ("error" in truth) == bool(case.code), truth
    if case.code:
        with pytest.raises(Reject) as caught:
            answers_of(row, model_dir, MEDIA, **case.options)
        assert caught.value.code == case.code, caught.value
        return
    answers = answers_of(row, model_dir, MEDIA, **case.options)
    sides = ["chosen"] if case.mode == "kto" else ["chosen", "rejected"]
    assert len(answers) == len(sides)
    for side, found in zip(sides, answers, strict=True):
        compare(case, found, {**truth[side], "cpu": TRUTH["made_with"]["cpu"]})
    verdict = answers[0]["chosen"].tolist()
    assert verdict == [int(truth["label"]) if case.mode == "kto" else 1]


def test_the_reference_was_asked_about_every_case():
    assert list(TRUTH["cases"]) == [case.name for case in CASES]
    assert len(CASES) >= 100


# The other forms of columns: each gives what the same pair gives in ms-swift's.

PICTURES = {"images": ["rgb.jpg"]}
ASKED = [user("<image>Hm?"), answer("m"), user("And?")]
EQUAL_FORMS = {
    "prompt_text": ({"prompt": "q", "chosen": "r", "rejected": "n"}, {"query": "q", "response": "r"}),
    "query_alias": ({"question": "q", "chosen": "r", "rejected": "n"}, {"query": "q", "response": "r"}),
    "alpaca": (
        {"instruction": "i", "input": "j", "chosen": "r", "rejected": "n"},
        {"query": "i\nj", "response": "r"},
    ),
    "system_history": (
        {"prompt": "q", "system": "S", "history": [["h", "i"]], "chosen": "r", "rejected": "n"},
        {"query": "q", "system": "S", "history": [["h", "i"]], "response": "r"},
    ),
    "prompt_messages": (
        {"prompt": ASKED, "chosen": [answer("r")], "rejected": [answer("n")], **PICTURES},
        {"messages": [*ASKED, answer("r")], **PICTURES},
    ),
    "messages_and_texts": (
        {"messages": ASKED, "chosen": "r", "rejected": "n", **PICTURES},
        {"messages": [*ASKED, answer("r")], **PICTURES},
    ),
    "whole_chats": (
        {"chosen": [*ASKED, answer("r")], "rejected": [*ASKED, answer("n")], **PICTURES},
        {"messages": [*ASKED, answer("r")], **PICTURES},
    ),
    "ultrafeedback": (
        {
            "prompt": "q", "chosen": [user("q"), answer("r")], "rejected": [user("q"), answer("n")],
            "messages": [user("q"), answer("r")], "score_chosen": 7.0, "score_rejected": 3.0,
        },
        {"query": "q", "response": "r"},
    ),
    "llamafactory": (
        {
            "conversations": [{"from": "human", "value": "<image>q"}],
            "chosen": {"from": "gpt", "value": "r"}, "rejected": {"from": "gpt", "value": "n"}, **PICTURES,
        },
        {"messages": [user("<image>q"), answer("r")], **PICTURES},
    ),
    "typed_prompt": (
        {
            "prompt": [user([{"type": "image"}, {"type": "text", "text": "q"}])], "chosen": [answer("r")],
            "rejected": [answer([{"type": "text", "text": "n"}])], "image": "rgb.jpg",
        },
        {"messages": [user("<image>q"), answer("r")], **PICTURES},
    ),
    "own_pictures": (
        {"prompt": "<image>q", "chosen": "r", "rejected": "n", "image": "rgb.jpg", "rejected_image": "gray.png"},
        {"query": "<image>q", "response": "r", **PICTURES, "rejected_images": ["gray.png"]},
    ),
    "no_own_pictures": (
        {"prompt": "<image>q", "chosen": "r", "rejected": "n", **PICTURES, "rejected_images": [], "rejected_tools": []},
        {"query": "<image>q", "response": "r", **PICTURES},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUAL_FORMS)
def test_chosen_and_rejected_are_read_as_the_same_pair(name, model_dir):
    row, reference = EQUAL_FORMS[name]
    found = answers_of(row, model_dir, MEDIA)
    expected = answers_of({**reference, "rejected_response": "n"}, model_dir, MEDIA)
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert torch.equal(ours[key], value) if isinstance(value, torch.Tensor) else ours[key] == value, key


def test_columns_of_other_names_are_renamed_to_those_of_pairs(model_dir):
    row = {"frage": "<image>q", "better": "r", "worse": "n", "bild": "rgb.jpg", "bild2": "gray.png"}
    names = ("query=frage", "chosen=better", "rejected=worse", "images=bild", "rejected_images=bild2")
    found = answers_of(row, model_dir, MEDIA, columns=names)
    plain = {
        "query": "<image>q",
        "response": "r",
        "rejected_response": "n",
        **PICTURES,
        "rejected_images": ["gray.png"],
    }
    for ours, theirs in zip(found, answers_of(plain, model_dir, MEDIA), strict=True):
        same(ours, theirs)
    content = [{"type": "image", "path": "rgb.jpg"}, {"type": "text", "text": "q"}]
    typed = {"messages": [user(content), answer("r")], "worse": "n"}
    pair = answers_of(typed, model_dir, MEDIA, columns=("rejected_response=worse", "content.image=path"))
    assert [len(found["image_grid_thw"]) for found in pair] == [1, 1]


def test_a_table_may_have_both_columns_of_rejected_answers(model_dir):
    rows = [
        {**PAIR, "rejected_messages": None},
        {"messages": PAIR["messages"], "rejected_response": None, "rejected_messages": [user("q"), answer("n")]},
        {**PAIR, "chosen": None, "rejected": None, "label": None},
    ]
    first, *others = [answers_of(row, model_dir, MEDIA) for row in rows]
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            same(ours, theirs)


def test_prompt_and_completion_of_trl_have_a_verdict(model_dir):
    row = {"prompt": [user("q")], "completion": [answer("r")], "label": False}
    (found,) = answers_of(row, model_dir, MEDIA)
    (text,) = answers_of({"prompt": "q", "completion": "r", "label": False}, model_dir, MEDIA)
    assert torch.equal(found["input_ids"], text["input_ids"]) and torch.equal(found["labels"], text["labels"])
    assert found["chosen"].tolist() == [0] and found["pair_ids"].tolist() == [-1]
    for label, chosen in (("False", 0), ("true", 1), (1.0, 1), ("0", 0), (" 1", 1)):
        row = {"prompt": "q", "completion": "r", "label": label}
        assert answers_of(row, model_dir, MEDIA, preference="kto")[0]["chosen"].tolist() == [chosen]


PAIR = {"messages": [user("q"), answer("r")], "rejected_response": "n"}
REFUSED = {
    "rejected_absent": ({"messages": PAIR["messages"]}, {"preference": "pairs"}, "no_partner"),
    "label_absent": ({"messages": PAIR["messages"]}, {"preference": "kto"}, "no_partner"),
    "label_null": ({"messages": PAIR["messages"], "label": None}, {"preference": "kto"}, "no_partner"),
    "label_text": ({"messages": PAIR["messages"], "label": "no"}, {"preference": "kto"}, "bad_label"),
    "label_other_number": ({"messages": PAIR["messages"], "label": 2}, {"preference": "kto"}, "bad_label"),
    "label_without_answer": ({"messages": [user("q")], "label": True}, {}, "no_partner"),
    "label_of_empty_answer": ({"messages": [user("q"), answer(" ")], "label": True}, {}, "empty_answer"),
    "label_and_rejected": ({**PAIR, "label": True}, {}, "bad_preference"),
    "no_prompt": ({"chosen": "r", "rejected": "n"}, {}, "bad_preference"),
    "answered_already": ({"prompt": "q", "response": "x", "chosen": "r", "rejected": "n"}, {}, "bad_preference"),
    "chosen_null": ({"prompt": "q", "chosen": None, "rejected": "n"}, {}, "no_partner"),
    "rejected_null": ({"prompt": "q", "chosen": "r", "rejected": None}, {}, "no_partner"),
    "one_whole_chat": ({"chosen": [user("q"), answer("r")], "rejected": [answer("n")]}, {}, "bad_preference"),
    "other_messages": (
        {"messages": [user("z")], "chosen": [user("q"), answer("r")], "rejected": [user("q"), answer("n")]},
        {},
        "bad_preference",
    ),
    **{
        f"lost_{name}": ({name: value, "chosen": [user("q"), answer("r")], "rejected": [user("q"), answer("n")]}, {},
                         "bad_preference")
        for name, value in (
            ("prompt", [{"role": "system", "content": "S"}, user("q")]),
            ("conversations", [{"from": "human", "value": "z"}]),
            ("history", [["h", "i"]]),
        )
    },
    "lost_history_of_a_prompt": (
        {"prompt": [user("q")], "history": [["h", "i"]], "chosen": "r", "rejected": "n"}, {}, "bad_preference",
    ),
    "list_of_numbers": ({"prompt": "q", "chosen": [1], "rejected": [2]}, {}, "bad_preference"),
    "empty_list": ({"prompt": "q", "chosen": [], "rejected": "n"}, {}, "empty_answer"),
    "both_forms": ({**PAIR, "chosen": "r", "rejected": "n"}, {}, "bad_preference"),
    "chosen_ends_with_a_question": ({"chosen": [user("q")], "rejected": [user("q"), answer("n")]}, {}, "no_partner"),
    "longer_than_a_bin": ({**PAIR, "rejected_response": "word " * 60}, {"bin_length": 90}, "pair_exceeds_bin"),
    "case": ({**PAIR, "Rejected_Response": "m"}, {}, "bad_column"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_pair_without_a_partner_is_rejected(name, model_dir):
    from omniprep.compiler.encode.single_row import encode_bin
    from omniprep.compiler.options import family_of

    row, options, code = REFUSED[name]
    config = BuildConfig(model=str(model_dir), **{"bin_length": 4096, **options})
    with pytest.raises(Reject) as caught:
        encode_bin(row, family_of(config), config, str(MEDIA))
    assert caught.value.code == code, caught.value


WHOLE = {"chosen": [user("a q"), answer("r")], "rejected": [user("a q"), answer("n")]}
UNREAD = {
    "other_prompt": ({**WHOLE, "prompt": "z"}, {"prompt": ""}),
    "prompt_said_twice": ({**WHOLE, "prompt": " a q\n", "answer": "r", "text": None}, {}),
    "turns_said_twice": ({**WHOLE, "prompt": [user([{"type": "text", "text": "a q"}])]}, {}),
    "other_answer": ({**WHOLE, "answer": "z", "answers": ["y"]}, {"answer": "", "answers": ""}),
    "question_beside_messages": ({"prompt": [user("q")], "question": "z", "chosen": "r", "rejected": "n"}, {"question": ""}),
    "alpaca": ({"instruction": "i", "input": "j", "chosen": "r", "rejected": "n"}, {}),
    "weight_of_rejected": (
        {"messages": PAIR["messages"], "rejected_messages": [user("q"), {**answer("n"), "weight": 0}]},
        {"messages.weight": ""},
    ),
    "weight_of_chosen": (
        {"prompt": "q", "chosen": [{**answer("r"), "weight": 0}], "rejected": "n"}, {"messages.weight": ""},
    ),
    "rejected_system": ({**PAIR, "rejected_system": "S"}, {"rejected_system": ""}),
    "rejected_conversations": (
        {"messages": PAIR["messages"], "rejected_conversations": PAIR["messages"]},
        {"rejected_conversations": "rejected_messages=rejected_conversations"},
    ),
    "rejected_answer": (
        {"query": "q", "response": "r", "rejected_answer": "n", "rejected_score": 1.0, "rejected_query": None},
        {"rejected_answer": "rejected_response=rejected_answer"},
    ),
    "empty_images": ({**PICTURES, "messages": [user("<image>q"), answer("r")], "rejected_images": []},
                     {"rejected_images": ""}),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREAD)
def test_parts_of_a_pair_that_nobody_reads_are_told(name, model_dir):
    from omniprep.compiler.options import family_of
    from omniprep.compiler.plan.rows import plan_rows
    from omniprep.media.fetch import MediaRoots
    from omniprep.rows.columns import Note

    row, unread = UNREAD[name]
    config = BuildConfig(model=str(model_dir), bin_length=4096)
    (planned,) = plan_rows([row], family_of(config), config, MediaRoots(str(MEDIA), (), False))
    assert not isinstance(planned, Reject), planned
    assert planned.unread == unread
    assert bool(planned.notes & Note.UNREAD_COLUMNS) == bool(unread)


def test_columns_that_are_no_preferences_are_read_as_before(model_dir):
    plain = {"messages": PAIR["messages"]}
    (expected,) = answers_of(plain, model_dir, MEDIA)
    for more in ({"label": 7}, {"label": "cat"}, {"label": 0}, {"chosen": True, "rejected": False}, {"margin": 1.0}):
        (found,) = answers_of({**plain, **more}, model_dir, MEDIA)
        assert torch.equal(found["input_ids"], expected["input_ids"]) and found["chosen"].tolist() == [-1], more
    (ignored,) = answers_of(PAIR, model_dir, MEDIA, preference="ignore")
    assert torch.equal(ignored["input_ids"], expected["input_ids"])


# A built dataset.


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pictured(number: int, image: str = "chart.png", **more: Any) -> dict[str, Any]:
    return {
        "messages": [user(f"<image>What is {number}?"), answer(f"It is {number}.")],
        "images": [str(SAMPLES / "media" / image)],
        "rejected_response": f"It is not {number}.",
        **more,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("preference")


@pytest.fixture(scope="module")
def image_names():
    return sorted(path.name for path in (SAMPLES / "media").glob("*.png"))[:2]


@pytest.fixture(scope="module")
def rows(image_names):
    """Pairs: with a picture of both, with one each, text alone, one that shares one modality of two."""
    first, second = image_names
    sound = str(sorted((SAMPLES / "media").glob("*.flac"))[0])
    return [
        *(pictured(number, first) for number in range(3)),
        pictured(3, first, rejected_images=[str(SAMPLES / "media" / second)]),
        {"messages": [user("q"), answer("r")], "rejected_response": "n"},
        pictured(5, second, audios=[sound], rejected_images=[str(SAMPLES / "media" / first)]),
    ]


@pytest.fixture(scope="module")
def build(omniprep, model_dir, folder):
    def call(source, name, *options, code=0):
        out = folder / name
        done = omniprep(
            "build", source, "--model", model_dir, "--bin-length", 2048, "--workers", 0, "--media-root", SAMPLES,
            "--out", out, *options,
        )  # fmt: skip
        assert done.code == code, done.err
        return (out, done.out + done.err) if code == 0 else done.err

    return call


@pytest.fixture(scope="module")
def pairs(build, folder, rows):
    return build(write(folder / "pairs.jsonl", rows), "pairs")[0]


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def test_a_bin_holds_both_answers_and_shared_media_once(pairs, folder, rows):
    ds = PackedDataset(pairs)
    assert ds.layout.preferences and ds.record.counted("").preference["pairs"] == len(rows)
    for number in range(len(ds)):
        stored, item = ds.load(number, repeat_shared=False), ds[number]
        assert (item["chosen"][item["pair_ids"] >= 0].reshape(-1, 2) == [1, 0]).all()
        assert (item["row_ids"].reshape(-1, 2) == item["row_ids"][::2, None]).all()
        assert stored["row_items"].sum() < item["row_items"].sum()
        assert len(stored["image_grid_thw"]) == stored["row_items"][:, 0].sum()
        assert "shared_media" not in item and len(item["image_grid_thw"]) == item["row_items"][:, 0].sum()
    line = rows.index(rows[3]) + 1
    batch = ds.row(str(folder / "pairs.jsonl"), 1)
    half = len(batch["pixel_values"]) // 2
    assert torch.equal(batch["pixel_values"][:half], batch["pixel_values"][half:])
    assert len(ds.row(str(folder / "pairs.jsonl"), line)["image_grid_thw"]) == 2
    assert batch["pair_ids"].tolist() == [0, 0] and batch["chosen"].tolist() == [1, 0]
    assert len(batch["cu_seq_lens_q"]) == 3


def test_a_batch_of_several_bins_numbers_its_pairs(pairs):
    ds = PackedDataset(pairs)
    batch = ds.collate([ds[0], ds[0]])
    ids = batch["pair_ids"].tolist()
    assert ids[::2] == ids[1::2] == list(range(len(ids) // 2)) and batch["pair_ids"].dtype == torch.int64
    assert sum(np.diff(batch["cu_seq_lens_q"])) == batch["input_ids"].shape[1]


def test_every_way_to_a_batch_has_pairs(pairs):
    ds = PackedDataset(pairs)
    (batch,) = loader(ds, batch_size=len(ds), rank=0, world=1)
    streamed = ds.collate(list(PackedStream(ds, rank=0, world=1)))
    for found in (batch, streamed):
        assert found["pair_ids"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        assert found["chosen"].tolist() == [1, 0] * 6 and isinstance(found["labels"], PreferenceLabels)
    (moved,) = loader(ds, batch_size=len(ds), num_workers=1, rank=0, world=1)
    assert torch.equal(moved["pair_ids"], batch["pair_ids"]) and isinstance(moved["labels"], PreferenceLabels)


def test_weights_and_pad_tokens_are_of_each_answer(folder, build):
    answers = ["<tool_call>a</tool_call> b c", "d"]
    row = {"messages": [user("q"), answer(answers[0])], "rejected_response": answers[1]}
    source = write(folder / "weighted.jsonl", [row, PAIR])
    out, _ = build(source, "weighted", "--loss-scale", "hermes", "--pad-rows-to", 16)
    ds = PackedDataset(out)
    assert (np.diff(ds[0]["cu_seqlens"]) % 16 == 0).all()
    batch = ds.row(str(source), 1)
    first, second = np.split(batch["labels"].loss_scale[0].numpy(), [int(batch["cu_seq_lens_q"][1])])
    assert set(first) == {0.0, 1.0, 2.0} and set(second) == {0.0, 1.0}
    assert isinstance(batch["labels"], PreferenceLabels)


def test_the_hubs_preview_has_both_answers(pairs):
    import io

    import pyarrow.parquet as pq

    from omniprep.hub.preview import preview
    from omniprep.inspect.vocabulary import vocabulary_of

    ds = PackedDataset(pairs)
    table = pq.read_table(io.BytesIO(preview(ds, vocabulary_of(ds, None))["parquet"]))
    first = table.to_pylist()[0]
    assert first["verdict"] == "pair" and first["rejected_messages"][-1]["content"] == "It is not 0."
    assert first["messages"][-1]["content"] == "It is 0."


def test_the_answers_are_those_of_rows_of_their_own(pairs, rows, folder, build):
    """What a forward pass gets of a pair is what it gets of its two answers as ordinary rows."""
    ordinary = []
    for row in rows:
        images = row.get("rejected_images", row.get("images"))
        rest = {name: value for name, value in row.items() if not name.startswith("rejected")}
        rejected = [*row["messages"][:-1], answer(row["rejected_response"])]
        ordinary += [rest, {**rest, "messages": rejected, **({"images": images} if images else {})}]
    alone, _ = build(write(folder / "alone.jsonl", ordinary), "alone", "--loss-scale", "last_round")
    ds, one = PackedDataset(pairs), PackedDataset(alone)
    for line in range(1, len(rows) + 1):
        pair = ds.row(str(folder / "pairs.jsonl"), line)
        answers = [one.stored_row(one.row_number(str(folder / "alone.jsonl"), 2 * line - 2 + n)) for n in (1, 2)]
        expected = one.collate(answers)
        labels = pair.pop("labels").as_subclass(torch.Tensor)
        assert torch.equal(labels, expected.pop("labels"))
        for name in ("pair_ids", "chosen"):
            pair.pop(name)
        same(pair, expected)


def test_no_loss_of_language_modeling_is_made_of_pairs(pairs):
    from omniprep import weighted_loss

    ds = PackedDataset(pairs)
    batch = ds.collate([ds[0]])
    logits = torch.randn(1, batch["input_ids"].shape[1], 8, requires_grad=True)
    labels = batch["labels"][0].clamp(max=7)
    loss = torch.nn.functional.cross_entropy(logits[0], labels)
    for use in (loss.backward, (loss * 2).item):
        with pytest.raises(OmniprepError, match="--objective"):
            use()
    with pytest.raises(OmniprepError, match="--objective"):
        weighted_loss(logits, batch)
    with pytest.raises(OmniprepError, match="--objective"):
        weighted_loss(logits, batch["labels"])
    torch.nn.functional.cross_entropy(logits[0], labels, reduction="none").sum().backward()


def test_what_would_train_on_rejected_answers_refuses_pairs(pairs, model_dir, omniprep, folder):
    from omniprep.adapters.contracts import check_dataset
    from omniprep.adapters.transformers import PackedBins

    ds = PackedDataset(pairs)
    with pytest.raises(OmniprepError, match="preference rows"):
        check_dataset(ds, "a trainer", "qwen2_5_omni", ())
    trainer = SimpleNamespace(args=SimpleNamespace(n_gpu=1), label_smoother=None)
    with pytest.raises(OmniprepError, match="preference rows"):
        PackedBins.check_packed(trainer, ds)
    with pytest.raises(OmniprepError, match="context parallelism"):
        ds.slice(0, 2)[0]
    done = omniprep("train", pairs, "--model", model_dir, "--out", folder / "run", "--max-steps", 1)
    assert done.code == 1 and "--objective" in done.err, done.err


def test_pairs_and_ordinary_bins_are_no_batch(pairs, folder, build):
    ordinary, _ = build(write(folder / "ordinary.jsonl", [{"query": "a", "response": "b"}]), "ordinary")
    with pytest.raises(OmniprepError, match="preference rows"):
        collate([PackedDataset(pairs)[0], PackedDataset(ordinary)[0]])
    assert not PackedDataset(ordinary).layout.preferences
    assert "verdict" not in PackedDataset(ordinary).rows.column_names


def test_repack_remove_and_merge_keep_pairs(pairs, folder, build, omniprep, rows):
    source = str(folder / "pairs.jsonl")
    before = PackedDataset(pairs)
    ordinary, _ = build(write(folder / "more.jsonl", [pictured(9, "chart.png")]), "more", "--preference", "ignore")
    out = folder / "merged"
    done = omniprep(
        "repack", pairs, ordinary, "--bin-length", 1024, "--pixel-codec", "raw", "--workers", 0, "--out", out
    )
    assert done.code == 0, done.err
    ds = PackedDataset(out)
    assert ds.record.counted("").preference == {"pairs": len(rows), "desirable": 0, "undesirable": 0, "ordinary": 1}
    for line in range(1, len(rows) + 1):
        same(ds.row(source, line), before.row(source, line))
    row = ds.row(str(folder / "more.jsonl"), 1)
    assert row["chosen"].tolist() == [-1] and row["pair_ids"].tolist() == [-1]
    done = omniprep("verify", out, "--deep", "--media-root", SAMPLES)
    assert done.code == 0, done.out + done.err
    assert omniprep("remove", out, "--row", f"{source}:2", "--workers", 0).code == 0
    ds = PackedDataset(out)
    assert ds.record.counted("").preference["pairs"] == len(rows) - 1
    same(ds.row(source, 4), before.row(source, 4))
    assert omniprep("verify", out).code == 0
    both = np.stack([before.rows["chosen_length"].to_numpy(), before.rows["length"].to_numpy()])
    longest = int(np.maximum(both[0], both[1] - both[0]).max())
    done = omniprep("repack", pairs, "--bin-length", longest, "--workers", 0, "--out", folder / "short")
    assert done.code == 0, done.err
    codes = PackedDataset(folder / "short").counts["rejected_by_code"]
    assert codes == {"pair_exceeds_bin": int((both[1] > longest).sum())}


def test_append_takes_rows_of_the_same_kind(folder, build, omniprep):
    out, _ = build(write(folder / "a.jsonl", [pictured(0, "chart.png")]), "grown")
    more = write(
        folder / "b.jsonl", [pictured(1, "chart.png"), {"query": "q", "response": "r", "rejected_response": "n"}]
    )
    done = omniprep("append", out, more, "--media-root", SAMPLES, "--workers", 0)
    assert done.code == 0, done.err
    ds = PackedDataset(out)
    assert ds.record.counted("").preference["pairs"] == 3 and omniprep("verify", out).code == 0
    assert ds.row(str(more), 2)["chosen"].tolist() == [1, 0]
    stray = write(folder / "c.jsonl", [{"query": "q", "response": "r"}, {"query": "p", "response": "s"}, PAIR])
    done = omniprep("append", out, stray, "--workers", 0)
    assert done.code == 0 and "the dataset holds pairs of answers: 2 rows without either" in done.out + done.err
    ds = PackedDataset(out)
    assert ds.record.counted("").preference["pairs"] == 4 and ds.counts["rejected_by_code"] == {"no_partner": 2}
    assert omniprep("verify", out).code == 0
    plain, _ = build(write(folder / "d.jsonl", [{"query": "q", "response": "r"}]), "plain")
    done = omniprep("append", plain, more, "--media-root", SAMPLES, "--workers", 0)
    assert done.code == 1 and "holds ordinary rows" in done.err, done.err


def test_kinds_mix_only_where_that_is_asked_for(folder, build, omniprep):
    ordinary = {"query": "q", "response": "r"}
    mixed = write(folder / "mixed.jsonl", [PAIR, PAIR | {"rejected_response": "m"}, ordinary])
    out, told = build(mixed, "most_pairs")
    assert "most rows are pairs of answers: 1 row without either (the first: " in told and "mixed.jsonl:3)" in told
    assert "--preference ignore" in told
    ds = PackedDataset(out)
    assert ds.counts["rejected_by_code"] == {"no_partner": 1} and ds.record.counted("").preference["pairs"] == 2
    # One stray row must not cost the others, nor make a dataset of them that no ordinary loss can train on.
    few = write(folder / "few.jsonl", [ordinary, PAIR, {"query": "p", "response": "s"}, ordinary | {"label": True}])
    out, told = build(few, "most_ordinary")
    assert "1 pair of answers (the first: " in told and "1 row with a label (the first: " in told
    ds = PackedDataset(out)
    assert not ds.layout.preferences and ds.counts["rejected_by_code"] == {"bad_preference": 2}
    assert ds.rows["status"].to_pylist() == ["packed", "rejected", "packed", "rejected"]
    rejected = [json.loads(line) for line in (Path(out) / "rejected.jsonl").read_text().splitlines()]
    assert [(r["line"], r["row"]) for r in rejected] == [(2, PAIR), (4, ordinary | {"label": True})]
    assert all("most rows are rows without either: --preference ignore" in r["message"] for r in rejected)
    assert "rejected, since most rows" in build(few, "none", "--on-error", "fail", code=1)
    assert "--max-error-rate" in build(few, "none", "--max-error-rate", 0.4, code=1)
    plain, _ = build(write(folder / "plain.jsonl", [ordinary, {"query": "p", "response": "s"}]), "no_preferences")
    assert ds[0]["input_ids"].tolist() == PackedDataset(plain)[0]["input_ids"].tolist()
    assert omniprep("verify", out, "--deep").code == 0
    done = omniprep("plan", few, "--model", PackedDataset(out).record.model, "--bin-length", 2048, "--workers", 0)
    assert done.code == 0 and "few.jsonl:2: bad_preference: a pair of answers, where most rows" in done.out + done.err
    out, _ = build(mixed, "mixed", "--preference", "mixed")
    assert PackedDataset(out).record.counted("").preference["ordinary"] == 1
    out, _ = build(mixed, "only_pairs", "--preference", "pairs")
    assert PackedDataset(out).counts["rejected_by_code"] == {"no_partner": 1}
    out, _ = build(mixed, "ignored", "--preference", "ignore")
    assert not PackedDataset(out).layout.preferences


def test_verdicts(folder, build, omniprep):
    source = write(
        folder / "kto.jsonl",
        [{"query": f"q{n}", "response": f"r{n}", "label": n % 3 > 0} for n in range(5)] + [{"query": "x", "response": "y",
         "label": False}],
    )  # fmt: skip
    out, _ = build(source, "kto")
    ds = PackedDataset(out)
    assert ds.record.counted("").preference == {"pairs": 0, "desirable": 3, "undesirable": 3, "ordinary": 0}
    assert (ds[0]["pair_ids"] == -1).all() and set(ds[0]["chosen"].tolist()) == {0, 1}
    done = omniprep("inspect", out)
    assert "undesirable" in done.out
    assert omniprep("verify", out, "--deep").code == 0
    done = omniprep("export", out, "--prompts", "chats", "--out", folder / "kto_prompts.jsonl")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (folder / "kto_prompts.jsonl").read_text().splitlines()]
    assert [line["line"] for line in lines] == [2, 3, 5]
    numbers = write(folder / "numbers.jsonl", [{"query": "q", "response": "r", "label": 0}])
    _, told = build(numbers, "numbers")
    assert "--preference kto" in told
    text = folder / "texts.csv"
    text.write_text("query,response,label\nq,r,true\nx,y,False\n")
    _, told = build(text, "texts")
    assert "--preference kto" in told
    out, _ = build(text, "texts_kto", "--preference", "kto")
    assert PackedDataset(out).record.counted("").preference["desirable"] == 1
    out, _ = build(numbers, "numbers_kto", "--preference", "kto")
    assert PackedDataset(out).record.counted("").preference["undesirable"] == 1


def test_prompts_that_differ_are_told(folder, build):
    """ms-swift gives a system column to the preferred chat alone where the rejected one has messages of its own."""
    row = {"system": "S", "messages": [user("q"), answer("r")], "rejected_messages": [user("q"), answer("n")]}
    _, told = build(write(folder / "differ.jsonl", [row, PAIR]), "differ")
    assert "1 pair has answers to prompts that differ" in told
    assert "2 pairs" in told
    _, told = build(write(folder / "agree.jsonl", [PAIR]), "agree")
    assert "prompts that differ" not in told


def test_members_of_a_tar_are_media_of_rejected_answers(folder, build):
    import tarfile

    row = {
        "messages": [user("<image>?"), answer("r")], "images": ["1.jpg"], "rejected_images": ["1.other.png"],
        "rejected_response": "n",
    }  # fmt: skip
    with tarfile.open(folder / "pairs.tar", "w") as tar:
        (folder / "row.json").write_text(json.dumps(row))
        tar.add(folder / "row.json", "1.json")
        tar.add(MEDIA / "rgb.jpg", "1.jpg")
        tar.add(MEDIA / "gray.png", "1.other.png")
    out, _ = build(folder / "pairs.tar", "tar")
    stored = PackedDataset(out).load(0, repeat_shared=False)
    assert stored["row_items"][:, 0].tolist() == [1, 1] and not stored["shared_media"].any()


def test_a_split_by_rows_puts_a_chat_with_its_pair(folder, build):
    pairs = [{**PAIR, "messages": [user(f"q{n}"), answer("r")]} for n in range(40)]
    chats = [{"messages": pair["messages"]} for pair in pairs]
    options = ("--split-by", "rows", "--eval-fraction", 0.3)
    out, _ = build(write(folder / "split_pairs.jsonl", pairs), "split_pairs", *options)
    plain, _ = build(write(folder / "split_chats.jsonl", chats), "split_chats", *options)
    lines = [PackedDataset(f"{folder}-eval").rows["line"].to_pylist() for folder in (out, plain)]
    assert lines[0] == lines[1] and 0 < len(lines[0]) < 40


def test_plan_and_stats_count_pairs(pairs, folder, omniprep, model_dir, rows):
    line = rf"preferences\s.*\b{len(rows)} pairs"
    done = omniprep("stats", pairs)
    assert done.code == 0 and re.search(line, done.out), done.out
    options = ("--model", model_dir, "--bin-length", 2048, "--workers", 0, "--media-root", SAMPLES, "--measure")
    done = omniprep("plan", folder / "pairs.jsonl", *options)
    assert done.code == 0 and re.search(line, done.out), done.out + done.err
    planned = int(re.search(r"tokens\W+([\d,]+)", done.out)[1].replace(",", ""))
    assert planned == PackedDataset(pairs).counts["tokens"]


def test_shards_are_arrow_files_with_plain_columns(pairs):
    import pyarrow as pa

    path = next((pairs / "shards").glob("*.arrow"))
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    names = table.column_names
    assert names[names.index("row_items") + 1 :][:3] == ["pair_ids", "chosen", "shared_media"]
    assert all(table.schema.field(name).type == pa.list_(pa.int32()) for name in ("pair_ids", "chosen", "shared_media"))
    assert json.loads(table.schema.metadata[b"omniprep"])["format"] == 3


def test_identical_pairs_are_duplicates_and_other_verdicts_are_not(folder, build):
    pairs = [PAIR, PAIR, {**PAIR, "rejected_response": "m"}]
    out, _ = build(write(folder / "twice.jsonl", pairs), "twice", "--dedup", "exact")
    assert PackedDataset(out).counts["rejected_by_code"] == {"duplicate": 1}
    for name in ("one.jpg", "same_bytes.jpg"):
        (folder / name).write_bytes((MEDIA / "rgb.jpg").read_bytes())
    (folder / "other.png").write_bytes((MEDIA / "gray.png").read_bytes())
    seen = {"messages": [user("<image>q"), answer("r")], "images": ["one.jpg"], "rejected_response": "n"}
    copies = [{**seen, "rejected_images": [name]} for name in ("same_bytes.jpg", "other.png")]
    out, _ = build(write(folder / "seen.jsonl", [seen, *copies]), "seen", "--dedup", "exact")
    assert PackedDataset(out).counts["rejected_by_code"] == {"duplicate": 1}
    labels = [{"query": "q", "response": "r", "label": label} for label in (True, False, True)]
    out, _ = build(write(folder / "labels.jsonl", labels), "labels", "--dedup", "exact")
    assert PackedDataset(out).counts["rejected_by_code"] == {"duplicate": 1}


@pytest.mark.parametrize("codec", ["source", "webp"])
def test_codecs_store_shared_media_once(codec, pairs, folder, build, rows):
    out, _ = build(folder / "pairs.jsonl", f"codec_{codec}", "--pixel-codec", codec)
    ds, before = PackedDataset(out), PackedDataset(pairs)
    for line in range(1, len(rows) + 1):
        same(ds.row(str(folder / "pairs.jsonl"), line), before.row(str(folder / "pairs.jsonl"), line))
    files = ds.load(0, "files")
    assert len(files["image_grid_thw"]) == files["row_items"][:, 0].sum()


def test_inspect_shows_a_pair_side_by_side(pairs, omniprep, folder):
    done = omniprep("inspect", pairs, "--row", "pairs.jsonl:1")
    assert done.code == 0, done.err
    (head,) = [line for line in done.out.splitlines() if line.startswith("preferred:")]
    assert "rejected:" in head and done.out.count("image_grid_thw=") == 1
    entries = json.loads(omniprep("inspect", pairs, "--row", "pairs.jsonl:1", "--json").out)["rows"]
    assert [(entry["verdict"], entry["pair"] >= 0) for entry in entries] == [("preferred", True), ("rejected", True)]
    whole = json.loads(omniprep("inspect", pairs, "--limit", "1", "--json").out)["rows"]
    assert [entry["verdict"] for entry in whole] == ["preferred", "rejected"]
    assert omniprep("sample", pairs, "--row", "pairs.jsonl:4", "--out", folder / "sample").code == 0
    sample = json.loads((folder / "sample" / "rows.jsonl").read_text())
    assert sample["verdict"] == "preferred" and "not 3" in sample["rejected"]["text"]
    assert sample["media"][0]["files"] != sample["rejected"]["media"][0]["files"]


def test_prompts_come_once_with_the_preferred_answer(pairs, omniprep, folder, rows):
    done = omniprep("export", pairs, "--prompts", "chats", "--media-root", SAMPLES, "--out", folder / "chats.jsonl")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (folder / "chats.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in lines] == [row["messages"][-1]["content"] for row in rows]
    done = omniprep("export", pairs, "--prompts", "tokens", "--out", folder / "tokens.parquet")
    assert done.code == 0, done.err
    from omniprep import read_prompts

    assert sum(1 for _ in read_prompts(folder / "tokens.parquet")) == len(rows)


@pytest.mark.parametrize("model_type", ["llava", "gemma3"])
def test_pairs_of_any_chat_model(model_type, tmp_path):
    """Families that render by the checkpoint's own template, without rules of their own and with, go the same way."""
    from omniprep.testing.init_model import init_model

    model = init_model(tmp_path / "model", model_type)
    asked = [user("<image>What is that?")]
    row = {"messages": [*asked, answer("A picture.")], "rejected_response": "A dog.", "images": ["rgb.jpg"]}
    pair = answers_of(row, model, MEDIA)
    assert [found["chosen"].tolist() for found in pair] == [[1], [0]]
    for found, text in zip(pair, ("A picture.", "A dog."), strict=True):
        alone = {"messages": [*asked, answer(text)], "images": ["rgb.jpg"]}
        (expected,) = answers_of(alone, model, MEDIA, loss_scale="last_round")
        for batch in (found, expected):
            batch.pop("chosen")
        same(found, expected)


def test_shared_media_of_every_kind_of_column_are_repeated():
    """A vector an item, one a row, arrays of one shape, of shapes of their own, and spectrograms."""
    from omniprep.shards.pairs import with_repeated_media
    from omniprep.shards.schema import Column, Layout, arrow_schema, read_layout

    columns = (
        Column(name="grid", modality="image", kind="items", shape=(2,)),
        Column(name="pixels", modality="image", kind="flat", dtype="uint8", shape=(3,), sizes="prod(grid)"),
        Column(name="tiles", modality="image", kind="flat", dtype="float32", shape=(0,)),
        Column(name="of_row", modality="image", kind="rows", shape=(1,)),
        Column(name="clips", modality="audio", kind="items", load="none"),
        Column(
            name="mel", modality="audio", kind="flat", dtype="bfloat16", shape=(2,), sizes="clips", load="mel",
            params={"mask": "mel_mask", "pad_to": None},
        ),
    )  # fmt: skip
    layout: Layout = read_layout(arrow_schema(columns, family="f", modalities=("image", "audio"), preferences=True))
    item = {
        "columns": layout.columns,
        "modalities": layout.modalities,
        "layout": layout,
        "cu_seqlens": np.arange(5, dtype=np.int32),
        "row_ids": np.array([0, 0, 1, 1]),
        # The first pair shares its two pictures and has a sound of its own in each answer; the second is the other way.
        "row_items": np.array([[2, 1], [0, 1], [1, 1], [1, 0]]),
        "pair_ids": np.array([0, 0, 1, 1]),
        "chosen": np.array([1, 0, 1, 0]),
        "shared_media": np.array([0, 0b01, 0, 0b10]),
        "grid": np.array([[1, 1], [1, 2], [2, 1], [1, 1]]),
        "pixels": np.arange(18, dtype=np.uint8).reshape(6, 3),
        "tiles_shapes": np.array([[1, 2], [1, 1], [1, 3], [2, 1]]),
        "tiles": np.arange(8, dtype=np.float32),
        "of_row": np.array([[10], [11], [12]]),
        "clips": np.array([1, 2, 3]),
        "mel": np.arange(12, dtype=np.uint16),
    }
    found = with_repeated_media(item)
    assert found["row_items"].tolist() == [[2, 1], [2, 1], [1, 1], [1, 1]] and "shared_media" not in found
    assert found["grid"].tolist() == [[1, 1], [1, 2], [1, 1], [1, 2], [2, 1], [1, 1]]
    assert found["pixels"][:, 0].tolist() == [0, 3, 6, 0, 3, 6, 9, 12, 15]
    assert found["tiles"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7]
    assert found["tiles_shapes"].tolist() == [[1, 2], [1, 1], [1, 2], [1, 1], [1, 3], [2, 1]]
    assert found["of_row"].tolist() == [[10], [10], [11], [12]]
    assert found["clips"].tolist() == [1, 2, 3, 3]
    assert found["mel"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 6, 7, 8, 9, 10, 11]


def test_damaged_pairs_are_refused(pairs):
    from omniprep.errors import DamagedDataError
    from omniprep.shards.content import check_rows

    ds = PackedDataset(pairs)
    whole = ds.load(0, repeat_shared=False)
    for name in ("position_ids", "row_items"):  # as a shard has them
        whole[name] = whole[name].reshape(-1)
    check_rows(dict(whole), ds.layout)
    changes = {
        "pair_ids": (1, -1, "no pairs of neighbors"),
        "chosen": (0, 0, "no pairs of neighbors"),
        "row_ids": (1, int(whole["row_ids"].max()) + 1, "no pairs of neighbors"),
        "shared_media": (0, 1, "shared_media"),
    }
    for name, (place, value, message) in changes.items():
        values = whole[name].copy()
        values[place] = value
        with pytest.raises(DamagedDataError, match=message):
            check_rows({**whole, name: values}, ds.layout)
    shared = whole["shared_media"].copy()
    shared[1] = 1 << 3  # a modality that there is none of
    with pytest.raises(DamagedDataError, match="shared_media"):
        check_rows({**whole, "shared_media": shared}, ds.layout)
    with pytest.raises(DamagedDataError, match="chosen"):
        check_rows({key: value for key, value in whole.items() if key != "chosen"}, ds.layout)
