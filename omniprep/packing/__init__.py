"""Offline packing: pure functions on integers (lengths, costs, seeds), with no data in sight."""
