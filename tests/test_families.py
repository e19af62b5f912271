"""Each family against its own Hugging Face processor and model, and against what ms-swift 3.9.3 made of the same rows.

tests/golden/families.json holds the latter, as hashes (tests/golden/make_families.py writes it where ms-swift is
installed).
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from omniprep.compiler.encode.single_row import encode_row
from omniprep.compiler.options import family_of
from omniprep.config import BuildConfig
from omniprep.doctor.families import try_family
from omniprep.errors import Reject
from omniprep.template.agent import format_tools
from omniprep.testing.init_model import init_model

HERE = Path(__file__).resolve().parent
MEDIA = HERE / "golden" / "media"
TRUTH = json.loads((HERE / "golden" / "families.json").read_text())
FAMILIES = tuple(TRUTH)
VISION = tuple(name for name in FAMILIES if name != "qwen2_audio")
SOUND = ("qwen2_audio", "qwen3_omni")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session", params=FAMILIES)
def family(request, tmp_path_factory):
    given = os.environ.get("OMNIPREP_TEST_FAMILIES")  # a folder that has them, to save the 15 seconds of each
    if given:
        return request.param, Path(given) / request.param
    pytest.importorskip("dashscope", reason="the Qwen vocabulary comes with dashscope (omniprep[demo])")
    return request.param, init_model(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="session")
def ctx(family):
    return family_of(BuildConfig(model=str(family[1]), bin_length=32768))


@pytest.fixture(scope="session")
def model(family):
    import transformers

    config = transformers.AutoConfig.from_pretrained(family[1])
    return getattr(transformers, config.architectures[0]).from_pretrained(family[1], dtype=torch.float32)


def digest(values, dtype):
    return hashlib.sha256(np.ascontiguousarray(np.asarray(values, dtype)).tobytes()).hexdigest()[:24]


def summary(row):
    """The same facts that make_families.py keeps of the reference."""
    facts = {"length": row["input_ids"].shape[1]}
    for name, dtype in (("input_ids", np.int64), ("labels", np.int64)):
        facts[name] = digest(row[name][0], dtype)
    facts["position_ids"] = digest(row["position_ids"][:, 0], np.int64)
    for name in ("image_grid_thw", "video_grid_thw"):
        if name in row:
            facts[name] = row[name].tolist()
    for name in ("pixel_values", "pixel_values_videos"):
        if name in row:
            facts[name] = digest(row[name].float(), np.float32)
    if "input_features" in row:
        masks = row["feature_attention_mask"].bool()
        facts["audio_frames"] = masks.sum(-1).tolist()
        clips = zip(row["input_features"].to(torch.bfloat16).float(), masks, strict=True)
        facts["input_features"] = [features[:, mask].flatten() for features, mask in clips]
    return facts


def encode(row, ctx, **options):
    config = BuildConfig(model=ctx.spec.model, bin_length=32768, **options)
    return encode_row(row, family_of(config) if options else ctx, config, str(MEDIA))


def test_rows_equal_those_of_ms_swift(family, ctx):
    for number, case in enumerate(TRUTH[family[0]]):
        # `error`: the reference refuses the row too; `rejects`: what it makes of the row is not well formed.
        refusal = case.get("code") or case.get("rejects")
        if refusal:
            with pytest.raises(Reject) as caught:
                encode(case["row"], ctx, **case["options"])
            assert caught.value.code == refusal, f"row {number}: {case['row']}"
            continue
        found = summary(encode(case["row"], ctx, **case.get("options", {})))
        wanted = dict(case["facts"])
        samples = wanted.pop("input_features", [])
        assert {k: found[k] for k in wanted} == wanted, f"row {number}: {case['row']}"
        for clip, values in zip(found.get("input_features", []), samples, strict=True):
            ours = clip[:: len(clip) // 24 | 1]
            torch.testing.assert_close(ours, torch.tensor(values), rtol=2**-7, atol=2**-7)  # a step of bfloat16


def test_doctor_is_green(ctx, tmp_path):
    trials = try_family(ctx, tmp_path)
    assert len(trials) == len(ctx.modalities) + 1
    assert not any(trial.fault for trial in trials), trials
    assert all(trial.counter == trial.expansion > 0 for trial in trials)


def text_of(ctx, row):
    """The ids of a row as text for the processor: its media as placeholders."""
    from omniprep.compiler.plan.rows import plan_rows
    from omniprep.media.fetch import MediaRoots

    config = BuildConfig(model=ctx.spec.model, bin_length=32768)
    planned = plan_rows([row], ctx, config, MediaRoots(str(MEDIA), (), False))[0]
    return ctx.tokenizer.decode(planned.ids)


def pictures_for(ctx):
    """Side of a patch that the recipe fetches pictures for, and whether the processor resizes them again."""
    fetched = ctx.fetch_factor
    return (ctx.patch_size, False) if fetched is None else (fetched // 2, True)


def positions_of(model, theirs, **more):
    """M-rope ids (3, 1, L) of the model itself."""
    grids = {key: theirs[key] for key in ("image_grid_thw", "video_grid_thw") if key in theirs}
    if not hasattr(model, "thinker"):
        return model.model.get_rope_index(theirs["input_ids"], theirs["mm_token_type_ids"], **grids, **more)[0]
    if "feature_attention_mask" in theirs:
        more["audio_seqlens"] = theirs["feature_attention_mask"].sum(-1)
    if "video_second_per_grid" in theirs:
        more["second_per_grids"] = theirs["video_second_per_grid"]
    whole = torch.ones_like(theirs["input_ids"])
    return model.thinker.model.get_rope_index(theirs["input_ids"], attention_mask=whole, **grids, **more)[0].long()


def test_images_and_ids_equal_the_processors(family, ctx, model):
    name, path = family
    if name not in VISION:
        pytest.skip("no pictures")
    from PIL import Image
    from qwen_omni_utils.v2_5.vision_process import fetch_image
    from transformers import AutoProcessor

    names = ["medium.jpg", "rgb.png", "s56x84.png"]
    row = {
        "messages": [{"role": "user", "content": "<image>a<image>b<image>"}, {"role": "assistant", "content": "c"}],
        "images": names,
    }
    ours = encode(row, ctx)
    side, again = pictures_for(ctx)
    images = [fetch_image({"image": Image.open(MEDIA / n).convert("RGB")}, image_patch_size=side) for n in names]
    processor = AutoProcessor.from_pretrained(path)
    theirs = processor(text=[text_of(ctx, row)], images=images, do_resize=again, return_tensors="pt")
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    assert torch.equal(ours["position_ids"][1:], positions_of(model, theirs))


@pytest.mark.parametrize("name_of_video", ["frames7.mp4", "h264_23976.mp4"])
def test_videos_and_ids_equal_the_processors(family, ctx, model, name_of_video):
    name, path = family
    if name not in VISION:
        pytest.skip("no pictures")
    from qwen_omni_utils.v2_5.vision_process import fetch_video
    from transformers import AutoProcessor

    row = {
        "messages": [{"role": "user", "content": "<video>what?"}, {"role": "assistant", "content": "c"}],
        "videos": [name_of_video],
    }
    rope = {"family_option": ("rope=transformers5",)} if "rope" in ctx.options else {}
    ours = encode(row, ctx, **rope)
    side, again = pictures_for(ctx)
    (video, metadata), fps = fetch_video(
        {"video": str(MEDIA / name_of_video)},
        image_patch_size=side,
        return_video_sample_fps=True,
        return_video_metadata=True,
    )
    processor = AutoProcessor.from_pretrained(path)
    extra = {"video_metadata": [metadata]} if name == "qwen3_vl" else {}
    theirs = processor(
        text=[text_of(ctx, row)],
        videos=[video.to(torch.uint8)],
        do_resize=again,
        do_sample_frames=False,
        return_tensors="pt",
        **extra,
    )
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["video_grid_thw"], theirs["video_grid_thw"])
    assert torch.equal(ours["pixel_values_videos"], theirs["pixel_values_videos"])
    seconds = {"second_per_grid_ts": torch.tensor([2.0 / fps])} if name == "qwen2_5_vl" else {}
    assert torch.equal(ours["position_ids"][1:], positions_of(model, theirs, **seconds))


def test_sounds_and_ids_equal_the_processors(family, ctx):
    name, path = family
    if name not in SOUND:
        pytest.skip("no sound")
    import librosa
    from transformers import AutoProcessor

    names = ["mono16k.wav", "stereo44k.wav", "ms100.wav", "s30.flac"]
    row = {
        "messages": [{"role": "user", "content": "<audio>" * 4}, {"role": "assistant", "content": "c"}],
        "audios": names,
    }
    ours = encode(row, ctx)
    waves = [librosa.load(MEDIA / n, sr=16000)[0] for n in names]
    theirs = AutoProcessor.from_pretrained(path)(
        text=[text_of(ctx, row)], audio=waves, sampling_rate=16000, return_tensors="pt"
    )
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["feature_attention_mask"], theirs["feature_attention_mask"].long())
    wanted = theirs["input_features"].to(torch.bfloat16)
    assert ours["input_features"].shape == wanted.shape
    valid = theirs["feature_attention_mask"].bool()[:, None].expand_as(wanted)
    if name == "qwen2_audio":  # its tower sees what is after the clip too
        valid = torch.ones_like(valid)
    assert torch.equal(ours["input_features"].to(torch.bfloat16)[valid], wanted[valid])


def test_sounding_videos_equal_the_processors(family, ctx, model):
    name, path = family
    if name != "qwen3_omni":
        pytest.skip("takes no sound of videos")
    import librosa
    from qwen_omni_utils.v2_5.vision_process import fetch_video
    from transformers import AutoProcessor

    from omniprep.media.audio import decode_audio
    from omniprep.media.fetch import MediaRoots

    videos, audio = ("sound25.mp4", "sound_longer.mp4", "sound_shorter.mp4"), "ms100.wav"
    row = {
        "messages": [
            {"role": "user", "content": "<video>a<audio>b<video>c<video>"},
            {"role": "assistant", "content": "d"},
        ],
        "videos": list(videos),
        "audios": [audio],
    }
    ours = encode(row, ctx, use_audio_in_video=True)
    media_roots = MediaRoots(str(MEDIA), (), False)
    tracks = [decode_audio(media_roots.locate(v), 16000, of_video=True) for v in videos]
    frames = [fetch_video({"video": str(MEDIA / v)}).to(torch.uint8) for v in videos]
    plain = encode(row, ctx)  # the tags without sound, which the processor puts in
    text = text_of(ctx, row)
    assert plain["input_ids"].shape[1] < ours["input_ids"].shape[1]
    theirs = AutoProcessor.from_pretrained(path)(
        text=[text],
        videos=frames,
        audio=[tracks[0], librosa.load(MEDIA / audio, sr=16000)[0], *tracks[1:]],
        audio_from_video_indices=[0, None, 1, 2],
        load_audio_from_video=True,
        return_tensors="pt",
    )
    for key in ("input_ids", "video_grid_thw", "pixel_values_videos"):
        assert torch.equal(ours[key], theirs[key]), key
    valid = theirs["feature_attention_mask"].bool()
    assert torch.equal(ours["feature_attention_mask"].bool(), valid)
    wanted = theirs["input_features"].to(torch.bfloat16)
    for mine, other, mask in zip(ours["input_features"].to(torch.bfloat16), wanted, valid, strict=True):
        assert torch.equal(mine[:, mask], other[:, mask])
    assert torch.equal(ours["position_ids"][1:], positions_of(model, theirs, use_audio_in_video=True))


def write_rows(path, name):
    def row(number, media):
        chat = [{"role": "user", "content": f"row {number}?"}, {"role": "assistant", "content": f"answer {number}"}]
        return {"messages": chat, **media}

    kinds = {
        "image": {"images": [str(MEDIA / "s56x84.png")]},
        "audio": {"audios": [str(MEDIA / "ms100.wav")]},
        "video": {"videos": [[str(MEDIA / "s56x84.png")] * 4]},
    }
    chosen = [{}, *(kinds[m] for m in name)]
    path.write_text("".join(json.dumps(row(n, chosen[n % len(chosen)])) + "\n" for n in range(8)))


def test_builds_loads_and_trains(family, ctx, omniprep, tmp_path):
    from safetensors.torch import load_file

    write_rows(tmp_path / "rows.jsonl", ctx.modalities)
    built = omniprep(
        *("build", tmp_path / "rows.jsonl", "--model", family[1], "--bin-length", 1024, "--workers", 0),
        *("--media-root", MEDIA, "--out", tmp_path / "packed"),
    )
    assert built.code == 0 and not (tmp_path / "packed" / "rejected.jsonl").read_text(), built.err
    run = omniprep(
        *("train", tmp_path / "packed", "--model", family[1], "--out", tmp_path / "run", "--max-steps", 2),
        *("--num-workers", 0, "--device", "cpu", "--no-freeze-vit", "--no-freeze-aligner", "--report-to", "none"),
        *("--learning-rate", "0.01", "--warmup", 0),
    )
    assert run.code == 0, run.err
    after = {}
    for part in (tmp_path / "run").glob("*.safetensors"):
        after |= load_file(part)
    before = {}
    for part in Path(family[1]).glob("*.safetensors"):
        before |= load_file(part)
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert before.keys() == after.keys() and any("visual" in n or "audio_tower" in n for n in changed)
    assert any("self_attn" in n for n in changed)
    answered = omniprep(
        *("infer", tmp_path / "rows.jsonl", "--model", tmp_path / "run", "--out", tmp_path / "answers.jsonl"),
        *("--max-new-tokens", 2, "--device", "cpu", "--media-root", MEDIA),  # a run opens no folders
    )
    assert answered.code == 0, answered.err
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(a["line"], a["label"]) for a in answers] == [(n + 1, f"answer {n}") for n in range(8)]
    assert all("response" in a for a in answers)


def test_answers_are_the_likeliest_tokens(family, ctx, tmp_path):
    """`infer` with its cache and padding, against whole forward passes over each row alone, a token at a time."""
    from omniprep.compiler.encode.single_row import encode_prompt
    from omniprep.train.config import InferConfig
    from omniprep.train.infer import answer
    from omniprep.train.model import load_base

    write_rows(tmp_path / "rows.jsonl", ctx.modalities)
    build = BuildConfig(model=str(family[1]), bin_length=32768, media_root=(str(MEDIA),))
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()[: len(ctx.modalities) + 1]
    rows = [encode_prompt(json.loads(line), ctx, build, str(tmp_path)) for line in lines]
    model = load_base(ctx, str(family[1]), torch.float32, "sdpa").eval()
    config = InferConfig(model=str(family[1]), inputs=(), max_new_tokens=4)
    expected = []
    for row in rows:
        row = {
            k: v.float() if getattr(v, "is_floating_point", bool)() else v for k, v in row.items() if "_seq" not in k
        }
        row = {k: v for k, v in row.items() if not k.startswith("max_length") and k != "labels"}
        for _ in range(4):
            with torch.no_grad():
                likeliest = model(**row).logits[0, -1].argmax()
            row["input_ids"] = torch.cat([row["input_ids"], likeliest.view(1, 1)], 1)
            row["position_ids"] = torch.cat([row["position_ids"], row["position_ids"][..., -1:] + 1], -1)
        expected.append(ctx.tokenizer.decode(row["input_ids"][0, -4:], skip_special_tokens=True))
    assert answer(model, rows, ctx, config, torch.float32) == expected


def test_zero_weighted_media_reach_every_tower(family, ctx):
    from omniprep.train.model import load_base

    packed = load_base(ctx, str(family[1]), torch.float32, "sdpa")
    packed.touch_towers = True
    ids = torch.arange(8)[None]
    packed(input_ids=ids, position_ids=torch.arange(8).expand(4, 1, -1)).logits.float().mean().backward()
    without = [n for n, p in packed.named_parameters() if p.grad is None]
    towers = [n for n in without if "visual" in n or "audio_tower" in n or "projector" in n]
    assert not towers, towers


def test_tools_of_react_en_are_the_references():
    """What ms-swift 3.9.3 makes of these tools (agent_templates["react_en"]._format_tools); its own system text is lost."""
    look = {
        "name": "look",
        "description": "Looks up a word.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    }
    tools = [
        {"type": "function", "function": look},
        {"name": "wait", "name_for_human": "Waiting", "description": "Waits."},
    ]
    assert format_tools(tools, "Be brief.", "react_en") == (
        "Answer the following questions as best you can. You have access to the following tools:\n\nlook: Call this tool to interact with the look API. "
        'What is the look API useful for? Looks up a word. Parameters: {"type": "object", "properties": {"word": {"type": "string"}}} '
        "Format the arguments as a JSON object.\n\nwait: Call this tool to interact with the Waiting API. What is the Waiting API useful for? Waits. "
        "Parameters: {} Format the arguments as a JSON object.\n\nUse the following format:\n\nQuestion: the input question you must answer\n"
        "Thought: you should always think about what to do\nAction: the action to take, should be one of [look,wait]\n"
        "Action Input: the input to the action\nObservation: the result of the action\n"
        "... (this Thought/Action/Action Input/Observation can be repeated zero or more times)\nThought: I now know the final answer\n"
        "Final Answer: the final answer to the original input question\n\nBegin!\n"
    )
