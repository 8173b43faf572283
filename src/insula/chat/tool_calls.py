"""Telling a model's calls of tools from its text, in a finished answer and in a stream.

Owns the reading of answers that a grammar of `chat.tools` has held to a format. What is no whole
call stays text, the marks included: an answer that was cut off inside a call loses nothing.

Invariants: a stream's pieces, put together, are what `read` says of the whole; no piece holds a
part of a mark. Ids depend on the request alone.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Literal

from insula.chat.tools import CallFormat
from insula.types import ToolCall

_HEAD = re.compile(r'\{"name": "([^"\\]+)", "(?:arguments|parameters)": ')
_IDS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class Read:
    """What became certain."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class CallReader:
    """Takes an answer piece by piece."""

    def __init__(self, form: CallFormat, *, salt: str) -> None:
        """salt: what sets this answer's ids apart from those of other answers."""
        self._form = form
        self._salt = salt
        self._state: Literal["text", "calls", "talk"] = "text"
        self._held = ""  # not given out: perhaps a mark, or a call that has begun
        self._scanned = 0  # of what is held, as far as `_ObjectEnd` has read
        self._object: _ObjectEnd | None = None
        self._start = 0  # of the object
        self._given = 0

    def push(self, text: str) -> Read:
        self._held += text
        shown = ""
        if self._state == "text":
            shown = self._open()
        if self._state == "talk":
            shown, self._held = shown + self._held, ""
        calls = self._calls() if self._state == "calls" else ()
        return Read(text=shown, calls=calls)

    def flush(self) -> Read:
        """What was held back and is no call."""
        held, self._held = self._held, ""
        if self._state == "calls" and self._given:
            if (self._form.after + self._form.closing).startswith(held):
                return Read()
            held = held.removeprefix(self._form.after)
        return Read(text=held)

    def _open(self) -> str:
        """Look for the first call; the text before it that is certain."""
        form, held = self._form, self._held
        if form.by_brace:
            start = held.lstrip()
            if start.startswith(("{", form.opening)):
                self._state = "calls"
            elif not form.opening.startswith(start):
                self._state = "talk"
            return ""
        place = held.find(form.opening)
        if place >= 0:
            self._state, self._held = "calls", held[place:]
            return held[:place]
        keep = next(
            (n for n in range(len(form.opening) - 1, 0, -1) if held.endswith(form.opening[:n])), 0
        )
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def _calls(self) -> tuple[ToolCall, ...]:
        found = []
        while True:
            if self._object is None:
                brace = self._held.find("{", self._scanned)
                if brace < 0:
                    break
                self._object, self._scanned, self._start = _ObjectEnd(), brace, brace
            end = self._object.push(self._held, self._scanned)
            if end is None:
                self._scanned = len(self._held)
                break
            call = self._call(self._held[self._start : end])
            if call is None:  # no grammar held it: it is text
                self._state = "talk"
                break
            found.append(call)
            self._held, self._scanned, self._object = self._held[end:], 0, None
        return tuple(found)

    def _call(self, written: str) -> ToolCall | None:
        head = _HEAD.match(written)
        if head is None:
            return None
        name, arguments = head.group(1), written[head.end() : -1].strip()
        made = hashlib.blake2b(
            f"{self._salt}\0{self._given}\0{written}".encode(errors="surrogatepass"),
            digest_size=32,
        ).digest()
        self._given += 1
        letters = "".join(_IDS[byte % len(_IDS)] for byte in made[: self._form.id_length])
        prefix = "" if self._form.id_length < 16 else "call_"
        return ToolCall(id=prefix + letters, name=name, arguments=arguments)


class _ObjectEnd:
    """Finds where a JSON object ends, reading each character once."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def push(self, text: str, start: int) -> int | None:
        """Read from `start` on; the place behind the object's last brace, None if it goes on."""
        for at in range(start, len(text)):
            sign = text[at]
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = sign == "\\"
                self._in_string = sign != '"'
            elif sign == '"':
                self._in_string = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None


def read(form: CallFormat, text: str, *, salt: str) -> Read:
    """The text and the calls of a finished answer."""
    reader = CallReader(form, salt=salt)
    first, last = reader.push(text), reader.flush()
    return Read(text=first.text + last.text, calls=first.calls + last.calls)


def as_message(call: ToolCall) -> dict[str, Any]:
    """A call as an assistant's message carries it."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
