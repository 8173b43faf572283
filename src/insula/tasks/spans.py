"""The spans of a text that may be an answer, as a tree of token ids.

A span begins and ends with a word, and runs over at most so many words of one line. The way from
the root to a node is the ids of an answer's beginning; a node with a span is one whole answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

#: A word, with what belongs to it: 1,200.5 · o'clock · well-known · $5 · 40%. Of writing without
#: spaces each sign is one.
WORD = re.compile(
    "[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
    "|[$€£]?(?:(?![\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])\\w)+"
    "(?:[-'’.,/](?:(?![\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])\\w)+)*[%°]?"
)


@dataclass(kw_only=True, eq=False)
class Node:
    """ids: from the root to here. span: (start, end) in the text, where a whole answer ends here;
    of several places the first."""

    ids: tuple[int, ...] = ()
    span: tuple[int, int] | None = None
    children: dict[int, Node] = field(default_factory=dict)


def tree(text: str, encode: Callable[[str], tuple[int, ...]], *, most_words: int) -> Node:
    """The root of all spans. encode: an answer's ids."""
    root = Node()
    seen: set[str] = set()
    words = [match.span() for match in WORD.finditer(text)]
    for first, (start, _) in enumerate(words):
        for _, end in words[first : first + most_words]:
            answer = text[start:end]
            if "\n" in answer:
                break
            if answer not in seen:
                seen.add(answer)
                _add(root, encode(answer), (start, end))
    return root


def _add(root: Node, ids: tuple[int, ...], span: tuple[int, int]) -> None:
    node = root
    for i, token in enumerate(ids):
        if token not in node.children:
            node.children[token] = Node(ids=ids[: i + 1])
        node = node.children[token]
    if node.span is None:
        node.span = span
