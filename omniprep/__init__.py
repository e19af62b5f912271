"""omniprep: an offline compiler of multimodal chats into packed bins, and the loader that streams them.

Names are imported when they are first used, so `import omniprep` costs nothing and loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omniprep.data import BinSampler as BinSampler
    from omniprep.data import PackedDataset as PackedDataset
    from omniprep.data import PackedStream as PackedStream
    from omniprep.data import check_model as check_model
    from omniprep.data import to_model as to_model
    from omniprep.data import unpack_pixels as unpack_pixels
    from omniprep.data import weighted_loss as weighted_loss
    from omniprep.data.collate import collate as collate
    from omniprep.data.collate import stack as stack
    from omniprep.data.loader import loader as loader
    from omniprep.data.mismatched import mismatched as mismatched
    from omniprep.data.objective import Objective as Objective
    from omniprep.data.preference import kto_divergence as kto_divergence
    from omniprep.data.preference import preference_loss as preference_loss
    from omniprep.data.prompts import read_prompts as read_prompts
    from omniprep.export.prompts import export_prompts as export_prompts
    from omniprep.packing import pack as pack
    from omniprep.train.own_loop import packed_attention as packed_attention

__version__ = "0.1.0"

_HOMES = {
    "BinSampler": "omniprep.data",
    "Objective": "omniprep.data.objective",
    "PackedDataset": "omniprep.data",
    "PackedStream": "omniprep.data",
    "check_model": "omniprep.data",
    "collate": "omniprep.data",
    "export_prompts": "omniprep.export.prompts",
    "loader": "omniprep.data.loader",
    "kto_divergence": "omniprep.data.preference",
    "mismatched": "omniprep.data.mismatched",
    "pack": "omniprep.packing",
    "preference_loss": "omniprep.data.preference",
    "packed_attention": "omniprep.train.own_loop",
    "read_prompts": "omniprep.data.prompts",
    "stack": "omniprep.data",
    "to_model": "omniprep.data",
    "unpack_pixels": "omniprep.data",
    "weighted_loss": "omniprep.data",
}

__all__ = [
    "BinSampler",
    "Objective",
    "PackedDataset",
    "PackedStream",
    "__version__",
    "check_model",
    "collate",
    "export_prompts",
    "kto_divergence",
    "loader",
    "mismatched",
    "pack",
    "packed_attention",
    "preference_loss",
    "read_prompts",
    "stack",
    "to_model",
    "unpack_pixels",
    "weighted_loss",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'omniprep' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
