"""What a trainer imports: the dataset, its sampler, and the way from bins to the model's forward.

Needs numpy, torch, pyarrow, xxhash and fsspec; neither transformers nor Ray.
"""

from omniprep.data.arguments import to_model
from omniprep.data.collate import collate, stack
from omniprep.data.dataset import PackedDataset
from omniprep.data.device import unpack_pixels
from omniprep.data.loss import weighted_loss
from omniprep.data.sampler import BinSampler

__all__ = ["BinSampler", "PackedDataset", "collate", "stack", "to_model", "unpack_pixels", "weighted_loss"]
