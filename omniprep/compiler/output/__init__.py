"""The dataset folder: its lease, its identity and its manifest."""
