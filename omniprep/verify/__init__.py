"""`omniprep verify`: checksums and tables of a dataset, and with `--deep` rows encoded again."""
