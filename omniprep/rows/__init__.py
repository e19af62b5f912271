"""Reads inputs (JSON lines, JSON, Parquet, Hugging Face datasets) and normalizes their rows to one form."""
