"""Most loaded rank against the mean, step by step: the balanced order of bins against a random one.

Bins of a mixed corpus (texts of log-normal length, rows with images, videos and audio), packed as a build packs them;
costs are those of the sampler. A step takes as long as its slowest rank, so `step_time` is the ratio of both sums.

    python benchmarks/balance.py [--rows 200000] [--bin-length 16384]
"""

import argparse

import numpy as np
from record import record

from omniprep.compiler.costs import bin_cost
from omniprep.packing import balanced_order, pack, permutation

GOAL = 1.05


def corpus(rows: int, bin_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, vision patches and audio frames of each row."""
    rng = np.random.default_rng(0)
    text = np.exp(rng.normal(6, 1, rows))
    kind = rng.choice(4, rows, p=[0.6, 0.25, 0.1, 0.05])
    image = np.where(kind == 1, np.exp(rng.normal(6.3, 0.6, rows)), 0)
    audio = np.where(kind == 2, rng.uniform(50, 1500, rows), 0)
    video = np.where(kind == 3, np.exp(rng.normal(7.8, 0.5, rows)), 0)
    tokens = np.clip(text + image + audio + video, 8, bin_length).astype(np.int64)
    return tokens, (4 * (image + video)).astype(np.int64), (4 * audio).astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--bin-length", type=int, default=16384)
    options = parser.parse_args()
    lengths, patches, frames = corpus(options.rows, options.bin_length)
    facts = {"length": lengths, "patches": patches, "audio_frames": frames}
    costs = bin_cost(facts, pack(lengths, options.bin_length, 0))
    rows = []
    for ranks in (8, 64):
        loads = {
            name: costs[order[: len(order) // ranks * ranks]].reshape(-1, ranks)
            for name, order in (("balanced", balanced_order(costs, 0, 1)), ("random", permutation(len(costs), 0, 1, 3)))
        }
        slowest = {name: load.max(axis=1) for name, load in loads.items()}
        for name, load in loads.items():
            ratio = slowest[name] / load.mean(axis=1)
            rows.append(
                {
                    "ranks": ranks,
                    "order": name,
                    "bins": len(costs),
                    "slowest_of_mean": round(float(ratio.mean()), 4),
                    "p99_step": round(float(np.percentile(ratio, 99)), 4),
                    "steps_above_goal": round(float((ratio > GOAL).mean()), 4),
                    "worst_step": round(float(ratio.max()), 3),
                    "step_time_of_random": round(float(slowest[name].sum() / slowest["random"].sum()), 4),
                    "goal": GOAL,
                }
            )
    record("balance", rows, bin_length=options.bin_length, rows_of_corpus=options.rows)


if __name__ == "__main__":
    main()
