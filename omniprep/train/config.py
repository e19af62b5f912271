"""The options of a training run: one frozen record, the same names in YAML, on the command line and in
RUN/train_config.yaml.

A field is an option and the text under it its help. Defaults are those of ms-swift 3.9.3 where it has the option, so a
run that moves here keeps its meaning: frozen towers, cosine schedule, weight decay 0.1, beta2 0.95, learning rate 1e-4
for LoRA and 1e-5 for full training.
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from omniprep.config import Switch, Trust, refuse_undecoded
from omniprep.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from omniprep.data.objective import Objective

SWITCHES = ("gradient_checkpointing", "liger")
"""Options of the type `Switch`; train_config.yaml of earlier runs has true and false for them, as may callers."""

PREFERENCE_OPTIONS = (
    "beta", "loss_type", "label_smoothing", "rpo_alpha", "desirable_weight", "undesirable_weight", "orpo_nll",
    "other_reference",
)  # fmt: skip
"""Options of --objective dpo, kto and orpo."""


REPORT_TO = ("tensorboard", "wandb", "trackio", "none")
"""Where logs go. A closed list: the package of a misspelled one would be anybody's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """What `omniprep train` takes."""

    data: tuple[str, ...] = ()
    """Built datasets: DIR, or DIR:WEIGHT to set the shares of a mixture; local, s3://, gs:// or hf://."""
    model: str = ""
    """Checkpoint to start from: a folder or a Hub name."""
    out: str = ""
    """Folder of the run: checkpoints, logs, and at the end the trained model."""

    max_steps: int = 0
    """Optimizer steps of the whole run (0: as --epochs says)."""
    epochs: float = 1.0
    """Passes over the data, each bin once a pass, when --max-steps is not given."""
    batch_size: int = 1
    """Bins in one forward pass of one device."""
    grad_accumulation: int = 1
    """Forward passes in one optimizer step."""
    seed: int = 42
    """Seed of the data order, of new LoRA weights and of dropout."""
    weight_by: Literal["tokens", "bins"] = "tokens"
    """What the weights of --data are shares of."""

    objective: Literal["sft", "dpo", "kto", "orpo"] = "sft"
    """What is learned: answers (sft), or preferences. dpo and orpo are of pairs, kto of single verdicts (of a pair it
    takes one each); dpo and kto need `omniprep score` first."""
    beta: float | None = None
    """Preferences: how strongly the model is held to its reference; orpo: weight of the odds ratio (default: 0.1)."""
    loss_type: str | None = None
    """Preferences, by TRL's names: dpo has sigmoid (default), hinge, ipo, robust, nca_pair, sppo_hard, apo_zero,
    apo_down and sigmoid_norm; kto has kto (default) and apo_zero_unpaired."""
    label_smoothing: float = 0.0
    """dpo, sigmoid and robust: probability that a verdict is wrong."""
    rpo_alpha: float | None = None
    """dpo: add so many times the cross entropy of the preferred answers."""
    desirable_weight: float = 1.0
    """kto: weight of the losses of desirable answers."""
    undesirable_weight: float = 1.0
    """kto: weight of the losses of undesirable answers."""
    orpo_nll: Literal["sequence", "answer"] = "sequence"
    """orpo: its cross entropy is that of the preferred sequence, prompt included, as TRL has it, or of the preferred
    answer alone, as ms-swift has it."""
    other_reference: bool = False
    """dpo, kto: take the stored reference log-probabilities though another model than --model made them."""

    learning_rate: float | None = None
    """Peak learning rate (default: 1e-5, with --lora 1e-4)."""
    vit_lr: float | None = None
    """Learning rate of the vision and audio towers (default: --learning-rate)."""
    aligner_lr: float | None = None
    """Learning rate of the aligners between towers and language model (default: --learning-rate)."""
    weight_decay: float = 0.1
    """Weight decay of matrices; biases and norms have none."""
    adam_beta2: float = 0.95
    """Second moment decay of AdamW."""
    optimizer: str = "auto"
    """Optimizer by its transformers name, such as adamw_torch or adafactor (auto: AdamW, on a GPU in one kernel)."""
    schedule: str = "cosine"
    """Learning rate schedule by its transformers name: cosine, linear, constant_with_warmup, constant."""
    warmup: float = 0.05
    """Warm-up: steps, or a share of all steps when below 1."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm (0: not)."""

    lora: bool = False
    """Train low-rank adapters instead of the weights."""
    lora_rank: int = 8
    """Rank of the adapters."""
    lora_alpha: int = 32
    """Scale of the adapters (times 1/rank)."""
    lora_dropout: float = 0.05
    """Dropout before the adapters."""
    lora_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the adapters (auto: that of the weights). float32 beside bfloat16 weights takes half as long again."""
    target_regex: str | None = None
    """Regular expression for the full names of the modules that get adapters (default: every linear layer of what is
    not frozen)."""
    merge_lora: bool = False
    """At the end, also write the model with the adapters merged into it to RUN/merged."""
    freeze_llm: bool = False
    """Keep the language model (with its output head) as it is."""
    freeze_vit: bool = True
    """Keep the vision and audio towers as they are."""
    freeze_aligner: bool = True
    """Keep the aligners between towers and language model as they are."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights (auto: bfloat16 on a GPU, float32 on the CPU)."""
    amp: bool = False
    """Compute in bfloat16 over float32 weights (use with --dtype float32)."""
    attn: Literal["auto", "varlen", "flash_attention_2", "flash_attention_3", "sdpa", "flex_attention", "eager"] = (
        "auto"
    )
    """Attention; each keeps the rows of a bin apart (auto: on a GPU the variable-length kernel of torch 2.10 or later,
    or of flash-attn, else flex_attention; SDPA row by row elsewhere)."""
    gradient_checkpointing: Switch = "auto"
    """Recompute activations in the backward pass instead of keeping them (auto: on, but off on one GPU, or under DDP,
    where the heaviest bins are measured at the start and fit without)."""
    liger: Switch = "auto"
    """Compute norms, SwiGLU layers and rotary embeddings by the Triton kernels of the package liger-kernel (auto: on a
    GPU where it is installed)."""
    head_loss: Literal["torch", "liger"] = "torch"
    """What computes the loss of the output head, at the targets alone: torch's matrix products in chunks, or the fused
    kernel of the package liger-kernel (on a GPU)."""
    torch_compile: bool = False
    """Compile the language model's layers; bins are padded to one length. Not with --attn sdpa."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to train: a GPU where there is one, or the CPU in any case."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer over the ranks (FSDP2); run under torchrun or accelerate launch."""
    deepspeed: str | None = None
    """DeepSpeed: zero1, zero2, zero2_offload, zero3, zero3_offload, or a config file in transformers' form."""

    num_workers: int = 2
    """Reader processes of each rank (0: read in the training process)."""
    verify: Literal["first", "always", "never"] = "first"
    """When the checksum of a bin is checked: at its first reading, at every one, or not at all."""
    check_pixels: Literal["first", "always", "never"] = "first"
    """When pixels that are decoded here (--pixel-codec source) are compared with those that the build saw."""
    eval_data: tuple[str, ...] = ()
    """Built datasets to evaluate on."""
    eval_fraction: float = 0.0
    """Share of the bins of --data kept out of training and used to evaluate."""
    eval_steps: int = 0
    """Evaluate after so many steps (0: at the end only)."""

    save_steps: int = 500
    """Write a checkpoint after so many steps (0: at the end only)."""
    save_total_limit: int | None = None
    """Keep only the last checkpoints, so many of them (default: all)."""
    resume: str | None = None
    """Go on from a checkpoint: its folder, or "auto" for the last one in --out (none there: start anew)."""
    overwrite: bool = False
    """Remove what an earlier run left in --out (with --resume CHECKPOINT: the checkpoints after that one), and nothing
    else that lies there."""
    logging_steps: int | None = None
    """Log after so many steps (default: 5, fewer in a run of less than 20); the first and the last are logged too."""
    log_sources: bool = False
    """Log the loss of the rows of each input file too (reads the table of rows at the start)."""
    report_to: tuple[str, ...] = ("tensorboard",)
    """Where logs go: tensorboard, wandb, trackio, or none."""
    dry_run: bool = False
    """Check everything, run the costliest bin forward and backward once, report time and memory, and stop."""
    family: str | None = None
    """Model family (default: found from the checkpoint's config)."""
    plugin: tuple[str, ...] = ()
    """Python file that registers model families."""
    trust_remote_code: bool = False
    """Let the checkpoint's own Python code run."""

    def steps_between_logs(self, steps: int) -> int:
        """Steps from one log to the next in a run of `steps`: a first try of three steps should show three losses."""
        return self.logging_steps or max(1, min(5, steps // 4))

    def __post_init__(self) -> None:
        """Refuse values that no run could use."""
        for field in dataclasses.fields(self):
            option = "" if field.name == "data" else f"--{field.name.replace('_', '-')}"
            value = getattr(self, field.name)
            refuse_undecoded(value, option)
            if field.name in SWITCHES and isinstance(value, bool):
                object.__setattr__(self, field.name, "on" if value else "off")
        for name in self.report_to:
            if name not in REPORT_TO:
                hint = did_you_mean(name, REPORT_TO) or f"; there are: {', '.join(REPORT_TO)}"
                raise UsageError(f"--report-to {name}: not known{hint}")
        checks: list[tuple[bool, str]] = [
            (self.max_steps >= 0, "--max-steps must be 0 or more"),
            (self.max_steps > 0 or self.epochs > 0, "--epochs must be positive"),
            (self.batch_size > 0, "--batch-size must be positive"),
            (self.grad_accumulation > 0, "--grad-accumulation must be positive"),
            *(
                (rate is None or 0 < rate < math.inf, f"--{name.replace('_', '-')} must be positive")
                for name in ("learning_rate", "vit_lr", "aligner_lr")
                for rate in [getattr(self, name)]
            ),
            *(
                (0 <= getattr(self, name) < math.inf, f"--{name.replace('_', '-')} must be 0 or more")
                for name in ("weight_decay", "warmup", "max_grad_norm", "seed")
            ),
            (0 <= self.adam_beta2 < 1, "--adam-beta2 must be from 0 to below 1"),
            (0 <= self.lora_dropout < 1, "--lora-dropout must be from 0 to below 1"),
            (self.lora_rank > 0 and self.lora_alpha > 0, "--lora-rank and --lora-alpha must be positive"),
            (self.num_workers >= 0, "--num-workers must be 0 or more"),
            (self.logging_steps is None or self.logging_steps > 0, "--logging-steps must be positive"),
            (self.save_total_limit is None or self.save_total_limit > 0, "--save-total-limit must be positive"),
            (self.save_steps >= 0 and self.eval_steps >= 0, "--save-steps and --eval-steps must be 0 or more"),
            (0 <= self.eval_fraction < 1, "--eval-fraction is a share from 0 to below 1"),
            (not (self.eval_fraction and self.eval_data), "give --eval-data or --eval-fraction, not both"),
            (self.lora or not self.merge_lora, "--merge-lora needs --lora"),
            (self.lora or not self.target_regex, "--target-regex needs --lora"),
            (self.lora or self.lora_dtype == "auto", "--lora-dtype needs --lora"),
            (
                self.lora or (self.lora_rank, self.lora_alpha, self.lora_dropout) == (8, 32, 0.05),
                "--lora-rank, --lora-alpha and --lora-dropout need --lora",
            ),
            (self.vit_lr is None or not self.freeze_vit, "--vit-lr needs --no-freeze-vit: frozen towers learn nothing"),
            (
                self.aligner_lr is None or not self.freeze_aligner,
                "--aligner-lr needs --no-freeze-aligner: frozen aligners learn nothing",
            ),
            (
                not self.eval_steps or bool(self.eval_data) or self.eval_fraction > 0,
                "--eval-steps needs --eval-data or --eval-fraction: there is nothing to evaluate on",
            ),
            (is_regex(self.target_regex), f"--target-regex {self.target_regex!r} is no regular expression"),
            (not (self.fsdp and self.deepspeed), "--fsdp and --deepspeed exclude each other"),
            (not (self.torch_compile and self.attn == "sdpa"), "--torch-compile needs another --attn than sdpa"),
            (not (self.dry_run and self.deepspeed), "--dry-run is of one device: leave out --deepspeed"),
            (
                not (self.deepspeed and self.amp),
                "--amp is not for --deepspeed, whose optimizer has float32 copies of bfloat16 weights: leave it out",
            ),
        ]
        for good, text in checks:
            if not good:
                raise UsageError(text)
        self.check_objective()
        for source in (*self.data, *self.eval_data):
            parse_source(source)

    def check_objective(self) -> None:
        """Refuse parameters that the objective does not have."""
        if self.preference is None:
            given = [name for name in PREFERENCE_OPTIONS if getattr(self, name) != DEFAULTS[name]]
            if given:
                raise UsageError(f"--{given[0].replace('_', '-')} needs --objective dpo, kto or orpo")
        elif self.other_reference and not self.preference.needs_reference:
            raise UsageError("--other-reference is of --objective dpo and kto: orpo has no reference")

    @property
    def preference(self) -> "Objective | None":
        """The objective with its parameters where preferences are learned; None for --objective sft."""
        if self.objective == "sft":
            return None
        from omniprep.data.objective import Objective

        return Objective(
            name=self.objective,
            beta=0.1 if self.beta is None else self.beta,
            loss_type=self.loss_type,
            label_smoothing=self.label_smoothing,
            rpo_alpha=self.rpo_alpha,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
            orpo_nll=self.orpo_nll,
        )

    @property
    def peak_lr(self) -> float:
        """The learning rate, with the default of full or LoRA training."""
        return self.learning_rate if self.learning_rate is not None else (1e-4 if self.lora else 1e-5)

    def to_dict(self) -> dict[str, Any]:
        """All options as YAML types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
"""What each option is where it is not given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferConfig(Trust):
    """What `omniprep infer` takes."""

    inputs: tuple[str, ...] = ()
    """Chats, as for a build; a last assistant message is what the answer is to be compared with."""
    model: str = ""
    """A run of `omniprep train` (whole model or adapter), or any checkpoint of the family."""
    base_model: str | None = None
    """Checkpoint under an adapter (default: the one that the adapter names)."""
    out: str | None = None
    """JSON lines to write (default: standard output)."""
    like: str | None = None
    """Built dataset whose options encode the rows, or the name of one of the run's (default: as for training)."""

    batch_size: int = 8
    """Rows answered at once."""
    max_new_tokens: int = 512
    """Most tokens of an answer."""
    temperature: float = 0.0
    """0 takes the likeliest token; above it, tokens are drawn."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that have this share together."""
    seed: int = 0
    """Seed of drawn tokens."""
    limit: int = 0
    """Rows to answer (0: all)."""
    dtype: str = "auto"
    """float32, bfloat16, or auto: bfloat16 on a GPU, float32 on the CPU."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where there is one."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        if self.batch_size < 1 or self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UsageError(
                "--batch-size, --max-new-tokens, --temperature and --top-p must be positive (top-p up to 1)"
            )
        if self.dtype not in ("auto", "float32", "bfloat16") or self.device not in ("auto", "cpu", "cuda"):
            raise UsageError("--dtype is auto, float32 or bfloat16; --device is auto, cpu or cuda")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig(Trust):
    """What `omniprep score` takes."""

    data: tuple[str, ...] = ()
    """Built datasets of preference rows."""
    model: str = ""
    """The reference: the checkpoint that training will begin with, or an adapter of `omniprep train` on one."""
    base_model: str | None = None
    """Checkpoint under an adapter (default: the one that the adapter names)."""

    objective: Literal["auto", "dpo", "kto"] = "auto"
    """What the scores are for: kto needs those of mismatched answers too, a second pass (auto: kto for a dataset with
    single verdicts)."""
    batch_size: int = 1
    """Bins in one forward pass."""
    num_workers: int = 2
    """Reader processes of each rank (0: read in this process)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights (auto: bfloat16 on a GPU, float32 on the CPU)."""
    attn: Literal["auto", "varlen", "flash_attention_2", "flash_attention_3", "sdpa", "flex_attention", "eager"] = (
        "auto"
    )
    """Attention, as for `omniprep train`."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to compute: a GPU where there is one, or the CPU in any case."""
    family: str | None = None
    """Model family (default: found from the checkpoint's config)."""
    overwrite: bool = False
    """Compute again what another model computed."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        if self.batch_size < 1 or self.num_workers < 0:
            raise UsageError("--batch-size must be positive, --num-workers 0 or more")


def is_regex(text: str | None) -> bool:
    """Whether a text is a regular expression, or None."""
    try:
        re.compile(text or "")
    except re.error:
        return False
    return True


def parse_source(text: str) -> tuple[str, float | None]:
    """Split `DIR[:WEIGHT]` into the dataset's URI and its weight (None when not given).

    A colon that does not stand before a number belongs to the URI (`s3://…`).
    """
    head, colon, tail = text.rpartition(":")
    if not colon or not head:
        return text, None
    try:
        weight = float(tail)
    except ValueError:
        return text, None
    if not 0 < weight < float("inf"):
        raise UsageError(f"the weight of a dataset must be positive: {text}")
    return head, weight
