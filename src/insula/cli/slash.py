"""What a line that begins with "/" does in a chat.

Each command gets the chat and the rest of its line and answers with text to show, or tells the
loop what to do next. A command that fails raises InsulaError and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from insula.cli import sampling_settings
from insula.cli.conversation import Conversation
from insula.cli.output import facts
from insula.errors import ConfigError
from insula.locale import text


class Chat(Protocol):
    """What the commands need of the running chat."""

    conversation: Conversation

    def describe(self) -> list[tuple[str, str]]:
        """The model and how full its context is, for a person."""
        ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What follows: something to show, a question to ask (again), or the end."""

    show: str | None = None
    ask: str | None = None
    leave: bool = False


def _system(chat: Chat, rest: str) -> Outcome:
    conversation = chat.conversation
    if not rest:
        return Outcome(show=conversation.system or text("run.no_system"))
    if rest.lower() == "off":
        conversation.system = None
        return Outcome(show=text("run.no_system"))
    conversation.system = rest
    return Outcome(show=text("run.system_set"))


def _clear(chat: Chat, rest: str) -> Outcome:
    chat.conversation.messages.clear()
    return Outcome(show=text("run.cleared"))


def _save(chat: Chat, rest: str) -> Outcome:
    return Outcome(show=text("run.saved", path=chat.conversation.save(rest)))


def _load(chat: Chat, rest: str) -> Outcome:
    path = chat.conversation.load(rest)
    count = len(chat.conversation.messages)
    return Outcome(show=text("run.loaded", path=path, count=count))


def _set(chat: Chat, rest: str) -> Outcome:
    conversation = chat.conversation
    name, _, value = rest.replace("=", " ", 1).partition(" ")
    if not name:
        return Outcome(show=facts(sampling_settings.effective(conversation.settings)))
    if not value.strip():
        raise ConfigError(text("run.set_usage"))
    key = name.lower().replace("-", "_")
    chosen = {**conversation.settings, key: sampling_settings.parse(name, value.strip())}
    chosen = {k: v for k, v in chosen.items() if v is not None}
    rows = dict(sampling_settings.effective(chosen))
    conversation.settings = chosen
    return Outcome(show=f"{key} = {rows[key]}")


def _show(chat: Chat, rest: str) -> Outcome:
    conversation = chat.conversation
    rows = chat.describe()
    rows.append((text("run.show_system"), conversation.system or "-"))
    rows.append((text("run.show_messages"), str(len(conversation.messages))))
    for message in conversation.messages[-6:]:
        line = " ".join(message["content"].split())
        rows.append((f"  {message['role']}", line if len(line) <= 70 else line[:69] + "…"))
    return Outcome(show=facts(rows))


def _regenerate(chat: Chat, rest: str) -> Outcome:
    question = chat.conversation.take_back()
    if question is None:
        raise ConfigError(text("run.nothing_to_regenerate"))
    return Outcome(ask=question)


def _help(chat: Chat, rest: str) -> Outcome:
    return Outcome(show=text("run.help"))


def _leave(chat: Chat, rest: str) -> Outcome:
    return Outcome(leave=True)


COMMANDS: dict[str, Callable[[Chat, str], Outcome]] = {
    "/system": _system,
    "/clear": _clear,
    "/save": _save,
    "/load": _load,
    "/set": _set,
    "/show": _show,
    "/regenerate": _regenerate,
    "/help": _help,
    "/bye": _leave,
}


def execute(chat: Chat, line: str) -> Outcome:
    """Run one line that begins with "/". ConfigError for a command that there is not."""
    word, _, rest = line.strip().partition(" ")
    name, _, more = word.partition("\n")
    command = COMMANDS.get(name.lower())
    if command is None:
        known = " ".join(COMMANDS)
        raise ConfigError(text("run.no_such_slash", name=name[:40], known=known))
    return command(chat, f"{more}\n{rest}".strip() if more else rest.strip())
