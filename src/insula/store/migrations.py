"""The tables, as steps from one version of the file to the next.

A step that was released is never changed: a new one follows it. All steps that a file lacks run in
one transaction, which also writes the new version, so a file is at one version or the other.
"""

from __future__ import annotations

_FIRST = (
    # Secrets of this store and marks of its own state.
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID",
    # Times are whole seconds since 1970. A row is never deleted: a revoked key stays known.
    """CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        hash BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
        hint TEXT NOT NULL,
        name TEXT NOT NULL,
        tenant TEXT NOT NULL,
        scopes TEXT NOT NULL,
        models TEXT,
        requests_per_minute INTEGER,
        tokens_per_minute INTEGER,
        tokens_per_day INTEGER,
        tokens_total INTEGER,
        created INTEGER NOT NULL,
        expires INTEGER,
        revoked INTEGER,
        replaced_by TEXT REFERENCES keys (id)
    ) STRICT""",
    """CREATE TABLE spending (
        tenant TEXT NOT NULL,
        day TEXT NOT NULL,
        requests INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        PRIMARY KEY (tenant, day)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE users (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE COLLATE NOCASE,
        role TEXT NOT NULL CHECK (role IN ('user', 'admin')),
        password TEXT NOT NULL,
        created INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE sessions (
        hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
        user TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        csrf TEXT NOT NULL,
        created INTEGER NOT NULL,
        expires INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX sessions_of_user ON sessions (user)",
    # hash: SHA-256 over the previous record's hash and this record. mac: two, with the audit key.
    """CREATE TABLE audit (
        seq INTEGER PRIMARY KEY CHECK (seq > 0),
        record TEXT NOT NULL,
        hash BLOB NOT NULL,
        mac BLOB NOT NULL
    ) STRICT""",
    """CREATE TABLE audit_head (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        seq INTEGER NOT NULL,
        mac BLOB NOT NULL
    ) STRICT""",
    """CREATE TABLE conversations (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        title TEXT NOT NULL,
        settings TEXT NOT NULL,
        created INTEGER NOT NULL,
        updated INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX conversations_of_owner ON conversations (owner, updated)",
    # A tree: a message edited or answered anew is a second child of the same parent.
    """CREATE TABLE messages (
        id TEXT PRIMARY KEY,
        conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        parent TEXT REFERENCES messages (id) ON DELETE CASCADE,
        role TEXT NOT NULL,
        content TEXT NOT NULL,
        created INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX messages_of_conversation ON messages (conversation)",
    "CREATE INDEX messages_of_parent ON messages (parent)",
)

#: MIGRATIONS[n] brings a file from version n to n + 1.
MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST,)
