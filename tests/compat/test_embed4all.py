"""Embed4All before there is an embedding engine: gpt4all's checks, then a clear refusal."""

from __future__ import annotations

from typing import Any

import pytest

from insula.compat.gpt4all import Embed4All
from insula.errors import UnsupportedError


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "must not be None or empty"),
        ([], {}, "must not be None or empty"),
        ("x", {"dimensionality": 0}, "positive integer, got 0"),
        ("x", {"long_text_mode": "middle"}, "'mean' or 'truncate', got 'middle'"),
    ],
)
def test_bad_arguments_come_first(text: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Embed4All().embed(text, **options)


def test_otherwise_it_says_that_it_cannot_yet() -> None:
    with (
        Embed4All("all-MiniLM-L6-v2.gguf2.f16.gguf", n_threads=2) as embedder,
        pytest.raises(UnsupportedError, match="native backend has no embeddings") as info,
    ):
        embedder.embed("a text")
    assert info.value.backend == "native"


def test_few_dimensions_are_warned_of() -> None:
    with (
        pytest.warns(UserWarning, match="suggested minimum of 64"),
        pytest.raises(UnsupportedError),
    ):
        Embed4All().embed("a text", dimensionality=8)
