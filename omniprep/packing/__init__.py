"""Offline packing: pure functions on integers (lengths, costs, seeds), with no data in sight."""

from omniprep.packing.balance import CostModel, balanced_order, bin_cost
from omniprep.packing.best_fit import pack
from omniprep.packing.order import Layout, layout, permutation

__all__ = ["CostModel", "Layout", "balanced_order", "bin_cost", "layout", "pack", "permutation"]
