"""What a line that begins with "/" does in a chat.

Each command gets the chat and the rest of its line, and answers with text to show or tells the
loop what to do next. A command that fails raises InsulaError and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from insula.cli import sampling_settings
from insula.cli.output import facts
from insula.errors import ConfigError, NotFoundError
from insula.hub import places
from insula.hub.names import is_safe_segment
from insula.locale import text

if TYPE_CHECKING:
    from insula.chat.session import ChatSession
    from insula.types import SamplingParams

#: Messages that /show lists, and how much of each.
SHOWN_MESSAGES, SHOWN_CHARACTERS = 6, 70


class Chat(Protocol):
    """What the commands need of the running chat. `settings` is what was set, by name; `base` is
    what the model sets."""

    session: ChatSession
    settings: dict[str, Any]
    base: SamplingParams

    def describe(self) -> list[tuple[str, str]]:
        """The model and how full its context is, for a person."""
        ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What follows: something to show, the last question again, or the end.

    fresh: the history is another one; figures of earlier answers say nothing about it.
    """

    show: str | None = None
    fresh: bool = False
    regenerate: bool = False
    leave: bool = False


def chat_path(name: str) -> Path:
    """Where a chat of that name is: a path as it is, a plain name in Insula's own folder."""
    if not name:
        raise ConfigError(text("run.needs_name"))
    if is_safe_segment(name):
        return places.home() / "chats" / (name if name.endswith(".json") else f"{name}.json")
    return Path(name).expanduser()


def _system(chat: Chat, rest: str) -> Outcome:
    if rest.lower() == "off":
        chat.session.system = None
    elif rest:
        chat.session.system = rest
        return Outcome(show=text("run.system_set"))
    return Outcome(show=chat.session.system or text("run.no_system"))


def _clear(chat: Chat, rest: str) -> Outcome:
    chat.session.clear()
    return Outcome(show=text("run.cleared"), fresh=True)


def _save(chat: Chat, rest: str) -> Outcome:
    path = chat_path(rest)
    if path.is_dir():
        raise ConfigError(text("run.is_folder", path=path))
    if path.parent == places.home() / "chats":
        places.private_folder(path.parent)
    elif not path.parent.is_dir():
        raise NotFoundError(text("run.no_such_folder", path=path.parent))
    chat.session.save(path)
    return Outcome(show=text("run.saved", path=path))


def _load(chat: Chat, rest: str) -> Outcome:
    path = chat_path(rest)
    chat.session.load(path)
    count = len(chat.session.messages)
    return Outcome(show=text("run.loaded", path=path, count=count), fresh=True)


def _set(chat: Chat, rest: str) -> Outcome:
    name, _, value = rest.replace("=", " ", 1).partition(" ")
    if not name:
        return Outcome(show=facts(sampling_settings.effective(chat.settings, chat.base)))
    if not value.strip():
        raise ConfigError(text("run.set_usage"))
    key = name.lower().replace("-", "_")
    chosen = {**chat.settings, key: sampling_settings.parse(name, value.strip())}
    chosen = {k: v for k, v in chosen.items() if v is not None}
    rows = dict(sampling_settings.effective(chosen, chat.base))
    chat.settings = chosen
    return Outcome(show=f"{key} = {rows[key]}")


def _show(chat: Chat, rest: str) -> Outcome:
    messages = [m for m in chat.session.messages if m["role"] != "system"]
    rows = chat.describe()
    rows.append((text("run.show_system"), chat.session.system or "-"))
    rows.append((text("run.show_messages"), str(len(messages))))
    for message in messages[-SHOWN_MESSAGES:]:
        line = " ".join(str(message.get("content") or "").split())
        if len(line) > SHOWN_CHARACTERS:
            line = line[: SHOWN_CHARACTERS - 1] + "…"
        rows.append((f"  {message['role']}", line))
    return Outcome(show=facts(rows))


def _regenerate(chat: Chat, rest: str) -> Outcome:
    return Outcome(regenerate=True)


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


#: Commands that would have to ignore what follows them.
ALONE = frozenset({"/clear", "/show", "/regenerate", "/bye"})


def execute(chat: Chat, line: str) -> Outcome:
    """Run one line that begins with "/". ConfigError for a command that there is not."""
    name, *rest = line.strip().split(maxsplit=1)
    command = COMMANDS.get(name.lower())
    if command is None:
        known = " ".join(COMMANDS)
        raise ConfigError(text("run.no_such_slash", name=name[:40], known=known))
    if rest and name.lower() in ALONE:
        raise ConfigError(text("run.no_argument", name=name.lower()))
    return command(chat, rest[0].strip() if rest else "")
