'''Modelfiles: what they say, as plain data.

The syntax is Ollama's (https://docs.ollama.com/modelfile): an instruction per line, in any case,
and its value; """ or " opens a value that may go over several lines; # begins a comment. What this
reader does not know is an error that names the line. What an instruction means is create.py's.
'''

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from insula.errors import ConfigError, UnsupportedError
from insula.hub import parameters
from insula.hub.manifest import ROLES, Manifest
from insula.locale import text

KNOWN = ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE")
#: Instructions to Ollama itself, which say nothing about the model here.
OTHERS = ("REQUIRES", "RENDERER", "PARSER")
MAX_CHARACTERS = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Modelfile:
    """What the instructions say, in their order where that matters. None: not said.

    `unused` are the lines that mean nothing here, as they were written.
    """

    base: str
    parameters: dict[str, Any]
    template: str | None = None
    system: str | None = None
    adapters: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()


def parse(source: str) -> Modelfile:
    """Raises ConfigError that names the line."""
    if len(source) > MAX_CHARACTERS:
        raise ConfigError(text("hub.modelfile_long", limit=MAX_CHARACTERS >> 20))
    base: str | None = None
    found: dict[str, Any] = {}
    once: dict[str, str] = {}
    lists: dict[str, list[Any]] = {"ADAPTER": [], "LICENSE": [], "MESSAGE": []}
    unused: list[str] = []
    for number, instruction, value in _instructions(source.removeprefix("\ufeff")):
        if instruction in OTHERS:
            unused.append(f"{instruction} {value}")
        elif not value and instruction not in ("SYSTEM", "TEMPLATE"):
            raise ConfigError(text("hub.modelfile_empty", line=number, instruction=instruction))
        elif instruction == "FROM":
            if base is not None:
                raise ConfigError(text("hub.modelfile_two_from", line=number))
            base = value
        elif instruction == "PARAMETER":
            name, _, written = value.partition(" ")
            try:
                parameters.add(found, name.lower(), unquoted(written.strip()) or "")
            except ConfigError as error:
                raise ConfigError(
                    text("hub.modelfile_parameter", line=number, reason=error)
                ) from None
        elif instruction == "MESSAGE":
            role, _, content = value.partition(" ")
            content = unquoted(content.strip()) or ""
            if role.lower() not in ROLES or not content:
                raise ConfigError(text("hub.modelfile_message", line=number, role=role[:40]))
            lists["MESSAGE"].append((role.lower(), content))
        elif instruction in lists:
            lists[instruction].append(value)
        else:
            once[instruction] = value
    if base is None:
        raise ConfigError(text("hub.modelfile_no_from"))
    return Modelfile(
        base=base,
        parameters=found,
        template=once.get("TEMPLATE"),
        system=once.get("SYSTEM"),
        adapters=tuple(lists["ADAPTER"]),
        licences=tuple(lists["LICENSE"]),
        messages=tuple(lists["MESSAGE"]),
        unused=tuple(unused),
    )


def unquoted(value: str) -> str | None:
    """The value without its quotes; None if it opens some and does not close them."""
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            closed = len(value) >= 2 * len(quotes) and value.endswith(quotes)
            return value[len(quotes) : -len(quotes)] if closed else None
    return value


def _instructions(source: str) -> list[tuple[int, str, str]]:
    """(line number, instruction, value); of PARAMETER and MESSAGE the last word's quotes stay."""
    lines = source.replace("\r\n", "\n").split("\n")
    found: list[tuple[int, str, str]] = []
    at = 0
    while at < len(lines):
        line, number = lines[at].lstrip(), at + 1
        at += 1
        if not line.strip() or line.startswith("#"):
            continue
        word, value = _first(line)
        word = word.upper()
        if word not in (*KNOWN, *OTHERS):
            known = ", ".join(KNOWN)
            raise ConfigError(
                text("hub.modelfile_unknown", line=number, word=word[:40], known=known)
            )
        head = ""
        if word in ("PARAMETER", "MESSAGE") and value.strip():
            head, value = _first(value)
        while unquoted(value.rstrip()) is None:
            if at == len(lines):
                raise ConfigError(text("hub.modelfile_open", line=number))
            value += "\n" + lines[at]
            at += 1
        value = value.rstrip()
        found.append((number, word, f"{head} {value}" if head else unquoted(value) or ""))
    return found


def _first(line: str) -> tuple[str, str]:
    """The first word, and what follows the spaces after it."""
    word, *rest = line.split(None, 1)
    return word, rest[0] if rest else ""


def render(base: str, manifest: Manifest, *, clean: Callable[[str], str] = str) -> str:
    """A Modelfile that says what a manifest says, upon `base`. clean: what to do with each text.

    Raises UnsupportedError for a text that would read back as something else: it may be a
    stranger's, who would like to add an instruction.
    """
    defaults = manifest.defaults
    lines = [f"FROM {base}"]
    for name, value in defaults.parameters.items():
        for each in value if isinstance(value, list) else [value]:
            shown = clean(str(each).lower() if isinstance(each, bool) else str(each))
            if not re.fullmatch(r"[a-z0-9_]+", name):
                raise _cannot(f"PARAMETER {name!r:.60}", manifest)
            lines.append(_headed("PARAMETER", name, shown, manifest))
    for instruction, content in (("TEMPLATE", defaults.template), ("SYSTEM", defaults.system)):
        if content is not None:
            lines.append(block(instruction, clean(content), manifest))
    lines += [
        _headed("MESSAGE", role, clean(content), manifest) for role, content in defaults.messages
    ]
    return "\n".join(lines)


def block(instruction: str, content: str, manifest: Manifest) -> str:
    """An instruction with a text of several lines. Raises UnsupportedError as `render`."""
    line = f'{instruction} """{content}"""'
    if _read_back(line) != [(1, instruction, content.replace("\r\n", "\n"))]:
        raise _cannot(instruction, manifest)
    return line


def _headed(instruction: str, head: str, content: str, manifest: Manifest) -> str:
    plain = content and content == content.strip() and not {'"', "\n", "\r"} & set(content)
    value = content if plain else f'"""{content}"""'
    line = f"{instruction} {head} {value}"
    found = _read_back(line)
    same = len(found) == 1 and found[0][2].partition(" ")[0] == head
    if not same or unquoted(found[0][2].partition(" ")[2]) != content.replace("\r\n", "\n"):
        raise _cannot(f"{instruction} {head}", manifest)
    return line


def _read_back(line: str) -> list[tuple[int, str, str]]:
    try:
        return _instructions(line)
    except ConfigError:
        return []


def _cannot(what: str, manifest: Manifest) -> UnsupportedError:
    return UnsupportedError(text("hub.modelfile_cannot", what=what, name=manifest.name))
