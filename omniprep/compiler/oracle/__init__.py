"""Whether a family gives what the checkpoint's own AutoProcessor gives: dummy rows through both, compared bit by bit.

`build` runs the quick half once for each checkpoint (quick.py), `omniprep doctor` all of it.
"""
