"""`omniprep export`: the prompts of a dataset, for engines that generate and trainers that learn by rewards."""
