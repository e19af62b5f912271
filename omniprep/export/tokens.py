"""`--prompts tokens`: stored rows cut where their last answer begins, media as the model sees them.

Nothing is rendered, tokenized or decoded from a media file: ids, pixels and spectrograms are those of the shards.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.families.context import FamilyContext
from omniprep.inspect.describe import StoredRow, rows_of_bin
from omniprep.inspect.media import MediaItem, media_of
from omniprep.shards.dataset import StoredDataset

TAKEN_BY_VLLM: dict[str, tuple[str, ...]] = {
    "qwen2_vl": ("image", "video"),
    "qwen2_5_vl": ("image",),
    "qwen2_5_omni": ("image", "audio", "video"),
    "qwen3_vl": ("image",),
    "qwen3_omni": ("image",),
}
"""Families, and modalities of theirs, whose stored media are all that vLLM makes a prompt of. Of a video Qwen2.5-VL
also needs the rate of its frames, and Qwen3-VL and Qwen3-Omni their times, which a shard holds as positions and text
alone. Of the audio of Qwen3-Omni vLLM takes waveforms: its processing info has the parser of Qwen2-Audio."""
REASONS = {
    "qwen2_audio": "of its audio vLLM takes waveforms or the outputs of its tower, and a shard holds spectrograms",
}
"""Why a family of which vLLM has a model is not among them."""


class SkippedRowError(Exception):
    """A packed row of which no prompt is made; the text is the reason."""


class _Run(NamedTuple):
    """Tokens start .. end of a row that stand for one media item."""

    start: int
    end: int
    modality: str


class PromptCutter:
    """Makes prompts of the rows of one dataset.

    Raises:
        OmniprepError: The dataset's family or options are none that vLLM takes token ids of.
    """

    def __init__(self, ctx: FamilyContext, dataset: StoredDataset) -> None:
        options = dataset.record.config
        if ctx.name not in TAKEN_BY_VLLM:
            raise OmniprepError(
                f"{dataset.uri}: family {ctx.name!r} has no --prompts tokens "
                f"({REASONS.get(ctx.name, 'what vLLM takes of it was not tried')}; there for "
                f"{', '.join(TAKEN_BY_VLLM)}); use --prompts chats"
            )
        if not options.use_chat_template:
            raise OmniprepError(
                f"{dataset.uri}: built with --no-use-chat-template: nothing tells where an answer begins"
            )
        self._ctx = ctx
        # What stands between a user's text and the answer; special tokens keep it apart from both.
        self._opening = np.array(ctx.encoder.encode([ctx.template.prompt[-1].rpartition("{{QUERY}}")[2]])[0], np.int32)
        self._placeholders = {ctx.placeholder_id(modality): modality for modality in ctx.modalities}
        self._padded = options.pad_rows_to > 0

    def lines(self, dataset: StoredDataset) -> Iterator[dict[str, Any] | tuple[StoredRow, SkippedRowError]]:
        """The columns of each packed row (`omniprep.data.prompts`), bin after bin, or why it has no prompt."""
        for number in range(len(dataset)):
            for row in rows_of_bin(dataset, number):
                if row.verdict == "rejected":
                    continue  # of a pair the prompt with its preferred answer
                try:
                    yield self.line(row)
                except SkippedRowError as reason:
                    yield row, reason

    def line(self, row: StoredRow) -> dict[str, Any]:
        """The columns of one row.

        Raises:
            SkippedRowError: It has no prompt, or vLLM would make another one of it.
        """
        if row.verdict == "undesirable":
            raise SkippedRowError("its answer is labeled as undesirable")
        ids, labels = row.arrays["input_ids"], row.arrays["labels"]
        cut = self._answer_start(ids, labels)
        if np.isin(ids[cut:], list(self._placeholders)).any():
            raise SkippedRowError("media in the answer")
        runs = self._media_runs(ids[:cut])
        items = self._items(row, runs)
        kept = np.ones(cut, bool)
        for run in runs:
            kept[run.start + 1 : run.end] = False
        answer = ids[cut : int(np.flatnonzero(labels != -100)[-1]) + 1 if self._padded else len(ids)].tolist()
        return {
            "source": row.source,
            "line": row.line,
            "prompt_token_ids": ids[:cut][kept].tolist(),
            "answer_token_ids": answer,
            "answer": self._ctx.tokenizer.decode(answer, skip_special_tokens=True),
            "media": [_stored_media(item) for item in items],
        }

    def _answer_start(self, ids: NDArray[np.int32], labels: NDArray[np.int32]) -> int:
        """First token of the last answer, behind the last generation prompt; labels tell that it is one."""
        count = len(self._opening)
        if len(ids) <= count:
            raise SkippedRowError("no answer")
        windows = np.lib.stride_tricks.sliding_window_view(ids, count)
        starts = np.flatnonzero((windows == self._opening).all(axis=1))
        cut = int(starts[-1]) + count if len(starts) else len(ids)
        if not (labels[cut:] != -100).any():
            raise SkippedRowError("no answer, or none that is trained")
        if (labels[cut - count : cut] != -100).any():  # --special-tokens-in-text allow
            raise SkippedRowError("the answer's own text opens another answer")
        return cut

    def _media_runs(self, ids: NDArray[np.int32]) -> list[_Run]:
        is_media = np.isin(ids, list(self._placeholders))
        edges = np.flatnonzero(np.diff(is_media.astype(np.int8), prepend=0, append=0))
        runs = []
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            if (ids[start:end] != ids[start]).any():
                raise SkippedRowError("a video with its sound (--use-audio-in-video)")
            runs.append(_Run(start, end, self._placeholders[int(ids[start])]))
        return runs

    def _items(self, row: StoredRow, runs: list[_Run]) -> list[MediaItem]:
        """The media of a row in the order of their placeholders."""
        for run in runs:
            if run.modality not in TAKEN_BY_VLLM[self._ctx.name]:
                raise SkippedRowError(f"{run.modality} of family {self._ctx.name!r}")
            # vLLM takes the seconds of a pair of frames from the processor's default rate, as the reference does.
            if run.modality == "video" and self._ctx.opt.video_timing != "reference":
                raise SkippedRowError("a video whose positions follow its own rate (--video-timing actual)")
        items = media_of(row.arrays)
        spans, stored = Counter(run.modality for run in runs), Counter(item.modality for item in items)
        if spans != stored:
            raise DamagedDataError(
                f"{row.source}:{row.line}: spans of media tokens ({dict(spans)}) are not its media ({dict(stored)})"
            )
        waiting = {modality: iter([item for item in items if item.modality == modality]) for modality in stored}
        return [next(waiting[run.modality]) for run in runs]


def _stored_media(item: MediaItem) -> dict[str, Any]:
    """The columns of one media item. Its uuid is a hash of what vLLM is given, by which vLLM finds it in its caches."""
    stored: dict[str, Any] = {"modality": item.modality, "pictures": None, "features": None, "bands": None}
    if item.modality == "audio":
        content = np.ascontiguousarray(item.values)
        stored |= {"features": content.tobytes(), "bands": content.shape[0]}
    else:
        frames = item.frames()
        assert frames is not None, item.modality
        content = np.ascontiguousarray(frames if item.modality == "video" else frames[:1])
        stored["pictures"] = [_png(frame) for frame in content]
    facts = f"{item.modality} {content.dtype} {content.shape}".encode()
    return stored | {"uuid": hashlib.sha256(facts + content.tobytes()).hexdigest()}


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)  # level 6 takes three times as long for 10 % less
    return file.getvalue()
