"""What `pip install omniprep` brings: wheel and sdist hold what they must and nothing else, and the bounds of pyproject.toml
agree with the versions that the tests run with."""

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import omniprep as package

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PINNED = {
    canonicalize_name(name): Version(version)
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
}


def requirements() -> Iterator[tuple[str, Requirement]]:
    """(extra or "", requirement) of all that pyproject.toml names, without extras of the package itself."""
    groups = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    for extra, texts in groups.items():
        for text in texts:
            requirement = Requirement(text)
            if requirement.name != "omniprep":
                yield extra, requirement


def names_of(texts: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in texts}


def test_pinned_versions_are_within_the_bounds() -> None:
    wrong = [
        f"{extra}: {requirement}, constraints.txt has {pinned}"
        for extra, requirement in requirements()
        if (pinned := PINNED.get(canonicalize_name(requirement.name))) is not None
        and not requirement.specifier.contains(pinned)
    ]
    assert not wrong


def test_dependencies_have_a_lower_bound_and_a_pin() -> None:
    for extra, requirement in requirements():
        if extra in ("bench", "dev"):  # programs of developers
            continue
        assert any(bound.operator in (">=", "==", "~=") for bound in requirement.specifier), f"{extra}: {requirement}"
        assert canonicalize_name(requirement.name) in PINNED, f"{extra}: {requirement} is not in constraints.txt"


def test_classifiers_are_the_versions_of_python_that_are_promised() -> None:
    named = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    promised = SpecifierSet(PROJECT["requires-python"])
    assert named == sorted(named, key=Version) and all(promised.contains(version) for version in named)
    assert not promised.contains("3.10") and named[0] == "3.11"
    # The package is typed and linted for the oldest one.
    assert PYPROJECT["tool"]["mypy"]["python_version"] == "3.11"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py311"


def test_extras_of_others_exist() -> None:
    """An extra of the package that another extra, the image or a page names."""
    extras = PROJECT["optional-dependencies"].keys()
    texts = [ROOT / "pyproject.toml", ROOT / "Dockerfile", ROOT / "Makefile", ROOT / "README.md", *(ROOT / "docs").glob("*.md")]  # fmt: skip
    named = {name for path in texts for group in re.findall(r"omniprep\[([\w,]+)\]", path.read_text()) for name in group.split(",")}  # fmt: skip
    named |= set(re.findall(r'"\.\[([\w,]+)\]"', (ROOT / "Dockerfile").read_text())[0].split(","))
    assert {"s3", "train", "metrics"} <= named <= set(extras)


def test_the_image_is_pinned_and_runs_as_a_user() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    installs = [line for line in lines if line.startswith("RUN") and "pip install" in line]
    assert installs and all("--constraint constraints.txt" in line for line in installs)
    assert re.fullmatch(r"ARG PYTHON=3\.1[123]", next(line for line in lines if line.startswith("ARG PYTHON")))
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    # A number, which Kubernetes needs to see that it is not root's.
    assert users and users[-1].isdecimal() and int(users[-1]) > 0
    copied = [word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]]
    assert not [name for name in copied if not (ROOT / name).exists()]
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) <= admitted


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    pytest.importorskip("build", reason="build is not installed (omniprep[test])")
    pytest.importorskip("hatchling", reason="hatchling is not installed (omniprep[test])")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def sources() -> set[str]:
    """Files of the package, such as omniprep/cli/main.py."""
    files = (path.relative_to(ROOT) for path in (ROOT / "omniprep").rglob("*") if path.is_file())
    return {str(path) for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    (path,) = built.glob("*.whl")
    assert path.name == f"omniprep-{package.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        yield archive


def read_metadata(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"omniprep-{package.__version__}.dist-info/{name}").decode()


def test_a_wheel_holds_the_package_alone(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == sources()
    assert "omniprep/py.typed" in names
    assert {".py", ".json", ".js", ".css", ".html"} <= {Path(name).suffix for name in names}
    assert sum(entry.file_size for entry in wheel.infolist()) < 5 << 20
    assert "Apache License" in read_metadata(wheel, "licenses/LICENSE")


def test_metadata_of_a_wheel(wheel: zipfile.ZipFile) -> None:
    metadata: Message = email.message_from_string(read_metadata(wheel, "METADATA"))
    assert (metadata["Name"], metadata["Version"]) == ("omniprep", package.__version__)
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["Description-Content-Type"] == "text/markdown" and metadata.get_payload()
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    written = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert names_of(written) == names_of(PROJECT["dependencies"])
    (script,) = re.findall(r"^omniprep = (\S+)$", read_metadata(wheel, "entry_points.txt"), re.M)
    assert callable(EntryPoint("omniprep", script, "console_scripts").load())


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"omniprep-{package.__version__}"


def test_an_sdist_holds_all_that_is_committed(unpacked: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout, so what is committed is not known")
    committed = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    held = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert committed <= held, sorted(committed - held)


@pytest.mark.slow
def test_the_tests_of_an_sdist_run(unpacked: Path) -> None:
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    collected = subprocess.run([*run, "--collect-only", "tests"], cwd=unpacked, capture_output=True, text=True)
    assert collected.returncode == 0, collected.stdout[-2000:]
    done = subprocess.run([*run, "tests/test_packing.py", "tests/test_samples.py"], cwd=unpacked, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
