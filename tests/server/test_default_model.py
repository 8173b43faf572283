"""A model that says something, through the server."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import openai
import pytest

from default_model import WHERE_TO_GET_IT, find_default_model
from insula import LLM
from insula.server.options import ServeOptions

from .conftest import Running, start, stop

MESSAGES = [{"role": "user", "content": "What is the capital of France? One word."}]


@pytest.fixture(scope="module")
def real(home) -> Iterator[Running]:
    path = find_default_model()
    if path is None:
        pytest.skip(WHERE_TO_GET_IT)
    running = start(ServeOptions(models=(str(path),), only=True, load={"n_ctx": 2048}))
    yield running
    stop(running)


def test_it_answers_as_the_engine_does(real):
    path = find_default_model()
    with (
        LLM(path, n_ctx=2048) as llm,
        openai.OpenAI(base_url=f"{real.url}/v1", api_key="none") as client,
    ):
        own = llm.chat(MESSAGES, temperature=0, max_tokens=8)
        said = client.chat.completions.create(
            model=path.stem, messages=MESSAGES, temperature=0, max_tokens=8
        )
        assert said.choices[0].message.content == own.text
        assert "Paris" in own.text


def test_a_task_as_lm_eval_scores_it(real):
    """The likelihood of two continuations, summed as its local-completions does."""
    model = find_default_model().stem
    question = real.http.post("/tokenize", json={"prompt": "The capital of France is"}).json()
    batch, starts = [], []
    for word in (" Paris", " banana"):
        more = real.http.post("/tokenize", json={"prompt": word, "add_special_tokens": False})
        batch.append([*question["tokens"], *more.json()["tokens"]])
        starts.append(len(question["tokens"]))
    asked = {"model": model, "prompt": batch, "temperature": 0, "max_tokens": 1, "logprobs": 1}
    answer = real.http.post("/v1/completions", json={**asked, "echo": True, "seed": 1234}).json()
    scores = [
        sum(choice["logprobs"]["token_logprobs"][start:-1])
        for choice, start in zip(answer["choices"], starts, strict=True)
    ]
    assert scores[0] > scores[1] + math.log(100)
    assert json.dumps(answer, allow_nan=False)
