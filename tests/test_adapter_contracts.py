"""Risk: a trainer with a batch of its own takes bins for something else than they are.

What runs in every environment compares the batches with those of `omniprep.collate` by the rules of the trainers'
sources, which are named; where a trainer's package is installed, its own code makes the comparison.
"""

import importlib
import importlib.util
import sys

import numpy as np
import pytest
import torch
from synthetic import write_bins
from torch.nn.functional import cross_entropy
from train_helpers import AUDIO, COLUMNS, IMAGE, MODALITIES, VIDEO, make_row, small_config, small_model, to_bin
from transformers import Qwen2_5OmniForConditionalGeneration

import omniprep
from omniprep import PackedDataset, collate
from omniprep.adapters.automodel import AutomodelDataset, packed_collate
from omniprep.adapters.megatron_bridge import MegatronDataset
from omniprep.adapters.megatron_bridge import collate as megatron_collate
from omniprep.adapters.veomni import VeOmniDataset, register
from omniprep.errors import OmniprepError

TYPE = "qwen2_5_omni"
KINDS = ("text", "image", "audio", "video", "mixed")
TOKENS = {"image": IMAGE, "video": VIDEO, "audio": AUDIO}


def write(folder, kinds=KINDS, rows=3, multiple=1, weighted=False, first=None, **manifest) -> PackedDataset:
    """Bins of `rows` rows of these kinds in turn, each a multiple of `multiple` tokens; `first` changes the first."""
    rng, bins = np.random.default_rng(1), []
    for number in range(len(kinds)):
        made = [make_row(kinds[(number + i) % len(kinds)], rng) for i in range(rows)]
        for row in made:
            missing = -len(row["ids"]) % multiple
            row["ids"] = torch.cat([row["ids"], torch.full((missing,), 900)])
            more = row["positions"][:, -1:] + torch.arange(1, missing + 1)
            row["positions"] = torch.cat([row["positions"], more], 1)
        if first is not None and not number:
            first(made[0])
        bins.append(to_bin(made, rows * number, rng, weighted))
    items = {"image": sum(len(b.media["image_grid_thw"]) for b in bins)}
    items |= {"video": sum(len(b.media["video_grid_thw"]) for b in bins)}
    items |= {"audio": sum(len(b.media["audio_frames"]) for b in bins)}
    count = rows * len(bins)
    counts = {"rows": {"read": count, "packed": count, "rejected": 0}, "tokens": 1, "bins": len(bins), "items": items}
    manifest = {"placeholders": TOKENS, "model_types": [TYPE], "counts": counts} | manifest
    write_bins(
        folder, bins, COLUMNS, family="small", modalities=MODALITIES, weighted=weighted, bin_length=1024, **manifest
    )
    return PackedDataset(folder)


@pytest.fixture(scope="module")
def ds(tmp_path_factory) -> PackedDataset:
    return write(tmp_path_factory.mktemp("d") / "d")


def next_label(batch: dict) -> torch.Tensor:
    shifted = torch.cat([batch["labels"][0, 1:], torch.tensor([-100])])
    shifted[batch["cu_seq_lens_q"][1:].long() - 1] = -100
    return shifted


@pytest.mark.parametrize("made", [VeOmniDataset, AutomodelDataset, MegatronDataset])
def test_what_a_trainer_would_change_is_refused(made, tmp_path):
    texts = ("text", "image")
    with pytest.raises(OmniprepError, match="not 'qwen3_vl'"):
        made(write(tmp_path / "type", texts), "qwen3_vl")
    with pytest.raises(OmniprepError, match="has loss weights"):
        made(write(tmp_path / "weighted", texts, weighted=True), TYPE)
    assert len(made(str(tmp_path / "type"), TYPE)) == 2, "columns that no row has are no media that would be lost"


def test_a_sample_of_veomni_is_the_bin(ds):
    """Its collator: borders where the first axis of the positions is 0 (utils/seqlen_pos_transform_utils.py)."""
    samples = VeOmniDataset(ds, TYPE)
    assert len(samples) == len(ds)
    for number in range(len(ds)):
        (sample,), batch = samples[number], collate([ds[number]])
        assert (sample["position_ids"][0] == 0).nonzero()[:, 0].tolist() == batch["cu_seq_lens_q"][:-1].tolist()
        assert torch.equal(sample["position_ids"], batch["position_ids"][1:, 0])
        ids = sample["input_ids"].clone()
        for modality, token in TOKENS.items():
            assert not ids[sample[f"{modality}_mask"]].any()
            ids[sample[f"{modality}_mask"]] = token
        assert torch.equal(ids, batch["input_ids"][0]) and torch.equal(sample["labels"], batch["labels"][0])
        for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
            assert (name in sample) == (name in batch) and (name not in batch or torch.equal(sample[name], batch[name]))
        if "input_features" in batch:
            clips = torch.split(sample["input_features"], sample["audio_feature_lengths"].tolist())
            for clip, whole in zip(clips, batch["input_features"], strict=True):
                assert torch.equal(clip, whole[:, : len(clip)].T)


def test_veomni_would_see_rows_that_begin_with_an_image_as_several(tmp_path):
    def begin_with_two_zeros(row):
        row["positions"][:, :2] = 0

    bins = VeOmniDataset(write(tmp_path / "d", ("text", "text"), first=begin_with_two_zeros), TYPE)
    with pytest.raises(OmniprepError, match="bin 0 of .* would see 4 rows where there are 3"):
        bins[0]
    assert bins[1]


def test_old_manifests_name_no_placeholders(tmp_path):
    with pytest.raises(OmniprepError, match="build it again"):
        VeOmniDataset(write(tmp_path / "d", placeholders={}), TYPE)[0]


def test_the_collator_of_veomni_finds_the_borders(ds):
    pytest.importorskip("veomni", reason="veomni needs transformers 5.9, so it is tested in an environment of its own")
    from veomni.data.data_collator import MainCollator

    samples = VeOmniDataset(ds, TYPE)
    # The extra rules are those of its model: patched_modeling_qwen2_5_omni_gpu.py, get_extra_collate_infos.
    extra = {
        "audio_feature_lengths": (0, False, None, None),
        "input_features": (0, True, 0, 1),
        "audio_mask": (-1, False, 0, 1),
    }
    for numbers in ([0], [1], [2], [3, 4]):
        batch = MainCollator(data_collate_info=extra)([samples[number][0] for number in numbers])
        expected = collate([ds[number] for number in numbers])
        for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "labels"):
            assert torch.equal(torch.as_tensor(batch[name]), torch.as_tensor(expected[name])), name
        assert torch.equal(batch["position_ids"], expected["position_ids"][1:].transpose(0, 1))
        for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
            assert (name in batch) == (name in expected) and (
                name not in batch or torch.equal(batch[name], expected[name])
            )
        assert batch["audio_mask"].tolist() == (expected["input_ids"] == AUDIO).tolist()


def test_the_model_of_veomni_makes_the_same_of_a_row(tmp_path):
    """Rows alone, since its classes keep rows apart by flash attention, which no CPU has."""
    pytest.importorskip("veomni", reason="veomni needs transformers 5.9, so it is tested in an environment of its own")
    from veomni.data.data_collator import MainCollator
    from veomni.models.transformers.qwen2_5_omni.generated import patched_modeling_qwen2_5_omni_gpu as patched

    bins = write(tmp_path / "d", rows=1)
    torch.manual_seed(0)
    model = Qwen2_5OmniForConditionalGeneration(small_config()).float().eval()
    other = patched.Qwen2_5OmniForConditionalGeneration(model.config).float().eval()
    other.load_state_dict(model.state_dict())
    samples, extra = VeOmniDataset(bins, TYPE), other.get_extra_collate_infos()
    for number in range(len(bins)):
        batch = MainCollator(data_collate_info=extra, metadata_collate_func=other.get_metadata_collate_func())(
            samples[number]
        )
        batch.pop("labels")
        with torch.no_grad():
            torch.testing.assert_close(
                other.thinker(**batch).logits, model.thinker(**collate([bins[number]])).logits, rtol=1e-4, atol=1e-5
            )


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    for package in ("veomni", "veomni.data.dataset", "nemo_automodel"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OmniprepError, match=r"veomni.*pip install veomni==0\.1\.12"):
        register(TYPE)
    for module in ("llamafactory", "axolotl"):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, f"omniprep.adapters.{module}", raising=False)
        with pytest.raises(OmniprepError, match=f"pip install {module}=="):
            importlib.import_module(f"omniprep.adapters.{module}")
    with pytest.raises(OmniprepError, match=r"nemo_automodel.*pip install nemo-automodel==0\.7\.0"):
        packed_collate([{}])


def test_veomni_builds_a_packed_dataset_by_its_name(ds):
    pytest.importorskip("veomni", reason="veomni needs transformers 5.9, so it is tested in an environment of its own")
    from veomni.data.dataset import build_dataset

    register(TYPE)
    built = build_dataset(dataset_name="omniprep", transform=None, seed=1, train_path=ds.uri, max_seq_len=9)
    assert torch.equal(built[0][0]["input_ids"], VeOmniDataset(ds, TYPE)[0][0]["input_ids"])


def test_a_pack_of_automodel_is_the_bin(ds):
    """Its packs: nemo_automodel/components/datasets/vlm/neat_packing_vlm.py, _build_packed_vlm_sample."""
    packs = AutomodelDataset(ds, TYPE)
    for number in range(len(ds)):
        pack, batch = packs[number], collate([ds[number]])
        assert torch.equal(pack["labels"], next_label(batch)) and torch.equal(pack["input_ids"], batch["input_ids"][0])
        borders = pack["attention_mask"].diff().nonzero()[:, 0] + 1
        assert [0, *borders.tolist(), len(pack["input_ids"])] == batch["cu_seq_lens_q"].tolist()
        assert pack["attention_mask"][0] == 1 and torch.equal(pack["position_ids"], batch["position_ids"][1:, 0])
        assert pack["n_images"] == len(batch.get("image_grid_thw", ()))
    if importlib.util.find_spec("nemo_automodel"):
        with pytest.raises(OmniprepError, match="local_batch_size to 1"):
            packed_collate([pack, pack])


def test_the_batches_of_automodel_have_the_loss_of_the_bin(ds):
    """What its recipe does with a batch: FinetuneRecipeForVLM._forward_backward_step, which itself needs a GPU."""
    pytest.importorskip("nemo_automodel", reason="it is for GPUs, and is tested in an environment of its own")
    from nemo_automodel.components.loss.masked_ce import MaskedCrossEntropy
    from nemo_automodel.components.utils.model_utils import filter_forward_kwargs

    torch.manual_seed(0)
    model = Qwen2_5OmniForConditionalGeneration(small_config()).float().eval().thinker
    packs = AutomodelDataset(ds, TYPE)
    for number in range(len(ds)):
        batch, expected = packed_collate([packs[number]], processor=None), collate([ds[number]])
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**filter_forward_kwargs(model, batch)).logits
            loss = MaskedCrossEntropy()(logits, labels, num_label_tokens=int((labels != -100).sum()))
            whole = model(**expected).logits
        torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loss, omniprep.weighted_loss(whole, expected), rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def padded(tmp_path_factory) -> PackedDataset:
    return write(tmp_path_factory.mktemp("padded") / "d", ("text", "image"), multiple=12)


def test_a_micro_batch_of_megatron_bridge_has_the_loss_of_the_bin(padded):
    """Its loss: sum(losses * loss_mask) / sum(loss_mask), of labels that are shifted (training/losses.py)."""
    model = small_model().eval().thinker
    micro = MegatronDataset(padded, TYPE, context_parallel_size=2, tensor_parallel_size=3)
    assert len(micro) == len(padded) and (micro.row_multiple, micro.bin_multiple) == (12, 12)
    for number in range(len(padded)):
        batch, expected = megatron_collate([micro[number]]), collate([padded[number]])
        with torch.no_grad():
            logits = model(**expected).logits
        losses = cross_entropy(logits[0], batch["labels"][0], reduction="none", ignore_index=-100)
        mask = batch["loss_mask"][0]
        torch.testing.assert_close((losses * mask).sum() / mask.sum(), omniprep.weighted_loss(logits, expected))
        assert torch.equal(batch["labels"][0], next_label(expected))
        assert torch.equal(batch["position_ids"], expected["position_ids"][0])
        assert torch.equal(batch["cu_seqlens_q"], expected["cu_seq_lens_q"]) and batch["attention_mask"] is None
        assert batch["cu_seqlens_kv"] is batch["cu_seqlens_q"] and batch["cu_seqlens_q"].dtype == torch.int32
        assert int(batch["max_seqlen_q"]) == int(batch["cu_seqlens_q"].diff().max())
        if "pixel_values" in expected:
            media = batch["visual_inputs"].normalized_for_model()
            assert media.keys() == {"pixel_values", "image_grid_thw"}
            assert all(torch.equal(value, expected[name]) for name, value in media.items())
        else:
            assert batch["visual_inputs"] is None
    with pytest.raises(OmniprepError, match="micro_batch_size to 1"):
        megatron_collate([micro[0], micro[1]])


def test_rows_that_do_not_divide_among_the_ranks_say_how_to_build(padded, tmp_path):
    with pytest.raises(OmniprepError, match=r"no multiple of 20; build with --pad-rows-to 20"):
        MegatronDataset(padded, TYPE, context_parallel_size=2, tensor_parallel_size=10)[0]
    bins = MegatronDataset(write(tmp_path / "d", ("text", "text"), rows=1), TYPE, tensor_parallel_size=1024)
    with pytest.raises(OmniprepError, match=r"--pad-rows-to 1024"):
        bins[0]
    with pytest.raises(OmniprepError, match="at least 1"):
        MegatronDataset(padded, TYPE, context_parallel_size=0)


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_megatron_bridge_gets_no_media_that_it_would_lose_or_place_otherwise(kind, tmp_path):
    with pytest.raises(OmniprepError, match=f"the {kind} of .* would be lost"):
        MegatronDataset(write(tmp_path / "d", ("text", kind)), TYPE)
