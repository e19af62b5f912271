"""A small random checkpoint of a type of transformers, tried: rows built and held against the checkpoint's own
AutoProcessor, the dataset trained on, and packed logits held against the class's own forward pass, row by row.

tests/test_chat_models.py runs it on some types, docs/make_chat_models.py on all of them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import soundfile
import torch
from media_files import video
from PIL import Image

from omniprep.compiler.build import build
from omniprep.compiler.options import family_of
from omniprep.config import BuildConfig
from omniprep.data import PackedDataset, collate
from omniprep.errors import OmniprepError
from omniprep.progress import Reporter

BIN = 4096
KINDS = {"image": "image_processor", "video": "video_processor", "audio": "feature_extractor"}
TOLERANCE = 2e-4
"""Of float32 logits of size 1, between a row in a bin and the same row alone."""


@dataclass
class Trial:
    """What came of each step; "" where it was not reached."""

    model_type: str
    model_class: str = ""
    made: bool = False
    family: str = "hf"
    modalities: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Modality that the processor takes and the family does not → why."""
    builds: str = ""
    equals: str = ""
    trains: str = ""
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether all of it was right."""
        return self.builds == self.equals == self.trains == "yes"

    def stop(self, step: str, reason: str) -> "Trial":
        setattr(self, step, "no")
        self.reason = " ".join(reason.split())
        return self

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def write_media(folder: Path) -> dict[str, str]:
    """Files of one photo-like picture of each shape, of sounds, and of a film."""
    random, files = np.random.default_rng(0), {}
    for name, (width, height) in {"wide": (310, 170), "tall": (95, 240), "odd": (133, 151), "tiny": (41, 37)}.items():
        blocks = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        pixels = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
        Image.fromarray(pixels).save(folder / f"{name}.png")
        files[name] = str(folder / f"{name}.png")
    for name, seconds in {"short": 1.3, "long": 3.71}.items():
        places = np.arange(int(16000 * seconds)) / 16000
        sound = 0.3 * np.sin(2 * np.pi * 440 * places * (1 + places / 3)) + 0.02 * random.standard_normal(len(places))
        soundfile.write(folder / f"{name}.wav", sound.astype(np.float32), 16000)
        files[name] = str(folder / f"{name}.wav")
    (folder / "film.mp4").write_bytes(video(size=(96, 64), frames=16))
    files["film"] = str(folder / "film.mp4")
    return files


def chats(modalities: list[str]) -> dict[str, list[tuple[str, list[tuple[str, str]]]]]:
    """Rows by what they try: turns of (role, parts), a part being (kind, text or name of a file)."""
    answer = ("assistant", [("text", "Red circles, on a wall.")])
    rows = {
        "text": [("user", [("text", "Hello, who are you?")]), answer],
        "system": [("system", [("text", "Answer briefly.")]), ("user", [("text", "Zwölf, 你好?")]), answer],
    }
    first = [("user", [("text", "Hi there.")]), ("assistant", [("text", "Hello!\n\nYes.")])]
    if "image" in modalities:
        rows["image"] = [("user", [("image", "wide"), ("text", "What is this?")]), answer]
        rows["images"] = [("user", [("image", "tall"), ("image", "odd"), ("text", "Compare them.")]), answer]
        rows["later image"] = [*first, ("user", [("image", "tiny"), ("text", "And this one?")]), answer]
    if "audio" in modalities:
        rows["audio"] = [("user", [("audio", "short"), ("text", "What do you hear?")]), answer]
        rows["later audio"] = [*first, ("user", [("audio", "long"), ("text", "And here?")]), answer]
    if "video" in modalities:
        rows["video"] = [("user", [("video", "film"), ("text", "What happens?")]), answer]
    return rows


def as_row(chat: list[tuple[str, list[tuple[str, str]]]], files: dict[str, str]) -> dict[str, Any]:
    """A row of an input file."""
    content = lambda parts: "".join(text if kind == "text" else f"<{kind}>" for kind, text in parts)  # noqa: E731
    row: dict[str, Any] = {"messages": [{"role": role, "content": content(parts)} for role, parts in chat]}
    for kind, column in (("image", "images"), ("audio", "audios"), ("video", "videos")):
        items = [files[text] for _, parts in chat for what, text in parts if what == kind]
        if items:
            row[column] = items
    return row


def as_conversation(chat: list[tuple[str, list[tuple[str, str]]]], files: dict[str, str]) -> list[dict[str, Any]]:
    """The same chat for transformers."""
    part = lambda kind, text: (  # noqa: E731
        {"type": "text", "text": text} if kind == "text" else {"type": kind, "path": files[text]}
    )
    return [{"role": role, "content": [part(*piece) for piece in parts]} for role, parts in chat]


def takes(processor: Any) -> list[str]:
    """Modalities that a processor has both a part and a token for."""
    return [
        kind
        for kind, part in KINDS.items()
        if (getattr(processor, part, None) or (kind == "audio" and getattr(processor, "audio_processor", None)))
        and getattr(processor, f"{kind}_token", None)
    ]


@contextmanager
def videos_by_pyav() -> Iterator[None]:
    """transformers' default for videos is torchcodec, which needs FFmpeg's libraries; PyAV gives the same frames."""
    from transformers import video_processing_utils, video_utils

    with (
        patch.dict(video_utils.VIDEO_DECODERS, torchcodec=video_utils.read_video_pyav),
        patch.object(video_utils, "is_torchcodec_available", lambda: True),
        patch.object(video_processing_utils, "is_torchcodec_usable", lambda decode: True),
    ):
        yield


def processed(processor: Any, conversation: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What AutoProcessor gives for a chat; `more`: arguments of its call."""
    with videos_by_pyav():
        return dict(
            processor.apply_chat_template(
                conversation, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=more
            )
        )


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Where a row's arguments are not those of the processor, bit by bit."""
    found = []
    for name, value in theirs.items():
        if name == "attention_mask" and name not in ours:
            continue
        if name not in ours:
            found.append(f"{name} is absent")
            continue
        if isinstance(value, list | tuple) and plain(ours[name]) == plain(value):
            continue
        ours_too, value = as_tensors(ours[name]), as_tensors(value)
        if [tensor.shape for tensor in ours_too] != [tensor.shape for tensor in value]:
            shapes = [str(tuple(tensors[0].shape)) if tensors else "none" for tensors in (ours_too, value)]
            found.append(f"{name} has shape {shapes[0]}, the processor's {shapes[1]}")
        elif not all(torch.equal(a.to(b.dtype), b) for a, b in zip(ours_too, value, strict=True)):
            found.append(f"{name} differs")
    return found


def plain(value: Any) -> Any:
    """Numbers in lists, of tensors and lists of them."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def as_tensors(value: Any) -> list[torch.Tensor]:
    """A tensor, or nested lists of them, as a list."""
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in as_tensors(part)]
    return [torch.as_tensor(value)]


@dataclass
class Built:
    """A dataset of rows that equal the processor's.

    Attributes:
        folder: Of the dataset (packed/) and of its input.
        source: The input.
        alone: Row by row, in the order of the input: what it tries → arguments of the class's forward pass.
    """

    folder: Path
    source: Path
    alone: dict[str, dict[str, Any]]


def try_build(trial: Trial, checkpoint: Path, folder: Path) -> Built | None:
    """Build rows of all that the processor takes, and compare them; None where that fails."""
    from transformers import AutoProcessor

    config = BuildConfig(
        inputs=(str(folder / "rows.jsonl"),),
        model=str(checkpoint),
        family=trial.family,
        bin_length=BIN,
        out=str(folder / "packed"),
        workers=0,
    )
    try:
        ctx = family_of(config)
    except OmniprepError as error:
        trial.stop("builds", str(error))
        return None
    processor = AutoProcessor.from_pretrained(checkpoint)
    trial.refused = {kind: reason for kind, reason in getattr(ctx, "unusable", {}).items() if kind in takes(processor)}
    trial.modalities = [kind for kind in takes(processor) if kind in ctx.modalities]
    files, rows, references, refused = write_media(folder), {}, {}, {}
    built = Built(folder, folder / "rows.jsonl", {})
    for name, chat in chats(trial.modalities).items():
        conversation = as_conversation(chat, files)
        try:
            references[name] = built.alone[name] = processed(processor, conversation)
            if "mm_token_type_ids" in processor.model_input_names:  # the class's forward pass asks for them
                built.alone[name] = processed(processor, conversation, return_mm_token_type_ids=True)
        except Exception as error:  # whatever a processor refuses with, the row is then not one to compare
            refused[name] = f"{type(error).__name__}: {error}"
            continue
        rows[name] = as_row(chat, files)
    if not rows:
        trial.stop("builds", f"its processor refuses every row: {next(iter(refused.values()))}")
        return None
    trial.modalities = [kind for kind in trial.modalities if any(kind in name for name in rows)]
    built.source.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    try:
        # The page with its plots takes half of the time, and is not tried.
        with videos_by_pyav(), patch("omniprep.report.page.write_report"):
            build(config, Reporter())
        dataset = PackedDataset(folder / "packed")
        ours = {name: dataset.row(str(built.source), number) for number, name in enumerate(rows, 1)}
    except OmniprepError as error:
        trial.stop("builds", str(error))
        return None
    trial.builds = "yes"
    for name, reference in references.items():
        if found := differences(ours[name], reference):
            trial.stop("equals", f"{name}: {'; '.join(found)}")
            return None
    trial.equals = "yes"
    return built


def try_train(trial: Trial, checkpoint: Path, built: Built) -> None:
    """Hold packed logits against the class's own forward pass over each row, and train two steps."""
    from omniprep.train.config import TrainConfig
    from omniprep.train.run import prepare_run

    config = TrainConfig(
        data=(str(built.folder / "packed"),),
        model=str(checkpoint),
        family=trial.family,
        out=str(built.folder / "run"),
        max_steps=2,
        num_workers=0,
        report_to=(),
        device="cpu",
        learning_rate=1e-3,
        warmup=0,
        logging_steps=1,
    )
    try:
        trainer = prepare_run(config, Reporter()).trainer
        logits = packed_logits(trainer.model.eval(), PackedDataset(built.folder / "packed"))
        if found := wrong_logits(logits, built.alone, checkpoint):
            trial.stop("trains", found)
            return
        trainer.train()
    except (OmniprepError, ValueError, RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        trial.stop("trains", f"{'' if isinstance(error, OmniprepError) else f'{type(error).__name__}: '}{error}")
        return
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if len(losses) != 2 or not losses[1] < losses[0]:
        trial.stop("trains", f"losses of two steps on the same rows: {losses}")
    else:
        trial.trains = "yes"


def packed_logits(model: Any, dataset: PackedDataset) -> dict[int, torch.Tensor]:
    """Logits of each line of the input, computed in bins."""
    logits = {}
    lines = dict(enumerate(dataset.rows["line"].to_pylist()))
    for number in range(len(dataset)):
        batch = collate([dataset[number]])
        batch.pop("labels")
        with torch.no_grad():
            packed = model(**batch).logits[0].float()
        borders = pairwise(batch["cu_seq_lens_q"].tolist())
        for row, (start, end) in zip(dataset[number]["row_ids"].tolist(), borders, strict=True):
            logits[lines[row]] = packed[start:end]
    return logits


def wrong_logits(packed: dict[int, torch.Tensor], rows: dict[str, dict[str, Any]], checkpoint: Path) -> str:
    """Where a row's logits are not those that the class computes of what its processor gives for the row alone."""
    import transformers

    names = json.loads((checkpoint / "config.json").read_text())["architectures"]
    alone = getattr(transformers, names[0]).from_pretrained(checkpoint, dtype=torch.float32).eval()
    assert len(packed) == len(rows)
    for number, (name, row) in enumerate(rows.items(), 1):
        inputs = {key: floats(value) for key, value in row.items()}
        with torch.no_grad():
            expected = alone(**inputs).logits[0].float()
        ours, length = packed[number], len(packed[number])
        apart = float((ours - expected[:length]).abs().max() / expected.abs().max())
        if apart > TOLERANCE:
            return f"{name}: logits in a bin are {apart:.1e} of their size from those of the row alone"
    return ""


def floats(value: Any) -> Any:
    """In the type of the weights, for those that are floats."""
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def run_trial(model_type: str, folder: Path, family: str = "hf") -> Trial:
    """Make a small checkpoint of a type in a folder, build, compare and train.

    What transformers' classes raise on the way is the reason of the step that it ends.
    """
    from omniprep.families.chat_models import chat_models
    from omniprep.testing.init_model import write_model_type

    trial, checkpoint = Trial(model_type, chat_models()[model_type], family), folder / "model"
    checkpoint.mkdir()
    try:
        write_model_type(checkpoint, 0, model_type)
    except OmniprepError as error:
        trial.reason = " ".join(str(error).split())
        return trial
    trial.made = True
    built = try_build(trial, checkpoint, folder)
    if built is not None:
        try_train(trial, checkpoint, built)
    trial.reason = trial.reason.replace(f"model {str(checkpoint)!r}: ", "").replace(f"{folder}/", "")
    return trial
