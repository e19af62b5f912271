"""Risk: a preference objective learns something else from packed bins than TRL's trainers from padded rows.

Values and gradients are held against TRL's own trainers where TRL is installed (the extra `adapters`), and in any case
against a plain reference that computes row by row.
"""

from itertools import accumulate, chain, pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

import omniprep
from omniprep.data.mismatched import mismatched
from omniprep.errors import OmniprepError, UsageError

WORDS, IMAGE, PAD = 200, 151, 0
LOSS_TYPES = ("sigmoid", "hinge", "ipo", "robust", "nca_pair", "sppo_hard", "apo_zero", "apo_down", "sigmoid_norm")


# Rows: a prompt, with or without a picture, and answers


def text_model(seed: int) -> Any:
    torch.manual_seed(seed)
    config = Qwen2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=WORDS, initializer_range=0.2,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def picture_model(seed: int) -> Any:
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": WORDS, "initializer_range": 0.2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [1]
        },
        image_token_id=IMAGE, video_token_id=152, vision_start_token_id=153, vision_end_token_id=154,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def make_rows(count: int, picture: bool, seed: int = 0) -> list[dict]:
    """Prompts with two answers of other lengths each."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        prompt, row = rng.integers(1, 150, rng.integers(4, 9)).tolist(), {}
        if picture:
            grid = (1, 2 * int(rng.integers(1, 4)), 4)
            tokens = int(np.prod(grid)) // 4
            prompt = [*prompt[:2], 153, *[IMAGE] * tokens, 154, *prompt[2:]]
            row = {"grid": grid, "pixels": torch.from_numpy(rng.normal(size=(int(np.prod(grid)), 1176))).float()}
        chosen, rejected = (rng.integers(1, 150, rng.integers(3, 8)).tolist() for _ in range(2))
        rows.append(row | {"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def positions_of(model: Any, ids: list[int], row: dict) -> torch.Tensor:
    """The three m-rope rows (3, L) of a sequence, as the model's class makes them."""
    plain = torch.arange(len(ids)).repeat(3, 1)
    if "grid" not in row:
        return plain
    tensor = torch.tensor([ids])
    types = {"mm_token_type_ids": (tensor == IMAGE).int()}
    return model.model.get_rope_index(tensor, image_grid_thw=torch.tensor([row["grid"]]), **types)[0][:, 0]


def packed(model: Any, sequences: list[tuple[dict, list[int], int, int]]) -> dict:
    """A batch of one bin as `ds.collate` gives it: sequences of (row, answer, pair, verdict)."""
    ids = [row["prompt"] + answer for row, answer, _, _ in sequences]
    labels = [[-100] * len(row["prompt"]) + answer for row, answer, _, _ in sequences]
    lengths = [len(part) for part in ids]
    borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    batch = {
        "input_ids": torch.tensor([list(chain.from_iterable(ids))]),
        "labels": torch.tensor([list(chain.from_iterable(labels))]),
        "cu_seq_lens_q": borders,
        "pair_ids": torch.tensor([pair for *_, pair, _ in sequences]),
        "chosen": torch.tensor([verdict for *_, verdict in sequences]),
    }
    text = torch.cat([torch.arange(n) for n in lengths])
    if hasattr(model, "visual") or hasattr(model.model, "visual"):
        mrope = [positions_of(model, part, row) for part, (row, *_) in zip(ids, sequences, strict=True)]
        batch["position_ids"] = torch.cat([text[None], torch.cat(mrope, 1)])[:, None]
        pictures = [row for row, *_ in sequences if "grid" in row]
        if pictures:  # of both answers of a pair, as the loader gives them
            batch["pixel_values"] = torch.cat([row["pixels"] for row in pictures])
            batch["image_grid_thw"] = torch.tensor([row["grid"] for row in pictures])
    else:
        batch["position_ids"] = text[None]
    return batch


def bin_of(batch: dict) -> dict:
    """The same bin as `ds[i]` gives it, for `mismatched`."""
    item = {
        "input_ids": batch["input_ids"][0].numpy().astype(np.int32),
        "labels": batch["labels"][0].numpy().astype(np.int32),
        "cu_seqlens": batch["cu_seq_lens_q"].numpy(),
        "pair_ids": batch["pair_ids"].numpy().astype(np.int32),
        "chosen": batch["chosen"].numpy().astype(np.int32),
        "columns": (),
    }
    if batch["position_ids"].ndim == 3:
        item["position_ids"] = batch["position_ids"][1:, 0].numpy().astype(np.int32)
    return item


def mismatched_batch(batch: dict) -> tuple[dict, torch.Tensor]:
    item, donors = mismatched(bin_of(batch), placeholders=[IMAGE])
    borders = item["cu_seqlens"]
    text = torch.cat([torch.arange(n) for n in np.diff(borders).tolist()])
    moved = {
        **batch,
        "input_ids": torch.from_numpy(item["input_ids"]).long()[None],
        "labels": torch.from_numpy(item["labels"]).long()[None],
        "cu_seq_lens_q": torch.from_numpy(borders),
        "position_ids": text[None],
    }
    if "position_ids" in item:
        moved["position_ids"] = torch.cat([text[None], torch.from_numpy(item["position_ids"]).long()])[:, None]
    return moved, torch.from_numpy(donors)


NOT_OF_FORWARD = {"labels", "pair_ids", "chosen", "reference_logps", "cu_seq_lens_q"}


def logits_of(model: Any, batch: dict) -> torch.Tensor:
    """Transformers finds the borders of rows in the positions."""
    inputs = {name: value for name, value in batch.items() if name not in NOT_OF_FORWARD}
    return model(**inputs, use_cache=False).logits


def sums(model: Any, batch: dict) -> torch.Tensor:
    """Log-probabilities of each sequence's labeled tokens, as `omniprep score` stores them."""
    with torch.no_grad():
        logps = logits_of(model, batch)[0, :-1].log_softmax(-1)
    labels = batch["labels"][0, 1:]
    picked = logps.gather(1, labels.clamp(min=0)[:, None])[:, 0] * (labels != -100)
    borders = batch["cu_seq_lens_q"].tolist()
    return torch.stack([picked[max(start - 1, 0) : end - 1].sum() for start, end in pairwise(borders)])


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same(ours: tuple[torch.Tensor, list], theirs: tuple[torch.Tensor, list]) -> None:
    """Loss and gradients to 1e-5."""
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=1e-5, abs=1e-5)
    assert len(ours[1]) == len(theirs[1]) > 0
    largest = max(g.abs().max() for g in theirs[1])
    for mine, wanted in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5 * max(1.0, largest.item()))


# TRL's own trainers


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": PAD, **{f"w{n}": n for n in range(1, WORDS)}}
    made = Tokenizer(models.WordLevel(words, unk_token="w1"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", eos_token="w2", bos_token="w3")


def trl_trainer(objective: str, model: Any, reference: Any, tokenizer: Any, out: Any, **options: Any) -> Any:
    """A trainer of TRL, which is asked for its loss alone; its dataset is two rows of words."""
    pytest.importorskip("trl", reason="TRL comes with the extra `adapters`")
    from datasets import Dataset

    common = {"output_dir": str(out), "use_cpu": True, "bf16": False, "report_to": [], "gradient_checkpointing": False}
    if objective == "dpo":
        from trl import DPOConfig, DPOTrainer

        rows = {"prompt": ["w5 w6"] * 2, "chosen": ["w7"] * 2, "rejected": ["w8"] * 2}
        config = DPOConfig(**common, **options)
        return DPOTrainer(
            model=model,
            ref_model=reference,
            args=config,
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokenizer,
        )
    if objective == "kto":
        from trl import KTOConfig, KTOTrainer

        rows = {"prompt": ["w5 w6"] * 2, "completion": ["w7"] * 2, "label": [True, False]}
        config = KTOConfig(**common, per_device_train_batch_size=2, **options)
        return KTOTrainer(
            model=model,
            ref_model=reference,
            args=config,
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokenizer,
        )
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    rows = {"prompt": ["w5 w6"] * 2, "chosen": ["w7"] * 2, "rejected": ["w8"] * 2}
    config = ORPOConfig(**common, **options)
    return ORPOTrainer(model=model, args=config, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer)


def padded(sequences: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention mask and mask of the answer, of (prompt, answer) padded on the right."""
    longest = max(len(prompt) + len(answer) for prompt, answer in sequences)
    ids, mask, answered = (torch.zeros(len(sequences), longest, dtype=torch.long) for _ in range(3))
    for line, (prompt, answer) in enumerate(sequences):
        end = len(prompt) + len(answer)
        ids[line, :end] = torch.tensor(prompt + answer)
        mask[line, :end] = 1
        answered[line, len(prompt) : end] = 1
    return ids, mask, answered


def media_of(rows: list[dict], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    if "grid" not in rows[0]:
        return {}
    return {
        "pixel_values": torch.cat([row["pixels"] for row in rows]),
        "image_grid_thw": torch.tensor([row["grid"] for row in rows]),
        "mm_token_type_ids": (ids == IMAGE).int(),
    }


def trl_pairs(rows: list[dict]) -> dict[str, torch.Tensor]:
    """A batch of DPOTrainer: preferred answers first."""
    sides = [(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in rows]
    ids, mask, answered = padded(sides)
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": answered, **media_of(rows * 2, ids)}


def pair_batch(model: Any, rows: list[dict]) -> dict:
    return packed(
        model,
        [
            (row, row[side], number, int(side == "chosen"))
            for number, row in enumerate(rows)
            for side in ("chosen", "rejected")
        ],
    )


@pytest.fixture(params=[False, True], ids=["text", "pictures"])
def case(request) -> SimpleNamespace:
    build = picture_model if request.param else text_model
    return SimpleNamespace(
        model=build(0), reference=build(1), rows=make_rows(3, request.param), picture=request.param, build=build
    )


def ours_of_pairs(case: SimpleNamespace, objective: Any) -> tuple[torch.Tensor, list, dict]:
    batch = pair_batch(case.model, case.rows)
    batch["reference_logps"] = sums(case.reference, batch)
    loss, metrics = omniprep.preference_loss(
        logits_of(case.model, batch), batch, objective, placeholders=[IMAGE] if case.picture else []
    )
    return loss, gradients(case.model, loss), metrics


@pytest.mark.parametrize(
    "loss_type",
    [pytest.param(name, marks=() if name in ("sigmoid", "ipo") else pytest.mark.slow) for name in LOSS_TYPES],
)
def test_dpo_equals_trl(case, tokenizer, tmp_path, loss_type):
    smoothing = 0.2 if loss_type == "robust" else 0.0
    objective = omniprep.Objective(name="dpo", beta=0.3, loss_type=loss_type, label_smoothing=smoothing)
    loss, grads, metrics = ours_of_pairs(case, objective)
    trainer = trl_trainer(
        "dpo", case.model, case.reference, tokenizer, tmp_path, beta=0.3, loss_type=[loss_type],
        label_smoothing=smoothing,
    )  # fmt: skip
    theirs = trainer.compute_loss(trainer.model, trl_pairs(case.rows))
    assert_same((loss, grads), (theirs, gradients(trainer.model, theirs)))
    logged = trainer._metrics["eval"] or trainer._metrics["train"]
    for name, value in metrics.items():
        assert value.item() == pytest.approx(logged[name][-1], rel=1e-4, abs=1e-4), name


def kto_sequences(rows: list[dict]) -> list[tuple[dict, list[int], int, int]]:
    """Single answers, every other one desirable, and one more undesirable: sides of different sizes."""
    return [(row, row["chosen"], -1, int(number % 3 == 0)) for number, row in enumerate(rows)]


def ours_of_kto(case: SimpleNamespace, objective: Any, sequences: list) -> tuple[torch.Tensor, list, dict]:
    batch = packed(case.model, sequences)
    batch["reference_logps"] = sums(case.reference, batch)
    kl = None
    if objective.needs_divergence:
        moved, donors = mismatched_batch(batch)
        moved["reference_logps"] = sums(case.reference, moved)
        with torch.no_grad():
            kl = omniprep.kto_divergence(logits_of(case.model, moved), moved, donors)
    loss, metrics = omniprep.preference_loss(logits_of(case.model, batch), batch, objective, kl=kl)
    return loss, gradients(case.model, loss), metrics


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_kto_equals_trl(case, tokenizer, tmp_path, loss_type):
    rows = make_rows(4, case.picture, seed=3)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    objective = omniprep.Objective(name="kto", beta=0.4, loss_type=loss_type, **weights)
    case.reference = case.build(2)  # far enough that the divergence is not cut off at 0
    loss, grads, metrics = ours_of_kto(case, objective, kto_sequences(rows))
    trainer = trl_trainer(
        "kto", case.model, case.reference, tokenizer, tmp_path, beta=0.4, loss_type=loss_type, **weights
    )
    answers = [row["chosen"] for row in rows]
    ids, mask, answered = padded([(row["prompt"], answer) for row, answer in zip(rows, answers, strict=True)])
    cycled = [answers[-1], *answers[:-1]]
    kl_ids, kl_mask, kl_answered = padded([(row["prompt"], answer) for row, answer in zip(rows, cycled, strict=True)])
    inputs = {
        "input_ids": ids, "attention_mask": mask, "completion_mask": answered, "KL_input_ids": kl_ids,
        "KL_attention_mask": kl_mask, "KL_completion_mask": kl_answered,
        "label": torch.tensor([number % 3 == 0 for number in range(len(rows))]), **media_of(rows, ids),
    }  # fmt: skip
    if case.picture:
        inputs["KL_mm_token_type_ids"] = (kl_ids == IMAGE).int()
    theirs = trainer.compute_loss(trainer.model, inputs)
    assert_same((loss, grads), (theirs, gradients(trainer.model, theirs)))
    logged = trainer._metrics["eval"] or trainer._metrics["train"]
    for name, value in metrics.items():
        assert value.item() == pytest.approx(logged[name][-1], rel=1e-4, abs=1e-4), name
    assert loss_type != "kto" or metrics["kl"] > 0


def test_orpo_equals_trl(tokenizer, tmp_path):
    """Rows of text: TRL's ORPOTrainer takes no pictures."""
    case = SimpleNamespace(model=text_model(0), reference=text_model(1), rows=make_rows(3, False), picture=False)
    loss, grads, metrics = ours_of_pairs(case, omniprep.Objective(name="orpo", beta=0.2))
    trainer = trl_trainer("orpo", case.model, None, tokenizer, tmp_path, beta=0.2)
    batch = {}
    for side in ("chosen", "rejected"):
        ids, mask, answered = padded([(row["prompt"], row[side]) for row in case.rows])
        labels = ids.masked_fill(answered == 0, -100)
        batch |= {f"{side}_input_ids": ids, f"{side}_attention_mask": mask, f"{side}_labels": labels}
    theirs, logged = trainer.get_batch_loss_metrics(trainer.model, batch)
    assert_same((loss, grads), (theirs, gradients(trainer.model, theirs)))
    for name, value in metrics.items():
        assert value.item() == pytest.approx(float(logged[name]), rel=1e-4, abs=1e-4), name


# The plain reference, row by row


def one_row_logps(model: Any, row: dict, answer: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of an answer's tokens, and of all tokens of its sequence but the first and placeholders."""
    batch = packed(model, [(row, answer, -1, 1)])
    logps = logits_of(model, batch)[0, :-1].log_softmax(-1)
    ids = batch["input_ids"][0, 1:]
    picked = logps.gather(1, ids[:, None])[:, 0]
    return picked[len(row["prompt"]) - 1 :], picked[ids != IMAGE]


def dpo_of_rows(case: SimpleNamespace, beta: float, smoothing: float, rpo_alpha: float) -> torch.Tensor:
    losses, tokens = [], []
    for row in case.rows:
        chosen, rejected = (one_row_logps(case.model, row, row[side])[0] for side in ("chosen", "rejected"))
        with torch.no_grad():
            base = [one_row_logps(case.reference, row, row[side])[0].sum() for side in ("chosen", "rejected")]
        margin = beta * ((chosen.sum() - base[0]) - (rejected.sum() - base[1]))
        losses.append(-(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin))
        tokens.append(chosen)
    return torch.stack(losses).mean() - rpo_alpha * torch.cat(tokens).mean()


@pytest.mark.parametrize(("smoothing", "rpo_alpha"), [(0.0, None), (0.1, None), (0.0, 0.5), (0.1, 1.0)])
def test_dpo_equals_rows_one_by_one(case, smoothing, rpo_alpha):
    """Label smoothing and rpo_alpha as in ms-swift 3.9.3, whose TRL has both."""
    objective = omniprep.Objective(name="dpo", beta=0.3, label_smoothing=smoothing, rpo_alpha=rpo_alpha)
    loss, grads, _ = ours_of_pairs(case, objective)
    theirs = dpo_of_rows(case, 0.3, smoothing, rpo_alpha or 0.0)
    assert_same((loss, grads), (theirs, gradients(case.model, theirs)))


@pytest.mark.parametrize("nll", ["sequence", "answer"])
def test_orpo_equals_rows_one_by_one(case, nll):
    loss, grads, _ = ours_of_pairs(case, omniprep.Objective(name="orpo", beta=0.2, orpo_nll=nll))
    losses, tokens = [], []
    for row in case.rows:
        (chosen, whole), (rejected, _) = (one_row_logps(case.model, row, row[side]) for side in ("chosen", "rejected"))
        better, worse = chosen.mean(), rejected.mean()
        odds = (better - worse) - (torch.log1p(-better.exp()) - torch.log1p(-worse.exp()))
        losses.append(-0.2 * logsigmoid(odds))
        tokens.append(whole if nll == "sequence" else chosen)
    theirs = torch.stack(losses).mean() - torch.cat(tokens).mean()
    assert_same((loss, grads), (theirs, gradients(case.model, theirs)))


@pytest.mark.parametrize("paired", [False, True], ids=["labels", "pairs"])
def test_kto_equals_rows_one_by_one(case, paired):
    """The divergence is of answers that belong to other rows; those of a pair never meet their own prompt."""
    rows = make_rows(4, case.picture, seed=3)
    case.reference = case.build(2)
    if paired:
        sequences = [
            (row, row[side], n, int(side == "chosen")) for n, row in enumerate(rows) for side in ("chosen", "rejected")
        ]
        donors = [(n - 2) % len(sequences) for n in range(len(sequences))]
    else:
        sequences = kto_sequences(rows)
        donors = [(n - 1) % len(sequences) for n in range(len(sequences))]
    loss, grads, _ = ours_of_kto(case, omniprep.Objective(name="kto", beta=0.4), sequences)
    with torch.no_grad():
        ratios = [
            one_row_logps(case.model, row, sequences[d][1])[0].sum()
            - one_row_logps(case.reference, row, sequences[d][1])[0].sum()
            for (row, *_), d in zip(sequences, donors, strict=True)
        ]
        kl = torch.stack(ratios).mean().clamp(min=0)
    losses = []
    for row, answer, _, desirable in sequences:
        with torch.no_grad():
            base = one_row_logps(case.reference, row, answer)[0].sum()
        ratio = one_row_logps(case.model, row, answer)[0].sum() - base
        losses.append(1 - torch.sigmoid(0.4 * ((ratio - kl) if desirable else (kl - ratio))))
    theirs = torch.stack(losses).mean()
    assert_same((loss, grads), (theirs, gradients(case.model, theirs)))


# What the functions refuse, and edges


def test_a_step_of_uneven_bins_is_one_large_batch(case):
    """Two bins of two pairs and of one, divided by the counts of the step."""
    objective = omniprep.Objective(name="dpo", beta=0.3, rpo_alpha=0.5)
    whole, grads, _ = ours_of_pairs(case, objective)
    tokens = sum(len(row["chosen"]) for row in case.rows)
    parts = []
    for rows in (case.rows[:2], case.rows[2:]):
        batch = pair_batch(case.model, rows)
        batch["reference_logps"] = sums(case.reference, batch)
        parts.append(
            omniprep.preference_loss(logits_of(case.model, batch), batch, objective, counts=(len(case.rows), tokens))[0]
        )
    loss = torch.stack(parts).sum()
    assert_same((loss, gradients(case.model, loss)), (whole, grads))


def test_orpo_of_a_certain_answer_has_finite_gradients():
    """A mean log-probability of 0, whose odds are infinite."""
    from omniprep.data.objective import orpo_losses

    chosen = torch.tensor([0.0, -1e-9, -0.5], requires_grad=True)
    rejected = torch.tensor([-2.0, 0.0, -60.0], requires_grad=True)
    losses, _ = orpo_losses(omniprep.Objective(name="orpo"), chosen, rejected)
    losses.sum().backward()
    assert torch.isfinite(losses).all() and torch.isfinite(chosen.grad).all() and torch.isfinite(rejected.grad).all()


@pytest.mark.parametrize(
    ("pairs", "chosen", "objective", "text"),
    [
        ([0, 0, -1], [1, 0, 1], "dpo", "without a partner"),
        ([0, 0, -1], [1, 0, -1], "kto", "without a verdict"),
        ([0, 0, 1], [1, 0, 1], "orpo", "not one preferred and one rejected"),
        ([0, 0, 0], [1, 0, 0], "dpo", "not one preferred and one rejected"),
    ],
)  # fmt: skip
def test_batches_that_an_objective_cannot_use(pairs, chosen, objective, text):
    model, rows = text_model(0), make_rows(3, False)
    batch = packed(model, [(row, row["chosen"], p, c) for row, p, c in zip(rows, pairs, chosen, strict=True)])
    batch["reference_logps"] = torch.zeros(3)
    with pytest.raises(OmniprepError, match=text):
        omniprep.preference_loss(logits_of(model, batch), batch, objective, kl=0.0)


def test_what_is_missing_is_said():
    model, rows = text_model(0), make_rows(2, False)
    batch = pair_batch(model, rows)
    logits = logits_of(model, batch)
    with pytest.raises(OmniprepError, match="omniprep score DIR"):
        omniprep.preference_loss(logits, batch, "dpo")
    batch["reference_logps"] = torch.zeros(4)
    with pytest.raises(OmniprepError, match="apo_zero_unpaired"):
        omniprep.preference_loss(logits, batch, "kto")
    with pytest.raises(OmniprepError, match="every position"):
        omniprep.preference_loss(logits[:, :5], batch, "dpo")
    del batch["pair_ids"]
    with pytest.raises(OmniprepError, match="no pair_ids"):
        omniprep.preference_loss(logits, batch, "dpo")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "ppo"}, "none of dpo, kto, orpo"),
        ({"loss_type": "kto"}, "--objective dpo has sigmoid"),
        ({"beta": 0.0}, "--beta must be positive"),
        ({"label_smoothing": 0.5}, "below 0.5"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "sigmoid or robust"),
        ({"name": "orpo", "rpo_alpha": 1.0}, "--rpo-alpha is of --objective dpo"),
        ({"desirable_weight": 2.0}, "are of --objective kto"),
        ({"orpo_nll": "answer"}, "--orpo-nll is of --objective orpo"),
    ],
)
def test_parameters_that_no_loss_has(options, text):
    with pytest.raises(UsageError, match=text):
        omniprep.Objective(**options)


def test_a_bin_of_one_row_has_no_mismatched_answer():
    batch = packed(text_model(0), kto_sequences(make_rows(1, False)))
    moved, donors = mismatched_batch(batch)
    assert len(donors) == 0
    assert torch.equal(moved["input_ids"], batch["input_ids"])


def test_an_answer_with_media_goes_to_no_other_prompt():
    rows = make_rows(2, True)
    rows[0]["chosen"] = [5, IMAGE, 6]
    batch = bin_of(packed(picture_model(0), kto_sequences([rows[1]])))
    batch["input_ids"][-2] = IMAGE
    with pytest.raises(OmniprepError, match="last_round"):
        mismatched(batch, placeholders=[IMAGE])
