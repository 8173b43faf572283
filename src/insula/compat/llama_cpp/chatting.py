"""Which template a chat is written in, and what its answer is held to.

Names of formats are llama-cpp-python's, and ours. Without a name the model's own template is used,
and where it has none llama-2's, as that package does; here that is noted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from insula.chat.calling import calling, held_to
from insula.chat.formats import FORMATS
from insula.chat.prompt import ChatFormat, chat_template, plain_messages
from insula.chat.reasoning import ReasoningFormat
from insula.chat.templates import ChatTemplate
from insula.chat.tools import CallFormat
from insula.compat.llama_cpp.errors import NotHereError
from insula.compat.llama_cpp.llama_grammar import LlamaGrammar, constraint_of, format_of
from insula.engine.request import Tokenizer
from insula.errors import ConfigError

#: llama-cpp-python's names for formats that we have under another.
NAMES = {
    "llama-2": "llama2",
    "llama-3": "llama3",
    "mistral-instruct": "mistral",
    "qwen": "chatml",
    "chatml-function-calling": "chatml",
}
OWN = "chat_template.default"


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a conversation comes to. calls: how those are written of which the whole answer is."""

    ids: list[int]
    grammar: LlamaGrammar | None
    calls: CallFormat | None = None


@dataclass(frozen=True, kw_only=True)
class Template:
    """The template of a model's chats. shown: its name as `Llama.chat_format` has it."""

    shown: str
    source: ChatTemplate
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()

    def turn(
        self,
        messages: Any,
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        choice: Any,
        response_format: Any,
        grammar: object,
    ) -> Turn:
        """What is asked. choice: "none" leaves the tools out; one that forces a call holds the
        answer to the tools' schemas. Raises ConfigError, TemplateError."""
        form, given = format_of(response_format), constraint_of(grammar)
        if form is not None and given is not None:
            raise ConfigError("response_format and grammar were given; an answer has one form")
        form = form or given
        messages = plain_messages(messages)
        if choice in (None, "auto", "none"):
            offered = None if choice == "none" else tools
            chat = ChatFormat(tokenizer=self.tokenizer, template=self.source, tools=offered)
            return Turn(ids=list(chat.prompt(messages).ids), grammar=LlamaGrammar.of(form))
        called = calling(self.source.source, tools, tool_choice=choice)
        chat = ChatFormat(
            tokenizer=self.tokenizer,
            template=self.source,
            tools=called.for_template,
            calling=called,
        )
        prompt = chat.prompt(messages)
        # Calls and nothing else, so that they can be read where control tokens show no text.
        plain = dataclasses.replace(called, template="")
        held = held_to(None, plain, thinking=ReasoningFormat(), prompt="", tokenizer=self.tokenizer)
        calls = dataclasses.replace(
            called.form, by_brace=True, opening=called.form.first or called.form.opening
        )
        return Turn(ids=list(prompt.ids), grammar=LlamaGrammar.of(held), calls=calls)


def template(name: str | None, tokenizer: Tokenizer) -> Template:
    """The template by name. Raises ConfigError that lists the names."""
    notes: tuple[str, ...] = ()
    if name is None:
        name = OWN
        if tokenizer.chat_template is None:
            name = "llama-2"
            notes = ("the model has no chat template; chat_format llama-2 is used",)
    known = NAMES.get(name, name)
    if name != OWN and known not in FORMATS:
        allowed = ", ".join(sorted({*NAMES, *FORMATS, OWN}))
        raise ConfigError(f"chat_format: found {name!r}; allowed: {allowed}")
    source = chat_template(tokenizer, None if name == OWN else known)
    return Template(shown=name, source=source, tokenizer=tokenizer, notes=notes)


def offered(
    tools: Sequence[Mapping[str, Any]] | None, functions: Sequence[Mapping[str, Any]] | None
) -> Sequence[Mapping[str, Any]] | None:
    """The tools; OpenAI's older functions as such."""
    if functions is not None:
        return [{"type": "function", "function": function} for function in functions]
    return tools


def chosen(tool_choice: Any, function_call: Any) -> Any:
    """The choice; OpenAI's older function_call as such."""
    if isinstance(function_call, Mapping) and not tool_choice:
        return {"type": "function", "function": {"name": function_call.get("name")}}
    return tool_choice or function_call


def refuse_forced(arguments: Mapping[str, Any]) -> None:
    """Raise NotHereError for what cannot be held to where llama.cpp generates."""
    form = arguments["response_format"]
    if format_of(form) is not None:
        raise NotHereError("response_format: cannot be had together with images or sound")
    for name in ("tool_choice", "function_call"):
        if arguments[name] not in (None, "none", "auto"):
            raise NotHereError(f"{name}: cannot be had together with images or sound")
