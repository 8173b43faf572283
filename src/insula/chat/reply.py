"""What the caller sees of a reply: reasoning, answer and calls apart, in chunks and whole.

Owns the choice of the formats for one prompt, and whether control tokens must be shown as text
because the marks of reasoning or of calls may be among them.
"""

from __future__ import annotations

import dataclasses
import hashlib

from insula.chat.reasoning import TAGS, detect, split, splitter
from insula.chat.tool_calls import CallReader, read
from insula.chat.tools import CallFormat
from insula.types import Chunk, Completion


class Reply:
    """One reply, read as it comes. `chunk` and `whole` agree on every character."""

    def __init__(self, template: str, prompt: str, *, calls: CallFormat | None = None) -> None:
        """template: the Jinja source; prompt: the rendered text that the reply follows. calls: how
        it writes calls of tools, None where it was offered none."""
        self.thinking = detect(template, prompt)
        self._splitter = splitter(self.thinking)
        self._calls = calls
        self._salt = hashlib.blake2b(
            prompt.encode(errors="surrogatepass"), digest_size=16
        ).hexdigest()
        self._reader = None if calls is None else CallReader(calls, salt=self._salt)
        self.shows_special = (
            calls is not None
            or self.thinking.style == "harmony"
            or any(tag in template for pair in TAGS for tag in pair)
        )

    def chunk(self, chunk: Chunk) -> Chunk:
        """The chunk with its reasoning and its calls taken out of its text."""
        pieces = self._splitter.push(chunk.text)
        reasoning, text = pieces
        last = chunk.finish_reason is not None
        if last:
            rest = self._splitter.flush()
            reasoning, text = reasoning + rest.reasoning, text + rest.answer
        if self._reader is None:
            return dataclasses.replace(chunk, text=text, reasoning=reasoning)
        found = self._reader.push(text)
        text, calls = found.text, found.calls
        if last:
            text += self._reader.flush().text
        whole = None if chunk.completion is None else self.whole(chunk.completion)
        return dataclasses.replace(
            chunk,
            text=text,
            reasoning=reasoning,
            tool_calls=calls,
            finish_reason=chunk.finish_reason if whole is None else whole.finish_reason,
        )

    def whole(self, completion: Completion) -> Completion:
        """The completion with its reasoning and its calls taken out of its text."""
        reasoning, text = split(completion.text, self.thinking)
        if self._calls is None:
            return dataclasses.replace(completion, text=text, reasoning=reasoning)
        found = read(self._calls, text, salt=self._salt)
        ended = completion.finish_reason
        return dataclasses.replace(
            completion,
            text=found.text,
            reasoning=reasoning,
            tool_calls=found.calls,
            finish_reason="tool_calls" if ended == "stop" and found.calls else ended,
        )
