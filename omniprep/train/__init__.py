"""The trainer: packed bins in, a checkpoint that transformers, ms-swift and vLLM load out.

Own code is only what the Hugging Face Trainer lacks: rows of a bin kept apart, the exact position in the data, the
reference's freezing and LoRA targets, the weighted mean over labeled tokens, and saving in the layout of the
checkpoint that was loaded.
"""
