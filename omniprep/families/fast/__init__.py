"""Families of checkpoints that many people use: as `hf`, but items are counted by arithmetic (rules.py)."""
