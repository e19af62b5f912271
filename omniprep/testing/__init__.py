"""Small random checkpoints for tests and demos (`omniprep init-model`)."""
