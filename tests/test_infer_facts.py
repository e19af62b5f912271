"""Risk: answers to rows that are encoded otherwise than those of the run; a run that switches something on."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from train_helpers import Messages

from omniprep.compiler.options import family_of
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError
from omniprep.shards.manifest import TRUST_FLAGS, parse_manifest
from omniprep.train.adapter import adapter_config, base_and_adapter
from omniprep.train.config import InferConfig
from omniprep.train.facts import (
    FACTS,
    FORBIDDEN,
    RowFacts,
    facts_of_content,
    facts_of_manifest,
    read_facts,
    write_facts,
)
from omniprep.train.infer import build_options, encoded_rows, infer, row_facts

CHAT = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]}
SHAPED = {"system": "You are a terse pirate.", "max_pixels": 50176, "fps": 1.0, "loss_scale": "last_round"}


def manifest(**options):
    config = {"bin_length": 2048, "inputs": ["chats.jsonl"], "model": "m", "seed": 3} | options
    return {"format": 1, "family": "qwen2_5_omni", "shards": [], "config": config}


def facts_of(uri, content):
    return facts_of_manifest(str(uri), parse_manifest(content, f"{uri}/manifest.json")[0])


def write_run(folder: Path, *manifests) -> Path:
    folder.mkdir(parents=True)
    (folder / "train_config.yaml").write_text("data: [gone]\n")
    write_facts(folder, [facts_of(f"data{n}", m) for n, m in enumerate(manifests)])
    return folder


def options_of(run: Path, **given):
    messages = Messages()
    config = InferConfig(model=str(run), inputs=("chats.jsonl",), **given)
    return build_options(config, "base", messages), messages.lines


def test_a_run_needs_no_dataset(tmp_path, monkeypatch):
    """The options come from the run itself, wherever it and the command are; a checkpoint and a merged model too."""
    run = write_run(tmp_path / "run", manifest(**SHAPED))
    for place in ("checkpoint-2", "merged"):
        (run / place).mkdir()
        write_facts(run / place, read_facts(str(run)) or [])
    monkeypatch.chdir(tmp_path)
    for folder in (run, run / "checkpoint-2", run / "merged", Path("run"), Path("run/merged")):
        build, said = options_of(folder)
        assert {name: getattr(build, name) for name in SHAPED} == SHAPED and said == []
        assert (build.family, build.model, build.inputs) == ("qwen2_5_omni", "base", ("chats.jsonl",))


def test_facts_hold_what_shapes_rows_and_no_path(tmp_path):
    given = {"media_root": ["/srv/me"], "plugin": ["/srv/me/f.py"], "trust_remote_code": True, "allow_http": True}
    facts = facts_of(tmp_path / "packed", manifest(**SHAPED, **given))
    write_facts(tmp_path, [facts])
    text = (tmp_path / FACTS).read_text()
    assert "/srv/me" not in text and str(tmp_path) not in text and facts.dataset == "packed"
    assert facts.needed_flags == tuple(TRUST_FLAGS.values()) and {"plugin", "inputs", "model"} <= FORBIDDEN
    assert not FORBIDDEN & json.loads(text)["datasets"][0]["options"].keys()
    assert read_facts(str(tmp_path)) == [facts]


def test_a_run_of_before_is_told_what_to_give(tmp_path):
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "run" / "train_config.yaml").write_text("data: [out]\n")
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-2"):
        with pytest.raises(OmniprepError, match="--like DATASET"):
            options_of(folder)


def test_a_model_that_is_no_run_says_that_defaults_are_taken(tmp_path):
    build, said = options_of(tmp_path)
    assert build.system is None and "default options" in said[0]


def test_like_takes_a_dataset_or_the_name_of_one(tmp_path):
    run = write_run(tmp_path / "run", manifest(system="one"), manifest(system="two"))
    with pytest.raises(OmniprepError, match=r"other options \(system\): choose one by --like: data0, data1"):
        options_of(run)
    assert options_of(run, like="data1")[0].system == "two"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest(system="three")))
    assert options_of(run, like=str(tmp_path / "other"))[0].system == "three"
    with pytest.raises(OmniprepError, match=r"nowhere: no manifest\.json"):
        options_of(run, like="nowhere")


def test_datasets_that_differ_in_length_alone_are_one(tmp_path):
    run = write_run(tmp_path / "run", manifest(system="one"), manifest(system="one", bin_length=4096, seed=9))
    assert options_of(run)[0].system == "one"


DANGEROUS = {
    "plugin": ["evil.py"],
    "trust_remote_code": True,
    "allow_http": True,
    "media_root": ["/"],
    "inputs": ["/etc/passwd"],
    "out": "runs/x",
    "ray_address": "ray://evil:10001",
    "model": "evil/model",
}


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_run_switches_nothing_on(tmp_path, name):
    """From a run such an option is refused; a dataset may have had it, it is not taken over and is asked for."""
    run = write_run(tmp_path / "run", manifest())
    content = json.loads((run / FACTS).read_text())
    content["datasets"][0]["options"][name] = DANGEROUS[name]
    (run / FACTS).write_text(json.dumps(content))
    with pytest.raises(OmniprepError, match=f"'{name}', which no run may set"):
        options_of(run)
    (tmp_path / "like").mkdir()
    (tmp_path / "like" / "manifest.json").write_text(json.dumps(manifest(**{name: DANGEROUS[name]})))
    build, said = options_of(run, like=str(tmp_path / "like"))
    harmless, _ = options_of(write_run(tmp_path / "plain", manifest()))
    assert build == harmless
    if name in TRUST_FLAGS:
        flag = "--" + name.replace("_", "-")
        assert flag in said[0]
        here = tuple(DANGEROUS[name]) if isinstance(DANGEROUS[name], list) else DANGEROUS[name]
        build, said = options_of(run, like=str(tmp_path / "like"), **{name: here})
        assert getattr(build, name) == here and said == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = ("system", "fps", "max_pixels", "bin_length", "family", "loss_scale", "bbox_format", "limit_mm_per_row", "x")
OPTIONS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON, max_size=4)
ENTRY = st.fixed_dictionaries(
    {}, optional={"dataset": st.text(max_size=5) | JSON, "options": OPTIONS | JSON, "needed_flags": JSON}
)
CONTENT = st.fixed_dictionaries(
    {}, optional={"format": st.just(1) | JSON, "datasets": st.lists(ENTRY, max_size=2) | JSON}
)


@settings(max_examples=300, deadline=None)
@given(CONTENT | JSON)
def test_facts_from_anyone_are_read_or_refused_in_one_line(content):
    try:
        found = facts_of_content("rows_config.json", content)
    except OmniprepError as error:
        assert "\n" not in str(error).strip() and str(error).startswith("rows_config.json")
    else:
        for entry in found:
            assert isinstance(entry, RowFacts) and set(entry.needed_flags) <= set(TRUST_FLAGS.values())
            assert not isinstance(entry.options, BuildConfig)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_files_of_a_run_that_are_damaged_are_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "facts"
    folder.mkdir(exist_ok=True)
    (folder / FACTS).write_bytes(content)
    (folder / "adapter_config.json").write_bytes(content)
    for read, what in ((read_facts, str(folder)), (adapter_config, folder / "adapter_config.json")):
        with pytest.raises(OmniprepError) as caught:
            read(what)
        assert "\n" not in str(caught.value).strip()


def test_an_adapter_that_imports_code_by_name_is_refused(tmp_path):
    path = tmp_path / "adapter_config.json"
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    path.write_text(json.dumps({"peft_type": "LORA", "megatron_config": {}, "megatron_core": "evil"}))
    with pytest.raises(OmniprepError, match="import code by name"):
        adapter_config(path)
    path.write_text(json.dumps({"peft_type": "XLORA"}))
    with pytest.raises(OmniprepError, match="not the configuration of a LoRA adapter"):
        adapter_config(path)


def test_rows_of_several_row_groups_keep_their_numbers(tmp_path, model_dir):
    rows = [CHAT | {"system": f"row {n}"} for n in range(1, 8)]
    path = tmp_path / "chats.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    run = write_run(tmp_path / "run", manifest())
    config = InferConfig(model=str(run), inputs=(str(path),))
    build = build_options(config, str(model_dir), Messages())
    ctx = family_of(build)
    found = list(encoded_rows(config, build, ctx))
    assert [row["line"] for row in found] == [1, 2, 3, 4, 5, 6, 7]
    for number, row in enumerate(found, 1):
        assert f"row {number}" in ctx.tokenizer.decode(row["kwargs"]["input_ids"][0])


def test_the_same_row_from_another_folder_is_the_same(tmp_path, model_dir, monkeypatch):
    run = write_run(tmp_path / "run", manifest(**SHAPED))
    (tmp_path / "chats.jsonl").write_text(json.dumps(CHAT) + "\n")
    texts = []
    for folder in (tmp_path, Path("/")):
        monkeypatch.chdir(folder)
        config = InferConfig(
            model=os.path.relpath(run, folder), inputs=(os.path.relpath(tmp_path / "chats.jsonl", folder),)
        )
        build = build_options(config, str(model_dir), Messages())
        row = next(iter(encoded_rows(config, build, family_of(build))))
        texts.append(family_of(build).tokenizer.decode(row["kwargs"]["input_ids"][0]))
    assert texts[0] == texts[1] and "terse pirate" in texts[0]


def test_no_row_with_an_answer_is_a_failure(tmp_path, model_dir):
    """Each line says why; the end of the command, and its exit code, say that nothing was answered."""
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps(CHAT | {"images": ["absent.png"]}) + "\n{\n")
    lines: list[str] = []
    config = InferConfig(model=str(model_dir), inputs=(str(chats),), device="cpu", dtype="float32")
    with pytest.raises(OmniprepError, match="2 of 2 rows have no answer: bad_json 1, media_not_found 1"):
        infer(config, Messages(), lines.append)
    assert [json.loads(line)["error"] for line in lines] == ["media_not_found", "bad_json"]


def test_like_missing_and_an_absent_folder_are_one_line(tmp_path, omniprep, model_dir):
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps(CHAT) + "\n")
    shown = omniprep("infer", chats, "--model", model_dir, "--like", "nowhere")
    assert shown.code == 1 and "nowhere: no manifest.json" in shown.err and "Traceback" not in shown.err
    answers = tmp_path / "answers.jsonl"
    answers.write_text("of yesterday\n")
    assert omniprep("infer", chats, "--model", model_dir, "--like", "nowhere", "--out", answers).code == 1
    assert answers.read_text() == "of yesterday\n"
    shown = omniprep("infer", chats, "--model", model_dir, "--out", tmp_path / "no" / "a.jsonl")
    assert shown.code == 2 and "no such folder" in shown.err


def test_row_facts_of_a_damaged_dataset(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest(fps="two")))
    with pytest.raises(OmniprepError, match="config: fps: expected a finite number"):
        row_facts(InferConfig(model="m", like=str(tmp_path)))


def test_an_adapter_has_no_base_model_fetched(tmp_path):
    """A folder here, a checkpoint in the cache, or what the command line names."""
    content = {"peft_type": "LORA", "base_model_name_or_path": "evil/model"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(OmniprepError, match="'evil/model'.*give --base-model"):
        base_and_adapter(str(tmp_path), None)
    assert base_and_adapter(str(tmp_path), "mine/model")[0] == "mine/model"
    content["base_model_name_or_path"] = str(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    assert base_and_adapter(str(tmp_path), None)[0] == str(tmp_path)


def test_an_adapter_without_weights_asks_nobody(tmp_path, model_dir, omniprep, monkeypatch):
    """PEFT takes the name of such a folder for a repository of the Hub, which anyone may have made."""
    (tmp_path / "org" / "adapter").mkdir(parents=True)
    content = {"peft_type": "LORA", "base_model_name_or_path": str(model_dir), "target_modules": ["q_proj"]}
    (tmp_path / "org" / "adapter" / "adapter_config.json").write_text(json.dumps(content))
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    monkeypatch.chdir(tmp_path)
    said = omniprep("infer", "chats.jsonl", "--model", "org/adapter", "--max-new-tokens", 1)
    assert said.code == 1 and "adapter_model.safetensors is missing" in said.err
