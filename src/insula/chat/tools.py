"""Tools that a model may call: what they are, how one model writes a call, what it may write.

Owns the check of tools and of the choice among them, the formats of calls that well-known models
were trained on, and the grammar that holds an answer to them. The format is the template's; where
it has none that is known here, calls are written as Hermes does and the tools are described in the
system's message (`chat.tool_messages`), which is said in the report.

    hermes    <tool_call>\n{"name": …, "arguments": …}\n</tool_call>, one or more: Hermes 2 and 3,
              Qwen 2.5 and 3 (NousResearch/Hermes-Function-Calling)
    llama3    {"name": …, "parameters": …}, one, perhaps after <|python_tag|>: Llama 3.1 to 3.3
              (llama.com, model cards and prompt formats)
    mistral   [TOOL_CALLS][{"name": …, "arguments": …}, …]: Mistral's tokenizers up to version 7
              (docs.mistral.ai, mistral-common)

Invariant: an answer with a whole call in it holds arguments that the tool's schema allows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from insula.engine.grammars import TEXT, TEXT_WITHOUT_BRACE
from insula.engine.request import Tokenizer
from insula.errors import ConfigError, UnsupportedError

MAX_TOOLS = 128
#: Calls in one answer: a small model may not find an end.
MAX_CALLS = 8
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_TOOL = '{"type": "function", "function": {"name": ..., "parameters": {a JSON schema}}}'
_CHOICES = '"auto", "none", "required" or {"type": "function", "function": {"name": ...}}'


@dataclass(frozen=True, kw_only=True)
class CallFormat:
    """How calls are written.

    opening: what stands before the first, and then `first`; closing: behind the last. Each call is
    {"name": NAME, key: ARGUMENTS} between `before` and `after`, with `between` from call to call.
    by_brace: where free text ends: at the opening, or only if the answer begins with a brace.
    """

    name: Literal["hermes", "llama3", "mistral"]
    opening: str
    before: str
    key: str
    after: str
    between: str
    closing: str
    first: str = ""
    single: bool = False
    by_brace: bool = False
    id_length: int = 24


HERMES = CallFormat(
    name="hermes",
    opening="<tool_call>",
    before="\n",
    key="arguments",
    after="\n</tool_call>",
    between="\n<tool_call>",
    closing="",
)
LLAMA3 = CallFormat(
    name="llama3",
    opening="<|python_tag|>",
    before="",
    key="parameters",
    after="",
    between="",
    closing="",
    single=True,
    by_brace=True,
)
MISTRAL = CallFormat(
    name="mistral",
    opening="[TOOL_CALLS]",
    before="",
    key="arguments",
    after="",
    between=", ",
    closing="]",
    first="[",
    id_length=9,  # its template takes no other
)


def call_format(template: str) -> CallFormat | None:
    """The format that a template's source tells of; None where it tells of none known here.

    Raises UnsupportedError for one that is known and cannot be held to.
    """
    if "<|channel|>" in template:
        raise UnsupportedError(
            "this model calls tools through channels (OpenAI's harmony), which are not connected; "
            "take another model for tools"
        )
    if not re.search(r"\btools\b", template):
        return None
    if "<tool_call>" in template and "<function=" not in template:
        return HERMES
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return MISTRAL
    if "<|python_tag|>" in template and '"parameters"' in template:
        return LLAMA3
    return None


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One function. schema: of its arguments, always an object's. raw: as the caller wrote it, in
    plain JSON."""

    name: str
    schema: Mapping[str, Any]
    raw: Mapping[str, Any]


def checked_tools(tools: object) -> tuple[Tool, ...]:
    """The tools as OpenAI writes them. Raises ConfigError that names the place."""
    if tools is None:
        return ()
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise ConfigError(f"tools: found {type(tools).__name__}; allowed: a list of {_TOOL}")
    if len(tools) > MAX_TOOLS:
        raise ConfigError(f"tools: found {len(tools)}; allowed: at most {MAX_TOOLS}")
    found = tuple(_tool(at, tool) for at, tool in enumerate(tools))
    names = [tool.name for tool in found]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise ConfigError(f"tools[{at}]: the name {name!r} is taken by one before it")
    return found


def _tool(at: int, tool: object) -> Tool:
    where = f"tools[{at}]"
    if not isinstance(tool, Mapping):
        raise ConfigError(
            f"{where}: found {type(tool).__name__}; each is a mapping such as {_TOOL}"
        )
    plain = _plain(where, tool)
    function = plain.get("function")
    if plain.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise ConfigError(f"{where}: found type {plain.get('type')!r:.40}; allowed: {_TOOL}")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.match(name):
        raise ConfigError(
            f"{where}: the name is {name!r:.80}; allowed: 1 to 64 letters, digits, '_', '-' and '.'"
        )
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(parameters, Mapping):
        raise ConfigError(
            f"{where}: parameters is {type(parameters).__name__}; allowed is a JSON schema, a "
            "mapping"
        )
    if parameters.get("type", "object") != "object":
        raise ConfigError(
            f"{where}: its parameters are of type {parameters['type']!r:.40}; allowed: object"
        )
    return Tool(name=name, schema={"type": "object", **parameters}, raw=plain)


def _plain(where: str, tool: Mapping[str, Any]) -> Any:
    """The tool as JSON has it, for templates and grammars."""
    try:
        return json.loads(json.dumps(tool, default=_as_dict, allow_nan=False))
    except RecursionError:
        raise ConfigError(f"{where}: it is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: it is not JSON: {error}") from None


def _as_dict(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the caller allows. must: an answer is one or more calls. names: of the tools that may
    be called. several: in one answer."""

    must: bool
    names: tuple[str, ...]
    several: bool = True


def choice(
    tools: Sequence[Tool], tool_choice: object, *, parallel: object, trained: bool
) -> Choice | None:
    """The choice among tools; None: none is called.

    trained: the model knows calls. One that does not rarely ends after one, so without a word from
    the caller (parallel: None) it makes no more. Raises ConfigError.
    """
    if parallel is not None and not isinstance(parallel, bool):
        raise ConfigError(f"parallel_tool_calls: found {parallel!r:.40}; allowed: True or False")
    several = trained if parallel is None else parallel
    names = tuple(tool.name for tool in tools)
    if tool_choice in (None, "none", "auto", "required"):
        if not tools:
            if tool_choice == "required":
                raise ConfigError("tool_choice: 'required' was given, and no tools")
            return None
        if tool_choice == "none":
            return None
        return Choice(must=tool_choice == "required", names=names, several=several)
    named = tool_choice.get("function") if isinstance(tool_choice, Mapping) else None
    if not isinstance(named, Mapping) or tool_choice.get("type", "function") != "function":  # type: ignore[attr-defined]
        raise ConfigError(f"tool_choice: found {tool_choice!r:.80}; allowed: {_CHOICES}")
    name = named.get("name")
    if name not in names:
        known = ", ".join(names) or "no tools were given"
        raise ConfigError(f"tool_choice: no tool is called {name!r:.80}; allowed: {known}")
    return Choice(must=True, names=(str(name),), several=several)


def quoted(text: str) -> str:
    """A text as Lark has it between quotes; nothing for no text."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def control_id(tokenizer: Tokenizer, text: str) -> int | None:
    """The control token that a text is the name of, None where it is text."""
    ids = tokenizer.encode(text, add_special=False, parse_special=True) if text else []
    return ids[0] if len(ids) == 1 and tokenizer.is_special(ids[0]) else None


def terminal(tokenizer: Tokenizer, text: str) -> str:
    """A text as the model writes it, for a rule of Lark: a control token where it is one."""
    control = control_id(tokenizer, text)
    return quoted(text) if control is None else f"<[{control}]>"


def rules(form: CallFormat, allowed: Choice, tokenizer: Tokenizer) -> tuple[str, str]:
    """(what an answer is, all rules that this names), in Lark.

    Rules: `calls`, an answer that calls; `talk`, free text, where a call is no must. The tools'
    schemas are the grammars `tool_0`, `tool_1`, … in the order of the names.
    """
    rest = ""
    if allowed.several and not form.single:
        for _ in range(MAX_CALLS - 1):
            rest = f"({quoted(form.between)} call {rest})?"
    lines = ["call: " + " | ".join(f"call_{at}" for at in range(len(allowed.names)))]
    for at, name in enumerate(allowed.names):
        head = form.before + head_of(name, form.key)
        lines.append(f"call_{at}: {quoted(head)} @tool_{at} {quoted('}' + form.after)}")
    lines.append(f"listed: {quoted(form.first)} call {rest} {quoted(form.closing)}")
    control = control_id(tokenizer, form.opening)
    opening = quoted(form.opening) if control is None else f"<[{control}]>"
    answer = "calls"
    if form.by_brace:
        lines.append("calls: listed" if control is None else f"calls: {opening}? listed")
        talk, answer = TEXT_WITHOUT_BRACE, "talk | calls"
    elif control is not None:
        lines.append(f"calls: {opening} listed")
        talk, answer = TEXT, "talk calls | talk"
    elif allowed.must:
        lines.append(f"calls: {opening} listed")
        talk = ""
    else:
        lines += [f"opened[lazy]: TALK {opening}", "calls: opened listed"]
        talk, answer = TEXT, "talk | calls"
    if allowed.must:
        return "calls", "\n".join(lines)
    return answer, "\n".join([*lines, "talk: TALK", f"TALK: {talk}"])


def head_of(name: str, key: str) -> str:
    """A call's text up to its arguments."""
    return '{"name": "' + name + '", "' + key + '": '
