"""Risk: options and faults that a chat template of the checkpoint's own changes: loss strategies, truncation, prompts for
inference, variables, the date, templates that raise or are not there, tokens typed in text.
"""

import json
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import jinja_chat
import pytest
from test_jinja_rows import chat, row_of, trained

from omniprep.compiler.encode.single_row import encode_bin, encode_prompt
from omniprep.compiler.options import family_of
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject, UsageError
from omniprep.template.jinja import ChatTemplate
from omniprep.template.time_limit import time_limit

DATED = "{{ strftime_now('%d %B %Y') }}: " + jinja_chat.CHATML
THINKING = jinja_chat.CHATML.replace("assistant\\n' }}{% endif %}", "assistant\\n' }}{% endif %}") + (
    "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
)


@pytest.fixture(scope="module", autouse=True)
def family():
    jinja_chat.register()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    for number, (width, height) in enumerate([(70, 40), (33, 100)]):
        jinja_chat.noise_image(width, height).save(folder / f"{number}.png")
    for name, template in {**jinja_chat.TEMPLATES, "dated": DATED, "thinking": THINKING}.items():
        jinja_chat.write_checkpoint(folder / name, template)
    return folder


def encode(folder: Path, template: str, row: dict, **options):
    config = BuildConfig(model=str(folder / template), **{"bin_length": 4096, **options})
    ctx = family_of(config)
    return ctx, encode_bin(row, ctx, config, str(folder))


def texts(ctx, encoded) -> list[str]:
    return trained(ctx.tokenizer, {"input_ids": encoded.input_ids[None], "labels": encoded.labels[None]})


TWO = chat("What is it?", "a cat", "And that?", "a dog")
END = "<|im_end|>"


@pytest.mark.parametrize("template", ["chatml", "generation"])
def test_strategies_and_weights_of_messages_mean_what_they_mean_elsewhere(folder, template):
    ctx, encoded = encode(folder, template, {"messages": TWO}, loss_scale="last_round")
    assert texts(ctx, encoded) == [f"a dog{END}"]
    silent = [{**message} for message in TWO]
    silent[1]["loss"] = False
    ctx, encoded = encode(folder, template, {"messages": silent})
    assert texts(ctx, encoded) == [f"a dog{END}"]
    ctx, encoded = encode(folder, template, {"messages": TWO}, loss_scale="all")
    assert (encoded.labels[1:] == encoded.input_ids[1:]).all()
    empty = chat("x", "<think>\n\n</think>\n\na cat")
    ctx, encoded = encode(folder, template, {"messages": empty}, loss_scale="ignore_empty_think")
    assert texts(ctx, encoded) == [f"a cat{END}"]
    calls = chat("x", 'so <tool_call>{"name": "f"}</tool_call> it is')
    ctx, encoded = encode(folder, template, {"messages": calls}, loss_scale="hermes")
    doubled = ctx.tokenizer.decode(encoded.input_ids[encoded.loss_scale == 2.0].tolist())
    assert doubled.strip() == '<tool_call>{"name": "f"}</tool_call>'


def test_media_in_an_answer_are_not_trained(folder):
    row = row_of(folder, chat("x", "see <image> here"))
    ctx, encoded = encode(folder, "chatml", row, loss_scale="all")
    image = ctx.placeholder_id("image")
    assert (encoded.input_ids == image).sum() == 2 and (encoded.labels != image).all()


def test_a_weight_of_one_answer_needs_a_generation_of_its_own(folder, tmp_path):
    whole = jinja_chat.CHATML.replace("{% for m in messages %}", "{% generation %}{% for m in messages %}", 1)
    whole = whole.replace("{% endfor %}{% if add", "{% endfor %}{% endgeneration %}{% if add")
    jinja_chat.write_checkpoint(tmp_path / "whole", whole)
    _, encoded = encode(tmp_path, "whole", {"messages": TWO})
    assert (encoded.labels[1:] != -100).all()
    with pytest.raises(Reject, match="answer_not_found: the chat template marks 1 generations for 2 answers"):
        encode(tmp_path, "whole", {"messages": TWO}, loss_scale="last_round")


def test_a_template_that_counts_letters_rejects_the_row_instead_of_a_wrong_label(tmp_path):
    counting = jinja_chat.CHATML.replace(
        "{{ c['text'] }}", "{{ c['text'] if m['role'] == 'user' else c['text'] ~ c['text'] | length }}"
    )
    jinja_chat.write_checkpoint(tmp_path / "counting", counting)
    with pytest.raises(Reject, match="answer_not_found: the chat template rewrites an answer"):
        encode(tmp_path, "counting", {"messages": TWO})


def test_long_rows_are_rejected_or_cut_outside_their_media(folder):
    row = row_of(folder, chat("<image>one two three", "four five six"))
    _, whole = encode(folder, "chatml", row)
    length = len(whole.input_ids)
    with pytest.raises(Reject, match=f"row_too_long: {length} tokens, the limit is {length - 2}"):
        encode(folder, "chatml", row, max_length=length - 2)
    for side, kept in (("right", slice(0, length - 2)), ("left", slice(2, length))):
        _, cut = encode(folder, "chatml", row, max_length=length - 2, truncation=side)
        assert cut.input_ids.tolist() == whole.input_ids[kept].tolist()
        assert cut.labels.tolist()[1:] == whole.labels[kept].tolist()[1:]
    with pytest.raises(Reject, match="media_truncated"):
        encode(folder, "chatml", row, max_length=10, truncation="right")


def test_text_without_roles(folder):
    row = row_of(folder, chat("<image>What?", "A cat."))
    ctx, encoded = encode(folder, "chatml", row, use_chat_template=False)
    expected = jinja_chat.item_text(70, 40) + "What?A cat.</s>"
    assert encoded.input_ids.tolist() == ctx.tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert texts(ctx, encoded)[-1] == "What?A cat.</s>"


@pytest.mark.parametrize("template", ["chatml", "gemma", "smolvlm", "glm", "deepseek", "generation"])
def test_a_prompt_is_that_of_add_generation_prompt(folder, template):
    config = BuildConfig(model=str(folder / template), bin_length=4096)
    ctx = family_of(config)
    for messages in (TWO, TWO[:3]):
        prompt = encode_prompt({"messages": messages}, ctx, config)
        processor = jinja_chat.processor_of(folder / template)
        text = [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if ctx.chat.forms[message["role"]] == "parts"
            else message
            for message in TWO[:3]
        ]
        expected = processor.apply_chat_template(text, tokenize=True, return_dict=True, add_generation_prompt=True)
        assert prompt["input_ids"][0].tolist() == expected["input_ids"][0]
        assert (prompt["labels"] == -100).all()


def test_answers_stop_where_the_template_ends_them(folder):
    ctx = family_of(BuildConfig(model=str(folder / "gemma"), bin_length=1))
    assert ctx.stop_texts == {"</s>", "<end_of_turn>"}


def test_variables_of_a_row(folder):
    row = {"messages": TWO, "chat_template_kwargs": {"enable_thinking": True, "max_pixels": 9}}
    ctx, ignored = encode(folder, "thinking", row)
    ctx, applied = encode(folder, "thinking", row, chat_template_kwargs="apply")
    assert ctx.chat.variables == {"enable_thinking"}
    assert ctx.tokenizer.decode(applied.input_ids.tolist()) == ctx.tokenizer.decode(ignored.input_ids) + "<think>"


def test_the_date_is_that_of_the_build(folder, tmp_path):
    from omniprep.compiler.output.folder import with_template_date

    ctx, encoded = encode(folder, "dated", {"messages": TWO}, template_date="2024-02-29")
    assert ctx.tokenizer.decode(encoded.input_ids.tolist()).startswith("<s>29 February 2024: ")
    ctx, encoded = encode(folder, "dated", {"messages": TWO})
    assert ctx.tokenizer.decode(encoded.input_ids.tolist()).startswith(date.today().strftime("<s>%d %B %Y: "))
    config = BuildConfig(model=str(folder / "dated"), out=str(tmp_path / "new"), bin_length=8)
    assert with_template_date(config, ctx).template_date == date.today().isoformat()
    (tmp_path / "new" / "plan").mkdir(parents=True)
    began = {"command": "build", "config": {"template_date": "2025-01-02"}, "inputs": [], "versions": {}}
    began |= {"tokenizer_sha256": "", "generation": ""}
    (tmp_path / "new" / "plan" / "build.json").write_text(json.dumps(began))
    assert with_template_date(config, ctx).template_date == "2025-01-02"  # what the folder's build began with
    plain = family_of(BuildConfig(model=str(folder / "chatml"), bin_length=8))
    assert with_template_date(config, plain).template_date is None
    with pytest.raises(UsageError, match="--template-date must be a day"):
        BuildConfig(template_date="20240229")


def test_a_default_system_text_is_given_as_a_message(folder):
    ctx, encoded = encode(folder, "chatml", {"messages": TWO}, system="Be brief.")
    assert ctx.tokenizer.decode(encoded.input_ids.tolist()).startswith("<s><|im_start|>system\nBe brief.<|im_end|>\n")
    with pytest.raises(Reject, match="template_refused: the chat template refuses the row: Only user and assistant"):
        encode(folder, "mistral", {"messages": TWO}, system="Be brief.")


@pytest.mark.parametrize(
    ("messages", "images", "message"),
    [
        (chat("a <img> b", "c"), 0, "special_token_in_text"),
        (chat("<image> a <img> b", "c"), 1, "special_token_in_text"),
        (chat("<im<image>g>", "c"), 1, "placeholder_mismatch: 1 image items, but the chat template writes 2"),
        (chat("<image>", "<tool_call>", system="<image>"), 1, None),
    ],
)
def test_tokens_of_media_in_the_text(folder, messages, images, message):
    """Typed tokens are rejected; so is text that becomes one where its template moves an image out of it."""
    row = {"messages": messages, **({"images": ["0.png"] * images} if images else {})}
    template = "mistral" if "<im<" in messages[0]["content"] else "chatml"
    if message is None:
        assert encode(folder, template, row)
        return
    with pytest.raises(Reject, match=message):
        encode(folder, template, row)


def test_a_tag_may_be_the_token_itself(tmp_path):
    """Where the model's own token is <image>, surplus tags are media tokens that people typed."""
    from omniprep.families.base import Family

    jinja_chat.write_checkpoint(tmp_path / "llava", jinja_chat.CHATML.replace("<img>", "<image>"))
    tokenizer = json.loads((tmp_path / "llava" / "tokenizer.json").read_text())
    text = json.dumps(tokenizer).replace('"<img>"', '"<image>"')
    (tmp_path / "llava" / "tokenizer.json").write_text(text)
    jinja_chat.noise_image(64, 64).save(tmp_path / "0.png")
    from omniprep.registry import REGISTRY

    toy = REGISTRY.families["jinja_chat"].cls
    llava = type(
        "Llava",
        (toy,),
        {
            "placeholders": {"image": "<image>"},
            "item_texts": lambda self, items: {"image": ["<image>" * 3 for _ in items["image"]]},
        },
    )
    REGISTRY.register_family("llava_like", override=True)(llava)
    assert issubclass(llava, Family)
    config = BuildConfig(model=str(tmp_path / "llava"), bin_length=4096, family="llava_like")
    ctx = family_of(config)
    row = {"messages": chat("<image>What?", "A cat."), "images": ["0.png"]}
    encoded = encode_bin(row, ctx, config, str(tmp_path))
    text = "<|im_start|>user\n<image><image><image>What?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
    assert encoded.input_ids.tolist() == ctx.tokenizer(text)["input_ids"]
    row["messages"] = chat("<image>What is an <image>?", "A cat.")
    with pytest.raises(Reject, match="placeholder_mismatch: 1 image items, but the chat template writes 2"):
        encode_bin(row, ctx, config, str(tmp_path))
    with pytest.raises(Reject, match="special_token_in_text"):
        encode_bin({"messages": chat("an <image>?", "A cat.")}, ctx, config, str(tmp_path))


def test_faults_of_a_template(folder, tmp_path):
    for name, template, fault in (
        ("raises", "{{ raise_exception('no\n way') }}", "refuses the row: no way"),
        ("fails", "{{ messages[0].content + 1 }}", "fails on the row: TypeError"),
        ("escapes", "{{ messages.__class__.__mro__ }}", "refuses the row: access to attribute '__class__'"),
        ("endless", "{{ 'x' * 70000000 }}", "writes 70,000,000 characters, the limit is 67,108,864"),
    ):
        jinja_chat.write_checkpoint(tmp_path / name, template)
        with pytest.raises(Reject, match=f"template_refused: the chat template {fault}"):
            encode(tmp_path, name, {"messages": TWO})
    jinja_chat.write_checkpoint(tmp_path / "broken", "{% for x %}")
    with pytest.raises(OmniprepError, match="its chat template is not valid Jinja: .* \\(line 1\\)"):
        encode(tmp_path, "broken", {"messages": TWO})
    processor = jinja_chat.processor_of(folder / "chatml")
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(OmniprepError, match="model 'm' has no chat template"):
        ChatTemplate(processor, name="m")
    processor.chat_template = {"rag": "x", "tools": "y"}
    with pytest.raises(OmniprepError, match="none of its chat templates is named default \\(there are rag, tools\\)"):
        ChatTemplate(processor, name="m")


def test_templates_of_a_tokenizer_alone(folder):
    """Text models have no processor: no tokens are added, texts are strings, tools may have a template of their own."""
    tokenizer = jinja_chat.processor_of(folder / "llama").tokenizer
    tokenizer.chat_template = {"default": jinja_chat.LLAMA, "tool_use": "TOOLS" + jinja_chat.LLAMA}
    chat_template = ChatTemplate(tokenizer)
    assert chat_template.forms["user"] == "text" and not chat_template.adds_special_tokens("x")
    assert chat_template.render([{"role": "user", "content": "a"}], tools=[{}])[0].startswith("TOOLS")


def test_a_renderer_of_ones_own(folder):
    from omniprep.registry import REGISTRY
    from omniprep.template.rendered import ItemSpan, Rendered, WeightSpan

    def shout(ctx, row, strategy, *, generate=False):
        text = "Q: " + row.messages[0]["content"].replace("<image>", "<img>") + "\nA: "
        start, answer = len(text), row.messages[1]["content"].upper()
        at = text.find("<img>")
        items = (ItemSpan(at, at + 5, "image", 0),) if at >= 0 else ()
        return Rendered(text + answer, (WeightSpan(start, start + len(answer), 1.0),), items, special_tokens=True)

    base = REGISTRY.families["jinja_chat"].cls
    shouting = REGISTRY.register_renderer(shout)(type("Shouting", (base,), {}))
    REGISTRY.register_family("shouting", override=True)(shouting)
    ctx, encoded = encode(folder, "chatml", row_of(folder, chat("<image>what", "a cat")), family="shouting")
    expected = "Q: " + jinja_chat.item_text(70, 40) + "what\nA: A CAT"
    assert encoded.input_ids.tolist() == ctx.tokenizer(expected)["input_ids"]
    assert [text.strip() for text in texts(ctx, encoded)] == ["A CAT"]


def test_rows_of_other_templates_than_chatml_are_shown_as_prompts_and_answers(folder):
    from omniprep.inspect.describe import messages_of, pieces_of
    from omniprep.inspect.vocabulary import Vocabulary

    row = row_of(folder, chat("<image><image>What?", "A cat.", "Sure?", "Yes."))
    ctx, encoded = encode(folder, "gemma", row)
    arrays = {"input_ids": encoded.input_ids, "labels": encoded.labels}
    shown = messages_of(pieces_of(arrays, Vocabulary(ctx.tokenizer.backend_tokenizer)))
    assert [message["role"] for message in shown] == ["prompt", "assistant"] * 2 + ["prompt"]
    assert shown[0]["content"].startswith("<s><start_of_turn>user\n\n\n a picture:<img>")
    assert shown[1]["content"] == "A cat.<end_of_turn>"
    assert shown[2]["content"] == "\n<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n"
    ctx, encoded = encode(folder, "gemma", {"messages": chat("Hello?")})
    arrays = {"input_ids": encoded.input_ids, "labels": encoded.labels}
    (message,) = messages_of(pieces_of(arrays, Vocabulary(ctx.tokenizer.backend_tokenizer)))
    assert message == {"role": "text", "content": "<s><start_of_turn>user\nHello?<end_of_turn>\n"}
    ctx, encoded = encode(folder, "chatml", {"messages": TWO})
    arrays = {"input_ids": encoded.input_ids, "labels": encoded.labels}
    shown = messages_of(pieces_of(arrays, Vocabulary(ctx.tokenizer.backend_tokenizer)))
    assert shown == [{"role": m["role"], "content": m["content"]} for m in TWO]


def test_a_template_that_does_not_end_meets_the_time_limit_of_a_row(tmp_path):
    slow = (
        "{% if messages[0]['content'][0]['text'] == 'slow' %}{% for a in range(90000) %}{% for b in range(90000) %}"
        "{% endfor %}{% endfor %}{% endif %}"
    )
    jinja_chat.write_checkpoint(tmp_path / "slow", slow + jinja_chat.CHATML)
    code = f"""
import sys
import time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import jinja_chat
from omniprep.compiler.isolate.deadline import row_deadlines
from omniprep.compiler.options import family_of
from omniprep.compiler.plan.rows import plan_rows
from omniprep.config import BuildConfig
from omniprep.media.fetch import MediaRoots
jinja_chat.register()
config = BuildConfig(model={str(tmp_path / "slow")!r}, bin_length=64)
ctx = family_of(config)
with row_deadlines(1.0):
    for text in ("fast", "slow"):
        row = {{"messages": [{{"role": "user", "content": text}}]}}
        print(type(plan_rows([row], ctx, config, MediaRoots(".", (), False))[0]).__name__, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stdout.split() == ["PlannedRow"]
    assert "Error: a row's chat template: " in done.stderr


ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"


def test_a_template_that_never_ends_is_one_line_when_it_is_loaded(tmp_path, monkeypatch):
    """There is no row yet to leave out, and no worker to end: the driver itself hung."""
    monkeypatch.setattr("omniprep.template.jinja.LEARNING_SECONDS", 0.5)
    processor = jinja_chat.processor_of(jinja_chat.write_checkpoint(tmp_path / "endless", ENDLESS + jinja_chat.CHATML))
    with pytest.raises(OmniprepError, match="model 'm': its chat template did not end within 0.5 s on chats of a few"):
        ChatTemplate(processor, name="m")
    monkeypatch.undo()
    processor = jinja_chat.processor_of(jinja_chat.write_checkpoint(tmp_path / "short", jinja_chat.CHATML))
    assert ChatTemplate(processor, name="m").turn  # nothing of the limit is left behind


@pytest.mark.parametrize(
    "template",
    [
        "{% if 1 %}" * 150 + "{% endif %}" * 150,
        "{% for x in [1] %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ 1" + "+1" * 20000 + " }}",
    ],
    ids=["ifs", "loops", "brackets", "sum"],
)
def test_a_template_that_python_cannot_compile_is_one_line(tmp_path, template):
    processor = jinja_chat.processor_of(jinja_chat.write_checkpoint(tmp_path / "deep", template + jinja_chat.CHATML))
    with pytest.raises(OmniprepError, match="model 'm': its chat template (cannot be compiled|is not valid Jinja): "):
        ChatTemplate(processor, name="m")


def test_a_time_limit_meets_the_block_alone():
    for _ in range(200):  # the limit and the end of the block fall together
        try:
            with time_limit(0.002):
                end = time.perf_counter() + 0.002
                while time.perf_counter() < end:
                    pass
        except TimeoutError:
            pass
    code = (
        "import threading\nfrom omniprep.template.time_limit import time_limit\n"
        "with time_limit(1.0): 9 ** (9 ** 9)\nprint('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and not done.stdout and "Timeout" in done.stderr


def test_a_build_goes_on_only_with_the_chat_template_that_it_began_with(tmp_path):
    folder = jinja_chat.write_checkpoint(tmp_path / "model", jinja_chat.CHATML)
    config = BuildConfig(model=str(folder), bin_length=64)
    before = family_of(config).versions
    (folder / "chat_template.jinja").write_text(jinja_chat.LLAMA)
    changed = family_of(config).versions
    assert before != changed and before.keys() == changed.keys()
