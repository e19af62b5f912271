"""Packed datasets in the trainers that people have, a file for each; docs/your-trainer.md shows them.

A module here imports its trainer, so the rest of omniprep imports none. What all share is in `omniprep.data`: the order
of the bins (`BinSampler`), the batch (`stack`, `to_model`), the check of the model (`check_model`) and the loss
(`weighted_loss`). An adapter only says where its trainer wants them, and refuses the options of the trainer that packed
bins make meaningless. Each is tested against its trainer: 20 steps with the losses of `omniprep train`.
"""
