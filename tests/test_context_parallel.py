"""Risk: ranks that share a bin learn something else together than one rank alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import write_bins
from train_helpers import AUDIO, COLUMNS, IMAGE, MODALITIES, VIDEO, make_row, to_bin, write_dataset

from omniprep import PackedDataset, collate
from omniprep.errors import OmniprepError

PLACEHOLDERS = {"image": IMAGE, "video": VIDEO, "audio": AUDIO}
KINDS = ("image", "text", "audio", "mixed", "video")


def padded(row: dict, multiple: int) -> dict:
    missing = -len(row["ids"]) % multiple
    row["ids"] = torch.cat([row["ids"], torch.full((missing,), 900)])
    more = row["positions"][:, -1:] + torch.arange(1, missing + 1)
    row["positions"] = torch.cat([row["positions"], more], 1)
    return row


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "weighted"])
def ds(request, tmp_path_factory) -> PackedDataset:
    """Bins whose rows are multiples of 12 tokens: for 2, 3 and 6 ranks."""
    folder, rng = tmp_path_factory.mktemp("cp") / "d", np.random.default_rng(0)
    bins = [
        to_bin([padded(make_row(KINDS[(n + i) % 5], rng), 12) for i in range(3)], 3 * n, rng, request.param)
        for n in range(5)
    ]
    write_bins(
        folder, bins, COLUMNS, family="small", modalities=MODALITIES, weighted=request.param, bin_length=1024,
        placeholders=PLACEHOLDERS,
    )  # fmt: skip
    return PackedDataset(folder)


def embeddings(batch: dict) -> dict[str, torch.Tensor]:
    """A number for each media token, from the item that it stands for and its place in it."""
    found = {}
    for modality, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if name in batch:
            found[modality] = batch[name].reshape(-1, 4, batch[name].shape[1]).mean((1, 2))
    if "input_features" in batch:
        parts = []
        for clip, mask in zip(batch["input_features"], batch["feature_attention_mask"], strict=True):
            frames = int(mask.sum())
            parts.append(clip[:, :frames].mean() + torch.arange(((frames - 1) // 2 + 1 - 2) // 2 + 1))
        found["audio"] = torch.cat(parts)
    return found


def embedded(batch: dict, index: dict) -> torch.Tensor:
    """A number for each token."""
    values = batch["input_ids"][0].float().clone()
    for modality, given in embeddings(batch).items():
        places = batch["input_ids"][0] == PLACEHOLDERS[modality]
        values[places] = given[index[modality]] if index else given
    return values


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_the_shares_of_all_ranks_are_the_bin(ds, size):
    patches = 0
    for number in range(len(ds)):
        whole, shares = collate([ds[number]]), [ds.slice(rank, size)[number] for rank in range(size)]
        values, borders = embedded(whole, {}), whole["cu_seq_lens_q"].long()
        next_label = torch.cat([whole["labels"].as_subclass(torch.Tensor)[0, 1:], torch.tensor([-100])])
        next_label[borders[1:] - 1] = -100
        for rank, share in enumerate(shares):
            index = share["token_index"]
            for name in ("input_ids", "position_ids"):
                assert torch.equal(share[name], whole[name][..., index])
            assert torch.equal(share["shift_labels"][0], next_label[index]) and "labels" not in share
            if ds.layout.weighted:
                learned = next_label[index] != -100
                assert torch.equal(share["loss_scale"][0][learned], whole["loss_scale"][0, index[learned] + 1])
            torch.testing.assert_close(embedded(share, share["media_index"]), values[index])
            # Zigzag: of each row the rank's chunk from the front, and from the end.
            chunks = [
                torch.arange(start, end).chunk(2 * size)
                for start, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)
            ]
            assert index.tolist() == torch.cat([torch.cat([c[rank], c[-1 - rank]]) for c in chunks]).tolist()
            assert torch.equal(share["cu_seq_lens_q"], whole["cu_seq_lens_q"])
            for modality, name in (("image", "pixel_values"), ("audio", "input_features")):
                assert (name in share) == bool((share["input_ids"] == PLACEHOLDERS[modality]).any()), "or no media"
            patches += share["pixel_values"].shape[0] / size if "pixel_values" in share else 0
        assert sorted(torch.cat([share["token_index"] for share in shares]).tolist()) == list(range(len(values)))
    if size == 6:
        assert patches < 0.8 * sum(ds.index["patches"]), "most ranks need only some of the pictures"


def test_what_cannot_be_cut_is_refused(ds, tmp_path):
    with pytest.raises(OmniprepError, match=r"cannot be cut into 10 equal chunks; build with --pad-rows-to 10"):
        ds.slice(0, 5)[0]
    with pytest.raises(OmniprepError, match="rank 2 of 2"):
        ds.slice(2, 2)
    old = PackedDataset(write_dataset(tmp_path / "old", bins=1, kinds=("image",)))
    with pytest.raises(OmniprepError, match="build it again|cannot be cut"):
        old.slice(0, 1)[0]


RANK = """
import sys, torch, torch.distributed as dist
from torch.distributed.nn.functional import all_gather
sys.path.insert(0, sys.argv[1])
from test_context_parallel import PLACEHOLDERS, embeddings
from omniprep import PackedDataset, collate
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=int(sys.argv[4]), world_size=2)
ds = PackedDataset(sys.argv[2])

def model():
    torch.manual_seed(0)
    parts = {"words": torch.nn.Embedding(1000, 16), "media": torch.nn.Linear(1, 16), "head": torch.nn.Linear(16, 1000)}
    return torch.nn.ModuleDict(parts | {n: torch.nn.Linear(16, 16) for n in "qkv"}).double()

def loss_sum(net, batch, index, labels, weights, gather):
    states = net["words"](batch["input_ids"][0]) + batch["position_ids"][1, 0, :, None] / 50
    for modality, given in embeddings(batch).items():
        given = net["media"](given.double()[batch["media_index"][modality] if "media_index" in batch else slice(None), None])
        states = states.index_put([(batch["input_ids"][0] == PLACEHOLDERS[modality]).nonzero()[:, 0]], given)
    keys, values = gather(net["k"](states)), gather(net["v"](states))
    places = gather(index)
    row = lambda at: torch.searchsorted(batch["cu_seq_lens_q"].long(), at, right=True)
    seen = (row(index)[:, None] == row(places)) & (index[:, None] >= places)
    scores = (net["q"](states) @ keys.T).masked_fill(~seen, float("-inf"))
    logits = net["head"](scores.softmax(-1) @ values)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
    return (losses * weights).sum()

def together(tensor):
    return torch.cat(all_gather(tensor) if tensor.is_floating_point() else gathered(tensor))

def gathered(tensor):
    parts = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(parts, tensor)
    return parts

alone, shared = model(), model()
for number in range(len(ds)):
    whole, share = collate([ds[number]]), ds.slice(dist.get_rank(), 2)[number]
    length = whole["input_ids"].shape[1]
    labels = torch.cat([whole["labels"].as_subclass(torch.Tensor)[0, 1:], torch.tensor([-100])])
    scale = whole.get("loss_scale", torch.ones(1, length))[0]
    scale = torch.cat([scale[1:], torch.ones(1)])
    loss_sum(alone, whole, torch.arange(length), labels, scale, lambda tensor: tensor).backward()
    mine = share["shift_labels"][0]
    loss_sum(shared, share, share["token_index"], mine, share.get("loss_scale", torch.ones(1, len(mine)))[0], together).backward()
for (name, one), two in zip(alone.named_parameters(), shared.parameters()):
    dist.all_reduce(two.grad)
    assert one.grad.abs().max() > 1e-3 or name == "k.bias", "which softmax takes away"
    torch.testing.assert_close(two.grad, one.grad, rtol=1e-6, atol=1e-9)
print("equal")
"""


def test_the_gradients_of_two_ranks_are_those_of_one(ds, tmp_path):
    """One layer of causal attention whose keys and values are gathered, in float64, over gloo."""
    here = str(Path(__file__).parent)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, here, ds.uri, str(tmp_path / "store"), str(rank)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [run.communicate(timeout=300) for run in runs]
    assert [out for out, _ in outputs] == ["equal\n", "equal\n"], outputs[0][1][-2000:]
