"""Risk: a class of transformers that nobody wrote anything for trains on bins as something else than itself.

Small random checkpoints (testing/), rows as each checkpoint's own processor makes them, longer than every window.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from any_rows import one_bin, row_slices, rows_of
from PIL import Image
from test_train_masks import SIZES, WORDS, language_model

from omniprep.data import PackedDataset
from omniprep.errors import OmniprepError
from omniprep.testing.init_model import init_model
from omniprep.train import any_class
from omniprep.train.any_class import AnyPacked, FinishedHead, load_any, unchanged
from omniprep.train.attention_choice import own_attention, use_attention
from omniprep.train.batches import Batcher, forward_kwargs
from omniprep.train.isolation import check_isolation, check_losses, check_rows, filler_rows, text_row
from omniprep.train.loss import TokenLoss, make_loss_head
from omniprep.train.model import check_packing
from omniprep.train.structure import derive_parts, describe_parts, find_decoder

FAMILIES = ("gemma3", "llava_onevision", "internvl", "smolvlm", "audioflamingo3", "glm4v", "qwen3_5")
PARTS = {
    "gemma3": ("model.language_model", ["model.vision_tower"], ["model.multi_modal_projector"]),
    "llava_onevision": (
        "model.language_model", ["model.vision_tower"], ["model.multi_modal_projector", "model.image_newline"]
    ),
    "internvl": ("model.language_model", ["model.vision_tower"], ["model.multi_modal_projector"]),
    "smolvlm": ("model.text_model", ["model.vision_model"], ["model.connector"]),
    "audioflamingo3": ("model.language_model", ["model.audio_tower"], ["model.multi_modal_projector"]),
    "glm4v": ("model.language_model", ["model.visual"], ["model.visual.merger"]),
    "qwen3_5": ("model.language_model", ["model.visual"], ["model.visual.merger"]),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    """Family, folder, and the model as it is loaded for training, with larger weights than the initial ones."""
    folder = tmp_path_factory.mktemp("any") / request.param
    init_model(folder, request.param)
    return request.param, folder, loaded(folder)


def loaded(folder):
    names = json.loads((folder / "config.json").read_text())["architectures"]
    model = load_any(str(folder), names, torch.float32, "sdpa", trust_remote_code=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # attention hardly matters with the initial ones
            if parameter.ndim > 1 and float(parameter.std()) < 0.05:
                parameter.mul_(4)
    use_attention(model, "sdpa", derive_parts(model).towers)
    model.prove(words(model))
    return model


def words(model):
    return model.config.get_text_config().vocab_size


def positioned(model, rows):
    """Rows with m-rope positions as the model's own function makes them, where it has any."""
    for row in rows if model.mrope else ():
        grids = {name: row[name] for name in ("image_grid_thw", "video_grid_thw") if name in row}
        axes = model.model.get_rope_index(row["input_ids"], mm_token_type_ids=row["mm_token_type_ids"], **grids)[0]
        row["position_ids"] = torch.cat([torch.arange(axes.shape[-1])[None, None], axes])
    return rows


@pytest.fixture(scope="module")
def bins(checkpoint):
    """Rows of the checkpoint alone, and as one bin."""
    family, folder, model = checkpoint
    rows = positioned(model, rows_of(str(folder), pairs=family != "audioflamingo3"))
    made = one_bin(rows)
    if not model.mrope:
        made["position_ids"] = torch.cat([torch.arange(n) for n in made["row_lengths"]])[None]
    return rows, made


def test_packed_logits_are_those_of_the_classs_own_forward_pass_on_each_row(checkpoint, bins):
    _, _, model = checkpoint
    rows, packed = bins
    longest = max(packed["row_lengths"])
    windows = [w for w in (getattr(model.config.get_text_config(), "sliding_window", None),) if w]
    assert longest > max(windows, default=0) and len(rows) > 3
    with torch.no_grad():
        found = model(**packed).logits[0]
        for place, row in zip(row_slices(packed["row_lengths"]), rows, strict=True):
            with own_attention(model, "eager"):
                alone = model.plain_forward(**row).logits[0]
            torch.testing.assert_close(found[place], alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))
    check_isolation(model, words(model), mrope=model.mrope)
    text = text_row(model, words(model), 512, mrope=model.mrope)
    check_rows(model, {"a text": text})
    check_losses(model, {"a text": text})


def test_stored_positions_that_are_not_the_classs_own_are_refused(checkpoint, bins):
    """Of glmga's rows every position was that of text, and the check, which gave them to both sides, saw nothing."""
    _, _, model = checkpoint
    if not model.mrope:
        pytest.skip("positions of this class are those of text, which are not stored")
    rows, _ = bins
    row = next(row for row in rows if "pixel_values" in row)
    check_rows(model, {"a picture": row})
    length = row["input_ids"].shape[1]
    plain = torch.arange(length).expand(4, 1, -1)
    with pytest.raises(OmniprepError, match="computes something else on a picture"):
        check_rows(model, {"a picture": {**row, "position_ids": plain}})
    # Rows of processors that give token types to those alone who ask (Cosmos 3 Edge).
    bare = {name: value for name, value in row.items() if name != "mm_token_type_ids"}
    with torch.no_grad(), own_attention(model, "eager"):
        assert torch.equal(model.plain_forward(**bare).logits, model.plain_forward(**row).logits)
    dataset = SimpleNamespace(layout=SimpleNamespace(mrope=False))
    with pytest.raises(OmniprepError, match="no m-rope positions.*build it again"):
        check_packing(model, [dataset], torch.float32)


def test_media_of_16_bits_are_taken_in_the_type_of_the_weights(tmp_path):
    """Llama 4's processor gives bfloat16, and its class leaves it so."""
    init_model(tmp_path / "m", "llama4")
    model = loaded(tmp_path / "m")
    row = next(row for row in rows_of(str(tmp_path / "m")) if "pixel_values" in row)
    assert row["pixel_values"].dtype == torch.bfloat16 and model.dtype == torch.float32
    with torch.no_grad():
        with own_attention(model, "eager"):
            expected = model.bare()(**{**row, "pixel_values": row["pixel_values"].float()}).logits
            torch.testing.assert_close(model.plain_forward(**row).logits, expected)
        torch.testing.assert_close(model(**row).logits, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("error", [ValueError("pixel_values and more"), RuntimeError("12 != 48"), KeyError("grid")])
def test_a_class_that_fails_on_a_row_of_the_data_is_refused_in_one_line(error, tmp_path, monkeypatch):
    language_model("Llama").save_pretrained(tmp_path / "m")
    model = loaded(tmp_path / "m")
    row = text_row(model, WORDS, 512, mrope=False)

    def fail(*_, **__):
        raise error

    for method in ("class_forward", "plain_forward"):
        with monkeypatch.context() as patch, pytest.raises(OmniprepError, match="fails on a text.*so that it") as found:
            patch.setattr(type(model), method, fail)
            check_rows(model, {"a text": row})
        assert type(error).__name__ in str(found.value) and "\n" not in str(found.value)


def test_logits_and_losses_at_some_positions_are_those_of_the_whole(checkpoint, bins):
    _, _, model = checkpoint
    _, packed = bins
    make_loss_head(model.get_output_embeddings())
    where = torch.arange(3, packed["input_ids"].shape[1], 5)
    targets = where % 100
    with torch.no_grad():
        whole = model(**packed).logits[0][where]
        kept = model(**packed, logits_to_keep=where).logits[0]
        out = model(**packed, logits_to_keep=where, targets=targets)
    torch.testing.assert_close(kept, whole)
    torch.testing.assert_close(out.losses, torch.nn.functional.cross_entropy(whole, targets, reduction="none"))
    assert torch.equal(out.correct, whole.argmax(-1) == targets)


def test_parts_are_found_by_the_classs_own_structure(checkpoint):
    family, _, model = checkpoint
    inner, towers, aligner = PARTS[family]
    parts = derive_parts(model)
    assert (parts.language_model, list(parts.towers), list(parts.aligner)) == ((inner,), towers, aligner)
    model.requires_grad_(False)
    model.get_submodule(inner).requires_grad_(True)
    text = describe_parts(model, parts)
    model.requires_grad_(True)
    assert f"language model {inner} (trains)" in text and f"towers {towers[0]} (frozen)" in text


def test_gradients_of_a_bin_are_the_sum_of_those_of_its_rows(checkpoint, bins):
    """With layers computed again in the backward pass, which read the borders a second time."""
    _, _, model = checkpoint
    rows, packed = bins
    decoder = find_decoder(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        grads = []
        for batches in ([packed], [one_bin([row]) for row in rows]):
            model.zero_grad()
            model.train()
            for batch in batches:
                length = batch["input_ids"].shape[1]
                model(
                    **batch, logits_to_keep=torch.arange(length), targets=batch["input_ids"][0]
                ).losses.sum().backward()
            grads.append(torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None]))
    finally:
        model.gradient_checkpointing_disable()
        model.eval()
        model.zero_grad()
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4 * float(grads[0].abs().max()))


def test_arguments_that_nobody_reads_are_refused(checkpoint, bins):
    _, _, model = checkpoint
    rows, _ = bins
    for name, value in {"pixel_valeus": torch.zeros(1), "labels": rows[0]["input_ids"]}.items():
        with pytest.raises(OmniprepError, match=f"does not take {name}"):
            model(rows[0]["input_ids"], **{name: value})


FINISHED = {
    "Gemma2": {"final_logit_softcapping": 3.0},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "Llama": {},
}


@pytest.mark.parametrize("name", FINISHED)
def test_what_a_class_does_to_its_logits_is_done_to_those_of_the_targets(name, tmp_path, monkeypatch):
    language_model(name, **FINISHED[name]).save_pretrained(tmp_path / "m")
    model = loaded(tmp_path / "m")
    assert isinstance(model, AnyPacked) and model.finish is not None
    assert (model.finish is unchanged) == (name == "Llama")
    row = text_row(model, WORDS, 512, mrope=False)
    check_rows(model, {"a text": row})
    check_losses(model, {"a text": row})
    with monkeypatch.context() as patch:
        patch.setattr(any_class, "token_loss", lambda *_: TokenLoss(torch.zeros(64)))
        with pytest.raises(OmniprepError, match="losses of .* on a text are not those of its logits"):
            check_losses(model, {"a text": row})
    right = model.finish
    model.finish = lambda logits: torch.tanh(right(logits))
    with pytest.raises(OmniprepError, match="own forward pass"):
        check_rows(model, {"a text": row})


def test_the_finish_of_a_head_is_no_weight_of_its_own():
    head = torch.nn.Linear(4, 6)
    assert not list(FinishedHead(head, unchanged).parameters())


MIXERS = {
    "short convolutions": ("Lfm2", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    "state spaces": (
        "Bamba",
        {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
         "mamba_chunk_size": 16},
    ),
    "linear attention": (
        "Qwen3Next",
        {"layer_types": ["linear_attention", "full_attention"], "num_experts": 2, "num_experts_per_tok": 1,
         "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2,
         "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MIXERS)
def test_layers_that_carry_a_state_compute_each_row_alone(case, tmp_path):
    name, options = MIXERS[case]
    language_model(name, **options).save_pretrained(tmp_path / "m")
    model = loaded(tmp_path / "m")
    check_isolation(model, WORDS, mrope=False)
    lengths = [5, 40, 1, 17]
    rows = [{"input_ids": (torch.arange(n)[None] * 7919 + n) % WORDS} for n in lengths]
    with torch.no_grad():
        packed = model(**one_bin(rows), position_ids=torch.cat([torch.arange(n) for n in lengths])[None]).logits[0]
        with own_attention(model, "eager"):
            alone = torch.cat([model.plain_forward(**row).logits[0] for row in rows])
    torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))


def test_models_whose_rows_cannot_be_packed_are_refused_by_name():
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = small | {"attention_heads": 2, "num_global_layers": 1, "vision_output_dim": 64, "image_size": 28,
                      "patch_size": 14, "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]}  # fmt: skip
    text = SIZES | {"cross_attention_layers": [1], "rope_theta": 1e4}
    mllama = transformers.MllamaForConditionalGeneration(
        transformers.MllamaConfig(vision_config=vision, text_config=text)
    )
    with pytest.raises(
        OmniprepError, match=r"\(model type mllama\) attends to its media by cross-attention \(layers.1"
    ):
        find_decoder(mllama)
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=30, d_model=8, d_ff=8, num_layers=1))
    with pytest.raises(OmniprepError, match=r"\(model type t5\) is an encoder with a decoder"):
        find_decoder(t5)


def write_rows(folder):
    """Rows of text and with pictures, longer than the small models' windows."""
    rng = np.random.default_rng(0)
    rows = []
    for number, size in enumerate([(70, 90), (160, 120), (40, 200)]):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"{number}.png")
        question = {"role": "user", "content": "<image>what is it?"}
        rows.append({"messages": [question, {"role": "assistant", "content": "noise"}], "images": [f"{number}.png"]})
    long = [{"role": "user", "content": "many words " * 40}, {"role": "assistant", "content": "yes"}]
    rows += [{"messages": long} for _ in range(3)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_family_that_nobody_wrote_trains_with_frozen_towers_from_rows_to_checkpoint(tmp_path, omniprep):
    """Gemma 3 through the family hf: built, its parts named, its language model trained, loaded by transformers."""
    model, packed, out = tmp_path / "model", tmp_path / "packed", tmp_path / "run"
    init_model(model, "gemma3")
    rows = write_rows(tmp_path)
    omniprep("build", rows, "--model", model, "--bin-length", 256, "--workers", 0, "--family", "hf", "--out", packed)
    given = ("train", packed, "--model", model, "--device", "cpu", "--max-steps", 1, "--learning-rate", 0.01)
    done = omniprep(*given, "--warmup", 0, "--out", out)
    assert done.code == 0, done.err
    assert "language model model.language_model (trains); towers model.vision_tower (frozen)" in done.out + done.err
    before, after = (transformers.AutoModelForImageTextToText.from_pretrained(each) for each in (model, out))
    kept = dict(before.named_parameters())
    changed = {name for name, p in after.named_parameters() if not torch.equal(p.float(), kept[name].float())}
    assert changed and not any("vision_tower" in name or "projector" in name for name in changed)


def test_a_filler_lets_towers_run_and_changes_nothing(tmp_path, omniprep):
    model, packed = tmp_path / "model", tmp_path / "packed"
    init_model(model, "internvl")
    rows = write_rows(tmp_path)
    omniprep("build", rows, "--model", model, "--bin-length", 256, "--workers", 0, "--out", packed)
    data = PackedDataset(str(packed))
    trained = loaded(model)
    batcher = Batcher(data.layout.modalities)
    text = next(data[n] for n in range(len(data)) if not np.asarray(data[n]["row_items"]).any())
    results = []
    for fillers in ({}, filler_rows([data])):
        batcher.fillers = fillers
        batch = batcher([text])
        kwargs = forward_kwargs(batch, torch.device("cpu"), torch.float32)
        trained.zero_grad()
        out = trained(
            **kwargs,
            row_lengths=batch["numbers"].row_lengths,
            logits_to_keep=batch["positions"],
            targets=batch["targets"],
        )
        out.losses.sum().backward()
        towers = [p.grad for name, p in trained.named_parameters() if "vision_tower" in name]
        results.append((out.losses.detach(), trained.get_output_embeddings().weight.grad.clone(), towers))
        assert batch["tokens"] == len(text["input_ids"])
    (losses, gradient, unused), (same_losses, same_gradient, used) = results
    torch.testing.assert_close(same_losses, losses)
    torch.testing.assert_close(same_gradient, gradient)
    assert all(grad is None for grad in unused) and any(grad is not None for grad in used)
    assert not any(grad.any() for grad in used if grad is not None)


def test_a_prompt_whose_tokens_see_each_other_stays_in_its_row(tmp_path):
    """PaliGemma: image and prompt are one block in every row, and the answer is causal."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14, "projection_dim": 32}
    text = SIZES | {"model_type": "gemma"}
    config = transformers.PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=32, image_token_id=299)
    torch.manual_seed(0)
    transformers.PaliGemmaForConditionalGeneration(config).save_pretrained(tmp_path / "m")
    model = loaded(tmp_path / "m")
    rows = [
        {
            "input_ids": (torch.arange(length)[None] * 7919 + length) % 290,
            "token_type_ids": (torch.arange(length)[None] >= prompt).long(),
        }
        for length, prompt in ((20, 12), (7, 3), (30, 29))
    ]
    packed = one_bin(rows)
    packed["position_ids"] = torch.cat([torch.arange(n) for n in packed["row_lengths"]])[None]
    with torch.no_grad():
        found = model(**packed).logits[0]
        causal = model(**(packed | {"token_type_ids": torch.ones_like(packed["input_ids"])})).logits[0]
        with own_attention(model, "eager"):
            alone = torch.cat([model.plain_forward(**row).logits[0] for row in rows])
    torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))
    assert not torch.allclose(found, causal, atol=0.01), "the prompts must matter"


class Barring(transformers.Qwen2ForCausalLM):
    """Bars some words in place, as Chameleon bars the tokens of images."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits[..., 5:9] = torch.finfo(out.logits.dtype).min
        return out


def test_a_class_that_bars_words_makes_its_logits_itself(tmp_path, monkeypatch):
    language_model("Qwen2").save_pretrained(tmp_path / "m")
    monkeypatch.setattr(any_class, "model_class", lambda names: Barring)
    model = loaded(tmp_path / "m")
    assert model.finish is None
    row = text_row(model, WORDS, 512, mrope=False)
    check_rows(model, {"a text": row})
    check_losses(model, {"a text": row})
    assert float(model(**row, logits_to_keep=torch.tensor([3])).logits[0, 0, 6]) < -1e30
