"""Preference rows: the answers of a raw row, each as a raw row of its own that `normalize` reads.

A pair has a preferred and a rejected answer: `rejected_response` or `rejected_messages` beside an ordinary chat, as
ms-swift 3.9.3 reads them (swift/llm/template/template_inputs.py TemplateInputs.from_dict), or the columns `chosen` and
`rejected` of TRL, LLaMA-Factory and most datasets on the Hub. A verdict says of the row's own answer whether it is
wanted: the `label` of KTO.

Such a row must not become a chat like any other without a word: trained on its preferred answer alone, or on an answer
that somebody marked as bad, it gives another model than the one that was meant. What cannot be read as a pair or a
verdict is therefore rejected, and what looks like one and is not taken for one is reported.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from omniprep.errors import Reject, RejectCode
from omniprep.modalities import MEDIA_COLUMNS
from omniprep.rows.chat import read_chat
from omniprep.rows.columns import (
    MESSAGE_ALIASES,
    PREFERENCE_NAMES,
    REJECTED_ALIASES,
    RESPONSE_ALIASES,
    Columns,
    Preference,
    rename_columns,
    standard_names,
)


class Verdict(IntEnum):
    """What a row is to a preference objective; the values of the column `verdict` of the plan and of rows.parquet."""

    NONE = -1
    UNDESIRABLE = 0
    DESIRABLE = 1
    PAIR = 2


@dataclass(slots=True)
class Answers:
    """What the answers of a row are read from.

    `preferred` is of the only answer where there is no pair. `renamed`: --columns was applied to columns of the row
    already. `dataset_path`: both answers are read as rows that pass ms-swift's AutoPreprocessor (`normalize`). `unread`
    as in `omniprep.rows.normalize.Row`.
    """

    verdict: Verdict
    preferred: dict[str, Any]
    rejected: dict[str, Any] | None = None
    renamed: bool = False
    dataset_path: bool = False
    unread: dict[str, str] = field(default_factory=dict)


_SHARED = ("tools", "objects", "chat_template_kwargs", *MEDIA_COLUMNS)
"""Columns that the rejected answer has of its own with the prefix `rejected_`, or else those of the row."""
_TEXTS = (str, list, tuple, dict)
_LABEL_TEXTS = {"true": True, "false": False, "1": True, "0": False}
"""A label of delimited text, whose cells are all text. ms-swift takes any text for true, also false."""
_ANSWER_ROLES = frozenset({"assistant", "gpt", "bot", "tool_call", "function_call"})
_CHAT_COLUMNS = frozenset(
    {"history", *(n for n, target in (MESSAGE_ALIASES | RESPONSE_ALIASES).items() if target not in MEDIA_COLUMNS)}
)
"""Columns that a chat is read from."""
_TEXT_KEYS = frozenset({"content", "value", "text", "user", "human", "assistant", "gpt", "bot"})
"""Keys of messages, turns and typed items that hold text of the chat."""


def split_answers(raw: Any, preference: Preference, columns: Columns = ()) -> Answers:
    """The answers of a raw row, which is not changed.

    Raises:
        Reject: `no_partner`, `bad_preference`, `bad_label` or `empty_answer`; or the chat cannot be read.
    """
    if not isinstance(raw, dict):
        raise Reject(RejectCode.BAD_ROW, f"a row must be a JSON object, not {type(raw).__name__}")
    if preference == "ignore":
        return Answers(Verdict.NONE, raw)
    row = rename_columns(raw, columns) if columns else raw
    own = _own_columns(row)
    if not own:
        answers = _ordinary(raw, preference)
        answers.unread |= _unread_answers(row)
        return answers
    offered = all(name in own and isinstance(own[name], (*_TEXTS, type(None))) for name in ("chosen", "rejected"))
    names: list[str] = []
    if preference != "kto":
        names += [name for name in ("rejected_response", "rejected_messages") if name in own]
        names += ["chosen", "rejected"] if offered else []
    given = {name for name in names if own[name] is not None}  # a table has all columns, null in rows of other kinds
    if not given and preference != "kto" and _has_other_parts(own):
        given, names = {"rejected_messages"}, ["rejected_messages"]
    is_verdict = preference == "kto" or (preference != "pairs" and isinstance(own.get("label"), bool))
    if given and is_verdict:
        raise Reject(
            RejectCode.BAD_PREFERENCE,
            "the row has a rejected answer and a label: --preference pairs takes the first, --preference kto the other",
        )
    rest = {key: value for key, value in row.items() if not (isinstance(key, str) and key.lower() in PREFERENCE_NAMES)}
    if is_verdict:
        return _verdict(rest, own)
    if not names:
        return _not_taken(raw, own, preference)
    if not given and preference == "mixed":
        return Answers(Verdict.NONE, rest, renamed=True)
    whole = given & {"rejected_response", "rejected_messages"}
    if len(given - whole) == 1 or not given:
        empty = next(name for name in reversed(names) if name not in given)
        raise Reject(RejectCode.NO_PARTNER, f"the column {empty} is empty, so an answer has no partner")
    if whole and given - whole:
        raise Reject(
            RejectCode.BAD_PREFERENCE, "the row has the columns chosen and rejected, and rejected_response or _messages"
        )
    answers = _pair_of_rejected(rest, own) if whole else _pair_of_columns(rest, own)
    if own.get("margin") is not None:
        answers.unread["margin"] = ""
    answers.unread |= _unread_answers(row)
    return answers


def preferred_row(raw: Any, preference: Preference, columns: Columns = ()) -> tuple[Any, Columns]:
    """The raw row of the preferred answer alone, or of the only one, and the --columns that are still to be applied."""
    answers = split_answers(raw, preference, columns)
    return answers.preferred, item_columns(columns) if answers.renamed else columns


def item_columns(columns: Columns) -> Columns:
    """The pairs of --columns that rename keys of typed items, for a row whose columns were renamed already."""
    return tuple((new, old) for new, old in columns if new.startswith("content."))


def _own_columns(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The columns of a preference row by their names in lower case, null ones too."""
    own: dict[str, Any] = {}
    for key, value in row.items():
        if not isinstance(key, str) or (name := key.lower()) not in PREFERENCE_NAMES:
            continue
        if name in own:
            raise Reject(RejectCode.BAD_COLUMN, f"two columns are named {name} but for upper case")
        own[name] = value
    return own


def _has_other_parts(own: Mapping[str, Any]) -> bool:
    """Whether the row has other media, tools or boxes for a rejected answer of the same text.

    As in TemplateInputs.from_dict, such a row is a pair without a rejected text. An empty list, with which tables fill
    rows of other kinds, says nothing.
    """
    return any(
        own.get(name) not in (None, "", [], {}) for name, target in REJECTED_ALIASES.items() if target != "messages"
    )


def _unread_answers(row: Mapping[Any, Any]) -> dict[str, str]:
    """Columns that by their names hold a part of one answer, which nobody reads, with the --columns that reads them."""
    unread = {}
    for name, value in row.items():
        if not isinstance(name, str) or not isinstance(value, _TEXTS) or not value:
            continue
        side, _, part = name.lower().partition("_")
        if side not in ("chosen", "rejected") or part not in _CHAT_COLUMNS or name.lower() in PREFERENCE_NAMES:
            continue
        target = MESSAGE_ALIASES.get(part) or RESPONSE_ALIASES.get(part, "")
        reads = side == "rejected" and target in ("messages", "response")
        unread[name] = f"rejected_{target}={name}" if reads else ""
    return unread


def _ordinary(raw: dict[str, Any], preference: Preference) -> Answers:
    if preference == "pairs":
        raise Reject(RejectCode.NO_PARTNER, "the row has no rejected answer (--preference pairs)")
    if preference == "kto":
        raise Reject(RejectCode.NO_PARTNER, "the row has no label (--preference kto)")
    return Answers(Verdict.NONE, raw)


def _not_taken(raw: dict[str, Any], own: Mapping[str, Any], preference: Preference) -> Answers:
    """A row with columns of preferences that make it neither a pair nor a verdict."""
    answers = _ordinary(raw, preference)
    label = own.get("label")
    if (isinstance(label, int | float) and label in (0, 1)) or str(label).strip().lower() in _LABEL_TEXTS:
        answers.unread["label"] = "--preference kto"
    if isinstance(own.get("rejected"), _TEXTS) and own["rejected"]:
        answers.unread["rejected"] = "rejected_response=rejected"
    if isinstance(own.get("chosen"), _TEXTS) and own["chosen"]:
        answers.unread["chosen"] = ""
    for name in own.keys() & REJECTED_ALIASES.keys():
        answers.unread[name] = ""
    return answers


def _verdict(row: dict[str, Any], own: Mapping[str, Any]) -> Answers:
    """A row whose own answer is desirable or not; ms-swift takes bool(label)."""
    label = own.get("label")
    if label is None:
        raise Reject(RejectCode.NO_PARTNER, "the row has no label (--preference kto)")
    label = _LABEL_TEXTS.get(label.strip().lower(), label) if isinstance(label, str) else label
    if not isinstance(label, int | float) or label not in (0, 1):
        raise Reject(RejectCode.BAD_LABEL, f"label must be true or false (or 1 or 0), not {label!r:.40}")
    row = _with_listed_prompt(row)
    _check_answer(read_chat(row).messages, "answer")
    return Answers(Verdict.DESIRABLE if label else Verdict.UNDESIRABLE, row, renamed=True)


def _with_listed_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """TRL's conversational prompt and completion, each a list of messages, as one chat."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if not isinstance(prompt, list) or not isinstance(completion, list):
        return row
    rest = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
    return rest | {"messages": [*prompt, *completion]}


def _pair_of_rejected(row: dict[str, Any], own: Mapping[str, Any]) -> Answers:
    """`rejected_response`, or `rejected_messages` (TemplateInputs.from_dict).

    As there: the rejected answer takes all that it lacks of the row, its media for example, but for a row with
    `rejected_messages`, whose rejected chat has only what is named `rejected_` (a system text among its messages).
    """
    chat = read_chat(row)
    _check_answer(chat.messages, "preferred answer")
    prefixed, direct = _prefixed(own), chat.direct
    messages = prefixed.pop("messages", None)
    if messages is None:
        prefixed = {**{name: chat.row[name] for name in _SHARED if chat.row.get(name) is not None}, **prefixed}
    elif chat.row.get("chat_template_kwargs") is not None:
        prefixed["chat_template_kwargs"] = chat.row["chat_template_kwargs"]
    unread: dict[str, str] = {}
    if (response := own.get("rejected_response")) is None:
        if messages is None:
            messages = chat.messages
        else:
            rejected = read_chat({"messages": messages})
            direct, messages, unread = direct and rejected.direct, rejected.messages, rejected.unread
    elif isinstance(response, str):
        start = _answer_start(chat.messages)
        messages = [*chat.messages[:start], {"role": "assistant", "content": response}]
    else:
        raise Reject(
            RejectCode.BAD_PREFERENCE,
            f"rejected_response must be text, not {type(response).__name__}; of a list of rejected answers, which has "
            "no place in a pair, write a row for each",
        )
    _check_answer(messages, "rejected answer")
    rejected_row = {"messages": messages, **prefixed}
    return Answers(Verdict.PAIR, row, rejected_row, renamed=True, dataset_path=not direct, unread=unread)


def _pair_of_columns(row: dict[str, Any], own: Mapping[str, Any]) -> Answers:
    """`chosen` and `rejected`: texts or messages after a prompt, or whole chats. All else is of both answers."""
    # Tables fill rows without media of the rejected answer alone with empty lists.
    prefixed = {name: value for name, value in _prefixed(own).items() if value not in ("", [], {})}
    if "messages" in prefixed:
        raise Reject(RejectCode.BAD_PREFERENCE, "the row has the columns chosen and rejected, and rejected_messages")
    sides = {name: _as_messages(own[name], name) for name in ("chosen", "rejected")}
    whole = [side[0].get("role", side[0].get("from")) not in _ANSWER_ROLES for side in sides.values()]
    if whole[0] != whole[1]:
        raise Reject(RejectCode.BAD_PREFERENCE, "one of chosen and rejected is a whole chat, the other an answer alone")
    others = {name: value for name, value in row.items() if str(name).lower() not in _CHAT_COLUMNS}
    if whole[0]:
        # Datasets such as ultrafeedback_binarized say the prompt a second time, and the chosen chat as messages.
        given = row.get("messages")
        if given is not None and not (
            given == sides["chosen"] or given == sides["chosen"][: len(given)] == sides["rejected"][: len(given)]
        ):
            raise Reject(RejectCode.BAD_PREFERENCE, "messages is neither the chat of chosen nor the prompt of both")
        systems = {name: value for name, value in row.items() if RESPONSE_ALIASES.get(str(name).lower()) == "system"}
        read = {name: read_chat({**systems, "messages": side}) for name, side in sides.items()}
        prompt: list[dict[str, Any]] = []
    else:
        read = {name: read_chat({"messages": side}) for name, side in sides.items()}
        prompt = _prompt(row)
    chats = {name: [*prompt, *chat.messages] for name, chat in read.items()}
    unread = {name: option for chat in read.values() for name, option in chat.unread.items()}
    unread |= _unread_prompts(row, chats.values())
    _check_answer(chats["chosen"], "preferred answer")
    _check_answer(chats["rejected"], "rejected answer")
    shared = {name: value for name, value in standard_names(others, RESPONSE_ALIASES)[0].items() if name in _SHARED}
    preferred, rejected = others | {"messages": chats["chosen"]}, {**shared, **prefixed, "messages": chats["rejected"]}
    return Answers(Verdict.PAIR, preferred, rejected, renamed=True, dataset_path=True, unread=unread)


def _unread_prompts(row: Mapping[Any, Any], chats: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Texts beside chosen and rejected that are in neither chat; refuses turns that would be lost.

    Many datasets say the prompt twice. Where it is another one, a system text or earlier turns would go unnoticed.
    """
    written = ["\n".join(_texts(chat)) for chat in chats]
    unread = {}
    for name, value in row.items():
        if not isinstance(name, str) or name.lower() not in _CHAT_COLUMNS or not isinstance(value, _TEXTS):
            continue
        is_answer = RESPONSE_ALIASES.get(name.lower()) == "response"
        chats_with_it = [all(text.strip() in chat for text in _texts(value)) for chat in written]
        if name == "messages" or all(chats_with_it) or (is_answer and any(chats_with_it)):  # messages: see the caller
            continue
        if not isinstance(value, str) and not is_answer:
            raise Reject(
                RejectCode.BAD_PREFERENCE,
                f"the column {name} has turns that are not in the chats of chosen and rejected; put them there, or "
                "remove the column",
            )
        unread[name] = ""
    return unread


def _texts(value: Any) -> list[str]:
    """The texts of a chat in any form."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [text for entry in value for text in _texts(entry)]
    if isinstance(value, dict):
        return [text for name, part in value.items() if name in _TEXT_KEYS for text in _texts(part)]
    return []


def _prompt(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The chat that chosen and rejected answer; it ends with a question, or with what a tool gave."""
    if isinstance(row.get("prompt"), list):
        if row.get("messages") is not None:
            raise Reject(RejectCode.BAD_PREFERENCE, "both prompt and messages stand before chosen and rejected")
        row = {name: value for name, value in row.items() if name != "prompt"} | {"messages": row["prompt"]}
    elif not any(str(name).lower() in _CHAT_COLUMNS and value is not None for name, value in row.items()):
        raise Reject(RejectCode.BAD_PREFERENCE, "chosen and rejected are answers, and no prompt stands beside them")
    messages = read_chat(row).messages
    if messages[-1]["role"] in ("assistant", "tool_call"):
        raise Reject(
            RejectCode.BAD_PREFERENCE,
            "chosen and rejected are answers, but the chat before them ends with one too (--preference ignore does not "
            "read these columns)",
        )
    return messages


def _prefixed(own: Mapping[str, Any]) -> dict[str, Any]:
    """What the row names `rejected_`, by its name without that."""
    found: dict[str, Any] = {}
    for old, new in REJECTED_ALIASES.items():
        if own.get(old) is None:
            continue
        if new in found:
            raise Reject(RejectCode.BAD_COLUMN, f"two columns hold rejected {new}")
        found[new] = own[old]
    return found


def _as_messages(value: Any, name: str) -> list[dict[str, Any]]:
    """An answer, or a chat that ends with it, as messages: a text, one message or a list of them."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    messages = [value] if isinstance(value, dict) else list(value)
    if not messages:
        raise Reject(RejectCode.EMPTY_ANSWER, f"the column {name} holds no message")
    if not all(isinstance(message, dict) for message in messages):
        raise Reject(RejectCode.BAD_PREFERENCE, f"the column {name} must be text, a message or a list of messages")
    return messages


def _answer_start(messages: Sequence[Mapping[str, Any]]) -> int:
    """Where the last answer begins: behind the last user or tool (template_inputs.py _compat_rejected_response)."""
    for number in range(len(messages), 0, -1):
        if messages[number - 1]["role"] in ("user", "tool", "tool_response"):
            return number
    return 1


def _check_answer(messages: Sequence[Mapping[str, Any]], what: str) -> None:
    """Refuse a chat that ends with no answer, or with an empty one."""
    answer = messages[_answer_start(messages) :]
    if not answer or answer[-1]["role"] not in ("assistant", "tool_call"):
        raise Reject(
            RejectCode.NO_PARTNER, f"there is no {what}: its chat ends with a message of {messages[-1]['role']}"
        )
    texts = [message["content"] for message in answer]
    if not any(text.strip() if isinstance(text, str) else text for text in texts) and not any(
        message.get("tool_calls") for message in answer
    ):
        raise Reject(RejectCode.EMPTY_ANSWER, f"the {what} is empty")
