"""Stage 3: media decoded once, into the bins of a shard."""
