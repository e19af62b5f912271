"""How often Python looks for unreachable cycles, in processes that omniprep started itself."""

import gc

ALLOCATIONS = 50_000


def collect_seldom() -> None:
    """Look for cycles once in `ALLOCATIONS` new objects, not once in 700.

    torch and transformers are half a million objects, and each full search goes through all of them: 0.2 s of CPU, four
    times during their import and now and then in a build (0.5 s of the 3.7 s that a plan of a few rows takes). What
    omniprep itself makes of a row holds no cycles. Training keeps Python's default, since cycles there may hold memory
    of a GPU.
    """
    gc.set_threshold(ALLOCATIONS)


def collect_young() -> None:
    """Look for cycles among what was made lately; some ms, where a full search takes 0.2 s.

    For the moments after a row was rejected or was large: a library's exception may be part of a cycle that holds the
    pixels of its frames, hundreds of MB until the next search.
    """
    gc.collect(1)
