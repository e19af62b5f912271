"""Offline packing: pure functions on integers (lengths, costs, seeds), with no data in sight."""

from omniprep.packing.balance import balanced_order
from omniprep.packing.best_fit import pack
from omniprep.packing.order import permutation, rows_by_bin

__all__ = ["balanced_order", "pack", "permutation", "rows_by_bin"]
