"""Pages of KV cache: who holds them, and which prefixes of finished work they still carry.

Owns `PagePool` (reference counts over page numbers) and `PrefixCache` (a tree of pages by their
tokens, one root per salt). It knows nothing of what is inside a page.

Invariants:
- A page is free, or has as many references as there are holders: one per sequence that reads
  or writes it, and one if the tree keeps it. Nothing is released twice (an assertion).
- A page in the tree is never written again. A sequence writes only pages that it alone holds.
- A sequence that holds a page of the tree holds all the pages above it, so a page that only the
  tree holds has no descendant in use, and every such page can be evicted, leaf by leaf.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np


class PagePool:
    """`n_pages` pages, their reference counts, and which of them the prefix tree keeps."""

    def __init__(self, n_pages: int) -> None:
        self.n_pages = n_pages
        self.refs = np.zeros(n_pages, dtype=np.int32)
        self.kept = np.zeros(n_pages, dtype=np.bool_)
        self._free = list(range(n_pages - 1, -1, -1))

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def n_evictable(self) -> int:
        """Pages that nobody but the prefix tree holds."""
        return int(np.count_nonzero(self.kept & (self.refs == 1)))

    def take(self) -> int:
        """A free page, now with one reference. The caller has made sure there is one."""
        page = self._free.pop()
        self.refs[page] = 1
        return page

    def share(self, page: int) -> None:
        assert self.refs[page] > 0, f"page {page} is free and cannot be shared"
        self.refs[page] += 1

    def release(self, page: int) -> None:
        assert self.refs[page] > 0, f"page {page} released twice"
        self.refs[page] -= 1
        if self.refs[page] == 0:
            self._free.append(page)


@dataclass(kw_only=True, eq=False)
class Node:
    """One page of the tree: `tokens` are those whose keys and values it carries, in order.

    Only a leaf may carry less than a full page. A root has no parent and carries nothing, and
    what was evicted has no page (-1). key: its name outside of memory, where it has one; saved: it
    is there.
    """

    tokens: tuple[int, ...]
    page: int
    parent: Node | None
    salt: str = ""
    used: int = 0
    key: bytes = b""
    saved: bool = False
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Match:
    """The longest cached prefix, with a reference taken on each of its pages.

    pages: full pages to share. node: the tree's node of the last of them (its root if none;
    None for a sequence that leaves nothing in the tree).
    tail: a page whose first `tail_tokens` tokens match as well, to be copied (never written).
    """

    pages: list[int]
    node: Node | None
    tail: int | None = None
    tail_tokens: int = 0


class PrefixCache:
    """Keeps what finished sequences computed, until the space is needed.

    added: new nodes, the oldest first, if somebody wants to know of them and takes them out.
    """

    def __init__(self, pool: PagePool, page_size: int) -> None:
        self.added: deque[Node] | None = None
        self.pool = pool
        self.page_size = page_size
        self._roots: dict[str, Node] = {}
        self._clock = 0

    def root(self, salt: str) -> Node:
        if salt not in self._roots:
            self._roots[salt] = Node(tokens=(), page=-1, parent=None, salt=salt)
        return self._roots[salt]

    def match(self, salt: str, ids: Sequence[int]) -> Match:
        """Find and reference the longest prefix of ids that is cached.

        The caller passes ids without the last token, so that there is one left to compute.
        """
        self._clock += 1
        node, pages, size = self.root(salt), [], self.page_size
        start = 0
        while True:
            child = node.children.get(tuple(ids[start : start + size]))
            if child is None or len(child.tokens) < size:
                break
            node = child
            node.used = self._clock
            self.pool.share(node.page)
            pages.append(node.page)
            start += size
        tail, longest = None, 0
        rest = tuple(ids[start : start + size])
        for child in node.children.values():
            n = _common_prefix(child.tokens, rest)
            if n > longest:
                tail, longest = child, n
        if tail is None:
            return Match(pages=pages, node=node)
        tail.used = self._clock
        self.pool.share(tail.page)
        return Match(pages=pages, node=node, tail=tail.page, tail_tokens=longest)

    def keep(self, parent: Node, tokens: tuple[int, ...], page: int) -> Node:
        """Put a computed page of the caller's into the tree below `parent`.

        Returns the node that now stands for these tokens. Its page may be another than the
        caller's if the same tokens were there already: the caller then moves to that one.
        The caller keeps its own reference either way.
        """
        self._clock += 1
        if parent.parent is None:  # eviction may have dropped this root while it was empty
            parent = self.root(parent.salt)
        child = parent.children.get(tokens)
        if child is None:
            for other in [c for c in parent.children.values() if _starts(tokens, c.tokens)]:
                self._remove(other)  # what it carries is carried by this page too
            child = Node(tokens=tokens, page=page, parent=parent)
            parent.children[tokens] = child
            self.pool.share(page)
            self.pool.kept[page] = True
            if self.added is not None:
                self.added.append(child)
        child.used = self._clock
        return child

    def keep_tail(self, parent: Node, tokens: tuple[int, ...], page: int) -> None:
        """As `keep`, for a page that is not full, unless another page says all of it."""
        if parent.parent is None:
            parent = self.root(parent.salt)
        if tokens and not any(_starts(c.tokens, tokens) for c in parent.children.values()):
            self.keep(parent, tokens, page)

    def evict(self, wanted: int) -> int:
        """Free up to `wanted` pages, least recently used first. Returns how many."""
        heap = [
            (node.used, node.page, node)
            for node in self._nodes()
            if not node.children and self.pool.refs[node.page] == 1
        ]
        heapq.heapify(heap)
        freed = 0
        while heap and freed < wanted:
            node = heapq.heappop(heap)[2]
            parent = node.parent
            self._remove(node)
            freed += 1
            assert parent is not None
            is_leaf = parent.parent is not None and not parent.children
            if is_leaf and self.pool.refs[parent.page] == 1:
                heapq.heappush(heap, (parent.used, parent.page, parent))
        for salt in [s for s, root in self._roots.items() if not root.children]:
            del self._roots[salt]
        return freed

    def clear(self) -> None:
        """Forget everything that no sequence is using."""
        self.evict(self.pool.n_pages)

    def pages(self) -> list[int]:
        """Every page that the tree holds."""
        return [node.page for node in self._nodes()]

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        assert not node.children
        del node.parent.children[node.tokens]
        self.pool.kept[node.page] = False
        self.pool.release(node.page)
        node.page = -1

    def _nodes(self) -> Iterator[Node]:
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())


def _starts(tokens: tuple[int, ...], prefix: tuple[int, ...]) -> bool:
    return len(prefix) <= len(tokens) and tokens[: len(prefix)] == prefix


def _common_prefix(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
