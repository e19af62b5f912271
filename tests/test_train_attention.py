"""Risk: rows of a bin see each other, which only shows as a worse model."""

import numpy as np
import pytest
import torch
from train_helpers import forward_kwargs, make_row, small_config, small_model

from omniprep.errors import OmniprepError
from omniprep.train.attention_choice import choose_attention, use_attention
from omniprep.train.isolation import check_isolation

KINDS = ["text", "image", "audio", "video", "mixed"]


@pytest.fixture(scope="module")
def model():
    return small_model().eval()


def set_attention(model, name):
    model.set_attn_implementation("eager" if name == "eager" else "sdpa")
    if name == "rows":
        use_attention(model, "sdpa")


@pytest.mark.parametrize("name", ["rows", "sdpa", "eager"])
@pytest.mark.parametrize("kind", [*KINDS, "each"])
def test_logits_of_a_bin_are_those_of_its_rows_alone(model, name, kind):
    rng = np.random.default_rng(1)
    rows = [make_row(k, rng) for k in (KINDS if kind == "each" else ["text", kind, kind, "text"])]
    set_attention(model, name)
    with torch.no_grad():
        packed = model(**forward_kwargs(rows)).logits[0]
        alone = torch.cat([model(**forward_kwargs([row])).logits[0] for row in rows])
    assert packed.shape == (sum(len(r["ids"]) for r in rows), 1000)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


def test_flex_attention_keeps_rows_apart(monkeypatch):
    """Forward only, without its compilation: on a CPU it has no backward pass, and its kernel takes a compiler."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    model = small_model().eval()
    use_attention(model, "flex_attention", ("thinker.model.visual", "thinker.model.audio_tower"))
    rng = np.random.default_rng(6)
    rows = [make_row(k, rng) for k in ("text", "image", "text", "mixed", "text")]
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        packed = model(**forward_kwargs(rows)).logits[0]
        alone = torch.cat([model(**forward_kwargs([row])).logits[0] for row in rows])
        check_isolation(model, 900)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_is_what_transformers_itself_computes(model, kind):
    """Our forward pass (one tower call, no cache) against Qwen2_5OmniThinkerForConditionalGeneration.forward."""
    row = make_row(kind, np.random.default_rng(2))
    kwargs = forward_kwargs([row])
    set_attention(model, "rows")
    with torch.no_grad():
        ours = model(**kwargs).logits
        set_attention(model, "sdpa")
        for key in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"):
            kwargs.pop(key)
        theirs = model.thinker(**kwargs, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_check_isolation_passes_and_catches_three_row_positions(model):
    for name in ("rows", "sdpa", "eager"):
        set_attention(model, name)
        check_isolation(model, 900)
    set_attention(model, "sdpa")

    class Mixing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, position_ids, **kwargs):
            return self.inner(position_ids=position_ids[1:], **kwargs)

    with pytest.raises(OmniprepError, match="see each other"):
        check_isolation(Mixing(), 900)


def test_dummy_media_change_nothing_but_reach_the_towers(model):
    rows = [make_row("text", np.random.default_rng(3))]
    set_attention(model, "rows")
    with torch.no_grad():
        plain = model(**forward_kwargs(rows)).logits
    model.touch_towers = True
    touched = model(**forward_kwargs(rows)).logits
    touched.sum().backward()
    model.touch_towers = False
    assert torch.equal(plain, touched)
    for name, p in model.named_parameters():
        assert p.grad is not None or name.startswith(model.never_used), name
    model.zero_grad()


def test_choices_that_cannot_run_are_refused():
    model, cpu = small_model(), torch.device("cpu")
    assert choose_attention("auto", model, cpu, half=False) == "sdpa"
    with pytest.raises(OmniprepError, match="--attn flex_attention needs a GPU; use --attn sdpa"):
        choose_attention("flex_attention", model, cpu, half=False)


def test_token_ids_of_the_small_model_are_used():
    assert small_config().thinker_config.image_token_id == 902


def test_clips_and_images_of_other_sizes_do_not_meet_in_the_towers(model):
    set_attention(model, "rows")
    rng = np.random.default_rng(5)
    tower = model.thinker.model.audio_tower
    clips = [torch.from_numpy(rng.normal(size=(128, n))).float() for n in (4, 37, 250, 101, 200)]
    with torch.no_grad():
        lengths = torch.tensor([c.shape[1] for c in clips])
        together = tower(torch.cat(clips, 1), feature_lens=lengths).last_hidden_state
        alone = [tower(c, feature_lens=torch.tensor([c.shape[1]])).last_hidden_state for c in clips]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
    tower, grids = model.thinker.model.visual, torch.tensor([(1, 2, 2), (1, 18, 10), (3, 4, 6), (1, 8, 30)])
    pixels = [torch.from_numpy(rng.normal(size=(int(g.prod()), 1176))).float() for g in grids]
    with torch.no_grad():
        together = tower(torch.cat(pixels), grid_thw=grids).pooler_output
        alone = [tower(p, grid_thw=g[None]).pooler_output for p, g in zip(pixels, grids, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
