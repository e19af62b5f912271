"""What a token, a patch and an audio frame take: bytes in a shard, and seconds of one core to encode.

One table for all that must guess before anything is encoded: where shards are cut (`--shard-size`), which shard a
worker takes first, and what `omniprep plan` promises. The prices of media stand in omniprep/modalities.py. Seconds are
from benchmarks/results/build.json: CPU time of whole builds on one core of the machine named there. They only rank
tasks and give an order of magnitude; `plan --measure` times real rows.
"""

import numpy as np
from numpy.typing import NDArray

from omniprep.modalities import MODALITIES

TOKEN_BYTES = 20
"""input_ids, labels and three position ids of four bytes each; a loss scale is not counted, few builds have one."""
TOKEN_SECONDS = 2.6e-6


def stored_bytes(
    tokens: NDArray[np.int64], patches: NDArray[np.int64], audio_frames: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Bytes that rows take in a shard, about; all arrays are int64 (rows,)."""
    return tokens * TOKEN_BYTES + patches * MODALITIES["image"].bytes + audio_frames * MODALITIES["audio"].bytes


def encode_seconds(
    tokens: NDArray[np.int64], patches: NDArray[np.int64], audio_frames: NDArray[np.int64], has_video: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Seconds that one core takes to encode rows, about: float64 (rows,).

    A row's patches are priced as video patches where it holds a video: the plan does not count them apart.
    """
    patch_seconds = np.where(has_video, MODALITIES["video"].seconds, MODALITIES["image"].seconds)
    return TOKEN_SECONDS * tokens + patch_seconds * patches + MODALITIES["audio"].seconds * audio_frames
