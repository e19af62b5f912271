"""The operations that a training step computes, for the log's MFU: counted from the model once, and from the sizes of
each batch, which the host knows.

What counts: every matrix product and convolution of language model, towers and output head, forward, and backward where
gradients go; attention by the real lengths of rows, windows, images and clips, causal attention by the half that it
computes; the head at the targets alone. What does not: padding, activations that checkpointing computes again, logits
that the loss computes again, embeddings, norms, softmax. So MFU says which share of the device's peak goes into the
step's own work, and does not rise when work is done twice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from omniprep.data.host_numbers import BinNumbers
from omniprep.train.deepspeed import numel
from omniprep.train.freeze import Parts, under

WHISPER_STATES = 1500
"""States of a clip in an audio tower that pads every clip to 30 s (Qwen2-Audio)."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(kw_only=True, slots=True)
class Weights:
    """Weights that a position of a part passes through.

    Attributes:
        forward: Number of them.
        backward: The same times the products of the backward pass: one for the gradient of the input, one for that of
            the weight where it trains; 0 where no gradient goes.
    """

    forward: float = 0.0
    backward: float = 0.0

    def work(self, positions: int) -> float:
        """Floating point operations of so many positions: 2 a weight and product."""
        return 2.0 * positions * (self.forward + self.backward)


@dataclass(kw_only=True, slots=True)
class Tower:
    """A vision or audio tower.

    Attributes:
        layers: Weights before the aligner; a position is a patch, or a state of an audio layer.
        aligner: Weights of the aligner; a position is a token.
        width: Values of a state: all heads together.
        windowed: Layers whose attention stays in windows.
        full: All other layers.
        trains: Whether gradients go through the layers.
    """

    layers: Weights = field(default_factory=Weights)
    aligner: Weights = field(default_factory=Weights)
    width: int = 0
    windowed: int = 0
    full: int = 0
    trains: bool = False

    def work(self, segments: Iterable[int], windows: Iterable[int], tokens: int) -> float:
        """Operations of segments of full attention, the same states in windows, and the tokens that come out."""
        segments, windows = list(segments), list(windows)
        within = sum(n * n for n in windows) if windows else sum(n * n for n in segments)
        pairs = self.full * sum(n * n for n in segments) + self.windowed * within
        attention = 4.0 * self.width * pairs * (3 if self.trains else 1)
        return self.layers.work(sum(segments)) + self.aligner.work(tokens) + attention


class StepWork:
    """Counts the operations of batches.

    `is_whole` says whether it counts all of them: the work of towers is known by the numbers that readers make for a
    model with `geometry`.
    """

    def __init__(self, model: Any, parts: Parts) -> None:
        text = model.config.get_text_config()
        self.is_whole = not parts.towers or hasattr(model, "geometry")
        self.language, self.head = Weights(), Weights()
        self.towers = {"vision": Tower(), "audio": Tower()}
        self._add_weights(model, parts, text)
        for prefix in parts.towers:
            self._describe(prefix, model.get_submodule(prefix))
        # A model of a plug-in may name none of these in its config: its attention is not counted then.
        heads = first(text, "num_attention_heads")
        self.query_width = heads * (first(text, "head_dim") or first(text, "hidden_size") // max(heads, 1))
        self.window = getattr(text, "sliding_window", None)
        kind = "full_attention" if self.window is None else "sliding_attention"  # of all layers, where no list is given
        kinds = getattr(text, "layer_types", None) or [kind] * first(text, "num_hidden_layers")
        self.full = sum(kind == "full_attention" for kind in kinds)
        self.sliding = sum(kind == "sliding_attention" for kind in kinds)

    def _add_weights(self, model: Any, parts: Parts, text: Any) -> None:
        """Sort the weights of all linear layers, convolutions and experts into the parts."""
        head = model.get_output_embeddings()
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        open_parts = {  # an adapter may be in one tower alone
            kind: {parts.part_of(name) for name in trained if self.modality(name, parts) == kind}
            for kind in self.towers
        }
        repeats = convolution_positions(model, parts)
        first_layers = {name for prefix in parts.towers for name in convolutions(model, prefix)[:1]}  # of media alone
        for name, module in model.named_modules():
            for weight, size in matrices(module, text):
                share = size * repeats.get(name, 1.0)
                products = (name not in first_layers) + weight.requires_grad
                if module is head:
                    part = self.head
                elif (kind := parts.part_of(name)) == "llm":
                    part = self.language
                elif kind in ("tower", "aligner"):
                    medium = self.modality(name, parts)
                    tower = self.towers[medium]
                    part = tower.layers if kind == "tower" else tower.aligner
                    # Autograd goes back from the loss through the aligner to the first layer that trains.
                    products *= kind in open_parts[medium] or (kind == "aligner" and "tower" in open_parts[medium])
                else:
                    continue
                part.forward += share
                part.backward += share * products
        for medium, tower in self.towers.items():
            tower.trains = "tower" in open_parts[medium]

    @staticmethod
    def modality(name: str, parts: Parts) -> str:
        """Whose tower a module belongs to; an aligner outside of the towers belongs to the only one there is."""
        owners = [prefix for prefix in parts.towers if under(name, [prefix])] or list(parts.towers)
        heard = [prefix for prefix in owners if "audio" in prefix]
        return "audio" if "audio" in name or len(heard) == len(owners) > 0 else "vision"

    def _describe(self, prefix: str, tower: nn.Module) -> None:
        """Width and layers of a tower, from its config."""
        config: Any = getattr(tower, "config", None)
        layers = first(config, "depth", "encoder_layers", "num_hidden_layers")
        described = self.towers["audio" if "audio" in prefix else "vision"]
        if not layers or described.full:  # a second prefix of one tower
            return
        described.width = first(config, "d_model", "hidden_size", "embed_dim")
        whole = getattr(config, "fullatt_block_indexes", None)
        described.full = layers if whole is None else len(whole)
        described.windowed = layers - described.full

    def of(self, batch: Mapping[str, Any]) -> float:
        """Operations of one forward and backward pass over a batch of `Batcher`."""
        numbers: BinNumbers = batch["numbers"]
        rows = numbers.row_lengths
        if sum(rows) > batch["tokens"]:  # the last row pads the batch for --torch-compile: no work of the step's own
            rows = rows[:-1]
        pairs = self.full * sum(causal_pairs(n) for n in rows)
        pairs += self.sliding * sum(causal_pairs(n, self.window) for n in rows)
        work = self.language.work(sum(rows)) + self.head.work(len(batch["targets"]))
        work += 3 * 4.0 * self.query_width * pairs  # the backward pass has twice the products of the forward pass
        if numbers.vision is not None:
            tokens = sum(len(index) for index in (numbers.image_index, numbers.video_index) if index is not None)
            segments, windows = numbers.vision.segment_lengths, numbers.vision.window_lengths
            work += self.towers["vision"].work(segments, windows, tokens)
        if numbers.audio is not None:
            clips = numbers.audio.segment_lengths or (WHISPER_STATES,) * len(numbers.audio_lengths)
            tokens = 0 if numbers.audio_index is None else len(numbers.audio_index)
            work += self.towers["audio"].work(clips, (), tokens)
        return work


def matrices(module: nn.Module, text: Any) -> list[tuple[Any, float]]:
    """Weights of a module that positions are multiplied by, each with the number that one position meets.

    Of a mixture of experts, the share of experts that a token is sent to. From the sizes that a layer was made with:
    ZeRO-3 leaves the tensors empty.
    """
    if isinstance(module, nn.Linear):
        return [(module.weight, float(module.in_features * module.out_features))]
    if isinstance(module, CONVOLUTIONS):
        size = float(module.in_channels * module.out_channels // module.groups)
        for side in module.kernel_size:
            size *= side
        return [(module.weight, size)]
    experts = first(text, "num_experts", "num_local_experts", "n_routed_experts")
    chosen = first(text, "num_experts_per_tok", "moe_topk")
    if not experts or not chosen:
        return []
    own = module.parameters(recurse=False)
    return [(p, numel(p) * chosen / experts) for p in own if p.ndim == 3 and p.shape[0] == experts]


def convolutions(model: nn.Module, prefix: str) -> list[str]:
    """Names of the convolutions of a tower, in the order that media pass them."""
    return [f"{prefix}.{n}" for n, m in model.get_submodule(prefix).named_modules() if isinstance(m, CONVOLUTIONS)]


def convolution_positions(model: nn.Module, parts: Parts) -> dict[str, float]:
    """How many positions of a convolution stand for one state of the layers behind it, by the module's name.

    Convolutions of audio towers go before the layers, one after the other, and step over frames (two-dimensional ones
    over bands too): the first of Whisper's two sees two frames a state. Those of vision towers cut patches: one each.
    """
    positions: dict[str, float] = {}
    for prefix in parts.towers:
        tower = model.get_submodule(prefix)
        bands: float = first(getattr(tower, "config", None), "num_mel_bins")
        if not bands:
            continue
        layers: dict[str, Any] = {name: model.get_submodule(name) for name in convolutions(model, prefix)}
        frames = 1.0
        for module in layers.values():
            frames *= module.stride[-1]
        for name, module in layers.items():
            frames /= module.stride[-1]
            if isinstance(module, nn.Conv2d):
                bands /= module.stride[0]
            positions[name] = frames * (bands if isinstance(module, nn.Conv2d) else 1.0)
    return positions


def causal_pairs(length: int, window: int | None = None) -> int:
    """Pairs of a token and one that it sees, in a row, each token seeing at most `window`."""
    if window is None or length <= window:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


def first(config: Any, *names: str) -> int:
    """The first of some attributes that a config has as a number, or 0; some have one for each layer, in a list."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if value and isinstance(value, int)), 0)
