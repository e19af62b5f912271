"""The fixtures' own compact text for integer and weight lists, used by make_golden.py and test_parity.py.

Items are separated by spaces: `v` one value, `v*n` n times v, `v~n` the ramp v, v+1, ... of n values. Rasters of
positions, runs of placeholders and masks shrink to a few items; text ids stay readable. Tensors are kept as SHA-256 of
their bytes.
"""

import base64
import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

__all__ = ["cpu", "pack_halves", "pack_numbers", "sha", "unpack_halves", "unpack_numbers"]


def pack_numbers(values: Sequence[float]) -> str:
    """Encode ints, or floats that are exact in decimal."""
    items, i, n = [], 0, len(values)
    while i < n:
        same = ramp = 1
        while i + same < n and values[i + same] == values[i]:
            same += 1
        while i + ramp < n and values[i + ramp] == values[i] + ramp:
            ramp += 1
        text = f"{values[i]:g}" if isinstance(values[i], float) else str(values[i])
        if same >= 2 and same >= ramp:
            items.append(f"{text}*{same}")
            i += same
        elif ramp >= 3:
            items.append(f"{text}~{ramp}")
            i += ramp
        else:
            items.append(text)
            i += 1
    return " ".join(items)


def unpack_numbers(text: str) -> list[float]:
    """The inverse of `pack_numbers`: ints where the text has ints."""
    out: list[float] = []
    for item in text.split():
        head, _, count = item.replace("~", "*").partition("*")
        value = float(head) if "." in head or "e" in head else int(head)
        if "~" in item:
            out.extend(value + k for k in range(int(count)))
        else:
            out.extend([value] * int(count or 1))
    return out


def pack_halves(values: Sequence[int]) -> str:
    """uint16 bit patterns of bf16 values as base64 (little endian)."""
    return base64.b64encode(struct.pack(f"<{len(values)}H", *values)).decode()


def unpack_halves(text: str) -> list[int]:
    """The inverse of `pack_halves`."""
    raw = base64.b64decode(text)
    return list(struct.unpack(f"<{len(raw) // 2}H", raw))


def sha(data: bytes) -> str:
    """SHA-256 in hex, cut to 32 digits: enough to tell tensors apart."""
    return hashlib.sha256(data).hexdigest()[:32]


def cpu() -> str:
    """Name, family, model and a hash of the features of this CPU, which choose the FFT kernels of a spectrogram."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return "unknown"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    names = [facts.get(key, "?") for key in ("model name", "cpu family", "model")]
    return " ".join([*names, sha(facts.get("flags", "").encode())[:8]])
