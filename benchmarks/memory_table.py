"""How much memory a training step takes: reckoned from the sizes of a model, for the table in docs/training.md.

    python benchmarks/memory_table.py

What a step holds at its fullest, in bfloat16, on one GPU, with frozen towers, liger's kernels and one bin a pass:
- weights, 2 bytes each; where they train also AdamW's states, 4 bytes, and gradients, 2;
- the input of each layer (checkpointing), or all that the layers' backward passes need;
- with checkpointing the inner values of the one layer that is being computed again, and its gradients.
Gradients grow while activations go, so the larger of the two counts. tests/test_memory_table.py holds it against the
peaks that benchmarks/gpu.py measured.
"""

from dataclasses import dataclass
from typing import Any

GIB = 1 << 30
HEADROOM = 0.90
"""Share of a card's memory that a step may take; the rest goes to fragments, CUDA's context and libraries."""
CARDS = {"24 GB": 22.0, "48 GB": 44.5, "80 GB": 79.0, "141 GB": 139.8}
"""GiB that torch sees of cards sold with so much: RTX 4090 or L4, L40S, H100 or A100, H200."""
POSITIONS = 32768
"""Tokens that the models have positions for; no bin may be longer."""
BINS = (4096, 8192, 16384, 32768)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a language model, and the weights of its towers."""

    hidden: int
    layers: int
    query: int
    key: int
    inner: int
    vocabulary: int
    towers: int

    @property
    def layer_weights(self) -> int:
        """Weights of a layer: attention with biases, MLP, two norms."""
        h, q, k = self.hidden, self.query, self.key
        return h * q + q + 2 * (h * k + k) + q * h + 3 * h * self.inner + 2 * h

    @property
    def language_weights(self) -> int:
        """Weights that full training trains: embeddings, layers, the last norm, the head."""
        return 2 * self.vocabulary * self.hidden + self.layers * self.layer_weights + self.hidden

    def adapter_weights(self, rank: int) -> int:
        """Weights of LoRA adapters on all linear layers."""
        h, q, k, i = self.hidden, self.query, self.key, self.inner
        return self.layers * rank * ((h + q) + 2 * (h + k) + (q + h) + 3 * (h + i))


SHAPES = {
    "3B": Shape(hidden=2048, layers=36, query=2048, key=256, inner=11008, vocabulary=151936, towers=1306360832),
    "7B": Shape(hidden=3584, layers=28, query=3584, key=512, inner=18944, vocabulary=152064, towers=1316197376),
}
"""Qwen2.5-Omni's thinkers."""


def layer_bytes(shape: Shape, lora: bool) -> int:
    """Bytes for each token that a layer's backward pass needs."""
    h, q, k, i = shape.hidden, shape.query, shape.key, shape.inner
    if lora:
        # Two norms' inputs, queries, keys, values, what attention gives, gate and up; before each adapter its input
        # after dropout, and the mask of it, a byte a value.
        return 2 * (2 * h + 2 * q + 2 * k + 2 * i) + 3 * (5 * h + q + i)
    # The same, and the inputs of the linear layers, which the gradients of their weights need.
    return 2 * (5 * h + 2 * q + 2 * k + 3 * i)


def peak_bytes(shape: Shape, tokens: int, *, lora: bool, checkpointing: bool, rank: int = 8) -> int:
    """Most bytes that a step holds at once.

    Args:
        shape: The model.
        tokens: Of a bin.
        lora: Adapters train, else the language model.
        checkpointing: Layers are computed again in the backward pass.
        rank: Of the adapters.
    """
    weights = 2 * (shape.language_weights + shape.towers)
    trained = shape.language_weights
    if lora:
        trained = shape.adapter_weights(rank)
        weights += 2 * trained
    states, gradients = 4 * trained, 2 * trained
    of_layer = layer_bytes(shape, lora) * tokens
    if checkpointing:
        kept = 2 * shape.hidden * shape.layers * tokens
        # The layer computed again, and gradients of the MLP's three inner values.
        computing = of_layer + 2 * 3 * shape.inner * tokens
    else:
        kept, computing = of_layer * shape.layers, 0
    return weights + states + max(kept, gradients) + computing


def largest_bin(shape: Shape, gib: float, *, lora: bool, checkpointing: bool) -> int:
    """Most tokens, in steps of 256, of a bin that fits on a card of so many GiB."""
    low, high = 0, POSITIONS // 256
    while low < high:
        middle = (low + high + 1) // 2
        needed = peak_bytes(shape, middle * 256, lora=lora, checkpointing=checkpointing)
        low, high = (middle, high) if needed <= HEADROOM * gib * GIB else (low, middle - 1)
    return low * 256


def rows() -> list[dict[str, Any]]:
    """The table: peaks by bin length, and the longest bins of cards."""
    made = []
    for name, shape in SHAPES.items():
        for lora in (True, False):
            for checkpointing in (True, False):
                options = {"lora": lora, "checkpointing": checkpointing}
                row: dict[str, Any] = {
                    "model": name,
                    "trains": "LoRA" if lora else "full",
                    "checkpointing": "on" if checkpointing else "off",
                }
                row |= {
                    f"{bin_length:,}": round(peak_bytes(shape, bin_length, **options) / GIB, 1) for bin_length in BINS
                }
                row |= {card: largest_bin(shape, gib, **options) or "no" for card, gib in CARDS.items()}
                made.append(row)
    return made


if __name__ == "__main__":
    from record import show

    show(rows())
