"""The data of a run: which bins are trained on, in what order, and which are kept to evaluate."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import TrainingArguments

from omniprep.compiler.costs import CostModel
from omniprep.data import PackedDataset
from omniprep.errors import OmniprepError
from omniprep.packing.mixing import bin_shares
from omniprep.train.batches import Batcher, BatchLoader, Bins, make_loader, number_sources
from omniprep.train.checkpoint import read_position
from omniprep.train.config import TrainConfig, parse_source
from omniprep.train.preference import placeholder_ids
from omniprep.train.stream import BinStream, Mixture

SPLIT_SEED = 20  # the evaluation split must not move when --seed does


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """What a run reads.

    Attributes:
        bins: The bins to train on.
        batcher: Makes batches of them, and those to evaluate on.
        stream: This rank's way through it.
        evaluation: Batches to evaluate on, or None.
    """

    bins: Bins
    batcher: Batcher
    stream: BinStream
    evaluation: BatchLoader | None


def open_datasets(sources: Sequence[str], config: TrainConfig) -> list[PackedDataset]:
    """The datasets that --data or --eval-data name."""
    names = [parse_source(source)[0] for source in sources]
    return [PackedDataset(name, verify=config.verify, check_pixels=config.check_pixels) for name in names]


def prepare_data(
    datasets: list[PackedDataset],
    evaluation: list[PackedDataset],
    config: TrainConfig,
    args: TrainingArguments,
    checkpoint: Path | None,
) -> RunData:
    """The data of this rank, from the checkpoint's position on; refused where that was made with other data."""
    names, numbers = number_sources(datasets) if config.log_sources else ((), [])
    bins, held_out = split_bins(datasets, config, numbers)
    length = 0
    if config.torch_compile:
        length = config.batch_size * max(d.record.bin_length for d in (*datasets, *evaluation))
    modalities = datasets[0].layout.modalities
    work, tower_work = costs(datasets, bins, config)
    mixture = Mixture(
        sizes=[len(b) for b in bins.bins],
        shares=shares(datasets, bins, config),
        seed=config.seed,
        costs=work,
        tower_costs=tower_work,
    )
    batcher = Batcher(modalities, names, length)
    batcher.objective, batcher.placeholders = config.preference, placeholder_ids(datasets)
    return RunData(
        bins=bins,
        batcher=batcher,
        stream=make_stream(mixture, config, args, checkpoint),
        evaluation=evaluation_loader(evaluation, held_out, batcher, config, args),
    )


def step_of(checkpoint: Path | None) -> int:
    """Optimizer steps a checkpoint has behind it."""
    if checkpoint is None:
        return 0
    path = checkpoint / "trainer_state.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OmniprepError(f"--resume {checkpoint}: {path.name} is absent or damaged") from error


def split_bins(
    datasets: list[PackedDataset], config: TrainConfig, sources: list[np.ndarray]
) -> tuple[Bins, list[np.ndarray]]:
    """The bins to train on, and those held out of each dataset (--eval-fraction), which needs two bins."""
    kept, held = [], []
    for number, dataset in enumerate(datasets):
        order = np.random.Generator(np.random.PCG64([SPLIT_SEED, number])).permutation(len(dataset))
        count = 0
        if config.eval_fraction:
            if len(dataset) < 2:
                raise OmniprepError(
                    f"--eval-fraction {config.eval_fraction:g} holds out no bin of {dataset.uri}, which has only "
                    f"{len(dataset)}: leave it out, give --eval-data, or repack to a shorter --bin-length"
                )
            count = min(max(round(config.eval_fraction * len(dataset)), 1), len(dataset) - 1)
        held.append(np.sort(order[:count]))
        kept.append(np.sort(order[count:]))
    return Bins(datasets, kept, sources), held


def costs(datasets: list[PackedDataset], bins: Bins, config: TrainConfig) -> tuple[np.ndarray, np.ndarray | None]:
    """Work of each bin that takes part, as the build estimated it, and the towers' part of it where they train.

    The build assumes frozen towers, which have a forward pass alone. Where they train, a backward pass adds twice that
    (once for adapters), and ranks wait for each other within the towers too.
    """

    def joined(name: str) -> np.ndarray:
        return np.concatenate([d.index[name][b] for d, b in zip(datasets, bins.bins, strict=True)])

    if config.freeze_vit:
        return joined("cost"), None
    model = CostModel()
    forward = model.patch * joined("patches") + model.audio_frame * joined("audio_frames")
    backward = (1 if config.lora else 2) * forward
    return joined("cost") + backward, forward + backward


def shares(datasets: list[PackedDataset], bins: Bins, config: TrainConfig) -> list[float] | None:
    """Share of the bins of an epoch of each dataset, by the weights in --data; None where none is given."""
    weights = [parse_source(d)[1] for d in config.data]
    by_bins = config.weight_by == "bins" or all(weight is None for weight in weights)
    tokens = (float(d.index["tokens"][b].mean()) for d, b in zip(datasets, bins.bins, strict=True))
    return bin_shares(weights, None if by_bins else list(tokens))


def make_stream(mixture: Mixture, config: TrainConfig, args: TrainingArguments, checkpoint: Path | None) -> BinStream:
    """This rank's way through the data, from the checkpoint's position; refused where nothing is left to do."""
    start = done = 0
    if checkpoint is not None:
        state, done = read_position(checkpoint), step_of(checkpoint)
        now = {"sizes": list(mixture.sizes), "shares": mixture.shares, "seed": mixture.seed}
        changed = [key for key in now if state[key] != now[key]]
        if changed:
            names = {"sizes": "--data", "shares": "the weights of --data", "seed": "--seed"}
            raise OmniprepError(
                f"--resume {checkpoint}: made with other data: {', '.join(names[c] for c in changed)} changed"
            )
        start = state["position"]
    step = args.world_size * config.batch_size * config.grad_accumulation
    if config.max_steps:
        steps = config.max_steps - done
        total = start + steps * step
    else:
        total = round(config.epochs * mixture.epoch_bins)
        steps = math.ceil((total - start) / step)
    if steps <= 0 and checkpoint is None:
        raise OmniprepError(
            f"--epochs {config.epochs:g} of {mixture.epoch_bins} bins is less than a bin: raise it, or give --max-steps"
        )
    if steps <= 0:
        raise OmniprepError(
            f"--resume {checkpoint}: nothing is left to do after its step {done}; raise --max-steps or --epochs"
        )
    return BinStream(
        mixture,
        total=total,
        start=start,
        steps=steps,
        rank=args.process_index,
        world_size=args.world_size,
        batch_size=config.batch_size,
        accumulation=config.grad_accumulation,
    )


def evaluation_loader(
    datasets: list[PackedDataset],
    held_out: list[np.ndarray],
    batcher: Batcher,
    config: TrainConfig,
    args: TrainingArguments,
) -> BatchLoader | None:
    """Batches to evaluate on, shared out over the ranks, or None."""
    if datasets:
        bins = Bins(datasets)
    elif any(len(h) for h in held_out):
        bins = Bins(open_datasets(config.data, config), held_out)
    else:
        return None
    each = math.ceil(len(bins) / (args.world_size * config.batch_size))
    stream = BinStream(
        Mixture(sizes=[len(bins)]),
        total=len(bins),
        start=0,
        steps=each,
        rank=args.process_index,
        world_size=args.world_size,
        batch_size=config.batch_size,
    )
    loader = make_loader(bins, stream, batcher, min(config.num_workers, 2), args.device.type == "cuda")
    return BatchLoader(loader, each, args.device)
