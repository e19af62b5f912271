"""What a trainer imports: the dataset, its sampler, and the way from bins to the model's forward.

Needs numpy, torch, pyarrow, xxhash and fsspec; neither transformers nor Ray.
"""

from omniprep.data.arguments import to_model
from omniprep.data.collate import collate, stack
from omniprep.data.dataset import PackedDataset
from omniprep.data.device import unpack_pixels
from omniprep.data.iterable import PackedStream
from omniprep.data.loader import BinLoader, loader
from omniprep.data.loss import weighted_loss
from omniprep.data.model_check import check_model
from omniprep.data.sampler import BinSampler

__all__ = [
    "BinLoader",
    "BinSampler",
    "PackedDataset",
    "PackedStream",
    "check_model",
    "collate",
    "loader",
    "stack",
    "to_model",
    "unpack_pixels",
    "weighted_loss",
]
