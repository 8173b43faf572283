"""Passwords as argon2id hashes, with the parameters of RFC 9106's second recommendation.

One check takes some tens of milliseconds and 64 MB by design: callers bound how many run at once.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argon2

SHORTEST = 10
LONGEST = 1024


@functools.cache
def _hasher() -> argon2.PasswordHasher:
    import argon2

    return argon2.PasswordHasher()


@functools.cache
def _nobody() -> str:
    return _hasher().hash("the password of nobody")


def hash_password(password: str) -> str:
    """The hash to store, with its own salt."""
    return _hasher().hash(password)


def verify(stored: str | None, password: str) -> bool:
    """Whether `password` is the one that was hashed. For nobody (None) it takes as long."""
    from argon2.exceptions import InvalidHashError, VerificationError

    if len(password) > LONGEST:
        return False
    try:
        _hasher().verify(stored or _nobody(), password)
    except (VerificationError, InvalidHashError):
        return False
    return bool(stored)


def is_outdated(stored: str) -> bool:
    """Whether the hash was made with other parameters than today's."""
    return _hasher().check_needs_rehash(stored)
