"""Risk: a trained model overwritten, or a run that goes on with what is not its own."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from train_helpers import Messages, small_family, write_dataset, write_model

from omniprep.data import PackedDataset
from omniprep.errors import OmniprepError, UsageError
from omniprep.train import run as run_module
from omniprep.train.checkpoint import POSITION, read_position
from omniprep.train.config import TrainConfig
from omniprep.train.data import step_of
from omniprep.train.folder import OPTIONS, prepare_folder
from omniprep.train.resume import changes, find_checkpoint, identity


def write_run(out: Path, *steps: int, model: bool = True) -> Path:
    """What a run leaves: options, logs, checkpoints and a model."""
    (out / "runs" / "day").mkdir(parents=True)
    (out / OPTIONS).write_text("model: m\n")
    for step in steps:
        folder = out / f"checkpoint-{step}"
        folder.mkdir()
        state = {"position": step, "sizes": [3], "shares": None, "seed": 42}
        (folder / POSITION).write_text(json.dumps(state))
    for name in ("model.safetensors", "config.json", "tokenizer.json", "rows_config.json") if model else ():
        (out / name).write_text("{}")
    return out


def prepare(out: Path, checkpoint: Path | None = None, **options) -> None:
    prepare_folder(TrainConfig(out=str(out), model="m", **options), checkpoint)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_trained_model_is_not_overwritten(tmp_path):
    out = write_run(tmp_path / "run", 2, 4)
    before = names(out)
    for options in ({}, {"resume": "elsewhere/checkpoint-9"}):
        checkpoint = Path(options["resume"]) if options else None
        with pytest.raises(OmniprepError, match=r"holds an earlier run .*--resume auto.*--overwrite"):
            prepare(out, checkpoint, **options)
    assert names(out) == before


def test_overwrite_removes_the_earlier_run_and_nothing_else(tmp_path):
    out = write_run(tmp_path / "run", 2, 4)
    (out / "merged").mkdir()
    (out / "checkpoint-of-mine").mkdir()
    for name in ("notes.txt", "train.log", "my.py", "README.md"):
        (out / name).write_text("mine")
    prepare(out, overwrite=True)
    assert names(out) == {"notes.txt", "train.log", "my.py", "README.md", "checkpoint-of-mine"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_touched(tmp_path, overwrite):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    with pytest.raises(OmniprepError, match=r"holds config\.json.*no run of omniprep train"):
        prepare(folder, overwrite=overwrite)
    with pytest.raises(OmniprepError, match="is the --model or a dataset of the run itself"):
        prepare_folder(TrainConfig(out=str(folder), model=str(folder), overwrite=overwrite), None)
    with pytest.raises(OmniprepError, match="is the --model or a dataset of the run itself"):
        prepare_folder(TrainConfig(out=f"{folder}/.", model="m", data=(f"{folder}:0.5",)), None)
    assert names(folder) == {"config.json", "model.safetensors"}
    with pytest.raises(OmniprepError, match="a file of that name"):
        prepare(folder / "config.json", overwrite=overwrite)


def test_a_run_that_broke_off_before_its_first_checkpoint_may_be_begun_again(tmp_path):
    out = write_run(tmp_path / "run", model=False)
    (out / "checkpoint-3").mkdir()  # cut short
    prepare(out)
    prepare(out, resume="auto")
    (out / "adapter_model.safetensors").write_text("trained")
    with pytest.raises(OmniprepError, match="holds an earlier run"):
        prepare(out, resume="auto")


def test_later_checkpoints_are_not_left_for_resume_auto(tmp_path):
    out = write_run(tmp_path / "run", 2, 4, 6)
    prepare(out, out / "checkpoint-6", resume="auto")
    with pytest.raises(OmniprepError, match=r"later checkpoints \(checkpoint-4, checkpoint-6\).*--overwrite"):
        prepare(out, out / "checkpoint-2", resume=str(out / "checkpoint-2"))
    prepare(out, out / "checkpoint-2", resume=str(out / "checkpoint-2"), overwrite=True)
    assert find_checkpoint(TrainConfig(out=str(out), resume="auto")) == out / "checkpoint-2"
    assert {"model.safetensors", OPTIONS} <= names(out)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    return write_model(root / "model"), write_dataset(root / "d", bins=3), write_dataset(root / "e", bins=3, seed=7)


@pytest.fixture
def checkpoint(files, tmp_path):
    """A checkpoint's state as a run with these options writes it."""
    model, data, _ = files

    def write(**options) -> Path:
        state = {"position": 2, "sizes": [3], "shares": None, "seed": 42}
        config = TrainConfig(model=str(model), data=(str(data),), **options)
        state |= identity(config, [PackedDataset(str(data))], small_family(model))
        (tmp_path / POSITION).write_text(json.dumps(state))
        return tmp_path

    return write


def compare(files, folder, data=None, ctx=None, **options):
    model, first, _ = files
    config = TrainConfig(model=str(model), data=(str(data or first),), **options)
    return changes(folder, identity(config, [PackedDataset(str(data or first))], ctx or small_family(model)))


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({}, {"learning_rate": 1e-3}, "--learning-rate was None, is 0.001"),
        ({"schedule": "linear"}, {}, "--schedule was linear, is cosine"),
        ({"lora": True}, {}, "--lora was True, is False"),
        ({"lora": True}, {"lora": True, "lora_rank": 16}, "--lora-rank was 8, is 16"),
        ({}, {"freeze_vit": False}, "--freeze-vit was True, is False"),
        ({"optimizer": "adafactor"}, {}, "--optimizer was adafactor"),
    ],
)
def test_options_that_a_checkpoint_already_holds_may_not_change(files, checkpoint, before, now, message):
    with pytest.raises(OmniprepError, match=message):
        compare(files, checkpoint(**before), **now)


def test_options_that_may_change_are_said(files, checkpoint):
    folder = checkpoint(max_steps=3)
    assert compare(files, folder, max_steps=3) == []
    said = " ".join(compare(files, folder, max_steps=8, batch_size=2))
    assert "--max-steps was 3, is 8" in said and "--batch-size was 1, is 2" in said


def test_another_dataset_or_model_is_said(files, checkpoint):
    folder = checkpoint()
    with pytest.raises(OmniprepError, match="the content of --data changed"):
        compare(files, folder, data=files[2])
    ctx = small_family(files[0])
    ctx.config = ctx.config | {"initializer_range": 0.5}
    with pytest.raises(OmniprepError, match="--model changed"):
        compare(files, folder, ctx=ctx)


def test_a_checkpoint_that_says_nothing_of_its_run_is_told(files, tmp_path):
    (tmp_path / POSITION).write_text(json.dumps({"position": 1, "sizes": [3], "shares": None, "seed": 42}))
    assert "nothing is compared" in compare(files, tmp_path)[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
STATE = st.fixed_dictionaries({}, optional=dict.fromkeys(("position", "sizes", "shares", "seed", "global_step"), JSON))


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=60) | JSON.map(lambda v: json.dumps(v).encode()) | STATE.map(lambda v: json.dumps(v).encode())
)
def test_a_damaged_checkpoint_is_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    for name, read in ((POSITION, read_position), ("trainer_state.json", step_of)):
        (folder / name).write_bytes(content)
        try:
            read(folder)
        except OmniprepError as error:
            assert "\n" not in str(error) and "damaged" in str(error)


def test_the_second_run_into_a_folder_ends_before_the_model_is_loaded(files, tmp_path, monkeypatch):
    model, data, _ = files
    monkeypatch.setattr(run_module, "resolve_family", lambda *_: small_family(model))
    given = {"num_workers": 0, "device": "cpu", "report_to": ("none",), "max_steps": 1, "save_steps": 0}
    config = TrainConfig(model=str(model), data=(str(data),), out=str(tmp_path / "run"), **given)
    run_module.train(config, Messages())
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "make_model", None)
        with pytest.raises(OmniprepError, match="holds an earlier run"):
            run_module.train(config, Messages())
    assert "overwrite" not in yaml.safe_load((tmp_path / "run" / OPTIONS).read_text()), "it is given to --config again"
    messages = Messages()
    given |= {"max_steps": 2, "resume": "auto"}
    longer = TrainConfig(model=str(model), data=(str(data),), out=str(tmp_path / "run"), **given)
    run_module.train(longer, messages)
    assert any("--max-steps was 1, is 2" in line for line in messages.lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_steps": 1}, "--eval-steps needs --eval-data"),
        ({"vit_lr": 1e-5}, "--no-freeze-vit"),
        ({"aligner_lr": 1e-5}, "--no-freeze-aligner"),
        ({"lora_rank": 16}, "need --lora"),
        ({"lora": True, "target_regex": "(q"}, "no regular expression"),
        ({"save_total_limit": 0}, "--save-total-limit"),
        ({"max_steps": -1}, "--max-steps"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("bins", "options", "message"),
    [
        (1, {"eval_fraction": 0.1, "eval_steps": 1}, "holds out no bin of .*, which has only 1"),
        (1, {"eval_fraction": 0.9}, "holds out no bin"),
        (3, {"epochs": 0.1}, "--epochs 0.1 of 3 bins is less than a bin"),
    ],
)
def test_data_that_does_not_suffice_ends_before_the_model_is_loaded(
    files, tmp_path, monkeypatch, bins, options, message
):
    model = files[0]
    monkeypatch.setattr(run_module, "resolve_family", lambda *_: small_family(model))
    monkeypatch.setattr(run_module, "make_model", None)
    data = write_dataset(tmp_path / "d", bins=bins)
    given = {"num_workers": 0, "device": "cpu", "report_to": ("none",)} | options
    with pytest.raises(OmniprepError, match=message):
        run_module.train(
            TrainConfig(model=str(model), data=(str(data),), out=str(tmp_path / "run"), **given), Messages()
        )
