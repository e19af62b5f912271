"""A build whose media lie in a store that takes 50 ms to answer, against the same build from the local disk.

The store is a small server of S3's reads (ranges, ETags, listings) in a process of its own, which sleeps before each
answer; moto would take more of the processor than the build. Seconds are those of the tasks, as the manifest has them:
without the start of the process. Nothing is held between planning and encoding, as where other processes encode.

    python benchmarks/store_latency.py --model CHECKPOINT [--pictures 400] [--milliseconds 50]
"""

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image
from record import leave_out_report, load_kernels, record

BUCKET = "lake"
ROUNDS = 3
"""Builds of each kind, in turn; the fastest counts, since other programs only ever slow one down."""


def serve(folder: str, port: int, milliseconds: float) -> None:
    """Serve the files of a folder as the objects of a bucket, each answer late."""
    from aiohttp import web

    def headers(path: Path) -> dict[str, str]:
        return {
            "ETag": f'"{hashlib.md5(path.name.encode()).hexdigest()}"',
            "Last-Modified": "Thu, 26 Nov 2026 00:00:00 GMT",
        }

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(milliseconds / 1000)
        key = request.match_info.get("key")
        if not key:
            return web.Response(
                text=listing(Path(folder), request.query.get("prefix", "")), content_type="application/xml"
            )
        path = Path(folder, key)
        if not path.is_file():
            return web.Response(
                status=404, text="<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml"
            )
        size = path.stat().st_size
        if request.method == "HEAD":
            return web.Response(headers={**headers(path), "Content-Length": str(size)})
        span = request.http_range
        if span.start is None:
            return web.Response(body=path.read_bytes(), headers=headers(path))
        data = path.read_bytes()[span]
        content_range = f"bytes {span.start}-{span.start + len(data) - 1}/{size}"
        return web.Response(status=206, body=data, headers={**headers(path), "Content-Range": content_range})

    def listing(top: Path, prefix: str) -> str:
        entries = "".join(
            f"<Contents><Key>{escape(path.name)}</Key><Size>{path.stat().st_size}</Size><ETag>{headers(path)['ETag']}</ETag>"
            "<LastModified>2026-11-26T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
            for path in sorted(top.iterdir())
            if path.name.startswith(prefix)
        )
        return f"<ListBucketResult><Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"

    app = web.Application()
    app.router.add_route("*", f"/{BUCKET}/{{key:.*}}", answer)
    app.router.add_route("*", f"/{BUCKET}", answer)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


def write_corpus(folder: Path, pictures: int) -> None:
    """Rows with a photograph-like picture each: 800x600 pixels, JPEG of about 130 KB."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(pictures):
        coarse = Image.fromarray(rng.integers(0, 255, (75, 100, 3), dtype=np.uint8)).resize(
            (800, 600), Image.Resampling.BICUBIC
        )
        noise = rng.integers(-12, 12, (600, 800, 3))
        pixels = np.clip(np.asarray(coarse, np.int16) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=85)
        user = {"role": "user", "content": "<image>What is this?"}
        rows.append({"messages": [user, {"role": "assistant", "content": "A picture."}], "images": [f"{number}.jpg"]})
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def build(model: str, chats: str, out: Path, *, fetch_ahead: bool = True) -> dict[str, float]:
    """Plan and encode; seconds of wall time of the tasks, and of the processor."""
    from omniprep.compiler.build import build as run_build
    from omniprep.compiler.build import plan_only
    from omniprep.config import BuildConfig
    from omniprep.media import remote
    from omniprep.progress import QuietReporter

    ahead_rows, remote.AHEAD_ROWS = remote.AHEAD_ROWS, remote.AHEAD_ROWS if fetch_ahead else 1
    try:
        config = BuildConfig(inputs=(chats,), model=model, bin_length=8192, workers=0, out=str(out), overwrite=False)
        remote.remote_media.clear()
        plan_only(config, QuietReporter(open(os.devnull, "w")))  # noqa: SIM115
        remote.remote_media.clear()
        began = time.process_time()
        manifest = run_build(config, QuietReporter(open(os.devnull, "w")))  # noqa: SIM115
    finally:
        remote.AHEAD_ROWS = ahead_rows
    seconds = manifest["seconds"]
    return {"plan": seconds["plan"], "encode": seconds["encode"], "cpu": time.process_time() - began}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--milliseconds", type=float, default=50.0)
    args = parser.parse_args()
    leave_out_report()
    load_kernels()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        write_corpus(folder / "data", args.pictures)
        process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(str(folder / "data"), port, args.milliseconds), daemon=True
        )
        process.start()
        while process.is_alive():
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        kinds: dict[str, dict[str, Any]] = {
            "local disk": {"chats": str(folder / "data" / "chats.jsonl")},
            f"store, {args.milliseconds:g} ms": {"chats": f"s3://{BUCKET}/chats.jsonl"},
            f"store, {args.milliseconds:g} ms, one row at a time": {
                "chats": f"s3://{BUCKET}/chats.jsonl",
                "fetch_ahead": False,
            },
        }
        best: dict[str, dict[str, float]] = {}
        for turn in range(ROUNDS):
            for number, (kind, options) in enumerate(kinds.items()):
                took = build(args.model, out=folder / f"out-{turn}-{number}", **options)
                before = best.get(kind)
                if before is None or took["plan"] + took["encode"] < before["plan"] + before["encode"]:
                    best[kind] = took
        process.terminate()
        process.join()
        sizes = [path.stat().st_size for path in (folder / "data").glob("*.jpg")]
    local = best["local disk"]["plan"] + best["local disk"]["encode"]
    rows = []
    for kind, took in best.items():
        total = took["plan"] + took["encode"]
        rows.append(
            {
                "media from": kind,
                "plan s": round(took["plan"], 2),
                "encode s": round(took["encode"], 2),
                "pictures/s": round(args.pictures / total, 1),
                "against local": round(local / total, 3),
                "CPU ms/picture": round(1000 * took["cpu"] / args.pictures, 1),
            }
        )
    # Other programs on the machine slow what computes, not what waits: then a store looks better than it is.
    record(
        "store_latency",
        rows,
        load_average=os.getloadavg()[0],
        pictures=args.pictures,
        mean_bytes=int(np.mean(sizes)),
        rounds=ROUNDS,
    )


if __name__ == "__main__":
    sys.exit(main())
