"""Risk: another trainer learns something else from the bins than `omniprep train` does.

Each runs 20 steps in float32 on the CPU, with the class of transformers as it is, and must have the losses of
`omniprep train` to 1e-6 of them (neighboring float32 numbers are 5e-7 apart at a loss of 7).
"""

import json
import os
from itertools import islice
from pathlib import Path

import pytest
import torch
import transformers
from packaging import version
from train_helpers import small_family, swift_model, thinker_of, word_tokenizer, write_dataset, write_model
from transformers import TrainingArguments

import omniprep
from omniprep import PackedDataset
from omniprep.errors import OmniprepError
from omniprep.progress import QuietReporter

STEPS, RATE = 20, 1e-4
TYPES = {"model_types": ["qwen2_5_omni", "qwen2_5_omni_thinker"]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "weighted"])
def data(request, tmp_path_factory) -> PackedDataset:
    """7 bins, so that 20 steps are almost three epochs."""
    return PackedDataset(write_dataset(tmp_path_factory.mktemp("data") / "d", bins=7, weighted=request.param, **TYPES))


@pytest.fixture(scope="module")
def expected(checkpoint, data, tmp_path_factory) -> list[float]:
    """The losses of `omniprep train`; of a plain loop where transformers is too old for it, as some trainers want."""
    if version.parse(transformers.__version__) < version.parse("5.23"):
        return plain_losses(thinker_of(checkpoint), data, [data.collate([data[n]]) for n in range(len(data))])
    from omniprep.train import run as run_module
    from omniprep.train.config import TrainConfig

    out = tmp_path_factory.mktemp("run") / "run"
    config = TrainConfig(
        model=str(checkpoint), data=(data.uri,), out=str(out), max_steps=STEPS, learning_rate=RATE, schedule="constant", seed=0,
        warmup=0, weight_decay=0.0, max_grad_norm=1.0, num_workers=0, logging_steps=1, report_to=("none",),
        device="cpu", dtype="float32",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "resolve_family", lambda *_: small_family(checkpoint))
        run_module.train(config, QuietReporter())
    logs = json.loads((out / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
    return [line["loss"] for line in logs if "loss" in line]


@pytest.fixture
def model(checkpoint):
    return thinker_of(checkpoint)


def plain_losses(model, data, batches, loss_of=None):
    """Losses of a loop that takes batch n for bin n, in the order of `BinSampler`."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=RATE, betas=(0.9, 0.95), weight_decay=0
    )
    sampler, losses = omniprep.BinSampler(len(data), costs=data.costs), []
    model.train()
    for epoch in range(STEPS):
        sampler.set_epoch(epoch)
        for number in islice(sampler, STEPS - len(losses)):
            batch = dict(batches[number])
            loss = omniprep.weighted_loss(model(**batch).logits, batch) if loss_of is None else loss_of(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def close(losses, expected):
    assert len(losses) == len(expected) == STEPS
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-6, atol=0)
    assert len({round(loss, 4) for loss in expected}) > STEPS // 2, "a loss that changes"


def arguments(folder, kind=TrainingArguments, **options):
    defaults = {
        "output_dir": str(folder), "max_steps": STEPS, "learning_rate": RATE, "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 1, "logging_steps": 1, "report_to": "none", "use_cpu": True, "seed": 0,
        "adam_beta2": 0.95, "save_strategy": "no", "gradient_checkpointing": False, "bf16": False,
    }  # fmt: skip
    return kind(**(defaults | options))


def losses_of(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_a_plain_loop(model, data, expected):
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=RATE, betas=(0.9, 0.95), weight_decay=0
    )
    loader, losses = omniprep.loader(data, model=model), []
    model.train()
    while len(losses) < STEPS:
        for batch in loader:
            if len(losses) == STEPS:
                break
            loss = omniprep.weighted_loss(model(**batch).logits, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    close(losses, expected)


def test_the_trainer_of_transformers(model, data, expected, tmp_path):
    from omniprep.adapters.transformers import PackedTrainer

    trainer = PackedTrainer(model=model, args=arguments(tmp_path), train_dataset=data)
    trainer.train()
    close(losses_of(trainer), expected)


def test_a_resumed_run_of_transformers_goes_on_where_it_was(model, data, expected, tmp_path):
    from omniprep.adapters.transformers import PackedTrainer

    first = PackedTrainer(
        model=model, args=arguments(tmp_path, save_strategy="steps", save_steps=9), train_dataset=data
    )
    first.train()
    # Weights are loaded as ever: the Trainer's own loading goes by names, of which this class has others than its file.
    kind, saved = type(model), tmp_path / "checkpoint-9"
    trained = kind.from_pretrained(saved, dtype=torch.float32)
    for name, parameter in trained.named_parameters():
        parameter.requires_grad = dict(model.named_parameters())[name].requires_grad
    again = PackedTrainer(model=trained, args=arguments(tmp_path), train_dataset=data)
    again.train(resume_from_checkpoint=str(saved))
    close(losses_of(first), expected)
    close(losses_of(again), expected)


def test_a_loop_with_accelerate(model, data, expected, tmp_path):
    from accelerate import Accelerator

    from omniprep.adapters.accelerate import loader as accelerated_loader

    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=RATE, betas=(0.9, 0.95), weight_decay=0
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    loader, losses = accelerated_loader(accelerator, data, model, num_workers=1), []

    def train(until):
        for epoch in range(loader.epoch, 99):
            loader.set_epoch(epoch)
            for batch in loader:
                with accelerator.accumulate(model):
                    loss = omniprep.weighted_loss(model(**batch).logits, batch)
                    accelerator.backward(loss)
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                losses.append(loss.item())
                if len(losses) == until:
                    return

    train(9)
    accelerator.save_state(tmp_path / "state")
    train(12)
    del losses[9:]
    accelerator.load_state(tmp_path / "state")
    train(STEPS)
    close(losses, expected)
    assert accelerator.prepare(loader) is loader, "it shares bins out itself"


def test_accelerate_closes_an_accumulated_step_at_the_end_of_an_epoch(model, data):
    from accelerate import Accelerator

    from omniprep.adapters.accelerate import labeled_tokens
    from omniprep.adapters.accelerate import loader as accelerated_loader

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    loader, closed = accelerated_loader(accelerator, data, model), []
    for batch in loader:
        with accelerator.accumulate(model):
            closed.append(accelerator.sync_gradients)
        assert labeled_tokens(accelerator, [batch, batch]) == 2 * (batch["labels"] != -100).sum()
    assert closed == [False, False, True, False, False, True, True]


def test_lightning(model, data, expected, tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is of omniprep[adapters]")
    from omniprep.adapters.lightning import PackedDataModule

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.losses = model, []

        def training_step(self, batch, _):
            loss = omniprep.weighted_loss(self.model(**batch).logits, batch)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            trained = [p for p in self.parameters() if p.requires_grad]
            return torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0)

    def fit(steps, resume=None):
        module = Module()
        trainer = lightning.Trainer(
            max_steps=steps, accelerator="cpu", gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, datamodule=PackedDataModule(data, model, num_workers=1), ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module.losses

    losses = fit(9)
    close(losses + fit(STEPS, tmp_path / "9.ckpt"), expected)


def test_trl(model, data, expected, tmp_path, checkpoint):
    trl = pytest.importorskip("trl", reason="trl is of omniprep[adapters]")
    from omniprep.adapters.trl import PackedSFTTrainer

    tokenizer = word_tokenizer()
    trainer = PackedSFTTrainer(
        model=model, args=arguments(tmp_path, trl.SFTConfig), train_dataset=data, processing_class=tokenizer
    )
    trainer.train()
    close(losses_of(trainer), expected)
    logs = [line for line in trainer.state.log_history if "loss" in line]
    lengths = [len(data[n]["input_ids"]) for n in omniprep.BinSampler(len(data), costs=data.costs)]
    assert [line["num_tokens"] for line in logs[:7]] == [sum(lengths[: n + 1]) for n in range(7)]
    with pytest.raises(OmniprepError, match="padding_free"):
        PackedSFTTrainer(
            model=model, args=arguments(tmp_path, trl.SFTConfig, padding_free=True, max_length=None),
            train_dataset=data, processing_class=tokenizer,
        )  # fmt: skip


def test_llamafactory(model, data, expected, tmp_path):
    pytest.importorskip("llamafactory", reason="it needs transformers 5.6 and trl 0.24: an environment of its own")
    from llamafactory.hparams import FinetuningArguments
    from llamafactory.hparams.training_args import TrainingArguments as LlamaFactoryArguments

    from omniprep.adapters.llamafactory import PackedLlamaFactoryTrainer

    options = arguments(tmp_path, LlamaFactoryArguments)
    trainer = PackedLlamaFactoryTrainer(
        FinetuningArguments(), None, model=model, args=options, train_dataset=data, tokenizer=None
    )
    trainer.train()
    close(losses_of(trainer), expected)
    trainer.finetuning_args.disable_shuffling = True
    with pytest.raises(OmniprepError, match="disable_shuffling"):
        trainer.get_train_dataloader()


def test_axolotl(model, data, expected, tmp_path):
    pytest.importorskip("axolotl", reason="it pins versions of torch's and HF's packages: an environment of its own")
    from axolotl.core.training_args import AxolotlTrainingArguments

    from omniprep.adapters.axolotl import PackedAxolotlTrainer

    trainer = PackedAxolotlTrainer(model=model, args=arguments(tmp_path, AxolotlTrainingArguments), train_dataset=data)
    trainer.train()
    close(losses_of(trainer), expected)
    trainer.args.sample_packing = True
    with pytest.raises(OmniprepError, match="sample_packing"):
        trainer.get_train_dataloader()


def test_ms_swift(checkpoint, data, expected, tmp_path):
    swift = pytest.importorskip("swift.llm", reason="ms-swift 3.9.3 needs transformers 4.57: an environment of its own")
    from swift.trainers import Seq2SeqTrainingArguments

    from omniprep.adapters.ms_swift import PackedSwiftTrainer

    whole, processor = swift_model(checkpoint, os.environ["OMNIPREP_TEST_MODEL"])
    template = swift.get_template("qwen2_5_omni", processor, padding_free=True)
    template.set_mode("train")
    # Its own defaults: 16 bins a step, weight decay 0.1.
    options = arguments(tmp_path, Seq2SeqTrainingArguments, gradient_accumulation_steps=1, weight_decay=0)
    trainer = PackedSwiftTrainer(model=whole, args=options, template=template, train_dataset=data)
    trainer.train()
    close(losses_of(trainer), expected)
    for owner, name, value, fault in (
        (options, "train_dataloader_shuffle", False, "order of BinSampler"),
        (options, "router_aux_loss_coef", 0.1, "router_aux_loss_coef: does nothing"),
        (template, "padding_free", False, "padding_free=True"),
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(OmniprepError, match=fault):
            patch.setattr(owner, name, value)
            trainer.get_train_dataloader()


def test_what_a_trainer_cannot_do_with_packed_bins_is_refused(model, data, tmp_path):
    from omniprep.adapters.transformers import PackedTrainer

    for dataset, options, fault in (
        ([1, 2], {}, "trains on a PackedDataset, not on list"),
        (data, {"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        (data, {"train_sampling_strategy": "group_by_length"}, "balanced by their cost"),
    ):
        with pytest.raises(OmniprepError, match=fault):
            PackedTrainer(model=model, args=arguments(tmp_path, **options), train_dataset=dataset).train()
    with pytest.raises(OmniprepError, match="takes no labels"):
        PackedTrainer(model=model.model, args=arguments(tmp_path), train_dataset=data).train()
