"""Writes tools and tool calls as text, in the formats hermes and react_en (ms-swift: swift/plugin/agent_template/).

The hermes texts are those of Qwen's own chat template and must not change by a byte. The reference uses react_en where
there is no chat template (pre-training).
"""

from typing import Any

from omniprep.errors import Reject, RejectCode
from omniprep.rows.literal import json_text, parse_json

_HEAD = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
FORMATS = ("hermes", "react_en")
_ACTION, _ACTION_INPUT, _OBSERVATION = "Action:", "Action Input:", "Observation:"


def _wrap(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise Reject(RejectCode.BAD_TOOLS, "each tool must be an object (or JSON text of one)")
    return tool if "type" in tool or "function" in tool else {"type": "function", "function": tool}


def parse_tools(tools: Any) -> list[dict[str, Any]] | None:
    """The `tools` column as {"type": "function", ...} objects, None where absent; rejects bad_tools."""
    if tools is None:
        return None
    if not tools:
        return []
    if isinstance(tools, str):
        parsed = parse_json(tools)
        parsed = list(parsed) if isinstance(parsed, list | tuple) else [parsed]
    elif isinstance(tools, list | tuple):
        parsed = [parse_json(tool) for tool in tools]
    else:
        raise Reject(RejectCode.BAD_TOOLS, f"tools must be a list or JSON text, not {type(tools).__name__}")
    return [_wrap(tool) for tool in parsed]


_REACT = """

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!
"""


def format_tools(tools: list[dict[str, Any]], system: str | None, style: str = "hermes") -> str:
    """The system text with the tools section; react_en replaces the row's own system text."""
    if style == "react_en":
        described = [_describe(tool["function"] if "type" in tool and "function" in tool else tool) for tool in tools]
        head = "Answer the following questions as best you can. You have access to the following tools:\n\n"
        names = ",".join(str(name) for name, _ in described)
        return head + "\n\n".join(text for _, text in described) + _REACT.replace("{names}", names)
    return (system or "") + _HEAD + "\n".join(json_text(tool, RejectCode.BAD_TOOLS, "a tool") for tool in tools) + _TAIL


def _describe(tool: dict[str, Any]) -> tuple[Any, str]:
    """A tool's name, and the sentence by which react_en describes it (base.py _parse_tool)."""
    if not isinstance(tool, dict):
        raise Reject(RejectCode.BAD_TOOLS, "the function of a tool must be an object")
    name = tool.get("name_for_model") or tool.get("name")
    human_name = tool.get("name_for_human") or name
    description = tool["description"] if tool.get("description") is not None else tool.get("description_for_model")
    if name is None or description is None:
        raise Reject(RejectCode.BAD_TOOLS, "react_en needs the name and description of each tool")
    parameters = tool.get("parameters") or {}
    if not isinstance(parameters, str):
        parameters = json_text(parameters, RejectCode.BAD_TOOLS, "a tool")
    return name, (
        f"{name}: Call this tool to interact with the {human_name} API. What is the {human_name} API useful for? "
        f"{description} Parameters: {parameters} Format the arguments as a JSON object."
    )


def format_tool_calls(contents: list[str], style: str = "hermes") -> str:
    """Write a run of tool_call messages as one assistant text; rejects bad_tools."""
    calls = []
    for content in contents:
        call = parse_json(content)
        if not isinstance(call, dict) or "name" not in call:
            raise Reject(RejectCode.BAD_TOOLS, "a tool call must be JSON with name and arguments")
        arguments = call.get("arguments")
        arguments = parse_json(call.get("parameters") if arguments is None else arguments)
        if arguments is None:
            raise Reject(RejectCode.BAD_TOOLS, f"tool call {call['name']!r} has no arguments that can be parsed")
        if style == "react_en":
            calls.append(f"{_ACTION} {call['name']}\n{_ACTION_INPUT} {arguments}\n")
            continue
        text = json_text({"name": call["name"], "arguments": arguments}, RejectCode.BAD_TOOLS, "a tool call")
        calls.append(f"<tool_call>\n{text}\n</tool_call>")
    return "".join([*calls, _OBSERVATION]) if style == "react_en" else "\n".join(calls)


def format_tool_responses(
    answer: str, contents: list[str], prompt: tuple[str, ...], chat_sep: tuple[str, ...], style: str = "hermes"
) -> tuple[str, list[str]]:
    """Write the tool messages after an assistant message: (the assistant text, the contexts of the tool round).

    As in the reference, the ReAct form is used where the assistant text has both "Action:" and "Action Input:".
    """
    if _ACTION in answer and _ACTION_INPUT in answer:
        if not answer.endswith(_OBSERVATION):
            answer += ("" if answer.endswith("\n") else "\n") + _OBSERVATION
        contexts: list[str] = []
        for position, content in enumerate(contents):
            contexts += [_OBSERVATION] * (position > 0) + [content] + ["\n"] * (not content.endswith("\n"))
        return answer, contexts
    if style == "react_en":
        return answer, contents
    text = "\n".join(f"<tool_response>\n{content}\n</tool_response>" for content in contents)
    return answer, [*chat_sep, *(context.replace("{{QUERY}}", text) for context in prompt)]
