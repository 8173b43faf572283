"""What the caller sees of a reply: the reasoning apart from the answer, in chunks and whole.

Owns the choice of the format for one prompt, and whether control tokens must be shown as text
because the marks of the reasoning may be among them.
"""

from __future__ import annotations

import dataclasses

from insula.chat.reasoning import TAGS, detect, split, splitter
from insula.types import Chunk, Completion


class Reply:
    """One reply, read as it comes. `chunk` and `whole` agree on every character."""

    def __init__(self, template: str, prompt: str) -> None:
        """template: the Jinja source; prompt: the rendered text that the reply follows."""
        self._format = detect(template, prompt)
        self._splitter = splitter(self._format)
        self.shows_special = self._format.style == "harmony" or any(
            tag in template for pair in TAGS for tag in pair
        )

    def chunk(self, chunk: Chunk) -> Chunk:
        """The chunk with its reasoning taken out of its text."""
        pieces = self._splitter.push(chunk.text)
        reasoning, text = pieces
        if chunk.finish_reason is not None:
            rest = self._splitter.flush()
            reasoning, text = reasoning + rest.reasoning, text + rest.answer
        return dataclasses.replace(chunk, text=text, reasoning=reasoning)

    def whole(self, completion: Completion) -> Completion:
        """The completion with its reasoning taken out of its text."""
        reasoning, text = split(completion.text, self._format)
        return dataclasses.replace(completion, text=text, reasoning=reasoning)
