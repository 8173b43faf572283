"""The context's size: asked for, or chosen for the memory there is, and said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.engine.context import OVERHEAD, PAGE_TOKENS, ContextPlan, plan_context
from insula.errors import ConfigError, ResourceError


def plan(**changes) -> ContextPlan:
    given_: dict = {
        "n_ctx": None,
        "n_ctx_train": 8192,
        "bytes_per_token": 1000,
        "kv_memory": None,
        "available": 8 << 30,
    }
    return plan_context(**{**given_, **changes})


def test_all_of_a_small_models_context_and_as_much_again_for_others() -> None:
    found = plan()
    assert found.n_ctx == 8192
    assert found.n_pages == 2 * (8192 // PAGE_TOKENS + 1)
    assert found.kv_bytes == found.n_pages * PAGE_TOKENS * 1000
    assert found.notes == ()


def test_a_long_trained_context_is_cut_to_the_budget_and_said() -> None:
    found = plan(n_ctx_train=131072, bytes_per_token=131072)
    assert found.n_ctx == 8192 - PAGE_TOKENS
    assert found.kv_bytes <= 1 << 30
    assert "8128 tokens, chosen for 1.0 GiB" in found.notes[0]
    assert "131072" in found.notes[0]


def test_little_memory_makes_a_small_context() -> None:
    found = plan(available=OVERHEAD + (64 << 20), bytes_per_token=100_000)
    assert found.n_ctx == 64
    with pytest.raises(ResourceError, match="kv_memory"):
        plan(available=OVERHEAD + (16 << 20), bytes_per_token=100_000)


def test_what_the_weights_take_is_not_there_for_the_context() -> None:
    much = plan(n_ctx_train=131072, available=OVERHEAD + (1 << 30))
    less = plan(n_ctx_train=131072, available=OVERHEAD + (1 << 30), weights=1 << 29)
    assert less.kv_bytes <= (1 << 29) // 4 < much.kv_bytes <= (1 << 30) // 4
    with pytest.raises(ResourceError, match=r"needs 4\.0 GiB for its weights.*and 4\.0 GiB"):
        plan(available=4 << 30, weights=4 << 30)


def test_a_model_that_cannot_fit_is_refused_before_it_is_packed(tiny_model, monkeypatch) -> None:
    from insula.engine import load
    from insula.engine.load import Options

    monkeypatch.setattr(load, "_runner", None)  # would be called
    with pytest.raises(ResourceError, match="for its weights"):
        load.load(tiny_model, name="tiny", options=Options(available=OVERHEAD))


def test_what_was_asked_for_is_given_or_refused_with_numbers() -> None:
    assert plan(n_ctx=100).n_ctx == 100
    assert "trained for 8192" in plan(n_ctx=10_000).notes[0]
    with pytest.raises(ResourceError, match=r"a context of 100000 tokens needs 95\.5 MiB"):
        plan(n_ctx=100_000, available=OVERHEAD + 10_000_000)
    with pytest.raises(ConfigError, match=r"kv_memory: 976\.6 KiB hold 896 tokens"):
        plan(n_ctx=1000, kv_memory=1_000_000)
    for wrong in (0, -1, 1 << 40, True):
        with pytest.raises(ConfigError, match="n_ctx"):
            plan(n_ctx=wrong)


@given(
    n_ctx=st.none() | st.integers(1, 1 << 20),
    n_ctx_train=st.integers(1, 1 << 20),
    bytes_per_token=st.integers(1, 1 << 20),
    kv_memory=st.none() | st.integers(1, 1 << 36),
    available=st.none() | st.integers(0, 1 << 38),
)
def test_a_plan_always_holds_its_context(
    n_ctx, n_ctx_train, bytes_per_token, kv_memory, available
) -> None:
    try:
        found = plan_context(
            n_ctx=n_ctx,
            n_ctx_train=n_ctx_train,
            bytes_per_token=bytes_per_token,
            kv_memory=kv_memory,
            available=available,
        )
    except (ConfigError, ResourceError):
        return
    assert 1 <= found.n_ctx <= (n_ctx or n_ctx_train)
    assert found.n_ctx == (n_ctx or found.n_ctx)
    assert found.n_pages * PAGE_TOKENS > found.n_ctx
    if kv_memory is not None:
        assert found.kv_bytes <= kv_memory
    if available is not None:
        assert found.kv_bytes <= available
