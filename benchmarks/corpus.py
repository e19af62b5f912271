"""Chats of each kind with media of their own, made from a handful of files: what the benchmarks build.

No two rows share a file, so nothing is decoded once for many. Photographs are cut from the given ones at the sizes that
web images have (448x336 to 1280x960, JPEG at quality 90); audio and video files are copied under other names. The
texts are the rows of alpaca and tool-call files where the folder holds them, else sentences of this project's pages.
"""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SIZES = ((448, 336), (640, 480), (640, 427), (800, 600), (1024, 768), (1280, 960))
KINDS = ("text", "image", "audio", "video")


def make(folder: Path, rows: dict[str, int], data: Path | None = None) -> dict[str, Path]:
    """Write KIND.jsonl for each kind, with its media beside it.

    Args:
        folder: Where to.
        rows: Rows of each kind.
        data: Folder with .json files of text chats and media below it (default: this project's data_samples).
    """
    data = data or ROOT / "data_samples"
    random.seed(0)
    (folder / "media").mkdir(parents=True, exist_ok=True)
    texts = _texts(data)
    makers = {"image": _images, "audio": _copies, "video": _copies}
    suffixes = {
        "image": (".jpg", ".jpeg"),
        "audio": (".wav", ".flac", ".mp3", ".ogg"),
        "video": (".mp4", ".avi", ".mkv"),
    }
    found = {}
    for kind, number in rows.items():
        chats: list[dict[str, Any]]
        if kind == "text":
            chats = [{"messages": next(texts)} for _ in range(number)]
        else:
            files = [f for f in sorted(data.rglob("*")) if f.suffix in suffixes[kind] and _readable(f, kind)]
            media = makers[kind](files, folder / "media", number)
            chats = [_chat(kind, name) for name in media]
        found[kind] = folder / f"{kind}.jsonl"
        found[kind].write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return found


def _chat(kind: str, name: str) -> dict[str, Any]:
    question = f"<{kind}>What is this? Describe everything that you can see or hear in it, in a few sentences."
    answer = (
        "There is a lot to be said about it: it begins quietly, it has many colors, and somebody smiles in the end."
    )
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        f"{kind}s": [name],
    }


def _images(files: list[Path], folder: Path, number: int) -> Iterator[str]:
    from PIL import Image

    for i in range(number):
        width, height = SIZES[i % len(SIZES)]
        with Image.open(files[i % len(files)]) as photo:
            picture = photo.convert("RGB")
        w, h = picture.size
        left, top = random.randrange(w // 4 + 1), random.randrange(h // 4 + 1)
        picture = picture.crop((left, top, left + 3 * w // 4, top + 3 * h // 4)).resize(
            (width, height), Image.Resampling.LANCZOS
        )
        picture.save(folder / f"image{i}.jpg", quality=90)
        yield f"media/image{i}.jpg"


def _copies(files: list[Path], folder: Path, number: int) -> Iterator[str]:
    for i in range(number):
        source = files[i % len(files)]
        name = f"{source.stem}-{i}{source.suffix}"
        shutil.copyfile(source, folder / name)
        yield f"media/{name}"


def _readable(path: Path, kind: str) -> bool:
    """Whether a file is what its name says, to its end: data_samples holds broken ones too."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = (container.streams.audio if kind == "audio" else container.streams.video)[0]
            return sum(1 for _ in container.decode(stream)) > 0
    except (av.FFmpegError, IndexError):
        return False


def _texts(data: Path) -> Iterator[list[dict[str, str]]]:
    rows = [row for name in ("alpaca_en_demo", "glaive_toolcall_en_demo") for row in _read(data / f"{name}.json")]
    chats = [chat for row in rows if (chat := _standard(row))] or _sentences()
    while True:
        yield from chats


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def _standard(row: dict[str, Any]) -> list[dict[str, str]]:
    if "instruction" in row:
        question = "\n".join(part for part in (row["instruction"], row.get("input")) if part)
        return [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
    names = {"human": "user", "gpt": "assistant"}
    turns = [turn for turn in row.get("conversations", []) if turn["from"] in names]
    chat = [{"role": names[turn["from"]], "content": turn["value"]} for turn in turns]
    kept: list[dict[str, str]] = []
    for turn in chat:  # without the calls, turns alternate no more: keep those that do
        if turn["role"] == ("user", "assistant")[len(kept) % 2]:
            kept.append(turn)
    return kept[: len(kept) // 2 * 2]


def _sentences() -> list[list[dict[str, str]]]:
    pages = " ".join(path.read_text() for path in sorted(ROOT.glob("docs/*.md")))
    parts = [part.strip() for part in pages.split(". ") if len(part) > 20]
    chats = []
    for _ in range(1000):
        answer = ". ".join(random.sample(parts, random.randint(1, 12)))
        chats.append([{"role": "user", "content": random.choice(parts)}, {"role": "assistant", "content": answer}])
    return chats
