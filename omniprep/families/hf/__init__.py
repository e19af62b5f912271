"""The family of all checkpoints that no other family answers for: everything is taken from their own AutoProcessor."""
