"""The rows and options of the parity tests: one `Case` for every rule of the template that a row or an option can touch.

A case's file paths are relative to tests/golden/media. `rejects` is the code omniprep gives where the reference accepts the row, with
`reason`; where the reference raises, `code` names the reject (checked when given), or `accepts` says why omniprep takes the row all the
same. `via="dataset"` sends a row with `messages` through ms-swift's AutoPreprocessor too, as its training does; without it the row goes
straight to the template.
"""

# A table: one row a line reads better here than wrapped calls.
# ruff: noqa: SIM905
# fmt: off

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CASES", "Case", "demo_cases"]

MEDIA = Path(__file__).resolve().parent / "media"


@dataclass(frozen=True)
class Case:
    kind: str
    name: str
    row: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    rejects: str = ""
    reason: str = ""
    via: str = ""
    hashes_only: bool = False
    accepts: str = ""


CASES: list[Case] = []


def case(kind: str, name: str, row: dict[str, Any], **more: Any) -> None:
    fields = {k: more.pop(k) for k in ("code", "rejects", "reason", "via", "accepts") if k in more}
    CASES.append(Case(kind, f"{kind}/{name}", row, options=more, **fields))


def u(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def a(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def s(text: Any) -> dict[str, Any]:
    return {"role": "system", "content": text}


def call(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "tool_call", "content": content, **more}


def answer(content: Any, role: str = "tool_response") -> dict[str, Any]:
    return {"role": role, "content": content}


def chat(*messages: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


def b64(name: str) -> str:
    return base64.b64encode((MEDIA / name).read_bytes()).decode()


TWO = (u("What is 2+2?"), a("It is 4."), u("And 3+3?"), a("It is 6."))

# ---------------------------------------------------------------------------------------------------------------- row shapes
k = "shapes"
case(k, "one_turn", chat(u("Hello there."), a("Hi! How can I help?")))
case(k, "two_turns", chat(*TWO))
case(k, "system", chat(s("You are terse."), *TWO))
case(k, "system_empty", chat(s(""), *TWO))
case(k, "system_none", chat(s(None), *TWO))
case(k, "system_newlines", chat(s("\nLine one.\n\nLine two.\n"), *TWO))
case(k, "system_option", chat(*TWO), system="Answer in French.")
case(k, "system_option_row_wins", chat(s("Row system."), *TWO), system="Answer in French.")
case(k, "system_option_empty", chat(*TWO), system="")
case(k, "system_column_dataset", chat(*TWO, system="From the column."), via="dataset")
case(k, "system_column_and_message", chat(s("From the message."), *TWO, system="From the column."), via="dataset")
case(k, "query_response", {"query": "Name a color.", "response": "Blue."})
case(k, "query_response_system", {"system": "Be kind.", "query": "Name a color.", "response": "Blue."})
case(k, "query_response_system_prompt", {"system_prompt": "Be kind.", "query": "Name a color.", "response": "Blue."})
case(k, "query_response_system_empty", {"system": "", "query": "Name a color.", "response": "Blue."})
case(k, "history", {"history": [["q1", "r1"], ["q2", "r2"]], "query": "q3", "response": "r3", "system": "S"})
case(k, "history_text", {"history": "[['q1', 'r1'], ['q2', 'r2']]", "query": "q3", "response": "r3"})
case(k, "history_empty", {"history": [], "query": "q3", "response": "r3"})
case(k, "history_open", {"history": [["q1", None]], "query": "q2", "response": "r2"})
case(k, "history_only", {"history": [["q1", "r1"], ["q2", "r2"]], "system": "S"})
case(k, "two_queries_unnamed", {"Query": "a", "instruction": "b", "answer": "r"})
case(k, "query_and_input", {"input": "x", "query": "q", "response": "r"})
case(k, "query_and_input_empty", {"input": "", "query": "q", "completion": "r"})
case(k, "instruction_upper_and_input", {"input": "x", "Instruction": "i", "output": "o"})
case(k, "instruction_and_input_null", {"instruction": "i", "input": None, "output": "o"})
case(k, "prompt_completion", {"prompt": "The sky is", "completion": " blue."})
case(k, "question_answer", {"question": "Why?", "answer": "Because."})
case(k, "problem_solution", {"problem": "1+1", "solution": "2"})
case(k, "input_output", {"input": "1+1", "output": "2"})
case(k, "instruction_output", {"instruction": "Count to 3.", "output": "1 2 3"})
case(k, "upper_columns", {"Query": "Name a color.", "RESPONSE": "Blue.", "System": "Be kind."})
case(k, "two_responses_named", {"query": "q", "response": "kept", "answer": "ignored?"})
case(k, "two_responses_unnamed", {"query": "q", "output": "first?", "answer": "second?"})
case(k, "query_and_prompt", {"query": "the query", "prompt": "the prompt", "response": "r"})
case(k, "response_only", {"response": "Text to learn from."})
case(k, "text_only_column", {"text": "Text to learn from."})
case(k, "query_only", {"query": "No answer here."})
case(k, "query_none", {"query": None, "response": "Only an answer."})
case(k, "response_empty", {"query": "q", "response": ""})
case(k, "alpaca", {"instruction": "Translate.", "input": "cat", "output": "chat"})
case(k, "alpaca_no_input", {"instruction": "Say hi.", "input": "", "output": "hi"})
case(k, "alpaca_no_instruction", {"instruction": "", "input": "cat", "output": "chat"})
case(k, "alpaca_nothing", {"instruction": "", "input": "", "output": "chat"})
case(k, "alpaca_system_history", {"system": "S", "instruction": "i", "input": "x", "output": "o", "history": [["q", "r"]]})
case(k, "alpaca_extra", {"instruction": "i", "input": "x", "output": "o", "text": "joined text", "id": 7})
case(k, "sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, {"from": "human", "value": "Bye"}, {"from": "gpt", "value": "See you"}]})
case(k, "sharegpt_system_column", {"system": "Be brief.", "conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}]})
case(k, "sharegpt_system_turn", {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, {"from": "bot", "value": "Hello"}]})
case(k, "sharegpt_system_both", {"system": "column", "conversations": [{"from": "system", "value": "turn"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]})
case(k, "sharegpt_role_value", {"conversation": [{"role": "human", "value": "Hi"}, {"role": "bot", "value": "Hello"}]})
case(k, "sharegpt_pairs", {"conversation": [{"human": "h1", "assistant": "a1"}, {"human": "h2", "assistant": "a2"}]})
case(k, "sharegpt_pairs_system", {"system": "S", "conversation": [{"user": "h1", "gpt": "a1"}, {"user": "h2", "gpt": "a2"}]})
case(k, "sharegpt_text", {"conversations": "[{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Hello'}]"})
case(k, "sharegpt_text_tuple", {"conversations": "({'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Hello'})"})
case(k, "sharegpt_loss", {"conversations": [{"from": "human", "value": "q1"}, {"from": "gpt", "value": "r1", "loss": False}, {"from": "human", "value": "q2"}, {"from": "gpt", "value": "r2", "loss": True}]})
case(k, "sharegpt_bad_role", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "narrator", "value": "Hello"}]}, code="bad_role")
case(k, "messages_from_value", chat({"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}), via="dataset")
case(k, "messages_aliases", chat({"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Hello"}), via="dataset")
case(k, "messages_extra_keys", chat(u("Hi", name="Ann", weight=1), a("Hello", name="Bot")))
case(k, "columns_extra", chat(*TWO, id="x1", source="web", score=0.5))
case(k, "channel", chat(*TWO, channel="math"))
case(k, "rejected_response", chat(*TWO, rejected_response="It is 7."), preference="ignore")
case(k, "same_roles_user", chat(u("Part one. "), u("Part two."), a("Yes."), u("Go on"), u("!"), a("Fine.")))
case(k, "same_roles_assistant", chat(u("Hi"), a("Hello"), a(" again"), u("Ok"), a("x"), a("y"), a("z")))
case(k, "same_roles_loss", chat(u("Hi"), a("Hello", loss=False), a(" again", loss=True), u("q"), a("b", loss=True), a("c", loss=False)))
case(k, "assistant_first", chat(a("Once upon a time."), u("Go on"), a("The end.")))
case(k, "assistant_only", chat(a("Only text.")))
case(k, "user_last", chat(u("Hi"), a("Hello"), u("Bye")))
case(k, "user_only", chat(u("Hi")))
case(k, "system_only", chat(s("Alone.")), code="empty_row")
case(k, "system_middle", chat(u("Hi"), s("Now be rude."), a("No.")), code="bad_role")
case(k, "system_twice", chat(s("One."), s("Two."), u("Hi"), a("Yes.")), code="bad_role")
case(k, "empty_messages", chat(), code="empty_row")
case(k, "content_none", chat(u("Hi"), a(None)), code="bad_message")
case(k, "sharegpt_none_last", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": None}]}, code="bad_message")
case(k, "sharegpt_none_system", {"conversations": [{"from": "system", "value": None}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}, code="bad_message")
case(k, "content_none_middle", chat(u("Hi"), a(None), u("Hm"), a("Yes")), code="bad_message")
case(k, "content_none_user", chat(u(None), a("Yes")), code="bad_message")
case(k, "content_number", chat(u(5), a("five")), code="bad_message")
case(k, "content_missing", chat({"role": "user"}, a("Yes")), code="bad_message")
case(k, "role_unknown", chat({"role": "critic", "content": "Hm"}, a("Yes")), code="bad_role")
case(k, "content_empty_user", chat(u(""), a("Unasked.")))
case(k, "content_empty_assistant", chat(u("Hi"), a("")))
case(k, "content_list_text", chat(u([{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]), a([{"type": "text", "text": "Hi"}])))
case(k, "content_list_empty", chat(u([]), a("Hi")))
case(k, "content_list_system", chat(s([{"type": "text", "text": "Sys"}]), u("q"), a("r")), accepts="typed system text is flattened as any other message")
case(k, "content_list_unknown", chat(u([{"type": "smell", "smell": "rose"}, {"type": "text", "text": "What?"}]), a("Hi")))
case(k, "content_token_ids", chat(u("Hi"), a([9707, 0])), rejects="bad_message", reason="token ids in a message are not a row that people write")
case(k, "pretrain", chat(a("Plain text for pre-training.")), use_chat_template=False)
case(k, "pretrain_all", chat(a("Plain text for pre-training.")), use_chat_template=False, loss_scale="all")
case(k, "pretrain_chat", chat(*TWO), use_chat_template=False, loss_scale="all")
case(k, "pretrain_system", chat(s("S"), a("Text.")), code="bad_message", use_chat_template=False)
case(k, "pretrain_system_empty", chat(s(""), a("Text.")), use_chat_template=False, accepts="nothing is lost")
case(k, "pretrain_image", chat(a("<image>A picture."), images=["s56x84.png"]), use_chat_template=False, loss_scale="all")

# ----------------------------------------------------------------------------------------------------------------------- text
k = "text"
case(k, "leading_newlines", chat(u("Hi"), a("\n\nfoo")))
case(k, "leading_newline_two_turns", chat(u("Hi"), a("\nfoo\n"), u("\n\n"), a("\n")))
case(k, "leading_space", chat(u("  Hi  "), a("  foo  ")))
case(k, "trailing_newlines", chat(u("Hi\n"), a("foo\n\n"), u("x\n\n\n"), a("bar \n ")))
case(k, "crlf_tabs", chat(u("a\r\nb\tc"), a("\td\r\n")))
case(k, "nfd", chat(u("Cafe\u0301 n\u0303 A\u030a"), a("e\u0301te\u0301 \u1100\u1161\u11a8")))
case(k, "nfd_split_by_weight", chat(u("e"), a("\u0301te\u0301")))
case(k, "compatibility_chars", chat(u("\ufb01 \u2126 \u212b \uff21"), a("\u1e9b\u0323")))
case(k, "emoji", chat(u("\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd"), a("\U0001f1eb\U0001f1f7 ok")))
case(k, "scripts", chat(u("你好，世界。สวัสดี مرحبا שלום"), a("नमस्ते こんにちは 안녕하세요")))
case(k, "odd_spaces", chat(u("a\u00a0b\u2003c\u200bd\ufeffe"), a("\u3000x")))
case(k, "control_chars", chat(u("a\x00b\x07c\x1b[0m"), a("\x7f\x85")))
case(k, "surrogate", chat(u("bad \ud800 half"), a("ok")), code="bad_message")
case(k, "digits_code", chat(u("12345678901234567890 def f(x):\n    return x**2\n"), a("```python\nprint('hi')\n```")))
case(k, "contractions", chat(u("I'LL DON'T we're IT'S"), a("He'd've")))
case(k, "ends_with_im_end", chat(u("Hi"), a("Hello<|im_end|>")))
case(k, "ends_with_im_end_newline", chat(u("Hi"), a("Hello<|im_end|>\n")))
case(k, "ends_with_endoftext", chat(u("Hi"), a("Hello<|endoftext|>")))
case(k, "first_ends_with_im_end", chat(u("Hi"), a("Hello<|im_end|>"), u("q"), a("r")))
case(k, "literal_chat_tokens", chat(u("<|im_start|>user\nfake<|im_end|>"), a("<|im_start|>ok")))
case(k, "literal_vision_tokens", chat(u("see <|vision_bos|><|IMAGE|><|vision_eos|>"), a("ok")), rejects="special_token_in_text", reason="media tokens typed in text")
case(k, "literal_audio_tokens", chat(u("hear <|audio_bos|>x<|audio_eos|>"), a("ok")), rejects="special_token_in_text", reason="media tokens typed in text would be taken for media")
case(k, "literal_placeholder_in_answer", chat(u("q"), a("<|VIDEO|>")), rejects="special_token_in_text", reason="media tokens typed in text")
case(k, "literal_placeholder_with_image", chat(u("<image><|IMAGE|>"), a("ok"), images=["s56x84.png"]), rejects="special_token_in_text", reason="media tokens typed in text; the reference leaves a pad token without features")
case(k, "literal_other_specials", chat(u("<|box_end|><|quad_start|><|fim_prefix|><|vision_pad|>"), a("<|object_ref_start|>x<|box_start|>")))
case(k, "literal_tool_tags", chat(u("say <tool_call>"), a("<tool_call>\n{}\n</tool_call>")))
case(k, "tags_without_media", chat(u("<image>x<video>y<audio>z"), a("<bbox> <ref-object>")))
case(k, "tags_cot", chat(u("<cot-process> a <start-image> b"), a("c <cot-process>")))
case(k, "start_image_last_user", chat(u("Hi"), a("Hello"), u("draw <start-image>")))
case(k, "braces_query", chat(u("{{QUERY}} and {{SYSTEM}} {{RESPONSE}}"), a("{{RESPONSE}}")))
case(k, "braces_round", chat(u("{{ROUND0}} then {{ROUND1}}"), a("{{ROUND0}}"), u("{{ROUND1}}"), a("ok")))
case(k, "braces_system", chat(s("{{SYSTEM}} {{QUERY}} {{ROUND0}}"), u("q"), a("r")))
case(k, "img_tag_missing", chat(u("look <img>nowhere.png</img> now"), a("ok")))
case(k, "img_tag", chat(u("look <img>s56x84.png</img> now"), a("ok")))
case(k, "img_tag_two", chat(u("<img>s56x84.png</img> and <img>s28x28.png</img>"), a("ok")))
case(k, "img_tag_with_images", chat(u("<image><img>s56x84.png</img>"), a("ok"), images=["s28x28.png"]))
case(k, "long_right", chat(u("word " * 60), a("answer " * 40)), max_length=64, truncation="right")
case(k, "long_left", chat(u("word " * 60), a("answer " * 40)), max_length=64, truncation="left")
case(k, "long_left_unlabelled_start", chat(u("word " * 60), a("answer " * 10)), max_length=64, truncation="left")
case(k, "long_raise", chat(u("word " * 60), a("answer " * 40)), max_length=64, code="row_too_long")
case(k, "length_exact", chat(u("Hello there."), a("Hi! How can I help?")), max_length=30)
case(k, "long_left_weighted", chat(u("word " * 60), a("x <tool_call>{}</tool_call> " * 4)), max_length=40, truncation="left", loss_scale="hermes")
case(k, "long_left_in_answer", chat(u("word"), a("answer " * 60)), max_length=40, truncation="left")
case(k, "long_left_in_answer_weighted", chat(u("word"), a("x <tool_call>{}</tool_call> " * 9)), max_length=40, truncation="left", loss_scale="hermes")
case(k, "loss_of_a_question", chat(u("Hi") | {"loss": "x"}, a("Yes.")))

# ---------------------------------------------------------------------------------------------------------------------- tools
k = "tools"
WEATHER = {"name": "get_weather", "description": "Weather of a city — now", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
WRAPPED = {"type": "function", "function": WEATHER}
TIME = {"name": "get_time", "parameters": {}}
CALL = json.dumps({"name": "get_weather", "arguments": {"city": "Zürich"}}, ensure_ascii=False)
CALL2 = '{"name": "get_time", "arguments": {}}'
ROUND = (u("Weather?"), call(CALL), answer('{"t": 21}'), a("21 degrees."))
case(k, "text_list", chat(*ROUND, tools=json.dumps([WEATHER, TIME])))
case(k, "list", chat(*ROUND, tools=[WEATHER, TIME]))
case(k, "list_of_text", chat(*ROUND, tools=[json.dumps(WEATHER), json.dumps(WRAPPED)]))
case(k, "wrapped", chat(*ROUND, tools=[WRAPPED]))
case(k, "text_one", chat(*ROUND, tools=json.dumps(WEATHER)))
case(k, "text_python", chat(*ROUND, tools=str([WEATHER])))
case(k, "text_unicode", chat(*ROUND, tools=json.dumps([WEATHER], ensure_ascii=True)))
case(k, "text_bad", chat(*ROUND, tools="not json"), code="bad_tools")
case(k, "dict", chat(*ROUND, tools=WEATHER), code="bad_tools")
case(k, "empty_list", chat(*ROUND, tools=[]))
case(k, "empty_text", chat(*ROUND, tools=""))
case(k, "empty_text_list", chat(*ROUND, tools="[]"))
case(k, "none", chat(*ROUND, tools=None))
case(k, "list_of_numbers", chat(*ROUND, tools=[1]), code="bad_tools")
case(k, "with_system", chat(s("You help."), *ROUND, tools=[WEATHER]))
case(k, "with_system_empty", chat(s(""), *ROUND, tools=[WEATHER]))
case(k, "with_system_option", chat(*ROUND, tools=[WEATHER]), system="Option system.")
case(k, "no_calls", chat(*TWO, tools=[WEATHER]))
case(k, "parallel", chat(u("Both?"), call(CALL), call(CALL2), answer("21"), answer("noon"), a("21 at noon."), tools=[WEATHER, TIME]))
case(k, "multi_turn", chat(u("Weather?"), call(CALL), answer("21"), call(CALL2), answer("noon"), a("Done."), u("Thanks"), a("Welcome."), tools=[WEATHER, TIME]))
case(k, "tool_role", chat(u("Weather?"), call(CALL), answer("21", "tool"), a("21."), tools=[WEATHER]))
case(k, "content_objects", chat(u("Weather?"), call({"name": "get_weather", "arguments": {"city": "Ÿ"}}), answer({"t": [1, 2]}), a("ok"), tools=[WEATHER]))
for name, given in (("null", None), ("false", False), ("number", 3.5), ("list", [1, None]), ("empty", ""), ("nested", {"a": [None, {"b": True}]})):
    case(k, f"gives_{name}", chat(u("Weather?"), call(CALL), answer(given), answer(given, "tool"), a("ok"), tools=[WEATHER]))
case(k, "call_is_null", chat(u("Weather?"), call(None), answer("r"), a("ok")), code="bad_tools")
case(k, "sharegpt_response_null", {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": CALL2}, {"from": "observation", "value": None}, {"from": "gpt", "value": "ok"}]}, code="bad_message")
case(k, "arguments_text", chat(u("Weather?"), call('{"name": "f", "arguments": "{\\"x\\": 1}"}'), answer("r"), a("ok")))
case(k, "arguments_plain_text", chat(u("Weather?"), call('{"name": "f", "arguments": "plain"}'), answer("r"), a("ok")), code="bad_tools")
case(k, "arguments_missing", chat(u("Weather?"), call('{"name": "f"}'), answer("r"), a("ok")), code="bad_tools")
case(k, "parameters_key", chat(u("Weather?"), call('{"name": "f", "parameters": {"x": 1.0}, "id": 3}'), answer("r"), a("ok")))
case(k, "call_python", chat(u("Weather?"), call("{'name': 'f', 'arguments': {'x': None, 'y': True}}"), answer("r"), a("ok")))
case(k, "call_bad", chat(u("Weather?"), call("call f please"), answer("r"), a("ok")), code="bad_tools")
case(k, "call_floats", chat(u("q"), call('{"name": "f", "arguments": {"x": 1e3, "y": 1E-7, "z": 1.10, "big": 123456789012345678901234567890}}'), answer("r"), a("ok")))
case(k, "call_nan", chat(u("q"), call('{"name": "f", "arguments": {"x": NaN, "y": Infinity}}'), answer("r"), a("ok")))
case(k, "call_duplicate_keys", chat(u("q"), call('{"name": "f", "arguments": {"x": 1, "x": 2}, "name": "g"}'), answer("r"), a("ok")))
case(k, "text_then_call", chat(u("Weather?"), a("Let me look.\n"), call(CALL), answer("21"), a("21."), tools=[WEATHER]))
case(k, "call_then_text", chat(u("Weather?"), call(CALL), a("so"), u("?"), a("21."), tools=[WEATHER]))
case(k, "call_first", chat(call(CALL), answer("21"), a("21."), tools=[WEATHER]))
case(k, "call_last", chat(u("Weather?"), call(CALL), tools=[WEATHER]))
case(k, "response_last", chat(u("Weather?"), call(CALL), answer("21"), tools=[WEATHER]))
case(k, "response_after_user", chat(u("Weather?"), answer("21"), a("ok"), tools=[WEATHER]), code="bad_role")
case(k, "response_first", chat(answer("21"), a("ok")), code="bad_role")
case(k, "response_then_user", chat(u("Weather?"), call(CALL), answer("21"), u("well?"), a("21."), tools=[WEATHER]), code="bad_role")
case(k, "response_braces", chat(s("SYS"), u("q"), call(CALL2), answer("{{QUERY}} {{SYSTEM}} {{ROUND0}} {{RESPONSE}}"), a("ok")))
case(k, "response_newlines", chat(u("q"), call(CALL2), answer("\n\nline\n"), a("\nok")))
case(k, "response_empty", chat(u("q"), call(CALL2), answer(""), a("ok")))
case(k, "response_image", chat(u("q"), call(CALL2), answer("<image>seen"), a("ok"), images=["s56x84.png"]))
case(k, "response_image_untagged", chat(u("q"), call(CALL2), answer("seen"), a("ok"), images=["s56x84.png"]))
case(k, "react_fallback", chat(u("q"), a("Thought: x\nAction: f\nAction Input: {}"), answer("r1"), a("Final Answer: y")))
case(k, "react_two_responses", chat(u("q"), a("Action: f\nAction Input: {}\nObservation:"), answer("r1"), answer("r2\n"), a("ok")))
case(k, "call_loss_false", chat(u("q"), call(CALL2, loss=False), answer("r"), a("ok")))
case(k, "pretrain", chat(*ROUND), use_chat_template=False, loss_scale="all")
case(k, "pretrain_tools", chat(*ROUND, tools=[WEATHER]), code="bad_tools", use_chat_template=False, loss_scale="all")
case(k, "pretrain_tools_empty", chat(*ROUND, tools=[]), use_chat_template=False, loss_scale="all", accepts="nothing is lost")
case(k, "pretrain_call_last", chat(u("Weather?"), call(CALL)), use_chat_template=False, loss_scale="all")
case(k, "sharegpt", {"conversations": [{"from": "human", "value": "Weather?"}, {"from": "function_call", "value": CALL}, {"from": "observation", "value": "21"}, {"from": "gpt", "value": "21."}], "tools": json.dumps([WEATHER])})
case(k, "sharegpt_names", {"conversations": [{"from": "human", "value": "q"}, {"from": "function-call", "value": CALL2}, {"from": "function-response", "value": "r"}, {"from": "observations", "value": "r2"}, {"from": "gpt", "value": "ok"}], "tools": "[]"})
case(k, "query_response", {"query": "Weather?", "response": "Sunny.", "tools": [json.dumps(WEATHER)]})
case(k, "image_and_tools", chat(s("S"), u("<image>Q1"), a("A1"), u("Q2"), call(CALL), answer("R"), a("A2"), tools=[WEATHER], images=["s56x84.png"]))

# ----------------------------------------------------------------------------------------------------------------------- loss
k = "loss"
REACT = "Thought: think\nAction: f\nAction Input: {\"x\": 1}\nObservation: 5\nThought: done\nFinal Answer: five"
QWEN = "✿FUNCTION✿: f\n✿ARGS✿: {}\n✿RESULT✿: 5\n✿RETURN✿: five"
THINK = "<think>\n\n</think>\n\nPlain answer."
HERMES = 'Sure.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call> end'
for strategy in ("default", "last_round", "all", "ignore_empty_think", "last_round_with_ignore_empty_think", "react", "hermes", "qwen", "agentflan", "alpha_umi"):
    case(k, f"{strategy}_two_turns", chat(s("S"), *TWO), loss_scale=strategy)
    case(k, f"{strategy}_mixed", chat(u("first"), a(REACT), u("second"), a(THINK), u("third"), a(HERMES), u("fourth"), a(QWEN)), loss_scale=strategy)
    case(k, f"{strategy}_tools", chat(u("Both?"), call(CALL), call(CALL2), answer("21"), answer("noon"), a("21 at noon."), tools=[WEATHER]), loss_scale=strategy)
    case(k, f"{strategy}_image", chat(u("<image>What?"), a("A <image> in " + THINK), u("more"), a(REACT), images=["s56x84.png", "s28x28.png"]), loss_scale=strategy)
    case(k, f"{strategy}_message_loss", chat(u("1"), a("one", loss=False), u("2"), a(HERMES, loss=True), u("3"), a("three", loss=0.5), u("4"), a("four")), loss_scale=strategy)
for value in (True, False, 0.5, 0, 1, 2.0, None, "true"):
    case(k, f"last_message_{value}", chat(u("1"), a("one"), u("2"), a("two", loss=value)))
    case(k, f"last_message_hermes_{value}", chat(u("1"), a("one"), u("2"), a("two", loss=value)), loss_scale="hermes")
case(k, "negative", chat(u("1"), a("one", loss=-1.0)), loss_scale="hermes")
case(k, "on_user", chat(u("1", loss=True), a("one"), u("2", loss=False), a("two")))
case(k, "all_false", chat(u("1"), a("one", loss=False), u("2"), a("two", loss=False)))
case(k, "think_whitespace", chat(u("1"), a("<think> \n </think>   x"), u("2"), a("<think>deep</think>y<think></think>z")), loss_scale="ignore_empty_think")
case(k, "think_at_start_of_answer", chat(u("1"), a("<think>\n\n</think>\n\n")), loss_scale="ignore_empty_think")
case(k, "agentflan_query", chat(u("What is the value of x?"), a("Action: five"), u("other"), a("Name: six")), loss_scale="agentflan")
case(k, "agentflan_query_tool", chat(u("q"), call(CALL2), answer("What is the value of"), a("Tool: x")), loss_scale="agentflan")
case(k, "agentflan_labels", chat(u("q"), a("Name: a ACTION: b Tool: c Command d Arguments: e action input f ACTION_INPUT: g")), loss_scale="agentflan")
case(k, "alpha_umi_next", chat(u("q"), a("Thought: a\nNext: caller.")), loss_scale="alpha_umi")
case(k, "react_prefix", chat(u("q"), a("no label first Action: f\nAction Input: x")), loss_scale="react")
case(k, "react_empty_parts", chat(u("q"), a("Action:Action Input:Observation:")), loss_scale="react")
case(k, "hermes_newlines", chat(u("q"), a("<tool_call>\n{}\n</tool_call>")), loss_scale="hermes")
case(k, "hermes_open", chat(u("q"), a("<tool_call>never closed")), loss_scale="hermes")
case(k, "last_round_two_tool_turns", chat(u("q"), call(CALL2), answer("r"), a("x"), u("q2"), call(CALL2), answer("r"), a("y")), loss_scale="last_round")
case(k, "last_round_open", chat(u("q"), a("x"), u("q2")), loss_scale="last_round")
case(k, "all_no_response", chat(u("q"), a("x"), u("q2")), loss_scale="all")
case(k, "tag_first_in_answer", chat(u("q"), a("<image>then text"), images=["s28x28.png"]))
case(k, "tag_last_in_answer", chat(u("q"), a("text then<image>"), images=["s28x28.png"]))
case(k, "tag_alone_in_answer", chat(u("q"), a("<image>"), u("q"), a("r"), images=["s28x28.png"]))
case(k, "tag_in_first_answer", chat(u("q"), a("x<image>"), u("q"), a("r"), images=["s28x28.png"]))

# -------------------------------------------------------------------------------------------------------------------- columns
k = "media_shapes"
CAT = (u("<image>What is it?"), a("A disc."))
case(k, "image_text", chat(*CAT, images="s56x84.png"))
case(k, "image_list", chat(*CAT, images=["s56x84.png"]))
case(k, "image_dict_path", chat(*CAT, images=[{"bytes": None, "path": "s56x84.png"}]))
case(k, "image_dict_bytes", chat(*CAT, images=[{"bytes": (MEDIA / "s56x84.png").read_bytes(), "path": None}]))
case(k, "image_dict_both", chat(*CAT, images=[{"bytes": (MEDIA / "s56x84.png").read_bytes(), "path": "s28x28.png"}]))
case(k, "image_dict_only_path", chat(*CAT, images=[{"path": "s56x84.png"}]), via="dataset")
case(k, "image_one_dict", chat(*CAT, images={"bytes": None, "path": "s56x84.png"}), via="dataset")
case(k, "image_bytes", chat(*CAT, images=[(MEDIA / "s56x84.png").read_bytes()]))
case(k, "image_base64", chat(*CAT, images=[b64("s56x84.png")]))
case(k, "image_data_uri", chat(*CAT, images=["data:image/png;base64," + b64("s56x84.png")]))
case(k, "image_data_uri_wrong_kind", chat(*CAT, images=["data:image/jpeg;base64," + b64("rgba.png")]))
case(k, "image_data_uri_broken", chat(*CAT, images=["data:image/png;base64,!!!"]), code="bad_base64")
case(k, "image_path_spaces", chat(*CAT, images=["  s56x84.png \n"]))
case(k, "image_missing", chat(*CAT, images=["nowhere.png"]), code="media_not_found")
case(k, "image_column", {"image": "s56x84.png", "query": "<image>What?", "response": "A disc."})
case(k, "image_column_messages", chat(*CAT, image="s56x84.png"), via="dataset")
case(k, "image_column_list", {"image": ["s56x84.png", "s28x28.png"], "query": "<image><image>What?", "response": "Discs."})
case(k, "image_none", chat(*CAT, images=None))
case(k, "image_empty", chat(*CAT, images=[]))
case(k, "image_list_none", chat(u("<image><image>What?"), a("One."), images=["s56x84.png", None]))
case(k, "query_images", {"query": "<image>What?", "response": "A disc.", "images": ["s56x84.png"]})
case(k, "sharegpt_images", {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A disc."}], "image": "s56x84.png"})
case(k, "alpaca_images", {"instruction": "<image>Describe.", "input": "", "output": "A disc.", "images": ["s56x84.png"]})
case(k, "typed_image", chat(u([{"type": "image", "image": "s56x84.png"}, {"type": "text", "text": "What?"}]), a("A disc.")))
case(k, "typed_image_url", chat(u([{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "s56x84.png"}}]), a("A disc.")))
case(k, "typed_image_url_text", chat(u([{"type": "image_url", "image_url": "data:image/png;base64," + b64("s28x28.png")}]), a("A disc.")))
case(k, "typed_image_no_value", chat(u([{"type": "image"}, {"type": "text", "text": "What?"}]), a("A disc."), images=["s56x84.png"]))
case(k, "typed_and_column", chat(u([{"type": "image", "image": "s56x84.png"}]), a("A disc."), images=["s28x28.png"]), code="bad_column")
case(k, "typed_tags", chat(u([{"type": "image"}, {"type": "ref-object"}, {"type": "smell"}]), a([{"type": "bbox"}]), images=["s56x84.png"], objects={"ref": ["disc"], "bbox": [[1, 2, 3, 4]]}))
case(k, "typed_mixed", chat(u([{"type": "audio", "audio": "ms100.wav"}, {"type": "image", "image": "s28x28.png"}, {"type": "text", "text": "?"}, {"type": "video", "video": "frames3.mp4"}]), a("Ok.")))
case(k, "typed_audio_url", chat(u([{"type": "audio_url", "audio_url": {"url": "ms100.wav"}}, {"type": "text", "text": "?"}]), a("Ok.")))
case(k, "typed_image_and_audio_column", chat(u([{"type": "image", "image": "s28x28.png"}, {"type": "audio"}]), a("Ok."), audios=["ms100.wav"]))
case(k, "typed_video_frames", chat(u([{"type": "video", "video": ["frame0.jpg", "frame1.jpg"]}]), a("Ok.")))
case(k, "typed_image_options", chat(u([{"type": "image", "image": "rgb.jpg", "max_pixels": 3136}]), a("Ok.")))
case(k, "audio_text", chat(u("<audio>What?"), a("A tone."), audios="ms100.wav"))
case(k, "audio_base64", chat(u("<audio>What?"), a("A tone."), audios=[b64("ms100.wav")]))
case(k, "audio_data_uri", chat(u("<audio>What?"), a("A tone."), audios=["data:audio/wav;base64," + b64("ms100.wav")]))
case(k, "audio_bytes", chat(u("<audio>What?"), a("A tone."), audios=[(MEDIA / "ms100.wav").read_bytes()]))
case(k, "audio_dict", chat(u("<audio>What?"), a("A tone."), audios=[{"bytes": (MEDIA / "ms100.wav").read_bytes(), "path": None}]), accepts="bytes or path, as for images")
case(k, "audio_column", {"audio": "ms100.wav", "query": "<audio>What?", "response": "A tone."})
case(k, "video_text", chat(u("<video>What?"), a("A disc."), videos="frames3.mp4"))
case(k, "video_base64", chat(u("<video>What?"), a("A disc."), videos=[b64("frames3.mp4")]))
case(k, "video_bytes", chat(u("<video>What?"), a("A disc."), videos=[(MEDIA / "frames3.mp4").read_bytes()]), accepts="bytes, as for images and audios")
case(k, "video_column", {"video": "frames3.mp4", "query": "<video>What?", "response": "A disc."})
case(k, "video_frames_dataset", {"query": "<video>What?", "response": "Discs.", "videos": [["frame0.jpg", "frame1.jpg"]]})
# tags
case(k, "tag_missing_image", chat(u("What is it?"), a("A disc."), images=["s56x84.png"]))
case(k, "tag_missing_three", chat(u("What?"), a("Ok."), images=["s28x28.png"], audios=["ms100.wav"], videos=["frames3.mp4"]))
case(k, "tag_missing_some", chat(u("<image>What?"), a("Ok."), u("and?"), a("Ok."), images=["s28x28.png", "s56x84.png", "s20x15.png"]))
case(k, "tag_missing_assistant_first", chat(a("Ok."), images=["s28x28.png"]))
case(k, "tag_missing_system", chat(s("S"), u("What?"), a("Ok."), images=["s28x28.png"]))
case(k, "tag_missing_tool_first", chat(call(CALL2), answer("r"), a("Ok."), images=["s28x28.png"]))
case(k, "tag_in_system", chat(s("<image>S"), u("What?"), a("Ok."), images=["s28x28.png"]))
case(k, "tag_surplus_image", chat(u("<image><image>What?"), a("<image>Ok."), images=["s28x28.png"]))
case(k, "tag_surplus_audio", chat(u("<audio>What<audio>?"), a("Ok."), audios=["ms100.wav"]))
case(k, "tag_surplus_video", chat(u("<video>What<video>?"), a("Ok."), videos=["frames3.mp4"]))
case(k, "tag_of_other_kind", chat(u("<image><audio><video>What?"), a("Ok."), images=["s28x28.png"]))
case(k, "tag_two_images_text_between", chat(u("a<image>b<image>c"), a("Ok."), images=["s28x28.png", "s56x84.png"]))
case(k, "tag_order_mixed", chat(u("<audio>x<image>y<video>z<audio>"), a("Ok."), images=["s28x28.png"], audios=["ms100.wav", "ms40.wav"], videos=["frames3.mp4"]))
case(k, "tag_many_turns", chat(u("<image>a"), a("1"), u("<audio>b"), a("2"), u("<image>c"), a("3"), images=["s28x28.png", "s56x84.png"], audios=["ms40.wav"]))
case(k, "audio_only", chat(u("<audio>What?"), a("Ok."), audios=["mono16k.wav"]))
case(k, "two_audios_adjacent", chat(u("<audio><audio>"), a("Ok."), audios=["ms100.wav", "ms40.wav"]))
case(k, "two_videos", chat(u("<video>and<video>"), a("Ok."), videos=["frames3.mp4", "frames5.mp4"]))
case(k, "image_truncate_right_text", chat(u("<image>" + "word " * 30), a("answer " * 20), images=["s28x28.png"]), max_length=48, truncation="right")
case(k, "image_truncate_left_text", chat(u("a" + " word" * 30), a("x<image>" + "answer " * 20), images=["s28x28.png"]), max_length=48, truncation="left")
case(k, "image_truncate_left_cuts_bos", chat(u("<image>" + "word " * 30), a("answer " * 20), images=["s28x28.png"]), max_length=40, truncation="left", rejects="media_truncated", reason="the reference keeps the placeholders but cuts their begin and end tokens")
case(k, "image_truncate_right_cuts_image", chat(u("word " * 60 + "<image>"), a("ok"), images=["s28x28.png"]), max_length=40, truncation="right", rejects="media_truncated", reason="the reference keeps the placeholders but cuts their begin and end tokens")
case(k, "audio_truncate_right", chat(u("<audio>" + "word " * 40), a("ok"), audios=["ms100.wav"]), max_length=40, truncation="right")
case(k, "audio_truncate_left", chat(u("word " * 40 + "<audio>"), a("ok"), audios=["ms100.wav"]), max_length=40, truncation="left")
case(k, "image_truncate_too_small", chat(*CAT, images=["rgb.jpg"]), max_length=20, truncation="right", rejects="media_truncated", reason="the placeholders alone are more than max_length; the reference keeps nothing else")
case(k, "history_images", {"history": [["<image>q1", "r1"]], "query": "<image>q2", "response": "r2", "images": ["s28x28.png", "s56x84.png"]})
case(k, "sharegpt_audio_video", {"conversations": [{"from": "human", "value": "<audio><video>What?"}, {"from": "gpt", "value": "Ok."}], "audio": "ms100.wav", "video": "frames3.mp4"})
case(k, "image_too_long", chat(*CAT, images=["rgb.jpg"]), max_length=40, code="row_too_long")

# ------------------------------------------------------------------------------------------------------------------ grounding
k = "grounding"
FIND = (u("<image>Find <ref-object>"), a("It is at <bbox>."))
case(k, "real", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["disc"], "bbox": [[40, 60, 120, 110]]}))
case(k, "new_format", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["disc"], "bbox": [[40, 60, 120, 110]]}), bbox_format="new")
case(k, "resized", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["disc"], "bbox": [[40, 60, 120, 110]]}), max_pixels=12544)
case(k, "resized_new", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["disc"], "bbox": [[40, 60, 120, 110]]}), max_pixels=12544, bbox_format="new")
case(k, "enlarged", chat(*FIND, images=["s20x15.png"], objects={"ref": ["disc"], "bbox": [[2, 3, 17, 12]]}))
case(k, "norm1", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["disc"], "bbox": [[0.1, 0.25, 0.5, 0.755]], "bbox_type": "norm1"}))
case(k, "norm1_resized", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["disc"], "bbox": [[0.1, 0.25, 0.5, 0.755]], "bbox_type": "norm1"}), max_pixels=12544, bbox_format="new")
case(k, "norm1000", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["disc"], "bbox": [[40, 60, 120, 110]]}), norm_bbox="norm1000")
case(k, "norm1_norm1000", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["disc"], "bbox": [[0.1, 0.25, 0.5, 0.755]], "bbox_type": "norm1"}), norm_bbox="norm1000", bbox_format="new")
case(k, "bankers_rounding", chat(*FIND, images=["s28x28.png"], objects={"ref": ["disc"], "bbox": [[0.25, 0.75, 1.25, 2.5]]}), bbox_format="new")
case(k, "point", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["disc"], "bbox": [[40, 60]]}))
case(k, "point_new", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["disc"], "bbox": [[40, 60]]}), bbox_format="new")
case(k, "reversed_direct", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["disc"], "bbox": [[120, 110, 40, 60]]}))
case(k, "two_images_ids", chat(u("<image><image><ref-object> <ref-object>"), a("<bbox><bbox>"), images=["rgb.jpg", "s20x15.png"], objects={"ref": ["a", "b"], "bbox": [[10, 20, 30, 40], [2, 3, 9, 12]], "image_id": [0, 1]}))
case(k, "two_images_short_ids", chat(u("<image><image>"), a("<bbox><bbox><bbox>"), images=["s20x15.png", "rgb.jpg"], objects={"ref": [], "bbox": [[10, 20, 30, 40], [2, 3, 9, 12], [1, 1, 5, 5]], "image_id": [1]}))
case(k, "two_images_norm1_id", chat(u("<image><image>"), a("<bbox><bbox>"), images=["s20x15.png", "rgb.jpg"], objects={"ref": [], "bbox": [[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]], "bbox_type": "norm1", "image_id": [1, 0]}))
case(k, "image_id_absent", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["a"], "bbox": [[10, 20, 30, 40]], "image_id": [3]}), code="bad_objects")
case(k, "norm1_norm1000_absent", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["a"], "bbox": [[0.1, 0.2, 0.3, 0.4]], "bbox_type": "norm1", "image_id": [3]}), norm_bbox="norm1000")
case(k, "surplus_tags", chat(u("<image><ref-object><ref-object>"), a("<bbox> <bbox>"), images=["s28x28.png"], objects={"ref": ["one"], "bbox": [[1, 2, 3, 4]]}))
case(k, "surplus_boxes", chat(u("<image><ref-object>"), a("<bbox>"), images=["s28x28.png"], objects={"ref": ["one", "two"], "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]}))
case(k, "box_in_question", chat(u("<image>What is at <bbox>?"), a("<ref-object>"), images=["rgb.jpg"], objects={"ref": ["the disc"], "bbox": [[1, 2, 30, 40]]}))
case(k, "no_image", chat(u("Find <ref-object>"), a("<bbox>"), objects={"ref": ["x"], "bbox": [[1, 2, 3, 4]]}))
case(k, "no_image_query", {"query": "Find <ref-object>", "response": "<bbox>", "objects": {"ref": ["x"], "bbox": [[1, 2, 3, 4]]}})
case(k, "empty_objects", chat(*FIND, images=["s28x28.png"], objects={}))
case(k, "no_ref", chat(*FIND, images=["s28x28.png"], objects={"bbox": [[1, 2, 3, 4]]}))
case(k, "no_bbox", chat(*FIND, images=["s28x28.png"], objects={"ref": ["x"]}), code="bad_objects")
case(k, "bad_box", chat(*FIND, images=["s28x28.png"], objects={"ref": ["x"], "bbox": [[1, 2, 3]]}), via="dataset", code="bad_objects")
case(k, "odd_box_direct", chat(*FIND, images=["s28x28.png"], objects={"ref": ["x"], "bbox": [[1, 2, 3]]}), rejects="bad_objects", reason="the dataset path refuses such a box too")
case(k, "polygon_direct", chat(*FIND, images=["s28x28.png"], objects={"ref": ["x"], "bbox": [[1, 2, 3, 4, 5, 6]]}), rejects="bad_objects", reason="the dataset path refuses such a box too")
case(k, "ref_with_tags", chat(*FIND, images=["s28x28.png"], objects={"ref": ["<image>"], "bbox": [[1, 2, 3, 4]]}))
case(k, "query_response", {"query": "<image>Find <ref-object>", "response": "<bbox>", "images": ["rgb.jpg"], "objects": {"ref": ["disc"], "bbox": [[120, 110, 40, 60]]}})
case(k, "sharegpt", {"conversations": [{"from": "human", "value": "<image>Find <ref-object>"}, {"from": "gpt", "value": "<bbox>"}], "images": ["rgb.jpg"], "objects": {"ref": ["disc"], "bbox": [[0.5, 0.5, 0.75, 1]], "bbox_type": "norm1"}})
case(k, "hermes_weights", chat(*FIND, images=["s28x28.png"], objects={"ref": ["x"], "bbox": [[1, 2, 3, 4]]}), loss_scale="hermes")
case(k, "sharegpt_no_bbox", {"conversations": [{"from": "human", "value": "<ref-object>"}, {"from": "gpt", "value": "Hm."}], "objects": {"ref": ["disc"]}}, code="bad_objects")
case(k, "from_value_reversed", chat({"from": "human", "value": "<image>Find <ref-object>"}, {"from": "gpt", "value": "<bbox>"}, images=["rgb.jpg"], objects={"ref": ["disc"], "bbox": [[120, 110, 40, 60]]}), via="dataset")
case(k, "floats", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["disc"], "bbox": [[40.5, 60.49, 120.51, 110.0]]}), bbox_format="new")
case(k, "negative", chat(*FIND, images=["rgb.jpg"], objects={"ref": ["disc"], "bbox": [[-5, -0.4, 500, 900]]}))
case(k, "video_row", chat(u("<video>Find <ref-object>"), a("<bbox>"), videos=["frames3.mp4"], objects={"ref": ["disc"], "bbox": [[1, 2, 3, 4]]}))

# --------------------------------------------------------------------------------------------------------------------- images
k = "images"


def look(*names: str) -> dict[str, Any]:
    return chat(u("<image>" * len(names) + "Describe."), a("Seen."), images=list(names))


for name in (
    "rgb.jpg progressive.jpg gray.jpg cmyk.jpg exif6.jpg 444.jpg rgb.png rgba.png palette.png palette_transparent.png bilevel.png gray.png "
    "gray_alpha.png gray16.png rgb16.png interlaced.png lossy.webp lossless.webp alpha.webp animated.webp rgb.bmp lzw.tiff cmyk.tiff "
    "float.tiff int32.tiff static.gif animated.gif s1x1.png s20x15.png s1x50.png s50x1.png s27x400.png s900x5.png s800x4.png s3x600.png "
    "s28x28.png s56x84.png s300x42.png"
).split():
    case(k, name, look(name))
case(k, "ratio_above_200", look("s603x3.png"), code="aspect_ratio")
case(k, "truncated", look("truncated.jpg"), code="decode_error")
case(k, "empty", look("empty.png"), code="bad_media")
case(k, "not_an_image", look("not_an_image.png"), code="bad_media")
case(k, "large", look("large.webp"))
case(k, "large_max_pixels", look("large.webp"), max_pixels=200704)
case(k, "medium_max_pixels", look("medium.jpg"), max_pixels=401408)
case(k, "several", look("rgb.jpg", "gray.png", "s20x15.png", "rgba.png"))
case(k, "same_twice", look("rgb.png", "rgb.png"))
for name in ("rgb.jpg", "rgba.png", "s1x50.png", "s900x5.png", "exif6.jpg"):
    case(k, f"{name}_max_pixels", look(name), max_pixels=7840)
    case(k, f"{name}_min_pixels", look(name), min_pixels=50176)
case(k, "min_and_max", look("rgb.jpg", "s20x15.png"), min_pixels=12544, max_pixels=15680)
case(k, "max_pixels_below_factor", look("rgb.jpg"), max_pixels=500)
case(k, "min_above_max", look("rgb.jpg", "s20x15.png"), min_pixels=50176, max_pixels=12544)
case(k, "video_limits_do_not_matter", look("rgb.jpg"), video_max_pixels=50176)

# ---------------------------------------------------------------------------------------------------------------------- audio
k = "audio"


def hear(*names: str) -> dict[str, Any]:
    return chat(u("<audio>" * len(names) + "Transcribe."), a("Heard."), audios=list(names))


for name in (
    "mono16k.wav stereo44k.wav mono8k.wav stereo48k.wav pcm24.wav float.wav double11k.wav u8.wav ulaw8k.wav six48k.wav mono.aiff speech.mp3 "
    "stereo.mp3 no_xing.mp3 cut.mp3 mono32k.flac stereo24.flac stereo.ogg mono.opus ms21.wav ms25.wav ms30.wav ms40.wav ms100.wav samples321.wav s30.flac s300.flac"
).split():
    case(k, name, hear(name))
case(k, "ms0", hear("ms0.wav"), rejects="audio_too_short", reason="no token would stand for the audio")
case(k, "samples1", hear("samples1.wav"), rejects="audio_too_short", reason="no token would stand for the audio")
for name in ("ms1.wav", "ms10.wav", "ms15.wav", "ms20.wav"):
    case(k, name, hear(name), rejects="audio_too_short", reason="no token would stand for the audio")
case(k, "s301", hear("s301.flac"), rejects="audio_too_long", reason="the reference cuts at 300 s silently")
case(k, "m4a", hear("tone.m4a"), accepts="decoded as the sound of a video is; librosa reads no m4a from memory")
case(k, "webm", hear("tone.webm"), accepts="as m4a")
case(k, "video_file", hear("sound25.mp4"), accepts="as m4a")
case(k, "not_audio", hear("not_audio.wav"), code="bad_media")
case(k, "truncated", hear("truncated.wav"))
case(k, "not_finite", hear("nan.wav"), code="bad_audio")
case(k, "missing", hear("nowhere.wav"), code="media_not_found")
case(k, "several", hear("mono8k.wav", "ms40.wav", "speech.mp3"))
case(k, "two_turns", chat(u("<audio>a"), a("1"), u("<audio>b"), a("2"), audios=["mono16k.wav", "ms100.wav"]))
case(k, "with_image", chat(u("<audio>then<image>"), a("Ok."), audios=["mono16k.wav"], images=["s28x28.png"]))
case(k, "image_first", chat(u("<image>then<audio>"), a("Ok."), audios=["mono16k.wav"], images=["s28x28.png"]))
case(k, "use_audio_in_video_no_video", hear("ms100.wav"), use_audio_in_video=True)
case(k, "hermes", hear("ms100.wav"), loss_scale="hermes")

# ---------------------------------------------------------------------------------------------------------------------- video
k = "video"


def watch(*names: Any) -> dict[str, Any]:
    return chat(u("<video>" * len(names) + "Describe."), a("Watched."), videos=list(names))


for name in (
    "h264_25.mp4 h264_23976.mp4 odd30.mp4 frames2.mp4 frames3.mp4 frames5.mp4 frames7.mp4 portrait.mp4 sound25.mp4 sound_longer.mp4 "
    "sound_mp3.avi mjpeg.avi pcm.mov vp9.webm vp9_silent.webm h264.mkv hevc.mp4 hd.mp4 fast60.mp4 intra10.mp4 vfr.mp4 rotated90.mp4 "
    "rotated180.mp4 wide.mp4"
).split():
    case(k, name, watch(name))
case(k, "frames1", watch("frames1.mp4"), code="video_too_short")
case(k, "truncated", watch("truncated.mp4"))
case(k, "not_video", watch("not_video.mp4"), code="bad_media")
case(k, "empty", watch("empty.png"))
case(k, "audio_only", watch("tone.m4a"), code="no_video_stream")
case(k, "narrow", watch("narrow48.mp4"))
case(k, "gif", watch("animated.gif"))
case(k, "missing", watch("nowhere.mp4"), code="media_not_found")
case(k, "frame_list_2", watch(["frame0.jpg", "frame1.jpg"]))
case(k, "frame_list_3", watch(["frame0.jpg", "frame1.jpg", "frame2.jpg"]))
case(k, "frame_list_5", watch([f"frame{i}.jpg" for i in range(5)]))
case(k, "frame_list_1", watch(["frame3.jpg"]))
case(k, "frame_list_rgba", watch(["frame_rgba.png", "frame_rgba.png"]))
case(k, "frame_list_data_uri", watch(["data:image/png;base64," + b64("frame_rgba.png"), "frame_rgba.png"]))
case(k, "frame_list_base64", watch([b64("frame0.jpg"), b64("frame1.jpg")]), accepts="base64 as in every other media column")
case(k, "frame_list_sizes", watch(["frame0.jpg", "rgb.jpg"]), code="bad_media")
case(k, "frame_list_palette", watch(["palette_transparent.png", "palette_transparent.png"]))
case(k, "frame_list_gray16", watch(["gray16.png", "gray16.png"]))
case(k, "frame_list_empty", watch([]))
case(k, "frame_list_missing", watch(["frame0.jpg", "nowhere.jpg"]), code="media_not_found")
case(k, "frame_list_max_pixels", watch(["frame0.jpg", "frame1.jpg", "frame2.jpg"]), max_pixels=3920)
case(k, "frame_list_video_max_pixels", watch(["frame0.jpg", "frame1.jpg"]), video_max_pixels=3136)
case(k, "frame_list_min_pixels", watch(["frame0.jpg", "frame1.jpg"]), min_pixels=50176)
case(k, "frame_list_beyond_limits", watch([f"frame{i % 5}.jpg" for i in range(9)]), fps_min_frames=2, fps_max_frames=2, video_min_pixels=3136, video_total_pixels=10000)
case(k, "frame_list_file_uri", watch(["file://frame0.jpg", "frame1.jpg"]))
case(k, "frame_list_and_file", watch(["frame0.jpg", "frame1.jpg"], "frames3.mp4"))
for option, value in (("fps", 1.0), ("fps", 4.0), ("fps", 0.5), ("fps_max_frames", 6), ("fps_min_frames", 8), ("video_max_pixels", 200704)):
    for name in ("h264_25.mp4", "sound_shorter.mp4"):
        case(k, f"{name}_{option}_{value}", watch(name), **{option: value})
case(k, "minute_max_frames", watch("minute.mp4"), fps_max_frames=12, video_min_pixels=3136)
case(k, "minute_max_frames_odd", watch("minute.mp4"), fps_max_frames=11, video_min_pixels=3136)
case(k, "minute_fps", watch("minute.mp4"), fps=0.25, video_min_pixels=3136)
case(k, "min_frames_2", watch("frames2.mp4", "odd30.mp4"), fps_min_frames=2)
case(k, "video_max_below_min", watch("hd.mp4"), video_max_pixels=50176)
case(k, "video_min_max", watch("hd.mp4", "h264_25.mp4"), video_max_pixels=50176, video_min_pixels=12544)
case(k, "video_min_pixels", watch("portrait.mp4"), video_min_pixels=12544)
case(k, "total_pixels", watch("hd.mp4"), video_total_pixels=802816, video_min_pixels=12544)
case(k, "total_pixels_long", watch("minute.mp4", "h264_25.mp4"), video_total_pixels=200704, video_min_pixels=3136, fps=0.5)
case(k, "fps_above_rate", watch("frames7.mp4"), fps=30.0)
case(k, "image_limits_do_not_matter", watch("h264_25.mp4"), max_pixels=12544)
case(k, "two_turns", chat(u("<video>a"), a("1"), u("<video>b"), a("2"), videos=["frames5.mp4", "frames2.mp4"]))
case(k, "with_image_audio", chat(u("<image>a<video>b<audio>c"), a("Ok."), videos=["frames5.mp4"], images=["s28x28.png"], audios=["ms100.wav"]))
case(k, "with_image_after", chat(u("<video>b<image>a"), a("Ok."), videos=["frames5.mp4"], images=["s56x84.png"]))
case(k, "tag_in_answer", chat(u("show"), a("here <video> it is"), videos=["frames3.mp4"]))
case(k, "hermes", watch("frames3.mp4"), loss_scale="hermes")
case(k, "all", watch("frames3.mp4"), loss_scale="all")

# ------------------------------------------------------------------------------------------------------------- audio in video
k = "audio_in_video"


def both(*names: Any, **options: Any) -> None:
    label = "_".join(Path(n).name if isinstance(n, str) else "list" for n in names) + "".join(f"_{k}_{v}" for k, v in options.items())
    case(k, label, watch(*names), use_audio_in_video=True, **options)


for name in ("sound25.mp4", "sound_longer.mp4", "sound_shorter.mp4", "sound_mp3.avi", "pcm.mov", "vp9.webm"):
    both(name)
both("sound25.mp4", "sound_longer.mp4")
both("sound_shorter.mp4", fps=1.0)
both("sound_longer.mp4", fps=4.0, video_min_pixels=3136)
both("sound_shorter.mp4", video_min_pixels=3136)
both("sound_longer.mp4", video_min_pixels=3136)
both("h264_25.mp4")
both("sound25.mp4", "h264_25.mp4")
both(["frame0.jpg", "frame1.jpg"])
case(k, "with_audio_before", chat(u("<audio>a<video>b"), a("Ok."), videos=["sound25.mp4"], audios=["ms100.wav"]), use_audio_in_video=True)
case(k, "with_audio_after", chat(u("<video>b<audio>a"), a("Ok."), videos=["sound25.mp4"], audios=["ms100.wav"]), use_audio_in_video=True)
case(k, "with_audio_between", chat(u("<video>b<audio>a<video>c<image>d"), a("Ok."), videos=["sound25.mp4", "sound_shorter.mp4"], audios=["ms100.wav"], images=["s28x28.png"]), use_audio_in_video=True, video_min_pixels=3136)
case(k, "with_two_audios", chat(u("<audio><video><audio>"), a("Ok."), videos=["sound25.mp4"], audios=["ms100.wav", "ms40.wav"]), use_audio_in_video=True, video_min_pixels=3136)
case(k, "with_image_before", chat(u("<image>b<video>c"), a("Ok."), videos=["sound25.mp4"], images=["s28x28.png"]), use_audio_in_video=True, video_min_pixels=3136)
case(k, "images_only", look("s28x28.png"), use_audio_in_video=True)
case(k, "text_only", chat(*TWO), use_audio_in_video=True)
case(k, "two_turns", chat(u("<video>a"), a("1"), u("<audio>b"), a("2"), u("<video>c"), a("3"), videos=["sound25.mp4", "sound_longer.mp4"], audios=["ms40.wav"]), use_audio_in_video=True, video_min_pixels=3136)
case(k, "hermes", watch("sound25.mp4"), use_audio_in_video=True, loss_scale="hermes", video_min_pixels=3136)
case(k, "tag_surplus", chat(u("<video>a<video>"), a("Ok."), videos=["sound25.mp4"]), use_audio_in_video=True, video_min_pixels=3136)
case(k, "tag_missing", chat(u("a"), a("Ok."), videos=["sound25.mp4"], audios=["ms40.wav"]), use_audio_in_video=True, video_min_pixels=3136)


def demo_cases(folder: str | Path) -> list[Case]:
    """Rows of the demonstration data beside the project: all rows with media, 40 alpaca rows and 40 tool rows."""
    cases = []
    for stem, number in (("mllm_demo", 0), ("mllm_audio_demo", 0), ("mllm_video_demo", 0), ("mllm_video_audio_demo", 0), ("alpaca_en_demo", 40), ("glaive_toolcall_en_demo", 40)):
        path = Path(folder) / f"{stem}.json"
        if not path.exists():
            continue
        rows = json.loads(path.read_text())
        for i in range(0, len(rows), max(1, len(rows) // number) if number else 1):
            cases.append(Case("demo", f"demo/{stem}:{i + 1}", rows[i], hashes_only=True))
            if stem == "glaive_toolcall_en_demo" and i % 4 == 0:
                cases.append(Case("demo", f"demo/{stem}:{i + 1}/hermes", rows[i], options={"loss_scale": "hermes"}, hashes_only=True))
    return cases


assert len({c.name for c in CASES}) == len(CASES), "two cases of one name"
