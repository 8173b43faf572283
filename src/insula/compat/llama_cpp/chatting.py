"""Which template a chat is written in, and what of a request needs more than a template.

Names of formats are llama-cpp-python's, and ours. Without a name the model's own template is used,
and where it has none llama-2's, as that package does; here that is noted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from insula.chat.formats import FORMATS
from insula.chat.prompt import ChatFormat, chat_template, plain_messages
from insula.chat.templates import ChatTemplate
from insula.compat.llama_cpp.llama_grammar import refuse
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
class Template:
    """The template of a model's chats. shown: its name as `Llama.chat_format` has it."""

    shown: str
    source: ChatTemplate
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()

    def prompt(
        self, messages: Any, tools: Sequence[Mapping[str, Any]] | None, choice: Any
    ) -> list[int]:
        """The ids to go on from. choice: "none" leaves the tools out. Raises ConfigError,
        TemplateError."""
        offered = None if choice == "none" else tools
        chat = ChatFormat(tokenizer=self.tokenizer, template=self.source, tools=offered)
        return list(chat.prompt(plain_messages(messages)).ids)


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


def refuse_forced(response_format: Any, tool_choice: Any, function_call: Any) -> None:
    """Raise NotHereError for what only constrained decoding can promise."""
    kind = None
    if response_format is not None:
        kind = response_format.get("type") if isinstance(response_format, Mapping) else "?"
    if kind not in (None, "text"):
        refuse(f"response_format of type {kind!r}")
    for name, choice in (("tool_choice", tool_choice), ("function_call", function_call)):
        if choice not in (None, "none", "auto"):
            refuse(f"{name}={choice!r}")
