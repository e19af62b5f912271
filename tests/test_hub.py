"""Push and pull against a Hub on localhost: resume, what changed, the Hub's moods, and reading back in every way."""

import json
from pathlib import Path

import fake_hub
import pytest
from conftest import SAMPLES

from omniprep.data.dataset import PackedDataset
from tests.reliability import make_chats

REPO = "org/chats"


@pytest.fixture(scope="module")
def built(omniprep, model_dir, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("hub") / "packed"
    inputs = [SAMPLES / name for name in ("text.jsonl", "images.jsonl", "audio.jsonl", "broken.jsonl")]
    options = ("--bin-length", 1024, "--shard-size", 2_000_000, "--pixel-codec", "raw", "--workers", 0)
    done = omniprep("build", *inputs, "--model", model_dir, "--out", out, *options, "--quiet")
    assert done.code == 0, done.err
    return out


def test_push_then_read_back_in_every_way(built, hub, python, tmp_path):
    hub.faults += [
        ("POST", "/commit/", 412, "A commit has happened since. Please refresh and try again."),
        ("POST", "/commit/", 429, "slow down"),
        ("POST", "/preupload/", 503, "busy"),
    ]
    first = python("-m", "omniprep", "push", built, REPO)
    assert hub.faults == [] and "again in" in first.stderr
    repo = hub.repos[REPO]
    files = repo.branches["main"]
    assert repo.private
    assert {"manifest.json", "README.md", "preview/train.parquet", "plots/lengths.png", "shards/00000.arrow"} <= set(
        files
    )
    for shard in (built / "shards").iterdir():
        assert files[f"shards/{shard.name}"] == shard.read_bytes()
    assert files["plots/lengths.png"].startswith(b"\x89PNG")
    card = files["README.md"].decode()
    assert f'PackedDataset("hf://datasets/{REPO}")' in card and "| `bad_media` |" in card
    assert "| pixels | as they are |" in card

    commits = [line for line in hub.log if "/commit/" in line]
    again = python("-m", "omniprep", "push", built, REPO, "--quiet")
    assert "sent 0 files" in again.stdout
    assert [line for line in hub.log if "/commit/" in line] == commits

    read_back(built, python, tmp_path)


def read_back(built: Path, python: fake_hub.Python, tmp_path: Path) -> None:
    code = f"""
import numpy as np
from omniprep import PackedDataset
there, here = PackedDataset("hf://datasets/{REPO}", verify="always"), PackedDataset({str(built)!r})
assert len(there) == len(here) and there.rows.equals(here.rows)
for i in range(len(here)):
    for name, value in here[i].items():
        assert np.array_equal(value, there[i][name]) if isinstance(value, np.ndarray) else value == there[i][name]
print("equal")
"""
    assert "equal" in python("-c", code).stdout
    out = tmp_path / "pulled"
    assert python("-m", "omniprep", "pull", REPO, "--out", out).stdout.strip() == str(out)
    assert (out / "index.parquet").read_bytes() == (built / "index.parquet").read_bytes()
    assert len(PackedDataset(out)) == len(PackedDataset(built)) and not (out / "plots").exists()
    code = f"""
import datasets
preview = datasets.load_dataset("{REPO}", "preview", split="train")
picture = next(row["thumbnail"] for row in preview if row["kind"] == "image")
assert picture.size[0] > 20, picture
assert [m["role"] for m in preview[0]["messages"]][-1] == "assistant"
packed = datasets.load_dataset("{REPO}", "packed", split="train")
assert len(packed) == {len(PackedDataset(built))} and len(packed[0]["input_ids"]) > 0
# As the Hub's viewer reads: by name, as a stream, features from the file.
assert datasets.get_dataset_config_names("{REPO}") == ["preview", "packed"]
stream = datasets.load_dataset("{REPO}", split="train", streaming=True)
assert isinstance(stream.features["thumbnail"], datasets.Image) and next(iter(stream)) == preview[0]
table = datasets.load_dataset("parquet", data_files="hf://datasets/{REPO}/preview/train.parquet", split="train")
assert table.features == preview.features and table[0] == preview[0]
print("loaded")
"""
    assert "loaded" in python("-c", code).stdout


def test_a_stopped_push_goes_on_and_a_changed_one_sends_the_change(built, hub, python, tmp_path, omniprep):
    hub.faults += [("POST", "/commit/", 403, "no more")]
    stopped = python("-m", "omniprep", "push", built, REPO, "--quiet", code=1)
    assert stopped.stderr.strip().count("\n") == 0 and "403" in stopped.stderr
    sent = {line for line in hub.log if line.startswith("PUT /lfs/")}
    assert sent, "the large files of the first batch were uploaded before the commit was refused"
    python("-m", "omniprep", "push", built, REPO, "--quiet")
    puts = [line for line in hub.log if line.startswith("PUT /lfs/")]
    assert len(puts) == len(set(puts)), "a large file was sent twice"

    smaller = tmp_path / "smaller"
    assert omniprep("repack", built, "--bin-length", 1024, "--source", "images.jsonl", "--out", smaller).code == 0
    dry = python("-m", "omniprep", "push", smaller, REPO, "--dry-run")
    assert "would send" in dry.stdout and "remove  shards/" in dry.stdout
    python("-m", "omniprep", "push", smaller, REPO, "--quiet")
    files = hub.repos[REPO].branches["main"]
    manifest = json.loads(files["manifest.json"])
    assert {name for name in files if name.startswith("shards/")} == {shard["path"] for shard in manifest["shards"]}


def test_revision_and_dry_run(built, hub, python):
    dry = python("-m", "omniprep", "push", built, REPO, "--dry-run")
    assert "would send" in dry.stdout and hub.repos == {}
    python("-m", "omniprep", "push", built, REPO, "--revision", "v2", "--public", "--quiet")
    repo = hub.repos[REPO]
    assert not repo.private and repo.branches["main"] == {} and "manifest.json" in repo.branches["v2"]


def test_refusals_are_one_line(built, hub, python, tmp_path):
    hub.faults += [("POST", "/api/repos/create", 401, "who are you")]
    done = python("-m", "omniprep", "push", built, REPO, "--quiet", code=1)
    assert "hf auth login" in done.stderr and "Traceback" not in done.stderr
    done = python("-m", "omniprep", "pull", "org/none", "--out", tmp_path / "x", code=1)
    assert "no such dataset or model" in done.stderr and "Traceback" not in done.stderr


def test_a_trained_model_becomes_a_model_repository(hub, python, tmp_path):
    """Weights, configs and card go up, the trainer's state stays; a second push sends what changed."""
    run = tmp_path / "run"
    run.mkdir()
    content = {"model-00001-of-00002.safetensors": b"w" * 30_000, "model-00002-of-00002.safetensors": b"v" * 30_000}
    content |= dict.fromkeys(("config.json", "tokenizer.json", "model.safetensors.index.json"), b"{}")
    kept = {"optimizer.pt": b"o", "rng_state.pth": b"r", "training_args.bin": b"t", "data_state.json": b"{}"}
    state = {"global_step": 7, "log_history": [{"loss": 1.23456789, "step": 7}, {"eval_loss": 2.5, "step": 7}]}
    kept["trainer_state.json"] = json.dumps(state).encode()
    kept["train_config.yaml"] = b"model: Qwen/Qwen2.5-Omni-7B\nlearning_rate: 1.0e-05\nlora: false\n"
    for name, data in (content | {"spk_dict.pt": b"s"} | kept).items():
        (run / name).write_bytes(data)
    done = python("-m", "omniprep", "push", run, "org/model")
    assert done.stdout.startswith(f"{hub.url}/org/model: sent 7 files") and hub.repos["org/model"].private
    assert any(line.endswith("/api/models/org/model/commit/main") for line in hub.log)
    files = hub.repos["org/model"].branches["main"]
    assert files.keys() == {*content, "spk_dict.pt", "README.md"}
    assert all(files[name] == data for name, data in content.items())
    card = files["README.md"].decode()
    assert "base_model: Qwen/Qwen2.5-Omni-7B" in card and "| last loss | 1.234568 |" in card and "| steps | 7 |" in card
    (run / "model.safetensors").write_bytes(b"u" * 30_000)
    for name in content:
        if name.startswith("model-") or name.endswith("index.json"):
            (run / name).unlink()
    done = python("-m", "omniprep", "push", run, "org/model", "--quiet")
    assert "sent 1 files" in done.stdout and "3 removed" in done.stdout
    assert hub.repos["org/model"].branches["main"].keys() == {
        "model.safetensors", "config.json", "tokenizer.json", "spk_dict.pt", "README.md"
    }  # fmt: skip


def test_the_card_of_an_adapter_names_no_folder_of_this_machine(tmp_path):
    from omniprep.hub.model import is_checkpoint, model_card

    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    card = model_card(tmp_path, "org/adapter")
    assert is_checkpoint(tmp_path) and "library_name: peft" in card and "--base-model BASE" in card
    assert "base_model:" not in card and str(tmp_path) not in card
    (tmp_path / "manifest.json").write_text("{}")
    assert not is_checkpoint(tmp_path)


def test_a_build_reads_chats_and_media_from_the_hub(hub, python, model_dir, tmp_path, omniprep):
    """hf:// inputs, media beside them: the shards of a build of local copies."""
    make_chats(tmp_path / "in", rows=12)
    hub.repos[REPO] = fake_hub.Repo(private=False)
    hub.repos[REPO].branches["main"] = {f"chats/{path.name}": path.read_bytes() for path in (tmp_path / "in").iterdir()}
    options = ("--model", model_dir, "--bin-length", 512, "--workers", 0, "--quiet")
    names = [f"hf://datasets/{REPO}/chats/chats{n}.jsonl" for n in range(2)]
    python("-m", "omniprep", "build", *names, *options, "--out", tmp_path / "there")
    python("-m", "omniprep", "build", f"hf://datasets/{REPO}/chats", *options, "--out", tmp_path / "folder")
    local = [tmp_path / "in" / f"chats{n}.jsonl" for n in range(2)]
    assert omniprep("build", *local, *options, "--out", tmp_path / "here").code == 0
    shard = "shards/00000.arrow"
    for name in ("there", "folder"):
        assert (tmp_path / name / shard).read_bytes() == (tmp_path / "here" / shard).read_bytes()
    assert json.loads((tmp_path / "there" / "manifest.json").read_text())["counts"]["items"]["image"] == 4
