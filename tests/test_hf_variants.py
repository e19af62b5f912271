"""Risk: checkpoints whose tokenizer or files differ from the usual in a way that a processor sees and the family hf not.

Each is a small checkpoint with its tokenizer.json changed, or a file of a kind that processors read in their own way.
"""

import base64
import json
import os
import shutil

import numpy as np
import pytest
import torch
from hf_rows import as_conversation, as_row
from PIL import Image
from test_hf_family import checkpoint, media  # noqa: F401  # fixtures

from omniprep.compiler.encode.single_row import encode_row
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject
from omniprep.families.context import resolve_family
from omniprep.families.hf.pictures import load_as_processor
from omniprep.media.source import Source

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST]{% endif %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'user' %}[/INST]{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)
CHATS = (
    [("user", "q"), ("assistant", "  spaced answer \n\n"), ("user", " again "), ("assistant", "\nend\n")],
    [("user", "see \n <image> \n there", ["landscape.png"]), ("assistant", "ok")],
    [
        ("user", "<image> <image>", ["small.png", "upright.jpg"]),
        ("assistant", " Two."),
        ("user", "x"),
        ("assistant", ""),
    ],
)


def variant(folder, made, image, change):
    """A copy of a checkpoint with Mistral's form of chats and a changed tokenizer.json."""
    shutil.copytree(folder, made)
    (made / "chat_template.jinja").write_text(MISTRAL.replace("IMAGE", image))
    tokenizer = json.loads((made / "tokenizer.json").read_text())
    change(tokenizer)
    (made / "tokenizer.json").write_text(json.dumps(tokenizer))
    return made


def with_flags(names, flags):
    def change(tokenizer):
        added = {token["content"]: token for token in tokenizer["added_tokens"]}
        following = 1 + max(token["id"] for token in tokenizer["added_tokens"])
        following = max(following, 1 + max(tokenizer["model"]["vocab"].values()))
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, name in enumerate(name for name in ("[INST]", "[/INST]") if name not in added):
            token = {"id": following + number, "content": name, "special": True, **plain}
            tokenizer["added_tokens"].append(token)
            added[name] = token
        for name in names:
            added[name].update(flags)

    return change


FLAGS = {
    "white space before": {"lstrip": True},
    "white space behind": {"rstrip": True},
    "white space on both sides": {"lstrip": True, "rstrip": True},
    "after normalization": {"normalized": True, "special": False},
}


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize(("model_type", "image"), [("llava", "<image>"), ("mistral3", "[IMG]")])
def test_tokens_that_are_matched_in_other_ways(model_type, image, flags, checkpoint, media, tmp_path):  # noqa: F811
    from transformers import AutoProcessor

    names = [image, *(["[IMG_BREAK]"] if image == "[IMG]" else []), "[INST]", "[/INST]", "<|im_end|>"]
    change = with_flags(names, FLAGS[flags])
    folder = variant(checkpoint(model_type), tmp_path / "model", image, change)
    processor = AutoProcessor.from_pretrained(folder)
    family = resolve_family(str(folder), family="hf")
    for chat in CHATS:
        row = encode_row(as_row(chat), family, BuildConfig(model="m", bin_length=1 << 16), str(media))
        expected = processor.apply_chat_template(
            as_conversation(chat, media), tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert torch.equal(row["input_ids"], expected["input_ids"]), chat
        if "pixel_values" in expected:
            assert torch.equal(row["pixel_values"], expected["pixel_values"])
        trained = [processor.tokenizer.decode([token]) for token in row["labels"][0].tolist() if token != -100]
        # A control token before an answer may have taken the answer's white space; it is no part of the answer.
        assert "[/INST]" not in "".join(trained) and trained.count("<|im_end|>") == sum(
            turn[0] == "assistant" for turn in chat
        )


def test_a_processor_that_cuts_chats_is_refused(checkpoint, tmp_path):  # noqa: F811
    def change(tokenizer):
        with_flags((), {})(tokenizer)
        cut = {"direction": "Right", "max_length": 300, "strategy": "LongestFirst", "stride": 0}
        tokenizer["truncation"] = cut

    folder = variant(checkpoint("llava"), tmp_path / "model", "<image>", change)
    with pytest.raises(OmniprepError, match="cuts every chat after 300 tokens"):
        resolve_family(str(folder), family="hf")


def test_pictures_that_the_processor_reads_otherwise_are_rejected(checkpoint, tmp_path):  # noqa: F811
    frames = [Image.new("RGB", (60, 40), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "stands.gif")
    turned = Image.Exif()
    turned[0x0112] = 3
    frames[0].save(tmp_path / "turned.webp", exif=turned)
    family = resolve_family(str(checkpoint("llava")), family="hf")
    config = BuildConfig(model="m", bin_length=4096)
    for name, reason in (("moves.gif", "an animation, all frames"), ("turned.webp", "a WebP with an EXIF orientation")):
        with pytest.raises(Reject, match=rf"{name}: {reason}") as caught:
            encode_row(as_row([("user", "<image>?", [name]), ("assistant", "x")]), family, config, str(tmp_path))
        assert caught.value.code == "bad_media"
    encode_row(as_row([("user", "<image>?", ["stands.gif"]), ("assistant", "x")]), family, config, str(tmp_path))


def test_files_are_read_as_the_processor_reads_them(checkpoint, media, tmp_path):  # noqa: F811
    family = resolve_family(str(checkpoint("llava")), family="hf")
    source = Image.open(media / "upright.jpg")
    clear = source.convert("RGBA")
    clear.putalpha(100)
    turned = Image.Exif()
    turned[0x0112] = 5
    source.convert("CMYK").save(tmp_path / "inks.jpg")
    source.save(tmp_path / "coarse.jpg", quality=30, progressive=True)
    source.save(tmp_path / "turned.jpg", exif=turned)
    source.save(tmp_path / "upright.webp")
    source.save(tmp_path / "turned.png", exif=turned)
    clear.save(tmp_path / "clear.webp")
    clear.save(tmp_path / "clear.png")
    source.convert("LA").save(tmp_path / "gray.png")
    source.convert("1").save(tmp_path / "bits.png")
    clear.convert("P").save(tmp_path / "palette.png")
    source.save(tmp_path / "still.gif")
    for path in sorted(tmp_path.iterdir()):
        expected = family.processor.image_processor.fetch_images(str(path))
        found = torch.from_numpy(np.array(load_as_processor(family.processor, Source(path=str(path)))))
        assert torch.equal(found.permute(2, 0, 1), expected), path.name


@pytest.mark.parametrize("model_type", ["llava", "phi4_multimodal"])
def test_the_chat_template_may_be_the_tokenizers(model_type, checkpoint, media, tmp_path):  # noqa: F811
    from transformers import AutoProcessor

    folder = tmp_path / "model"
    shutil.copytree(checkpoint(model_type), folder)
    template = (folder / "chat_template.jinja").read_text()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    (folder / "chat_template.jinja").unlink()
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.chat_template is None  # transformers does not hand it on
    family = resolve_family(str(folder), family="hf")
    assert "image" in family.modalities
    chat = [("user", "see <image>", ["landscape.png"]), ("assistant", "ok")]
    row = encode_row(as_row(chat), family, BuildConfig(model="m", bin_length=1 << 16), str(media))
    expected = processor.apply_chat_template(
        as_conversation(chat, media),
        chat_template=processor.tokenizer.chat_template,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    for name in set(expected) - {"input_ids", "attention_mask"}:
        assert torch.equal(row[name], expected[name]), name
    length = row["input_ids"].shape[1]
    assert torch.equal(row["input_ids"], expected["input_ids"][:, :length])


def test_a_color_that_a_file_notes_as_transparent_stays(checkpoint, media, tmp_path):  # noqa: F811
    family = resolve_family(str(checkpoint("phi4_multimodal")), family="hf")
    picture = Image.open(media / "landscape.png").convert("RGB").resize((120, 90))
    paletted = picture.convert("P")
    paletted.save(tmp_path / "palette.png", transparency=int(np.asarray(paletted)[40, 40]))
    picture.save(tmp_path / "color.png", transparency=picture.getpixel((40, 40)))
    part = family.processor.image_processor
    for name in ("palette.png", "color.png"):
        expected = part(part.fetch_images(str(tmp_path / name)), return_tensors="pt")
        found = part(load_as_processor(family.processor, Source(path=str(tmp_path / name))), return_tensors="pt")
        assert torch.equal(found["image_pixel_values"], expected["image_pixel_values"]), name


def test_a_mask_that_only_several_sounds_have_is_no_part_of_rows(checkpoint):  # noqa: F811
    family = resolve_family(str(checkpoint("phi4_multimodal")), family="hf")
    assert family.modalities == ("image",)
    assert "'audio_attention_mask' for several audio items, but for none alone" in family.unusable["audio"]


@pytest.mark.parametrize("key", ["url", "path", "base64"])
def test_typed_items_may_name_their_medium_as_transformers_documents(key, checkpoint, media):  # noqa: F811
    family = resolve_family(str(checkpoint("llava")), family="hf")
    config = BuildConfig(model="m", bin_length=4096)
    path = media / "landscape.png"
    value = base64.b64encode(path.read_bytes()).decode() if key == "base64" else str(path)
    answer = {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
    question = [{"type": "image", key: value}, {"type": "text", "text": "?"}]
    found = encode_row({"messages": [{"role": "user", "content": question}, answer]}, family, config, str(media))
    expected = encode_row(as_row([("user", "<image>?", [path.name]), ("assistant", "x")]), family, config, str(media))
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_a_processor_that_gives_no_text_of_a_chat_is_refused(checkpoint):  # noqa: F811
    with pytest.raises(OmniprepError, match="apply_chat_template of VoxtralProcessor gives no text of a chat"):
        resolve_family(str(checkpoint("voxtral")), family="hf")
