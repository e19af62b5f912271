"""Every block of every page runs, in order, on the sample data; links lead somewhere; generated pages are current.

Pages that take long (training, Ray, a Hub) are slow tests; the first dataset and the way from ms-swift are not.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_hub
import pytest
import torch
from conftest import ROOT, Result
from s3_server import BUCKET, store
from tutorial import Reader, blocks_of, commands_of, furnish

from omniprep import io
from omniprep.cli.main import COMMANDS
from omniprep.errors import RejectCode
from omniprep.shards.schema import FORMAT

__all__ = ["store"]

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))),
]


OPTIONS = set(re.findall(r"--[a-z][a-z0-9-]+", (ROOT / "tests" / "cli_surface.txt").read_text())) | {
    "--help",
    "--plain",
    "--log-json",
}
OTHERS = {
    *("--strict", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--num-processes"),
    *("--head", "--port", "--address", "--codecs", "--bin-lenght", "--rm", "--build-arg"),
}
"""Options of other programs (mypy, torchrun, accelerate, ray, docker, benchmarks/storage.py), and one that is misspelled."""
SLOW = (
    "README.md",
    "docs/cluster.md",
    "docs/families.md",
    "docs/registration-guides.md",
    "docs/sharing.md",
    "docs/training.md",
)
SWAPS = {
    "--workers 16": "--workers 0",
    "--nproc-per-node 8": "--nproc-per-node 2",
    "--num-workers 4": "--num-workers 0",
}


class Model(torch.nn.Module):
    """What pages call model: likes all words alike."""

    def forward(self, **batch):
        return SimpleNamespace(logits=torch.zeros(1, 1, 200_000).expand(1, batch["labels"].shape[1], -1))


NAMES = {"rank": 0, "world": 1, "epochs": 1, "model": Model()}


@pytest.fixture(scope="module")
def packed(omniprep, model_dir, tmp_path_factory) -> Path:
    """The dataset that pages call packed/."""
    folder = tmp_path_factory.mktemp("docs") / "packed"
    inputs = [ROOT / "data_samples" / name for name in ("images.jsonl", "audio.jsonl", "text.jsonl")]
    done = omniprep(
        "build", *inputs, "--model", model_dir, "--bin-length", 2048, "--out", folder, "--workers", 0, "--quiet"
    )
    assert done.code == 0, done.err
    return folder


def in_processes(env: dict[str, str]) -> "type[Reader]":
    """A reader whose commands and Python each have a process: huggingface_hub reads the Hub's address when imported."""

    def omniprep(*words: str) -> Result:
        done = subprocess.run([sys.executable, "-m", "omniprep", *words], env=env, capture_output=True, text=True)
        return Result(done.returncode, done.stdout, done.stderr)

    class Separate(Reader):
        def python(self, text: str) -> None:
            subprocess.run([sys.executable, "-c", text], env=env, check=True)

    return lambda _, *options: Separate(omniprep, *options)  # type: ignore[return-value]


def fill_lake() -> None:
    """The bucket that README calls s3://lake."""
    for source, name in (
        ("images.jsonl", "chats/a.jsonl"),
        ("text.jsonl", "chats/b.jsonl"),
        ("audio.jsonl", "monday/a.jsonl"),
    ):
        io.write_atomic(f"s3://{BUCKET}/{name}", (ROOT / "data_samples" / source).read_bytes())
    for path in (ROOT / "data_samples" / "media").iterdir():
        io.write_atomic(f"s3://{BUCKET}/media/media/{path.name}", path.read_bytes())


@pytest.fixture
def surroundings(request):
    """What a page needs besides files: a Hub, a cluster, a store."""
    page = request.node.callspec.params["page"]
    if page == "docs/sharing.md":
        hub, server = fake_hub.start()
        yield {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        server.shutdown()
    elif page in ("README.md", "docs/cluster.md"):
        from ray.cluster_utils import Cluster

        if page == "README.md":  # before the cluster, whose workers get the store's address from the environment
            request.getfixturevalue("store")
            fill_lake()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 << 20})
        yield {"RAY_ADDRESS": cluster.address}
        cluster.shutdown()
    else:
        yield {}


TRANSCRIPT = "docs/first-dataset.md"


@pytest.mark.parametrize("until", ["build", pytest.param("", marks=pytest.mark.slow)])
def test_the_transcript_shows_what_its_commands_show(until, model_dir):
    """Up to the first build, then the whole page."""
    command = [sys.executable, ROOT / "docs" / "make_transcript.py", "--check", "--model", model_dir, "--until", until]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_transcript_is_compared_but_for_times_and_rates(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    from make_transcript import without_varying_numbers as plain

    bar = "plan        ━━━━━━━━ 1/1 splits 0:00:00 1.1 splits/s, 933 tokens/s, 1 rejected"
    slow = "plan    ━━━━━━━━━━━ 1/1 splits 0:01:10 11.0k splits/s, 1.2M tokens/s, 1 rejected"
    assert plain(bar) == plain(slow) != plain(bar.replace("1 rejected", "2 rejected"))
    assert plain(bar) != plain(bar.replace("1/1", "1/2"))
    assert plain("step 4/8  loss 11.57  lr 2.4e-03") == plain("step 4/8  loss 9.1  lr 2.41e-03")
    assert plain("step 4/8  loss 11.57") != plain("step 5/8  loss 11.57")
    assert plain("| 12.8 KiB |") != plain("| 12.9 KiB |")
    assert plain("time  6.6 s, 35.4 tokens/s") == plain("time  12 s, 5 tokens/s") == plain("time  1:12 min, 5 tokens/s")


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in PAGES if page != TRANSCRIPT],
)
def test_a_page_runs_as_it_stands(page, omniprep, model_dir, packed, tmp_path, monkeypatch, surroundings):
    run = [block for block in blocks_of(ROOT / page) if block.language in ("bash", "python") and not block.reason]
    furnish(tmp_path, model_dir, packed if "--out packed/" not in "".join(block.text for block in run) else None)
    monkeypatch.chdir(tmp_path)
    for name, value in {**surroundings, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    # tests/test_plugin.py runs the pieces of a family, and the commands with it.
    skip = ("my_family", "def ", "class ") if page == "docs/families.md" else ("init-model build/demo/model",)
    make = in_processes(dict(os.environ)) if "HF_ENDPOINT" in surroundings else Reader
    reader = make(omniprep, SWAPS, skip, NAMES)
    reader.read(ROOT / page)
    assert reader.ran > 0 or not run


def test_what_a_page_does_not_run_is_said():
    """A reader of the tests sees at a glance what no test runs, and why."""
    left = {
        page: [block.reason for block in blocks_of(ROOT / page) if block.reason and not block.runner] for page in PAGES
    }
    for runner in {block.runner for page in PAGES for block in blocks_of(ROOT / page)} - {""}:
        assert (ROOT / runner).exists(), runner
    commands = [c for page in PAGES for b in blocks_of(ROOT / page) if not b.reason and b.language == "bash"
                for c in commands_of(b.text)]  # fmt: skip
    assert sum(map(len, left.values())) <= 16 and len(commands) > 30, left


def test_rejects_page_is_current():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_rejects.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_tables_of_numbers_are_current():
    """Those in the pages are written from benchmarks/results by `make bench` and `make docs`."""
    done = subprocess.run([sys.executable, ROOT / "docs" / "make_tables.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    readme = (ROOT / "README.md").read_text()
    assert "| building a dataset, against encoding in ms-swift" in readme and "| 3B, LoRA |" in readme


def test_pictures_are_small():
    """All but the plots of a card are made by docs/make_screenshots.py."""
    assert all(path.stat().st_size < 300_000 for path in (ROOT / "docs" / "images").iterdir())
    for path in (ROOT / "docs" / "images").glob("*.svg"):
        text = path.read_text()
        assert "http" not in re.sub(r"http://www.w3.org/\S+", "", text), path.name
        assert not re.search(r"/(tmp|root|home|work)/", text), f"{path.name} shows a path of one machine"


def test_every_picture_is_on_a_page():
    pages = "".join((ROOT / page).read_text() for page in PAGES)
    assert all(f"images/{path.name}" in pages for path in (ROOT / "docs" / "images").iterdir())


def test_every_reject_code_is_explained():
    """On the page that people look codes up in, not by its code again."""
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", (ROOT / "docs" / "rejects.md").read_text(), re.MULTILINE))
    assert rows.keys() == {str(code) for code in RejectCode}
    assert all(text.strip() and text.strip() != code.replace("_", " ") for code, text in rows.items())


def test_format_page_names_the_format_version():
    assert f"format version {FORMAT}" in (ROOT / "docs" / "format.md").read_text()


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"^#+ +(.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", text):
        path = (ROOT / page).parent.joinpath(target) if target else ROOT / page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path), f"{page}: {target}#{anchor}"


def test_every_page_is_in_the_navigation_of_the_site():
    """mkdocs only mentions one that is not."""
    nav = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1].split("\ntheme:")[0]
    named = re.findall(r": (\S+\.md)$", nav, re.MULTILINE)
    assert sorted(named) == sorted(
        {*(Path(page).name for page in PAGES if page != "README.md"), "index.md", "commands.md"}
    )


def test_the_site_is_built_strictly(tmp_path):
    """`make docs` builds it; here from a copy, whole, and with a link and an anchor that lead nowhere."""
    for path in ROOT.glob("[!.]*"):
        if path.name == "docs":
            shutil.copytree(path, tmp_path / path.name)
        elif path.suffix in (".md", ".yml"):
            shutil.copy(path, tmp_path)
        elif path.name != "build":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "build" / "api").mkdir(parents=True)
    (tmp_path / "build" / "api" / "index.html").write_text("written by pdoc")

    def build() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
        env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    done = build()
    assert done.returncode == 0 and "excluded from the built site" not in done.stderr, done.stderr
    site = tmp_path / "build" / "site"
    assert (site / "api" / "index.html").read_text() == "written by pdoc"
    assert 'href="first-dataset.html"' in (site / "index.html").read_text()
    assert list((site / "source").rglob("*.html"))
    commands = (site / "commands.html").read_text()
    assert all(f'id="{name}"' in commands for name in COMMANDS) and "--bin-length" in commands
    with (tmp_path / "README.md").open("a") as file:
        file.write("\n[a](docs/absent.md) and [b](docs/inputs.md#absent)\n")
    done = build()
    assert done.returncode == 1 and "absent.md" in done.stderr and "#absent" in done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_named_in_the_text_exist(page):
    """Also those in the middle of a sentence, and in blocks that are not run."""
    text = (ROOT / page).read_text()
    for command in re.findall(r"^(?:\$ )?omniprep ([a-z][a-z-]+)|`omniprep ([a-z][a-z-]+)", text, re.MULTILINE):
        assert "".join(command) in COMMANDS, f"{page}: omniprep {''.join(command)}"
    if page == "docs/migrating-from-ms-swift.md":  # the second column is ours
        text = "\n".join(row.split("|")[2] for row in text.splitlines() if row.startswith("| `"))
        assert text.count("--") > 40
    for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", re.sub(r"<!--.*?-->", "", text)):
        assert option in OPTIONS or option in OTHERS, f"{page}: {option}"


def test_no_paths_of_one_machine_in_the_tree():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    marks = [re.compile(rf"(?<![\w.]){mark}") for mark in ("/[r]oot/", "/home/[a-z]+/")]
    for name in files.stdout.splitlines():
        path = Path(ROOT / name)
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".json", ".jsonl"} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not any(mark.search(text) for mark in marks), name
