"""The command line as other programs know it: names, exit codes, one-line errors, config files.

cli_surface.txt holds every command with its options; after a wanted change: python tests/test_cli.py >
tests/cli_surface.txt"""

import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from conftest import ROOT

from omniprep.cli.main import COMMANDS, EXAMPLES, cli
from omniprep.cli.options import field_docs, make_config, read_bytes_option
from omniprep.config import BuildConfig
from omniprep.errors import UsageError
from omniprep.train.config import TrainConfig

SURFACE = Path(__file__).parent / "cli_surface.txt"
HEAVY = ("torch", "pyarrow", "transformers", "ray", "numpy", "rich", "yaml", "datasets", "qwen_omni_utils")


def surface() -> str:
    lines = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        lines.append(name)
        for param in command.params:
            names = " ".join([*param.opts, *param.secondary_opts])
            repeated = " repeatable" if param.multiple or param.nargs == -1 else ""
            choices = " " + "|".join(param.type.choices) if isinstance(param.type, click.Choice) else ""
            lines.append(f"    {names}{choices}{repeated}")
    return "\n".join(lines) + "\n"


def test_surface_is_frozen():
    assert surface() == SURFACE.read_text(), "an option changed: see the head of this file"


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], None),
        (["--liger"], "on"),  # the folder that follows is not its value
        (["--no-liger"], "off"),
        (["--liger", "off"], "off"),
        (["--liger=auto"], "auto"),
        (["--no-liger", "--liger"], "on"),
    ],
)
def test_a_switch_is_a_flag_and_an_option(arguments, value):
    train = cli.get_command(click.Context(cli), "train")
    parsed = train.make_context("train", [*arguments, "data", "--model", "m"])
    assert (parsed.params["liger"], parsed.params["data"]) == (value, ("data",))
    parsed = train.make_context("train", [*arguments, "--", "--no-liger"])
    assert parsed.params["data"] == ("--no-liger",)


def test_a_switch_in_yaml(tmp_path):
    for text, value in (("on", "on"), ("off", "off"), ("true", "on"), ("false", "off"), ("auto", "auto")):
        (tmp_path / "c.yaml").write_text(f"liger: {text}")
        assert make_config(TrainConfig, {}, str(tmp_path / "c.yaml")).liger == value
    (tmp_path / "c.yaml").write_text("liger: maybe")
    with pytest.raises(UsageError, match="'maybe' is not one of"):
        make_config(TrainConfig, {}, str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help(command, omniprep):
    assert COMMANDS[command].endswith(".")
    result = omniprep(command, "--help")
    assert result.code == 0 and result.out.startswith(f"Usage: omniprep {command}")


def test_help_imports_nothing_heavy(fresh_python):
    code = f"""
import sys
from omniprep.cli.main import run
run(["--help"])
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert fresh_python(code).strip().endswith("[]")


@pytest.mark.parametrize("command, seldom", [("plan", True), ("train", False)])
def test_cycles_are_searched_seldom_but_in_training(command, seldom, fresh_python):
    code = f"""
import gc
from omniprep.cli.main import run
before = gc.get_threshold()[0]
run(["{command}", "--help"])
print(gc.get_threshold()[0] > before)
"""
    assert fresh_python(code).splitlines()[-1] == str(seldom)


def test_help_takes_a_fifth_of_a_second_at_most():
    """Processor time of the best of five runs, less that of an interpreter alone: other programs do not count."""

    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    best = min(seconds("-m", "omniprep", "--help") for _ in range(5))
    assert best <= 0.2 + min(seconds("-c", "") for _ in range(3)), f"{best:.2f} s"


def test_build_help_imports_nothing_heavy(fresh_python):
    code = f"""
import sys
from omniprep.cli.main import run
run(["build", "--help"])
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert fresh_python(code).strip().endswith("[]")


def test_version_and_module_entry(fresh_python, omniprep):
    assert omniprep("--version").out == "omniprep 0.1.0\n"
    code = "import runpy, sys; sys.argv = ['x', '--version']; runpy.run_module('omniprep', run_name='__main__')"
    assert fresh_python(code) == "omniprep 0.1.0\n"


def test_wrong_names_are_usage_errors_with_a_guess(omniprep):
    command = omniprep("biuld")
    assert command.code == 2 and "did you mean 'build'?" in command.err
    option = omniprep("build", "--bin-lenght", 8192)
    assert option.code == 2 and "--bin-length" in option.err
    assert omniprep("nothing-like-it").code == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["build"], "no INPUT"),
        (["build", "x.jsonl"], "--model is missing"),
        (["build", "x.jsonl", "--model", "m"], "--bin-length is missing"),
        (["build", "x.jsonl", "--model", "m", "--bin-length", "8", "--out", "o", "--workers", "-1"], "--workers"),
        (["build", "x.jsonl", "--truncation", "middle"], "--truncation"),
        (["build", "x.jsonl", "--shard-size", "many"], "--shard-size"),
        (["init-model", "x", "--family", "nobody"], "nobody"),
    ],
)
def test_bad_options_exit_2_with_one_line(omniprep, args, said):
    result = omniprep(*args)
    assert result.code == 2 and said in result.err and "Traceback" not in result.err


def test_a_failure_exits_1_with_one_line(omniprep, tmp_path):
    result = omniprep("verify", tmp_path)
    assert result.code == 1 and result.err.count("\n") == 1 and "manifest.json" in result.err


def test_config_file_gives_options_and_flags_win(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "inputs: a.jsonl\nbin-length: 4096\nmodel: m\nout: o\nmedia_root: [x, y]\nshard-size: 1MiB\nfps: 1\n"
    )
    config = make_config(BuildConfig, {"inputs": (), "bin_length": 8192, "seed": None}, str(path))
    assert config == BuildConfig(
        inputs=("a.jsonl",), bin_length=8192, model="m", out="o", media_root=("x", "y"), shard_size=1 << 20, fps=1.0
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bin-lenght: 4096", "did you mean 'bin_length'?"),
        ("bin-length: long", "bin-length"),
        ("bin-length: [1]", "bin-length"),
        ("allow_http: maybe", "true or false"),
        ("workers: true", "expected int"),
        ("truncation: middle", "truncation"),
        ("- a list", "found a list"),
        ("a: b: c", "not valid YAML"),
        ("seed: 2001-99-99", "not valid YAML"),
        ("a: " + "[" * 3000, "not valid YAML"),
        ("media_root: [{a: 1}]", "list of texts"),
    ],
)
def test_bad_config_files_are_usage_errors(tmp_path, text, said):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        make_config(BuildConfig, {}, str(path))
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_flags_can_say_no_to_a_config_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("allow_http: true\n")
    assert make_config(BuildConfig, {}, str(path)).allow_http is True
    assert make_config(BuildConfig, {"allow_http": False}, str(path)).allow_http is False


def test_every_option_of_the_build_is_explained():
    docs = field_docs(BuildConfig)
    assert set(BuildConfig.__dataclass_fields__) == set(docs) and all(docs.values())


@pytest.mark.parametrize(
    ("text", "value"), [("1000", 1000), ("512MiB", 512 << 20), ("2GB", 2 * 10**9), ("1.5k", 1500), ("64 KiB", 65536)]
)
def test_sizes(text, value):
    assert read_bytes_option(text) == value


@pytest.mark.parametrize("text", ["", "MiB", "1XB", "1e", "nan", "-5", "inf"])
def test_bad_sizes(text):
    with pytest.raises(click.BadParameter):
        read_bytes_option(text)


def test_completion_knows_commands_and_options(omniprep, monkeypatch):
    script = omniprep("completion", "bash")
    assert script.code == 0 and "_OMNIPREP_COMPLETE=bash_complete" in script.out
    from click.shell_completion import ShellComplete

    complete = ShellComplete(cli, {}, "omniprep", "_OMNIPREP_COMPLETE")
    assert "repack" in [item.value for item in complete.get_completions([], "rep")]
    assert "--bin-length" in [item.value for item in complete.get_completions(["build"], "--bin")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_omniprep_itself(omniprep, shell):
    script = omniprep("completion", shell).out
    assert "omniprep" in script and f"_OMNIPREP_COMPLETE={shell}_complete" in script


def test_a_shell_completes_commands_options_and_choices(tmp_path):
    """As bash asks, through the entry point: the script above does nothing but this."""
    program = "from omniprep.cli.main import main; main()"
    words = {"omniprep rep": ["report", "repack"], "omniprep build --trunc": ["--truncation"]}
    words["omniprep repack packed --kind "] = ["text", "image", "audio", "video", "mixed"]
    for typed, wanted in words.items():
        count = len(typed.split(" ")) - 1
        env = {**os.environ, "_OMNIPREP_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(count)}
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, cwd=ROOT)
        assert [line.split(",")[1] for line in done.stdout.splitlines()] == wanted, done


def example_lines() -> list[str]:
    commands = [cli.get_command(click.Context(cli), name) for name in COMMANDS]
    return [*EXAMPLES, *(line for command in commands for line in getattr(command, "examples", ()))]


def test_every_command_has_examples_in_its_help(omniprep):
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command.examples, name
        shown = omniprep(name, "--help").out
        assert all(f"  {line}\n" in shown for line in command.examples) and "\\b" not in shown
    assert "\\b" not in omniprep("--help").out


@pytest.mark.parametrize("line", example_lines())
def test_examples_are_read_without_complaint(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line.split(" >")[0].split("-m omniprep ")[-1].removeprefix("omniprep "))
    command = cli.get_command(click.Context(cli), words[0])
    context = command.make_context(words[0], words[1:])
    if words[0] in ("build", "plan"):
        config = make_config(
            BuildConfig,
            {k: v for k, v in context.params.items() if k in BuildConfig.__dataclass_fields__},
            context.params["config"],
        )
        assert config.inputs and config.model and config.bin_length


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("Qwen/Qwen2.5-Omni-7b", "Qwen/Qwen2.5-Omni-7B"),
        ("Qwen2.5-Omni-7B", "Qwen/Qwen2.5-Omni-7B"),
        ("{folder}/modle", "{folder}/model"),
        ("{folder}/run", "{folder}/run/merged"),
    ],
)
def test_a_wrong_model_is_guessed(omniprep, tmp_path, given, meant):
    for name in ("model", "run/merged"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "c.jsonl").write_text("{}\n")
    model = given.format(folder=tmp_path)
    result = omniprep("plan", tmp_path / "c.jsonl", "--model", model, "--bin-length", 8, "--workers", 0)
    assert result.code == 1 and result.err.count("\n") == 1
    assert f"did you mean '{meant.format(folder=tmp_path)}'?" in result.err


def test_a_dataset_that_is_not_there_is_guessed_and_an_unfinished_one_told(omniprep, tmp_path):
    (tmp_path / "packed" / "plan").mkdir(parents=True)
    (tmp_path / "packed" / "plan" / "build.json").write_text("{}")
    assert f"did you mean '{tmp_path}/packed'?" in omniprep("stats", tmp_path / "pakced").err
    assert "run again, finishes it" in omniprep("stats", tmp_path / "packed").err


def test_plain_and_log_json_are_asked_for_before_the_command(omniprep, monkeypatch, tmp_path):
    for option, name in (("--log-json", "OMNIPREP_LOG_JSON"), ("--plain", "OMNIPREP_PLAIN")):
        monkeypatch.setenv(name, "")
        assert omniprep(option, "verify", tmp_path / "none").code == 1
        assert os.environ[name] == "1"


if __name__ == "__main__":
    print(surface(), end="")
