"""What is read of a checkpoint, a folder or a Hub name: its JSON files, its tokenizer, its processors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

from omniprep.errors import OmniprepError
from omniprep.families.errors import UnknownTokenError
from omniprep.families.guess import guess_model
from omniprep.families.tokenizer_cache import (
    SHAPING_SUFFIXES,
    FileState,
    SpecialTokens,
    file_state,
    stored_tokenizer,
)
from omniprep.rows.opening import LFS_POINTER
from omniprep.template.identity import tokenizer_sha256
from omniprep.template.tokens import Encoder

_POINTER = "is a Git LFS pointer and not the file itself; run git lfs pull in its folder, or hf download the checkpoint"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tokenizer_config.json")
"""Of which a checkpoint has at least one, where transformers can make a tokenizer of it."""


class Checkpoint:
    """A checkpoint that a family is on: its settings and its tokenizer.

    Attributes:
        name: Name of the family, for messages.
        config: config.json.
        preprocessor: Settings of the image processor; of the feature extractor where there is no other.
        audio_preprocessor: Settings of the feature extractor; the same dict where one file holds both.
        video_preprocessor: Settings of the video processor ({} where it has none of its own).
    """

    def __init__(self, name: str, model: str, config: dict[str, Any], *, trust_remote_code: bool) -> None:
        self.name, self.config, self._model, self._trust_remote_code = name, config, model, trust_remote_code
        settings = processor_settings(model)
        self.preprocessor = settings["image"] or settings["audio"]
        self.audio_preprocessor, self.video_preprocessor = settings["audio"], settings["video"]
        self._token_ids: dict[str, int] = {}

    @cached_property
    def encoder(self) -> Encoder:
        """Batched tokenization; families on one checkpoint share it, whatever their options."""
        return self._loaded.encoder

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """The tokens that the tokenizer has names for."""
        return self._loaded.special_tokens

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's fast tokenizer as transformers makes it; `encoder` needs not even its import."""
        return _load_tokenizer(self._model, self._trust_remote_code, checkpoint_state(self._model))

    @cached_property
    def _loaded(self) -> "LoadedTokenizer":
        return _load_encoder(self._model, self._trust_remote_code, checkpoint_state(self._model))

    @cached_property
    def processor(self) -> Any:
        """The checkpoint's own AutoProcessor; a part of one alone where the checkpoint names no class of processors."""
        from transformers import AutoProcessor

        try:
            return with_chat_template(
                AutoProcessor.from_pretrained(self._model, trust_remote_code=self._trust_remote_code)
            )
        except (ValueError, KeyError, OSError, ImportError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            settings = ("preprocessor_config.json", "processor_config.json")
            if not any(checkpoint_file(self._model, name) for name in settings):
                reason = (
                    f"it has neither {settings[0]} nor {settings[1]}; copy them from the checkpoint, or give a "
                    "multimodal one"
                )
            if "trust_remote_code" in str(error):
                reason = "it is Python code of the checkpoint's own, which runs with --trust-remote-code"
            raise OmniprepError(f"model {self._model!r}: its AutoProcessor cannot be loaded: {reason}") from error

    @cached_property
    def processor_kwargs(self) -> dict[str, dict[str, Any]]:
        """What the processor hands its parts when nothing is asked for: "images_kwargs", "videos_kwargs", ...

        They are its class's defaults, and attributes of its own in processor_config.json (InternVL's tiles, say, are on
        by the former); a part that is called without them does something else. {} where there is no whole processor.
        """
        if not hasattr(self.processor, "_merge_kwargs"):
            return {}
        merged = self.processor._merge_kwargs(
            self.processor.valid_processor_kwargs,
            tokenizer_init_kwargs=self.processor.tokenizer.init_kwargs,
            return_tensors="pt",
        )
        return cast(dict[str, dict[str, Any]], merged)

    @cached_property
    def image_processor(self) -> Any:
        """The checkpoint's own Hugging Face image processor; `processor_kwargs` says what it is called with."""
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(self._model, trust_remote_code=self._trust_remote_code)

    @cached_property
    def tokenizer_sha256(self) -> str:
        """Hash of what the tokenizer does, whatever wrote it."""
        return self._loaded.sha256 or tokenizer_sha256(self.encoder.backend)

    def token_id(self, token: str) -> int:
        """The id of one token; UnknownTokenError where the text is not exactly one."""
        if token not in self._token_ids:
            (ids,), names = self.encoder.encode([token]), self.special_tokens
            unknown = len(ids) == 1 and ids[0] == names.unk_token_id and token != names.unk_token
            if len(ids) != 1 or unknown:
                fault = "unknown to the tokenizer" if unknown else f"{len(ids)} tokens"
                raise UnknownTokenError(
                    f"family {self.name!r}: {token!r} is {fault} of {self._model!r}, it must be one token; "
                    "use a token of this tokenizer or add it there"
                )
            self._token_ids[token] = int(ids[0])
        return self._token_ids[token]

    def token_text(self, name: str) -> str:
        """The text of a token by its name at the tokenizer ("eos_token_id") or its id ("2").

        Raises:
            UnknownTokenError: The tokenizer has none, or its text is not exactly that token.
        """
        owner = self.special_tokens if hasattr(self.special_tokens, name) else self.tokenizer
        number = int(name) if name.isdigit() else getattr(owner, name, None)
        text = self.encoder.backend.id_to_token(number) if isinstance(number, int) else None
        if text is None or self.token_id(text) != number:
            raise UnknownTokenError(
                f"family {self.name!r}: the chat template has the token [{name!r}], which the tokenizer of "
                f"{self._model!r} lacks; write the text in its place"
            )
        return str(text)


def model_types(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The `model_type`s of a config.json whose classes take the batches: its own, and those of parts around a language
    model (the thinker of an omni model), but not that of the language model alone, which would take no media.
    """
    types = [str(config.get("model_type", ""))]
    part: Any = config.get("thinker_config")
    if isinstance(part, Mapping):
        types.append(str(part.get("model_type", "")))
    return tuple(name for name in types if name)


def processor_settings(model: str) -> dict[str, dict[str, Any]]:
    """The settings of a checkpoint's processors, by modality; {} where it has none of its own.

    transformers 5 saves those of all parts in processor_config.json, older releases images and sound together in
    preprocessor_config.json. What processor_config.json has of a part goes before the other file, which is then not
    looked at (transformers: get_image_processor_dict and its like for sound and video).
    """
    whole = checkpoint_file(model, "processor_config.json") or {}
    both = checkpoint_file(model, "preprocessor_config.json") or {}
    return {
        "image": whole.get("image_processor") or both,
        "audio": whole.get("feature_extractor") or whole.get("audio_processor") or both,
        "video": whole.get("video_processor") or checkpoint_file(model, "video_preprocessor_config.json") or {},
    }


def checkpoint_state(model: str) -> tuple[FileState, ...]:
    """What tells that a checkpoint's folder changed, so that what is kept of it is made anew; () of a Hub name."""
    folder = Path(model)
    files = folder.iterdir() if folder.is_dir() else ()
    return tuple(sorted(file_state(path) for path in files if path.suffix in SHAPING_SUFFIXES and path.is_file()))


def checkpoint_file(model: str, name: str) -> dict[str, Any] | None:
    """A JSON file of a checkpoint, None where the checkpoint has no such file."""
    folder = Path(model)
    if folder.is_dir():
        path = folder / name
        return _read_json(path) if path.is_file() else None
    return _hub_file(model, name)


@lru_cache(maxsize=16)
def _hub_file(model: str, name: str) -> dict[str, Any] | None:
    if Path(model).is_file():
        raise OmniprepError(f"model {model!r}: is a file; give the checkpoint's folder, or a Hub name (ORG/NAME)")
    if not _is_hub_name(model):
        raise OmniprepError(f"model {model!r}: no such folder, and not a Hub name (ORG/NAME){guess_model(model)}")
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    from omniprep.io.hub_faults import fault_of

    try:
        return _read_json(Path(hf_hub_download(model, name)))
    except LocalEntryNotFoundError as error:
        offline = bool(constants.HF_HUB_OFFLINE)
        reason = "HF_HUB_OFFLINE is set" if offline else "the Hub cannot be reached"
        where = f"unset it, or where there is a network: hf download {model}" if offline else f"hf download {model}"
        raise OmniprepError(
            f"model {model!r}: no such folder, not in the local cache, and {reason}; {where} (or --model with the "
            f"checkpoint's folder){guess_model(model)}"
        ) from error
    except RepositoryNotFoundError as error:
        raise OmniprepError(
            f"model {model!r}: no such checkpoint on the Hub (or no access: hf auth login){guess_model(model)}"
        ) from error
    except EntryNotFoundError:
        return None
    except Exception as error:
        # A connection that breaks within the file is an error of the HTTP library, which huggingface_hub passes on.
        if fault_of(error) is None and not isinstance(error, HFValidationError):
            raise
        raise OmniprepError(f"model {model!r}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    if data.startswith(LFS_POINTER):
        raise OmniprepError(f"{path}: {_POINTER}")
    try:
        content = json.loads(data)
    except ValueError as error:
        raise OmniprepError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise OmniprepError(f"{path}: holds no object, as a checkpoint's settings do")
    return content


def _is_hub_name(model: str) -> bool:
    parts = model.split("/")
    return len(parts) <= 2 and all(parts) and not model.startswith((".", "~"))


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """What families on one checkpoint share."""

    encoder: Encoder
    special_tokens: SpecialTokens
    sha256: str = ""
    """Of a tokenizer that was remembered: its `tokenizer_sha256`."""


@lru_cache(maxsize=2)
def _load_encoder(model: str, trust_remote_code: bool, state: tuple[FileState, ...]) -> LoadedTokenizer:
    if not trust_remote_code and (stored := stored_tokenizer(model)):
        return LoadedTokenizer(Encoder(stored.backend), stored.special_tokens, stored.sha256)
    tokenizer = _load_tokenizer(model, trust_remote_code, state)
    return LoadedTokenizer(Encoder(tokenizer.backend_tokenizer), SpecialTokens.of(tokenizer))


@lru_cache(maxsize=2)
def _load_tokenizer(model: str, trust_remote_code: bool, state: tuple[FileState, ...]) -> Any:
    return load_tokenizer(model, trust_remote_code=trust_remote_code)


def load_tokenizer(model: str, *, trust_remote_code: bool) -> Any:
    """The fast tokenizer of a checkpoint, made by transformers; OmniprepError where it has none."""
    _check_tokenizer_files(model)
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except Exception as error:
        # The Rust tokenizer raises bare exceptions for a damaged tokenizer.json.
        if type(error) is not Exception and not isinstance(error, (*_LOADING_FAULTS, StrictDataclassError)):
            raise
        # A config.json of an architecture that transformers does not know does not keep tokenizer.json from being read.
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
        except Exception as second:
            if type(second) is not Exception and not isinstance(second, _LOADING_FAULTS):
                raise
            reason = " ".join(str(error).split())[:300]
            raise OmniprepError(f"model {model!r}: its tokenizer cannot be loaded: {reason}") from error
    if not tokenizer.is_fast:
        raise OmniprepError(f"model {model!r}: only fast tokenizers (tokenizer.json) are supported")
    return tokenizer


_LOADING_FAULTS = (ValueError, KeyError, OSError, ImportError, TypeError, AttributeError)
"""What transformers raises for a tokenizer that it cannot load."""


def _check_tokenizer_files(model: str) -> None:
    """Refuse a local checkpoint without a tokenizer, of which transformers would make an empty one."""
    folder = Path(model)
    if not folder.is_dir():
        return
    files = [path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)]
    if not files:
        raise OmniprepError(f"model {model!r}: has no tokenizer; copy tokenizer.json and its like from the checkpoint")
    for path in files:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise OmniprepError(f"{path}: {_POINTER}")


def with_chat_template(processor: Any) -> Any:
    """The processor, with its tokenizer's chat template where it has none of its own.

    AutoProcessor looks for chat_template.jinja and chat_template.json alone, and does not hand it to classes such as
    Phi-4-multimodal's. `apply_chat_template` then needs `chat_template=processor.tokenizer.chat_template`.
    """
    of_tokenizer = getattr(getattr(processor, "tokenizer", None), "chat_template", None)
    if of_tokenizer and getattr(processor, "chat_template", None) is None:
        processor.chat_template = of_tokenizer
    return processor
