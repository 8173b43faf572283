"""Where the store is and what opens it.

The file is INSULA_HOME/insula.db. Its key is what the file named by INSULA_STORE_KEY_FILE holds, or
INSULA_STORE_KEY itself; without either it is not encrypted. A key is at least 16 characters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from insula.config import settings
from insula.errors import ConfigError
from insula.security.small_file import NotRegularError, TooLongError, read_small
from insula.store.database import Database

FILE = "insula.db"
SHORTEST_KEY = 16
_LONGEST_KEY_FILE = 4096


def store_path(env: Mapping[str, str] | None = None) -> Path:
    """The database's file."""
    return settings(env).home.absolute() / FILE


def store_key(env: Mapping[str, str] | None = None) -> str | None:
    """The key, None for an unencrypted store. ConfigError names the variable at fault."""
    found = settings(env)
    name, key = "INSULA_STORE_KEY", found.store_key
    path = found.store_key_file
    if path is not None:
        if key is not None:
            raise ConfigError(
                "INSULA_STORE_KEY and INSULA_STORE_KEY_FILE are both set; allowed is one of them"
            )
        name = "INSULA_STORE_KEY_FILE"
        try:
            key = read_small(path, _LONGEST_KEY_FILE).decode().strip()
        except (NotRegularError, TooLongError, UnicodeDecodeError):
            raise ConfigError(f"{name}: {path} is no text file of at most 4096 bytes") from None
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"{name}: {path} cannot be read: {reason}") from None
    if key is not None and (len(key) < SHORTEST_KEY or "\0" in key):
        raise ConfigError(
            f"{name}: the key has {len(key)} characters; allowed are {SHORTEST_KEY} and more, "
            "such as the output of: openssl rand -hex 32"
        )
    return key


def open_store(env: Mapping[str, str] | None = None) -> Database:
    """The store of this INSULA_HOME."""
    return Database.open(store_path(env), key=store_key(env))
