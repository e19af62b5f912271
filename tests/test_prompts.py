"""Risk: a prompt that is exported is not what the model was trained to answer: other ids, other pixels, another place
where the answer begins."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SAMPLES
from PIL import Image

import omniprep as package
from omniprep import PackedDataset, export_prompts, read_prompts
from omniprep.compiler.encode.single_row import encode_prompt
from omniprep.compiler.options import family_of
from omniprep.config import Trust, build_config
from omniprep.errors import OmniprepError, UsageError

INPUTS = [SAMPLES / f"{name}.jsonl" for name in ("text", "images", "audio", "video")]
SIZES = ("--max-pixels", 28 * 28 * 60, "--video-max-pixels", 28 * 28 * 20, "--fps-max-frames", 4, "--workers", 0)


def build(omniprep, model_dir, out, *inputs, options=()):
    done = omniprep("build", *inputs, "--model", model_dir, "--bin-length", 2048, *SIZES, *options, "--out", out)
    assert done.code == 0, done.err
    return PackedDataset(out)


@pytest.fixture(scope="module")
def dataset(omniprep, model_dir, tmp_path_factory):
    return build(omniprep, model_dir, tmp_path_factory.mktemp("prompts") / "packed", *INPUTS)


@pytest.fixture(scope="module")
def prompts(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "prompts.parquet"
    result = export_prompts(dataset.uri, out, "tokens")
    lines = list(read_prompts(out))
    assert len(lines) == result.written == dataset.counts["rows"]["packed"] and not result.skipped
    return lines


def expanded(prompt, row, processor):
    """Ids as vLLM's processors expand them: one placeholder an item, by the grids and lengths of the media."""
    tokenizer = processor.tokenizer
    data, counts = prompt.get("multi_modal_data", {}), {}
    kwargs = prompt.get("mm_processor_kwargs", {})
    if "image" in data:
        made = processor.image_processor(images=data["image"], return_tensors="pt", **kwargs)
        assert torch.equal(made["pixel_values"], row["pixel_values"])
        assert torch.equal(made["image_grid_thw"], row["image_grid_thw"])
        counts["image"] = (made["image_grid_thw"].prod(-1) // 4).tolist()
    if "video" in data:
        made = processor.video_processor(videos=data["video"], return_tensors="pt", **kwargs)
        assert torch.equal(made["pixel_values_videos"], row["pixel_values_videos"])
        assert torch.equal(made["video_grid_thw"], row["video_grid_thw"])
        counts["video"] = (made["video_grid_thw"].prod(-1) // 4).tolist()
    if "audio" in data:
        lengths, mask = data["audio"]["audio_feature_lengths"], row["feature_attention_mask"].bool()
        assert lengths.tolist() == mask.sum(-1).tolist()
        valid = row["input_features"].permute(0, 2, 1)[mask].T  # as vLLM lays what the processor gives
        assert torch.equal(data["audio"]["input_audio_features"], valid.float())
        counts["audio"] = (((lengths - 1) // 2 + 1 - 2) // 2 + 1).tolist()
    names = {tokenizer.convert_tokens_to_ids(f"<|{name.upper()}|>"): iter(counts[name]) for name in counts}
    ids = []
    for token in prompt["prompt_token_ids"]:
        ids += [token] * (next(names[token]) if token in names else 1)
    assert all(next(waiting, None) is None for waiting in names.values())
    return ids


def test_prompt_and_answer_are_the_row_once_the_processor_has_expanded_it(dataset, prompts, model_dir):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model_dir)
    kinds = set()
    for line in prompts:
        row, prompt = dataset.row(line["source"], line["line"]), line["prompt"]
        ids = expanded(prompt, row, processor)
        assert ids + line["answer_token_ids"] == row["input_ids"][0].tolist(), (line["source"], line["line"])
        labels = row["labels"][0, len(ids) :]
        assert (labels != -100).all() and line["answer_token_ids"] == labels.tolist()
        data = prompt.get("multi_modal_data", {})
        kinds |= data.keys()
        if data.keys() <= {"image", "video"} and data:  # the whole processor, given the text
            made = processor(
                text=processor.tokenizer.decode(prompt["prompt_token_ids"]), images=data.get("image"),
                videos=data.get("video"), return_tensors="pt", **prompt["mm_processor_kwargs"],
            )  # fmt: skip
            assert made["input_ids"][0].tolist() == ids
    assert kinds == {"image", "video", "audio"}


def test_prompts_are_those_of_infer_and_answers_those_of_the_rows(dataset, prompts, model_dir):
    config = build_config(dataset.record.config, Trust(), model=str(model_dir))
    ctx = family_of(config)
    raws = {str(path): path.read_text().splitlines() for path in INPUTS}
    for line in prompts:
        raw = json.loads(raws[line["source"]][line["line"] - 1])
        prompt = encode_prompt(raw, ctx, config, str(SAMPLES))["input_ids"][0].tolist()
        row = dataset.row(line["source"], line["line"])["input_ids"][0].tolist()
        assert row[: len(prompt)] == prompt and row[len(prompt) :] == line["answer_token_ids"]
        if "messages" in raw:
            assert line["answer"] == raw["messages"][-1]["content"]


def test_a_media_item_has_one_uuid_wherever_it_stands(prompts):
    seen, uses = {}, 0
    for line in prompts:
        prompt = line["prompt"]
        uuids = prompt.get("multi_modal_uuids", {})
        assert uuids.keys() == prompt.get("multi_modal_data", {}).keys()
        for number, uuid in enumerate(uuids.get("image", ())):
            pixels = np.asarray(prompt["multi_modal_data"]["image"][number])
            assert np.array_equal(seen.setdefault(uuid, pixels), pixels)
            uses += 1
    assert 1 < len(seen) < uses, "some of the samples share a picture"
    assert len({pixels.tobytes() for pixels in seen.values()}) == len(seen)


def test_chats_give_the_prompts_of_the_dataset(dataset, omniprep, model_dir, tmp_path):
    """Encoded from elsewhere and with nothing but the file, a chat is the row up to its answer."""
    out = tmp_path / "prompts.jsonl"
    done = omniprep("export", dataset.uri, "--prompts", "--out", out, "--quiet")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    skipped = done.err.strip().splitlines()
    assert len(lines) > 25 and len({line["source"] for line in lines}) == len(INPUTS)
    assert len(lines) == dataset.counts["rows"]["packed"] or skipped
    config = build_config(dataset.record.config, Trust(media_root=(str(SAMPLES),)), model=str(model_dir))
    ctx = family_of(config)
    for line in lines:
        chat = {"messages": line["prompt"], **{k: v for k, v in line.items() if k in ("images", "audios", "videos")}}
        ids = encode_prompt(chat, ctx, config, str(tmp_path))["input_ids"][0].tolist()
        row = dataset.row(line["source"], line["line"])["input_ids"][0].tolist()
        assert row[: len(ids)] == ids
        assert ctx.tokenizer.decode(row[len(ids) :], skip_special_tokens=True) == line["answer"]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chat(*texts, **more):
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    return {"messages": messages, **more}


def test_rows_without_an_exact_prompt_are_named_and_left_out(omniprep, model_dir, tmp_path):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    rows = [
        chat("Hello?", "Hi.", "And?", "Bye."),
        chat("Look.", "It is <image>.", images=["red.png"]),
        chat("Use it.", "No.", tools=[tool]),
        chat("Where is <ref-object>?", "<bbox>", images=["red.png"],
             objects={"ref": ["it"], "bbox": [[1, 2, 3, 4]]}),
        chat("No tag.", "Red.", images=["red.png"]),
        chat("Two <image> <image>?", "One.", images=["red.png"]),
        chat("No answer."),
        {"messages": []},
    ]  # fmt: skip
    source = write_rows(tmp_path / "odd.jsonl", rows)
    ds = build(omniprep, model_dir, tmp_path / "d", source, options=("--max-error-rate", 1.0))
    packed = [row["line"] for row in ds.rows.to_pylist() if row["bin"] is not None]
    assert 8 not in packed, "rejected rows have no prompt"
    result = export_prompts(ds.uri, tmp_path / "p.jsonl")
    chats = {line["line"]: line for line in map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())}
    left = {int(row.rpartition(":")[2]) for rows in result.skipped.values() for row in rows}
    assert chats.keys() == {1, 5} and left == set(packed) - {1, 5}
    assert [m["content"] for m in chats[1]["prompt"]] == ["Hello?", "Hi.", "And?"] and chats[1]["answer"] == "Bye."
    assert chats[5]["prompt"][0]["content"] == "<image>No tag."
    assert chats[5]["images"] == [str(tmp_path / "red.png")]
    result = export_prompts(ds.uri, tmp_path / "p.parquet", "tokens")
    tokens = {line["line"]: line for line in read_prompts(tmp_path / "p.parquet")}
    assert tokens.keys() == {1, 3, 4, 5, 6} and result.skipped["media in the answer"] == [f"{source}:2"]
    for number, line in tokens.items():
        assert len(line["prompt"].get("multi_modal_uuids", {}).get("image", ())) == len(
            rows[number - 1].get("images", ())
        )


def test_removed_rows_and_pad_tokens_are_in_no_prompt(omniprep, model_dir, tmp_path):
    source = write_rows(tmp_path / "c.jsonl", [chat(f"Question {n}?", f"Answer {n}." * n) for n in range(1, 6)])
    ds = build(omniprep, model_dir, tmp_path / "d", source, options=("--pad-rows-to", 64))
    done = omniprep("remove", ds.uri, "--row", f"{source}:2")
    assert done.code == 0, done.err
    for form, suffix in (("chats", "jsonl"), ("tokens", "parquet")):
        done = omniprep("export", ds.uri, "--prompts", form, "--out", tmp_path / f"p.{suffix}")
        assert done.code == 0 and "4 prompts of 4 rows" in done.out, done.err
    assert [json.loads(line)["line"] for line in (tmp_path / "p.jsonl").read_text().splitlines()] == [1, 3, 4, 5]
    answers = {line["line"]: line for line in read_prompts(tmp_path / "p.parquet")}
    assert {number: line["answer"] for number, line in answers.items()} == {n: f"Answer {n}." * n for n in (1, 3, 4, 5)}
    assert len({line["answer_token_ids"][-1] for line in answers.values()}) == 1, "<|im_end|>, no pad token"


def test_a_video_with_its_sound_is_left_out(omniprep, model_dir, tmp_path):
    ds = build(omniprep, model_dir, tmp_path / "d", INPUTS[3], options=("--use-audio-in-video", "--silent-video",
                                                                        "skip-audio"))  # fmt: skip
    result = export_prompts(ds.uri, tmp_path / "p.parquet", "tokens")
    (reason,) = result.skipped
    assert "--use-audio-in-video" in reason and result.skipped[reason] == [f"{INPUTS[3]}:1"] and result.written == 2


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_omni"])
def test_other_families_give_what_their_processor_makes_or_say_what_they_lack(omniprep, tmp_path, family):
    pytest.importorskip("dashscope", reason="the Qwen vocabulary comes with dashscope (omniprep[demo])")
    from transformers import AutoProcessor

    from omniprep.testing.init_model import init_model

    model = init_model(tmp_path / "model", family)
    ds = build(omniprep, model, tmp_path / "d", INPUTS[1], INPUTS[3])
    result = export_prompts(ds.uri, tmp_path / "p.parquet", "tokens")
    lacks = set() if family == "qwen2_vl" else {f"video of family {family!r}"}
    assert result.skipped.keys() == lacks and result.written > 5
    processor = AutoProcessor.from_pretrained(model)
    for line in read_prompts(tmp_path / "p.parquet"):
        prompt, row = line["prompt"], ds.row(line["source"], line["line"])
        data = prompt["multi_modal_data"]
        made = processor(
            text=processor.tokenizer.decode(prompt["prompt_token_ids"]), images=data.get("image"),
            videos=data.get("video"), return_tensors="pt", **prompt["mm_processor_kwargs"],
        )  # fmt: skip
        assert made["input_ids"][0].tolist() + line["answer_token_ids"] == row["input_ids"][0].tolist()
        for name in ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"):
            assert (name in made) == (name in row) and (name not in row or torch.equal(made[name], row[name]))


def test_a_family_without_prompts_for_vllm_is_refused(omniprep, tmp_path):
    pytest.importorskip("dashscope", reason="the Qwen vocabulary comes with dashscope (omniprep[demo])")
    from omniprep.testing.init_model import init_model

    sound = init_model(tmp_path / "audio", "qwen2_audio")
    done = omniprep("build", INPUTS[2], "--model", sound, "--bin-length", 2048, "--workers", 0, "--out", tmp_path / "a")
    assert done.code == 0, done.err
    with pytest.raises(OmniprepError, match="'qwen2_audio' has no --prompts tokens.*waveforms.*chats"):
        export_prompts(tmp_path / "a", tmp_path / "q.parquet", "tokens")
    assert not list(tmp_path.glob(".q.parquet*")) and not (tmp_path / "q.parquet").exists()


def test_bad_input_is_one_clear_line(dataset, omniprep, model_dir, tmp_path):
    taken = tmp_path / "taken.jsonl"
    taken.write_text("mine")
    for out, text in (("p.parquet", "are a .jsonl file"), ("taken.jsonl", "exists"), ("no/p.jsonl", "no such folder")):
        with pytest.raises(UsageError, match=text):
            export_prompts(dataset.uri, tmp_path / out)
    assert taken.read_text() == "mine"
    done = omniprep("export", dataset.uri, "--out", tmp_path / "p.jsonl")
    assert done.code == 2 and "--prompts" in done.err
    done = omniprep("export", dataset.uri, "--prompts", "verbs", "--out", tmp_path / "p.jsonl")
    assert done.code == 2 and "verbs" in done.err
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    for name, text in (("other.parquet", "not written by"), ("taken.jsonl", "no file of prompts"), ("none", "no file")):
        with pytest.raises(OmniprepError, match=text):
            list(read_prompts(tmp_path / name))
    source = write_rows(tmp_path / "c.jsonl", [chat("Question?", "Answer.")])
    ds = build(omniprep, model_dir, tmp_path / "d", source)
    plain = build(omniprep, model_dir, tmp_path / "plain", source, options=("--no-use-chat-template",))
    with pytest.raises(OmniprepError, match="no-use-chat-template"):
        export_prompts(plain.uri, tmp_path / "p.parquet", "tokens")
    write_rows(source, [chat("Another?", "Answer.")])
    done = omniprep("export", ds.uri, "--prompts", "chats", "--out", tmp_path / "p.jsonl")
    assert done.code == 1 and "is not what it was" in done.err and len(done.err.strip().splitlines()) <= 3
    source = write_rows(tmp_path / "none.jsonl", [chat("A question that nobody answers, in text alone.")])
    ds = build(omniprep, model_dir, tmp_path / "n", source)
    with pytest.raises(OmniprepError, match="no row gives a prompt: 1 rows have no prompt: no answer"):
        export_prompts(ds.uri, tmp_path / "p.jsonl")
    assert not (tmp_path / "p.jsonl").exists()


def test_a_picture_outside_the_limits_of_the_checkpoint_keeps_its_size(omniprep, model_dir, tmp_path):
    """Without do_resize=False the processor, and vLLM with it, would make more tokens of it than were trained."""
    from transformers import AutoProcessor

    Image.new("RGB", (30, 27), "red").save(tmp_path / "small.png")
    source = write_rows(tmp_path / "c.jsonl", [chat("<image>Which color?", "Red.", images=["small.png"])])
    ds = build(omniprep, model_dir, tmp_path / "d", source, options=("--min-pixels", 28 * 28))
    export_prompts(ds.uri, tmp_path / "p.parquet", "tokens")
    (line,) = read_prompts(tmp_path / "p.parquet")
    processor, prompt, row = AutoProcessor.from_pretrained(model_dir), line["prompt"], ds.row(source, 1)
    assert prompt["multi_modal_data"]["image"][0].size == (28, 28)
    assert expanded(prompt, row, processor) + line["answer_token_ids"] == row["input_ids"][0].tolist()
    resized = processor.image_processor(images=prompt["multi_modal_data"]["image"], return_tensors="pt")
    assert not torch.equal(resized["image_grid_thw"], row["image_grid_thw"])


def test_the_names_are_exported():
    assert package.export_prompts is export_prompts and package.read_prompts is read_prompts
