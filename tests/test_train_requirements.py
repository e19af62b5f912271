"""What a run needs installed is asked before anything is loaded, in the versions that pyproject.toml names."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from omniprep.errors import OmniprepError
from omniprep.train.config import TrainConfig
from omniprep.train.packages import check_packages

PROJECT = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]


@pytest.fixture
def installed(monkeypatch):
    """Versions of packages as they would be elsewhere; None: not installed."""
    real = importlib.metadata.version
    extra = [f"{text}; extra == 'train'" for text in PROJECT["optional-dependencies"]["train"]]
    # The metadata of the checkout may be of an older one.
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [*PROJECT["dependencies"], *extra])

    def pretend(**versions: str | None) -> None:
        def version(name: str) -> str:
            if name in versions and versions[name] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions.get(name) or real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)

    return pretend


def config(**options) -> TrainConfig:
    return TrainConfig(data=("d",), model="m", out="o", report_to=("none",), **options)


@pytest.mark.parametrize("version", ["4.57.6", "5.17.0", "5.22.2"])
def test_a_transformers_that_is_too_old_is_one_line(installed, version):
    installed(transformers=version)
    with pytest.raises(OmniprepError) as error:
        check_packages(config())
    text = str(error.value)
    assert version in text and "5.23" in text and "pip install" in text and "\n" not in text


def test_the_first_version_that_works_and_later_ones_are_taken(installed):
    for version in ("5.23.0", "5.24.0"):
        installed(transformers=version)
        check_packages(config())


@pytest.mark.parametrize(("package", "options"), [("accelerate", {}), ("peft", {"lora": True})])
def test_an_absent_package_is_named_with_the_command_that_installs_it(installed, package, options):
    installed(**{package: None})
    with pytest.raises(OmniprepError, match=rf"{package}.*pip install 'omniprep\[train\]'"):
        check_packages(config(**options))


def test_a_build_takes_older_versions(installed):
    """Which need no trainer; there the oracle's version of transformers works."""
    from packaging.requirements import Requirement

    wanted = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "transformers")
    assert "4.57.6" in wanted.specifier and "6.0.0" not in wanted.specifier
