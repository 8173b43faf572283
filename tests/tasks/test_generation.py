"""Text that goes on, answers, summaries, translations: what the engine says, in other shapes."""

from __future__ import annotations

import pytest

from insula import LLM
from insula.errors import ConfigError, ContextOverflowError, UnsupportedError
from insula.tasks import chat, summarization, text_generation, timed, translation
from insula.tasks.options import generation

PROMPTS = ["the cat", "a dog ran"]
GREEDY = {"do_sample": False, "max_new_tokens": 6}


def greedy(llm: LLM, prompt: str, n: int = 6) -> str:
    return llm.generate(prompt, temperature=0, max_tokens=n).text


def test_text_generation(any_llm: LLM) -> None:
    expected = [[{"generated_text": p + greedy(any_llm, p)}] for p in PROMPTS]
    assert text_generation(any_llm, PROMPTS, **GREEDY) == expected
    assert text_generation(any_llm, PROMPTS[0], **GREEDY) == expected[0]
    alone = text_generation(any_llm, PROMPTS[0], return_full_text=False, **GREEDY)
    assert alone == [{"generated_text": greedy(any_llm, PROMPTS[0])}]


def test_several_of_each(any_llm: LLM) -> None:
    found = text_generation(any_llm, PROMPTS, num_return_sequences=3, max_new_tokens=5, seed=9)
    for prompt, results in zip(PROMPTS, found, strict=True):
        drawn = any_llm.generate(
            prompt, n=3, seed=9, max_tokens=5, temperature=0.7, top_k=50, top_p=1.0, min_p=0.0
        )
        assert results == [{"generated_text": prompt + each.text} for each in drawn]
    assert len({r["generated_text"] for r in found[0]}) > 1


def test_chat(shared_llm: LLM) -> None:
    messages = [{"role": "user", "content": "the cat"}]
    answer = shared_llm.chat(messages, temperature=0, max_tokens=6).text
    whole = [{"generated_text": [*messages, {"role": "assistant", "content": answer}]}]
    assert chat(shared_llm, messages, **GREEDY) == whole
    assert chat(shared_llm, "the cat", **GREEDY) == whole
    assert text_generation(shared_llm, messages, **GREEDY) == whole
    other = [{"role": "system", "content": "b"}, {"role": "user", "content": "a dog"}]
    both = text_generation(shared_llm, [messages, other], return_full_text=False, **GREEDY)
    expected = shared_llm.chat(other, temperature=0, max_tokens=6).text
    assert both == [[{"generated_text": answer}], [{"generated_text": expected}]]


def test_chat_refusals(shared_llm: LLM) -> None:
    with pytest.raises(ConfigError, match="last message is the assistant's"):
        chat(shared_llm, [{"role": "assistant", "content": "I"}])
    with pytest.raises(ConfigError, match=r"inputs\[1\]: found int"):
        chat(shared_llm, ["a", 3])
    with pytest.raises(ConfigError, match="empty list"):
        chat(shared_llm, [])


def test_summaries_and_translations_by_chat(shared_llm: LLM) -> None:
    def answer(asked: str) -> str:
        messages = [{"role": "user", "content": asked}]
        return shared_llm.chat(messages, temperature=0, max_tokens=6).text.strip()

    texts = ["the cat {target}", "a dog"]
    found = summarization(shared_llm, texts, max_new_tokens=6)
    before = "Summarize the following text in one or two sentences.\n\n"
    assert [r["summary_text"] for r in found] == [answer(before + t) for t in texts]
    assert {n for r in found for n in r.get("notes", [])} <= {"cut at max_new_tokens=6"}
    found = translation(shared_llm, texts[0], src_lang="en", tgt_lang="Spanish", max_new_tokens=6)
    before = "Translate the following text from English to Spanish.\n\n"
    assert [r["translation_text"] for r in found] == [answer(before + texts[0])]
    asked = summarization(shared_llm, texts[0], prompt="Short: {text}!", max_new_tokens=6)
    assert asked[0]["summary_text"] == answer(f"Short: {texts[0]}!")


def test_summaries_by_a_base_model(base_llm: LLM) -> None:
    [found] = summarization(base_llm, ["the cat <|end|>"], max_new_tokens=6)
    ids = base_llm.tokenize("the cat <|end|>\n\nSummary:", parse_special=False)
    expected = base_llm.generate(ids, temperature=0, max_tokens=6, stop=["\n\n"])
    assert found["summary_text"] == expected.text.strip()
    assert found.get("notes") == (
        ["cut at max_new_tokens=6"] if expected.finish_reason == "length" else None
    )


def test_a_summary_that_was_cut_says_so(base_llm: LLM) -> None:
    [found] = summarization(base_llm, "the cat", max_new_tokens=1)
    assert found["notes"] == ["cut at max_new_tokens=1"]


def test_languages(shared_llm: LLM) -> None:
    for bad in ("xx", "", None, "spanish!"):
        with pytest.raises(ConfigError, match="allowed is an English name"):
            translation(shared_llm, "a", src_lang="en", tgt_lang=bad)


def test_transformers_names(shared_llm: LLM) -> None:
    made = generation(
        shared_llm, {"temperature": 0.3, "repetition_penalty": 1.2, "stop_sequence": "x"}
    )
    assert (made.temperature, made.top_k, made.top_p, made.min_p) == (0.3, 50, 1.0, 0.0)
    assert (made.repeat_penalty, made.repeat_last_n) == (1.2, -1)
    assert (made.stop, made.max_tokens) == (("x",), 256)
    assert generation(shared_llm, {}).temperature == 0.7
    assert generation(shared_llm, {}, draw=False).temperature == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_length": 20}, "max_length: write max_new_tokens"),
        ({"num_beams": 4}, "no beam search"),
        ({"max_new_token": 4}, "did you mean max_new_tokens"),
        ({"do_sample": False, "top_p": 0.5}, "top_p: has no meaning"),
        ({"do_sample": 1}, "do_sample: found 1"),
        ({"temperature": -1}, "temperature"),
        ({"stop_strings": "a", "stop_sequence": "b"}, "found both"),
    ],
)
def test_options_are_never_ignored(shared_llm: LLM, options, says) -> None:
    with pytest.raises(ConfigError, match=says):
        text_generation(shared_llm, "a", **options)


def test_empty_long_and_no_text(shared_llm: LLM, classifier: LLM) -> None:
    with pytest.raises(ConfigError, match="inputs is empty"):
        text_generation(shared_llm, "")
    with pytest.raises(ContextOverflowError) as error:
        text_generation(shared_llm, "x " * 600, **GREEDY)
    assert error.value.limit == 512 < error.value.needed
    for task in (text_generation, chat, summarization):
        with pytest.raises(UnsupportedError, match="gives scores and no text"):
            task(classifier, "a")


def test_the_course_loop(shared_llm: LLM, tiny_model) -> None:
    rows = list(timed([shared_llm, tiny_model], PROMPTS, [2, 4]))
    assert [(r.prompt, r.length) for r in rows] == 2 * [(p, n) for p in PROMPTS for n in (2, 4)]
    for row in rows:
        assert row.generated_text == greedy(shared_llm, row.prompt, row.length)
        assert row.new_tokens <= row.length
        assert row.seconds > 0
    assert {r.load_seconds > 0 for r in rows[:4]} == {False}
    assert {r.load_seconds > 0 for r in rows[4:]} == {True}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lengths": []}, "lengths: found an empty list"),
        ({"lengths": [0]}, "lengths: found 0"),
        ({"prompts": ""}, "prompts is empty"),
        ({"models": []}, "models: found an empty list"),
        ({"max_new_tokens": 3}, "is what lengths says"),
    ],
)
def test_the_loop_refuses_before_it_runs(shared_llm: LLM, change, says) -> None:
    with pytest.raises(ConfigError, match=says):
        timed(**{"models": shared_llm, "prompts": "a", **change})
