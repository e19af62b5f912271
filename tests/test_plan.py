"""`omniprep plan`: exact counts before a build, several options side by side, nothing left behind."""

import json

from conftest import SAMPLES

INPUTS = (SAMPLES / "text.jsonl", SAMPLES / "images.jsonl", SAMPLES / "broken.jsonl")


def line_of(out: str, name: str) -> list[str]:
    line = next(line for line in out.splitlines() if name in line)
    return [cell.strip() for cell in line.strip("│ \n").split("│")][1:]


def test_plan_promises_what_the_build_gives(omniprep, model_dir, tmp_path):
    options = ("--model", model_dir, "--bin-length", 1024, "--workers", 0, "--quiet")
    planned = omniprep("plan", *INPUTS[:2], *options)
    assert planned.code == 0, planned.err
    assert omniprep("build", *INPUTS[:2], *options, "--out", tmp_path / "out").code == 0
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    assert line_of(planned.out, "tokens")[0] == f"{counts['tokens']:,}"
    assert line_of(planned.out, "bins")[0] == f"{counts['bins']:,} of 1,024 tokens"


def test_plan_names_the_rejects_already_known(omniprep, model_dir):
    options = ("--model", model_dir, "--bin-length", 1024, "--workers", 0, "--quiet")
    assert "broken.jsonl:1: media_not_found" in omniprep("plan", INPUTS[2], *options).out


def test_options_side_by_side(omniprep, model_dir):
    options = ("--model", model_dir, "--bin-length", 1024, "--workers", 0, "--quiet")
    done = omniprep("plan", *INPUTS[:2], *options, "--compare", "max-pixels=50176", "--compare", "bin-length=512")
    assert done.code == 0, done.err
    assert "as asked" in done.out and "max-pixels=50176" in done.out
    as_asked, small, _ = (int(cell.replace(",", "")) for cell in line_of(done.out, " tokens "))
    assert small < as_asked
    assert [cell.split(" of ")[1] for cell in line_of(done.out, " bins ")] == [
        "1,024 tokens",
        "1,024 tokens",
        "512 tokens",
    ]


def test_hours_are_of_another_machine_or_of_rows_timed_here(omniprep, model_dir):
    options = ("--model", model_dir, "--bin-length", 1024, "--quiet")
    known = line_of(omniprep("plan", *INPUTS[:2], *options, "--workers", 0).out, "known from")
    assert known == ["benchmarks; see --measure"]
    measured = omniprep("plan", *INPUTS[:2], *options, "--workers", 0, "--measure")
    assert measured.code == 0, measured.err
    timed = line_of(measured.out, "known from")[0]
    assert timed.endswith(" rows, encoded here") and 4 <= int(timed.split()[0]) <= 24


def test_wrong_comparisons_are_usage_errors(omniprep, model_dir):
    base = ("plan", INPUTS[0], "--model", model_dir, "--bin-length", 512)
    assert omniprep(*base, "--compare", "max-pixels").code == 2
    wrong = omniprep(*base, "--compare", "max-pixel=1")
    assert wrong.code == 2 and "did you mean" in wrong.err
    assert omniprep(*base, "--compare", "max-pixels=-1").code == 2
