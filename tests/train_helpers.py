"""A Qwen2.5-Omni of 0.3 million weights with a vocabulary of 1,000 words, and hand-made rows for it."""

import numpy as np
import torch
from transformers import Qwen2_5OmniConfig

from omniprep.train.qwen2_5_omni import Qwen2_5OmniForConditionalGeneration

AUDIO, IMAGE, VIDEO = 901, 902, 903


def small_config(**text) -> Qwen2_5OmniConfig:
    hidden = 32
    thinker = dict(
        vision_start_token_id=904, vision_end_token_id=905, vision_token_id=906, audio_start_token_id=907, audio_end_token_id=908,
        audio_token_index=AUDIO, image_token_index=IMAGE, video_token_index=VIDEO, pad_token_id=900, bos_token_id=909,
        text_config=dict(
            hidden_size=hidden, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=1000,
            max_position_embeddings=4096, rope_scaling=dict(mrope_section=[1, 1, 2], rope_type="default", type="default"), **text,
        ),
        vision_config=dict(depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=hidden, fullatt_block_indexes=[1]),
        audio_config=dict(
            d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, output_dim=hidden, num_mel_bins=128, n_window=50,
        ),
    )  # fmt: skip
    return Qwen2_5OmniConfig(thinker_config=thinker, enable_audio_output=False)


def small_model(seed: int = 0) -> Qwen2_5OmniForConditionalGeneration:
    torch.manual_seed(seed)
    model = Qwen2_5OmniForConditionalGeneration(small_config())
    with torch.no_grad():  # the initial weights are so small that attention hardly matters
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(4)
    return model.float()


def positions_3d(length: int, rng: np.random.Generator) -> torch.Tensor:
    """Some m-rope rows, as the build would have made: not the plain range."""
    base = torch.arange(length)
    return torch.stack([base, base + torch.from_numpy(rng.integers(0, 3, length)), base + torch.from_numpy(rng.integers(0, 3, length))])


def make_row(kind: str, rng: np.random.Generator) -> dict:
    """A row of text, image, audio, video or all of them: ids, m-rope, media."""
    ids = list(rng.integers(0, 800, int(rng.integers(5, 20))))
    row: dict = {"images": [], "videos": [], "audios": []}
    if kind in ("image", "mixed"):
        for grid in [(1, 4, 6), (1, 10, 8)]:
            row["images"].append((torch.from_numpy(rng.normal(size=(int(np.prod(grid)), 1176))).float(), grid))
            ids += [904] + [IMAGE] * (int(np.prod(grid)) // 4) + [905]
    if kind in ("audio", "mixed"):
        for frames in (37, 250, 101):
            row["audios"].append(torch.from_numpy(rng.normal(size=(128, frames))).float())
            ids += [907] + [AUDIO] * (((frames - 1) // 2 + 1 - 2) // 2 + 1) + [908]
    if kind in ("video", "mixed"):
        grid = (3, 4, 4)
        row["videos"].append((torch.from_numpy(rng.normal(size=(48, 1176))).float(), grid))
        ids += [904] + [VIDEO] * 12 + [905]
    ids += list(rng.integers(0, 800, int(rng.integers(3, 9))))
    row["ids"] = torch.tensor(ids)
    row["positions"] = positions_3d(len(ids), rng)
    return row


def forward_kwargs(rows: list[dict]) -> dict:
    """What `omniprep.collate` gives for a bin of these rows."""
    lengths = [len(r["ids"]) for r in rows]
    borders = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    text = torch.cat([torch.arange(n) for n in lengths])
    out = {
        "input_ids": torch.cat([r["ids"] for r in rows])[None],
        "position_ids": torch.cat([text[None], torch.cat([r["positions"] for r in rows], 1)])[:, None],
        "cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": max(lengths), "max_length_k": max(lengths),
    }  # fmt: skip
    for name, grid_name, items in (
        ("pixel_values", "image_grid_thw", [x for r in rows for x in r["images"]]),
        ("pixel_values_videos", "video_grid_thw", [x for r in rows for x in r["videos"]]),
    ):
        if items:
            out[name], out[grid_name] = torch.cat([p for p, _ in items]), torch.tensor([g for _, g in items])
    clips = [a for r in rows for a in r["audios"]]
    if clips:
        width = max(a.shape[1] for a in clips)
        out["input_features"] = torch.zeros(len(clips), 128, width)
        out["feature_attention_mask"] = torch.zeros(len(clips), width, dtype=torch.int32)
        for i, clip in enumerate(clips):
            out["input_features"][i, :, : clip.shape[1]] = clip
            out["feature_attention_mask"][i, : clip.shape[1]] = 1
    return out
