"""A long build on a cluster of three nodes (processes of this machine) that is killed twice, against one that nobody
disturbs: the same bytes, and memory that does not grow.

The corpus is many short chats, of which every tenth names a picture of its own; the pictures are hard links to a few
files, since what is tested is the number of names and not of pixels. The first build runs undisturbed. The second has
its driver killed (-9) when a third of its shards are there, is started again, loses a node when two thirds are there,
and gets a new one. Memory is the resident size of the driver and of each Ray worker without what they share with other
processes, sampled every second of the undisturbed build; its ratio is the mean of the last third of the stage's samples
to that of the first third, which start-up would only flatter.

    python benchmarks/soak.py --model CHECKPOINT [--rows 200000] [--media 20000] [--result NAME.json]
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from PIL import Image
from record import machine, versions

NODES = 3
DISTINCT = 24
"""Pictures that differ; more would only fill the disk."""
FILES = 12
"""Inputs, each of a split or more."""
FOLDER_NAMES = 1000
"""Names of media in a folder."""
SAMPLE_SECONDS = 1.0
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "memory": 4 << 30}
PAGE = os.sysconf("SC_PAGE_SIZE")
WORDS = ("what", "does", "the", "sign", "on", "this", "wall", "say", "about", "rain", "and", "who", "wrote", "such")


def make_corpus(folder: Path, rows: int, media: int) -> list[Path]:
    """Write the chats and their media; returns the inputs."""
    rng = random.Random(18)
    pixels = np.random.default_rng(18)
    (folder / "distinct").mkdir(parents=True)
    for number in range(DISTINCT):
        picture = pixels.integers(0, 255, (56, 56, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / "distinct" / f"{number}.png")
    inputs, named = [], 0
    for number in range(FILES):
        inputs.append(folder / f"chats-{number:02d}.jsonl")
        with inputs[-1].open("w") as file:
            for row in range(number * rows // FILES, (number + 1) * rows // FILES):
                question = " ".join(rng.choices(WORDS, k=rng.randint(3, 30)))
                chat: dict[str, Any] = {}
                if row * media // rows < (row + 1) * media // rows:
                    name = f"media/{named // FOLDER_NAMES:03d}/{named:06d}.png"
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    os.link(folder / "distinct" / f"{named % DISTINCT}.png", folder / name)
                    question, chat["images"] = f"<image>{question}", [name]
                    named += 1
                answer = " ".join(rng.choices(WORDS, k=rng.randint(3, 30)))
                chat["messages"] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                file.write(json.dumps(chat) + "\n")
    assert named == media, "every media item has a name of its own"
    return inputs


@dataclass
class Memory:
    """Samples of a build: MiB of the driver and of each Ray worker, by stage, and of Ray's object store."""

    stage: Callable[[], str]
    driver: int = 0
    """Process id."""
    samples: list[tuple[str, float, list[float]]] = field(default_factory=list)
    peak_driver: float = 0.0
    peak_worker: float = 0.0
    store_mib: list[float] = field(default_factory=list)
    """What the object store held at each look."""

    def sample(self) -> None:
        """Take one sample of all processes."""
        driver = private_mib(self.driver)
        workers = [mib for pid in ray_workers() if (mib := private_mib(pid)) > 0]
        if driver and workers:
            self.samples.append((self.stage(), driver, workers))
        self.peak_driver = max(self.peak_driver, resident_mib(self.driver))
        self.peak_worker = max([self.peak_worker, *(resident_mib(pid) for pid in ray_workers())])

    def ratios(self) -> dict[str, float]:
        """Last third to first third of the encode stage, of the driver and of the largest worker."""
        encode = [(driver, max(workers)) for stage, driver, workers in self.samples if stage == "encode"]
        third = max(len(encode) // 3, 1)
        ratio = {}
        for index, name in enumerate(("driver", "worker")):
            values = [entry[index] for entry in encode]
            ratio[name] = round(mean(values[-third:]) / mean(values[:third]), 3) if values else 0.0
        return ratio


def _statm(pid: int) -> list[int]:
    try:
        return [int(number) for number in Path(f"/proc/{pid}/statm").read_text().split()]
    except (OSError, ValueError):  # it ended meanwhile
        return [0, 0, 0]


def resident_mib(pid: int) -> float:
    """Resident memory of a process, shared pages included."""
    return _statm(pid)[1] * PAGE / 2**20


def private_mib(pid: int) -> float:
    """Resident memory of a process without pages of files and of shared memory."""
    _, resident, shared, *_ = _statm(pid)
    return (resident - shared) * PAGE / 2**20


def ray_workers() -> list[int]:
    """Processes of Ray's workers below this one that run a task of a build, or ran one and wait."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:
                continue

    def is_ours(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == os.getpid():
                return True
        return False

    return [pid for pid, name in names.items() if name.startswith((b"ray::run", b"ray::IDLE")) and is_ours(pid)]


def store_mib(address: str) -> float | None:
    """MiB of objects in the object stores of all nodes, as `ray memory` tells; None where a node is just leaving."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "memory", "--stats-only", "--address", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"Plasma memory usage (\d+(?:\.\d+)?) MiB", done.stdout)
    return float(found[1]) if found else None


class Build:
    """A build on the cluster, by a driver in a process of its own."""

    def __init__(self, args: list[str], out: Path, address: str, store_seconds: float) -> None:
        self.args, self.out, self.address, self.store_seconds = args, out, address, store_seconds
        self.log = out.with_suffix(".log")
        self.memory = Memory(self.stage)
        self.process = self._start()

    def stage(self) -> str:
        """The stage under way, by what is there."""
        return "encode" if (self.out / "plan" / "plan.json").exists() else "plan"

    def shards(self) -> int:
        """Shards that are done."""
        return len(list((self.out / "receipts").glob("*.json")))

    def planned_shards(self) -> int:
        """Shards that the plan has; 0 while there is none."""
        path = self.out / "plan" / "plan.json"
        return int(json.loads(path.read_text())["shards"]) if path.exists() else 0

    def _start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "omniprep", *self.args], stdout=log, stderr=log, start_new_session=True
            )
        self.memory.driver = process.pid
        return process

    def kill_driver(self) -> None:
        """Kill -9, and the same command again."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = self._start()

    def follow(self, at_share: dict[float, Callable[[], None]]) -> float:
        """Wait for the end, sampling memory, and do what is asked when a share of the shards is there; seconds."""
        began, left = time.monotonic(), dict(at_share)
        stop = threading.Event()

        def watch_store() -> None:
            while not stop.wait(self.store_seconds):
                if (mib := store_mib(self.address)) is not None:
                    self.memory.store_mib.append(mib)

        watcher = threading.Thread(target=watch_store)
        watcher.start()
        try:
            while self.process.poll() is None:
                total = self.planned_shards()
                for share in [share for share in left if total and self.shards() >= share * total]:
                    if self.shards() < total:
                        left.pop(share)()
                self.memory.sample()
                time.sleep(SAMPLE_SECONDS)
        finally:
            stop.set()
            watcher.join()
        if self.process.returncode:
            raise SystemExit(f"the build failed: {self.log.read_text()[-3000:]}")
        if left:
            raise SystemExit("the build was over before it could be disturbed: more rows, or a smaller --shard-size")
        return time.monotonic() - began


def outcome(out: Path) -> dict[str, str]:
    """SHA-256 of every file that must not depend on how a build went."""
    names = [*(out / "shards").iterdir(), *(out / n for n in ("index.parquet", "rows.parquet", "rejected.jsonl"))]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(names)}


def facts(build: Build, seconds: float, name: str) -> dict[str, Any]:
    """A line of the result."""
    memory = build.memory
    ratios = memory.ratios()
    return {
        "build": name,
        "minutes": round(seconds / 60, 2),
        "shards": build.shards(),
        "driver_peak_mib": round(memory.peak_driver),
        "worker_peak_mib": round(memory.peak_worker),
        "driver_last_to_first_third": ratios["driver"],
        "worker_last_to_first_third": ratios["worker"],
        "object_store_peak_mib": max(memory.store_mib, default=None),
        "object_store_samples": len(memory.store_mib),
        "samples": len(memory.samples),
    }


def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both builds; returns what is recorded."""
    from ray.cluster_utils import Cluster

    inputs = make_corpus(folder / "in", options.rows, options.media)
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        nodes = [cluster.add_node(**NODE) for _ in range(NODES - 1)]
        fixed = ["--model", options.model, "--bin-length", str(options.bin_length), "--ray-address", cluster.address]
        if options.shard_size:
            fixed += ["--shard-size", str(options.shard_size)]
        lines, outcomes, lost = [], [], 0

        def lose_a_node() -> None:
            cluster.remove_node(nodes[0], allow_graceful=False)
            nodes.append(cluster.add_node(**NODE))

        for name in ("undisturbed", "killed twice"):
            out = folder / name.replace(" ", "-")
            build = Build(
                ["build", *map(str, inputs), *fixed, "--out", str(out)], out, cluster.address, options.store_seconds
            )
            disturb = {1 / 3: build.kill_driver, 2 / 3: lose_a_node} if name != "undisturbed" else {}
            seconds = build.follow(disturb)
            lines.append(facts(build, seconds, name))
            outcomes.append(outcome(out))
            lost = build.log.read_text().count("a node was lost")
            manifest = json.loads((out / "manifest.json").read_text())
        return {
            "machine": machine(),
            "versions": versions(),
            "rows_read": manifest["counts"]["rows"]["read"],
            "rows_packed": manifest["counts"]["rows"]["packed"],
            "media_items": options.media,
            "nodes": NODES,
            "kills": ["driver -9 at a third of the shards", "a node removed at two thirds"],
            "tasks_lost_with_the_node": lost,
            "equal_bytes": outcomes[0] == outcomes[1],
            "rows": lines,
        }
    finally:
        cluster.shutdown()


def main() -> None:
    """Run it, print it, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--media", type=int, default=20_000)
    parser.add_argument("--bin-length", type=int, default=4096)
    parser.add_argument("--shard-size", type=int, default=0, help="default: that of omniprep build")
    parser.add_argument(
        "--store-seconds", type=float, default=20, help="between two looks at the object store, of some seconds each"
    )
    parser.add_argument("--folder", help="where to build (default: a temporary folder)")
    parser.add_argument("--result", help="file for the result, such as benchmarks/results/soak.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="omniprep-soak-", dir=options.folder) as folder:
        result = soak(options, Path(folder))
    text = json.dumps(result, indent=1)
    print(text)
    if options.result:
        Path(options.result).write_text(text + "\n")
    if not result["equal_bytes"]:
        raise SystemExit("the bytes differ")


if __name__ == "__main__":
    main()
