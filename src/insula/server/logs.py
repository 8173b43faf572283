"""The server's log lines: JSON for programs or text for people, on standard error, without prompts.

Owns what may be in a line: a fixed sentence of ours (`event`), the fields of FIELDS, and of an
exception its type and where it was raised, never its message, which may quote what a client sent.
Other fields are left out and named. Lines of libraries (uvicorn's) have their arguments filled in
and are cut; its access lines, which quote paths, are off.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, TextIO

import structlog

FIELDS = frozenset(
    {
        *("event", "level", "logger", "timestamp", "error", "where", "left_out"),
        *("request", "method", "route", "status", "code", "ms", "model", "engine", "isa"),
        *("prompt_tokens", "completion_tokens", "cached_tokens", "queue_ms", "caller", "address"),
        *("host", "port", "tls", "version", "path", "reason", "count", "bytes", "seconds"),
    }
)
LONGEST = 500
_QUIET = ("uvicorn.access", "uvicorn.error", "httpx", "httpx2", "asyncio")

_Event = MutableMapping[str, Any]


def set_up(*, form: str = "json", level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logging of this process to `stream` (standard error) in one form.

    For a program that owns its process, once, at its start.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else _plain
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            _without_messages,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _only_known,
            renderer,
        ],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def get(name: str) -> structlog.stdlib.BoundLogger:
    """A logger: `log.info("model loaded", model=name, seconds=2.1)`."""
    found: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return found


def _without_messages(logger: Any, method: str, event: _Event) -> Mapping[str, Any]:
    """An exception as its type and place. Before structlog could format it whole."""
    record: logging.LogRecord | None = event.get("_record")
    found = event.pop("exc_info", None) or (record.exc_info if record is not None else None)
    if record is not None:
        record.exc_info = record.exc_text = record.stack_info = None
    event.pop("stack_info", None)
    error = found[1] if isinstance(found, tuple) else found
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        event["where"] = " ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames)
    return event


def _only_known(logger: Any, method: str, event: _Event) -> Mapping[str, Any]:
    left_out = sorted(event.keys() - FIELDS)
    kept = {
        key: value[:LONGEST] if isinstance(value, str) else value
        for key, value in event.items()
        if key in FIELDS
    }
    if left_out:
        kept["left_out"] = left_out
    return kept


def _plain(logger: Any, method: str, event: _Event) -> str:
    told = " ".join(
        f"{key}={value}"
        for key, value in event.items()
        if key not in ("event", "level", "timestamp", "logger")
    )
    line = f"{event['timestamp']} {event['level']:7} {event['event']} {told}".rstrip()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
