"""Pictures of the terminal and of the report for the documentation, made from real runs on data_samples.

    python docs/make_screenshots.py [--model CHECKPOINT] [NAME...]

Each command runs in a terminal of its own (a pseudo-terminal of 110 columns); what it shows becomes
docs/images/NAME.svg.
`report`, `compare` and `serve` need Chromium and its driver. Results differ from run to run in rates and times alone.
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text
from terminal import Screen, watch

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
COLUMNS = 110
NAMES = ("plan", "build", "inspect", "report", "compare", "serve")


def show(command: list[str], until: Callable[[Screen], bool] | None = None) -> Screen:
    """What a command shows, without paths of this machine; its failure ends this program."""
    screen, code = watch(command, ROOT, COLUMNS, until)
    if code:
        raise SystemExit(screen.text())
    # --out and --model, as the picture's command has them.
    for option, typed in (("--out", "packed"), ("--model", "build/demo/model")):
        if option in command:
            given = command[command.index(option) + 1]
            screen.lines = [line.replace(given, typed) for line in screen.lines]
    return screen


def save(name: str, typed: str, screen: Screen, most: int = 46) -> None:
    """Write docs/images/NAME.svg; needs no font from the network."""
    lines = [line.rstrip() for line in screen.lines]
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) > most:
        lines = [*lines[:most], "…"]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "bold green"), (typed, "bold")))
    console.print(Text.from_ansi("\n".join(lines)))
    form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.S)
    form = re.sub(r"<!--.*?-->", "", form)
    form = form.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace")
    text = console.export_svg(title="omniprep", code_format=form, unique_id=f"omniprep-{name}")
    (IMAGES / f"{name}.svg").write_text(text)
    print(f"docs/images/{name}.svg  {len(text) // 1024} KiB")


def open_browser() -> Any:
    """Chromium without a window."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def shoot(chrome: Any, place: str, width: int, height: int, theme: str = "light") -> Image.Image:
    """What a reader sees whose window is so large, with an element at its top."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chrome.execute_script(f"document.querySelector({place!r}).scrollIntoView()")
    time.sleep(1)  # pictures are loaded as they come into view
    return Image.open(io.BytesIO(chrome.get_screenshot_as_png())).convert("RGB")


def save_picture(name: str, shots: list[Image.Image], gap: int = 12) -> None:
    """Write docs/images/NAME.png: shots side by side, in few colors."""
    width = sum(shot.width + gap for shot in shots) - gap
    sheet = Image.new("RGB", (width, max(shot.height for shot in shots)), "#d0d2d6")
    left = 0
    for shot in shots:
        sheet.paste(shot, (left, 0))
        left += shot.width + gap
    target = IMAGES / f"{name}.png"
    sheet.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"docs/images/{name}.png  {target.stat().st_size // 1024} KiB")


def save_report(packed: Path) -> None:
    """Write the pictures of a report: its head beside a row, its filters, and what a phone shows."""
    chrome = open_browser()
    chrome.get((packed / "report.html").as_uri())
    save_picture("report", [shoot(chrome, place, 1000, 1000) for place in ("header", "#browser")])
    chrome.execute_script(
        "const kind = document.getElementById('row-kind');kind.value = 'image'; kind.dispatchEvent(new Event('change'))"
    )
    save_picture("report-rows", [shoot(chrome, "#browser", 1100, 900)])
    phone = [shoot(chrome, place, 390, 800) for place in ("header", "#table-sources")]
    save_picture("report-phone", [*phone, shoot(chrome, "#browser", 390, 800, "dark")])
    chrome.quit()


def save_comparison(program: list[str], packed: Path, other: Path) -> None:
    """Write the picture of two datasets side by side."""
    page = packed.parent / "compare.html"
    subprocess.run([*program, "report", packed.name, other.name, "--out", str(page)], check=True, cwd=packed.parent)
    chrome = open_browser()
    chrome.get(page.as_uri())
    save_picture("compare", [shoot(chrome, place, 900, 1000) for place in ("header", "#options")])
    chrome.quit()


def save_served(program: list[str], packed: Path) -> None:
    """Write the picture of a served dataset, in the dark, after a search."""
    command = [*program, "serve", str(packed), "--port", "0", "--no-open"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert server.stdout is not None
    found = re.search(r"http://\S+", server.stdout.readline())
    assert found is not None, "the server has no address"
    chrome = open_browser()
    chrome.get(found[0])
    chrome.execute_script(
        "document.getElementById('finder').open = true; document.getElementById('find-text').value = 'ball';"
        "document.querySelector('#find-form button').click()"
    )
    time.sleep(2)
    chrome.execute_script("document.querySelector('#found button').click()")
    time.sleep(2)
    save_picture("serve", [shoot(chrome, "#browser", 1100, 1000, "dark")])
    chrome.quit()
    server.terminate()
    server.wait()


def main() -> None:
    """Make the pictures that are asked for (all by default)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--model", default="build/demo/model", help="Checkpoint (default: build/demo/model).")
    options = parser.parse_args()
    program = [sys.executable, "-m", "omniprep"]
    given = ["--model", options.model, "--bin-length", "2048"]
    said = "--model build/demo/model --bin-length 2048"
    inputs = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "data_samples").glob("*.jsonl"))]
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="omniprep-pictures-") as folder:
        packed = Path(folder) / "packed"
        build = [*program, "build", *inputs, *given, "--out", str(packed)]
        good = [name for name in inputs if "broken" not in name]
        if "build" in options.names:
            small = [*program, "build", *good, "--model", options.model, "--bin-length", "640", "--out", str(packed)]
            small += ["--workers", "2", "--shard-size", "256KiB"]
            busy = show(small, lambda screen: any("worker" in line and "bin" in line for line in screen.lines))
            typed = "omniprep build chats/*.jsonl --model build/demo/model --bin-length 640 --out packed/ --workers 2"
            save("build", typed, busy)
        show([*build, "--workers", "0", "--overwrite"])
        if "plan" in options.names:
            more = ["--workers", "0", "--compare", "max-pixels=50176", "--quiet"]
            shown = show([*program, "plan", *good, *given, *more])
            save("plan", f"omniprep plan chats/*.jsonl {said} --compare max-pixels=50176 --quiet", shown)
        row = "data_samples/images.jsonl:5"
        if "inspect" in options.names:
            shown = show([*program, "inspect", str(packed), "--row", row])
            save("inspect", f"omniprep inspect packed/ --row {row}", shown)
        if "report" in options.names:
            save_report(packed)
        if "compare" in options.names:
            other = Path(folder) / "smaller"
            smaller = ["--bin-length", "1024", "--max-pixels", "50176", "--workers", "0", "--quiet", "--model"]
            few = [name for name in inputs if "grounding" not in name]
            show([*program, "build", *few, *smaller, options.model, "--out", str(other)])
            save_comparison(program, packed, other)
        if "serve" in options.names:
            save_served(program, packed)


if __name__ == "__main__":
    main()
