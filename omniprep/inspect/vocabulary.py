"""The vocabulary that turns a dataset's tokens back into text; loads tokenizers, and no transformers."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from omniprep.errors import OmniprepError
from omniprep.families.guess import guess_model
from omniprep.inspect.trust import model_of_dataset
from omniprep.shards.dataset import StoredDataset

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Vocabulary:
    """Ids to text, by the tokenizer.json of a checkpoint."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self.tokenizer = tokenizer
        self.special = np.array(sorted(tokenizer.get_added_tokens_decoder()), np.int64)
        """Ids outside the byte-pair vocabulary, the media tokens among them."""

    @cached_property
    def tool_tokens(self) -> np.ndarray:
        """Special tokens that are written around tools and their calls, such as <tool_call> and [AVAILABLE_TOOLS]."""
        return np.array([token for token in self.special.tolist() if "tool" in self.decode([token]).lower()], np.int64)

    def decode(self, ids: list[int]) -> str:
        """The text of some tokens, special ones included."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))


def load_vocabulary(model: str) -> Vocabulary:
    """The vocabulary of a checkpoint that the user named (a folder or a Hub name)."""
    path = Path(model) / "tokenizer.json"
    if not path.is_file():
        if Path(model).exists():
            raise OmniprepError(f"{path} is missing; name a checkpoint with --model")
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        from omniprep.io.hub_faults import fault_of

        try:
            path = Path(hf_hub_download(model, "tokenizer.json"))
        except Exception as error:
            if fault_of(error) is None and not isinstance(error, (HFValidationError, LocalEntryNotFoundError, OSError)):
                raise
            raise OmniprepError(
                f"cannot get the tokenizer of {model!r}{guess_model(model)}; name a checkpoint with --model (a dataset "
                "remembers the one it was built with)"
            ) from error
    from tokenizers import Tokenizer

    try:
        return Vocabulary(Tokenizer.from_file(str(path)))
    except Exception as error:  # tokenizers raises nothing narrower for a file that is none
        raise OmniprepError(f"{path}: not a tokenizer that can be read: {error}") from error


def vocabulary_of(dataset: StoredDataset, model: str | None) -> Vocabulary:
    """The vocabulary for a dataset's tokens: of `model`, else of the build's checkpoint, if that is here already."""
    return load_vocabulary(model_of_dataset(model, dataset.record, dataset.uri))
