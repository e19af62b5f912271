"""`omniprep score`: log-probabilities of a reference model for every answer of a dataset, computed once and stored.

The model is loaded, checked and run as for training, so that DPO begins at a margin of exactly 0 where training does
with the same type of weights and attention. Each rank takes every n-th bin; the first writes one file at the end
(shards/references.py), so a run that is killed leaves what was there before.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from omniprep import __version__
from omniprep.data import PackedDataset
from omniprep.data.objective import Objective
from omniprep.data.preference import Compared, sequence_sums
from omniprep.data.prefetch import moved
from omniprep.errors import OmniprepError
from omniprep.families.context import resolve_family
from omniprep.progress import Reporter
from omniprep.shards.manifest import content_hash
from omniprep.shards.references import ReferenceModel, References, write_references
from omniprep.train.adapter import base_and_adapter
from omniprep.train.arguments import quiet_libraries, training_arguments
from omniprep.train.batches import Batcher, BatchLoader, Bins, forward_kwargs, make_loader
from omniprep.train.checkpoint import source_folder, weights_hash
from omniprep.train.config import ScoreConfig, TrainConfig
from omniprep.train.forward import ForwardPass
from omniprep.train.model import load_trainable, weights_dtype
from omniprep.train.preference import check_mismatches, check_objective, described, placeholder_ids
from omniprep.train.refuse import check_datasets
from omniprep.train.stream import BinStream, Mixture
from omniprep.train.vision_text import Packed

READ_ONLY = ("hf://", "http://", "https://")


def score(config: ScoreConfig, reporter: Reporter) -> None:
    """Compute and store the log-probabilities of every dataset of `config.data`, one after the other."""
    quiet_libraries()
    base, adapter = base_and_adapter(config.model, config.base_model)
    options = TrainConfig(
        data=config.data, model=base, out="score", batch_size=config.batch_size, num_workers=config.num_workers,
        dtype=config.dtype, attn=config.attn, device=config.device, family=config.family, plugin=config.plugin,
        trust_remote_code=config.trust_remote_code, report_to=("none",),
    )  # fmt: skip
    args = training_arguments(options)
    datasets = [PackedDataset(uri) for uri in config.data]
    for dataset in datasets:
        check_scored(dataset)
    ctx = resolve_family(
        base, options.family or family_of_data(datasets), config.plugin, None, config.trust_remote_code
    )
    check_datasets(datasets, ctx)
    weights = weights_hash(source_folder(base))
    adapter_weights = "" if adapter is None else weights_hash(adapter)
    goals = {dataset.uri: goal_of(dataset, config) for dataset in datasets}
    for dataset in datasets:
        check_objective([dataset], goals[dataset.uri])
    todo = [d for d in datasets if not done(d, config, goals[d.uri], (weights, adapter_weights), reporter)]
    for dataset in todo:
        for text in check_mismatches([dataset]) if goals[dataset.uri].needs_divergence else ():
            reporter.message(text)
    if not todo:
        return
    model: Any
    model, _ = load_trainable(ctx, base, options, args.device, todo)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    model.to(args.device).eval()
    dtype = weights_dtype(options, args.device)
    for dataset in todo:
        goal = goals[dataset.uri]
        values = score_dataset(dataset, goal, model, options, dtype, args, reporter)
        made_by = ReferenceModel(
            content=content_hash(dataset.manifest),
            model=config.model,
            weights=weights,
            adapter=adapter_weights,
            dtype=str(dtype).removeprefix("torch."),
            attention=str(model.config.get_text_config()._attn_implementation),
            versions={"omniprep": __version__, "torch": str(torch.__version__)},
        )
        if args.process_index == 0:
            store(dataset, made_by, values, goal)
            reporter.message(
                f"{dataset.uri}: log-probabilities of {sum(len(v[0]) for v in values.values()):,} answers"
                + (", and of as many mismatched ones" if goal.needs_divergence else "")
                + f" by {described(made_by)}"
            )


def family_of_data(datasets: list[PackedDataset]) -> str | None:
    """As for training: datasets of --family hf are of any model of transformers."""
    return "hf" if all(dataset.layout.family == "hf" for dataset in datasets) else None


def check_scored(dataset: PackedDataset) -> None:
    """Refuse a dataset that has no answers to score, or no place for the scores."""
    if dataset.uri.startswith(READ_ONLY):
        raise OmniprepError(f"{dataset.uri}: cannot be written to; omniprep pull it, and score the copy")
    if not len(dataset):
        raise OmniprepError(f"{dataset.uri}: the dataset has no bin")


def goal_of(dataset: PackedDataset, config: ScoreConfig) -> Objective:
    """What a dataset is scored for: every answer by itself, as KTO takes them, whatever learns from them later."""
    counts = dict(dataset.record.counts.preference) if dataset.record.counts else {}
    single = counts.get("desirable", 0) + counts.get("undesirable", 0)
    mismatched = config.objective == "kto" or (config.objective == "auto" and single > 0)
    return Objective(name="kto", loss_type="kto" if mismatched else "apo_zero_unpaired")


def done(
    dataset: PackedDataset, config: ScoreConfig, goal: Objective, weights: tuple[str, str], reporter: Reporter
) -> bool:
    """Whether the scores are there already; refused where another model made those of this content."""
    stored = dataset.references
    if stored is None or config.overwrite:
        return False
    if (stored.made_by.weights, stored.made_by.adapter) != weights:
        raise OmniprepError(
            f"{dataset.uri}: has log-probabilities of another model ({described(stored.made_by)}): --overwrite to "
            "replace them"
        )
    if goal.needs_divergence and stored.kl_logps is None:
        return False
    reporter.message(f"{dataset.uri}: has the log-probabilities of this model already")
    return True


def score_dataset(
    dataset: PackedDataset,
    goal: Objective,
    model: Any,
    options: TrainConfig,
    dtype: torch.dtype,
    args: Any,
    reporter: Reporter,
) -> dict[int, list[np.ndarray]]:
    """Number of each bin → its log-probabilities, and those of mismatched answers where they are wanted."""
    batcher = Batcher(dataset.layout.modalities)
    batcher.objective, batcher.placeholders = goal, placeholder_ids([dataset])
    if isinstance(model, Packed):
        batcher.geometry = model.geometry
    bins = Bins([dataset])
    steps = -(-len(bins) // (args.world_size * options.batch_size))
    stream = BinStream(
        Mixture(sizes=[len(bins)], costs=dataset.costs), total=len(bins), start=0, steps=steps,
        rank=args.process_index, world_size=args.world_size, batch_size=options.batch_size,
    )  # fmt: skip
    loader = make_loader(bins, stream, batcher, options.num_workers, args.device.type == "cuda")
    own: dict[int, list[np.ndarray]] = {}
    forward = ForwardPass.of(model)
    reporter.start("score", len(bins), "bins")
    with torch.no_grad():
        for numbers, batch in zip(stream, BatchLoader(loader, steps, args.device), strict=True):
            passes = [(batch["stacked"], batch["numbers"], batch["sides"])]
            if (other := batch["mismatched"]) is not None:
                passes.append(({**batch["stacked"], **other.stacked}, other.numbers, other.sides))
            values = [logps_of(model, forward, *one, device=args.device, dtype=dtype).cpu().numpy() for one in passes]
            cuts = np.cumsum(batch["sequences"])[:-1]
            parts = [np.split(value, cuts) for value in values]
            for place, number in enumerate(numbers):
                if number >= 0:
                    own[number] = [part[place] for part in parts]
            reporter.advance("score", args.world_size * sum(number >= 0 for number in numbers))
    reporter.finish("score")
    everyone: list[dict[int, list[np.ndarray]]] = gather_object([own])
    return {number: values for part in everyone for number, values in part.items()}


def logps_of(
    model: Any, forward: ForwardPass, stacked: Mapping[str, Any], numbers: Any, sides: Compared, *,
    device: torch.device, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Log-probabilities (R) of a batch, float32: 0 of a sequence without labels."""
    kwargs = forward_kwargs({"stacked": stacked}, device, dtype)
    losses, _ = forward.losses(model, kwargs, sides.positions, sides.targets, numbers, device)
    return -sequence_sums(losses, moved(sides, device))


def store(
    dataset: PackedDataset, made_by: ReferenceModel, values: dict[int, list[np.ndarray]], goal: Objective
) -> None:
    """Write the scores, unless the dataset changed meanwhile."""
    assert sorted(values) == list(range(len(dataset)))
    if content_hash(PackedDataset(dataset.uri).manifest) != made_by.content:
        raise OmniprepError(f"{dataset.uri}: changed while it was scored; run the same command again")
    ordered = [values[number] for number in range(len(dataset))]
    logps, *others = (np.concatenate(part) for part in zip(*ordered, strict=True))
    for part in (logps, *others):
        if not np.isfinite(part).all():
            raise OmniprepError(
                f"{dataset.uri}: {int((~np.isfinite(part)).sum()):,} log-probabilities are no numbers: the model "
                f"overflows in {made_by.dtype}; use --dtype float32"
            )
    write_references(
        dataset.uri,
        References(
            made_by=made_by,
            begins=np.concatenate([[0], np.cumsum([len(part[0]) for part in ordered])]),
            logps=logps,
            kl_logps=others[0] if goal.needs_divergence else None,
        ),
    )
