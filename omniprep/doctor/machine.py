"""What is installed, what decodes media, and which fast paths are taken: the first half of `omniprep doctor`.

Imports no module of omniprep that could fail for a missing package. The packages and versions that are needed are read
from the package's own metadata, so pyproject.toml lists them once.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

EXTRAS = {
    "train": "omniprep train and infer",
    "report": "plots in report.html and on dataset cards",
    "s3": "s3:// inputs and outputs",
    "demo": "omniprep init-model",
    "jxl": "--pixel-codec jxl",
    "heic": "HEIC and HEIF pictures",
    "delta": "Delta tables as inputs",
    "iceberg": "Iceberg tables as inputs",
    "lance": "Lance tables as inputs",
    "metrics": "--metrics-port",
}
"""What each extra is for; those of developers are not looked for."""


SEVERITY = {"ok": 0, "slow": 1, "absent": 2, "differs": 3, "missing": 4}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check-up."""

    name: str
    state: Literal["ok", "missing", "absent", "slow", "differs"]
    """missing: omniprep cannot work without it; absent: something optional; slow: works, but not the fast way; differs:
    computes otherwise than omniprep does.
    """
    text: str
    fix: str = ""
    """A command, or what else to do."""


def system() -> list[Finding]:
    """omniprep, Python, the machine."""
    facts = [
        ("omniprep", importlib.metadata.version("omniprep")),
        ("python", platform.python_version()),
        ("platform", platform.platform(terse=True)),
        ("cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())),
    ]
    return [Finding(name, "ok", text) for name, text in facts]


def packages() -> list[Finding]:
    """Every package that omniprep asks for, with its version or the command that installs it."""
    from packaging.requirements import Requirement

    findings: dict[str, Finding] = {}
    for text in importlib.metadata.requires("omniprep") or ():
        wanted = Requirement(text)
        extra = re.search(r"""extra == ["']([\w-]+)["']""", text)
        name = extra[1] if extra else ""
        if (name and name not in EXTRAS) or (wanted.marker and not wanted.marker.evaluate({"extra": name})):
            continue
        # Several parts may ask for one package (training for a newer transformers): one line, the worst of them.
        finding = _package(wanted.name, str(wanted.specifier), name)
        key = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if key not in findings or SEVERITY[finding.state] > SEVERITY[findings[key].state]:
            findings[key] = finding
    return sorted(findings.values(), key=lambda finding: (finding.state == "absent", finding.name))


def _package(name: str, versions: str, extra: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    state: Literal["missing", "absent"] = "absent" if extra else "missing"
    fix = f"pip install 'omniprep[{extra}]'" if extra else f"pip install '{name}{versions}'"
    purpose = f"; {EXTRAS[extra]} needs it" if extra else ""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, state, f"not installed{purpose}", fix)
    if not SpecifierSet(versions).contains(version, prereleases=True):
        return Finding(name, state, f"{version}, but {versions} is wanted{purpose}", f"pip install '{name}{versions}'")
    return Finding(name, "ok", version)


def decoders() -> list[Finding]:
    """What reads pictures, sound and video here."""
    import soundfile
    from PIL import Image, features

    from omniprep.media.image import heif_is_read
    from omniprep.media.track import sound_decoder
    from omniprep.media.video import backend

    Image.init()
    heif_is_read()  # which makes Pillow know the format
    formats = [name for name in ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "JXL", "HEIF") if name in Image.OPEN]
    turbo = f" (libjpeg-turbo {features.version('libjpeg_turbo')})" if features.check("libjpeg_turbo") else ""
    containers = sound_decoder()
    ffmpeg = shutil.which("ffmpeg")
    video = backend()
    wheels = "it has wheels for Linux on x86-64 alone; frames may differ from the reference's"
    return [
        Finding("pictures", "ok", f"Pillow: {', '.join(formats)}{turbo}"),
        Finding("sound", "ok", f"libsndfile: {', '.join(sorted(soundfile.available_formats())[:40])}"),
        Finding("sound in containers", "ok", f"{containers}{f' ({ffmpeg})' if ffmpeg else ''}: mp4, m4a, webm, mkv …"),
        Finding("video", "ok", "decord, as the reference; PyAV in its place where the frames are the same")
        if video == "decord"
        else Finding("video", "slow", f"PyAV, since decord is not installed ({wheels})", "pip install decord"),
    ]


def fast_paths() -> Iterator[Finding]:
    """What is fast here, and what is not but could be."""
    import torch

    from omniprep.media.resample import image_is_fast, video_is_fast

    for name, fast, rival in (("pictures", image_is_fast(), "Pillow"), ("video frames", video_is_fast(), "torch")):
        text = f"compiled resizing, equal to {rival}'s in every bit" if fast else f"resizing by {rival} itself"
        fix = "pip install 'numba>=0.59'; where it is installed, this version of the library computes otherwise"
        yield Finding(name, "ok" if fast else "slow", text, "" if fast else fix)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    yield Finding("gpu", "ok" if gpu else "absent", gpu or "none: training runs on the CPU")
    kernels = {
        "torch's variable-length kernel": "torch.nn.attention.varlen",
        "flash-attention 3": "flash_attn_interface",
        "flash-attention 2": "flash_attn",
    }
    kernel = next((name for name, module in kernels.items() if importlib.util.find_spec(module) is not None), "")
    if gpu:
        fix = "" if kernel else "pip install 'torch>=2.10'"
        yield Finding("attention", "ok" if kernel else "slow", kernel or "torch's SDPA, row by row", fix)
    token = bool(os.environ.get("HF_TOKEN")) or _has_hub_token()
    text = "logged in" if token else "not logged in: omniprep push, and checkpoints behind a form, need it"
    yield Finding("Hugging Face Hub", "ok" if token else "absent", text, "" if token else "hf auth login")


def _has_hub_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
