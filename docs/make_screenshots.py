"""Pictures of the terminal and of the report for the documentation, made from real runs on data_samples.

    python docs/make_screenshots.py [--model CHECKPOINT] [NAME...]

Each command runs in a terminal of its own (a pseudo-terminal of 110 columns); what it shows becomes
docs/images/NAME.svg.
`report` needs Chromium and its driver. Results differ from run to run in rates and times alone.
"""

import argparse
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text
from terminal import Screen, watch

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
COLUMNS = 110
NAMES = ("plan", "build", "inspect", "rejected", "report")


def show(command: list[str], until: Callable[[Screen], bool] | None = None) -> Screen:
    """What a command shows; its failure ends this program."""
    screen, code = watch(command, ROOT, COLUMNS, until)
    if code:
        raise SystemExit(screen.text())
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


def save_report(dataset: Path) -> None:
    """Write docs/images/report.png: the head of the page and the first bin, side by side."""
    from PIL import Image
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1000,1000", "--hide-scrollbars"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    chrome = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    shots = []
    chrome.get((dataset / "report.html").as_uri())
    for place in ("header", "#browser"):
        chrome.execute_script(f"document.querySelector({place!r}).scrollIntoView()")
        shots.append(Path(tempfile.mkdtemp()) / "shot.png")
        assert chrome.save_screenshot(str(shots[-1]))
    chrome.quit()
    pictures = [Image.open(shot).convert("RGB") for shot in shots]
    sheet = Image.new("RGB", (sum(p.width for p in pictures) + 12, pictures[0].height), "#d0d2d6")
    sheet.paste(pictures[0], (0, 0))
    sheet.paste(pictures[1], (pictures[0].width + 12, 0))
    target = IMAGES / "report.png"
    sheet.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"docs/images/report.png  {target.stat().st_size // 1024} KiB")


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
        if "build" in options.names:
            good = [name for name in inputs if "broken" not in name]
            small = [*program, "build", *good, "--model", options.model, "--bin-length", "640", "--out", str(packed)]
            small += ["--workers", "2", "--shard-size", "2MiB"]
            busy = show(small, lambda screen: sum("bins" in line for line in screen.lines) >= 2)
            typed = "omniprep build chats/*.jsonl --model build/demo/model --bin-length 640 --out packed/ --workers 2"
            save("build", typed, busy)
        show([*build, "--workers", "0", "--overwrite"])
        if "plan" in options.names:
            more = ["--workers", "0", "--compare", "max-pixels=50176", "--quiet"]
            shown = show([*program, "plan", *inputs, *given, *more])
            save("plan", f"omniprep plan data_samples/*.jsonl {said} --compare max-pixels=50176 --quiet", shown)
        row = "data_samples/images.jsonl:5"
        if "inspect" in options.names:
            shown = show([*program, "inspect", str(packed), "--row", row])
            save("inspect", f"omniprep inspect packed/ --row {row}", shown)
        if "rejected" in options.names:
            shown = show([*program, "inspect", str(packed), "--rejected", "--limit", "3"])
            save("rejected", "omniprep inspect packed/ --rejected --limit 3", shown)
        if "report" in options.names:
            save_report(packed)


if __name__ == "__main__":
    main()
