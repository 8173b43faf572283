"""Conversations: each belongs to one owner, and is a tree of messages.

Every function takes the owner and finds nothing of another's: a conversation that is somebody
else's is as absent as one that never was. A message edited, or answered again, is a second child of
the same parent. Content is JSON of the caller's, kept as it is.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from insula.errors import NotFoundError
from insula.locale import text
from insula.store.database import Database, Row


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Times in seconds since 1970. settings: model, system prompt and the like."""

    id: str
    title: str
    settings: Mapping[str, Any]
    created: int
    updated: int


@dataclass(frozen=True, kw_only=True)
class Message:
    """parent: the message that it follows, None for a first one."""

    id: str
    parent: str | None
    role: str
    content: Any
    created: int


def create(
    store: Database,
    *,
    owner: str,
    now: float,
    title: str = "",
    settings: Mapping[str, Any] | None = None,
) -> Conversation:
    """A new conversation, empty."""
    found = f"con_{secrets.token_hex(12)}"
    store.run(
        "INSERT INTO conversations (id, owner, title, settings, created, updated) "
        "VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
        (found, owner, title, json.dumps(dict(settings or {})), int(now)),
    )
    return get(store, owner=owner, conversation=found)


def get(store: Database, *, owner: str, conversation: str) -> Conversation:
    """Raises NotFoundError."""
    row = store.row(
        "SELECT id, title, settings, created, updated FROM conversations "
        "WHERE id = ? AND owner = ?",
        (conversation, owner),
    )
    if row is None:
        raise NotFoundError(text("access.no_such_conversation", name=conversation[:40]))
    return _conversation(row)


def list_conversations(
    store: Database, *, owner: str, limit: int = 100, before: int | None = None
) -> list[Conversation]:
    """The owner's, the latest first; only those last changed before a time, if given."""
    rows = store.rows(
        "SELECT id, title, settings, created, updated FROM conversations WHERE owner = ?1 "
        "AND (?2 IS NULL OR updated < ?2) ORDER BY updated DESC, id LIMIT ?3",
        (owner, before, limit),
    )
    return [_conversation(row) for row in rows]


def change(
    store: Database,
    *,
    owner: str,
    conversation: str,
    now: float,
    title: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Conversation:
    """Give it another title or other settings."""
    with store.transaction():
        get(store, owner=owner, conversation=conversation)
        store.run(
            "UPDATE conversations SET title = coalesce(?2, title), "
            "settings = coalesce(?3, settings), updated = ?4 WHERE id = ?1",
            (
                conversation,
                title,
                None if settings is None else json.dumps(dict(settings)),
                int(now),
            ),
        )
        return get(store, owner=owner, conversation=conversation)


def remove(store: Database, *, owner: str, conversation: str) -> None:
    """Erase it with all its messages; SQLite overwrites what it frees."""
    with store.transaction():
        get(store, owner=owner, conversation=conversation)
        store.run("DELETE FROM conversations WHERE id = ?", (conversation,))


def append(
    store: Database,
    *,
    owner: str,
    conversation: str,
    role: str,
    content: Any,
    now: float,
    parent: str | None = None,
) -> Message:
    """Add a message behind `parent`, which must be of the same conversation."""
    message = Message(
        id=f"msg_{secrets.token_hex(12)}",
        parent=parent,
        role=role,
        content=content,
        created=int(now),
    )
    with store.transaction():
        get(store, owner=owner, conversation=conversation)
        known = "SELECT 1 FROM messages WHERE id = ? AND conversation = ?"
        if parent is not None and store.row(known, (parent, conversation)) is None:
            raise NotFoundError(text("access.no_such_message", name=parent[:40]))
        store.run(
            "INSERT INTO messages (id, conversation, parent, role, content, created) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (message.id, conversation, parent, role, json.dumps(content), message.created),
        )
        store.run("UPDATE conversations SET updated = ? WHERE id = ?", (int(now), conversation))
    return message


def messages(store: Database, *, owner: str, conversation: str) -> list[Message]:
    """All of them, parents before children."""
    with store.snapshot():
        get(store, owner=owner, conversation=conversation)
        rows = store.rows(
            "SELECT id, parent, role, content, created FROM messages "
            "WHERE conversation = ? ORDER BY rowid",
            (conversation,),
        )
    return [
        Message(id=row[0], parent=row[1], role=row[2], content=json.loads(row[3]), created=row[4])
        for row in rows
    ]


def _conversation(row: Row) -> Conversation:
    return Conversation(
        id=row[0], title=row[1], settings=json.loads(row[2]), created=row[3], updated=row[4]
    )
