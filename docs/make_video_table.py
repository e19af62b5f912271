"""Write the table of videos in docs/fidelity.md: who decodes each clip of tests/video_clips.py, and why.


Each clip is made anew by the encoders in PyAV, given to the gate, and read at many choices of frames by omniprep and by
decord. The verdicts are those of the versions in the line above the table.

    python docs/make_video_table.py
"""

import io
import random
import sys
from pathlib import Path

import av
import decord
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from omniprep.errors import Reject  # noqa: E402
from omniprep.media.source import Source  # noqa: E402
from omniprep.media.video import ALONE, DECORD, PROVEN, VideoFacts, probe_video, read_frames  # noqa: E402
from tests.video_clips import CLIPS, clip  # noqa: E402

PAGE = ROOT / "docs" / "fidelity.md"
BEGIN, END = "<!-- videos: written by docs/make_video_table.py -->\n", "<!-- end of videos -->\n"
WORDS = {DECORD: "decord", PROVEN: "PyAV, in decord's place", ALONE: "PyAV alone"}
CHOICES = 20
"""Choices of frames that are compared, beside each end, the middle and all frames."""


def by_decord(data: bytes, indices: list[int]) -> np.ndarray | None:
    """What the reference reads; None where it fails."""
    try:
        frames: np.ndarray = decord.VideoReader(io.BytesIO(data), num_threads=1).get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError):
        return None
    return frames


def equal(data: bytes, facts: VideoFacts) -> str:
    """In how many choices of frames omniprep gives what decord gives, a failure included."""
    rng, last, same = random.Random(0), facts.frames - 1, 0
    choices = [[0], [last // 2], [last], list(range(facts.frames))]
    choices += [sorted(rng.choices(range(facts.frames), k=rng.randint(1, 12))) for _ in range(CHOICES)]
    for indices in choices:
        theirs = by_decord(data, indices)
        try:
            ours = read_frames(Source(data=data), facts, indices)
        except Reject:
            same += theirs is None
        else:
            same += theirs is not None and np.array_equal(ours, theirs)
    return f"{same} of {len(choices)}"


def line(name: str) -> str:
    """A line of the table."""
    codec, _, trait = name.partition(": ")
    try:
        data = clip(name)
    except (av.FFmpegError, ValueError):  # ValueError: no such encoder
        return f"| {codec} | {trait} | not made: PyAV's encoder cannot | | |"
    try:
        facts = probe_video(Source(data=data))
    except Reject as reject:
        return f"| {codec} | {trait} | rejected, as decord fails | `{reject.code}` | |"
    compared = "decord cannot read it" if facts.reader == ALONE else equal(data, facts)
    reason = facts.reason if facts.reader == DECORD else ""
    return f"| {codec} | {trait} | {WORDS[facts.reader]} | {reason} | {compared} |"


def main() -> None:
    """Write the table."""
    decord.logging.set_level(decord.logging.FATAL)
    libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
    versions = f"PyAV {av.__version__} (libavcodec {libavcodec}), decord {decord.__version__}"
    head = "| codec | clip | decoded by | why not PyAV | choices of frames that equal decord's |\n"
    head += "| --- | --- | --- | --- | --- |\n"
    table = f"{versions}:\n\n{head}" + "".join(line(name) + "\n" for name in CLIPS)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + table + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
