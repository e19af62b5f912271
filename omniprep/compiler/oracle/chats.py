"""Dummy chats: every kind of row that a family could get wrong, as rows of a dataset and as messages of transformers.

Their media are files, made from a seed, so that they pass through probing and decoding as those of a user do. Pictures
are noise over a gradient: on a blank, errors of mean, size and order of patches cannot be seen.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omniprep.modalities import MODALITIES

IMAGES = {
    "square": (224, 224),
    "odd": (333, 251),
    "wide": (700, 200),
    "tall": (150, 420),
    "small": (40, 36),
    "large": (1400, 1050),
}
"""Width and height by name. 1400x1050 is beyond what most processors keep, 40x36 below what some of them take."""
SECONDS = {"short": 1.3, "long": 3.71, "tiny": 0.25, "minute": 35.0}
"""Length of sounds by name. 35 s is more than one window of Whisper's 30 s."""
CLIPS = {"clip": (8, 112, 112), "odd clip": (13, 150, 106), "long clip": (40, 64, 64)}
"""Frames, width and height of videos by name; 8 frames a second."""
CLIP_RATE = 8
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}

Part = tuple[str, str]
"""("text", the text) or (modality, name of a medium)."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A dummy chat.

    Attributes:
        name: What it tries, for messages.
        turns: Role and parts of each message.
        quick: Whether `build` tries it too.
        tools: Function definitions.
    """

    name: str
    turns: tuple[tuple[str, tuple[Part, ...]], ...]
    quick: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def media(self) -> list[Part]:
        """Modality and name of each item, in order."""
        return [part for _, parts in self.turns for part in parts if part[0] != "text"]

    @property
    def modalities(self) -> set[str]:
        """Modalities of its items."""
        return {modality for modality, _ in self.media}


def _ask(name: str, *items: Part, quick: bool = False, question: str = "What is this?") -> Chat:
    return Chat(name, (("user", (*items, ("text", question))), ("assistant", (("text", "A test."),))), quick)


def dummy_chats(modalities: Iterable[str]) -> list[Chat]:
    """The chats for a family that takes `modalities`, plain ones first."""
    text = [
        _ask("text", quick=True, question="Hello, who are you?"),
        Chat(
            "later turns, Unicode, line breaks",
            (
                ("user", (("text", "Zwölf Kreise, 你好?\n\nJa."),)),
                ("assistant", (("text", "Ja.\n\nGenau, 好 🙂."),)),
                ("user", (("text", "Why?"),)),
                ("assistant", (("text", "Because."),)),
            ),
            quick=True,
        ),
        Chat(
            "system",
            (
                ("system", (("text", "Answer briefly."),)),
                ("user", (("text", "Colors?"),)),
                ("assistant", (("text", "Red."),)),
            ),
            quick=True,
        ),
        Chat("tools", _ask("").turns, tools=(TOOL,)),
    ]
    media = [chat for modality in MODALITIES if modality in set(modalities) for chat in _of_modality(modality)]
    mixed = [(modality, next(iter(_media(modality)))) for modality in MODALITIES if modality in set(modalities)]
    return [*text, *media, *([_ask(" + ".join(m for m, _ in mixed), *mixed)] if len(mixed) > 1 else [])]


def _media(modality: str) -> Mapping[str, Any]:
    media: dict[str, Mapping[str, Any]] = {"image": IMAGES, "audio": SECONDS, "video": CLIPS}
    return media[modality]


def _of_modality(modality: str) -> list[Chat]:
    names = list(_media(modality))
    first, second = (modality, names[0]), (modality, names[1])
    # Of sound a build tries one clip alone: processors that pad to 300 s take a second for each.
    later = (("user", (("text", "Hi there."),)), ("assistant", (("text", "Hello!"),)))
    return [
        _ask(f"{modality}: {names[1]}", second, quick=True),
        _ask(f"{modality}: two", first, second, quick=modality == "image"),
        *(_ask(f"{modality}: {name}", (modality, name)) for name in (names[0], *names[2:])),
        _ask(f"{modality}: many", *[(modality, names[number % 3]) for number in range(5)]),
        Chat(f"{modality}: in a later turn", (*later, *_ask("", second).turns)),
        Chat(
            f"{modality}: behind text, with a system message",
            (("system", (("text", "Be brief."),)), ("user", (("text", "See"), first)), *_ask("").turns[1:]),
        ),
    ]


def write_media(chats: Sequence[Chat], folder: Path, rate: int) -> None:
    """Write the media of some chats, PNG, WAV at `rate` and MP4."""
    import soundfile
    from PIL import Image

    for modality, name in sorted({item for chat in chats for item in chat.media}):
        path = folder / file_name(modality, name)
        if modality == "image":
            Image.fromarray(_picture(*IMAGES[name])).save(path)
        elif modality == "audio":
            seconds = np.arange(int(rate * SECONDS[name])) / rate
            noise = np.random.default_rng(len(seconds)).standard_normal(len(seconds))
            soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * seconds * (1 + seconds / 9)) + 0.02 * noise, rate)
        else:
            _write_clip(path, *CLIPS[name])


def file_name(modality: str, name: str) -> str:
    """The name of a medium's file."""
    return f"{name.replace(' ', '_')}.{ {'image': 'png', 'audio': 'wav', 'video': 'mp4'}[modality] }"


def _picture(width: int, height: int, shift: int = 0) -> Any:
    rng = np.random.default_rng(width * 10_000 + height + shift)
    across = np.linspace(0, 200, width)[None, :, None] * np.array([1.0, 0.5, 0.0])
    down = np.linspace(0, 200, height)[:, None, None] * np.array([0.0, 0.5, 1.0])
    return (across + down + rng.integers(0, 55, (height, width, 3))).astype(np.uint8)


def _write_clip(path: Path, frames: int, width: int, height: int) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=CLIP_RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(_picture(width, height, 7 * number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def as_row(chat: Chat) -> dict[str, Any]:
    """The chat as a row of a dataset, with tags in its text and the names of media files."""
    messages = [
        {"role": role, "content": "".join(value if kind == "text" else f"<{kind}>" for kind, value in parts)}
        for role, parts in chat.turns
    ]
    row: dict[str, Any] = {"messages": messages}
    for modality, name in chat.media:
        row.setdefault(MODALITIES[modality].column, []).append(file_name(modality, name))
    if chat.tools:
        row["tools"] = json.dumps(chat.tools)
    return row


def as_messages(chat: Chat, medium: Callable[[str, str], Any]) -> list[dict[str, Any]]:
    """The chat as messages of transformers, with typed contents.

    Args:
        chat: The chat.
        medium: Modality and name → a path, or the decoded item. It stands under the name of its modality, which some
            templates look for instead of the type.
    """
    return [
        {
            "role": role,
            "content": [
                {"type": "text", "text": value} if kind == "text" else {"type": kind, kind: medium(kind, value)}
                for kind, value in parts
            ],
        }
        for role, parts in chat.turns
    ]
