"""Rows of the family hf, token by token and bit by bit beside the checkpoint's own `apply_chat_template`."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from hf_rows import as_conversation, as_row, rows, write_media

from omniprep.compiler.encode.single_row import encode_bin, encode_row
from omniprep.compiler.oracle.processor import Oracle
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject
from omniprep.families.context import resolve_family
from omniprep.families.kinds import MediaMeta
from omniprep.testing.init_model import init_model

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# What each stands for: tiles only where a row has one image; text that merges with its neighbors, token types; a batch
# axis with masks, rows and columns as text; tiles; m-rope and patches; pictures padded to the largest; padded patches as
# floats; bfloat16; images and sounds together, items that depend on each other; one clip a row, in windows; tensors that
# only large pictures give; a bos that the processor writes.
TYPES = (
    *("llava_onevision", "gemma3", "smolvlm", "internvl", "glm46v", "mistral3", "lfm2_vl", "llama4", "gemma4"),
    *("audioflamingo3", "step3p7", "molmo2"),
)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_media(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    made = {}

    def make(model_type):
        if model_type not in made:
            made[model_type] = init_model(tmp_path_factory.mktemp("models") / model_type, model_type)
        return made[model_type]

    return make


def reference(folder, chat, media):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    conversation = as_conversation(chat, media)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # torchvision's resize rounds a few pixels otherwise on several
    try:
        return dict(processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt"))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("model_type", TYPES)
def test_rows_equal_the_processors(model_type, checkpoint, media):
    folder = checkpoint(model_type)
    family = resolve_family(str(folder), family="hf")
    config = BuildConfig(model=str(folder), bin_length=1 << 17)
    compared = 0
    for chat in rows(family.modalities):
        try:
            expected = reference(folder, chat, media)
        except Exception as error:
            with pytest.raises(Reject):
                encode_row(as_row(chat), family, config, str(media))
            assert family.limits == {"audio": 1}, error  # the only refusal that is meant
            continue
        row = encode_row(as_row(chat), family, config, str(media))
        ids, expected_ids = row["input_ids"][0].tolist(), expected.pop("input_ids")[0].tolist()
        # What a template writes after the end of the last answer is not trained and not seen.
        assert ids == expected_ids[: len(ids)] and len(expected_ids) - len(ids) <= 2, chat
        expected.pop("attention_mask", None)
        for name, tensor in expected.items():
            whole = tensor[:, : len(ids)] if tensor.shape == (1, len(expected_ids)) else tensor
            assert row[name].dtype == whole.dtype and torch.equal(row[name], whole), (chat, name)
        compared += 1
    assert compared >= 4


def test_bytes_are_stored_where_the_floats_follow_from_them(checkpoint):
    stored = {}
    for model_type in ("llava_onevision", "gemma3", "smolvlm", "internvl", "glm46v", "mistral3", "lfm2_vl", "llama4"):
        family = resolve_family(str(checkpoint(model_type)), family="hf")
        stored[model_type] = {c.name: c.dtype for c in family.columns}["pixel_values"]
    # LFM2-VL pads patches with zeros behind the arithmetic, Llama 4 rounds to bfloat16.
    assert stored.pop("lfm2_vl") == "float32" and stored.pop("llama4") == "bfloat16"
    assert set(stored.values()) == {"uint8"}


def test_the_family_is_hf_where_no_other_answers(checkpoint):
    assert resolve_family(str(checkpoint("mistral3"))).name == "hf"


def test_what_items_become_depends_on_their_neighbors(checkpoint):
    family = resolve_family(str(checkpoint("llava_onevision")), family="hf")
    assert family.by_row
    metas = [MediaMeta(kind="image", width=300, height=200), MediaMeta(kind="image", width=130, height=410)]
    alone = [family.count_row({"image": [meta]})["image"][0] for meta in metas]
    together = family.count_row({"image": metas})["image"]
    assert all(one > both for one, both in zip(alone, together, strict=True))


def test_planning_decodes_nothing(checkpoint, media, monkeypatch):
    from omniprep.compiler.plan.rows import plan_rows
    from omniprep.media.fetch import MediaRoots

    family = resolve_family(str(checkpoint("smolvlm")), family="hf")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    chat = [("user", "<image>?", ["large.jpg"]), ("assistant", "x")]
    config = BuildConfig(model="m", bin_length=1 << 17)
    (planned,) = plan_rows([as_row(chat)], family, config, MediaRoots(str(media), (), False))
    assert planned.length > 100


def test_a_picture_of_16_bits_is_rejected(checkpoint, media):
    family = resolve_family(str(checkpoint("gemma3")), family="hf")
    row = as_row([("user", "<image>?", ["deep.png"]), ("assistant", "x")])
    with pytest.raises(Reject, match=r"bad_media.*16 bits a channel") as caught:
        encode_bin(row, family, BuildConfig(model="m", bin_length=4096), str(media))
    assert caught.value.code == "bad_media"


def test_options_are_arguments_of_the_processors_parts(checkpoint, media):
    from transformers import AutoProcessor

    folder = checkpoint("glm46v")
    size = {"shortest_edge": 3136, "longest_edge": 28 * 28 * 4}
    family = resolve_family(str(folder), family="hf", options={"size": size})
    chat = [("user", "<image>?", ["large.jpg"]), ("assistant", "x")]
    row = encode_row(as_row(chat), family, BuildConfig(model="m", bin_length=4096), str(media))
    expected = AutoProcessor.from_pretrained(folder).apply_chat_template(
        as_conversation(chat, media),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"images_kwargs": {"size": size}},
    )
    assert torch.equal(row["pixel_values"], expected["pixel_values"])
    with pytest.raises(OmniprepError, match="has no option 'fps_max_tokens'"):
        resolve_family(str(folder), family="hf", options={"fps_max_tokens": 3})


def test_videos_equal_the_processors(checkpoint, media, monkeypatch):
    """The frames that the processor's own sampling takes, of a file and of a list of images."""
    import av
    from transformers import AutoProcessor, video_utils
    from transformers.video_processing_utils import VideoProcessorMixin

    from omniprep.media.source import Source
    from omniprep.media.video import probe_video, read_frames

    rng = np.random.default_rng(0)
    with av.open(str(media / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(70):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (64, 96, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

    def fetch(self, videos, sample_indices_fn=None):  # as read_video_torchcodec, with the reader of omniprep
        if isinstance(videos, list):
            return list(zip(*[fetch(self, video, sample_indices_fn) for video in videos], strict=True))
        reader = probe_video(Source(path=videos))
        metadata = video_utils.VideoMetadata(
            total_num_frames=reader.frames,
            fps=reader.fps,
            width=reader.width,
            height=reader.height,
            duration=reader.frames / reader.fps,
        )
        indices = list(range(reader.frames)) if sample_indices_fn is None else sample_indices_fn(metadata=metadata)
        metadata.frames_indices = indices
        frames = read_frames(Source(path=videos), reader, [int(index) for index in indices])
        return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2), metadata

    monkeypatch.setattr(VideoProcessorMixin, "fetch_videos", fetch)
    for model_type in ("glm46v", "qwen3_5", "gemma4", "llava_onevision"):
        folder = checkpoint(model_type)
        family = resolve_family(str(folder), family="hf")
        config = BuildConfig(model=str(folder), bin_length=1 << 17)
        for files in (["film.mp4"], ["film.mp4", "film.mp4"]):
            chat = [("user", "<video>what?" * len(files), files), ("assistant", "x")]
            expected = reference(folder, chat, media)
            row = encode_row(as_row(chat), family, config, str(media))
            ids = row["input_ids"][0].tolist()
            assert ids == expected.pop("input_ids")[0].tolist()[: len(ids)], model_type
            for name in expected.keys() - {"attention_mask", "token_type_ids", "mm_token_type_ids"}:
                assert torch.equal(row[name], expected[name]), (model_type, name)
        frames = {**as_row([("user", "<video>?"), ("assistant", "x")][1:]), "videos": [["small.png"] * 4]}
        frames["messages"] = [{"role": "user", "content": "<video>?"}, {"role": "assistant", "content": "x"}]
        if AutoProcessor.from_pretrained(folder).video_processor.do_sample_frames:
            with pytest.raises(Reject, match="processor_refused.*takes none of a list of images"):
                encode_row(frames, family, config, str(media))


@pytest.mark.parametrize("model_type", ["glm46v", "glmga"])  # of its own class, and of another type's
def test_positions_are_those_of_the_model(model_type, checkpoint, media):
    import transformers

    folder = checkpoint(model_type)
    family = resolve_family(str(folder), family="hf")
    chat = [("user", "a <image> b <image>", ["landscape.png", "upright.jpg"]), ("assistant", "x")]
    row = encode_row(as_row(chat), family, BuildConfig(model="m", bin_length=4096), str(media))
    config = json.loads((folder / "config.json").read_text())
    model = getattr(transformers, config["architectures"][0]).from_pretrained(folder).model
    positions, _ = model.get_rope_index(
        row["input_ids"].long(),
        mm_token_type_ids=row["mm_token_type_ids"],
        image_grid_thw=row["image_grid_thw"],
    )
    assert torch.equal(row["position_ids"][-3:, 0].long(), positions[:, 0])
    # The oracle's, of a processor that gives token types to those alone who ask (Cosmos 3 Edge).
    bare = {"input_ids": row["input_ids"].long(), "image_grid_thw": row["image_grid_thw"]}
    assert torch.equal(Oracle(str(folder)).positions(bare), positions[:, 0])
    assert positions[1].max() != positions[2].max() or positions[0].max() < len(row["input_ids"][0]) - 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
        (
            lambda folder: (folder / "processor_config.json").unlink(),
            "no tokenizer|cannot be|no chat template|chat template",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text(
                "{% for message in messages %}{{ 1 / 0 }}{% endfor %}"
            ),
            "no family can be made|chat template",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_one_line(change, said, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("gemma3"), tmp_path / "model")
    change(folder)
    with pytest.raises(OmniprepError, match=said) as caught:
        resolve_family(str(folder), family="hf")
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_model_of_text_alone_is_written_by_its_tokenizer(checkpoint, tmp_path):
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(checkpoint("gemma3") / name, folder / name)
    settings = json.loads((checkpoint("gemma3") / "tokenizer_config.json").read_text())
    settings.pop("processor_class", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}))
    family = resolve_family(str(folder))
    assert family.name == "hf" and family.modalities == ()
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    row = encode_row({"messages": messages}, family, BuildConfig(model="m", bin_length=4096))
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=True, return_dict=True)
    ids = row["input_ids"][0].tolist()
    assert ids == expected["input_ids"][: len(ids)] and len(expected["input_ids"]) - len(ids) <= 2


def test_code_of_a_checkpoint_is_not_run_unasked(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("gemma3"), tmp_path / "model")
    (folder / "processing_own.py").write_text("raise SystemExit('it ran')\n")
    for name in ("processor_config.json", "config.json"):
        settings = json.loads((folder / name).read_text())
        settings |= {"auto_map": {"AutoProcessor": "processing_own.OwnProcessor"}, "processor_class": "OwnProcessor"}
        (folder / name).write_text(json.dumps(settings))
    with pytest.raises(OmniprepError, match="its AutoProcessor cannot be loaded: .*--trust-remote-code"):
        resolve_family(str(folder), family="hf")


def test_a_processor_that_changes_the_text_around_images_is_refused(checkpoint):
    with pytest.raises(OmniprepError, match="Idefics2Processor changes the text around image items"):
        resolve_family(str(checkpoint("idefics2")), family="hf")


def test_noise_and_blank_pictures_are_told_apart_from_their_floats():
    from omniprep.families.hf.pixels import as_bytes

    whole = np.array([[0, 255], [3, 4]], np.float32)
    assert as_bytes(whole).dtype == np.uint8
    assert as_bytes(whole / 2) is not None and as_bytes(whole / 2).dtype == np.float32
