"""A small dataset for tests of pages: every kind of row, rejects, and hostile texts wherever its maker chooses one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import SAMPLES

NASTY = "</script><img src=x onerror='window.hacked=1'><!-- <b>bold</b> & \u2028"
HIDDEN = "[red]\x1b[31m \u202egnp.exe\u202c\u200f [/red]"
"""What moves or turns around text: an escape sequence, direction marks, rich's brackets."""
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def chat(user: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}], **more}


def build(omniprep: Callable[..., Any], model_dir: Path, folder: Path) -> Path:
    """12 rows packed and 2 rejected, with the sound of videos."""
    media = SAMPLES / "media"
    rows = [chat(f"{NASTY} number {n}", f"{NASTY} answer 日本語 🙂 {n}") for n in range(5)]
    rows += [chat(HIDDEN, "Hidden.")]
    rows += [chat("<image>What?", "A scene.", images=[str(media / "scene.jpg")])] * 2
    rows += [chat("<audio>Say it.", "Numbers.", audios=[str(media / "numbers.wav")])]
    rows += [chat("<video>And?", "Balls.", videos=[str(media / "balls_silent.mp4")])]
    rows += [chat("<video>And what is said?", "Hello.", videos=[str(media / "balls_spoken.mp4")])]
    rows += [chat("Is it raining?", "No.", tools=[TOOL])]
    rows += [chat("<image>Gone", "x", images=["<b>none</b>.jpg"]), {"messages": NASTY}]
    name = folder / "<i>chats.jsonl"
    name.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "packed"
    options = ("--use-audio-in-video", "--silent-video", "skip-audio", "--media-root", SAMPLES)
    done = omniprep("build", name, "--model", model_dir, "--bin-length", 1024, "--out", out, "--workers", 0, *options)
    assert done.code == 0, done.err
    return out


def build_preferences(omniprep: Callable[..., Any], model_dir: Path, folder: Path) -> Path:
    """Two pairs, one of them about a picture, a desirable and an undesirable answer, and ordinary rows."""
    pictures = {"images": [str(SAMPLES / "media" / "scene.jpg")]}
    rows = [
        *(chat(f"Ordinary {n}?", "Yes.") for n in range(3)),
        chat("<image>Which?", "The better one.", rejected_response="The worse one.", **pictures),
        chat("And now?", "Better.", rejected_response="Worse."),
        chat("Good?", "Good.", label=True),
        chat("Bad?", "Bad.", label=False),
    ]
    name = folder / "preferences.jsonl"
    name.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "packed"
    options = ("--bin-length", 512, "--workers", 0, "--preference", "mixed", "--media-root", SAMPLES)
    done = omniprep("build", name, "--model", model_dir, "--out", out, *options)
    assert done.code == 0, done.err
    return out
