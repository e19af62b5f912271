"""Risk: `omniprep train --objective` learns something else than the losses say, or from another reference than it
seems to.
"""

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from train_helpers import Messages, small_family, write_dataset, write_model, write_preferences
from transformers import Qwen2_5OmniForConditionalGeneration

import omniprep
from omniprep.data import PackedDataset
from omniprep.data.loss import LOSS_FIELDS
from omniprep.errors import DamagedDataError, OmniprepError, UsageError
from omniprep.shards.manifest import content_hash
from omniprep.shards.references import ReferenceModel, References, read_references, write_references
from omniprep.train import run as run_module
from omniprep.train import score as score_module
from omniprep.train.config import ScoreConfig, TrainConfig

RATE = 1e-2
OBJECTIVES = {
    "dpo": {"objective": "dpo", "beta": 0.5, "rpo_alpha": 0.3},
    "kto": {"objective": "kto", "beta": 0.5, "desirable_weight": 1.2},
    "orpo": {"objective": "orpo", "beta": 0.5},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(checkpoint, monkeypatch, tmp_path) -> Any:
    """Scores and trains with the small family; gives the logs."""
    for module in (run_module, score_module):
        monkeypatch.setattr(module, "resolve_family", lambda *_: small_family(checkpoint))
    messages = Messages()

    def score(data: Path, **options: Any) -> None:
        given = {"model": str(checkpoint), "data": (str(data),), "num_workers": 0, "device": "cpu"}
        score_module.score(ScoreConfig(**{**given, **options}), messages)

    def train(data: Path, **options: Any) -> list[dict]:
        given = {
            "model": str(checkpoint), "data": (str(data),), "out": str(tmp_path / "run"), "max_steps": 3,
            "learning_rate": RATE, "schedule": "constant", "warmup": 0, "weight_decay": 0.0, "max_grad_norm": 0.0,
            "optimizer": "sgd", "num_workers": 0, "logging_steps": 1, "report_to": ("none",), "device": "cpu",
            "dtype": "float32", "overwrite": True, "save_steps": 0,
        }  # fmt: skip
        config = TrainConfig(**{**given, **options})
        run_module.train(config, messages)
        if config.dry_run:
            return []
        last = sorted(Path(config.out).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[-1]
        return json.loads((last / "trainer_state.json").read_text())["log_history"]

    return SimpleNamespace(score=score, train=train, lines=messages.lines, out=tmp_path / "run")


@pytest.fixture
def pairs(tmp_path) -> Path:
    return write_preferences(tmp_path / "pairs")


@pytest.fixture
def verdicts(tmp_path) -> Path:
    return write_preferences(tmp_path / "verdicts", sizes=(3, 2, 4, 3), paired=False)


def losses(logs: list[dict]) -> list[float]:
    return [line["loss"] for line in logs if "loss" in line]


def plain_losses(checkpoint: Path, data: Path, order: list[list[int]], objective: omniprep.Objective) -> list[float]:
    """A loop of one's own over the same bins, with transformers' class as it is: docs/your-trainer.md."""
    whole = Qwen2_5OmniForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, enable_audio_output=False
    )
    model, ds = whole.thinker, PackedDataset(data)
    trained = [p for n, p in model.named_parameters() if "visual" not in n and "audio_tower" not in n]
    optimizer = torch.optim.SGD(trained, lr=RATE)
    placeholders = list(ds.record.placeholders.values())

    def logits(batch: dict) -> torch.Tensor:
        return model(**{name: value for name, value in batch.items() if name not in LOSS_FIELDS}).logits

    found = []
    for numbers in order:
        kl = None
        if objective.needs_divergence:
            (other, donors) = omniprep.mismatched(ds[numbers[0]], placeholders)
            moved = ds.collate([other])
            with torch.no_grad():
                kl = omniprep.kto_divergence(logits(moved), moved, torch.from_numpy(donors))
        batch = ds.collate([ds[number] for number in numbers])
        loss, _ = omniprep.preference_loss(logits(batch), batch, objective, kl=kl, placeholders=placeholders)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def order_of(data: Path, steps: int) -> list[list[int]]:
    from omniprep.train.stream import Mixture

    ds = PackedDataset(data)
    mixture = Mixture(sizes=[len(ds)], seed=42, costs=ds.costs)
    return [[mixture.at(step)] for step in range(steps)]


@pytest.mark.parametrize("name", ["dpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("kto", "orpo"))])
def test_training_equals_a_loop_of_ones_own(name, run, checkpoint, pairs, verdicts):
    """Pictures, sound and video that both answers share; bins of one, two and three pairs."""
    data = verdicts if name == "kto" else pairs
    options = OBJECTIVES[name]
    if name != "orpo":
        run.score(data)
    logs = run.train(data, **options)
    parameters = {"name" if key == "objective" else key: value for key, value in options.items()}
    expected = plain_losses(checkpoint, data, order_of(data, 3), omniprep.Objective(**parameters))
    assert losses(logs) == pytest.approx(expected, rel=1e-5)
    assert expected[0] != expected[2]


@pytest.mark.slow
def test_training_begins_at_a_margin_of_zero_and_prefers_what_is_chosen(run, pairs):
    run.score(pairs)
    logs = run.train(pairs, objective="dpo", max_steps=16, learning_rate=0.1, eval_data=(str(pairs),), eval_steps=8)
    train, evaluation = [line for line in logs if "loss" in line], [line for line in logs if "eval_loss" in line][-1]
    first = train[0]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert (first["rewards/margins"], first["rewards/chosen"]) == pytest.approx((0, 0), abs=1e-5)
    assert train[-1]["loss"] < 0.6 and train[-1]["rewards/accuracies"] == 1
    assert evaluation["eval_loss"] < 0.6 and evaluation["eval_rewards/margins"] > 0.1
    assert {"logps/chosen", "logps/rejected", "rewards/rejected"} <= train[-1].keys()
    assert not any(name.startswith("loss_") for name in train[-1]), "the cross entropy of preferred answers is nll_…"


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_of_several_passes_is_that_of_one_large_batch(name, run, pairs):
    """Bins of two, one, three and two pairs: the mean is over pairs, not over bins. Of KTO without the divergence,
    which is of a pass.
    """
    options = dict(OBJECTIVES[name])
    if name == "kto":
        options["loss_type"] = "apo_zero_unpaired"
    if name != "orpo":
        run.score(pairs)
    whole = run.train(pairs, **options, batch_size=4, max_steps=2)
    parts = run.train(pairs, **options, grad_accumulation=4, max_steps=2)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    for name in ("grad_norm", "rewards/chosen", "logps/rejected"):
        assert [x[name] for x in parts if "loss" in x] == pytest.approx(
            [x[name] for x in whole if "loss" in x], rel=1e-3
        )


@pytest.mark.slow
def test_a_place_that_fills_a_step_up_counts_nothing(run, pairs):
    """Four bins, three a step: the second step has one bin and two whose labels are taken away."""
    run.score(pairs)
    logs = run.train(pairs, objective="dpo", grad_accumulation=3, max_steps=0, epochs=1, learning_rate=1e-6)
    alone = run.train(pairs, objective="dpo", max_steps=4, learning_rate=1e-6)
    assert losses(logs)[1] == pytest.approx(losses(alone)[3], rel=1e-4)


@pytest.mark.slow
def test_lora_starts_from_the_reference_and_drops_nothing(run, pairs):
    run.score(pairs)
    logs = run.train(pairs, objective="dpo", lora=True, lora_dropout=0.5, max_steps=2)
    assert losses(logs)[0] == pytest.approx(np.log(2), abs=1e-6)
    assert losses(logs)[1] == pytest.approx(
        losses(run.train(pairs, objective="dpo", lora=True, max_steps=2))[1], rel=1e-6
    )


@pytest.mark.slow
def test_a_dry_run_and_a_resumed_run(run, pairs):
    run.score(pairs)
    run.train(pairs, objective="dpo", dry_run=True)
    assert any("dry run" in line for line in run.lines)
    whole = run.train(pairs, objective="dpo", max_steps=4, save_steps=2)
    last = str(run.out / "checkpoint-2")
    rest = run.train(pairs, objective="dpo", max_steps=4, save_steps=2, resume=last)
    assert losses(rest) == pytest.approx(losses(whole), rel=1e-6)
    with pytest.raises(OmniprepError, match="--objective was dpo, is orpo"):
        run.train(pairs, objective="orpo", max_steps=5, resume=last)
    run.train(pairs, objective="dpo", beta=0.2, max_steps=3, resume=last)
    assert any("--beta was None, is 0.2" in line for line in run.lines)


# References


@pytest.mark.slow
def test_scores_are_what_the_class_gives(run, checkpoint, pairs, verdicts):
    whole = Qwen2_5OmniForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, enable_audio_output=False
    )
    for data in (pairs, verdicts):
        run.score(data, batch_size=2)
        ds = PackedDataset(data)
        assert (ds.references.kl_logps is None) == (data == pairs)
        for number in range(len(ds)):
            item = ds[number]
            batch = ds.collate([item])
            assert batch["reference_logps"].tolist() == item["reference_logps"].tolist()
            with torch.no_grad():
                inputs = {name: value for name, value in batch.items() if name not in LOSS_FIELDS}
                logps = whole.thinker(**inputs).logits[0, :-1].log_softmax(-1)
            labels = batch["labels"].as_subclass(torch.Tensor)[0, 1:]
            picked = logps.gather(1, labels.clamp(min=0)[:, None])[:, 0] * (labels != -100)
            borders = item["cu_seqlens"]
            for row, (start, end) in enumerate(pairwise(borders)):
                expected = float(picked[max(start - 1, 0) : end - 1].sum())
                assert item["reference_logps"][row] == pytest.approx(expected, rel=1e-5)


def test_a_reference_that_is_missing_or_of_another_model_or_content_is_refused(run, pairs, tmp_path, checkpoint):
    with pytest.raises(OmniprepError, match=r"there are none: run omniprep score .*pairs --model"):
        run.train(pairs, objective="dpo")
    run.score(pairs)
    run.score(pairs)
    assert any("already" in line for line in run.lines)
    stored = read_references(str(pairs), 4)
    other = stored.made_by.__class__(**{**as_dict(stored.made_by), "weights": "0" * 32, "model": "another/model"})
    write_references(str(pairs), stored.__class__(**{**as_dict(stored), "made_by": other}))
    with pytest.raises(OmniprepError, match="are of 'another/model', training begins with .*--other-reference"):
        run.train(pairs, objective="dpo")
    with pytest.raises(OmniprepError, match="of another model .'another/model'.: --overwrite"):
        run.score(pairs)
    assert losses(run.train(pairs, objective="dpo", other_reference=True, max_steps=1))
    assert any("are of 'another/model'" in line for line in run.lines)
    run.score(pairs, overwrite=True, dtype="bfloat16")
    assert losses(run.train(pairs, objective="dpo", max_steps=1))
    assert any("were computed in bfloat16, training is in float32" in line for line in run.lines)
    assert read_references(str(pairs), 4).made_by.model == str(checkpoint)
    changed = json.loads((pairs / "manifest.json").read_text())
    changed["shards"][0]["sha256"] = "1" * 64
    (pairs / "manifest.json").write_text(json.dumps(changed))
    assert "reference_logps" not in PackedDataset(pairs)[0]
    with pytest.raises(OmniprepError, match="computed before the dataset changed: run omniprep score"):
        run.train(pairs, objective="dpo")


def as_dict(record: Any) -> dict:
    return {name: getattr(record, name) for name in record.__slots__}


@pytest.mark.slow
def test_kto_on_pairs_needs_scores_of_mismatched_answers(run, pairs):
    run.score(pairs)
    with pytest.raises(OmniprepError, match="without those of mismatched answers.*--objective kto --overwrite"):
        run.train(pairs, objective="kto")
    assert losses(run.train(pairs, objective="kto", loss_type="apo_zero_unpaired", max_steps=1))
    run.score(pairs, objective="kto")
    assert losses(run.train(pairs, objective="kto", max_steps=1))[0] == pytest.approx(0.5, abs=1e-5)
    assert any("1 of 4 bins have one row" in line for line in run.lines)


@pytest.mark.parametrize("damage", ["cut", "another table", "order"])
def test_a_damaged_file_of_scores_is_one_error(pairs, damage):
    made_by = ReferenceModel(content=content_hash(PackedDataset(pairs).manifest), model="m", weights="0" * 32)
    values = References(
        made_by=made_by, begins=np.array([0, 4, 6, 12, 16]), logps=np.zeros(16, np.float32), kl_logps=None
    )
    write_references(str(pairs), values)
    assert PackedDataset(pairs)[1]["reference_logps"].tolist() == [0, 0]
    path = pairs / "reference_logps.parquet"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "another table":
        path.write_bytes((pairs / "index.parquet").read_bytes())
    else:
        stored = read_references(str(pairs), 4)
        fewer = {**as_dict(stored), "begins": np.array([0, 1, 2, 3, len(stored.logps)])}
        write_references(str(pairs), stored.__class__(**fewer))
    with pytest.raises((DamagedDataError, OmniprepError), match=r"reference_logps\.parquet"):
        PackedDataset(pairs)[0]


# Data that do not fit


def test_data_that_an_objective_cannot_learn_from(run, pairs, verdicts, tmp_path):
    ordinary = write_dataset(tmp_path / "ordinary")
    with pytest.raises(OmniprepError, match="holds preference rows .8 pairs.: train with --objective dpo"):
        run.train(pairs)
    with pytest.raises(OmniprepError, match="rows without preferences: .* rejected_response"):
        run.train(ordinary, objective="dpo")
    with pytest.raises(OmniprepError, match="rows without preferences"):
        run.score(ordinary)
    with pytest.raises(OmniprepError, match="single verdicts .6 desirable, 6 undesirable.*--objective kto"):
        run.train(verdicts, objective="orpo")
    manifest = json.loads((pairs / "manifest.json").read_text())
    manifest["counts"]["preference"]["ordinary"] = 3
    (pairs / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OmniprepError, match="rows without a verdict .8 pairs, 3 ordinary.*--preference pairs"):
        run.train(pairs, objective="dpo")


def test_kto_of_bins_of_one_row_cannot_estimate_the_divergence(run, tmp_path):
    data = write_preferences(tmp_path / "single", sizes=(1, 1, 1), paired=False)
    run.score(data, objective="dpo")
    with pytest.raises(OmniprepError, match=r"every bin has one row.*repack.*apo_zero_unpaired"):
        run.train(data, objective="kto")
    assert losses(run.train(data, objective="kto", loss_type="apo_zero_unpaired", max_steps=1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"beta": 0.1}, "--beta needs --objective"),
        ({"rpo_alpha": 1.0, "objective": "kto"}, "--rpo-alpha is of --objective dpo"),
        ({"other_reference": True, "objective": "orpo"}, "orpo has no reference"),
        ({"loss_type": "ipo", "objective": "orpo"}, "--objective orpo has odds_ratio"),
    ],
)
def test_options_that_contradict(options, text):
    with pytest.raises(UsageError, match=text):
        TrainConfig(**options)


@pytest.mark.slow
def test_from_json_lines_to_a_model_that_prefers_what_is_chosen(omniprep, model_dir, tmp_path, monkeypatch):
    """The commands of a user, pictures that both answers share among the rows; an append takes the scores away."""
    Image.new("RGB", (112, 84), (200, 30, 30)).save(tmp_path / "red.png")
    for name, first in (("pairs", 0), ("more", 8)):
        rows = []
        for number in range(first, first + 8):
            question = {"role": "user", "content": ("<image>" if number % 2 else "") + f"Is it {number}?"}
            row = {"messages": [question, {"role": "assistant", "content": "Yes."}], "rejected_response": "No, never."}
            rows.append(row | ({"images": ["red.png"]} if number % 2 else {}))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)

    def run(*words: object, code: int = 0) -> str:
        done = omniprep(*words)
        assert done.code == code, done.err
        return done.err

    model = ("--model", model_dir)
    run("build", "pairs.jsonl", *model, "--bin-length", 256, "--workers", 0, "--out", "packed")
    train = ("train", "packed", *model, "--objective", "dpo", "--report-to", "none", "--num-workers", 0)
    train += ("--learning-rate", "1e-3", "--max-steps", 8, "--logging-steps", 1)
    assert "run omniprep score packed" in run(*train, "--out", "run", code=1)
    run("score", "packed", *model, "--num-workers", 0)
    run("verify", "packed", "--deep")  # scores are not of the rows
    run(*train, "--out", "run")
    logs = json.loads((tmp_path / "run" / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
    assert losses(logs)[0] == pytest.approx(np.log(2), abs=1e-5) and losses(logs)[-1] < 0.55
    assert [line for line in logs if "loss" in line][-1]["rewards/accuracies"] == 1
    run("append", "packed", "more.jsonl", "--workers", 0)
    assert not (tmp_path / "packed" / "reference_logps.parquet").exists()
    assert "run omniprep score packed" in run(*train, "--out", "run2", code=1)
    run("score", "packed", *model, "--num-workers", 0)
    assert len(PackedDataset(tmp_path / "packed").references.logps) == 32
    assert "another model" in run("score", "packed", "--model", "run", "--num-workers", 0, code=1)
    run("score", "packed", "--model", "run", "--num-workers", 0, "--overwrite")
    assert "training begins with" in run(*train, "--out", "run3", code=1)
