"""Signing in and out of the page: passwords in, a cookie and a CSRF token out.

Guessing is slow: argon2 takes its time, two at once at most, and after FREE failures for a name
from an address, or FREE_ADDRESS from one address, each further one doubles a pause up to
LONGEST_PAUSE. A name that is not there takes as long as a wrong password and is told the same.
Failures are counted per pair, so that nobody can lock another out from elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from insula.errors import NotFoundError
from insula.security import passwords
from insula.server.audit import AuditLog
from insula.server.denied import Denied
from insula.server.gate import COOKIES
from insula.store import users
from insula.store.users import Session
from insula.store.writer import Writer

SESSION_SECONDS = 12 * 3600
FREE, FREE_ADDRESS = 5, 20
LONGEST_PAUSE = 900.0
_MOST_REMEMBERED = 10_000
_FORGET_AFTER = 3600.0


@dataclass
class _Failures:
    count: int
    last: float


class Logins:
    """Of one event loop."""

    def __init__(
        self, writer: Writer, audit: AuditLog, *, pulse: Callable[[], float] = time.monotonic
    ) -> None:
        self._writer = writer
        self._audit = audit
        self._pulse = pulse
        self._failures: dict[tuple[str, ...], _Failures] = {}
        self._turns = asyncio.Semaphore(2)

    async def sign_in(
        self, name: str, password: str, *, address: str, tls: bool
    ) -> tuple[Session, str]:
        """The session, and the value of a Set-Cookie header. Raises Denied (401, 429)."""
        marks = {(name.lower(), address): FREE, (address,): FREE_ADDRESS}
        self._check_pause(marks)
        for mark in marks:  # counted before it is known, so that many at once gain nothing
            self._fail(mark)
        async with self._turns:
            session = await self._try(name, password)
        if session is None:
            self._audit.note("login.failed", address=address)
            raise Denied(401, "name or password are wrong", code="invalid_login")
        for mark in marks:
            self._failures.pop(mark, None)
        await self._audit.record("login", user=session[0].user.id, address=address)
        return session[0], set_cookie(session[1], seconds=SESSION_SECONDS, tls=tls)

    async def sign_out(self, token: str, *, tls: bool) -> str:
        """End a session; the value of a Set-Cookie header that forgets it."""
        await asyncio.wrap_future(
            self._writer.submit(lambda store: users.close_session(store, token))
        )
        return set_cookie("", seconds=0, tls=tls)

    async def _try(self, name: str, password: str) -> tuple[Session, str] | None:
        stored = await asyncio.wrap_future(
            self._writer.submit(lambda store: users.password_hash(store, name))
        )
        if not await asyncio.to_thread(passwords.verify, stored, password):
            return None
        assert stored is not None
        kept = stored
        fresh = None
        if passwords.is_outdated(stored):
            fresh = await asyncio.to_thread(passwords.hash_password, password)
        try:
            return await asyncio.wrap_future(
                self._writer.submit(
                    lambda store: users.sign_in(
                        store, name, old=kept, fresh=fresh, now=time.time(), seconds=SESSION_SECONDS
                    )
                )
            )
        except NotFoundError:  # removed, or another password, since it was looked up
            return None

    def _check_pause(self, marks: dict[tuple[str, ...], int]) -> None:
        now = self._pulse()
        for mark, free in marks.items():
            found = self._failures.get(mark)
            if found is None or found.count < free:
                continue
            pause = min(LONGEST_PAUSE, 2.0 ** min(30, found.count - free))
            left = found.last + pause - now
            if left > 0:
                message = "too many wrong passwords; come back later"
                raise Denied(429, message, code="login_paused", retry_after=left)

    def _fail(self, mark: tuple[str, ...]) -> None:
        now = self._pulse()
        if len(self._failures) >= _MOST_REMEMBERED:
            self._failures = {
                key: failures
                for key, failures in self._failures.items()
                if failures.last > now - _FORGET_AFTER
            }
        found = self._failures.setdefault(mark, _Failures(0, now))
        found.count += 1
        found.last = now


def set_cookie(token: str, *, seconds: int, tls: bool) -> str:
    """For this host only, for no script, for no other site, and over TLS for TLS only."""
    secure = "; Secure" if tls else ""
    return f"{COOKIES[tls]}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
