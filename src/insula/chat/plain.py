"""What people and tools wrote stays text: a control token's name in it controls nothing.

Owns the way around the template: a mark is put before such a name in the messages, goes through the
template with the text, and is taken out again; where it stood, the tokenizer is told to see text.
What the system says and what the model itself said go as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

#: Roles whose words come from people and tools.
FOREIGN = frozenset({"user", "tool", "function", "ipython"})

_AS_IT_IS = "surrogatepass"

#: Noncharacters: no text interchange has them (Unicode 16, section 23.7).
_MARKS = tuple(chr(c) for c in range(0xFDD0, 0xFDF0))


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as the model sees it. plain: byte offsets in its UTF-8 where a control
    token's name is only text."""

    text: str
    plain: tuple[int, ...] = ()

    def after(self, start: str) -> Rendered:
        """What follows `start`, with which the text begins."""
        cut = len(_bytes(start))
        return Rendered(
            text=self.text[len(start) :], plain=tuple(p - cut for p in self.plain if p >= cut)
        )


def marked(
    messages: Sequence[Mapping[str, Any]], control_texts: Callable[[bytes], list[int]]
) -> tuple[list[Mapping[str, Any]], str]:
    """The messages with a mark before each control token's name, and the mark ("": there is none
    to mark). Messages without any are the same objects."""
    out = list(messages)
    texts = [t for m in messages if m.get("role") in FOREIGN for t in _texts(m)]
    if not any(control_texts(_bytes(t)) for t in texts):
        return out, ""
    everything = json.dumps(out, ensure_ascii=False, default=str)
    mark = next((c for c in _MARKS if c not in everything), "")
    if not mark:  # somebody sent all of them: then none of them is text either
        mark = _MARKS[0]

    def put(text: str) -> str:
        data = _bytes(text.replace(mark, ""))
        starts = [0, *control_texts(data), len(data)]
        return mark.join(data[a:b].decode(errors=_AS_IT_IS) for a, b in pairwise(starts))

    for i, message in enumerate(messages):
        if message.get("role") in FOREIGN and _texts(message):
            content = message["content"]
            parts = put(content) if isinstance(content, str) else [
                {**p, "text": put(p["text"])} if _is_text(p) else p for p in content
            ]  # fmt: skip
            out[i] = {**message, "content": parts}
    return out, mark


def unmarked(text: str, mark: str) -> Rendered:
    """The rendered text without its marks, and where they stood."""
    if not mark:
        return Rendered(text=text)
    pieces = text.split(mark)
    plain, at = [], 0
    for piece in pieces[:-1]:
        at += len(_bytes(piece))
        plain.append(at)
    return Rendered(text="".join(pieces), plain=tuple(plain))


def _texts(message: Mapping[str, Any]) -> list[str]:
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    return [p["text"] for p in content if _is_text(p)] if isinstance(content, list) else []


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)


def _bytes(text: str) -> bytes:
    # A lone surrogate is refused where the prompt is encoded; here it must come through.
    return text.encode(errors=_AS_IT_IS)
