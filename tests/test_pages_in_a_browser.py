"""The pages opened in Chromium: no error, no request to others, no markup of others, filters that work, on a phone too.

One browser serves all tests of this file. OMNIPREP_SCREENSHOTS names a folder to keep the screenshots in.
"""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_dataset import build, build_preferences

from omniprep.data.dataset import PackedDataset
from omniprep.inspect.describe import rows_of_bin
from omniprep.printable import printable
from omniprep.report.page import collect, page
from omniprep.report.server import Site, listen

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
WIDE = "return document.documentElement.scrollWidth"
CUT = """return [...document.querySelectorAll("td, th, .card, .card b, button, .controls *")].filter((node) => {
  const box = node.getBoundingClientRect();
  return box.width > 0 && getComputedStyle(node).clipPath === "none" && !node.closest("thead") && (node.scrollWidth > Math.ceil(box.width) + 1 || box.right > innerWidth + 1);
}).map((node) => node.tagName + " " + node.textContent.slice(0, 40))"""
"""Cells, cards and controls whose text is wider than they are, or that reach beyond the screen."""


CELLS = """return [...document.querySelectorAll(arguments[0] + " tbody tr")].map((row) =>
  [...row.children].map((cell) => cell.textContent))"""


@pytest.fixture(scope="module")
def built(omniprep, model_dir, tmp_path_factory) -> Path:
    return build(omniprep, model_dir, tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (omniprep[test])")
    binary = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def browser(chrome: Any) -> Iterator[Any]:
    """A browser of desktop size whose logs are empty; at the end it must have complained of nothing."""
    chrome.get("about:blank")
    chrome.get_log("browser"), chrome.get_log("performance")
    yield chrome
    chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert chrome.execute_script("return window.hacked") is None
    assert chrome.get_log("browser") == []


def open_page(chrome: Any, url: str) -> None:
    chrome.get(url)
    wait_for(chrome, "return document.documentElement.dataset.ready === '1'")


def wait_for(chrome: Any, condition: str, *arguments: Any) -> None:
    """Until a script returns true: browsers do much after they have answered."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(chrome, 60, poll_frequency=0.05).until(lambda _: chrome.execute_script(condition, *arguments))


def shoot(chrome: Any, name: str, folder: Path) -> None:
    target = Path(os.environ.get("OMNIPREP_SCREENSHOTS", folder))
    target.mkdir(parents=True, exist_ok=True)
    assert chrome.save_screenshot(str(target / f"{name}.png"))


def requests_of(chrome: Any, *own: str) -> list[str]:
    """Addresses that were asked, but for those that begin with one of `own`."""
    messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("data:", "file:", "chrome:", "about:", *own))]


def texts(chrome: Any, selector: str) -> list[str]:
    return chrome.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)", selector
    )


def choose(chrome: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(chrome.find_element("id", name)).select_by_value(value)


def look_on_all_screens(chrome: Any, name: str, folder: Path) -> None:
    """Screenshots at the width of a desktop and of a phone, light and dark; nothing is cut and no page scrolls sideways."""
    colors = set()
    for width in (1280, 390):
        size = {**PHONE, "width": width, "mobile": width == 390}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for theme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": theme}]
            chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            wait_for(chrome, f"return document.documentElement.dataset.theme === {theme!r}")
            colors.add(chrome.execute_script("return getComputedStyle(document.body).backgroundColor"))
            assert chrome.execute_script(WIDE) <= width, "the page scrolls sideways"
            assert chrome.execute_script(CUT) == []
            shoot(chrome, f"{name}-{width}-{theme}", folder)
    assert len(colors) == 2


def test_a_report_asks_nobody_and_filters_its_rejects(built, browser):
    open_page(browser, (built / "report.html").as_uri())
    assert requests_of(browser) == []
    examples = browser.find_elements("css selector", "#reject-list details")
    assert len(examples) == 2
    choose(browser, "reject-code", "media_not_found")
    left = browser.find_elements("css selector", "#reject-list details")
    assert len(left) == 1 and "<b>none</b>.jpg" in left[0].text
    browser.find_element("id", "reject-search").send_keys("nowhere to be found")
    assert browser.find_elements("css selector", "#reject-list details") == []


def test_filters_go_over_the_rows_of_all_bins(built, browser):
    open_page(browser, (built / "report.html").as_uri())
    lines = "return [...document.querySelectorAll('#rows .row')].map((row) => row.querySelector('.head b').textContent)"
    shown = browser.execute_script(lines)
    assert len(shown) == 12 and len(set(texts(browser, "#bin-select option"))) > 2
    assert texts(browser, "#row-count")[0].startswith("12 of 12 rows in ")

    def with_kind(kind: str) -> set[str]:
        choose(browser, "row-kind", kind)
        found = browser.execute_script(lines)
        assert texts(browser, "#row-count")[0].startswith(f"{len(found)} of 12 rows")
        (option,) = (text for text in texts(browser, "#row-kind option") if text.rsplit(" ", 1)[0] == kind)
        assert option.endswith(f"({len(found)})")
        return {name.rsplit(":", 1)[1] for name in found}

    assert with_kind("image") == {"7", "8"}
    pictures = browser.find_elements("css selector", "#rows .row figure img")
    assert len(pictures) == 2 and browser.execute_script("return arguments[0].naturalWidth", pictures[0]) > 50
    assert with_kind("audio") == {"9", "11"} and with_kind("video") == {"10", "11"}
    assert with_kind("video with sound") == {"11"} and with_kind("tools") == {"12"}
    bins = {
        int(row.split(":")[0]) for row in browser.execute_script("return every.map((row) => row.bin + ':' + row.start)")
    }
    assert len(bins) > 1, "the filters are of one bin only"
    browser.find_element("css selector", "#bin-controls [type=reset]").click()
    wait_for(browser, "return document.querySelectorAll('#rows .row').length === 12")
    browser.find_element("id", "row-search").send_keys("answer 日本語")
    rows = texts(browser, "#rows .row")
    assert len(rows) == 5 and all("<img src=x" in row for row in rows)
    browser.find_element("id", "row-search").clear()
    sizes = browser.execute_script("return every.map((row) => row.tokens)")
    browser.find_element("id", "row-least").send_keys(str(max(sizes)))
    assert len(browser.execute_script(lines)) == sizes.count(max(sizes)) < 12

    trained = browser.find_element("css selector", "#rows .message.assistant .y")
    browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))", trained)
    assert texts(browser, "#tip")[0].startswith("token ")


def test_the_keyboard_alone_reaches_a_row(built, browser):
    """/ goes to the search; from there Tab leads through the filters to the text of the first row."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    open_page(browser, (built / "report.html").as_uri())
    ActionChains(browser).send_keys("/").perform()
    active = "return document.activeElement.id || document.activeElement.className"
    assert browser.execute_script(active) == "row-search"
    ActionChains(browser).send_keys("balls").perform()
    assert 0 < len(texts(browser, "#rows .row")) < 12
    reached = []
    for _ in range(9):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(browser.execute_script(active))
    assert reached[:5] == ["row-kind", "row-source", "row-least", "row-most", "bin-select"] and "chat" in reached


def test_hidden_characters_are_shown(built, browser):
    """Everything that omniprep.printable escapes for a terminal is escaped in a page too."""
    open_page(browser, (built / "report.html").as_uri())
    choose(browser, "row-kind", "")
    browser.find_element("id", "row-search").send_keys("gnp.exe")
    (row,) = texts(browser, "#rows .row")
    for part in ("[red]", "\\x1b[31m", "\\u202egnp.exe\\u202c", "\\u200f", "[/red]"):
        assert part in row
    points = [*range(0x300), *range(0x600, 0x620), *range(0x2000, 0x2070), 0xFEFF, *range(0xFFF0, 0xFFFC)]
    shown = browser.execute_script("return arguments[0].map((point) => visible(String.fromCodePoint(point)))", points)
    assert shown == [printable(chr(point), lines=True) for point in points]
    assert browser.execute_script("return visible('a' + String.fromCharCode(0xd800) + 'b')") == "a\\ud800b"


def test_a_report_on_all_screens(built, browser, tmp_path):
    open_page(browser, (built / "report.html").as_uri())
    look_on_all_screens(browser, "report", tmp_path)
    before = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    browser.find_element("id", "theme").click()
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != before


def test_changes_since_the_build_are_drawn(built, browser, omniprep, tmp_path):
    folder = shutil.copytree(built, tmp_path / "data")
    source = next(built.parent.glob("*.jsonl"))
    done = omniprep("remove", folder, "--row", f"{source}:1", "--row", f"{source}:2")
    assert done.code == 0, done.err
    open_page(browser, (folder / "report.html").as_uri())
    built_row, removal = browser.execute_script(CELLS, "#table-changes")
    assert built_row[:2] == ["build", "12"] and removal[:2] == ["remove", "−2"]
    (cells,) = browser.execute_script(CELLS, "#table-sources")
    assert cells[1:4] == ["14", "2", "2"] and "rows removed" in "".join(texts(browser, "#totals"))


def test_an_empty_section_is_drawn_too(built, browser, tmp_path):
    target = tmp_path / "page.html"
    target.write_text(page(collect(PackedDataset(str(built)), None, shown=0)))
    open_page(browser, target.as_uri())


def test_two_datasets_side_by_side(built, omniprep, browser, tmp_path):
    """Names of datasets are hostile, too."""
    other = tmp_path / "<b>other\u202e"
    excluded = f"{next(built.parent.glob('*.jsonl'))}:1"
    done = omniprep("repack", built, "--out", other, "--bin-length", 2048, "--exclude", excluded)
    assert done.code == 0, done.err
    done = omniprep("report", built, other, "--out", tmp_path / "compare.html")
    assert done.code == 0, done.err
    open_page(browser, (tmp_path / "compare.html").as_uri())
    assert requests_of(browser) == []
    assert texts(browser, "#title") == ["packed and <b>other\\u202e"]
    (line,) = (row for row in browser.execute_script(CELLS, "#table-counts") if row[0] == "rows packed")
    assert line == ["rows packed", "12", "11", "−1 (−8.3 %)"]
    shown = browser.execute_script(CELLS, "#table-options")
    assert ["--bin-length", "1024", "2048"] in shown
    browser.find_element("id", "all-options").click()
    assert len(browser.execute_script(CELLS, "#table-options")) > len(shown) + 20
    assert browser.execute_script("return document.querySelectorAll('#length-bars i').length") > 4
    look_on_all_screens(browser, "compare", tmp_path)


@pytest.fixture(scope="module")
def served(built: Path) -> Iterator[str]:
    server = listen(0)
    server.site = Site(str(built))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.url
    server.shutdown()
    server.server_close()


def test_any_bin_is_asked_for(built, served, browser):
    """By its number, by the next and the one before, by a row's name, and by what rows hold; back goes back."""
    from selenium.webdriver.common.keys import Keys

    dataset = PackedDataset(str(built))
    expected = [[str(row.line) for row in rows_of_bin(dataset, number)] for number in range(len(dataset))]

    def shows(lines: list[str]) -> None:
        names = (
            "return [...document.querySelectorAll('#rows .row .head b')].map((node) => node.textContent.split(':')[1])"
        )
        wait_for(
            browser,
            f"{names.replace('return', 'const names =')}; return names.join() === arguments[0]",
            ",".join(lines),
        )

    open_page(browser, served)
    shows(expected[0])
    assert requests_of(browser, served) == []
    assert browser.find_element("id", "bin-before").get_attribute("disabled") == "true"
    browser.find_element("id", "bin-after").click()
    shows(expected[1])
    browser.find_element("id", "bin-number").clear()
    browser.find_element("id", "bin-number").send_keys("0", Keys.ENTER)
    shows(expected[0])
    browser.back()
    shows(expected[1])
    number, line = next((n, lines[-1]) for n, lines in enumerate(expected) if len(lines) > 1)
    browser.find_element("id", "row-name").send_keys(f"<i>chats.jsonl:{line}", Keys.ENTER)
    shows([line])
    browser.find_element("css selector", "#rows button.more").click()
    shows(expected[number])
    wait_for(
        browser, "return [...document.images].every((image) => image.loading === 'lazy' || image.naturalWidth > 50)"
    )

    browser.find_element("css selector", "#finder summary").click()
    choose(browser, "find-kind", "video")
    browser.find_element("id", "find-text").send_keys("balls", Keys.ENTER)
    wait_for(browser, "return document.querySelectorAll('#found tbody tr').length === 1")
    assert "1 row with the text" in texts(browser, "#find-count")[0]
    browser.find_element("css selector", "#found button").click()
    wait_for(browser, "return document.querySelector('#rows .row .head b').textContent.endsWith(':10')")
    frames = "return [...document.querySelectorAll('#rows .row img')].filter((image) => image.naturalWidth > 50).length"
    wait_for(browser, f"{frames} >= 1")
    assert requests_of(browser, served) == []


def test_a_served_page_says_what_it_cannot_show(served, browser):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, f"{served}#bin=0")
    wait_for(browser, "return document.querySelectorAll('#rows .row').length > 0")
    browser.find_element("id", "row-name").send_keys("<i>chats.jsonl:13", Keys.ENTER)
    wait_for(browser, "return document.getElementById('fault').textContent.includes('media_not_found')")
    browser.find_element("id", "row-name").clear()
    browser.find_element("id", "row-name").send_keys("<b>x</b>:1", Keys.ENTER)
    wait_for(browser, "return document.getElementById('fault').textContent.includes('<b>x</b>:1')")
    assert [entry for entry in browser.get_log("browser") if "404" not in entry["message"]] == []


def test_rejects_of_a_served_page(served, browser):
    open_page(browser, served)
    wait_for(browser, "return document.querySelectorAll('#reject-list details').length === 2")
    choose(browser, "reject-code", "media_not_found")
    wait_for(browser, "return document.querySelectorAll('#reject-list details').length === 1")
    assert "<b>none</b>.jpg" in texts(browser, "#reject-list")[0]
    browser.find_element("id", "reject-search").send_keys("nowhere to be found")
    wait_for(browser, "return document.querySelectorAll('#reject-list details').length === 0")


def test_a_served_page_on_all_screens(served, browser, tmp_path):
    open_page(browser, served)
    wait_for(browser, "return document.querySelectorAll('#rows .row').length > 0")
    browser.execute_script(
        "document.getElementById('finder').open = true; document.querySelector('#find-form button').click()"
    )
    wait_for(browser, "return document.querySelectorAll('#found tbody tr').length > 10")
    look_on_all_screens(browser, "serve", tmp_path)


def test_pairs_and_verdicts_are_filtered_and_found(omniprep, model_dir, browser, tmp_path):
    folder = build_preferences(omniprep, model_dir, tmp_path)
    open_page(browser, (folder / "report.html").as_uri())
    choose(browser, "row-verdict", "rejected")
    assert {text.rsplit(", ", 1)[0] for text in texts(browser, "#rows .tag.rejected")} == {"rejected"}
    assert len(texts(browser, "#rows .row")) == 2
    choose(browser, "row-verdict", "")
    choose(browser, "row-kind", "preference verdict")
    assert sorted(texts(browser, "#rows .tag.desirable, #rows .tag.undesirable")) == ["desirable", "undesirable"]
    assert "4" in texts(browser, "#totals .card b") and "preference rows" in "".join(texts(browser, "#totals"))
    choose(browser, "row-kind", "preference pair")
    look_on_all_screens(browser, "pairs", tmp_path)
    server = listen(0)
    server.site = Site(str(folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    open_page(browser, server.url)
    browser.find_element("css selector", "#finder summary").click()
    choose(browser, "find-kind", "preference pair")
    browser.find_element("css selector", "#find-form button").click()
    wait_for(browser, "return document.querySelectorAll('#found tbody tr').length === 2")
    browser.find_element("css selector", "#found button").click()
    wait_for(browser, "return document.querySelector('#rows .row .tag.preferred') !== null")
    server.shutdown()
    server.server_close()
