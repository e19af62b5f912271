"""Which of how many processes this is."""

import os

import torch

from omniprep.errors import OmniprepError


def find_rank(rank: int | None = None, world: int | None = None) -> tuple[int, int]:
    """Rank and number of ranks: as given, else of torch.distributed, else as torchrun says, else 0 of 1.

    Raises:
        OmniprepError: One of the two is given alone, or the environment has no whole numbers.
    """
    if rank is not None and world is not None:
        return rank, world
    if rank is not None or world is not None:
        raise OmniprepError("rank and world go together: give both, or neither (those of torch.distributed)")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    values = [os.environ.get("RANK"), os.environ.get("WORLD_SIZE")]
    if None in values:
        return 0, 1
    try:
        return int(str(values[0])), int(str(values[1]))
    except ValueError as error:
        raise OmniprepError(f"RANK={values[0]} and WORLD_SIZE={values[1]} in the environment are no numbers") from error
