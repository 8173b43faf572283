"""Answers of a chat held to a form: after what a model may think first, streamed, async, real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from default_model import WHERE_TO_GET_IT, find_default_model
from insula import LLM, AsyncLLM
from insula.errors import ConfigError
from insula.types import Constraint
from tiny_chat_model import TEMPLATE, write_tiny

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "n": {"type": "integer"}},
    "required": ["mood", "n"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "mood", "schema": SCHEMA}}
#: The prompt itself opens the block, as DeepSeek-R1's does.
OPENED = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
#: The template knows the tags, and the model may or may not think, as Qwen3.
MAY_THINK = TEMPLATE + "{# <think> </think> #}"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(write_tiny(tmp_path_factory.mktemp("forms") / "tiny.gguf", context=2048)) as llm:
        yield llm


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_an_answer_has_its_form_streamed_and_whole(llm: LLM) -> None:
    options: dict[str, Any] = {"response_format": FORM, "max_tokens": 200, "seed": 3}
    answer = llm.chat(user("How?"), **options)
    assert answer.finish_reason == "stop"
    jsonschema.validate(json.loads(answer.text), SCHEMA)
    chunks = list(llm.chat_stream(user("How?"), **options))
    assert "".join(chunk.text for chunk in chunks) == answer.text
    session = llm.chat_session(**options)
    for _ in range(2):
        jsonschema.validate(json.loads(session.send("How?").text), SCHEMA)


def test_async_takes_the_same(llm: LLM) -> None:
    model = AsyncLLM(llm)

    async def both() -> tuple[str, str]:
        options: dict[str, Any] = {"max_tokens": 200, "seed": 1, "response_format": FORM}
        one = await model.generate("How?", **options)
        two = await model.chat(user("How?"), **options)
        return one.text, two.text

    for text in asyncio.run(both()):
        jsonschema.validate(json.loads(text), SCHEMA)


def allows(llm: LLM, template: str, text: str, **options: Any) -> bool:
    """Whether an answer may go like this, by the constraint that a chat makes."""
    seen: list[Constraint] = []
    submit = llm._engine.submit

    def look(request: Any) -> Any:
        seen.append(request.constraint)
        return submit(request)

    llm._engine.submit = look  # type: ignore[method-assign]
    try:
        llm.chat(user("a"), template=template, max_tokens=1, seed=1, **options)
    finally:
        llm._engine.submit = submit  # type: ignore[method-assign]
    matcher = llm._engine._constraints.matcher(seen[0])  # type: ignore[attr-defined]
    for token in llm.tokenize(text, add_special=False):
        if not int(matcher.allowed()[token // 32]) >> (token % 32) & 1:
            return False
        matcher.accept(token)
    return True


ANSWER = '{"mood":"good","n":3}'


@pytest.mark.parametrize(
    ("template", "text", "may"),
    [
        (TEMPLATE, ANSWER, True),
        (TEMPLATE, "<think>a</think>" + ANSWER, False),
        (OPENED, ANSWER, True),  # a thought that has not ended may hold anything
        (OPENED, "Let me see {.</think>\n\n" + ANSWER, True),
        (OPENED, "Let me see.</think> No.", False),
        (OPENED, "</think>" + ANSWER, True),
        (OPENED, ANSWER + "</think>" + "[", False),
        (MAY_THINK, ANSWER, True),
        (MAY_THINK, "<think>\nHm.</think>\n\n" + ANSWER, True),
        (MAY_THINK, "<think>\nHm.</think>\n\nNo", False),
        (MAY_THINK, "Hm.", False),
    ],
)
def test_a_form_begins_after_the_thought(llm: LLM, template: str, text: str, *, may: bool) -> None:
    assert allows(llm, template, text, response_format=FORM) is may


def test_a_call_begins_after_the_thought(llm: LLM) -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    must: dict[str, Any] = {"tools": tools, "tool_choice": "required"}
    assert allows(llm, OPENED, f"I think.</think>\n{call}", **must)
    assert not allows(llm, OPENED, "I think.</think>\nNo.", **must)
    assert allows(llm, MAY_THINK, f"<think>I think.</think>\n{call}", **must)
    assert allows(llm, MAY_THINK, call, **must)
    auto: dict[str, Any] = {"tools": tools}
    assert allows(llm, MAY_THINK, f"<think>I think.</think>\nWell. {call}", **auto)
    assert not allows(llm, MAY_THINK, "Well. <tool_call>\nno", **auto)


def test_each_kind_of_form_in_a_chat(llm: LLM) -> None:
    for options, expected in (
        ({"grammar": 'root ::= "yes" | "no"'}, {"yes", "no"}),
        ({"grammar": 'start: "yes" | "no"'}, {"yes", "no"}),
        ({"constraint": Constraint(kind="regex", text="ye[s]|no")}, {"yes", "no"}),
    ):
        for template in (TEMPLATE, MAY_THINK):
            answer = llm.chat(user("a"), template=template, max_tokens=200, seed=2, **options)
            if answer.finish_reason == "stop":
                assert answer.text in expected
    with pytest.raises(ConfigError, match="constraint and grammar"):
        llm.chat(user("a"), constraint=Constraint(kind="json_object"), grammar='start: "a"')


@pytest.fixture(scope="module")
def smollm() -> Iterator[LLM]:
    path = find_default_model()
    if path is None:
        pytest.skip(WHERE_TO_GET_IT)
    with LLM(path, n_ctx=2048) as llm:
        yield llm


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 40},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


def test_the_default_model_answers_in_a_form(smollm: LLM) -> None:
    answer = smollm.chat(
        user("Extract as JSON: Ana lives in Seville and is 31."),
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "person",
                "schema": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "maxLength": 30},
                        "age": {"type": "integer"},
                        "city": {"type": "string", "maxLength": 30},
                    },
                    "required": ["name", "age", "city"],
                    "additionalProperties": False,
                },
            },
        },
        temperature=0,
        max_tokens=100,
    )
    assert answer.finish_reason == "stop"
    assert json.loads(answer.text)["age"] == 31


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_default_model_calls_tools(smollm: LLM, temperature: float) -> None:
    """It was not trained for it, and its template has no place for tools."""
    answer = smollm.chat(
        user("What is the weather in Paris?"),
        tools=[WEATHER],
        tool_choice="required",
        temperature=temperature,
        seed=1,
        max_tokens=150,
    )
    assert answer.finish_reason == "tool_calls"
    [call] = answer.tool_calls
    arguments = json.loads(call.arguments)
    jsonschema.validate(arguments, WEATHER["function"]["parameters"])  # type: ignore[index]
    if temperature == 0:
        assert arguments["city"] == "Paris"
    assert any("described in words" in note for note in answer.report.notes)
    final = smollm.chat(
        [
            *user("What is the weather in Paris?"),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": call.id, "content": "21 degrees and sunny"},
        ],
        tools=[WEATHER],
        tool_choice="none",
        temperature=0,
        max_tokens=40,
    )
    assert "21" in final.text
