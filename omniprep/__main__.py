"""`python -m omniprep` is `omniprep`."""

from omniprep.cli.main import main

if __name__ == "__main__":
    main()
