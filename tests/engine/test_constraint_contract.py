"""A constrained request keeps the engine's contract: its tokens are those of the request alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.engine.engine import Engine
from insula.engine.payoff import Payoff
from insula.engine.request import Request
from insula.engine.runner import NativeRunner
from insula.engine.speculation import NGram
from insula.models.load import open_model
from insula.types import Constraint, SamplingParams

N_CTX = 256
FORMS = (
    None,
    Constraint(kind="json_object"),
    Constraint(kind="regex", text="([a-f]{3}-){1,20}"),
    Constraint(
        kind="json_schema",
        text=json.dumps(
            {"type": "array", "items": {"enum": ["one", "two", "three"]}, "minItems": 6}
        ),
    ),
)


@pytest.fixture(scope="module")
def open_engine(tiny_model: Path):
    """open_engine(n_pages, **options): an engine of its own over the tiny model."""
    with open_model(tiny_model) as model:
        runners: dict[int, NativeRunner] = {}

        def make(n_pages: int = 12, **options) -> Engine:
            if n_pages not in runners:
                runners[n_pages] = NativeRunner(model.graph, model.gguf, n_pages=n_pages, threads=2)
            return Engine(runners[n_pages], model.tokenizer, n_ctx=N_CTX, **options)

        yield make
        for runner in runners.values():
            runner.close()


@given(data=st.data())
@settings(max_examples=20)
def test_random_schedules_change_nothing(open_engine, data) -> None:
    """Batches with others, slices, prefixes, too few pages, guesses."""
    prefix = np.random.default_rng(2).integers(2, 290, 140).tolist()
    requests = []
    for _ in range(data.draw(st.integers(1, 6))):
        cut = data.draw(st.integers(1, 140))
        params = SamplingParams(
            seed=data.draw(st.integers(0, 3)),
            temperature=data.draw(st.sampled_from([0.0, 1.0])),
            max_tokens=data.draw(st.integers(1, 60)),
            logprobs=1,
            mirostat=data.draw(st.sampled_from([0, 2])),
            dry_multiplier=data.draw(st.sampled_from([0.0, 0.8])),
        )
        form = data.draw(st.sampled_from(FORMS))
        requests.append(Request(ids=tuple(prefix[:cut]), params=params, constraint=form))
    alone = [open_engine().submit(request).result() for request in requests]
    payoff = None
    if data.draw(st.booleans()):
        payoff = Payoff(NGram(shortest=1), most=4, always=True)
    engine = open_engine(
        n_pages=5,
        max_running=6,
        payoff=payoff,
        step_tokens=data.draw(st.sampled_from([8, 20, 65, 512])),
    )
    handles = []
    for request in requests:
        handles.append(engine.submit(request))
        for _ in range(data.draw(st.integers(0, 12))):
            engine.step()
    together = [handle.result() for handle in handles]
    assert [c.logprobs for c in together] == [c.logprobs for c in alone]
    assert [c.finish_reason for c in together] == [c.finish_reason for c in alone]


def test_what_gives_way_goes_on_where_it_was(open_engine) -> None:
    """Two that need all pages: one is computed again, and its grammar with it is not begun anew."""
    form = Constraint(kind="regex", text="([a-f]{3}-){30,40}")
    requests = [
        Request(
            ids=tuple(range(2, 2 + 60 + at)),
            params=SamplingParams(seed=at, max_tokens=110),
            constraint=form,
        )
        for at in range(2)
    ]
    alone = [open_engine().submit(request).result() for request in requests]
    engine = open_engine(n_pages=5)
    together = [handle.result() for handle in [engine.submit(request) for request in requests]]
    assert [c.text for c in together] == [c.text for c in alone]
    assert any("gave way" in note for c in together for note in c.report.notes)


def test_guesses_that_hold_are_taken_under_a_constraint(open_engine) -> None:
    form = Constraint(kind="regex", text="(abcabcabcabc ){8}")
    request = Request(
        ids=tuple(range(2, 30)), params=SamplingParams(seed=1, max_tokens=200), constraint=form
    )
    alone = open_engine().submit(request).result()
    assert alone.text == "abcabcabcabc " * 8
    guessing = open_engine(payoff=Payoff(NGram(), most=6, always=True)).submit(request).result()
    assert guessing.token_ids == alone.token_ids
    assert guessing.report.draft_accepted > 20


def test_an_answer_with_no_way_on_fails_alone(open_engine) -> None:
    """The bias forbids what the grammar needs: this request is told, the other goes on."""
    engine = open_engine()
    forbidden = {i: -float("inf") for i in range(2, 320)}
    bad = engine.submit(
        Request(
            ids=(5, 6),
            params=SamplingParams(max_tokens=9, logit_bias=forbidden),
            constraint=Constraint(kind="regex", text="a+b"),
        )
    )
    good = engine.submit(
        Request(
            ids=(5, 6),
            params=SamplingParams(max_tokens=9, seed=1),
            constraint=Constraint(kind="regex", text="aab"),
        )
    )
    with pytest.raises(Exception, match="no token is left"):
        bad.result()
    assert good.result().text == "aab"
