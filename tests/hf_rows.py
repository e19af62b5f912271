"""Rows for families that are learned from a processor, and what the processor itself makes of them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

TAG = re.compile("(<image>|<audio>|<video>)")


def write_media(folder: Path) -> None:
    """Pictures of many sizes and forms, and sounds."""
    rng = np.random.default_rng(0)

    def save(name: str, width: int, height: int, mode: str = "RGB", **options: Any) -> None:
        coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(
            folder / name, **options
        )

    turned = Image.Exif()
    turned[0x0112] = 6
    save("landscape.png", 320, 240)
    save("upright.jpg", 150, 420)
    save("small.png", 64, 64)
    save("thin.png", 900, 40)
    save("gray.png", 200, 180, "L")
    save("alpha.png", 210, 130, "RGBA")
    save("palette.png", 120, 90, "P")
    save("large.jpg", 1300, 900)
    save("turned.jpg", 240, 120, exif=turned)
    Image.fromarray(rng.integers(0, 65536, (40, 60), np.uint16)).save(folder / "deep.png")
    for name, samples, rate in (
        ("second.wav", 16_000, 16_000),
        ("other.wav", 40_123, 22_050),
        ("long.wav", 496_000, 16_000),
    ):
        soundfile.write(folder / name, (rng.standard_normal(samples) * 0.1).astype(np.float32), rate)


def rows(modalities: tuple[str, ...]) -> list[list[tuple[Any, ...]]]:
    """Chats as (role, text with tags, files): one to three items of different sizes, later turns, a system prompt."""
    chats: list[list[tuple[Any, ...]]] = [
        [("user", "Hello there.\n"), ("assistant", "Hi! How are you?"), ("user", "  fine "), ("assistant", "Good.")],
        [("system", "Be brief."), ("user", "What?"), ("assistant", "Nothing.")],
    ]
    if "image" in modalities:
        one = ("landscape", "upright", "small", "thin", "gray", "alpha", "palette", "large", "turned")
        names = {name: f"{name}.jpg" if name in ("upright", "large", "turned") else f"{name}.png" for name in one}
        chats += [[("user", f"<image>{name}?", [names[name]]), ("assistant", "A picture.")] for name in one]
        two, three = [names[n] for n in ("landscape", "upright")], [names[n] for n in ("small", "thin", "large")]
        chats += [
            [("user", "Compare <image> with\n<image>", two), ("assistant", "No.")],
            [("user", "<image><image>and<image>", three), ("assistant", "Three.")],
            [
                *(("user", "hi"), ("assistant", "yes")),
                *(("user", "<image>\nAnd now?", [names["turned"]]), ("assistant", "x")),
                *(("user", "<image>", [names["gray"]]), ("assistant", "y")),
            ],
            [("system", "S"), ("user", "see <image>", [names["alpha"]]), ("assistant", "ok")],
        ]
    if "audio" in modalities:
        chats += [
            [("user", "<audio>What?", [name]), ("assistant", "A.")] for name in ("second.wav", "other.wav", "long.wav")
        ]
        chats.append([("user", "<audio>and<audio>", ["second.wav", "other.wav"]), ("assistant", "A.")])
    return chats


def as_row(chat: list[tuple[Any, ...]]) -> dict[str, Any]:
    """The chat as a row of omniprep."""
    row: dict[str, Any] = {"messages": [{"role": turn[0], "content": turn[1]} for turn in chat]}
    for turn in chat:
        for tag, name in zip(TAG.findall(turn[1]), turn[2] if len(turn) > 2 else (), strict=True):
            row.setdefault(f"{tag[1:-1]}s", []).append(name)
    return row


def as_conversation(chat: list[tuple[Any, ...]], folder: Path) -> list[dict[str, Any]]:
    """The chat as `apply_chat_template` takes it, with the paths of its media."""
    conversation = []
    for turn in chat:
        names = iter(turn[2] if len(turn) > 2 else ())
        parts = [
            {"type": piece[1:-1], "path": str(folder / next(names))}
            if TAG.fullmatch(piece)
            else {"type": "text", "text": piece}
            for piece in TAG.split(turn[1])
            if piece
        ]
        conversation.append({"role": turn[0], "content": parts})
    return conversation
