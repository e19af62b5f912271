"""Memory of a process that builds a row with a large video, by the size of its file: does it grow with it?

Each build runs in a process of its own, in which a small video of the same size in pixels was built before: so all
libraries are loaded. Its high-water mark (VmHWM of Linux) is set back in between. The videos are 1080p with much noise,
6 Mbit a frame; of each, 12 frames are taken. They are read as a file, and as a member of a tar, which no library can
open by a name.

    python benchmarks/worker_memory.py --model CHECKPOINT
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from record import leave_out_report, record

SIZE, RATE, GROUP = (1920, 1080), 25, 30
GROUPS = (1, 3, 9)
"""Groups of pictures of the videos, 23 MiB each."""
TAKEN = 12


def group() -> bytes:
    """An MP4 of one closed group of pictures."""
    import av

    noise, (width, height) = np.random.default_rng(0), SIZE
    wandering = noise.integers(0, 128, (height + 2 * GROUP, width + 3 * GROUP), np.uint8)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as target:
        stream: Any = target.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "18", "x264-params": f"keyint={GROUP}:open-gop=0:scenecut=0"}
        for number in range(GROUP):
            frame = av.VideoFrame(width, height, "yuv420p")
            luma = wandering[2 * number :, 3 * number :][:height, :width] + noise.integers(
                0, 24, (height, width), np.uint8
            )
            chroma = noise.integers(0, 256, (2, height // 2, width // 2), np.uint8)
            for plane, values in zip(frame.planes, (luma, *chroma), strict=True):
                plane.update(values.tobytes())
            frame.pts = number
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return file.getvalue()


def repeated(data: bytes, times: int, path: Path) -> None:
    """A video of the same group of pictures over and over."""
    import av

    with av.open(io.BytesIO(data)) as source, av.open(str(path), "w", format="mp4") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        span = int(Fraction(GROUP, RATE) / packets[0].time_base)
        for number in range(times):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts = packet.pts + number * span, packet.dts + number * span
                copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, packet.is_keyframe, stream
                target.mux(copy)


def status(name: str) -> int:
    """MiB of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) >> 10


def measure(model: str, folder: Path, small: str, large: str) -> None:
    """Build a row with each video; print the process's memory between both builds and at the peak of the second."""
    import omniprep.compiler.build as run
    from omniprep.bars import reporter
    from omniprep.config import BuildConfig

    leave_out_report()
    before, tokens = 0, 0
    for number, name in enumerate((small, large)):
        messages = [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "Noise."}]
        rows = folder / f"{number}.jsonl"
        rows.write_text(json.dumps({"messages": messages, "videos": [name]}) + "\n")
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        with tempfile.TemporaryDirectory(dir=folder) as out, reporter(quiet=True) as progress:
            options = BuildConfig(
                inputs=(str(rows),), model=model, bin_length=32768, fps_max_frames=TAKEN, out=f"{out}/out", workers=0
            )
            counts = run.build(options, progress)["counts"]
        assert counts["rows"]["packed"] == 1, counts
        tokens = counts["tokens"]
    print(json.dumps({"tokens": tokens, "before_mib": before, "peak_mib": status("VmHWM")}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "SMALL", "LARGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.model or not Path("/proc/self/clear_refs").exists():
        print("skipped: needs --model (OMNIPREP_BENCH_MODEL) and Linux")
        return
    if options.measure:
        measure(options.model, Path(options.measure[0]), *options.measure[1:])
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    rows = []
    with tempfile.TemporaryDirectory(prefix="omniprep-memory-") as name:
        folder, data = Path(name), group()
        for groups in GROUPS:
            repeated(data, groups, folder / f"{groups}.mp4")
            with tarfile.open(folder / f"{groups}.tar", "w") as tar:
                tar.add(folder / f"{groups}.mp4", "clip.mp4")
        for kind, pattern in (("file", "{}.mp4"), ("member of a tar", "{}.tar!clip.mp4")):
            for groups in GROUPS:
                command = [sys.executable, __file__, "--model", options.model, "--measure", name]
                command += [pattern.format(1), pattern.format(groups)]
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                size = (folder / f"{groups}.mp4").stat().st_size
                measured = json.loads(done.stdout.splitlines()[-1])
                rows.append({"video": kind, "mib": size >> 20, "frames": GROUP * groups, **measured})
    record("worker_memory", rows)


if __name__ == "__main__":
    main()
