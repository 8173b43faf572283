"""Requests that survive a bad network, and a token that goes to one place only.

Owns redirects (followed by hand: the token stays with the origin it was meant for, and https
never falls back to http), retries (bounded, with backoff, honouring Retry-After), and the
translation of what can go wrong into the error tree. Proxies come from the environment
(HTTPS_PROXY, NO_PROXY …); INSULA_OFFLINE or HF_HUB_OFFLINE set to 1 forbids all of it.
"""

from __future__ import annotations

import email.utils
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urljoin, urlsplit

from insula.config import settings
from insula.errors import ConfigError, DownloadError, NotFoundError, OfflineError
from insula.locale import text

if TYPE_CHECKING:
    import httpx2

MAX_REDIRECTS = 8
MAX_DOCUMENT = 32 << 20


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What a progress display needs. `done` and `total` in bytes; total None while unknown."""

    phase: Literal["connect", "check", "download", "retry", "wait", "unpack", "done"]
    name: str
    done: int = 0
    total: int | None = None
    note: str = ""


Progress = Callable[[Transfer], None]


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often and how long. Seconds; `attempts` counts those in a row without progress."""

    attempts: int = 6
    first: float = 0.5
    longest: float = 30.0
    longest_retry_after: float = 120.0
    connect_timeout: float = 10.0
    read_timeout: float = 30.0

    def pause(self, failures: int, error: DownloadError) -> float:
        """Seconds before the next attempt; raises `error` if there is to be none."""
        # Where nothing answers at all, a person waits for the message: two more tries.
        allowed = min(self.attempts, 3) if isinstance(error, OfflineError) else self.attempts
        if not error.retryable or failures >= allowed:
            raise error
        asked = getattr(error, "retry_after", None)
        if asked is not None:
            if asked > self.longest_retry_after:
                raise error
            return float(asked)
        backoff = min(self.longest, self.first * 2.0 ** (failures - 1))
        return backoff * random.uniform(0.75, 1.25)  # so that many clients do not come at once


class BusyError(DownloadError):
    """The server asked to come back later; `retry_after` in seconds, None if it did not say."""

    def __init__(self, message: str, *, retry_after: float | None) -> None:
        super().__init__(message, retryable=True)
        self.retry_after = retry_after


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number or a date (RFC 9110, 10.2.3)."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _origin(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for what is no address."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    return parts.scheme, (parts.hostname or "").lower(), port


def shown(url: str) -> str:
    """`url` without credentials and query, which may carry a signature: fit for a message."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


class Transport:
    """One client for a series of requests. Use as a context manager."""

    def __init__(
        self,
        *,
        retry: Retry | None = None,
        token: str | None = None,
        token_for: str = "",
        takes_token: bool = True,
    ) -> None:
        """`token` is sent as a bearer to the origin of the address `token_for` and no other.

        takes_token: whether HF_TOKEN may help where a login is wanted, which a refusal then says.
        """
        self._takes_token = takes_token
        self.retry = retry or Retry()
        self._token = token
        self._token_origin = _origin(token_for) if token and token_for else None
        self._client: httpx2.Client | None = None
        self._connecting = threading.Lock()

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connect(self) -> httpx2.Client:
        if settings().offline:
            refusal = OfflineError(text("hub.offline_set"))
            refusal.retryable = False
            raise refusal
        with self._connecting:  # several threads may fetch parts of one file
            if self._client is None:
                self._client = self._new_client()
            return self._client

    def _new_client(self) -> httpx2.Client:
        import httpx2

        retry = self.retry
        try:
            return httpx2.Client(
                follow_redirects=False,
                timeout=httpx2.Timeout(retry.read_timeout, connect=retry.connect_timeout),
                headers={"User-Agent": "insula", "Accept-Encoding": "identity"},
            )
        except (ValueError, httpx2.InvalidURL, ImportError) as error:
            # A proxy setting that is no address, or a SOCKS one without the package for it.
            raise ConfigError(text("hub.bad_proxy", reason=error)) from error

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx2.Response]:
        """GET `url`, one attempt; yields a 2xx or 416 response whose body is not read yet.

        Raises ConfigError, NotFoundError, OfflineError, BusyError or DownloadError.
        """
        client = self._connect()
        import httpx2

        try:
            response = self._follow(client, url, dict(headers or {}))
            try:
                _check(response, takes_token=self._takes_token)
                yield response
            finally:
                response.close()
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
            raise ConfigError(text("hub.bad_address", url=shown(url))) from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise OfflineError(
                text("hub.no_answer", host=urlsplit(url).hostname, reason=error)
            ) from error
        except httpx2.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise DownloadError(
                text("hub.connection_died", host=urlsplit(url).hostname, reason=reason),
                retryable=True,
            ) from error

    def _follow(self, client: httpx2.Client, url: str, headers: dict[str, str]) -> httpx2.Response:
        for _ in range(MAX_REDIRECTS):
            sent = dict(headers)
            if self._token_origin is not None and _origin(url) == self._token_origin:
                sent["Authorization"] = f"Bearer {self._token}"
            response = client.send(client.build_request("GET", url, headers=sent), stream=True)
            if response.status_code not in (301, 302, 303, 307, 308):
                return response
            location = response.headers.get("Location", "")
            response.close()
            target = urljoin(url, location)
            scheme = urlsplit(target).scheme
            if not location or scheme not in ("http", "https"):
                raise DownloadError(text("hub.bad_redirect", url=shown(url), target=location[:200]))
            if scheme == "http" and urlsplit(url).scheme == "https":
                raise DownloadError(text("hub.insecure_redirect", url=shown(url)))
            url = target
        raise DownloadError(text("hub.too_many_redirects", url=shown(url)))

    def document(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        progress: Progress | None = None,
    ) -> tuple[bytes, httpx2.Response]:
        """GET a small document, with retries. At most MAX_DOCUMENT bytes."""
        failures = 0
        while True:
            try:
                with self.open(url, headers) as response:
                    body = bytearray()
                    for piece in response.iter_bytes():
                        body += piece
                        if len(body) > MAX_DOCUMENT:
                            raise DownloadError(text("hub.document_too_large", url=shown(url)))
                    return bytes(body), response
            except DownloadError as error:
                failures += 1
                self.wait(failures, error, shown(url), progress)

    def json(self, url: str, *, progress: Progress | None = None) -> tuple[Any, httpx2.Response]:
        """GET a JSON document, with retries."""
        body, response = self.document(url, {"Accept": "application/json"}, progress=progress)
        try:
            return json.loads(body), response
        except (ValueError, RecursionError):
            raise DownloadError(text("hub.not_json", url=shown(url))) from None

    def wait(
        self, failures: int, error: DownloadError, name: str, progress: Progress | None
    ) -> None:
        """Sleep before the next attempt, or raise `error`."""
        pause = self.retry.pause(failures, error)
        if progress is not None:
            note = text("hub.retrying", reason=error, seconds=f"{pause:.1f}")
            progress(Transfer(phase="retry", name=name, note=note))
        time.sleep(pause)


def _check(response: httpx2.Response, *, takes_token: bool) -> None:
    status = response.status_code
    if 200 <= status < 300 or status == 416:
        return
    url = shown(str(response.url))
    if status in (401, 403) and not takes_token:
        raise DownloadError(text("hub.status_closed", url=url, status=status))
    if status in (404, 410) and not takes_token:
        raise NotFoundError(text("hub.status_gone", url=url, status=status))
    if status == 401:
        raise DownloadError(text("hub.status_401", url=url))
    if status == 403:
        raise DownloadError(text("hub.status_403", url=url))
    if status in (404, 410):
        raise NotFoundError(text("hub.status_404", url=url))
    if status == 429 or status >= 500 or status == 408:
        pause = _retry_after(response.headers.get("Retry-After"))
        raise BusyError(text("hub.status_busy", url=url, status=status), retry_after=pause)
    raise DownloadError(text("hub.status_other", url=url, status=status))
