"""Pages: counted right, shared by prefix, evicted when the space is needed."""

from __future__ import annotations

import pytest

from insula.engine.kvcache import PagePool, PrefixCache

SIZE = 4


def filled(cache: PrefixCache, ids: list[int], salt: str = "") -> list[int]:
    """Put a finished sequence into the cache as the scheduler does; returns its pages."""
    node, pages = cache.root(salt), []
    for start in range(0, len(ids), SIZE):
        tokens = tuple(ids[start : start + SIZE])
        page = cache.pool.take()
        if len(tokens) == SIZE:
            node = cache.keep(node, tokens, page)
        else:
            cache.keep_tail(node, tokens, page)
        cache.pool.release(page)
        pages.append(page)
    return pages


def release(cache: PrefixCache, match) -> None:
    for page in match.pages:
        cache.pool.release(page)
    if match.tail is not None:
        cache.pool.release(match.tail)


def test_longest_common_prefix_in_pages_and_a_tail() -> None:
    cache = PrefixCache(PagePool(16), SIZE)
    pages = filled(cache, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    match = cache.match("", [1, 2, 3, 4, 5, 6, 99])
    assert match.pages == pages[:1]
    assert (match.tail, match.tail_tokens) == (pages[1], 2)
    release(cache, match)
    match = cache.match("", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    assert match.pages == pages[:2]
    assert (match.tail, match.tail_tokens) == (pages[2], 2)
    release(cache, match)
    assert cache.match("", [2, 2, 3]).tail is None


def test_another_salt_sees_nothing() -> None:
    cache = PrefixCache(PagePool(16), SIZE)
    filled(cache, [1, 2, 3, 4, 5], salt="a")
    match = cache.match("b", [1, 2, 3, 4, 5])
    assert match.pages == []
    assert match.tail is None


def test_a_fuller_page_replaces_the_one_it_continues() -> None:
    cache = PrefixCache(PagePool(16), SIZE)
    filled(cache, [1, 2, 3, 4, 5])
    filled(cache, [1, 2, 3, 4, 5, 6])
    filled(cache, [1, 2, 3, 4, 5])  # says less than what is there
    assert len(cache.pages()) == 2
    assert cache.pool.n_free == 14


def test_eviction_takes_the_least_recently_used_from_the_leaves() -> None:
    cache = PrefixCache(PagePool(8), SIZE)
    old = filled(cache, [1, 1, 1, 1, 2, 2, 2, 2])
    new = filled(cache, [3, 3, 3, 3, 4, 4, 4, 4])
    release(cache, cache.match("", [1, 1, 1, 1, 2, 2, 2, 2]))  # now the other is the older
    assert cache.evict(1) == 1
    assert set(cache.pages()) == {*old, new[0]}
    assert cache.evict(2) == 2
    assert set(cache.pages()) == {old[0]}


def test_pages_in_use_are_not_evicted() -> None:
    cache = PrefixCache(PagePool(8), SIZE)
    pages = filled(cache, [1, 1, 1, 1, 2, 2, 2, 2])
    match = cache.match("", [1, 1, 1, 1, 9])
    assert match.pages == pages[:1]
    assert cache.evict(8) == 1
    assert cache.pages() == pages[:1]
    release(cache, match)
    assert cache.evict(8) == 1
    assert cache.pool.n_free == 8


def test_a_root_that_eviction_dropped_is_found_again() -> None:
    cache = PrefixCache(PagePool(8), SIZE)
    root = cache.match("", [1, 2]).node
    assert root is not None
    cache.evict(1)
    page = cache.pool.take()
    cache.keep(root, (1, 2, 3, 4), page)
    cache.pool.release(page)
    assert cache.match("", [1, 2, 3, 4]).pages == [page]


def test_releasing_twice_is_our_own_mistake() -> None:
    pool = PagePool(2)
    page = pool.take()
    pool.release(page)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(page)
