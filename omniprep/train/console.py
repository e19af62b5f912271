"""The run on the terminal: a bar with the last log values where there is one, a plain line a log elsewhere."""

import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from omniprep.progress import Reporter


def log_line(step: int, total: int, logs: dict[str, float]) -> str:
    """One line for a log entry, such as "step 10/200  loss 1.234  lr 1.0e-05  …"."""
    shown = [f"step {step}/{total}"]
    forms = {
        "loss": ("loss", "{:.4f}"),
        "eval_loss": ("eval loss", "{:.4f}"),
        "learning_rate": ("lr", "{:.2e}"),
        "grad_norm": ("grad norm", "{:.2f}"),
        "token_accuracy": ("accuracy", "{:.3f}"),
        "eval_token_accuracy": ("eval accuracy", "{:.3f}"),
        "rewards/accuracies": ("preferred", "{:.3f}"),
        "rewards/margins": ("margin", "{:.3f}"),
        "kl": ("kl", "{:.3f}"),
        "eval_rewards/accuracies": ("eval preferred", "{:.3f}"),
        "eval_rewards/margins": ("eval margin", "{:.3f}"),
        "tokens_per_s": ("tokens/s", "{:,.0f}"),
        "data_wait_ms": ("data wait", "{:.1f} ms"),
        "mfu": ("MFU", "{:.2f}"),
    }
    shown += [f"{label} {form.format(logs[key])}" for key, (label, form) in forms.items() if key in logs]
    return "  ".join(shown)


class LastStepCallback(TrainerCallback):  # type: ignore[misc]
    """Logs the last step whatever --logging-steps is, on every rank: the values are means over all ranks."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for the log of the last step."""
        if state.global_step >= state.max_steps:
            control.should_log = True


class ConsoleCallback(TrainerCallback):  # type: ignore[misc]
    """Shows steps and logs through a `Reporter`."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.step = reporter, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar."""
        self.step = state.global_step
        self.reporter.start("train", state.max_steps - state.global_step, "steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        self.reporter.advance("train", state.global_step - self.step)
        self.step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Print the values."""
        if logs and ("loss" in logs or "eval_loss" in logs):
            self.reporter.message(log_line(state.global_step, state.max_steps, logs))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say where."""
        self.reporter.message(f"checkpoint {Path(args.output_dir) / f'checkpoint-{state.global_step}'}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self.reporter.finish("train")
        sys.stderr.flush()
