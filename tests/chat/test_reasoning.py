"""Reasoning and answer, of whole replies and of every way to cut them into pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.chat.reasoning import TAGS, ReasoningFormat, detect, split, splitter

HARMONY = ReasoningFormat(style="harmony")
THINK = ReasoningFormat(opened="</think>")
CALL = (
    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    '{"place": "Toledo"}<|call|>'
)

#: format, reply, reasoning, answer
REPLIES: list[tuple[ReasoningFormat, str, str | None, str]] = [
    (ReasoningFormat(), "", None, ""),
    (ReasoningFormat(), "Plain.", None, "Plain."),
    (ReasoningFormat(), "\n  Plain. \n", None, "\n  Plain. \n"),
    (ReasoningFormat(), "<think>\nWell.\n</think>\n\nYes.", "Well.", "Yes."),
    (ReasoningFormat(), "\n<think>Well.</think>Yes. \n", "Well.", "Yes. \n"),
    (ReasoningFormat(), "<think>\n\n</think>\n\nYes.", "", "Yes."),
    (ReasoningFormat(), "<think>\na\n\n b \n</think>", "a\n\n b", ""),
    (ReasoningFormat(), "<think>cut off he", "cut off he", ""),
    (ReasoningFormat(), "<think>cut off </thi", "cut off </thi", ""),
    (ReasoningFormat(), "<think>a < b </ c </think", "a < b </ c </think", ""),
    (ReasoningFormat(), "<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
    (ReasoningFormat(), "A <think> tag</think>.", None, "A <think> tag</think>."),
    (ReasoningFormat(), "<thi", None, "<thi"),
    (ReasoningFormat(), "<this> is", None, "<this> is"),
    (ReasoningFormat(), "<thinking>x</thinking>y", "x", "y"),
    (ReasoningFormat(), "[THINK]x[/THINK]y", "x", "y"),
    (ReasoningFormat(), "<seed:think>x</seed:think>y", "x", "y"),
    (ReasoningFormat(), "<|START_THINKING|>x<|END_THINKING|>y", "x", "y"),
    (ReasoningFormat(), "<|channel>thought\nx<channel|>y", "x", "y"),
    (ReasoningFormat(), "◁think▷x◁/think▷y", "x", "y"),
    (THINK, "Well.\n</think>\n\nYes.", "Well.", "Yes."),
    (THINK, "<think>\nWell.</think>Yes.", "Well.", "Yes."),
    (THINK, "Well, it is cut", "Well, it is cut", ""),
    (THINK, "", "", ""),
    (THINK, "<", "<", ""),
    (THINK, "</think>Yes", "", "Yes"),
    (
        HARMONY,
        ("<|channel|>analysis<|message|>Well.<|end|><|start|>assistant<|channel|>final"
        "<|message|>Yes.<|return|>"),
        "Well.",
        "Yes.",
    ),
    (HARMONY, "<|channel|>final<|message|>Yes.", None, "Yes."),
    (HARMONY, "<|channel|>analysis<|message|>Cut <|en", "Cut <|en", ""),
    (HARMONY, "<|channel|>analysis<|message|>Well.<|end|><|start|>assis", "Well.", ""),
    (
        HARMONY,
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary"
        "<|message|>I look.<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>"
        "<|start|>assistant<|channel|>final<|message|>c"),
        "a\n\nb",
        "I look.\n\nc",
    ),
    (HARMONY, "<|channel|>analysis<|message|>a<|end|><|start|>assistant" + CALL, "a",
     "<|start|>assistant" + CALL),
    (HARMONY, " to=functions.f<|channel|>commentary json<|message|>{}<|call|>", None,
     "to=functions.f<|channel|>commentary json<|message|>{}<|call|>"),
    (HARMONY, "It does not speak it.", None, "It does not speak it."),
    (HARMONY, "<|channel|>" + "x" * 2000, None, "<|channel|>" + "x" * 2000),
    (HARMONY, "", None, ""),
]  # fmt: skip


def streamed(reply: str, style: ReasoningFormat, cuts: list[int]) -> tuple[str, str]:
    """All pieces put together; asserts that no piece holds a part of a mark."""
    stream = splitter(style)
    reasoning = answer = ""
    edges = [0, *sorted(cuts), len(reply)]
    for start, end in itertools.pairwise(edges):
        pieces = stream.push(reply[start:end])
        reasoning += pieces.reasoning
        answer += pieces.answer
    last = stream.flush()
    assert stream.push("") == stream.flush() == ("", "")
    return reasoning + last.reasoning, answer + last.answer


@pytest.mark.parametrize(("style", "reply", "reasoning", "answer"), REPLIES)
def test_split(style: ReasoningFormat, reply: str, reasoning: str | None, answer: str) -> None:
    assert split(reply, style) == (reasoning, answer)


@pytest.mark.parametrize(("style", "reply", "reasoning", "answer"), REPLIES)
def test_a_stream_says_the_same(
    style: ReasoningFormat, reply: str, reasoning: str | None, answer: str
) -> None:
    whole = (reasoning or "", answer)
    assert streamed(reply, style, list(range(len(reply)))) == whole
    for size in (2, 3, 5, 7, 11):
        assert streamed(reply, style, list(range(0, len(reply), size))) == whole
    for cut in range(min(len(reply), 200)):
        assert streamed(reply, style, [cut]) == whole


MARKS = [mark for pair in TAGS for mark in pair] + [
    "<|start|>", "assistant", "<|channel|>", "analysis", "final", "commentary", "<|message|>",
    "<|end|>", "<|return|>", "<|call|>", " to=f", "<", "|>", "</think", "think>", " ", "\n",
    "x", "ñ",
]  # fmt: skip


@given(
    st.lists(st.sampled_from(MARKS), max_size=14).map("".join),
    st.sampled_from([ReasoningFormat(), THINK, HARMONY, ReasoningFormat(opened="<channel|>")]),
    st.data(),
)
def test_any_stream_says_what_the_whole_says(
    reply: str, style: ReasoningFormat, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(reply)), max_size=8))
    reasoning, answer = split(reply, style)
    assert streamed(reply, style, cuts) == (reasoning or "", answer)


@pytest.mark.parametrize(("opening", "closing"), TAGS)
def test_no_part_of_a_tag_is_ever_given_out(opening: str, closing: str) -> None:
    stream = splitter()
    for character in opening:
        assert stream.push(character) == ("", "")
    assert stream.push("why") == ("why", "")
    for character in closing:
        assert stream.push(character) == ("", "")
    assert stream.push("\n") == ("", "")
    assert stream.push("so") == ("", "so")


def test_text_comes_at_once_where_nothing_is_in_doubt() -> None:
    stream = splitter()
    assert stream.push("The") == ("", "The")
    assert stream.push(" <think>") == ("", " <think>")
    stream = splitter(THINK)
    assert stream.push("First") == ("First", "")
    assert stream.push(", a <") == (", a", "")
    assert stream.push(" b") == (" < b", "")


def test_the_format_is_read_off_the_template_and_the_prompt() -> None:
    assert detect(None) == ReasoningFormat()
    assert detect("{{ '<think>' }}", "<|im_start|>assistant\n") == ReasoningFormat()
    assert detect("…", "<｜Assistant｜><think>\n") == THINK
    assert detect("…", "<|im_start|>assistant\n<think>\n\n</think>\n\n") == ReasoningFormat()
    assert detect("{{ '<|start|>assistant<|channel|>final<|message|>' }}") == HARMONY
    assert detect("x", "model\n<|channel>thought\n") == ReasoningFormat(opened="<channel|>")


def test_published_templates(published_templates: dict[str, str]) -> None:
    from insula.chat.templates import ChatTemplate

    found = {}
    for name, source in published_templates.items():
        template = ChatTemplate(source, bos_token="", eos_token="")
        prompt = template.render([{"role": "user", "content": "hi"}], tools=[])
        found[name] = detect(source, prompt)
    assert found.pop("openai-gpt-oss-120b") == HARMONY
    assert found.pop("deepseek-ai-DeepSeek-R1-Distill-Llama-8B") == THINK
    assert set(found.values()) == {ReasoningFormat()}
