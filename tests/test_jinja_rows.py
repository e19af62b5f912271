"""Risk: rows of a checkpoint with its own chat template whose ids differ from apply_chat_template's by a space, or whose
labels are not the answers.

The reference is a processor of transformers' own class on the same checkpoint, whatever the template does: trim, merge,
refuse, drop thoughts, write the images first. Four tokenizers: bytes with trimmed offsets, the same with added tokens
of newlines, and both ways of ▁.
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


@pytest.fixture(scope="module", params=["bytes", "newlines", "metaspace", "prepend"])
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
        content = message.get("content")
        if isinstance(content, str):
            parts = [
                {"type": "image", "image": jinja_chat.noise_image(*next(images))}
                if piece == "<image>"
                else {"type": "text", "text": piece}
                for piece in re.split("(<image>)", content)
                if piece or not content
            ]
            content = content if forms.get(message["role"]) == "text" else parts
        result.append({**message, "content": content} if content is not None else dict(message))
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


WEATHER = {"name": "get_weather", "description": "Weather.", "parameters": {"type": "object", "properties": {}}}
CALLS = [
    {"role": "user", "content": "Weather in Paris?"},
    {"role": "tool_call", "content": '{"name": "get_weather", "arguments": {"city": "Paris"}}'},
    {"role": "tool_call", "content": '{"name": "get_weather", "arguments": {"city": "Köln"}}'},
    {"role": "tool_response", "content": '{"sky": "blue"}'},
    {"role": "assistant", "content": "Blue."},
]


def call(city: str) -> dict:
    return {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}


@pytest.mark.parametrize("form", ["messages of their own", "tool_calls", "after a word"])
def test_tools_and_calls_are_given_as_templates_take_them(folder, form):
    tools = [{"type": "function", "function": WEATHER}]
    answer: dict = {"role": "assistant", "tool_calls": [call("Paris"), call("Köln")]}
    messages = [CALLS[0], *CALLS[1:]]
    if form == "tool_calls":
        openai = [
            {**one, "id": "1", "function": {**one["function"], "arguments": '{"city": "Paris"}'}}
            for one in [call("Paris")]
        ]
        answer = {"role": "assistant", "tool_calls": [call("Paris")]}
        messages = [CALLS[0], {"role": "assistant", "content": None, "tool_calls": openai}, *CALLS[3:]]
    if form == "after a word":
        answer = {"role": "assistant", "content": "Let me see.", **answer}
        messages = [CALLS[0], {"role": "assistant", "content": "Let me see."}, *CALLS[1:]]
    ctx, row = built(folder, "hermes", {"messages": messages, "tools": [WEATHER]})
    chat_of_tools = [CALLS[0], answer, {"role": "tool", "content": '{"sky": "blue"}'}, CALLS[-1]]
    processor = jinja_chat.processor_of(folder / "hermes")
    expected = processor.apply_chat_template(
        typed(folder, chat_of_tools, ctx.chat.forms), tools=tools, tokenize=True, return_dict=True
    )
    assert row["input_ids"][0].tolist() == expected["input_ids"][0]
    first, last = (re.sub("(?<=>) \n", "\n", text) for text in trained(ctx.tokenizer, row))
    assert last == "Blue.<|im_end|>"
    start = {"after a word": "Let me see.\n<tool_call>\n"}.get(form, "<tool_call>\n")
    assert first.startswith(start + '{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>')
    assert first.endswith("</tool_call><|im_end|>") and first.count("<tool_call>") == 1 + (form != "tool_calls")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("template", ["hermes", "glm"])
def test_thoughts_are_given_to_the_template_and_trained(folder, template, key):
    messages = [*chat("a", "b", "c", "d")]
    messages[1] |= {key: "one"}
    messages[3] |= {key: "two three"}
    config = BuildConfig(model=str(folder / template), bin_length=4096)
    ctx = family_of(config)
    row = encode_row({"messages": messages}, ctx, config, str(folder))
    processor = jinja_chat.processor_of(folder / template)
    expected = processor.apply_chat_template(typed(folder, messages, ctx.chat.forms), tokenize=True, return_dict=True)
    assert row["input_ids"][0].tolist() == expected["input_ids"][0]
    texts = ["".join(text.split()) for text in trained(ctx.tokenizer, row)]
    end = ENDS[template]
    assert texts == [f"<think>one</think>b{end}", f"<think>twothree</think>d{end}"]


def test_keys_that_a_renderer_reads_are_not_reported_as_unread(folder):
    from omniprep.compiler.plan.rows import plan_rows
    from omniprep.media.fetch import MediaRoots
    from omniprep.rows.columns import Note

    messages = [*chat("a"), {"role": "assistant", "content": "b", "reasoning_content": "c", "weight": 0}]
    config = BuildConfig(model=str(folder / "hermes"), bin_length=4096)
    roots = MediaRoots(str(folder), (), False)
    (row,) = plan_rows([{"messages": messages}], family_of(config), config, roots)
    assert row.unread == {"messages.weight": ""} and row.notes & Note.UNREAD_COLUMNS
    del messages[1]["weight"]
    (row,) = plan_rows([{"messages": messages}], family_of(config), config, roots)
    assert not row.unread and not row.notes
