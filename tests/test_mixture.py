"""What a plan says of a mixture is what the trainer draws from the datasets, built apart."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omniprep import PackedDataset
from omniprep.packing.mixing import bin_shares
from omniprep.train.stream import Mixture


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)  # short names: a table breaks long ones into lines
    paths = []
    for name, count, words in (("a", 60, 5), ("b", 20, 30), ("c", 5, 3)):
        path = Path(f"{name}.jsonl")
        path.write_text("".join(json.dumps({"query": f"{name} {n} " + "word " * words, "response": "yes"}) + "\n" for n in range(count)))  # fmt: skip
        paths.append(path)
    return paths


@pytest.fixture
def run(omniprep: Any, model_dir: Path) -> Any:
    def call(command: str, *args: object, code: int = 0) -> Any:
        done = omniprep(command, *args, "--model", model_dir, "--bin-length", 128, "--workers", 0, "--quiet")
        assert done.code == code, done.err
        return done

    return call


def table(text: str) -> dict[str, list[str]]:
    """The rows of the printed table of a mixture, by dataset."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text[text.index("mixture (") :].splitlines() if line.startswith("│")]  # fmt: skip
    return {Path(row[0]).name: row[1:] for row in rows}


def test_a_plan_says_what_the_trainer_will_draw(run: Any, tmp_path: Path, inputs: list[Path]) -> None:
    weights = [2.0, 1.0, 0.5]
    given = [part for path, weight in zip(inputs, weights, strict=True) for part in ("--mixture", f"{path}:{weight}")]
    done = run("plan", *inputs, *given, "--epochs", 3, "--tokens-per-second", 500)
    shown = table(done.out)
    datasets = []
    for path in inputs:
        run("build", path, "--out", tmp_path / path.stem)
        datasets.append(PackedDataset(str(tmp_path / path.stem)))
    tokens = np.array([dataset.counts["tokens"] for dataset in datasets])
    sizes = np.array([len(dataset) for dataset in datasets])
    shares = bin_shares(weights, (tokens / sizes).tolist())
    mixture = Mixture(sizes=sizes.tolist(), shares=shares)
    epochs = 200  # a share is met within a bin over all epochs
    begins = np.concatenate([[0], np.cumsum(sizes)])
    drawn = np.zeros(3)
    for epoch in range(epochs):
        drawn += np.histogram(mixture.order(epoch), begins)[0]
    for path, size, count, total in zip(inputs, sizes, drawn / epochs, tokens, strict=True):
        _, all_tokens, bins, *_, passes = shown[path.name]
        assert (int(all_tokens.replace(",", "")), int(bins)) == (total, size)
        assert float(passes) == pytest.approx(count / size, abs=0.01)
    epoch_tokens = float((drawn / epochs * tokens / sizes).sum())
    found = re.search(r"an epoch: (\d+) bins, ([\d,]+) tokens; 3 epochs: ([\d,]+) tokens", done.out)
    assert found and int(found[1]) == sizes.sum()
    assert int(found[2].replace(",", "")) == pytest.approx(epoch_tokens, rel=0.01)
    hours = float(re.search(r"hours at 500 tokens/s: ([\d.]+)", done.out)[1])  # type: ignore[index]
    assert hours == pytest.approx(3 * epoch_tokens / 500 / 3600, abs=0.006)
    assert [row[4] for row in shown.values() if row[4].endswith("%")] == ["57.1 %", "28.6 %", "14.3 %"]


def test_without_weights_an_epoch_has_every_bin_once(run: Any, inputs: list[Path]) -> None:
    done = run("plan", *inputs, "--mixture", str(inputs[0].parent / "[ab].jsonl"), "--mixture", inputs[2])
    shown = table(done.out)
    assert [row[-1] for row in shown.values() if row[-1][:1].isdigit()] == ["1.00", "1.00"]
    assert shown["[ab].jsonl"][0] == "80" and "give --tokens-per-second" in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mixture", "{a}:1"), "is in no part; give it one, such as --mixture"),
        (("--mixture", "{a}:1", "--mixture", "*.jsonl:1"), "is in .* and in"),
        (("--mixture", "{a}:1", "--mixture", "*[bc].jsonl"), "every dataset a weight"),
        (("--mixture", "{a}x:1",), "no input has this name; did you mean"),
        (("--mixture", "{a}:0"), "must be positive"),
        (("--epochs", "2"), "are of a --mixture"),
        (("--mixture", "{a}:1", "--mixture", "*[bc].jsonl:1", "--tokens-per-second", "0"), "0"),
    ],
)  # fmt: skip
def test_a_mixture_that_cannot_be(run: Any, inputs: list[Path], options: tuple[str, ...], message: str) -> None:
    done = run("plan", *inputs, *(option.format(a=inputs[0]) for option in options), code=2)
    assert re.search(message, done.err)


def test_a_weight_of_an_input_is_told_to_be_the_trainers(run: Any, inputs: list[Path]) -> None:
    done = run("plan", f"{inputs[0]}:2.0", code=1)
    assert f"a weight is the trainer's: omniprep plan --mixture {inputs[0]}:2.0 shows what it gives" in done.err
