"""`omniprep doctor`: this machine and every family, tried."""
