"""A small model of every shipped family on its own class for training, and bins with all media that it takes."""

from pathlib import Path

import torch

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_5_omni", "qwen3_omni", "qwen2_audio")
FRAMES = 250  # of a clip: 62 tokens, or 33 of Qwen3-Omni


def load_family(name: str, folder: Path):
    """The model as `omniprep train` loads it, and its family's module prefixes."""
    from omniprep.families.context import resolve_family
    from omniprep.testing.init_model import init_model
    from omniprep.train.freeze import resolve_parts
    from omniprep.train.model import load_base

    if not (folder / "config.json").exists():
        init_model(folder, name)
    ctx = resolve_family(str(folder), name, (), None, False)
    model = load_base(ctx, str(folder), torch.float32, "sdpa")
    return model, resolve_parts(model, ctx.arch)


def core_of(model):
    """The module that holds towers and language model."""
    return getattr(model, "thinker", model).model


def bin_of(core, kinds: str = "text image audio video image text") -> dict:
    """Forward arguments of a bin with a row of each kind, as far as the model has such a tower."""
    config, generator = core.config, torch.Generator().manual_seed(0)
    rows, pixels, grids, clips = [], {}, {}, []
    for kind in kinds.split():
        ids = [100 + len(rows), 101]
        if kind in ("image", "video") and hasattr(core, "visual"):
            patch = core.visual.config
            grid = (1, 8, 4) if kind == "image" else (2, 4, 8)
            count = grid[0] * grid[1] * grid[2]
            width = 3 * patch.temporal_patch_size * patch.patch_size**2
            pixels.setdefault(kind, []).append(torch.randn(count, width, generator=generator))
            grids.setdefault(kind, []).append(grid)
            ids += [getattr(config, f"{kind}_token_id")] * (count // 4) + [102]
        if kind == "audio" and hasattr(core, "audio_tower"):
            whole = not hasattr(core.audio_tower, "n_window")  # Qwen2-Audio: all clips padded to 30 s
            frames = 2 * core.audio_tower.config.max_source_positions if whole else FRAMES
            clips.append(torch.randn(128, frames, generator=generator))
            tokens = 33 if "qwen3" in config.model_type else 62
            ids += [config.audio_token_id] * tokens + [103]
        rows.append([*ids, 104, 105])
    lengths = [len(row) for row in rows]
    edges = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])
    out = {
        "input_ids": torch.tensor([[token for row in rows for token in row]]),
        "position_ids": positions.expand(4, 1, -1),
        "cu_seq_lens_q": edges,
        "cu_seq_lens_k": edges,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if kind in pixels:
            out[name], out[f"{kind}_grid_thw"] = torch.cat(pixels[kind]), torch.tensor(grids[kind])
    if clips:
        out["input_features"] = torch.stack(clips)
        out["feature_attention_mask"] = (
            (torch.arange(out["input_features"].shape[2]) < FRAMES).long().expand(len(clips), -1)
        )
    return out
