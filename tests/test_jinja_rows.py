"""Risk: rows of a checkpoint with its own chat template whose ids differ from apply_chat_template's by a space, or whose
labels are not the answers.

The reference is a processor of transformers' own class on the same checkpoint, whatever the template does: trim, merge,
refuse, drop thoughts, write the images first. Three tokenizers: bytes with trimmed offsets, and both ways of ▁.
"""

import re

import jinja_chat
import pytest

from omniprep.compiler.encode.single_row import encode_row
from omniprep.compiler.options import family_of
from omniprep.config import BuildConfig
from omniprep.errors import Reject

SIZES = [(70, 40), (33, 100), (64, 64)]


def chat(*texts: str, system: str | None = None) -> list[dict]:
    messages = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    return [*messages, *({"role": roles[n % 2], "content": text} for n, text in enumerate(texts))]


CHATS = {
    "plain": chat("Hello, who are you?", "I am a small model."),
    "picture": chat("<image>What is this?", "A cat.\n\nReally."),
    "two pictures": chat("Compare <image> with <image> please", "One is taller."),
    "pictures alone": chat("<image><image>", "Two."),
    "later picture": chat("Hi there.", "Hello!", "<image>\nAnd this one?", " A wall \n", system="Answer briefly."),
    "unicode": chat("Zwölf Kreise, 你好? 🎉🎉 e\u0301 \ufb01", "Ja 🎉.\n\nGenau  e\u0301"),
    "empty": chat("x", ""),
    "empty among others": chat("x", "a", "y", "", "z", "b"),
    "space": chat("x", " a", "y", "b \n", "z", "  "),
    "thoughts": chat("x", "<think>one two</think>\n\nanswer", "y", "<think>\nfoo\n</think>\n\nbar baz"),
    "same text": chat("yes", "yes", "yes", "yes"),
    "border": chat("a (", ") b", "\n\n", "\n\nc"),
    "private use": chat("\U000f0000 x", "a \U000f0001\U00100000 b\ue000"),
    "no answer": chat("Hello?"),
    "answer first": [{"role": "assistant", "content": "hi"}, *chat("a", "b")],
    "two questions": [{"role": "user", "content": "x"}, *chat("y", "z")],
}


@pytest.fixture(scope="module", autouse=True)
def family():
    jinja_chat.register()


@pytest.fixture(scope="module", params=["bytes", "metaspace", "prepend"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    for number, (width, height) in enumerate(SIZES):
        jinja_chat.noise_image(width, height).save(folder / f"{number}.png")
    for name, template in jinja_chat.TEMPLATES.items():
        jinja_chat.write_checkpoint(folder / name, template, request.param)
    return folder


def row_of(folder, messages: list[dict], **more) -> dict:
    count = sum(message["content"].count("<image>") for message in messages if isinstance(message["content"], str))
    row = {"messages": messages, **more}
    return {**row, "images": [str(folder / f"{n}.png") for n in range(count)]} if count else row


def typed(folder, messages: list[dict], forms: dict[str, str]) -> list[dict]:
    """The messages as a user of apply_chat_template writes them."""
    images, result = iter(SIZES), []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            parts = [
                {"type": "image", "image": jinja_chat.noise_image(*next(images))}
                if piece == "<image>"
                else {"type": "text", "text": piece}
                for piece in re.split("(<image>)", content)
                if piece or not content
            ]
            content = content if forms.get(message["role"]) == "text" else parts
        result.append({**message, "content": content})
    return result


def trained(tokenizer, row: dict) -> list[str]:
    """The text of each run of labels."""
    ids, labels = row["input_ids"][0].tolist(), row["labels"][0].tolist()
    runs: list[list[int]] = []
    for n, (token, label) in enumerate(zip(ids, labels, strict=True)):
        assert label in (-100, token)
        if label != -100:
            if not n or labels[n - 1] == -100:
                runs.append([])
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


def built(folder, template: str, row: dict, **options):
    config = BuildConfig(model=str(folder / template), bin_length=4096, **options)
    ctx = family_of(config)
    return ctx, encode_row(row, ctx, config, str(folder))


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("template", jinja_chat.TEMPLATES)
def test_ids_are_those_of_apply_chat_template(folder, template, name):
    processor = jinja_chat.processor_of(folder / template)
    config = BuildConfig(model=str(folder / template), bin_length=4096)
    ctx = family_of(config)
    messages = typed(folder, CHATS[name], ctx.chat.forms)
    mask = "{% generation %}" in jinja_chat.TEMPLATES[template]
    try:
        expected = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=mask
        )
    except Exception as error:
        with pytest.raises(Reject, match="template_refused") as reject:
            encode_row(row_of(folder, CHATS[name]), ctx, config, str(folder))
        assert str(error) in str(reject.value)
        return
    row = encode_row(row_of(folder, CHATS[name]), ctx, config, str(folder))
    assert row["input_ids"][0].tolist() == expected["input_ids"][0]
    if mask:
        assert [int(label != -100) for label in row["labels"][0].tolist()] == expected["assistant_masks"][0]


ENDS = {
    "chatml": "<|im_end|>", "llama": "<|eot|>", "gemma": "<end_of_turn>", "mistral": "</s>",
    "smolvlm": "<end_of_utterance>", "glm": "", "deepseek": "</s>", "hermes": "<|im_end|>",
}  # fmt: skip
TRIMS = ("llama", "gemma", "glm")


@pytest.mark.parametrize("name", ["plain", "picture", "two pictures", "later picture", "same text", "private use"])
@pytest.mark.parametrize("template", ENDS)
def test_the_answers_and_what_ends_them_are_trained(folder, template, name):
    if template == "mistral" and name == "later picture":
        return  # the template has no place for a system text: covered above
    ctx, row = built(folder, template, row_of(folder, CHATS[name]))
    answers = [message["content"] for message in CHATS[name] if message["role"] == "assistant"]
    answers = [answer.strip() if template in TRIMS else answer for answer in answers]
    texts = trained(ctx.tokenizer, row)
    # A token may hold the space before the answer that the template writes.
    assert [text.strip() for text in texts] == [(answer + ENDS[template]).strip() for answer in answers]


def test_thoughts_are_trained_as_the_template_leaves_them(folder):
    row = row_of(folder, CHATS["thoughts"])
    for template, expected in {
        "chatml": ["<think>one two</think>\n\nanswer<|im_end|>", "<think>\nfoo\n</think>\n\nbar baz<|im_end|>"],
        "deepseek": ["answer</s>", "bar baz</s>"],
        "glm": ["answer", "<think>foo</think>\nbar baz"],
    }.items():
        ctx, encoded = built(folder, template, row)
        texts = [
            re.sub("(?<=>) (?=[a-z\n])|(?<=>) (?=<)", "", text).strip() for text in trained(ctx.tokenizer, encoded)
        ]
        assert [text.replace("> \n", ">\n") for text in texts] == expected, template
