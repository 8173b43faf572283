"""A chat as data: who said what, with which settings; saved to a file and read from one.

The file is JSON that a person can read, 0600. What is read from a file is checked as any input.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from insula.cli import sampling_settings
from insula.errors import ConfigError, FormatError, NotFoundError
from insula.hub import places
from insula.hub.names import is_safe_segment
from insula.locale import text

SCHEMA = 1
MAX_FILE = 64 << 20


@dataclass
class Conversation:
    """`messages` are OpenAI's role and content, without the system's. `model` is its name."""

    model: str
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def all_messages(self) -> list[dict[str, str]]:
        """What the model is to see: the system's message first, if there is one."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.messages

    def take_back(self) -> str | None:
        """Remove the last exchange; the question that began it, None if there is none."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return message["content"]
        return None

    def save(self, name: str) -> Path:
        """Write it to `name`: a path, or a plain name for a file in Insula's own folder."""
        path = _place(name)
        document = {
            "insula_chat": SCHEMA,
            "model": self.model,
            "system": self.system,
            "messages": self.messages,
            "settings": self.settings,
        }
        data = json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n"
        places.write_private(path, data)
        return path

    def load(self, name: str) -> Path:
        """Take over the chat in `name`. NotFoundError, or FormatError if it is not one.

        The model stays the one that runs.
        """
        path = _place(name)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE + 1)
        except OSError as error:
            raise NotFoundError(text("run.cannot_read", path=path, reason=error.strerror)) from None
        try:
            found = json.loads(data) if len(data) <= MAX_FILE else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("insula_chat") != SCHEMA:
            raise FormatError(text("run.not_a_chat", path=path))
        system, messages = found.get("system"), found.get("messages")
        settings = found.get("settings", {})
        if (
            not (system is None or isinstance(system, str))
            or not isinstance(messages, list)
            or not all(_is_message(message) for message in messages)
            or not isinstance(settings, dict)
            or not settings.keys() <= sampling_settings.SETTINGS.keys()
        ):
            raise FormatError(text("run.not_a_chat", path=path))
        try:
            settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
            sampling_settings.params(settings)
        except (ConfigError, TypeError):
            raise FormatError(text("run.not_a_chat", path=path)) from None
        self.system, self.messages, self.settings = system, messages, settings
        return path


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and message["role"] in ("user", "assistant")
        and isinstance(message["content"], str)
    )


def _place(name: str) -> Path:
    if not name:
        raise ConfigError(text("run.needs_name"))
    if is_safe_segment(name):
        return places.home() / "chats" / (name if name.endswith(".json") else f"{name}.json")
    return Path(name).expanduser()
