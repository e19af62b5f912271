"""`doctor` must notice a family whose counter, expansion and tensors disagree."""

from omniprep.doctor import try_family
from omniprep.families.context import resolve_family


def test_every_modality_agrees(model_dir, tmp_path):
    trials = try_family(resolve_family(str(model_dir)), tmp_path)
    assert [trial.what for trial in trials] == ["image", "audio", "video", "image + audio + video"]
    assert not any(trial.fault for trial in trials) and all(trial.counter == trial.expansion > 0 for trial in trials)


def test_a_mapper_that_loses_data_is_a_fault(model_dir, tmp_path, monkeypatch):
    ctx = resolve_family(str(model_dir))
    whole = type(ctx).map_item

    def short(self, modality, decoded):
        mapped = whole(self, modality, decoded)
        return {
            k: v[..., :-1] if k == "input_features" else v[:-1] if v.shape[-1] > 3 else v for k, v in mapped.items()
        }

    monkeypatch.setattr(type(ctx), "map_item", short)
    trials = try_family(ctx, tmp_path)
    assert all("units" in trial.fault for trial in trials), trials


def test_the_command_prints_versions_and_trials(model_dir, omniprep):
    result = omniprep("doctor", "--model", model_dir)
    assert result.code == 0 and "transformers" in result.out and "video reader" in result.out
    assert result.out.count("ok  counter") == 4


def test_an_unknown_model_is_one_line(omniprep, tmp_path):
    result = omniprep("doctor", "--model", tmp_path)
    assert result.code == 1 and "config.json" in result.err and "Traceback" not in result.err
