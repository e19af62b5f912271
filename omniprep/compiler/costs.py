"""What rows cost: bytes in a shard, seconds of one core to encode, and work of the model that trains on them.

The only place for such guesses: where shards are cut (`--shard-size`), which shard a worker takes first, what
`omniprep plan` promises, and which bins `BinSampler` puts into one step. The prices of Qwen's media stand in
omniprep/modalities.py, those of other families' bytes are learned (`unit_bytes`), what a codec needs of the pixels'
bytes follows from the sizes of the files that they are made of (`pixel_share`) and from the codec. Seconds are CPU time
of whole builds on one core (benchmarks/results/build.json names the machine): they rank tasks and give an order of
magnitude; `plan --measure` times real rows. tests/test_costs.py holds all of it against builds and committed results.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep.families.columns import blank_item
from omniprep.families.context import FamilyContext
from omniprep.families.kinds import Decoded, Item, MediaMeta
from omniprep.media.image import ImageHeader
from omniprep.modalities import MODALITIES
from omniprep.shards.codecs import FALLBACK, load_speed, size_of_delta
from omniprep.shards.schema import storage_dtype

TOKEN_BYTES = 20
"""input_ids, labels and three position ids of four bytes each; a loss scale is not counted, few builds have one."""
TOKEN_SECONDS = 1.7e-6
TYPICAL_SHARE = 0.33
"""`pixel_share` of photographs and films, where the files are not known."""
_MOST_BITS, _VIDEO_BITS = 14.0, 7.0
"""Bits a pixel that delta makes at most of photographs (12 to 14 of the sharpest), and of films (6 to 8)."""
_LOSSY = ("JPEG", "WEBP", "AVIF", "HEIF", "JPEG2000")

ENCODE_COPIES = 3
"""Times that a bin's arrays exist at once: as its rows, laid end to end, and as the bin before it that is written."""

Facts = Mapping[str, NDArray[Any]]
"""Columns of rows, (rows,) each: length, patches, audio_frames, file_bytes, pixel_share, and the items of each
modality."""


_REPEATED = {"patches": "repeated_patches", "audio_frames": "repeated_frames"}
UnitBytes = Mapping[str, Sequence[float]]
"""Modality → bytes that a unit of its tower's work takes in a shard: of pixels, before --pixel-codec, and of others."""
QWEN_BYTES: UnitBytes = {
    name: (float(modality.bytes), 0.0) if modality.work == "patches" else (0.0, float(modality.bytes))
    for name, modality in MODALITIES.items()
}


def unit_bytes(ctx: FamilyContext) -> UnitBytes:
    """What a unit of work takes with a family: learned from a blank item, where its columns are not of Qwen's form.

    A family that does not say its towers' work counts tokens: one of Gemma 3 stands for 9,408 bytes of pixels, where a
    patch of Qwen2.5-VL has 588.
    """
    prices = dict(QWEN_BYTES)
    for modality in ctx.modalities:
        columns = [column for column in ctx.columns if column.modality == modality and column.kind == "flat"]
        if all(column.format == 1 for column in columns):
            continue
        decoded = blank_item(modality)
        if modality == "audio":  # windows of 30 s are stored whole: of a second they would seem thirty times as large
            samples = np.zeros(30 * int(ctx.audio_preprocessor.get("sampling_rate", 16_000)), np.float32)
            decoded = Decoded(MediaMeta(kind="audio", samples=len(samples)), waveform=samples)
        try:
            tokens = ctx.row_counts({modality: [decoded.meta]})[modality][0]
            (arrays,) = ctx.mapped_row(modality, [decoded])
            work = ctx.work(Item(modality, decoded.meta, tokens))
        except Exception:  # a processor may refuse what is blank: where shards are cut is a guess in any case
            continue
        sums = [0.0, 0.0]
        for column in columns:
            sums[not column.picture] += arrays[column.name].size * storage_dtype(column.dtype).itemsize
        prices[modality] = [total / max(work, 1) for total in sums]
    return prices


def stored_bytes(facts: Facts, pixel_codec: str, prices: UnitBytes = QWEN_BYTES) -> NDArray[np.int64]:
    """Bytes that rows take in a shard, about: int64 (rows,)."""
    # Float prices: a row of a day of sound times an integer price would not fit the int32 of the plan's columns.
    pixels = _patch_price(facts, {name: pixels for name, (pixels, _) in prices.items()})
    if pixel_codec != "raw":
        pixels = pixels * np.minimum(np.asarray(facts["pixel_share"], np.float64) * size_of_delta(pixel_codec), 1.0)
    # What both answers of a pair have is stored once, though the towers work on it twice.
    patches, frames = (facts[name] - facts.get(repeated, 0) for name, repeated in _REPEATED.items())
    pictures = (pixels + _patch_price(facts, {name: others for name, (_, others) in prices.items()})) * patches
    if pixel_codec == "source":
        pictures = np.where(facts["file_bytes"] > 0, facts["file_bytes"], pictures)
    others = float(TOKEN_BYTES) * facts["length"] + prices["audio"][1] * frames
    return (others + pictures).astype(np.int64)


def image_bits(header: ImageHeader) -> float:
    """Bits that a pixel of an image takes with delta, about, by what it takes in its file.

    Tried on 70 photographs, drawings and screenshots (18 of them JPEG, within a third): JPEG keeps a fifth of the bits
    of a soft photograph, a half of a sharp one's; PNG takes about as many as delta.
    """
    bits = 8 * header.file_bytes / (header.width * header.height)
    if header.format in _LOSSY:
        return float(min(5.5 * bits, 6.3 * bits**0.45, _MOST_BITS))
    return min(1.1 * bits + 0.3, _MOST_BITS)


def video_bits(meta: MediaMeta, file_bytes: int | None) -> float:
    """The same of a video: films take 0.06 to 0.15 bits a pixel of each frame in their files, which says nothing of how
    sharp they are; less than that is a picture that hardly moves, or a drawing. `file_bytes` may not be known.
    """
    if file_bytes is None:
        return _VIDEO_BITS
    return min(96 * 8 * file_bytes / (meta.width * meta.height * meta.frames), _VIDEO_BITS)


def file_bytes(items: Mapping[str, Sequence[Item]], modalities: Container[str]) -> int:
    """Bytes of the files of the items of some modalities, those of an item that is there twice once."""
    sources = (source for name in items if name in modalities for item in items[name] for source in item.sources)
    return sum(source.size() for source in {source.key: source for source in sources}.values())


def pixel_share(items: Mapping[str, Sequence[Item]], ctx: FamilyContext) -> float:
    """What delta makes of the pixels of a row, of their bytes, about; 0 for a row without any.

    An image that is made smaller shows more detail a pixel: a quarter of its width, 1.0 to 1.8 times the bits.
    """
    bits = work = 0.0
    for modality, row_items in items.items():
        pixels = _patch_pixels(ctx, modality) if modality == "image" else None
        for item in row_items if MODALITIES[modality].work == "patches" else ():
            units, own = ctx.work(item), item.lossless_bits
            if pixels is not None and units > 0:
                shrunk = max(item.meta.width * item.meta.height / (units * pixels), 1.0)
                own = max(own, min(own * shrunk**0.18, _MOST_BITS))
            bits, work = bits + units * own, work + units
    return bits / work / 24 if work else 0.0


@lru_cache(maxsize=8)
def _patch_pixels(ctx: FamilyContext, modality: str) -> int | None:
    """Pixels of a patch, where the family's work is counted in patches that say their size."""
    columns = [column for column in ctx.columns if column.modality == modality and column.picture == "patches"]
    return int(columns[0].params["patch_size"]) ** 2 if len(columns) == 1 else None


def load_seconds(facts: Facts, pixel_codec: str, prices: UnitBytes = QWEN_BYTES) -> NDArray[np.float64]:
    """Seconds that a core takes to load rows, about: those of their pixels, beside which the rest does not count."""
    pixels = _patch_price(facts, {name: pixels for name, (pixels, _) in prices.items()}) * facts["patches"]
    speed: Any = load_speed(pixel_codec)
    if pixel_codec == "source":
        speed = np.where(facts["file_bytes"] > 0, speed, load_speed(FALLBACK))
    return np.asarray(pixels / speed, np.float64)


def encode_seconds(facts: Facts) -> NDArray[np.float64]:
    """Seconds that one core takes to encode rows, estimated: float64 (rows,)."""
    pixels = _patch_price(facts, {name: entry.seconds for name, entry in MODALITIES.items()}) * facts["patches"]
    return TOKEN_SECONDS * facts["length"] + pixels + MODALITIES["audio"].seconds * facts["audio_frames"]


def encode_memory(facts: Facts, offsets: NDArray[np.int64], prices: UnitBytes = QWEN_BYTES) -> int:
    """Bytes that a worker holds while it encodes the bins of a shard, about, beside what any task holds.

    Args:
        facts: Columns of the shard's rows, in the order of its bins.
        offsets: Bin b holds rows offsets[b] to offsets[b+1].
        prices: What a unit of their media's work takes in a shard.
    """
    bins = np.add.reduceat(stored_bytes(facts, "raw", prices), offsets[:-1])
    return int(ENCODE_COPIES * bins.max()) + int(facts["file_bytes"].max())


def _patch_price(facts: Facts, price: Mapping[str, float]) -> NDArray[np.float64]:
    """A row's patches have the price of video patches where it holds a video: the plan does not count them apart."""
    return np.where(facts[MODALITIES["video"].column] > 0, price["video"], price["image"])


@dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """Work in units of one text token through the language model, forward and backward.

    The defaults are Qwen2.5-Omni-7B's thinker with a trained language model and frozen towers (forward only, a
    third), from its config: 28 layers of width 3584, 6.5 G parameters and the head make 14.1 GFLOP a token; causal
    attention 2*3584*28 FLOP a pair of tokens; the vision tower (32 layers of width 1280, 0.65 G parameters) 1.3 GFLOP
    a patch, with its windows of 64 patches; the audio tower (32 layers of width 1280, 0.64 G parameters, half a
    position a frame, chunks of 200 frames) 0.65 GFLOP a frame.
    """

    token: float = 1.0
    """Linear layers and head, for each token."""
    pair: float = 1.42e-5
    """Attention, for the square of each row's length."""
    patch: float = 0.031
    """Vision tower, for each patch (of 14 x 14 pixels, twice that in a video)."""
    audio_frame: float = 0.0155
    """Audio tower, for each frame of the spectrogram (10 ms)."""


def bin_cost(facts: Facts, bins: NDArray[np.int64], model: CostModel | None = None) -> np.ndarray:
    """Work of each bin, float64 (bins,) in text tokens, of rows whose bins are given (rows,)."""
    model = model or CostModel()
    tokens = np.asarray(facts["length"], np.float64)
    attended = tokens * tokens
    if "chosen_length" in facts:  # the two answers of a pair do not see each other
        chosen = np.asarray(facts["chosen_length"], np.float64)
        attended = chosen * chosen + (tokens - chosen) ** 2
    work = model.token * tokens + model.pair * attended
    work += model.patch * facts["patches"]
    work += model.audio_frame * facts["audio_frames"]
    return np.bincount(bins, weights=work)
