"""A build of data_samples holds the bytes it held before: a change of structure must not change a dataset.

The committed hashes (tests/golden/shards.json) are of the values of each column of each bin. Spectrograms are left out:
their FFT library chooses its code by CPU, so their bytes differ between machines (docs/format.md). Pixels are stored
raw: what a codec makes of them depends on the version of its library, and comes back as raw (tests/test_pixel_codec.py).

Where a change is meant (a fault mended, a new rule), write the hashes again and say why in the commit:

    python -m tests.test_shard_hashes MODEL_DIR
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "shards.json"
OPTION_SETS: dict[str, list[str]] = {
    "default": ["--bin-length", "2048"],
    "sound": [
        "--bin-length",
        "4096",
        "--use-audio-in-video",
        "--silent-video",
        "skip-audio",
        "--loss-scale",
        "last_round",
    ],
    "left": ["--bin-length", "1024", "--max-length", "700", "--truncation", "left"],
}
CPU_DEPENDENT = {"input_features"}


def column_hashes(shards: Path) -> dict[str, str]:
    """SHA-256 of the values of each column over all bins of all shards, in order; a column of nulls hashes as such."""
    digests: dict[str, hashlib._Hash] = {}
    for path in sorted(shards.glob("*.arrow")):
        with pa.OSFile(str(path)) as file:
            reader = pa.ipc.open_file(file)
            for batch in map(reader.get_batch, range(reader.num_record_batches)):
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    digest = digests.setdefault(name, hashlib.sha256())
                    for value in column:
                        digest.update(_bytes_of(value))
    return {name: digest.hexdigest()[:32] for name, digest in sorted(digests.items()) if name not in CPU_DEPENDENT}


def _bytes_of(value: pa.Scalar) -> bytes:
    if not value.is_valid:
        return b"null"
    if pa.types.is_large_binary(value.type):
        return bytes(value.as_buffer())
    array = value.values.to_numpy(zero_copy_only=False)
    return f"{array.dtype.str}{len(array)}:".encode() + np.ascontiguousarray(array).tobytes()


def build_hashes(option_set: str, model: Path, out: Path) -> dict[str, str]:
    """Hashes of a build of data_samples with the options of a set, in this process."""
    from omniprep.cli.main import run

    # Without the damaged rows: whether those are rejected while planning or while decoding moves others between bins.
    paths = (path for path in (ROOT / "data_samples").glob("*.json*") if path.name != "broken.jsonl")
    inputs = sorted(str(path.relative_to(ROOT)) for path in paths)
    arguments = ["--model", str(model), "--workers", "0", "--quiet", "--out", str(out), "--pixel-codec", "raw"]
    arguments += OPTION_SETS[option_set]
    assert run(["build", *inputs, *arguments]) == 0
    return column_hashes(out / "shards")


@pytest.mark.parametrize("option_set", OPTION_SETS)
def test_shards_of_data_samples_are_unchanged(
    option_set: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    expected = json.loads(GOLDEN.read_text())[option_set]
    assert build_hashes(option_set, model_dir, tmp_path / "out") == expected


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        hashes = {name: build_hashes(name, Path(sys.argv[1]), Path(folder) / name) for name in OPTION_SETS}
    GOLDEN.write_text(json.dumps(hashes, indent=1) + "\n")
