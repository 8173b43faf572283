"""LLM.logprobs tells what a log-softmax over the logits of each whole text tells."""

from __future__ import annotations

import numpy as np
import pytest

from insula import LLM
from insula.errors import ConfigError, ContextOverflowError, UnsupportedError
from tasks.oracle_logprobs import logprobs

PROMPTS = [[5, 9, 30, 31], [7], [5, 9, 30, 31, 8, 8]]
#: One token, several, the beginning of another, the same twice, one that goes another way.
CONTINUATIONS = [
    [[40], [40, 41, 42], [40, 41], [40], [9, 41, 42]],
    [[1, 2, 3, 4]],
    [[300], [301]],
]


@pytest.mark.parametrize("use_cache", [True, False])
def test_against_the_logits_of_each_text(shared_llm: LLM, use_cache: bool) -> None:
    found = shared_llm.logprobs(PROMPTS, CONTINUATIONS, use_cache=use_cache)
    assert [[len(c) for c in row] for row in found] == [
        [len(c) for c in row] for row in CONTINUATIONS
    ]
    for prompt, choices, row in zip(PROMPTS, CONTINUATIONS, found, strict=True):
        for choice, values in zip(choices, row, strict=True):
            assert values.dtype == np.float64
            np.testing.assert_allclose(
                values, logprobs(shared_llm, prompt, choice), rtol=0, atol=1e-9
            )


def test_long_prompts_in_slices_and_out_of_the_cache(shared_llm: LLM) -> None:
    """A prompt over several pages and steps; asked again, its pages are there."""
    prompt = [2 + i % 300 for i in range(400)]
    choices = [[11, 12, 13], [11, 14], [15]]
    first = shared_llm.logprobs([prompt], [choices])
    again = shared_llm.logprobs([prompt], [choices])
    for choice, values, others in zip(choices, first[0], again[0], strict=True):
        np.testing.assert_array_equal(values, others)
        np.testing.assert_allclose(values, logprobs(shared_llm, prompt, choice), rtol=0, atol=1e-9)


def test_all_that_may_follow_is_certain(shared_llm: LLM) -> None:
    n = shared_llm.model_info.n_vocab
    [row] = shared_llm.logprobs([[5, 6]], [[[i] for i in range(n)]])
    assert np.exp(np.concatenate(row)).sum() == pytest.approx(1, abs=1e-9)


def test_texts_become_the_ids_that_they_make_together(shared_llm: LLM) -> None:
    prompt, following = "the cat", " sat"
    ids = shared_llm.tokenize(prompt)
    whole = shared_llm.tokenize(prompt + following)
    assert whole[: len(ids)] == ids
    assert shared_llm.continuation_ids(prompt, following) == tuple(whole[len(ids) :])
    [[values]] = shared_llm.logprobs([prompt], [[following]])
    np.testing.assert_allclose(
        values, logprobs(shared_llm, ids, whole[len(ids) :]), rtol=0, atol=1e-9
    )


def test_control_tokens_are_text_where_that_is_asked(shared_llm: LLM) -> None:
    assert shared_llm.continuation_ids((), "<|end|>") == (1,)
    ids = shared_llm.continuation_ids((), "<|end|>", parse_special=False)
    assert 1 not in ids
    assert shared_llm.detokenize(ids) == "<|end|>"
    plain = shared_llm.tokenize("a<|end|>", parse_special=False)
    [[values]] = shared_llm.logprobs(["a<|end|>"], [[(40,)]], parse_special=False)
    np.testing.assert_allclose(values, logprobs(shared_llm, plain, [40]), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("prompts", "continuations", "says"),
    [
        ([[5]], [[[]]], "no tokens"),
        ([[]], [[[5]]], "no tokens"),
        ([[5]], [[[320]]], "token id 320"),
        ([[5]], [[[-1]]], "token id -1"),
        ([[5]], [], "for each of them"),
        ("text", ["a", "b", "c", "d"], "a list of prompts"),
    ],
)
def test_refusals(shared_llm: LLM, prompts, continuations, says) -> None:
    with pytest.raises(ConfigError, match=says):
        shared_llm.logprobs(prompts, continuations)


def test_too_long_says_both_numbers(shared_llm: LLM) -> None:
    # The last token's own logits are not needed: 510 + 3 tokens fill 512 places.
    assert len(shared_llm.logprobs([[5] * 510], [[[6, 7, 8]]])[0][0]) == 3
    with pytest.raises(ContextOverflowError) as error:
        shared_llm.logprobs([[5] * 510], [[[6], [6, 7, 8, 9]]])
    assert (error.value.needed, error.value.limit) == (513, 512)


def test_models_that_give_no_text(embedder: LLM, shared_llm: LLM) -> None:
    with pytest.raises(UnsupportedError, match="vectors or scores"):
        embedder.logprobs([[5]], [[[6]]])
    with pytest.raises(UnsupportedError, match="embeddings"):
        shared_llm.hidden_states("a")
    assert (embedder.gives, shared_llm.gives) == ("vectors", "text")


def test_the_chat_prompt_is_what_chat_runs(shared_llm: LLM) -> None:
    messages = [{"role": "user", "content": "the cat <|end|>"}]
    prompt = shared_llm.chat_prompt(messages)
    answer = shared_llm.chat(messages, temperature=0, max_tokens=6)
    assert len(prompt.ids) == answer.report.prompt_tokens
    assert (
        shared_llm.generate(prompt.ids, temperature=0, max_tokens=6).token_ids == answer.token_ids
    )
    assert prompt.ids.count(1) == 1  # the message's own <|end|> is text
