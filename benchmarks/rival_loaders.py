"""The rivals' side of load_rivals.py and load_jpeg.py; runs in an environment of its own, which holds the libraries.

mosaicml-streaming asks for older versions of numpy and transformers than omniprep takes, so no environment holds both:

    python3.11 -m venv RIVALS
    RIVALS/bin/pip install torch pillow mosaicml-streaming litdata webdataset megatron-energon

and OMNIPREP_RIVALS_PYTHON=RIVALS/bin/python. The script writes items into each library's own files and answers with a
line of JSON: the libraries that are there, and why others are not. From then on each line of standard input names a
library, and the answer has the CPU seconds, of all threads, of one pass over all items.

Items are folders of files, which `make_items` writes: of `bins` each file is an array's bytes, of `jpeg` there is one
file, a photograph, and the size that the model sees.
"""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Item = dict[str, bytes]
Method = Callable[[], Iterator[object]]
SIZE = "size"
"""The part of an item of `jpeg` that has width and height, as JSON."""


def make_items(folder: Path, items: list[Item]) -> None:
    """Write items for `read_items`."""
    for number, item in enumerate(items):
        (folder / f"{number:06d}").mkdir(parents=True)
        for name, data in item.items():
            (folder / f"{number:06d}" / name).write_bytes(data)


def read_items(folder: Path) -> list[Item]:
    return [{file.name: file.read_bytes() for file in sorted(part.iterdir())} for part in sorted(folder.iterdir())]


def tensors(item: dict[str, Any]) -> dict[str, Any]:
    """Tensors that may be written to: these libraries hand out read-only bytes or views of a map, so this copies."""
    import numpy as np
    import torch

    dtypes = {"pixel_values": np.uint8}
    return {
        name: torch.from_numpy(np.frombuffer(data, dtypes.get(name, np.int32)).copy()) for name, data in item.items()
    }


def decoded(item: dict[str, Any]) -> Any:
    """A JPEG as the model's size of pixels, a uint8 tensor (height, width, 3)."""
    import numpy as np
    import torch
    from PIL import Image

    image = Image.open(io.BytesIO(item["jpg"])).convert("RGB")
    return torch.from_numpy(np.array(image.resize(json.loads(item[SIZE]), Image.Resampling.BICUBIC)))


def mosaicml(items: list[Item], folder: Path, finish: Callable[[dict[str, Any]], object]) -> Method:
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(out=str(folder), columns=dict.fromkeys(items[0], "bytes"), size_limit=1 << 28) as writer:
        for item in items:
            writer.write(item)
    ds = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    return lambda: (finish(ds[number]) for number in range(len(ds)))


def litdata(items: list[Item], folder: Path, finish: Callable[[dict[str, Any]], object]) -> Method:
    from litdata.streaming import StreamingDataset
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_bytes=1 << 28)
    for number, item in enumerate(items):
        cache[number] = item
    cache.done()
    cache.merge()
    ds = StreamingDataset(str(folder), shuffle=False)
    return lambda: (finish(ds[number]) for number in range(len(items)))


def write_tar(items: list[Item], folder: Path) -> Path:
    import webdataset as wds

    folder.mkdir()
    with wds.TarWriter(str(folder / "items-000.tar")) as writer:
        for number, item in enumerate(items):
            writer.write({"__key__": f"{number:06d}", **item})
    return folder / "items-000.tar"


def webdataset(items: list[Item], folder: Path, finish: Callable[[dict[str, Any]], object]) -> Method:
    import webdataset as wds

    names = list(items[0])
    ds = wds.WebDataset(str(write_tar(items, folder)), shardshuffle=False)
    return lambda: (finish({name: item[name] for name in names}) for item in ds)


def energon(items: list[Item], folder: Path, finish: Callable[[dict[str, Any]], object]) -> Method:
    from megatron.energon import DefaultTaskEncoder, WorkerConfig, get_loader, get_val_dataset, stateless
    from megatron.energon.flavors.webdataset import BaseWebdatasetFactory
    from megatron.energon.flavors.webdataset.config import MAIN_FOLDER_NAME
    from megatron.energon.task_encoder import Cooker

    names = list(items[0])
    tar = write_tar(items, folder)
    BaseWebdatasetFactory.prepare_dataset(folder, [tar.name], split_parts_ratio=[("val", 1.0)], workers=1)
    description = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    (folder / MAIN_FOLDER_NAME / "dataset.yaml").write_text(description)

    @stateless
    def cook(sample: dict[str, Any]) -> object:
        return finish({name: sample[name] for name in names})

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
        decoder = None
        cookers = (Cooker(cook),)

        def encode_sample(self, sample: object) -> object:
            return sample

    workers = WorkerConfig(rank=0, world_size=1, num_workers=0)
    ds = get_val_dataset(folder, worker_config=workers, batch_size=None, task_encoder=Encoder())
    loader = get_loader(ds)
    return lambda: iter(loader)


MAKERS = {"MosaicML Streaming": mosaicml, "LitData": litdata, "WebDataset": webdataset, "Energon": energon}


class Rivals:
    """The libraries of OMNIPREP_RIVALS_PYTHON in their own process, with `items` in each one's files below `folder`."""

    def __init__(self, python: str | None, kind: str, items: list[Item], folder: Path) -> None:
        self.labels: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        if not python:
            print("the libraries are left out: OMNIPREP_RIVALS_PYTHON (benchmarks/rival_loaders.py)")
            return
        make_items(folder / "items", items)
        (folder / "libraries").mkdir()
        command = [python, __file__, kind, str(folder / "items"), str(folder / "libraries")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.count = len(items)
        answer = self._answer()
        self.labels = answer["ready"]
        for label, reason in answer["absent"].items():
            print(f"{label}: left out ({reason})")

    def seconds(self, label: str) -> float:
        """CPU seconds of one pass over all items."""
        assert self.process is not None and self.process.stdin is not None
        print(label, file=self.process.stdin, flush=True)
        answer = self._answer()
        assert answer["count"] == self.count, (label, answer)
        return float(answer["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")
        if not answer:
            raise RuntimeError(f"the rivals' process ended with {self.process.wait()}")
        return answer

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def main() -> None:
    kind, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ.setdefault("RANK", "0")
    import torch

    torch.set_num_threads(1)
    items = read_items(source)
    finish: Callable[[dict[str, Any]], object] = decoded if kind == "jpeg" else tensors
    ways, absent = {}, {}
    for label, make in MAKERS.items():
        try:
            ways[label] = make(items, target / make.__name__, finish)
        except ImportError as error:
            absent[label] = str(error)
    print(json.dumps({"ready": list(ways), "absent": absent}), file=answers, flush=True)
    for line in sys.stdin:
        begin = time.process_time()
        count = sum(1 for _ in ways[line.strip()]())
        print(json.dumps({"seconds": time.process_time() - begin, "count": count}), file=answers, flush=True)


if __name__ == "__main__":
    main()
