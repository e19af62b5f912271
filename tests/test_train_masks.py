"""Risk: a model whose attention is not plainly causal trains as if it were, which only shows as a worse model."""

import numpy as np
import pytest
import torch
import transformers
from train_helpers import forward_kwargs, make_row, small_family, small_model, write_dataset, write_model
from transformers.masking_utils import (
    and_masks,
    blockwise_overlay,
    causal_mask_function,
    or_masks,
    sliding_window_overlay,
)

from omniprep.data import PackedDataset
from omniprep.errors import OmniprepError
from omniprep.train import attention, isolation
from omniprep.train.attention import row_attention
from omniprep.train.attention_choice import use_attention
from omniprep.train.config import TrainConfig
from omniprep.train.isolation import borders, check_isolation, check_rows, later_rows, media_rows, text_ids, text_row
from omniprep.train.masks import row_mask, understand
from omniprep.train.model import load_base, load_trainable
from omniprep.train.qwen2_5_omni import Qwen2_5OmniForConditionalGeneration
from omniprep.train.vision_text import take_plain_positions

WORDS = 300
SIZES = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


def language_model(name: str, **options):
    """A small random language model of transformers on position_ids as bins have them."""
    config = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config(**(SIZES | options))).eval()
    with torch.no_grad():  # the initial weights are so small that attention hardly matters
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    take_plain_positions(model)
    return model


WINDOWED = {
    "every layer": ("Mistral", {"sliding_window": 16}),
    "one layer of two": ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "own scaling": ("Gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 5, "attn_logit_softcapping": None}),
    "two rotations": ("Gemma3", {"sliding_window": 16}),
}
MORE = {
    "soft cap": ("Gemma2", {"sliding_window": 16, "attn_logit_softcapping": 2.0}),
    "sinks": ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 16}),
    "chunks": ("Llama4", {"attention_chunk_size": 16, "num_local_experts": 2, "intermediate_size_mlp": 48}),
    "both sides": ("Qwen2", {"is_causal": False}),
    "windows to both sides": ("Gemma3", {"sliding_window": 16, "use_bidirectional_attention": True}),
}


def rows_with_windows_equal_those_alone(case: str, attn: str):
    """A model of `WINDOWED` or `MORE` on rows shorter and longer than its window, in one bin, against eager attention on each."""
    name, options = (WINDOWED | MORE)[case]
    model = language_model(name, **options)
    lengths = [5, 70, 16, 17, 33]
    ids = text_ids(sum(lengths), WORDS, torch.device("cpu"))[None]
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(4, 1, -1)
    use_attention(model, attn)
    with torch.no_grad():
        packed = model(ids, position_ids=positions, use_cache=False, **borders(lengths, ids.device)).logits[0]
        model.config.get_text_config()._attn_implementation = "eager"
        alone = torch.cat([model(row, use_cache=False).logits[0] for row in ids.split(lengths, 1)])
    torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))
    return model


@pytest.mark.parametrize("case", WINDOWED)
@pytest.mark.parametrize("queries", [2048, 7])
def test_sliding_windows_are_those_of_each_row_alone(case, queries, monkeypatch):
    """Rows shorter and longer than the window and than a block of queries, against the model's own eager attention."""
    monkeypatch.setattr(attention, "QUERIES", queries)
    model = rows_with_windows_equal_those_alone(case, "sdpa")
    use_attention(model, "sdpa")
    check_isolation(model, WORDS)
    row = text_row(model, WORDS, 512)
    assert row["input_ids"].shape == (1, 64), "four times the window"
    check_rows(model, {"a long row of text": row})


@pytest.mark.parametrize("case", MORE)
@pytest.mark.parametrize(("queries", "scored"), [(2048, 256), (7, 5)])
def test_attention_that_is_more_than_causal_is_that_of_each_row_alone(case, queries, scored, monkeypatch):
    """Soft caps, sinks, chunks and masks to both sides, in one call for a row and in many."""
    monkeypatch.setattr(attention, "QUERIES", queries)
    monkeypatch.setattr(attention, "SCORED", scored)
    rows_with_windows_equal_those_alone(case, "sdpa")


@pytest.mark.parametrize("case", ["soft cap", "sinks"])
def test_gradients_through_recomputed_scores_are_those_of_eager_attention(case, monkeypatch):
    monkeypatch.setattr(attention, "SCORED", 5)
    name, options = MORE[case]
    ids = text_ids(40, WORDS, torch.device("cpu"))[None]
    gradients = []
    for attn in ("sdpa", "eager"):
        model = language_model(name, **options)
        use_attention(model, attn)
        packing = borders([40], ids.device) if attn == "sdpa" else {}
        model(ids, use_cache=False, **packing).logits.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))


def gemma3(window=16):
    """A small Gemma 3 with its vision tower."""
    text, vision = SIZES | {"sliding_window": window}, {"hidden_size": 16, "intermediate_size": 16}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    take_plain_positions(model)
    return model


# 1 is a token of an image: at the beginning and end of rows, two images in one, one longer than the window.
SPANS = ["0011110000", "1111", "0" * 30 + "1" * 25 + "0" * 9 + "1" * 4 + "00", "0000000", "1" * 20 + "0" * 20]


@pytest.mark.parametrize("queries", [2048, 7])
def test_tokens_of_an_image_see_each_other_in_their_row_alone(queries, monkeypatch):
    """Gemma 3: image spans in full layers and in those with windows, rows that begin and end with an image."""
    monkeypatch.setattr(attention, "QUERIES", queries)
    model = gemma3()
    lengths = [len(span) for span in SPANS]
    ids = text_ids(sum(lengths), WORDS, torch.device("cpu"))[None]
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(4, 1, -1)
    of_image = torch.tensor([[int(digit) for digit in "".join(SPANS)]])
    given = {"token_type_ids": of_image, "use_cache": False, "position_ids": positions}
    with torch.no_grad():
        use_attention(model, "sdpa")
        packed = model(ids, **given, **borders(lengths, ids.device)).logits[0]
        causal = model(ids, **(given | {"token_type_ids": None}), **borders(lengths, ids.device)).logits[0]
        model.config.get_text_config()._attn_implementation = "eager"
        alone = torch.cat(
            [
                model(row, token_type_ids=types, use_cache=False).logits[0]
                for row, types in zip(ids.split(lengths, 1), of_image.split(lengths, 1), strict=True)
            ]
        )
    torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))
    assert not torch.allclose(packed, causal, atol=0.1), "the spans must matter"


def seen_by(rule, row, length):
    """bool (L, L) of a row that begins at `row`."""
    places = torch.arange(row, row + length)
    return rule.sees(places[:, None], places[None], row)


def test_rules_of_a_models_own_file_are_read_by_what_they_hold():
    """Numbers alone: positions within the row. Tensors of the bin's length: places in the bin. Else: refused."""
    stride, marks = 3, torch.arange(10)[None] % 2

    def every_third(batch, head, q, k):
        return k % stride == 0

    def alike(batch, head, q, k):
        return marks[batch, q] == marks[batch, k]

    assert understand(every_third, 10) is not None
    assert seen_by(understand(every_third, 10), 4, 4)[0].tolist() == [True, False, False, True]
    assert seen_by(understand(alike, 10), 4, 4)[0].tolist() == [True, False, True, False]
    assert understand(alike, 11) is None, "a tensor that is not of the bin"
    both = and_masks(causal_mask_function, or_masks(every_third, lambda *_: every_third(*_)))
    assert understand(both, 10) is None, "it holds a function that cannot be read"
    with pytest.raises(OmniprepError, match=r"type gpt2 attends by a mask that omniprep cannot read \(test_rules"):
        row_mask(1, 10, 10, mask_function=both, config=transformers.GPT2Config())


@pytest.mark.parametrize(
    ("ids", "longest"), [([-1, -1], 0), ([0, 0, -1, 1, 1, 1, -1], 2), ([0, 0, -1, -1, 0], 4), ([5], 0)]
)
def test_the_longest_block_bounds_what_a_token_sees_ahead(ids, longest):
    block = blockwise_overlay(torch.tensor([ids]))
    assert understand(block, len(ids)).furthest_ahead() == longest
    spans = and_masks(sliding_window_overlay(16), or_masks(causal_mask_function, block))
    assert (understand(spans, len(ids)).back, understand(spans, len(ids)).furthest_ahead()) == (15, longest)


@pytest.mark.parametrize("softcap", [None, 50.0])
@pytest.mark.parametrize("window", [None, 3])
def test_masks_and_biases_that_a_model_makes_itself_are_cut_by_rows(window, softcap, monkeypatch):
    """A dense mask of the bin, and a bias (relative positions) beside causal attention and a window."""
    monkeypatch.setattr(attention, "QUERIES", 3)
    monkeypatch.setattr(attention, "SCORED", 3)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 4, 10, 8) for _ in range(3))
    bias = torch.randn(1, 4, 10, 10)
    given = {"row_lengths": [6, 4], "softcap": softcap}
    masked = row_attention(torch.nn.Module(), query, key, value, bias, **given)[0]
    biased = row_attention(
        torch.nn.Module(), query, key, value, None, position_bias=bias, sliding_window=window, **given
    )[0]
    for rows in (slice(0, 6), slice(6, 10)):
        scores = query[:, :, rows] @ key[:, :, rows].transpose(2, 3) * 8**-0.5
        scores = torch.tanh(scores / softcap) * softcap if softcap else scores
        scores = scores + bias[:, :, rows, rows]
        length = scores.shape[-1]
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        seen &= ~torch.ones(length, length, dtype=torch.bool).tril(-(window or length))
        for found, each in ((masked, scores), (biased, scores.masked_fill(~seen, -torch.inf))):
            torch.testing.assert_close(found[:, rows], (each.softmax(-1) @ value[:, :, rows]).transpose(1, 2))


ARGUMENTS = {
    "head_mask": torch.ones(4),
    "layer_head_mask": torch.ones(4),
    "output_attentions": True,
    "indices": torch.zeros(1),
    "an_argument_of_tomorrow": 0,
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_unknown_argument_of_an_attention_layer_is_refused(name):
    class StrangeAttention(torch.nn.Module):
        config = transformers.Qwen2Config()

    heads = torch.randn(1, 4, 6, 8)
    known = {"row_lengths": [4, 2], "position_ids": torch.arange(6), "use_cache": False, "max_length_q": 4}
    row_attention(StrangeAttention(), heads, heads, heads, None, **known, **{name: None})
    with pytest.raises(OmniprepError, match=rf"StrangeAttention \(model type qwen2\) attends with {name}"):
        row_attention(StrangeAttention(), heads, heads, heads, None, **known, **{name: ARGUMENTS[name]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"is_causal": False, "sliding_window": 4}, "a sliding window to both sides"),
        ({"attention_mask": torch.ones(1, 6, dtype=torch.bool)}, r"attention_mask of shape \(1, 6\)"),
        ({"attention_mask": torch.empty(1, 1, 0, 0)}, "has lost its rule"),
        ({"position_bias": torch.ones(1, 4, 6, 5)}, r"a position_bias of shape \(1, 4, 6, 5\)"),
        ({"attention_mask": torch.empty(1, 1, 0, 3), "sliding_window": 4}, "window of 4 with a mask of one of 3"),
        ({"row_lengths": [4, 1]}, "whose rows fill it"),
        ({"row_lengths": None}, "got no row borders"),
    ],
)
def test_what_row_by_row_attention_cannot_take(arguments, message):
    heads = torch.randn(1, 4, 6, 8)
    given = {"attention_mask": None, "row_lengths": [4, 2]} | arguments
    with pytest.raises(OmniprepError, match=message):
        row_attention(torch.nn.Module(), heads, heads, heads, **given)


@pytest.mark.parametrize("window", [None, 3])
def test_scaling_and_dropout_are_not_ignored(window):
    torch.manual_seed(0)
    heads = torch.randn(1, 4, 6, 8)

    def attend(**arguments):
        return row_attention(
            torch.nn.Module(), heads, heads, heads, None, row_lengths=[6], sliding_window=window, **arguments
        )[0]

    usual = attend()
    torch.testing.assert_close(attend(scaling=8**-0.5), usual)
    assert not torch.allclose(attend(scaling=1.0), usual)
    assert not torch.allclose(attend(dropout=0.5), usual)


def test_padding_or_a_cache_beside_packing_is_refused():
    model = language_model("Qwen2")
    use_attention(model, "sdpa")
    ids = text_ids(6, WORDS, torch.device("cpu"))[None]
    with pytest.raises(OmniprepError, match="without padding"):
        model(ids, attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1]]), use_cache=False, **borders([6], ids.device))


def test_a_window_that_gets_lost_shows_in_the_numbers(monkeypatch):
    """Where neither mask nor argument tells of the window, the comparison with the model's own forward pass does."""
    name, options = WINDOWED["every layer"]
    model = language_model(name, **options)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "sdpa")
    monkeypatch.setattr(isolation, "borders", lambda lengths, device: {})
    row = text_row(model, WORDS, 512)
    check_rows(model, {"a long row of text": row})
    wide = language_model(name, sliding_window=None)
    wide.plain_forward = model.forward  # what trains has no window, what it is held against has one
    with pytest.raises(OmniprepError, match="a long row of text"):
        check_rows(wide, {"a long row of text": row})


def test_rows_of_the_data_are_held_against_the_models_own_forward_pass(tmp_path, monkeypatch):
    """With picture or sound left out, the run does not start; as it is, it does."""
    folder, model = write_dataset(tmp_path / "d", bins=5), write_model(tmp_path / "model")
    datasets, config = [PackedDataset(str(folder))], TrainConfig(device="cpu", freeze_vit=False)
    ctx, cpu = small_family(model), torch.device("cpu")
    assert set(media_rows(datasets, cpu, torch.float32)) == {f"a row with {m}" for m in ("image", "audio", "video")}
    load_trainable(ctx, str(model), config, cpu, datasets)
    for part, what in (("add_visual", "image|video"), ("add_audio", "audio")):
        with monkeypatch.context() as patch:
            nothing = {
                "add_visual": lambda self, core, embeds, *_: (embeds, {}),
                "add_audio": lambda self, core, embeds, *_: embeds,
            }
            patch.setattr(Qwen2_5OmniForConditionalGeneration, part, nothing[part])
            with pytest.raises(OmniprepError, match=f"on a row with ({what}) of a bin"):
                load_trainable(ctx, str(model), config, cpu, datasets)


def test_media_that_are_right_in_the_first_row_alone_are_noticed(tmp_path, monkeypatch):
    """Classes that count patches from the start of their call; neither the shortest nor the last row shows it."""
    kinds, seed = ("image", "image", "text"), 1
    folder, model = write_dataset(tmp_path / "d", bins=1, seed=seed, kinds=kinds), write_model(tmp_path / "model")
    datasets, config = [PackedDataset(str(folder))], TrainConfig(device="cpu")
    later = later_rows(datasets)
    assert {what: row.number for what, row in later.items()} == {"a later row with image": 1}
    assert isolation.shortest_rows(datasets)["image"].number == 0, "choose another seed"
    load_trainable(small_family(model), str(model), config, torch.device("cpu"), datasets)
    add_visual = Qwen2_5OmniForConditionalGeneration.add_visual

    def first_alone(self, core, embeds, pixels, grids, numbers):
        added, deep = add_visual(self, core, embeds, pixels, grids, numbers)
        added[:, numbers.row_lengths[0] :] = embeds[:, numbers.row_lengths[0] :]
        return added, deep

    monkeypatch.setattr(Qwen2_5OmniForConditionalGeneration, "add_visual", first_alone)
    with pytest.raises(OmniprepError, match="on a later row with image between the other rows of its bin"):
        load_trainable(small_family(model), str(model), config, torch.device("cpu"), datasets)


def test_rows_are_checked_where_training_runs_and_towers_are_loaded_with_sdpa(tmp_path, monkeypatch):
    """Kernels of a GPU run there alone, and towers have no flex attention."""
    from omniprep.train import model as model_module

    folder, model = write_dataset(tmp_path / "d", bins=2), write_model(tmp_path / "model")
    checked, loaded = [], []
    load = model_module.load_base
    monkeypatch.setattr(
        model_module, "check_packing", lambda model, *_: checked.append(next(model.parameters()).device.type)
    )
    monkeypatch.setattr(model_module, "load_base", lambda *a, **k: (loaded.append(a[3]), load(*a, **k))[1])
    monkeypatch.setattr(model_module, "check_attention", lambda *_, **__: None)
    monkeypatch.setattr("omniprep.train.attention_choice.check_attention", lambda *_, **__: None)
    there = torch.device("meta")
    for name in ("auto", "flex_attention", "eager"):
        trained, _ = load_trainable(
            small_family(model), str(model), TrainConfig(attn=name), there, [PackedDataset(str(folder))]
        )
        core = trained.thinker.model
        assert core.visual.config._attn_implementation == core.audio_tower.config._attn_implementation == loaded[-1]
    assert trained.config.get_text_config()._attn_implementation == "eager"
    assert checked == ["meta"] * 3 and loaded == ["sdpa", "sdpa", "eager"]


@pytest.mark.parametrize("name", ["varlen", "flex_attention", "sdpa"])
def test_what_a_kernel_refuses_at_its_first_call_is_one_line(name, tmp_path, monkeypatch):
    from omniprep.train import model as model_module

    def fail(*_):
        raise RuntimeError("FlashAttention only supports\nAmpere GPUs or newer")

    folder, model = write_dataset(tmp_path / "d", bins=2), write_model(tmp_path / "model")
    for function, replaced in (
        ("check_attention", lambda *_, **__: None),
        ("choose_attention", lambda *_, **__: name),
        ("use_attention", lambda *_: None),
        ("check_packing", fail),
    ):
        monkeypatch.setattr(model_module, function, replaced)
    kind, text = RuntimeError, "FlashAttention only"
    if name != "sdpa":
        kind, text = OmniprepError, f"--attn {name} cannot .* only supports Ampere GPUs or newer; use --attn sdpa"
    with pytest.raises(kind, match=text):
        load_trainable(
            small_family(model), str(model), TrainConfig(), torch.device("cpu"), [PackedDataset(str(folder))]
        )


def test_a_modality_of_late_bins_is_found_by_the_table_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "SEARCHED", 1)
    counts = {"rows": {"read": 9, "packed": 9, "rejected": 0}, "tokens": 90, "bins": 3}
    counts |= {"items": {"image": 1, "audio": 0, "video": 0}}
    folder = write_dataset(tmp_path / "d", bins=3, kinds=("text", "text", "text", "text", "image"), counts=counts)
    dataset = PackedDataset(str(folder))
    rows = dataset.rows.append_column("images", [np.array([0, 0, 0, 0, 0, 0, 0, 0, 1])])
    monkeypatch.setitem(dataset.__dict__, "rows", rows)
    assert set(media_rows([dataset], torch.device("cpu"), torch.float32)) == {"a row with image"}
    assert later_rows([dataset]) == {}


def test_a_second_row_of_late_bins_is_found_by_the_table_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "SEARCHED", 1)
    counts = {"rows": {"read": 9, "packed": 9, "rejected": 0}, "tokens": 90, "bins": 3}
    counts |= {"items": {"image": 3, "audio": 0, "video": 0}}
    # The bins' kinds: text image text, image text image, text image text.
    folder = write_dataset(tmp_path / "d", bins=3, kinds=("text", "image"), counts=counts)
    dataset = PackedDataset(str(folder))
    images = [int(number in (1, 3, 5, 7)) for number in range(9)]
    monkeypatch.setitem(dataset.__dict__, "rows", dataset.rows.append_column("images", [np.array(images)]))
    found = later_rows([dataset])
    assert [(what, row.bin, row.number) for what, row in found.items()] == [("a later row with image", 1, 2)]


def test_a_forward_pass_refuses_what_it_would_ignore():
    model = small_model().eval()
    use_attention(model, "sdpa")
    kwargs = forward_kwargs([make_row("text", np.random.default_rng(0))])
    model(**kwargs, labels=None, output_attentions=False, use_cache=True)
    for name, value in {"labels": kwargs["input_ids"], "loss_scale": torch.ones(1), "output_attentions": True}.items():
        with pytest.raises(OmniprepError, match=f"does not take {name}"):
            model(**kwargs, **{name: value})


def test_a_family_without_a_hook_trains_as_transformers_loads_it(tmp_path):
    """`load_model = ""` is what a family has that says nothing; a text model needs no more."""
    from types import SimpleNamespace

    language_model("Qwen2").save_pretrained(tmp_path / "m")
    ctx = SimpleNamespace(
        name="plain", cls=SimpleNamespace(load_model=""), config={"architectures": ["Qwen2ForCausalLM"]}
    )
    model = load_base(ctx, str(tmp_path / "m"), torch.float32, "sdpa")
    use_attention(model, "sdpa")
    check_isolation(model, WORDS)
    check_rows(model, {"a row of text": text_row(model, WORDS, 512)})
    for hook, message in (("nowhere:load", "'nowhere:load' is no function"), ("nowhere", "is no function")):
        ctx.cls.load_model = hook
        with pytest.raises(OmniprepError, match=message):
            load_base(ctx, str(tmp_path / "m"), torch.float32, "sdpa")
    ctx.cls.load_model, ctx.config = "", {"architectures": ["ThinkerOfNowhere"]}
    with pytest.raises(OmniprepError, match="no class 'ThinkerOfNowhere'"):
        load_base(ctx, str(tmp_path / "m"), torch.float32, "sdpa")
