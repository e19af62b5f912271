"""A checkpoint's own chat template, rendered as `apply_chat_template` of its processor renders it.

Source: transformers processing_utils.py and tokenization_utils_base.py (apply_chat_template),
utils/chat_template_utils.py (render_jinja_template: sandbox, filters, what a template sees of its input).

A template comes with the checkpoint and is not trusted: transformers runs it in Jinja's sandbox, rows have a time limit
(compiler/isolate/deadline.py), and what it writes is bounded here.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date, datetime
from functools import cached_property, lru_cache
from typing import Any

from omniprep.errors import OmniprepError, Reject, RejectCode
from omniprep.template.messages import Form
from omniprep.template.time_limit import time_limit

MAX_CHARACTERS = 64 << 20
"""Of a rendered row; as text of a model, more than ten million tokens."""
LEARNING_SECONDS = 60.0
"""For the chats that a template is learned from; they take a tenth of a second."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SET_BY_CALLER = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
Spans = list[tuple[int, int]]


class ChatTemplate:
    """The template of a processor, or of a tokenizer where there is no processor.

    Attributes:
        tokenizer: The fast tokenizer.
        ends: Texts after an answer, up to and including the token that ends it; the longest first.
        turn: Text from the end of a question to where the answer may begin.
        forms: How each role's content is given.
    """

    def __init__(
        self,
        owner: Any,
        *,
        name: str = "",
        add_special_tokens: bool = True,
        stops: Collection[str] = (),
    ) -> None:
        """Find the template and learn how it writes a chat.

        Args:
            owner: The processor, or the tokenizer of a model that takes text alone.
            name: Of the checkpoint, for messages.
            add_special_tokens: Whether the processor has the tokenizer add its own tokens to a text that does not begin
                with bos. A tokenizer's own apply_chat_template never does.
            stops: Further tokens that end an answer (generation_config.json).

        Raises:
            OmniprepError: There is no template, or it cannot be compiled.
        """
        self.tokenizer = getattr(owner, "tokenizer", None) or owner
        self._owner, self._name = owner, name
        self._is_processor = self.tokenizer is not owner
        self._add_special_tokens = add_special_tokens and self._is_processor
        self._empties_content = self._is_processor and _empties_content(type(owner))
        self._own_renderer = self._is_processor and _overrides_rendering(type(owner))
        self._stops = {self.tokenizer.eos_token, *stops} - {None}
        self._special_tokens: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        try:
            with time_limit(LEARNING_SECONDS):
                self._compile(self.source(None))
                self.forms = self._learn_forms()
                self.turn, self.ends = self._learn_turns()
        except TimeoutError as error:
            raise OmniprepError(
                f"model {self._name!r}: its chat template {error} on chats of a few words; take another chat template"
            ) from error

    def source(self, tools: Any) -> str:
        """The text of the template that a row with or without tools gets.

        Raises:
            OmniprepError: There is none.
        """
        templates = getattr(self._owner, "chat_template", None)
        if templates is None and self._is_processor:
            templates = self.tokenizer.chat_template
        elif not self._is_processor and isinstance(templates, dict) and tools is not None and "tool_use" in templates:
            return str(templates["tool_use"])
        if isinstance(templates, dict):
            if "default" not in templates:
                raise OmniprepError(
                    f"model {self._name!r}: none of its chat templates is named default (there are "
                    f"{', '.join(sorted(templates))}); add chat_template.jinja to the checkpoint"
                )
            templates = templates["default"]
        if not templates:
            raise OmniprepError(
                f"model {self._name!r} has no chat template (chat_template.jinja, or chat_template in its "
                "tokenizer_config.json): take the checkpoint of the chat model, or copy its chat_template.jinja"
            )
        return str(templates)

    @property
    def sources(self) -> str:
        """The texts of all templates that rows may get, for a hash: of a build that goes on they must be the same."""
        return "\0".join(dict.fromkeys([self.source(None), self.source([])]))

    def _compile(self, source: str) -> None:
        import jinja2

        try:
            _compiled(source)
        except jinja2.TemplateError as error:
            raise OmniprepError(
                f"model {self._name!r}: its chat template is not valid Jinja: {error} (line "
                f"{getattr(error, 'lineno', None) or 1})"
            ) from error
        except (SyntaxError, RecursionError, MemoryError, ArithmeticError) as error:
            # Jinja makes Python of it, which does not take more than 100 blocks inside one another, and computes what
            # is constant.
            raise OmniprepError(
                f"model {self._name!r}: its chat template cannot be compiled: {type(error).__name__}: {_short(error)}"
            ) from error

    def marks_generation(self, tools: Any = None) -> bool:
        """Whether the template itself says what the model writes ({% generation %})."""
        return not self._own_renderer and _marks_generation(self.source(tools))

    @cached_property
    def reads_date(self) -> bool:
        """Whether the template asks for the present day."""
        return "strftime_now" in self.source(None)

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that the template reads beside the chat and the special tokens: what chat_template_kwargs may set."""
        import jinja2.meta

        compiled = _compiled(self.source(None))
        names = jinja2.meta.find_undeclared_variables(compiled.environment.parse(self.source(None)))
        return frozenset(names - _SET_BY_CALLER - self._special_tokens.keys() - compiled.environment.globals.keys())

    @cached_property
    def stop_texts(self) -> frozenset[str]:
        """Tokens that end an answer."""
        ends = [self._added_tokens.search(end) for end in self.ends]
        return frozenset({*self._stops, *(match.group() for match in ends if match)})

    def adds_special_tokens(self, text: str) -> bool:
        """Whether apply_chat_template has the tokenizer add its own tokens to a rendered text."""
        bos = self.tokenizer.bos_token
        return self._add_special_tokens and not (bos is not None and text.startswith(bos))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        generate: bool = False,
        variables: Mapping[str, Any] | None = None,
        today: date | None = None,
    ) -> tuple[str, Spans]:
        """The text of a chat, and the characters that the template says the model writes ({% generation %}).

        Args:
            messages: As `apply_chat_template` takes them.
            tools: JSON schemas of tools.
            generate: Whether the text ends with the generation prompt.
            variables: Further variables of the template (chat_template_kwargs).
            today: The day that the template takes for today; None: the present day.

        Raises:
            Reject: template_refused, with what the template says.
        """
        import jinja2

        try:
            text, spans = self._rendered(messages, tools, generate, dict(variables or {}), today)
        except jinja2.TemplateError as error:
            raise Reject(RejectCode.TEMPLATE_REFUSED, f"the chat template refuses the row: {_short(error)}") from error
        except (MemoryError, RecursionError, OmniprepError):
            raise
        except Exception as error:  # whatever a template may do with a row; it is the template's code that fails
            raise Reject(
                RejectCode.TEMPLATE_REFUSED,
                f"the chat template fails on the row: {type(error).__name__}: {_short(error)}",
            ) from error
        if len(text) > MAX_CHARACTERS:
            raise Reject(
                RejectCode.TEMPLATE_REFUSED,
                f"the chat template writes {len(text):,} characters, the limit is {MAX_CHARACTERS:,}",
            )
        return text, spans

    def _rendered(
        self, messages: Any, tools: Any, generate: bool, variables: dict[str, Any], today: date | None
    ) -> tuple[str, Spans]:
        if self._own_renderer:
            text = self._owner.apply_chat_template(
                [dict(message) for message in messages],
                tools=tools,
                add_generation_prompt=generate,
                tokenize=False,
                **variables,
            )
            if not isinstance(text, str):
                raise OmniprepError(
                    f"model {self._name!r}: apply_chat_template of {type(self._owner).__name__} gives no text of "
                    "a chat (tokenize=False), in which answers could be found; write a family with a renderer"
                )
            return text, []
        from transformers.utils.chat_template_utils import render_jinja_template

        source = self.source(tools)
        tracked = self.marks_generation(tools)
        if "strftime_now" in source:
            _set_date(source, today)
        # A key without a value is dropped, as apply_chat_template does.
        conversation = [{key: value for key, value in message.items() if value is not None} for message in messages]
        if self._empties_content:
            conversation = [{**message, "content": message.get("content") or []} for message in conversation]
        texts, spans = render_jinja_template(
            conversations=[conversation],
            tools=tools,
            chat_template=source,
            return_assistant_tokens_mask=tracked,
            add_generation_prompt=generate,
            **{**self._special_tokens, **variables},
        )
        return texts[0], list(spans[0]) if tracked else []

    # What is learned of the template, from chats of marks.

    def _learn_forms(self) -> dict[str, Form]:
        """The form of content that the template writes out, by role; where both do, parts (for a tokenizer text)."""
        order: tuple[Form, ...] = ("parts", "text") if self._is_processor else ("text", "parts")
        forms: dict[str, Form] = {"user": order[0], "assistant": order[0], "system": order[0], "tool": "text"}
        for role in ("user", "assistant", "system", "tool"):
            tried = ("text", "parts") if role == "tool" else order
            forms[role] = next((form for form in tried if self._writes(role, form, forms)), forms[role])
        return forms

    def _writes(self, role: str, form: Form, forms: Mapping[str, Form]) -> bool:
        """Whether the template writes a text that is given in a form once, and nothing of the form itself."""
        own, question = _message(role, "MARK", form), _message("user", "x", forms["user"])
        call = {"type": "function", "function": {"name": "x", "arguments": {}}}
        messages = {
            "user": [own],
            "assistant": [question, own],
            "system": [own, question],
            "tool": [question, {"role": "assistant", "tool_calls": [call]}, own],
        }[role]
        try:
            text, _ = self.render(messages)
        except Reject:
            return False
        return text.count("MARK") == 1 and "'type'" not in text and '"type"' not in text

    def _learn_turns(self) -> tuple[str, tuple[str, ...]]:
        """Text between question and answer, and the texts that end an answer; ("", ()) where no chat can be written."""
        roles, texts = ("user", "assistant", "user", "assistant"), ("FIRST", "SECOND", "THIRD", "FOURTH")
        chat = [_message(role, text, self.forms[role]) for role, text in zip(roles, texts, strict=True)]
        pattern = re.compile("(.*)".join(["", *texts, ""]), re.DOTALL)
        for system in ([], [_message("system", "x", self.forms["system"])]):
            try:
                match = pattern.fullmatch(self.render([*system, *chat])[0])
            except Reject:
                continue
            if match:
                _, first_turn, between, last_turn, after = match.groups()
                last = self._end(after, any_token=True)
                ends = {last, last if last and between.startswith(last) else self._end(between, any_token=False)}
                turns = [first_turn, last_turn, *self._structured_turns([*system, chat[0]])]
                return _common_start(turns), tuple(sorted(filter(None, ends), key=len, reverse=True))
        return "", ()

    def _structured_turns(self, question: list[dict[str, Any]]) -> Iterator[str]:
        """Text between a question and an answer that begins with a thought, or is a call; where the template has it."""
        call = {"type": "function", "function": {"name": "SECOND", "arguments": {"x": 1}}}
        for answer in (
            {**_message("assistant", "THIRD", self.forms["assistant"]), "reasoning_content": "SECOND"},
            {"role": "assistant", "tool_calls": [call]},
        ):
            try:
                text, _ = self.render([*question, answer])
            except Reject:
                continue
            if match := re.search("FIRST(.*)SECOND", text, re.DOTALL):
                yield match[1]

    def _end(self, text: str, *, any_token: bool) -> str:
        """What follows an answer up to its first token of the vocabulary's added ones; "" where that ends no answer.

        After the last answer any token is its end; before the next message, only one that ends answers elsewhere.
        """
        match = self._added_tokens.search(text)
        if match is None or not (any_token or match.group() in self._stops):
            return ""
        return text[: match.end()]

    @cached_property
    def _added_tokens(self) -> re.Pattern[str]:
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values())
        tokens = {token for token in added if token.strip()} | self._stops
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


@lru_cache(maxsize=8)
def _marks_generation(source: str) -> bool:
    return bool(_GENERATION.search(source))


def _message(role: str, text: str, form: Form) -> dict[str, Any]:
    return {"role": role, "content": text if form == "text" else [{"type": "text", "text": text}]}


def _common_start(texts: Sequence[str]) -> str:
    shortest = min(texts, key=len)
    lengths = range(len(shortest), -1, -1)
    return shortest[: next(length for length in lengths if all(text.startswith(shortest[:length]) for text in texts))]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or "no message"


def _compiled(source: str) -> Any:
    """The template as transformers compiles it, and keeps it for the next call."""
    from transformers.utils import chat_template_utils

    return chat_template_utils._compile_jinja_template(source)


def _set_date(source: str, today: date | None) -> None:
    """Let `strftime_now` of the compiled template, which transformers keeps, say a day, or the present one."""

    def strftime_now(form: str) -> str:
        now = datetime.now() if today is None else datetime(today.year, today.month, today.day)
        return now.strftime(form)

    _compiled(source).environment.globals["strftime_now"] = strftime_now


def _empties_content(cls: type) -> bool:
    """Whether a processor gives its template [] for a message without content, as transformers 5 does."""
    method = getattr(cls, "_multimodal_inputs_from_conversations", None)
    return getattr(method, "__qualname__", "").startswith("ProcessorMixin.")


def _overrides_rendering(cls: type) -> bool:
    """Whether a processor's class has an apply_chat_template that is not the library's own (SmolVLM with videos)."""
    owner = next((base for base in cls.__mro__ if "apply_chat_template" in base.__dict__), None)
    return owner is not None and owner.__module__ not in (
        "transformers.processing_utils",
        "transformers.tokenization_utils_base",
    )
