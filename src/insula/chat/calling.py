"""One conversation's tools, and the form that its answers are held to.

Owns `Calling` (which tools are offered, how they reach the model, how calls are written) and the
one constraint that an answer gets from all that is asked of it: a form, calls of tools, and the
reasoning that may come before either.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from insula.chat import tool_messages
from insula.chat.reasoning import TAGS, ReasoningFormat
from insula.chat.tools import (
    HERMES,
    CallFormat,
    Choice,
    Tool,
    call_format,
    checked_tools,
    choice,
    control_id,
    rules,
    terminal,
)
from insula.engine import grammars
from insula.engine.request import Tokenizer
from insula.errors import UnsupportedError
from insula.locale import text
from insula.types import Constraint, Message


@dataclass(frozen=True, kw_only=True)
class Calling:
    """How a conversation's tools are offered and called.

    tools: those that are offered. choice: None where none is. described: in words, because the
    template has no format that is known here.
    """

    tools: tuple[Tool, ...]
    choice: Choice | None
    form: CallFormat
    described: bool
    template: str

    @property
    def for_template(self) -> list[Mapping[str, Any]] | None:
        """The tools that the template is given."""
        return [tool.raw for tool in self.tools] if self.tools and not self.described else None

    @property
    def notes(self) -> tuple[str, ...]:
        return (text("chat.tools_described"),) if self.tools and self.described else ()

    def ways(self, messages: Sequence[Message]) -> list[list[Message]]:
        """The conversation as the template may take it, the best way first. One that a template
        fails at (no place for a system, arguments as a mapping and not as text, no text beside a
        call) is not its way."""
        if self.tools and self.described:
            in_words = tool_messages.as_text(messages)
            return [
                tool_messages.described(in_words, self.tools, in_system=True),
                tool_messages.described(in_words, self.tools, in_system=False),
            ]
        if not tool_messages.knows_calls(self.template):
            return [tool_messages.as_text(messages)]
        given = list(messages)
        with_mappings = tool_messages.as_mappings(given)
        ways = [with_mappings, given]
        ways += [tool_messages.with_text(way) for way in ways]
        return [way for at, way in enumerate(ways) if way not in ways[:at]]


def calling(
    template: str, tools: object, *, tool_choice: object = None, parallel: object = None
) -> Calling:
    """What a caller's tools and choice come to with a template. Raises ConfigError,
    UnsupportedError (the model's way of calling is not connected)."""
    offered = checked_tools(tools)
    form = call_format(template) if offered and tool_choice != "none" else None
    chosen = choice(offered, tool_choice, parallel=parallel, trained=form is not None)
    return Calling(
        tools=offered if chosen is not None else (),
        choice=chosen,
        form=form or HERMES,
        described=form is None,
        template=template,
    )


def held_to(
    form: Constraint | None,
    called: Calling,
    *,
    thinking: ReasoningFormat,
    prompt: str,
    tokenizer: Tokenizer,
) -> Constraint | None:
    """The constraint of an answer to a prompt: its form, or calls, after what it may think first.

    None: nothing was asked. Raises ConstraintError, UnsupportedError.
    """
    chosen = called.choice
    if form is None and chosen is None:
        return None
    if thinking.style == "harmony":
        raise UnsupportedError(
            "this model answers through channels (OpenAI's harmony), which no form is "
            "connected to; take another model for response_format, grammar or tools"
        )
    named: list[dict[str, Any]] = []
    lines: list[str] = []
    talks = False
    if chosen is None:
        answer = "said"
    else:
        talks = form is None and not chosen.must
        held = dataclasses.replace(chosen, must=not talks)
        answer, written = rules(called.form, held, tokenizer)
        lines.append(written)
        if form is not None and not chosen.must:
            answer = "said | calls"
        schemas = {tool.name: tool.schema for tool in called.tools}
        for at, name in enumerate(chosen.names):
            named.append({**grammars.schema_grammar(schemas[name]), "name": f"tool_{at}"})
    if answer.startswith("said"):
        assert form is not None
        lines.append("said: @answer")
        named.append({**grammars.grammar(form), "name": "answer"})
    first = _thought(called.template, thinking, prompt, tokenizer, talks=talks)
    if first:
        lines.append(first)
    elif chosen is None:
        return form
    start = f"start: {'first ' if first else ''}answer\nanswer: {answer}"
    whole = [{"lark_grammar": "\n".join([start, *lines])}, *named]
    return Constraint(kind="llguidance", text=json.dumps({"grammars": whole}, ensure_ascii=False))


def _thought(
    template: str, thinking: ReasoningFormat, prompt: str, tokenizer: Tokenizer, *, talks: bool
) -> str:
    """The rule `first` of what a model may think before its answer, in Lark; "": nothing.

    Where free text may follow, it holds the thought as well, unless its marks are no text.
    """
    if thinking.opened:
        opening, closing = "", thinking.opened
    else:
        known = (pair for pair in TAGS if pair[0] in template and pair[1] in template)
        opening, closing = next(known, ("", ""))
        if not closing or prompt.rstrip().endswith(closing):
            return ""
    control = control_id(tokenizer, closing)
    if talks and control is None:
        return ""
    end = terminal(tokenizer, closing)
    thought = f"thought{'[lazy]' if control is None else ''}: THOUGHT {end}"
    block = f'{terminal(tokenizer, opening) if opening else ""} thought "\\n"? "\\n"?'
    return f"first: {f'({block})?' if opening else block}\n{thought}\nTHOUGHT: {grammars.TEXT}"
