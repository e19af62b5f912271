"""Folders that Megatron-Energon prepared (`energon prepare`): tars of WebDataset, and a file with their splits."""

from omniprep import io
from omniprep.errors import OmniprepError, did_you_mean
from omniprep.rows.names import expand_braces

SPLIT_FILE = ".nv-meta/split.yaml"


def choose_split(folder: str, asked: str, default: str) -> tuple[str, list[str], list[str]]:
    """Choose a split as `saved.choose_split` does: its name, the paths of its tars, and the other splits."""
    import yaml

    uri = io.join(folder, *SPLIT_FILE.split("/"))
    try:
        value = yaml.safe_load(io.read_bytes(uri))
        parts = {
            str(name): [path for text in texts or () for path in expand_braces(text)]
            for name, texts in value["split_parts"].items()
        }
        excluded = {path for text in value.get("exclude") or () for path in expand_braces(text)}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise OmniprepError(f"{uri}: cannot be read as a split file of Energon ({error})") from error
    if samples := sorted(path for path in excluded if not path.endswith(".tar")):
        raise OmniprepError(f"{uri}: excludes the single sample {samples[0]}; only whole tars can be left out")
    chosen = asked or (default if default in parts else "train")
    if chosen not in parts:
        raise OmniprepError(
            f"{folder}: no split {chosen!r}{did_you_mean(chosen, parts)}; it has {', '.join(parts) or 'none'}: choose "
            f"one with {folder}:NAME or --split NAME"
        )
    tars = [path for path in parts[chosen] if path not in excluded]
    for path in tars:
        if not path.endswith(".tar") or path.startswith("/") or ".." in path.split("/"):
            raise OmniprepError(f"{uri}: names {path!r}, which is no tar of the folder")
    return chosen, tars, sorted(set(parts) - {chosen})
