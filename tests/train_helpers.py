"""A Qwen2.5-Omni of 0.3 million weights with a vocabulary of 1,000 words, and hand-made rows for it."""

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from packaging import version
from safetensors import safe_open
from safetensors.torch import save_file
from synthetic import write_bins
from transformers import Qwen2_5OmniConfig

from omniprep.shards.index import write_rows
from omniprep.shards.schema import Bin, Column

KINDS = ("text", "image", "audio", "video", "mixed")
AUDIO, IMAGE, VIDEO = 901, 902, 903


class Messages:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, stage, total, unit="rows"): ...
    def advance(self, stage, n=1, *, tokens=0, rejects=0): ...
    def finish(self, stage): ...

    def message(self, text):
        self.lines.append(text)


def small_config(**text) -> Qwen2_5OmniConfig:
    hidden = 32
    thinker = {
        "vision_start_token_id": 904,
        "vision_end_token_id": 905,
        "vision_token_id": 906,
        "audio_start_token_id": 907,
        "audio_end_token_id": 908,
        "audio_token_index": AUDIO,
        "image_token_index": IMAGE,
        "video_token_index": VIDEO,
        "pad_token_id": 900,
        "bos_token_id": 909,
        "text_config": dict(
            hidden_size=hidden,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=1000,
            max_position_embeddings=4096,
            rope_scaling={"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            **text,
        ),
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [1],
        },
        "audio_config": {
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "output_dim": hidden,
            "num_mel_bins": 128,
            "n_window": 50,
        },
    }
    return Qwen2_5OmniConfig(thinker_config=thinker, enable_audio_output=False)


def small_model(seed: int = 0) -> Any:
    # Other trainers are tested with older transformers than omniprep.train takes.
    if version.parse(transformers.__version__) < version.parse("5.23"):
        from transformers import Qwen2_5OmniForConditionalGeneration
    else:
        from omniprep.train.qwen2_5_omni import Qwen2_5OmniForConditionalGeneration

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
    return torch.stack(
        [base, base + torch.from_numpy(rng.integers(0, 3, length)), base + torch.from_numpy(rng.integers(0, 3, length))]
    )


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
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
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


COLUMNS = (
    Column(name="image_grid_thw", modality="image", kind="items", shape=(3,)),
    Column(name="video_grid_thw", modality="video", kind="items", shape=(3,)),
    Column(
        name="pixel_values",
        modality="image",
        kind="flat",
        dtype="uint8",
        shape=(588,),
        sizes="prod(image_grid_thw)",
        load="patches",
        params={"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "temporal_patch_size": 2, "patch_size": 14},
    ),
    Column(
        name="pixel_values_videos",
        modality="video",
        kind="flat",
        dtype="uint8",
        shape=(1176,),
        sizes="prod(video_grid_thw)",
        load="patches",
        params={"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "temporal_patch_size": 2, "patch_size": 14},
    ),
    Column(name="audio_frames", modality="audio", kind="items", load="none"),
    Column(
        name="input_features",
        modality="audio",
        kind="flat",
        dtype="bfloat16",
        shape=(128,),
        sizes="audio_frames",
        load="mel",
        params={"mask": "feature_attention_mask"},
    ),
)
MODALITIES = ("image", "audio", "video")


def bfloat16_bits(x: torch.Tensor) -> np.ndarray:
    return x.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def to_bin(rows: list[dict], first_row: int, rng: np.random.Generator, weighted: bool) -> Bin:
    """Rows of `make_row` as a bin of a shard; the second half of each row is learned."""
    lengths = [len(r["ids"]) for r in rows]
    ids = np.concatenate([r["ids"].numpy() for r in rows]).astype(np.int32)
    labels, start = np.full(len(ids), -100, np.int32), 0
    for n in lengths:
        labels[start + n // 2 : start + n] = ids[start + n // 2 : start + n]
        start += n
    labels[np.isin(labels, [AUDIO, IMAGE, VIDEO])] = -100
    media: dict[str, list[np.ndarray]] = {c.name: [] for c in COLUMNS}
    for row in rows:
        for pixels, grid in row["images"]:
            media["image_grid_thw"].append(np.array(grid, np.int32))
            media["pixel_values"].append(rng.integers(0, 256, (len(pixels), 588), dtype=np.uint8))
        for pixels, grid in row["videos"]:
            media["video_grid_thw"].append(np.array(grid, np.int32))
            media["pixel_values_videos"].append(rng.integers(0, 256, (len(pixels), 1176), dtype=np.uint8))
        for clip in row["audios"]:
            media["audio_frames"].append(np.array(clip.shape[1], np.int32))
            media["input_features"].append(bfloat16_bits(clip))
    return Bin(
        input_ids=ids,
        labels=labels,
        position_ids=torch.cat([r["positions"] for r in rows], 1).numpy().astype(np.int32),
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        row_ids=np.arange(first_row, first_row + len(rows), dtype=np.int32),
        row_items=np.array([[len(r["images"]), len(r["audios"]), len(r["videos"])] for r in rows], np.int32),
        loss_scale=np.where(np.arange(len(ids)) % 3 == 0, 2.0, 1.0).astype(np.float32) if weighted else None,
        media=media,
    )


def write_dataset(folder: Path, bins: int = 6, seed: int = 0, weighted: bool = False, kinds=KINDS, **manifest) -> Path:
    """A small built dataset: bins of three rows of the kinds in turn."""
    rng = np.random.default_rng(seed)
    made = [
        to_bin([make_row(kinds[(number + i) % len(kinds)], rng) for i in range(3)], 3 * number, rng, weighted)
        for number in range(bins)
    ]
    write_bins(
        folder, made, COLUMNS, family="small", modalities=MODALITIES, weighted=weighted, bin_length=1024, **manifest
    )
    rows = {name: [] for name in ("source", "line", "status", "code", "bin", "start", "length")}
    for number, item in enumerate(made):
        for i, (start, end) in enumerate(pairwise(item.cu_seqlens.tolist())):
            place = ("chats.jsonl", 3 * number + i + 1, "packed", None, number, start, end - start)
            for name, value in zip(rows, place, strict=True):
                rows[name].append(value)
    table = {name: pa.array(values, pa.string() if name == "code" else None) for name, values in rows.items()}
    write_rows(str(folder / "rows.parquet"), [pa.table(table)])
    return folder


def answer_row(prompt: dict, answer: list[int], *, stored: bool) -> dict:
    """A prompt of `make_row` with an answer behind it; `stored`: its media stand with this answer."""
    start = int(prompt["positions"].max()) + 1
    after = (start + torch.arange(len(answer))).repeat(3, 1)
    media = {name: prompt[name] if stored else [] for name in ("images", "audios", "videos")}
    return {
        "ids": torch.cat([prompt["ids"], torch.tensor(answer)]),
        "positions": torch.cat([prompt["positions"], after], 1),
        "prompt": len(prompt["ids"]),
        **media,
    }


def preference_bin(prompts: list[dict], first_row: int, rng: np.random.Generator, *, paired: bool) -> Bin:
    """Rows of a preference dataset: pairs whose media are stored once, or single answers with verdicts in turn."""
    rows, pair_ids, chosen, shared, row_ids, sharing = [], [], [], [], [], []
    for number, prompt in enumerate(prompts):
        bits = sum(1 << m for m, name in enumerate(("images", "audios", "videos")) if prompt[name])
        for side in (1, 0) if paired else ((first_row + number) % 2,):
            answer = rng.integers(0, 800, int(rng.integers(2, 7))).tolist()
            second = paired and side == 0
            rows.append(answer_row(prompt, answer, stored=not second))
            pair_ids.append(number if paired else -1)
            chosen.append(side)
            shared.append(bits if second else 0)
            row_ids.append(first_row + number)
            sharing.append(len(answer))
    item = to_bin(rows, 0, rng, weighted=False)
    item.labels[:] = -100
    for end, answer_tokens in zip(item.cu_seqlens[1:].tolist(), sharing, strict=True):
        item.labels[end - answer_tokens : end] = item.input_ids[end - answer_tokens : end]
    item.row_ids = np.array(row_ids, np.int32)
    item.pair_ids, item.chosen, item.shared_media = (np.array(v, np.int32) for v in (pair_ids, chosen, shared))
    return item


def write_preferences(folder: Path, sizes=(2, 1, 3, 2), seed: int = 0, *, paired: bool = True, kinds=KINDS) -> Path:
    """A small dataset of preference rows: bins of `sizes` rows, of the kinds in turn."""
    rng = np.random.default_rng(seed)
    made, first = [], 0
    for size in sizes:
        prompts = [make_row(kinds[(first + i) % len(kinds)], rng) for i in range(size)]
        made.append(preference_bin(prompts, first, rng, paired=paired))
        first += size
    counts = {"pairs": first} if paired else {"desirable": first // 2, "undesirable": first - first // 2}
    everything = {
        "rows": {"read": first, "packed": first, "rejected": 0},
        "tokens": 0,
        "bins": len(made),
        "labeled_tokens": 1,
    }
    write_bins(
        folder, made, COLUMNS, family="small", modalities=MODALITIES, preferences=True, bin_length=1024,
        placeholders={"image": IMAGE, "audio": AUDIO, "video": VIDEO}, counts=everything | {"preference": counts},
    )  # fmt: skip
    return folder


def write_model(folder: Path) -> Path:
    """The small model as a checkpoint with a talker that must survive training."""
    model = small_model()
    config = model.config
    model.save_pretrained(folder)
    talker = {"talker.thinker_to_talker_proj.weight": torch.arange(12.0).reshape(3, 4)}
    save_file(talker, folder / "model-talker.safetensors", metadata={"format": "pt"})
    text = json.loads(config.to_json_string(use_diff=False)) | {
        "architectures": ["Qwen2_5OmniForConditionalGeneration"],
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(text | {"enable_audio_output": True}))
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
    weights = dict.fromkeys(names, "model.safetensors") | dict.fromkeys(talker, "model-talker.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    torch.save({}, folder / "spk_dict.pt")
    (folder / "preprocessor_config.json").write_text('{"patch_size": 14}')
    return folder


def whole_of(checkpoint: Path) -> Any:
    """The class that a user loads, its towers frozen as `omniprep train` freezes them."""
    from transformers import Qwen2_5OmniForConditionalGeneration

    # Without the talker, which has the size of the real one: 14 GB.
    whole = Qwen2_5OmniForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, enable_audio_output=False
    )
    for name, parameter in whole.thinker.named_parameters():
        parameter.requires_grad = not any(tower in name for tower in ("visual.", "audio_tower."))
    return whole


def thinker_of(checkpoint: Path) -> Any:
    """What trains of it."""
    return whole_of(checkpoint).thinker


def word_tokenizer() -> Any:
    """A tokenizer for trainers that ask for one and encode nothing."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    made = Tokenizer(WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>"))
    made.add_special_tokens(["<pad>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made)


def swift_model(checkpoint: Path, tokenizer_folder: Path | str) -> tuple[Any, Any]:
    """Model and processor as ms-swift's get_model_tokenizer makes them of a checkpoint that has a tokenizer.

    Args:
        checkpoint: The model, which has none.
        tokenizer_folder: Checkpoint to take it from.
    """
    import swift.llm as swift
    from swift.llm.model.utils import ModelInfo, use_submodel_func

    whole = whole_of(checkpoint)
    use_submodel_func(whole, "thinker")
    whole.model_dir = str(checkpoint)
    whole.model_meta = swift.MODEL_MAPPING["qwen2_5_omni"]
    whole.model_info = ModelInfo("qwen2_5_omni", str(checkpoint), torch.float32, 4096, None, None)
    return whole, swift.get_model_tokenizer(str(tokenizer_folder), load_model=False, model_type="qwen2_5_omni")[1]


ARCH = SimpleNamespace(
    language_model=("thinker.model", "thinker.lm_head"),
    vision_tower=("thinker.audio_tower", "thinker.visual"),
    aligner=("thinker.audio_tower.proj", "thinker.visual.merger"),
    generator=("talker", "token2wav"),
)


def small_family(model: Path) -> SimpleNamespace:
    """What the trainer asks of a family context."""
    from omniprep.train.qwen2_5_omni import load_model

    config = json.loads((model / "config.json").read_text())
    return SimpleNamespace(
        name="small", config=config, arch=ARCH, load_model=load_model, tokenizer_sha256="1" * 64, tokenizer=range(1000),
        modalities=MODALITIES, columns=COLUMNS, saved_files=(),
    )  # fmt: skip
