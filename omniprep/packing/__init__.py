"""Offline packing: pure functions on integers (lengths, costs, seeds), with no data in sight."""

from omniprep.packing.balance import CostModel, balanced_order, bin_cost
from omniprep.packing.best_fit import pack
from omniprep.packing.order import permutation, rows_by_bin

__all__ = ["CostModel", "balanced_order", "bin_cost", "pack", "permutation", "rows_by_bin"]
