"""Renders chat templates inside a bounded child process (security/child.py).

Whether caps on operators, filters and methods could be enough was decided by the attacks on them
(tests/chat/test_bombs.py): two nested lists of 40 levels that share their parts compare, print or
serialize in 2^40 steps inside one C call, which nothing in the same interpreter can stop. So an
unknown template runs here, where the kernel stops it, and the caps in sandbox.py only make the
message better.

A request is JSON: source, variables and, to pin the clock, now (ISO 8601). The reply is the text.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json

from insula.chat import sandbox
from insula.errors import TemplateError


def encode(source: str, variables: dict[str, object], now: dt.datetime | None) -> bytes:
    """The parent's side of a request."""
    job = {"source": source, "variables": variables, "now": now and now.isoformat()}
    # Escapes would turn two lone surrogates into one character.
    return json.dumps(job, ensure_ascii=False).encode("utf-8", "surrogatepass")


def handle(request: bytes) -> bytes:
    """The child's side. Raises TemplateError, or MemoryError."""
    job = json.loads(request.decode("utf-8", "surrogatepass"))
    now = dt.datetime.fromisoformat(job["now"]) if job["now"] else None
    text = sandbox.render(job["source"], job["variables"], now=now)
    return text.encode("utf-8", "surrogatepass")


def warm() -> None:
    """Load everything that a render may load later, for then there are no files any more."""
    sandbox.render("{{ strftime_now('%c') }}{{ [1]|tojson|pprint|urlize }}", {})
    for failing in ("{% if %}", "{{ raise_exception('') }}", "{{ x.y.z }}", "{{ 1/0 }}"):
        with contextlib.suppress(TemplateError):
            sandbox.render(failing, {})
    sandbox.compiled.cache_clear()
