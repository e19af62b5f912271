"""The report opens in a browser with no error and no request, its filters work, and a row's text never becomes markup.

OMNIPREP_SCREENSHOTS names a folder to keep the screenshots in.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omniprep.data.collate import cut_row
from omniprep.data.dataset import PackedDataset
from omniprep.inspect.media import spectrogram_picture
from omniprep.inspect.vocabulary import load_vocabulary
from omniprep.report.bins import browse, parts_of
from omniprep.report.numbers import balance, histogram, length_histogram
from omniprep.report.page import collect, page, write_report

NASTY = "</script><img src=x onerror='window.hacked=1'><!-- <b>bold</b> & \u2028"


def chat(user: str, answer: str, **media: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}], **media}


@pytest.fixture(scope="module")
def built(model_dir, omniprep, tmp_path_factory) -> Path:
    """A small build with pictures, sound and rejects; its texts are hostile, and so is a file's name."""
    folder = tmp_path_factory.mktemp("report")
    samples = Path(__file__).parent.parent / "data_samples"
    rows = [chat(f"{NASTY} number {n}", f"{NASTY} answer 日本語 🙂 {n}") for n in range(6)]
    rows += [chat("<image>What?", "A scene.", images=[str(samples / "media" / "scene.jpg")])] * 2
    rows += [chat("<audio>Say it.", "Numbers.", audios=[str(samples / "media" / "numbers.wav")])]
    rows += [chat("<video>And?", "Balls.", videos=[str(samples / "media" / "balls_silent.mp4")])]
    rows += [chat("<image>Gone", "x", images=["<b>none</b>.jpg"]), {"messages": NASTY}]
    name = folder / "<i>chats.jsonl"
    name.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "packed"
    done = omniprep(
        "build", name, "--model", model_dir, "--bin-length", 1024, "--out", out, "--workers", 0, "--media-root", samples
    )
    assert done.code == 0, done.err
    return out


def test_a_build_ends_with_its_report(built):
    html = (built / "report.html").read_text()
    assert len(html) < 3_000_000
    assert NASTY not in html and "</script><img" not in html
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in html


def test_the_numbers_are_those_of_the_manifest(built, model_dir):
    dataset = PackedDataset(str(built))
    data = collect(dataset, load_vocabulary(str(model_dir)))
    counts = dataset.manifest["counts"]
    assert data["totals"]["rows"] == counts["rows"] == {"read": 12, "packed": 10, "rejected": 2}
    assert sum(s["tokens"] for s in data["sources"]) == counts["tokens"]
    assert sum(sum(series) for series in data["lengths"]["series"].values()) == counts["rows"]["packed"]
    assert sum(data["media"]["shares"]["by_modality"].values()) == counts["tokens"]
    assert {e["code"] for e in data["rejects"]["examples"]} == set(counts["rejected_by_code"])
    shown = sum(row["tokens"] for b in data["browser"] for row in b["rows"])
    assert shown == counts["tokens"]


def test_tokens_of_the_page_are_those_of_the_shard(built, model_dir):
    vocabulary = load_vocabulary(str(model_dir))
    dataset = PackedDataset(str(built))
    for number in range(len(dataset)):
        item = dataset[number]
        for row in range(len(item["row_ids"])):
            cut = cut_row(item, row)
            parts = parts_of(cut, vocabulary, 10**6)
            sizes = [p["n"] if "m" in p else sum(p["n"]) if "n" in p else len(p["t"]) for p in parts]
            assert sum(sizes) == len(cut["input_ids"])
            text = "".join(p["m"] * p["n"] if "m" in p else "".join(p["t"]) for p in parts)
            assert text == vocabulary.decode(cut["input_ids"].tolist())
            assert sum(s for s, p in zip(sizes, parts, strict=True) if p["y"]) == (cut["labels"] != -100).sum()


def test_a_dataset_without_tokenizer_still_has_a_report(built, model_dir, tmp_path):
    shutil.copytree(built, tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(json.dumps(str(model_dir)), '"no/where"'))
    target, remark = write_report(str(tmp_path / "data"))
    assert Path(target).stat().st_size > 50_000 and "shown as numbers" in remark


def test_a_large_dataset_has_a_small_page(built, model_dir, tmp_path, monkeypatch):
    """20,000 bins, the same ones again and again, and bins longer than a page can hold."""
    shutil.copytree(built, tmp_path / "data")
    index = pq.read_table(tmp_path / "data" / "index.parquet")
    rows = pq.read_table(tmp_path / "data" / "rows.parquet")
    times = 20_000 // len(index)
    pq.write_table(pa.concat_tables([index] * times), tmp_path / "data" / "index.parquet")
    pq.write_table(pa.concat_tables([rows] * times), tmp_path / "data" / "rows.parquet")
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    manifest["shards"][0]["bins"] = len(index) * times
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    dataset = PackedDataset(str(tmp_path / "data"))
    assert len(dataset) >= 19_000
    data = collect(dataset, load_vocabulary(str(model_dir)))
    assert data["media"]["bins"] == 64 < data["media"]["of"] and 4 <= len(data["browser"]) <= 8
    assert len(page(data)) < 3_000_000
    monkeypatch.setattr("omniprep.report.bins.TOKENS_A_PAGE", 800)
    for found in browse(dataset, list(range(8)), None):
        assert found["more"] > 0 and sum(row["tokens"] for row in found["rows"][:-1]) < 100


def test_options_that_were_given_are_told_from_defaults(built):
    assert set(collect(PackedDataset(str(built)), None, shown=0)["changed"]) == {"model", "bin_length", "needed_flags"}


def test_histograms_hold_every_value():
    rng = np.random.default_rng(0)
    for values in (rng.integers(1, 9000, 1000), np.array([5, 5, 5]), np.array([1, 2, 9]), rng.random(100)):
        assert sum(histogram(values)["counts"]) == len(values)
    lengths = np.array([1, 1, 2, 3, 64, 65, 8192])
    series = length_histogram(lengths, np.zeros(7, np.int8))["series"]
    assert sum(series["text"]) == 7
    assert histogram(np.array([]))["counts"] == []


def test_balance_of_equal_bins_is_one():
    assert {entry["balanced"] for entry in balance(np.ones(128))} == {1.0}


def test_spectrogram_of_silence_is_a_picture():
    image = spectrogram_picture(np.zeros((128, 300), np.uint16))
    assert image.size == (300, 96)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (omniprep[test])")
    binary = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
    ):
        options.add_argument(flag)
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


def shoot(chrome: Any, name: str, folder: Path) -> None:
    target = Path(os.environ.get("OMNIPREP_SCREENSHOTS", folder))
    target.mkdir(parents=True, exist_ok=True)
    assert chrome.save_screenshot(str(target / f"{name}.png"))


def requests_of(chrome: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("data:", "file:", "chrome:", "about:"))]


def test_report_in_a_browser(built, browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    browser.get((built / "report.html").as_uri())
    assert browser.execute_script("return document.documentElement.dataset.ready") == "1"
    assert browser.get_log("browser") == [] and requests_of(browser) == []
    assert browser.execute_script("return window.hacked") is None

    examples = browser.find_elements(By.CSS_SELECTOR, "#reject-list details")
    assert len(examples) == 2
    Select(browser.find_element(By.ID, "reject-code")).select_by_value("media_not_found")
    left = browser.find_elements(By.CSS_SELECTOR, "#reject-list details")
    assert len(left) == 1 and "<b>none</b>.jpg" in left[0].text
    browser.find_element(By.ID, "reject-search").send_keys("nowhere to be found")
    assert browser.find_elements(By.CSS_SELECTOR, "#reject-list details") == []

    shown = browser.find_elements(By.CSS_SELECTOR, "#rows .row")
    Select(browser.find_element(By.ID, "row-kind")).select_by_value("image")
    pictures = browser.find_elements(By.CSS_SELECTOR, "#rows .row figure img")
    assert 0 < len(pictures) <= 2 < len(shown)
    assert browser.execute_script("return arguments[0].naturalWidth", pictures[0]) > 50
    Select(browser.find_element(By.ID, "row-kind")).select_by_value("")
    browser.find_element(By.ID, "row-search").send_keys("answer 日本語")
    rows = browser.find_elements(By.CSS_SELECTOR, "#rows .row")
    assert rows and all("<img src=x" in row.text for row in rows)

    trained = browser.find_element(By.CSS_SELECTOR, "#rows .message.assistant .y")
    browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))", trained)
    assert browser.find_element(By.ID, "tip").get_attribute("textContent").startswith("token ")


def test_report_in_dark_and_on_a_phone(built, browser, tmp_path):
    browser.get((built / "report.html").as_uri())
    shoot(browser, "report-light", tmp_path)
    light = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    browser.find_element("id", "theme").click()
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != light
    shoot(browser, "report-dark", tmp_path)
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    shoot(browser, "report-phone", tmp_path)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= 390, "the page scrolls sideways on a phone"
    assert browser.get_log("browser") == []


def test_an_empty_section_is_drawn_too(built, browser, tmp_path):
    target = tmp_path / "page.html"
    target.write_text(page(collect(PackedDataset(str(built)), None, shown=0)))
    browser.get(target.as_uri())
    assert browser.execute_script("return document.documentElement.dataset.ready") == "1"
    assert browser.get_log("browser") == []
