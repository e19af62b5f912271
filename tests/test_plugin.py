"""A third party's family must work from its plug-in file alone: build, load, train, on this node and on others."""

import ast
import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import toy

from omniprep import PackedDataset, collate
from omniprep.families.loading import load_families
from omniprep.registry import REGISTRY

PAGE = toy.ROOT.parent / "shared" / "reference" / "multimodal_registry.md"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return toy.write_checkpoint(tmp_path_factory.mktemp("toy") / "model", weights=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return toy.write_rows(tmp_path_factory.mktemp("toy_rows"))


@pytest.fixture(scope="module")
def build(omniprep, checkpoint, rows):
    def call(out: Path, *more: object, model: Path = checkpoint):
        options = ["--model", model, "--plugin", toy.FAMILY, "--bin-length", 256, "--out", out]
        return omniprep("build", rows, *options, *more)

    return call


@pytest.fixture(scope="module")
def packed(build, tmp_path_factory):
    out = tmp_path_factory.mktemp("toy_out") / "packed"
    result = build(out, "--workers", 0)
    assert result.code == 0, result.err
    return out


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((folder / "shards").iterdir())}


def test_the_example_is_the_page_word_for_word():
    text = toy.FAMILY.read_text()
    if PAGE.exists():
        page = PAGE.read_text()
        start = page.index("```python\nimport numpy as np\nfrom omniprep.registry") + 10
        assert page[start : page.index("```", start)] in text
    assert ast.parse(text)


def test_rows_load_as_forward_arguments(packed):
    from PIL import Image

    ds = PackedDataset(str(packed))
    assert sum(ds.rows.column("status").to_pylist().count(s) for s in ("packed",)) == 24
    source = ds.rows.column("source")[0].as_py()
    row = ds.row(source, 3)  # two images: 2000x50, which max_side makes 1024 wide, and 31x33
    assert row["image_hw"].tolist() == [[1, 32], [1, 1]]
    units = int(row["image_hw"].prod(1).sum())
    assert row["pixels"].shape == (units, 32 * 32 * 3) and str(row["pixels"].dtype) == "torch.uint8"
    token = row["input_ids"].max().item()
    assert int((row["input_ids"] == token).sum()) == units
    assert "pixels_sizes" not in row
    h, w = row["image_hw"][0].tolist()
    image = Image.open(Path(source).parent / "2.png").convert("RGB").resize((w * 32, h * 32))
    first = np.asarray(image)[:32, :32].reshape(-1)
    assert np.array_equal(row["pixels"][0].numpy(), first)
    whole = collate([ds[0]])
    assert whole["input_ids"].shape[1] <= 256 and (whole["labels"] != token).all()


def test_options_of_the_family(build, tmp_path):
    small = build(tmp_path / "small", "--workers", 0, "--family-option", "max_side=64")
    assert small.code == 0, small.err
    ds = PackedDataset(str(tmp_path / "small"))
    assert max(int(hw.prod()) for b in range(len(ds)) if "image_hw" in ds[b] for hw in ds[b]["image_hw"]) <= 4
    wrong = build(tmp_path / "wrong", "--family-option", "max_size=64")
    assert wrong.code == 2 and "did you mean 'max_side'?" in wrong.err and not (tmp_path / "wrong").exists()
    foreign = build(tmp_path / "foreign", "--max-pixels", 64)
    assert foreign.code == 2 and "no option 'max_pixels'" in foreign.err


def test_a_config_of_no_known_model_type_is_enough(build, packed, tmp_path):
    bare = toy.write_checkpoint(tmp_path / "bare")
    (bare / "tokenizer_config.json").unlink()
    result = build(tmp_path / "out", "--workers", 0, model=bare)
    assert result.code == 0, result.err
    assert digests(tmp_path / "out") == digests(packed)


def test_one_training_step(omniprep, checkpoint, packed, tmp_path):
    result = omniprep(
        *("train", packed, "--model", checkpoint, "--plugin", toy.FAMILY, "--plugin", toy.MODEL),
        *("--out", tmp_path / "run", "--max-steps", 2, "--num-workers", 0, "--device", "cpu", "--no-freeze-vit"),
        *("--report-to", "none", "--learning-rate", "0.01"),
    )
    assert result.code == 0, result.err
    from safetensors.torch import load_file

    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert before.keys() == after.keys()
    for name in ("visual.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"):
        assert not (before[name] == after[name]).all(), name


def test_doctor_tries_the_toy(omniprep, checkpoint):
    result = omniprep("doctor", "--model", checkpoint, "--plugin", toy.FAMILY)
    assert result.code == 0 and "ok  counter" in result.out and "toy_family.py" in result.out


def test_the_same_text_is_loaded_once_and_a_changed_file_replaces_it(tmp_path):
    text = toy.FAMILY.read_text().replace('"toy_vl"', '"toy_again"').replace('"ToyVL"]', '"ToyAgain"]')
    (tmp_path / "a.py").write_text(text)
    (tmp_path / "b.py").write_text(text)
    load_families((str(tmp_path / "a.py"), str(tmp_path / "b.py")))
    first = REGISTRY.families["toy_again"]
    (tmp_path / "a.py").write_text(text.replace('version="1"', 'version="2"'))
    load_families((str(tmp_path / "a.py"),))
    assert (first.version, REGISTRY.families["toy_again"].version) == ("1", "2")
    REGISTRY.forget(first.origin)


def test_entry_point_of_an_installed_package(tmp_path, fresh_python):
    (tmp_path / "my_register.py").write_text(toy.FAMILY.read_text())
    info = tmp_path / "toy_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[omniprep.families]\ntoy = my_register\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from omniprep.families.loading import load_families\nfrom omniprep.registry import REGISTRY\n"
    code += "load_families(); print(REGISTRY.families['toy_vl'].origin)"
    assert fresh_python(code).strip().splitlines()[-1] == "entry point toy of toy-package"


@pytest.mark.slow
def test_ray_workers_get_the_plug_in(packed, checkpoint, rows, tmp_path, omniprep):
    copy = tmp_path / "elsewhere.py"
    copy.write_text(toy.FAMILY.read_text())
    assert "omniprep_plugin" not in sys.modules
    out = tmp_path / "ray"
    result = omniprep(
        "build", rows, "--model", checkpoint, "--plugin", copy, "--bin-length", 256, "--out", out, "--workers", 1
    )
    assert result.code == 0, result.err
    assert digests(out) == digests(packed)


def test_the_guide_makes_this_family(omniprep, build, packed, checkpoint, rows, tmp_path):
    """docs/families.md, executed: the Python blocks of its steps are the plug-in, its commands are run with it."""
    guide = (toy.ROOT / "docs" / "families.md").read_text()
    steps = re.split(r"^## ", guide, flags=re.MULTILINE)
    (steps,) = (section for section in steps if section.startswith("A mapper:"))
    blocks = re.findall(r"```python\n(.*?)```", steps, re.DOTALL)
    mine = tmp_path / "my_family.py"
    mine.write_text("\n\n".join(blocks))
    code = toy.FAMILY.read_text()
    assert ast.dump(ast.parse(mine.read_text())) == ast.dump(ast.parse(code))
    lines = [line for line in guide.splitlines() if line.startswith("omniprep ") and "my_family" in line]
    commands = [line.split("#")[0].split() for line in lines]
    assert [command[1] for command in commands] == ["families", "doctor", "build", "train"]
    places = {"my_family.py": mine, "toy_model.py": toy.MODEL, "CHECKPOINT": checkpoint, "chats.jsonl": rows}
    places |= {"packed/": tmp_path / "packed", "run/": tmp_path / "run"}
    quick = {"build": ["--workers", 0], "train": ["--max-steps", 1, "--num-workers", 0, "--report-to", "none"]}
    for command in commands:
        result = omniprep(*(places.get(word, word) for word in command[1:]), *quick.get(command[1], ()))
        assert result.code == 0, (command, result.err)
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_families_are_listed(omniprep):
    result = omniprep("families", "--plugin", toy.FAMILY)
    assert result.code == 0
    for name in ("qwen2_5_omni", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_audio", "qwen3_omni"):
        assert f"{name}  (version 1, from omniprep.families." in result.out
    ours = result.out[result.out.index("toy_vl") :]
    assert "toy_family.py" in ours and "any number a row" in ours and "max_side=1024" in ours


def test_worst_cases_beyond_the_bin_are_a_warning(build, tmp_path):
    options = ("--limit-mm-per-row", "image=2", "--family-option", "max_side=512")
    result = build(tmp_path / "packed", "--workers", 0, *options)
    assert result.code == 0 and "2 images may have 512 tokens" in result.err
    codes = PackedDataset(str(tmp_path / "packed")).rows.column("code").to_pylist()
    assert codes.count("too_many_items") == 6
    assert build(tmp_path / "no", "--limit-mm-per-row", "audio=2").code == 2
