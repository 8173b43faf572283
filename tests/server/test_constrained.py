"""Answers with a form, and calls of tools, by each family's own client."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import ollama
import openai
import pytest

MESSAGES: Any = [{"role": "user", "content": "where is the cat"}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"place": {"enum": ["mat", "sun"]}, "sure": {"type": "boolean"}},
    "required": ["place", "sure"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "look", "description": "look there", "parameters": SCHEMA},
}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "where", "schema": SCHEMA}}


@pytest.fixture
def openai_client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def valid(written: Any) -> bool:
    given = json.loads(written) if isinstance(written, str) else written
    return set(given) == {"place", "sure"} and given["place"] in ("mat", "sun")


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_has_the_form_that_was_asked(openai_client, seed):
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 120, "seed": seed}
    choice = openai_client.chat.completions.create(**asked, response_format=FORM).choices[0]
    assert choice.finish_reason == "stop"
    assert valid(choice.message.content)
    pieces = openai_client.chat.completions.create(**asked, response_format=FORM, stream=True)
    said = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert said == choice.message.content
    cut = openai_client.chat.completions.create(**{**asked, "max_tokens": 3}, response_format=FORM)
    assert cut.choices[0].finish_reason == "length"


def test_a_grammar(openai_client):
    grammar = 'root ::= ("yes" | "no") "!"'
    said = openai_client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=20, extra_body={"grammar": grammar}
    )
    assert said.choices[0].message.content in ("yes!", "no!")
    text = openai_client.completions.create(
        model="tiny", prompt="the cat", max_tokens=20, extra_body={"grammar": grammar}
    )
    assert text.choices[0].text in ("yes!", "no!")


def test_what_cannot_be_followed_is_a_400(openai_client):
    for schema in ({"type": "nothing"}, {"type": "array", "uniqueItems": True}, {"$ref": "#/x"}):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(openai.BadRequestError):
            openai_client.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=5, response_format=form
            )


def test_calls_as_openai_has_them(openai_client):
    asked = {
        "model": "endless",
        "messages": MESSAGES,
        "max_tokens": 200,
        "seed": 1,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
    }
    choice = openai_client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "look"
    assert valid(call.function.arguments)
    streamed = list(openai_client.chat.completions.create(**asked, stream=True))
    [delta] = [c.choices[0].delta for c in streamed if c.choices[0].delta.tool_calls]
    assert delta.tool_calls[0].index == 0
    assert delta.tool_calls[0].function.arguments == call.function.arguments
    assert streamed[-1].choices[0].finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "on the mat"}
    turns = [*MESSAGES, choice.message.model_dump(exclude_none=True), result]
    after = openai_client.chat.completions.create(
        **{**asked, "messages": turns, "tool_choice": "none", "max_tokens": 4}
    )
    assert after.choices[0].message.tool_calls is None


def test_calls_and_formats_as_ollama_has_them(served):
    client = ollama.Client(host=served.url)
    said = client.chat("endless", MESSAGES, format=SCHEMA, options={"num_predict": 120, "seed": 2})
    assert valid(said.message.content)
    raw = client.generate("endless", "hi", format=SCHEMA, options={"num_predict": 120, "seed": 2})
    assert valid(raw.response)
    anything = client.chat("endless", MESSAGES, format="json", options={"num_predict": 4})
    assert anything.message.content.lstrip()[:1] == "{"
    call = {"function": {"name": "look", "arguments": {"place": "mat", "sure": True}}}
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "look", "content": "on the mat"},
    ]
    assert client.chat("endless", turns, tools=[TOOL], options={"num_predict": 4}).done


def test_calls_as_anthropic_has_them(served):
    tools: Any = [{"name": "look", "description": "look there", "input_schema": SCHEMA}]
    asked: Any = {
        "model": "endless",
        "messages": MESSAGES,
        "max_tokens": 200,
        "tools": tools,
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "extra_body": {"temperature": 0.0},
    }
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as client:
        whole = client.messages.create(**asked)
        assert whole.stop_reason == "tool_use"
        [block] = [block for block in whole.content if block.type == "tool_use"]
        assert block.name == "look"
        assert valid(block.input)
        with client.messages.stream(**asked) as stream:
            final = stream.get_final_message()
        [streamed] = [block for block in final.content if block.type == "tool_use"]
        assert streamed.input == block.input
        result = {"type": "tool_result", "tool_use_id": block.id, "content": "on the mat"}
        turns = [
            *MESSAGES,
            {"role": "assistant", "content": [block.model_dump(exclude_none=True)]},
            {"role": "user", "content": [result, {"type": "text", "text": "and now"}]},
        ]
        more = {**asked, "messages": turns, "tool_choice": {"type": "none"}, "max_tokens": 4}
        assert client.messages.create(**more).usage.output_tokens > 0
        counted = client.messages.count_tokens(model="endless", messages=MESSAGES, tools=tools)
        assert (
            counted.input_tokens
            > client.messages.count_tokens(model="endless", messages=MESSAGES).input_tokens
        )
