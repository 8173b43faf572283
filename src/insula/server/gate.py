"""Who asks, and whether they may: from credentials and a route's scope to a caller.

Owns the decision, in one place. Keys and sessions are looked up in the store at each request, so
what another process revokes is revoked here; nothing is cached. `open_without_keys` lets everybody
in as long as nobody ever made a key or a user; the first one ends that, and revoking it does not
bring it back.

Refuses with 401 (no or no valid credential), 403 (another scope, no CSRF token), 429 (rates and
budgets, with when to come back; a budget for good has no such time), 503/507 (the store).
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from insula.errors import StoreError
from insula.server.caller import Caller
from insula.server.denied import Denied, Scope, from_store, header
from insula.server.rates import Rates
from insula.store import keys, spending, users
from insula.store.database import Database
from insula.store.keys import Key, Limits

#: The cookie of a session; the browser takes the second name over TLS only, and for this host.
COOKIES = ("insula_session", "__Host-insula_session")
CSRF_HEADER = b"x-csrf-token"
_SAFE = {"GET", "HEAD", "OPTIONS"}
_OF_ROLE = {"user": ("inference",), "admin": keys.SCOPES}
_CHALLENGE = {"www-authenticate": "Bearer"}


@dataclass(frozen=True, kw_only=True)
class Known(Caller):
    """A caller whom the gate let in.

    id, name: of the key or user. kind: open is anybody, where no keys are set up. tokens_left: what
    the budgets allow now, None without one; an answer should not be planned longer. session: its
    cookie's token, for users. limits: what the rates are held against.
    """

    id: str
    name: str
    kind: Literal["key", "user", "open"]
    scopes: frozenset[str]
    limits: Limits
    tokens_left: int | None = None
    session: str | None = None
    csrf: str | None = None


#: Everybody, on a machine where nobody made a key.
OPEN = Known(
    id="open", name="open", kind="open", scopes=frozenset(keys.SCOPES), limits=Limits(), tenant=""
)


class Gate:
    """Of one event loop, with a connection of its own to the store.

    clock: seconds since 1970; pulse: a clock that does not go back.
    """

    def __init__(
        self,
        store: Database,
        *,
        open_without_keys: bool,
        clock: Callable[[], float] = time.time,
        pulse: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._open = open_without_keys
        self._clock = clock
        self._pulse = pulse
        self._rates = Rates()

    def admit(self, scope: Scope, needed: str | None) -> Known:
        """The caller of a request for a route with this scope (None: a route that is not there).

        Raises Denied.
        """
        try:
            caller = self._who(scope)
            if needed is not None and needed not in caller.scopes:
                raise Denied(
                    403,
                    f"this needs the scope {needed}, which this {caller.kind} does not have",
                    code="insufficient_scope",
                )
            spends = needed == "inference" and scope["method"] not in _SAFE
            return self._within(caller, spends=spends)
        except StoreError as error:
            raise from_store(error) from error

    def still_valid(self, caller: Known) -> bool:
        """Whether a caller who was let in would be let in again. True where the store fails."""
        try:
            now = self._clock()
            if caller.kind == "key":
                return keys.get(self._store, caller.id).state(now) == "active"
            if caller.kind == "user":
                assert caller.session is not None
                return users.find_session(self._store, caller.session, now=now) is not None
            return not keys.any_known(self._store)
        except StoreError:
            return True

    def spend(self, caller: Known, tokens: int) -> None:
        """A request has ended: count its tokens against the rates. (Budgets are in the store.)"""
        self._rates.spend(caller.tenant, caller.limits, tokens, self._pulse())

    def _who(self, scope: Scope) -> Known:
        secret = _secret(scope)
        if secret is None:
            session = self._session(scope)
            if session is not None:
                return session
        else:
            key = keys.find(self._store, secret)
            if key is not None and key.state(self._clock()) == "active":
                return _of_key(key)
        if self._open and not keys.any_known(self._store):
            return OPEN
        if secret is None:
            message = "a key is needed: Authorization: Bearer sk-insula-… or x-api-key"
            raise Denied(401, message, code="missing_api_key", headers=_CHALLENGE)
        message = "this key is unknown, expired or revoked"
        raise Denied(401, message, code="invalid_api_key", headers=_CHALLENGE)

    def _session(self, scope: Scope) -> Known | None:
        token = cookie(scope)
        if token is None:
            return None
        session = users.find_session(self._store, token, now=self._clock())
        if session is None:
            return None
        if scope["method"] not in _SAFE:
            given = header(scope, CSRF_HEADER) or ""
            if not hmac.compare_digest(given.encode("latin-1"), session.csrf.encode()):
                message = "the header X-CSRF-Token is missing or another session's; reload the page"
                raise Denied(403, message, code="csrf")
        user = session.user
        return Known(
            id=user.id,
            name=user.name,
            kind="user",
            tenant=user.id,
            scopes=frozenset(_OF_ROLE[user.role]),
            limits=Limits(),
            session=token,
            csrf=session.csrf,
        )

    def _within(self, caller: Known, *, spends: bool) -> Known:
        """Hold the caller to its rates and budgets."""
        limits, now = caller.limits, self._clock()
        left: list[int] = []
        if spends and (limits.tokens_per_day is not None or limits.tokens_total is not None):
            used = spending.spent(self._store, caller.tenant, now=now)
            if limits.tokens_total is not None:
                left.append(limits.tokens_total - used.total)
                if left[-1] <= 0:
                    raise Denied(
                        429,
                        f"this key's {limits.tokens_total} tokens are used up; "
                        "whoever made it can make another",
                        code="insufficient_quota",
                    )
            if limits.tokens_per_day is not None:
                left.append(limits.tokens_per_day - used.today)
                if left[-1] <= 0:
                    raise Denied(
                        429,
                        f"today's {limits.tokens_per_day} tokens are used up; "
                        "the day ends at 00:00 UTC",
                        code="budget_exceeded",
                        retry_after=spending.seconds_left_today(now),
                    )
        pulse = self._pulse()
        reached = self._rates.wait(caller.tenant, limits, pulse, spends=spends)
        if reached is not None:
            what, seconds = reached
            limit = limits.requests_per_minute if what == "requests" else limits.tokens_per_minute
            raise Denied(
                429,
                f"more than {limit} {what} a minute; come back later",
                code="rate_limit_exceeded",
                retry_after=seconds,
            )
        if not left:
            return caller
        return Known(**{**vars(caller), "tokens_left": min(left)})


def cookie(scope: Scope) -> str | None:
    """The session token that a browser sent, None without one; of two none is believed."""
    name = COOKIES[scope.get("scheme") == "https"]
    found = [
        value
        for key, line in scope["headers"]
        if key == b"cookie"
        for part in line.decode("latin-1").split(";")
        for given, _, value in [part.strip().partition("=")]
        if given == name
    ]
    return found[0] if len(found) == 1 and found[0].isascii() else None


def _secret(scope: Scope) -> str | None:
    """The key that a client sent in whichever header; two that differ are none."""
    authorization, other = header(scope, b"authorization"), header(scope, b"x-api-key")
    bearer = None
    if authorization is not None:
        kind, _, rest = authorization.partition(" ")
        if kind.lower() != "bearer" or not rest.strip():
            message = "the header Authorization must be: Bearer sk-insula-…"
            raise Denied(401, message, code="invalid_api_key", headers=_CHALLENGE)
        bearer = rest.strip()
    if bearer is not None and other is not None and bearer != other:
        message = "Authorization and x-api-key name two keys; send one"
        raise Denied(401, message, code="invalid_api_key", headers=_CHALLENGE)
    return bearer if bearer is not None else other


def _of_key(key: Key) -> Known:
    return Known(
        id=key.id,
        name=key.name,
        kind="key",
        tenant=key.tenant,
        models=None if key.models is None else frozenset(key.models),
        scopes=frozenset(key.scopes),
        limits=key.limits,
    )
