"""What is registered, as text: for `omniprep families`."""

from omniprep.families.base import Family
from omniprep.families.records import FamilyRecord
from omniprep.modalities import MODALITIES


def describe(record: FamilyRecord) -> list[str]:
    """A family in a few lines: origin, what it answers to, its modalities with their limits and maxima, its options."""
    cls: type[Family] = record.cls
    limits, options = cls.limits, cls.options
    lines = [f"{record.name}  (version {record.version}, from {record.origin})"]
    if record.checkpoints:
        lines.append(f"  checkpoints    {', '.join(record.checkpoints)}")
    known = ", ".join(record.hf_architectures + record.model_types)
    lines.append(f"  architectures  {known or 'none: choose it with --family'}")
    if record.requires:
        lines.append(f"  requires       {', '.join(record.requires)}")
    if callable(limits):
        lines.append("  modalities     as the checkpoint says")
    for modality in MODALITIES:
        if callable(limits) or modality not in limits:
            continue
        most, tokens = limits[modality], cls.most_tokens.get(modality)
        limit = "any number a row" if most is None else f"at most {most} a row"
        size = "size as the options say" if tokens is None else f"at most {tokens} tokens each"
        lines.append(f"  {modality:13}  {limit}, {size}, {cls.placeholders.get(modality)}")
    settings = ", ".join(f"{name}={value}" for name, value in sorted({} if callable(options) else options.items()))
    lines.append(f"  options        {'as the checkpoint says' if callable(options) else settings or 'none'}")
    small = "small model by init-model" if cls.init_model or record.model_types else "no small model"
    train = "trains through its own hook" if cls.load_model else "trains as transformers loads it"
    lines.append(f"  models         {train}; {small}")
    return lines
