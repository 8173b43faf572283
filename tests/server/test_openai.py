"""OpenAI's own client against the server: what it gets is what the engine says."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest

from insula import LLM

MESSAGES = [{"role": "user", "content": "the cat sat on the mat"}]


@pytest.fixture
def client(served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def llm(files: dict[str, Path]) -> Iterator[LLM]:
    with LLM(files["tiny"]) as loaded:
        yield loaded


def test_models(client, files):
    assert [model.id for model in client.models.list()][: len(files)] == list(files)
    assert client.models.retrieve("tiny").owned_by == "insula"
    with pytest.raises(openai.NotFoundError, match="'nobody' not found"):
        client.models.retrieve("nobody")


def test_a_chat_is_what_the_engine_says(client, llm):
    whole = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=12, temperature=0
    )
    own = llm.chat(MESSAGES, max_tokens=12, temperature=0)
    choice = whole.choices[0]
    assert choice.message.content == own.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == own.finish_reason == "length"
    assert whole.usage.prompt_tokens == own.report.prompt_tokens
    assert whole.usage.completion_tokens == 12
    assert whole.usage.total_tokens == own.report.prompt_tokens + 12


def test_a_streamed_chat_is_the_whole_one_in_pieces(client):
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "seed": 5}
    whole = client.chat.completions.create(**asked)
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0  # the first time left it there


def test_without_being_asked_a_stream_says_nothing_of_usage(client):
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=2, stream=True
    )
    assert all(chunk.choices and "usage" not in chunk.model_fields_set for chunk in stream)


def test_n_samples_have_the_seeds_that_follow(client, llm):
    several = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=8, n=3, seed=7, temperature=1
    )
    own = [llm.chat(MESSAGES, max_tokens=8, seed=seed, temperature=1).text for seed in (7, 8, 9)]
    assert [choice.message.content for choice in several.choices] == own
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert several.usage.completion_tokens == 24
    assert several.usage.prompt_tokens == llm.count_chat(MESSAGES)


def test_n_streamed(client):
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "n": 3, "seed": 7}
    whole = client.chat.completions.create(**asked)
    said = ["", "", ""]
    ends = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        said[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert said == [choice.message.content for choice in whole.choices]
    assert sorted(ends) == [0, 1, 2]


def test_negative_seeds_are_seeds(client):
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8}
    first, again, other = (
        client.chat.completions.create(**asked, seed=seed).choices[0].message.content
        for seed in (-1, -1, -2)
    )
    assert first == again != other


def test_logprobs_of_a_chat(client, llm):
    chat = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    own = llm.chat(MESSAGES, max_tokens=4, temperature=0, logprobs=3)
    found = chat.choices[0].logprobs.content
    assert [entry.logprob for entry in found] == [entry.logprob for entry in own.logprobs]
    assert [bytes(entry.bytes) for entry in found] == [entry.token for entry in own.logprobs]
    for entry, mine in zip(found, own.logprobs, strict=True):
        assert [top.logprob for top in entry.top_logprobs] == [p for _, _, p in mine.top]
        assert len(entry.top_logprobs) == 3
    streamed = [
        entry
        for chunk in client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=4,
            temperature=0,
            logprobs=True,
            top_logprobs=3,
            stream=True,
        )
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == found


def test_stop_bias_and_penalties_reach_the_sampler(client, llm):
    ids = llm.chat(MESSAGES, max_tokens=1, temperature=0).token_ids
    banned = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=1, temperature=0, logit_bias={ids[0]: -100}
    )
    own = llm.chat(MESSAGES, max_tokens=1, temperature=0, logit_bias={ids[0]: -100})
    assert banned.choices[0].message.content == own.text
    asked = {"max_tokens": 16, "seed": 3, "frequency_penalty": 1.5, "presence_penalty": 0.5}
    extra = {"top_k": 5, "min_p": 0.1, "repeat_penalty": 1.3, "repeat_last_n": 8, "typical_p": 0.9}
    one = client.chat.completions.create(model="tiny", messages=MESSAGES, **asked, extra_body=extra)
    assert one.choices[0].message.content == llm.chat(MESSAGES, **asked, **extra).text
    text = llm.chat(MESSAGES, max_tokens=16, seed=3).text
    stopped = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=16, seed=3, stop=text[3:5]
    )
    assert stopped.choices[0].message.content == text[: text.index(text[3:5])]
    assert stopped.choices[0].finish_reason == "stop"


def test_completions_of_texts_and_ids(client, llm):
    prompts = ["the cat", "a dog"]
    many = client.completions.create(
        model="tiny", prompt=prompts, max_tokens=6, n=2, seed=1, temperature=1
    )
    own = [
        llm.generate(prompt, max_tokens=6, seed=seed, temperature=1).text
        for prompt in prompts
        for seed in (1, 2)
    ]
    assert [choice.text for choice in many.choices] == own
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    ids = [llm.tokenize(prompt) for prompt in prompts]
    assert many.usage.prompt_tokens == sum(map(len, ids))
    same = client.completions.create(
        model="tiny", prompt=ids, max_tokens=6, n=2, seed=1, temperature=1
    )
    assert [choice.text for choice in same.choices] == own


def test_completions_streamed_with_echo(client):
    asked = {"model": "tiny", "prompt": "the cat", "max_tokens": 6, "seed": 2, "echo": True}
    whole = client.completions.create(**asked)
    assert whole.choices[0].text.startswith("the cat")
    pieces = list(client.completions.create(**asked, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert pieces[-1].choices[0].finish_reason == "length"


def test_the_prompts_own_log_probabilities(client, llm):
    """As lm-eval's local-completions reads them: prompt + 1 entries, the first one empty, and
    greedy tokens whose number is the largest of their column exactly."""
    ids = llm.tokenize("the cat sat on the mat")
    greedy = llm.generate(ids, max_tokens=3, temperature=0).token_ids
    batch = [[*ids, *greedy], ids]
    answer = client.completions.create(
        model="tiny", prompt=batch, max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1234
    )
    for choice, prompt in zip(answer.choices, batch, strict=True):
        table = choice.logprobs
        assert len(table.token_logprobs) == len(prompt) + 1
        assert table.token_logprobs[0] is None
        assert table.top_logprobs[0] is None
        logits = llm.logits(prompt).astype(np.float64)
        for at, token in enumerate(prompt[1:]):
            row = logits[at]
            exact = row[token] - row.max() - math.log(np.exp(row - row.max()).sum())
            assert table.token_logprobs[at + 1] == pytest.approx(exact, abs=1e-5)
            is_greedy = table.token_logprobs[at + 1] == max(table.top_logprobs[at + 1].values())
            assert is_greedy == (int(row.argmax()) == token)
        assert "".join(table.tokens[: len(prompt)]) == choice.text[: table.text_offset[len(prompt)]]
    continuation = answer.choices[0].logprobs
    start = len(ids)
    assert all(
        p == max(top.values())
        for p, top in zip(
            continuation.token_logprobs[start:-1], continuation.top_logprobs[start:-1], strict=True
        )
    )


def test_a_prompt_that_is_scored_and_nothing_more(client):
    answer = client.completions.create(
        model="tiny", prompt=[5, 6, 7], max_tokens=0, logprobs=2, echo=True
    )
    assert len(answer.choices[0].logprobs.tokens) == 3
    assert answer.usage.completion_tokens == 0


def test_embeddings_in_both_forms(client, served, files):
    texts = ["the cat sat", "a dog ran", "the sun is hot"]
    with LLM(files["encoder"]) as encoder:
        own = encoder.embed(texts).vectors
        ids = encoder.tokenize(texts[0])
    found = client.embeddings.create(model="encoder", input=texts)  # base64, the client's choice
    assert np.array_equal(np.array([d.embedding for d in found.data], np.float32), own)
    plain = client.embeddings.create(model="encoder", input=texts, encoding_format="float")
    assert np.array_equal(np.array([d.embedding for d in plain.data], np.float32), own)
    raw = served.http.post(
        "/v1/embeddings", json={"model": "encoder", "input": texts, "encoding_format": "base64"}
    ).json()
    assert np.array_equal(
        np.frombuffer(base64.b64decode(raw["data"][1]["embedding"]), "<f4"), own[1]
    )
    of_ids = client.embeddings.create(model="encoder", input=ids)
    assert np.array_equal(np.array(of_ids.data[0].embedding, np.float32), own[0])
    assert of_ids.usage.prompt_tokens == len(ids)
    short = client.embeddings.create(model="encoder", input=texts[0], dimensions=8)
    assert len(short.data[0].embedding) == 8
    assert np.linalg.norm(short.data[0].embedding) == pytest.approx(1, abs=1e-6)


def test_rerank_and_score(served, files):
    documents = ["the cat sat on the mat", "the sun is hot", "a dog ran"]
    with LLM(files["ranker"]) as ranker:
        own = ranker.rerank("the sun", documents)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        asked = {"model": "ranker", "query": "the sun", "documents": documents, "top_n": 2}
        found = served.http.post(path, json={**asked, "return_documents": True}).json()["results"]
        assert [result["index"] for result in found] == [index for index, _ in own[:2]]
        assert found[0]["document"]["text"] == documents[own[0][0]]
        assert found[0]["relevance_score"] == pytest.approx(1 / (1 + math.exp(-own[0][1])))
    asked = {"model": "ranker", "text_1": "the sun", "text_2": documents}
    scores = served.http.post("/score", json=asked).json()["data"]
    by_index = dict(own)
    assert [s["score"] for s in scores] == pytest.approx(
        [1 / (1 + math.exp(-by_index[i])) for i in range(3)]
    )


def test_tokens_and_back(served, llm):
    text = "the cat sat"
    found = served.http.post("/tokenize", json={"model": "tiny", "prompt": text}).json()
    assert found["tokens"] == llm.tokenize(text)
    assert found["count"] == len(found["tokens"])
    # lm-eval names no model: the first that the server was started with.
    back = served.http.post("/detokenize", json={"tokens": found["tokens"]}).json()
    assert back == {"prompt": text}
    info = served.http.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|end|>"
    assert info["model_max_length"] == 512


def test_many_at_once_by_asyncio(served, llm):
    own = {seed: llm.chat(MESSAGES, max_tokens=8, seed=seed).text for seed in range(24)}

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{served.url}/v1", api_key="none", max_retries=0
        ) as client:

            async def one(seed: int) -> str:
                stream = await client.chat.completions.create(
                    model="tiny", messages=MESSAGES, max_tokens=8, seed=seed, stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*map(one, range(24)))

    assert asyncio.run(ask()) == list(own.values())


def test_headers_say_who_answered(client):
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=MESSAGES, max_tokens=1
    )
    assert raw.headers["x-insula-engine"] == "native"
    assert raw.headers["x-insula-isa"]
    assert float(raw.headers["x-insula-queue-ms"]) >= 0
    assert raw.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"temprature": 1}, "temprature"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"tools": [{"type": "function", "function": {"name": "no name"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"grammar": "nothing to start from"}, "grammar"),
        ({"store": True}, "store"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": "4"}, "max_tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"n": 9}, "n"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_is_wrong_is_named(client, asked, named):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=2, extra_body=asked
        )
    assert caught.value.param == named
    assert named in caught.value.message


def test_what_asks_for_nothing_is_no_error(client):
    asked = {"store": False, "tools": [], "response_format": {"type": "text"}, "audio": None}
    client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=2,
        user="u",
        metadata={"a": "b"},
        extra_body=asked,
    )


def test_the_wrong_model_for_a_question(client):
    with pytest.raises(openai.BadRequestError, match="gives vectors or scores"):
        client.completions.create(model="encoder", prompt="hi", max_tokens=2)
    with pytest.raises(openai.BadRequestError, match="gives no embeddings"):
        client.embeddings.create(model="tiny", input="hi")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="../../etc/passwd", messages=MESSAGES)


def test_a_context_that_is_too_small_says_both_numbers(client, llm):
    """FAULTS 18: the context, one more, ten times as much."""
    room = llm.n_ctx - llm.count_chat(MESSAGES)
    exact = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=room, extra_body={"ignore_eos": True}
    )
    assert exact.choices[0].finish_reason == "length"
    assert exact.usage.total_tokens == 512
    for extra, needed in ((1, 513), (512, 1024)):
        with pytest.raises(openai.BadRequestError, match=f"{needed} tokens .* holds 512") as caught:
            client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=room + extra)
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="holds 512"):
        client.completions.create(model="tiny", prompt=[5] * 5120, max_tokens=1)
