"""Tools and tool calls as text: the hermes format (ms-swift: swift/plugin/agent_template/hermes.py, base.py).

The texts are what Qwen's own chat template writes; they must not change by a byte.
"""

import ast
import json
from typing import Any

from omniprep.errors import Reject, RejectCode

_HEAD = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_ACTION, _ACTION_INPUT, _OBSERVATION = "Action:", "Action Input:", "Observation:"


def parse_json(text: Any) -> Any:
    """JSON, else a Python literal, else None; what is not text stays as it is (base.py _parse_json)."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None


def _wrap(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise Reject(RejectCode.BAD_TOOLS, "each tool must be an object (or JSON text of one)")
    return tool if "type" in tool or "function" in tool else {"type": "function", "function": tool}


def parse_tools(tools: Any) -> list[dict[str, Any]] | None:
    """The `tools` column as a list of wrapped tools; None where the row has none.

    Raises:
        Reject: bad_tools.
    """
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


def format_tools(tools: list[dict[str, Any]], system: str | None) -> str:
    """The system text with the tools section."""
    return (system or "") + _HEAD + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools) + _TAIL


def format_tool_calls(contents: list[str]) -> str:
    """A run of tool_call messages as one assistant text.

    Raises:
        Reject: bad_tools.
    """
    calls = []
    for content in contents:
        call = parse_json(content)
        if not isinstance(call, dict) or "name" not in call:
            raise Reject(RejectCode.BAD_TOOLS, "a tool call must be JSON with name and arguments")
        arguments = call.get("arguments")
        arguments = parse_json(call.get("parameters") if arguments is None else arguments)
        if arguments is None:
            raise Reject(RejectCode.BAD_TOOLS, f"tool call {call['name']!r} has no arguments that can be parsed")
        text = json.dumps({"name": call["name"], "arguments": arguments}, ensure_ascii=False)
        calls.append(f"<tool_call>\n{text}\n</tool_call>")
    return "\n".join(calls)


def format_tool_responses(
    answer: str, contents: list[str], prompt: tuple[str, ...], chat_sep: tuple[str, ...]
) -> tuple[str, list[str]]:
    """The tool messages after an assistant message: (the assistant text, the contexts of the tool round).

    An assistant text with both "Action:" and "Action Input:" gets the ReAct form, as the reference does.
    """
    if _ACTION in answer and _ACTION_INPUT in answer:
        if not answer.endswith(_OBSERVATION):
            answer += ("" if answer.endswith("\n") else "\n") + _OBSERVATION
        contexts: list[str] = []
        for position, content in enumerate(contents):
            contexts += [_OBSERVATION] * (position > 0) + [content] + ["\n"] * (not content.endswith("\n"))
        return answer, contexts
    text = "\n".join(f"<tool_response>\n{content}\n</tool_response>" for content in contents)
    return answer, [*chat_sep, *(context.replace("{{QUERY}}", text) for context in prompt)]
