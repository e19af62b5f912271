"""What a token, a patch and a spectrogram frame take: bytes in a shard, and seconds of one core to encode.

One table for all that must guess before anything is encoded: where shards are cut (`--shard-size`), which shard a
worker takes first, and what `omniprep plan` promises. Seconds are from benchmarks/results/build.json: CPU time of whole
builds on one core of the machine named there. They only rank tasks and give an order of magnitude; `plan --measure`
times real rows.
"""

import numpy as np
from numpy.typing import NDArray

TOKEN_BYTES = 20
"""input_ids, labels and three position ids of four bytes each; a loss scale is not counted, few builds have one."""
PATCH_BYTES = 900
"""Between the 588 bytes of an image patch (14 x 14 x 3) and the 1,176 of a video patch (two frames), uncompressed."""
FRAME_BYTES = 256
"""128 mel bands in bfloat16."""

TOKEN_SECONDS = 2.6e-6
IMAGE_PATCH_SECONDS = 8e-6
VIDEO_PATCH_SECONDS = 43e-6
"""A video is decoded up to the last frame that is taken; films of an hour take far longer."""
FRAME_SECONDS = 24e-6
"""A frame of a spectrogram, 10 ms of sound."""


def stored_bytes(
    tokens: NDArray[np.int64], patches: NDArray[np.int64], audio_frames: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Bytes that rows take in a shard, about; all arrays are int64 (rows,)."""
    return tokens * TOKEN_BYTES + patches * PATCH_BYTES + audio_frames * FRAME_BYTES


def encode_seconds(
    tokens: NDArray[np.int64], patches: NDArray[np.int64], audio_frames: NDArray[np.int64], has_video: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Seconds that one core takes to encode rows, about: float64 (rows,).

    A row's patches are priced as video patches where it holds a video: the plan does not count them apart.
    """
    patch_seconds = np.where(has_video, VIDEO_PATCH_SECONDS, IMAGE_PATCH_SECONDS)
    return TOKEN_SECONDS * tokens + patch_seconds * patches + FRAME_SECONDS * audio_frames
