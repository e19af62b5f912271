"""Preference rows whose two answers are compared with what ms-swift's template gives in the modes rlhf and kto.

Paths are relative to tests/golden/media. `code` names the reject where there is one; `why` says why, where the reference
takes the row. `via` as in cases.py: rows with `messages` go straight to template.encode, others, and those with
via="dataset", through AutoPreprocessor first.
"""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """A row, the options of the build, and what is expected of it."""

    name: str
    row: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    mode: str = "rlhf"
    code: str = ""
    why: str = ""
    via: str = ""
    hashes_only: bool = False


def u(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def a(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def s(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def call(text: Any) -> dict[str, Any]:
    return {"role": "tool_call", "content": text}


def tool(text: Any) -> dict[str, Any]:
    return {"role": "tool", "content": text}


CASES: list[Case] = []


def case(name: str, row: dict[str, Any], **more: Any) -> None:
    fields = {key: more.pop(key) for key in ("mode", "code", "why", "via") if key in more}
    CASES.append(Case(name, row, options=more, **fields))


def both(name: str, row: dict[str, Any], **more: Any) -> None:
    """A row with `messages`, straight to the template and through AutoPreprocessor."""
    case(f"{name}/direct", row, **more)
    case(f"{name}/dataset", row, via="dataset", **more)


QA = [u("What is two and two?"), a("Four.")]
CHAT = [s("Be brief."), u("Hi."), a("Hello."), u("And now?"), a("Good bye.")]
SEEN = [u("<image>What is that?"), a("A picture of colors.")]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Says the weather.", "parameters": {"city": {"type": "string"}}},
}
CALLED = [
    u("How is the weather in Rome?"),
    call('{"name": "weather", "arguments": {"city": "Rome"}}'),
    tool('{"sun": true}'),
    a("It is sunny."),
]

both("text/response", {"messages": QA, "rejected_response": "Five."})
both("text/multi_turn", {"messages": CHAT, "rejected_response": "I will not say."})
both("text/multi_turn_default", {"messages": CHAT, "rejected_response": "I will not say."}, loss_scale="default")
both("text/all", {"messages": CHAT, "rejected_response": "I will not say."}, loss_scale="all")
both("text/rejected_messages", {"messages": CHAT, "rejected_messages": [*CHAT[:-1], a("No."), u("Why?"), a("So.")]})
both("text/other_prompt", {"messages": CHAT, "rejected_messages": [u("Hm?"), a("Hm.")]})
both("text/both_columns", {"messages": QA, "rejected_messages": [u("x"), a("y")], "rejected_response": "Six."})
both("text/system_option", {"messages": QA, "rejected_response": "Five."}, system="You count.")
both("text/no_system", {"messages": [s(""), *QA], "rejected_response": "Five."})
case("text/system_column", {"messages": QA, "system": "You count.", "rejected_response": "Five."}, via="dataset")
case(
    "text/system_column_rejected_messages",
    {"messages": QA, "system": "You count.", "rejected_messages": [QA[0], a("Five.")]},
    via="dataset",
)
both("text/two_answers", {"messages": [u("Go on."), a("One."), a("Two.")], "rejected_response": "Three."})
both("text/consecutive_users", {"messages": [u("One."), u("Two."), a("Three.")], "rejected_response": "Four."})
both("text/answer_first", {"messages": [a("I begin."), u("And?"), a("I end.")], "rejected_response": "Never."})
both("text/loss_of_message", {"messages": [u("q"), a("r", loss=True), u("q2"), a("r2")], "rejected_response": "n"})
both("text/thoughts", {"messages": [u("q"), a("<think>\na\n</think>\n\nb")], "rejected_response": "<think>c</think>d"})
both(
    "text/thoughts_before",
    {"messages": [u("q"), a("<think>\na\n</think>\n\nb"), u("r"), a("<think>x</think>y")], "rejected_response": "z"},
)
both("text/empty_think", {"messages": [u("q"), a("<think>\n\n</think>\n\nb")], "rejected_response": "d"},
     loss_scale="last_round_with_ignore_empty_think")  # fmt: skip
both("text/unicode", {"messages": [u("Grüße 🙂"), a("你好")], "rejected_response": "नमस्ते"})
both("text/spaces", {"messages": [u(" q "), a(" r\n")], "rejected_response": "\n s"})
both("text/prefix_of_the_other", {"messages": [u("q"), a("Yes, it is.")], "rejected_response": "Yes"})
case("text/query_response", {"query": "q", "response": "r", "rejected_response": "n"})
case("text/query_history", {"query": "q", "response": "r", "history": [["h", "i"]], "rejected_response": "n"})
case("text/alpaca", {"instruction": "i", "input": "j", "output": "o", "rejected_response": "n"})
case("text/prompt_completion", {"prompt": "q", "completion": "r", "system": "S", "rejected_response": "n"})
case(
    "text/sharegpt",
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}], "rejected_response": "n"},
)
case(
    "text/sharegpt_both",
    {
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}],
        "rejected_messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "n"}],
    },
)
both("text/without_template", {"messages": QA, "rejected_response": "Five."}, use_chat_template=False)

both("image/shared", {"messages": SEEN, "images": ["rgb.jpg"], "rejected_response": "A dog."})
both("image/two", {"messages": [u("<image>or<image>?"), a("One.")], "images": ["rgb.jpg", "gray.png"],
                   "rejected_response": "Two."})  # fmt: skip
both("image/untagged", {"messages": [u("What?"), a("One.")], "images": ["rgb.jpg"], "rejected_response": "Two."})
both("image/own", {"messages": SEEN, "images": ["rgb.jpg"], "rejected_response": "Gray.",
                   "rejected_images": ["gray.png"]})  # fmt: skip
both("image/own_chat", {"messages": SEEN, "images": ["rgb.jpg"], "rejected_messages": SEEN,
                        "rejected_images": ["gray.png"]})  # fmt: skip
both("image/none_of_its_own", {"messages": SEEN, "images": ["rgb.jpg"],
                               "rejected_messages": [u("What is that?"), a("A dog.")]})  # fmt: skip
both("image/tag_without_image", {"messages": SEEN, "images": ["rgb.jpg"],
                                 "rejected_messages": [u("<image>What is that?"), a("A dog.")]})  # fmt: skip
both("image/in_the_answer", {"messages": [u("Draw."), a("Here: <image>")], "images": ["rgb.jpg"],
                             "rejected_messages": [u("Draw."), a("No.")]})  # fmt: skip
case("image/typed_content", {
    "messages": [u([{"type": "image", "image": "rgb.jpg"}, {"type": "text", "text": "What?"}]), a("One.")],
    "rejected_response": "Two.",
})  # fmt: skip
case("image/typed_rejected", {
    "messages": [u([{"type": "image", "image": "rgb.jpg"}, {"type": "text", "text": "What?"}]), a("One.")],
    "rejected_messages": [u([{"type": "image", "image": "gray.png"}, {"type": "text", "text": "What?"}]), a("Two.")],
})  # fmt: skip
both("image/max_pixels", {"messages": SEEN, "images": ["rgb.jpg"], "rejected_response": "A dog."}, max_pixels=3136)
case("image/query", {"query": "<image>?", "response": "r", "image": "rgb.jpg", "rejected_response": "n"})
both("grounding/boxes", {
    "messages": [u("<image>Where is the <ref-object>?"), a("At <bbox>.")], "images": ["rgb.jpg"],
    "objects": {"ref": ["dog"], "bbox": [[5, 4, 30, 20]]}, "rejected_response": "Nowhere: <bbox>.",
})  # fmt: skip
both("audio/shared", {"messages": [u("<audio>What?"), a("A tone.")], "audios": ["mono16k.wav"],
                      "rejected_response": "A word."})  # fmt: skip
both("audio/own", {"messages": [u("<audio>What?"), a("A tone.")], "audios": ["mono16k.wav"],
                   "rejected_response": "A word.", "rejected_audios": ["mono8k.wav"]})  # fmt: skip
both("video/shared", {"messages": [u("<video>What?"), a("A film.")], "videos": ["h264_25.mp4"],
                      "rejected_response": "A song."})  # fmt: skip
both("video/with_sound", {"messages": [u("<video>What?"), a("A film.")], "videos": ["sound25.mp4"],
                          "rejected_response": "A song."}, use_audio_in_video=True)  # fmt: skip
both("media/all", {
    "messages": [u("<image><audio><video>What?"), a("All.")], "images": ["rgb.jpg"], "audios": ["mono16k.wav"],
    "videos": ["frames5.mp4"], "rejected_response": "None.",
})  # fmt: skip
both("media/one_shared", {
    "messages": [u("<image><audio>What?"), a("All.")], "images": ["rgb.jpg"], "audios": ["mono16k.wav"],
    "rejected_response": "None.", "rejected_images": ["gray.png"],
})  # fmt: skip

both("tools/shared", {"messages": CALLED, "tools": [WEATHER], "rejected_response": "It rains."})
both("tools/calls", {"messages": CALLED[:2], "tools": [WEATHER], "rejected_response": "I do not know."})
both("tools/rejected_call", {
    "messages": CALLED, "tools": [WEATHER], "rejected_messages": [CALLED[0], a("It rains.")], "rejected_tools": [WEATHER],
})  # fmt: skip
both("tools/of_one", {"messages": CALLED, "tools": [WEATHER], "rejected_messages": [CALLED[0], a("It rains.")]})
both("tools/hermes", {"messages": CALLED[:2], "tools": [WEATHER], "rejected_response": "I do not know."},
     loss_scale="hermes")  # fmt: skip

case("grounding/query", {
    "query": "<image>Where is the <ref-object>?", "response": "At <bbox>.", "image": "rgb.jpg",
    "objects": {"ref": ["dog"], "bbox": [[30, 4, 5, 20]]}, "rejected_response": "Nowhere: <bbox>.",
})  # fmt: skip
case("image/sharegpt_own", {
    "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "r"}], "images": ["rgb.jpg"],
    "rejected_messages": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "n"}],
    "rejected_images": ["gray.png"],
})  # fmt: skip
case("tools/sharegpt", {
    "conversations": [
        {"from": "human", "value": "w?"}, {"from": "function_call", "value": '{"name": "weather", "arguments": {}}'},
        {"from": "observation", "value": "sun"}, {"from": "gpt", "value": "sun"},
    ], "tools": [WEATHER], "rejected_response": "rain",
})  # fmt: skip
both("image/weighted", {"messages": SEEN, "images": ["rgb.jpg"], "rejected_response": "<tool_call>x</tool_call>"},
     loss_scale="hermes")  # fmt: skip

LONG = " ".join(str(number) for number in range(200))
both("truncation/right", {"messages": [u("q"), a("Yes. " + LONG)], "rejected_response": "No."}, truncation="right",
     max_length=100)  # fmt: skip
both(
    "truncation/left", {"messages": [u(LONG), a("Yes.")], "rejected_response": "No."}, truncation="left", max_length=100
)
both("truncation/raise", {"messages": [u("q"), a("Yes. " + LONG)], "rejected_response": "No."}, truncation="raise",
     max_length=100, code="row_too_long")  # fmt: skip
both("truncation/raise_rejected", {"messages": [u("q"), a("Yes.")], "rejected_response": LONG}, truncation="raise",
     max_length=100, code="row_too_long")  # fmt: skip
both("truncation/nothing_left", {"messages": [u(LONG), a("Yes.")], "rejected_response": "No."}, truncation="right",
     max_length=50, code="empty_answer", why="both answers are cut off")  # fmt: skip

for label in (True, False, 1, 0):
    both(f"kto/{label!r}".lower(), {"messages": CHAT, "label": label, "rejected_response": "unused"}, mode="kto",
         preference="kto")  # fmt: skip
both("kto/image", {"messages": SEEN, "images": ["rgb.jpg"], "label": True, "rejected_response": "unused"}, mode="kto",
     preference="kto")  # fmt: skip
case("kto/query", {"query": "q", "response": "r", "label": False, "rejected_response": "unused"}, mode="kto",
     preference="kto")  # fmt: skip

both("refused/list", {"messages": QA, "rejected_response": ["Five.", "Six."]}, code="bad_preference")
both("refused/null", {"messages": QA, "rejected_response": None}, code="no_partner")
both("refused/equal", {"messages": QA, "rejected_response": "Four."}, code="same_answers")
both("refused/equal_chats", {"messages": QA, "rejected_messages": QA}, code="same_answers",
     why="nothing is preferred")  # fmt: skip
both(
    "refused/empty", {"messages": QA, "rejected_response": ""}, code="empty_answer", why="an empty answer is no partner"
)
both("refused/number", {"messages": QA, "rejected_response": 5}, code="bad_preference")
both("refused/no_answer", {"messages": QA[:1], "rejected_response": "Five."}, code="no_partner",
     why="the preferred answer is absent")  # fmt: skip
both("refused/rejected_without_answer", {"messages": QA, "rejected_messages": QA[:1]}, code="no_partner",
     why="the rejected answer is absent")  # fmt: skip
both("refused/missing_image", {"messages": QA, "rejected_response": "<image>", "rejected_images": ["none.png"]},
     code="media_not_found")  # fmt: skip

# Other media, tools or boxes alone make a pair, too.
both("alone/images", {"messages": SEEN, "images": ["rgb.jpg"], "rejected_images": ["gray.png"]})
both("alone/audios", {"messages": [u("<audio>What?"), a("A tone.")], "audios": ["mono16k.wav"],
                      "rejected_audios": ["mono8k.wav"]})  # fmt: skip
both("alone/tools", {"messages": CALLED, "tools": [WEATHER], "rejected_tools": [{"name": "other"}]})
both("alone/same", {"messages": SEEN, "images": ["rgb.jpg"], "rejected_images": ["rgb.jpg"]}, code="same_answers",
     why="nothing is preferred")  # fmt: skip
