"""HTTP to a server that speaks OpenAI's routes: one client, and what can go wrong said plainly.

Owns the address ("remote:http://host:8000/v1#model"), the client, and the reading of event
streams. Refuses redirects (a key must not follow one), addresses with a key in them, and answers
that are not what the route promises. The key appears in no error and no representation; what a
server says is cut and cleared of it.

Formats: OpenAI's API reference (platform.openai.com/docs/api-reference); events: WHATWG HTML,
9.2 (server-sent events).
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from insula.config import settings
from insula.errors import ConfigError, RemoteError, UnsupportedError

if TYPE_CHECKING:
    import httpx2

SCHEME = "remote:"
CONNECT_SECONDS = 10.0
#: How long a server may say nothing: a long prompt on a slow machine takes minutes.
SILENT_SECONDS = 300.0
#: Bytes of one event or document; a server that sends more is broken or hostile.
MAX_BYTES = 16 << 20
SHOWN = 300


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the server is. model: None where the server's only one is meant."""

    base: str
    model: str | None

    @property
    def local(self) -> bool:
        """Whether it is this machine."""
        host = urlsplit(self.base).hostname or ""
        with suppress(ValueError):
            return ipaddress.ip_address(host).is_loopback
        return host == "localhost"


def parse_address(name: str) -> Address:
    """From "remote:http://host:port/v1#model". Raises ConfigError that never shows a password."""
    example = "remote:http://127.0.0.1:8000/v1#model"
    url = name.removeprefix(SCHEME)
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise ConfigError(
            f"remote: what follows is no http or https address; allowed is one such as {example}"
        )
    if parts.username is not None or parts.password is not None or parts.query:
        raise ConfigError(
            "remote: the address has a user, a password or a query in it; give the key as "
            f"api_key= or INSULA_REMOTE_API_KEY, and an address such as {example}"
        )
    base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    return Address(base=base, model=parts.fragment or None)


class RemoteServer:
    """A client of one server. Thread-safe. Close it."""

    def __init__(
        self,
        address: Address,
        *,
        api_key: str | None,
        timeout: float = SILENT_SECONDS,
        connections: int = 16,
    ) -> None:
        """Raises ConfigError (proxy settings, a key that no header can hold), UnsupportedError
        (offline)."""
        import httpx2

        if settings().offline and not address.local:
            raise UnsupportedError(
                "the remote backend is off: INSULA_OFFLINE or HF_HUB_OFFLINE is set, and "
                f"{address.base} is another machine",
                backend="remote",
            )
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError("api_key: has characters that no header can hold; allowed is ASCII")
        self.address = address
        self._key = api_key
        headers = {"User-Agent": "insula", "Accept-Encoding": "identity"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        try:
            self._client = httpx2.Client(
                follow_redirects=False,
                trust_env=not address.local,  # a proxy has no part in talking to this machine
                timeout=httpx2.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout), pool=None),
                limits=httpx2.Limits(max_connections=connections),
                headers=headers,
            )
        except (ValueError, httpx2.InvalidURL, ImportError):
            raise ConfigError("a proxy setting (HTTP_PROXY, ALL_PROXY) is no address") from None

    def close(self) -> None:
        """Let go of the connections. Twice is harmless."""
        self._client.close()

    def get(self, route: str) -> Any:
        """A JSON document. Raises RemoteError."""
        with self._failures(), self._client.stream("GET", self._url(route)) as response:
            self._check(response, route)
            return self._json(_whole(response), route)

    def events(
        self,
        route: str,
        body: Mapping[str, Any],
        *,
        opened: Callable[[Callable[[], None]], None],
    ) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer, to [DONE] or the stream's end.

        opened: called once the server has begun to answer, with a function that breaks the
        connection, whoever is reading it. Raises RemoteError.
        """
        with (
            self._failures(),
            self._client.stream("POST", self._url(route), json=dict(body)) as response,
        ):
            self._check(response, route)
            kind = response.headers.get("Content-Type", "")
            if not kind.startswith("text/event-stream"):
                raise RemoteError(
                    f"{self.address.base}/{route} answered with {kind[:60]!r} where an event "
                    "stream was asked for; is it an OpenAI-compatible server?"
                )
            opened(lambda: _break(response))
            for data in _events(response):
                if data == b"[DONE]":
                    return
                event = self._json(data, route)
                if not isinstance(event, dict):
                    raise self._not_promised(route, data)
                if event.get("error"):
                    raise RemoteError(f"the server ended the answer: {self._said(event)}")
                yield event

    def _url(self, route: str) -> str:
        return f"{self.address.base}/{route}"

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """What the client raises, in our words; nothing of it is kept, since requests have keys."""
        import httpx2

        base = self.address.base
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise RemoteError(
                f"nothing answers at {base} ({self.clean(str(error))}); is the server running?",
                retryable=True,
            ) from None
        except httpx2.TimeoutException:
            raise RemoteError(
                f"{base} said nothing for {self._client.timeout.read:g} seconds; a larger timeout= "
                "waits longer",
                retryable=True,
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise RemoteError(
                f"the connection to {base} died: {self.clean(str(error)) or type(error).__name__}",
                retryable=True,
            ) from None

    def _check(self, response: httpx2.Response, route: str) -> None:
        """Raise RemoteError for anything but success."""
        status = response.status_code
        if status == 200:
            return
        url = f"{self.address.base}/{route}"
        if 300 <= status < 400:
            raise RemoteError(
                f"{url} redirects elsewhere, which is not followed; give the final address",
                status=status,
            )
        try:
            said = self._said(json.loads(_whole(response)))
        except (ValueError, RecursionError):
            said = ""
        because = f": {said}" if said else ""
        if status in (401, 403):
            key = "the key" if self._key else "a request without a key (api_key=)"
            raise RemoteError(f"{self.address.base} refused {key}{because}", status=status)
        if status == 404:
            raise RemoteError(
                f"{url} is not there, or the model {self.address.model!r} is not{because}",
                status=status,
            )
        if status == 429 or status >= 500:
            wait = _seconds(response.headers.get("Retry-After"))
            after = "" if wait is None else f"; it asks to wait {wait:g} s"
            busy = "is busy" if status in (429, 503) else "failed"
            raise RemoteError(
                f"{self.address.base} {busy} ({status}){because}{after}",
                status=status,
                retry_after=wait,
                retryable=True,
            )
        raise RemoteError(
            f"{self.address.base} refused the request ({status}){because}", status=status
        )

    def _json(self, data: bytes, route: str) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise self._not_promised(route, data) from None

    def _not_promised(self, route: str, data: bytes) -> RemoteError:
        found = self.clean(data[:80].decode(errors="replace"))
        return RemoteError(
            f"{self.address.base}/{route} answered {found!r}, which is not the JSON that the route "
            "promises; is it an OpenAI-compatible server?"
        )

    def _said(self, answer: Any) -> str:
        """The message in an error's JSON, in any of the usual places."""
        error = answer.get("error", answer) if isinstance(answer, dict) else answer
        if isinstance(error, dict):
            error = error.get("message") or error.get("detail") or error
        return self.clean(error if isinstance(error, str) else json.dumps(error))

    def clean(self, text: str) -> str:
        """What a server said, fit for a message: short, on one line, without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        return "".join(c if c.isprintable() else " " for c in text)[:SHOWN].strip()


def _whole(response: httpx2.Response) -> bytes:
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if len(body) > MAX_BYTES:
            raise RemoteError(f"the server's answer is longer than {MAX_BYTES >> 20} MiB")
    return bytes(body)


def _events(response: httpx2.Response) -> Iterator[bytes]:
    """The data of each event. Comments (": ping") and other fields are passed over."""
    rest = bytearray()
    data: list[bytes] = []
    held = 0  # bytes of an event's lines so far
    for piece in response.iter_raw():
        rest += piece
        if len(rest) + held > MAX_BYTES:
            raise RemoteError(f"the server sent an event longer than {MAX_BYTES >> 20} MiB")
        *lines, last = bytes(rest).split(b"\n")
        rest = bytearray(last)
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
                held += len(line)
            elif not line and data:
                yield b"\n".join(data)
                data, held = [], 0
    if data:
        yield b"\n".join(data)


def _break(response: httpx2.Response) -> None:
    """End a read in another thread: closing the file would leave that thread waiting."""
    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream is not None else None
    if connection is not None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _seconds(value: str | None) -> float | None:
    """Retry-After as seconds; a date is not read."""
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None
