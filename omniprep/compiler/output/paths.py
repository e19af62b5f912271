"""Where the files of a dataset under construction lie (compiler/output/ownfiles.py: which names may be there)."""

from omniprep import io


def of_generation(stem: str, generation: str, suffix: str) -> str:
    """Name of a file of a generation (compiler/output/folder.py); that of the first, and of local folders, is ""."""
    return f"{stem}-{generation}{suffix}" if generation else f"{stem}{suffix}"


def plan_path(out: str, number: int, suffix: str, generation: str = "") -> str:
    """Where the plan (".arrow") or the receipt (".json") of a split lies."""
    return io.join(out, "plan", of_generation(f"split-{number:06d}", generation, suffix))


def shard_name(number: int, generation: str = "") -> str:
    """Name of a shard's file."""
    return of_generation(f"{number:05d}", generation, ".arrow")


def receipt_path(out: str, number: int, generation: str = "") -> str:
    """Where the receipt of a shard lies."""
    return io.join(out, "receipts", of_generation(f"{number:05d}", generation, ".json"))
