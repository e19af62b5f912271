"""Stage 1: rows to tokens and exact lengths, from text and media headers."""
