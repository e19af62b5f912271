"""M-rope positions by the model's own `get_rope_index`, on an object of its class without weights."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import OmniprepError
from omniprep.families.errors import CallbackError
from omniprep.families.kinds import Array

METHOD, TYPES = "get_rope_index", "mm_token_type_ids"


class Skeleton:
    """The model of a checkpoint, as far as it computes positions."""

    def __init__(self, config: Mapping[str, Any], model: str, processor: Any, *, trust_remote_code: bool) -> None:
        """Take config.json, the checkpoint and its processor."""
        self._make_types = getattr(processor, "create_mm_token_type_ids", None)
        self._config, self._model, self._trust_remote_code = config, model, trust_remote_code

    @cached_property
    def has_positions(self) -> bool:
        """Whether the model computes its positions itself; read from its source: importing it takes seconds."""
        source = self._source()
        return source is not None and f"def {METHOD}(" in source.read_text(encoding="utf-8")

    def _source(self) -> Path | None:
        """The file of the class that config.json names, which may be that of another type (GLM-GA's is GLM-4.6V's)."""
        import transformers
        from transformers.models.auto.configuration_auto import model_type_to_module_name

        # Where transformers' lazy import finds each class; nothing public says it without the import.
        modules: Mapping[str, str] = getattr(transformers, "_class_to_module", {})
        module = modules.get(self._architecture)
        if module is None:
            name = model_type_to_module_name(str(self._config.get("model_type", "")))
            module = f"models.{name}.modeling_{name}"
        try:
            spec = importlib.util.find_spec(f"transformers.{module}")
        except ModuleNotFoundError:
            spec = None
        return Path(spec.origin) if spec is not None and spec.origin else None

    @property
    def _architecture(self) -> str:
        """The class that config.json names; "" for none."""
        return str((self._config.get("architectures") or [""])[0])

    @cached_property
    def _object(self) -> Any:
        """An object of the class that has the method, with its config and nothing else."""
        import torch
        import transformers

        config = transformers.AutoConfig.from_pretrained(self._model, trust_remote_code=self._trust_remote_code)
        cls = getattr(transformers, self._architecture, None)
        if cls is None:
            raise OmniprepError(f"model {self._model!r}: transformers has no class {self._architecture!r}")
        module = sys.modules[cls.__module__]
        owners = [c for c in (cls, *filter(inspect.isclass, vars(module).values())) if hasattr(c, METHOD)]
        for owner in owners:
            own = _config_of(owner, config)
            if own is None and owner.config_class is cls.config_class:
                own = config  # of another type with the settings of this class, which it names for itself
            if own is None or "PreTrained" in owner.__name__:
                continue
            try:
                with torch.device("meta"):
                    return owner(own)
            except Exception as error:  # any class of transformers; its reason is told
                raise OmniprepError(f"model {self._model!r}: {owner.__name__} cannot be made: {error}") from error
        raise OmniprepError(f"model {self._model!r}: no class of {module.__name__} has {METHOD} for its config")

    def positions(
        self, ids: NDArray[np.int32], vectors: Mapping[str, Sequence[Any]], token_fields: Mapping[str, Array]
    ) -> NDArray[np.int32]:
        """Positions int32 (3, L) of a row.

        Args:
            ids: With all items expanded.
            vectors: Small tensors of each item, by forward argument (grids, seconds).
            token_fields: Arrays of one value a token.
        """
        import torch

        arguments: dict[str, Any] = {name: torch.cat(list(values)) for name, values in vectors.items()}
        arguments |= {name: torch.from_numpy(np.asarray(array, np.int64))[None] for name, array in token_fields.items()}
        method = getattr(self._object, METHOD)
        known = inspect.signature(method).parameters
        if (
            TYPES in known and TYPES not in arguments and self._make_types
        ):  # asked of rows with media, whatever the processor returns
            arguments[TYPES] = torch.tensor(self._make_types([ids.tolist()]))
        arguments = {name: value for name, value in arguments.items() if name in known}
        try:
            positions, _ = method(torch.from_numpy(ids.astype(np.int64))[None], **arguments)
        except Exception as error:  # the model's own code, which must take what its processor gives
            raise CallbackError(
                f"model {self._model!r}: {METHOD} of {type(self._object).__name__} fails on a row: "
                f"{type(error).__name__}: {error}"
            ) from error
        result: NDArray[np.int32] = positions[:, 0].numpy().astype(np.int32)
        return result


def _config_of(owner: Any, config: Any) -> Any:
    """The configuration that a class is made of: the checkpoint's, or a part of it (a thinker's); None for neither."""
    known = getattr(owner, "config_class", None)
    if known is None:
        return None
    return next((part for part in (config, *vars(config).values()) if isinstance(part, known)), None)
