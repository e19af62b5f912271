"""Encodes every case of cases.py with ms-swift 3.9 and writes tests/golden/<kind>.json: the truth of the parity tests.

    PYTHON tests/golden/make_golden.py MODEL_DIR [--only NAME ...] [--demo DIR] [--keep]

PYTHON is an environment with ms-swift 3.9.3, transformers 4.57.6, qwen_omni_utils 0.0.8, Pillow 12 (13 resizes
differently), decord, librosa and soundfile; MODEL_DIR any Qwen2.5-Omni checkpoint with the real vocabulary (weights do
not matter). Sound of videos needs an `ffmpeg` on the PATH, since librosa asks audioread, which runs it: the committed
fixtures have 5.1 (9.0 cuts AAC's end padding off, so gives other lengths).

How a row is given to the reference: a row with `messages` straight to template.encode, any other (or a case with
via="dataset") through AutoPreprocessor first, as ms-swift's datasets are. What the reference raises is kept as `error`.
Options that ms-swift reads from the environment are set before its import: one child process for each set of them.
"""

import argparse
import contextlib
import copy
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from cases import CASES, demo_cases  # noqa: E402
from codec import cpu, pack_halves, pack_numbers, sha  # noqa: E402

FILES = [HERE / f"{kind}.json" for kind in sorted({case.kind for case in CASES} | {"demo"})]
ENVIRONMENT = {
    "max_pixels": "MAX_PIXELS",
    "min_pixels": "MIN_PIXELS",
    "video_max_pixels": "VIDEO_MAX_PIXELS",
    "video_min_pixels": "VIDEO_MIN_PIXELS",
    "video_total_pixels": "VIDEO_TOTAL_PIXELS",
    "fps": "FPS",
    "fps_min_frames": "FPS_MIN_FRAMES",
    "fps_max_frames": "FPS_MAX_FRAMES",
    "use_audio_in_video": "USE_AUDIO_IN_VIDEO",
    "bbox_format": "QWENVL_BBOX_FORMAT",
}
ARGUMENTS = {
    "loss_scale": "loss_scale",
    "truncation": "truncation_strategy",
    "max_length": "max_length",
    "system": "default_system",
    "norm_bbox": "norm_bbox",
    "use_chat_template": "use_chat_template",
}
PACKAGES = [
    "ms-swift",
    "transformers",
    "qwen-omni-utils",
    "torch",
    "torchvision",
    "decord",
    "librosa",
    "soundfile",
    "soxr",
    "pillow",
    "numpy",
    "datasets",
]


def environment_of(case):
    out = {ENVIRONMENT[k]: str(int(v) if v is True else v) for k, v in case.options.items() if k in ENVIRONMENT}
    return tuple(sorted(out.items()))


class Reference:
    """ms-swift's template, with the processor's float32 output kept before it becomes bfloat16."""

    def __init__(self, model_dir):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import swift.llm.template.template.qwen as qwen
        import torch
        from swift.llm import get_model_tokenizer

        torch.set_num_threads(1)
        self.torch, self.floats = torch, {}
        cast = qwen.to_float_dtype

        def spy(data, dtype):
            self.floats = {k: v for k, v in data.items() if k.startswith("pixel_values")}
            return cast(data, dtype)

        qwen.to_float_dtype = spy
        self.model, self.processor = get_model_tokenizer(model_dir, model_type="qwen2_5_omni", device_map="cpu")
        image = self.processor.image_processor
        self.mean = torch.tensor(image.image_mean).reshape(1, 3, 1) * 255
        self.std = torch.tensor(image.image_std).reshape(1, 3, 1) * 255
        self.templates = {}

    def template(self, options):
        from swift.llm import get_template

        arguments = {"max_length": 32768} | {ARGUMENTS[k]: v for k, v in options.items() if k in ARGUMENTS}
        key = json.dumps(arguments, sort_keys=True)
        if key not in self.templates:
            template = get_template("qwen2_5_omni", self.processor, **arguments)
            template.model = self.model
            template.set_mode("train")
            template.packing = template.padding_free = True
            self.templates[key] = template
        return self.templates[key]

    def standard(self, row, via):
        if "messages" in row and via != "dataset":
            return {k: [v] if k in ("images", "videos", "audios") and isinstance(v, str) else v for k, v in row.items()}
        from datasets import Dataset
        from swift.llm.dataset.preprocessor import AutoPreprocessor

        rows = AutoPreprocessor()(Dataset.from_list([row]), load_from_cache_file=False)
        if not len(rows):
            raise LookupError("AutoPreprocessor dropped the row")
        return {k: v for k, v in rows[0].items() if v is not None}

    def encode(self, case):
        try:
            template = self.template(case.options)
            row = self.standard(copy.deepcopy(case.row), case.via)
            out = dict(template.encode(row, return_length=True))
            positions = template.packing_row([dict(out)])["position_ids"]
        except Exception as error:
            text = re.sub(r"0x[0-9a-f]+", "0x", str(error).replace(os.getcwd(), "."))
            return {"error": f"{type(error).__name__}: {text[:120]}"}
        return self.describe(out, positions, case.hashes_only)

    def describe(self, out, positions, hashes_only):
        torch = self.torch
        ids, labels = out["input_ids"], out["labels"]
        assert all(t == -100 or t == i for i, t in zip(ids, labels, strict=True))
        assert positions.shape == (4, 1, len(ids)) and torch.equal(positions[0, 0], torch.arange(len(ids)))
        mask = [int(t != -100) for t in labels]
        rope = positions[1:, 0].long()
        plain = bool((rope == positions[0]).all())
        res = {"length": len(ids)}
        if hashes_only:
            res["ids_sha"] = sha(torch.tensor(ids, dtype=torch.int32).numpy().tobytes())
        else:
            res["input_ids"] = pack_numbers(ids)
        res["labelled"] = pack_numbers(mask)
        if out.get("loss_scale") is not None:
            res["loss_scale"] = pack_numbers([float(x) for x in out["loss_scale"]])
        res["position_ids"] = "plain" if plain else [pack_numbers(row.tolist()) for row in rope]
        for name in ("image", "video"):
            if f"{name}_grid_thw" in out:
                res[f"{name}_grid_thw"] = out[f"{name}_grid_thw"].tolist()
                key = "pixel_values" if name == "image" else "pixel_values_videos"
                res[key] = self.pixels(out[key], self.floats[key])
        if "video_second_per_grid" in out:
            res["video_second_per_grid"] = [float(x) for x in out["video_second_per_grid"]]
        if "input_features" in out:
            mask = out["feature_attention_mask"].bool()
            res["audio_frames"] = mask.sum(-1).tolist()
            res["input_features"] = [self.features(f, m) for f, m in zip(out["input_features"], mask, strict=True)]
        known = {
            "input_ids",
            "labels",
            "loss_scale",
            "length",
            "image_grid_thw",
            "video_grid_thw",
            "pixel_values",
            "pixel_values_videos",
        }
        known |= {"video_second_per_grid", "input_features", "feature_attention_mask", "channel"}
        assert set(out) <= known, set(out) - known
        return res

    def pixels(self, half, floats):
        """bf16 and float32 hashes, and that of the uint8 content in the same order."""
        torch = self.torch
        assert half.dtype == torch.bfloat16 and torch.equal(floats.to(torch.bfloat16), half)
        x = floats.reshape(len(floats), 3, -1) * self.std + self.mean
        byte = x.round().to(torch.uint8)
        again = (byte.float() - self.mean) / self.std
        assert torch.equal(again.reshape(floats.shape), floats), "not from uint8"
        return {
            "bf16": sha(half.contiguous().view(torch.int16).numpy().tobytes()),
            "f32": sha(floats.contiguous().numpy().tobytes()),
            "u8": sha(byte.contiguous().numpy().tobytes()),
            "sample": byte.flatten()[:: max(1, byte.numel() // 64)].tolist()[:64],
        }

    def features(self, clip, mask):
        """Hash of the (128, T) valid frames as bf16, and about 250 of their values for another CPU."""
        bits = clip[:, mask].contiguous().view(self.torch.int16)
        flat = bits.flatten()
        step = max(97, flat.numel() // 256) | 1
        return {
            "bf16": sha(bits.numpy().tobytes()),
            "step": step,
            "sample": pack_halves([v & 0xFFFF for v in flat[::step].tolist()]),
        }


def child(model_dir, names, base, out):
    os.chdir(base)
    reference = Reference(model_dir)
    wanted = set(names)
    cases = [c for c in [*CASES, *demo_cases(base)] if c.name in wanted]
    Path(out).write_text(json.dumps({case.name: reference.encode(case) for case in cases}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--demo", help="the folder of the demonstration data: makes demo.json")
    parser.add_argument(
        "--keep", action="store_true", help="keep the cases that the files have already, make only new ones"
    )
    parser.add_argument("--child")
    args = parser.parse_args()
    model = str(Path(args.model).resolve())
    if args.child:
        job = json.loads(Path(args.child).read_text())
        return child(model, job["names"], job["base"], job["out"])

    old = {}
    for path in FILES:
        if path.exists():
            old.update(json.loads(path.read_text())["cases"])
    jobs, fresh = {}, set()
    sources = [(CASES, HERE / "media")]
    if args.demo:
        sources.append((demo_cases(args.demo), Path(args.demo).resolve()))
    for cases, base in sources:
        for case in cases:
            if (args.only and not any(case.name.startswith(o) for o in args.only)) or (args.keep and case.name in old):
                continue
            jobs.setdefault((str(base), environment_of(case)), []).append(case.name)
    for (base, environment), names in jobs.items():
        print(f"{len(names):4d} cases  {dict(environment)}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            job, out = Path(folder, "job.json"), Path(folder, "out.json")
            job.write_text(json.dumps({"names": names, "base": base, "out": str(out)}))
            command = [sys.executable, __file__, model, "--child", str(job)]
            log = subprocess.run(
                command, env=os.environ | dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if log.returncode:
                sys.exit(log.stdout[-4000:])
            old.update(json.loads(out.read_text()))
            fresh.update(names)
    about = {"versions": {name: version(name) for name in PACKAGES}, "cpu": cpu(), "ffmpeg": ffmpeg_version()}
    every = {c.name: c for cases, _ in sources for c in cases}
    for kind in sorted({c.kind for c in every.values()}):
        names = [name for name, c in every.items() if c.kind == kind and name in old]
        if not fresh.intersection(names):
            continue
        made = {name: old[name] for name in names}
        lines = ",\n".join(
            f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in made.items()
        )
        (HERE / f"{kind}.json").write_text(f'{{"made_with": {json.dumps(about)},\n"cases": {{\n{lines}\n}}}}\n')
    size = sum(path.stat().st_size for path in FILES if path.exists())
    print(f"{len(every)} cases, {sum('error' in v for v in old.values())} errors, {size / 1e6:.2f} MB of fixtures")


def ffmpeg_version():
    with contextlib.suppress(OSError):
        return (
            subprocess.run(["ffmpeg", "-version"], stdout=subprocess.PIPE, text=True)
            .stdout.split("Copyright")[0]
            .strip()
        )
    return "none"


if __name__ == "__main__":
    main()
