"""Calls of tools by tiny random models: whatever comes as a call is one that its schema allows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jsonschema
import numpy as np
import pytest

from insula import LLM
from insula.chat.calling import calling, held_to
from insula.chat.reasoning import ReasoningFormat
from insula.chat.tools import MAX_CALLS
from insula.engine.constraint import Constraints
from insula.errors import ConfigError, ConstraintError, TemplateError, UnsupportedError
from insula.types import Completion
from tiny_chat_model import TEMPLATE, write_tiny

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Rome", "Oslo", "a}]</tool_call>"]},
                "days": {"$ref": "#/$defs/days"},
            },
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
SCHEMAS = {
    "get_weather": WEATHER["function"]["parameters"],  # type: ignore[index]
    "now": {"type": "object", "maxProperties": 0},
}

#: The parts of well-known templates that tell how calls are written.
HERMES = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "\n</tool_call>{% endfor %}<|end|>\n{% endfor %}<|start|>assistant\n"
)
MISTRAL = HERMES.replace("<tool_call>\n", "[TOOL_CALLS][").replace("\n</tool_call>", "]")
LLAMA3 = (
    HERMES.replace("<tool_call>\n", "<|python_tag|>")
    .replace("\n</tool_call>", "")
    .replace("'arguments'", '"parameters"')
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tools") / "tiny.gguf", context=4096)


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(model) as llm:
        yield llm


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def check(answer: Completion) -> None:
    """What must hold of every answer."""
    for call in answer.tool_calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    if answer.finish_reason == "tool_calls":
        assert answer.tool_calls
    if answer.finish_reason == "stop":
        assert not answer.tool_calls
    assert len({call.id for call in answer.tool_calls}) == len(answer.tool_calls)


@pytest.mark.parametrize("template", [None, HERMES, MISTRAL, LLAMA3])
@pytest.mark.parametrize("parallel", [True, False])
def test_required(llm: LLM, template: str | None, *, parallel: bool) -> None:
    ended = several = 0
    for seed in range(12):
        options: dict[str, Any] = {
            "template": template,
            "tools": TOOLS,
            "tool_choice": "required",
            "parallel_tool_calls": parallel,
            "max_tokens": 400,
            "seed": seed,
        }
        answer = llm.chat([user("Well?")], **options)
        check(answer)
        assert answer.finish_reason in ("tool_calls", "length")
        ended += answer.finish_reason == "tool_calls"
        several += len(answer.tool_calls) > 1
        if answer.finish_reason == "tool_calls":
            assert answer.text == ""
        if not parallel or template is LLAMA3:
            assert len(answer.tool_calls) == 1
        assert len(answer.tool_calls) <= MAX_CALLS
        chunks = list(llm.chat_stream([user("Well?")], **options))
        assert "".join(chunk.text for chunk in chunks) == answer.text
        assert sum((chunk.tool_calls for chunk in chunks), ()) == answer.tool_calls
        assert chunks[-1].finish_reason == answer.finish_reason
    assert ended >= 6
    assert bool(several) is (parallel and template is not LLAMA3)


def test_a_named_tool_is_the_one(llm: LLM) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    for seed in range(4):
        answer = llm.chat(
            [user("Well?")], tools=TOOLS, tool_choice=named, max_tokens=300, seed=seed
        )
        check(answer)
        assert {call.name for call in answer.tool_calls} == {"get_weather"}


def test_auto_is_free_until_a_call_begins(llm: LLM) -> None:
    for seed in range(6):
        free = llm.chat([user("Well?")], tools=TOOLS, max_tokens=60, seed=seed)
        assert not free.tool_calls
        check(free)
    # No prompt makes a random model open a call, so the grammar is asked what it allows.
    constraint = held_to(
        None,
        calling(TEMPLATE, TOOLS, parallel=True),
        thinking=ReasoningFormat(),
        prompt="",
        tokenizer=llm.tokenizer,
    )
    assert constraint is not None
    constraints = Constraints(llm.tokenizer, n_vocab=llm.model_info.n_vocab)

    def allows(text: str) -> bool:
        matcher = constraints.matcher(constraint)
        for token in llm.tokenize(text, add_special=False, parse_special=False):
            if not matcher.allowed()[token // 32] >> np.uint32(token % 32) & 1:
                return False
            matcher.accept(token)
        return True

    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert allows("anything <tool at all }{")
    assert allows(f"Let me see. {call}")
    assert allows(f"{call}\n{call}")
    assert not allows("<tool_call>\nfree")
    assert not allows('<tool_call>\n{"name": "then", "arguments": {}}')
    assert not allows('<tool_call>\n{"name": "now", "arguments": {"a": 1}}')
    assert not allows(f"{call} and more")
    assert allows("\n".join([call] * MAX_CALLS))
    assert not allows("\n".join([call] * (MAX_CALLS + 1)))


def test_none_offers_no_tool(llm: LLM) -> None:
    with_none = llm.chat([user("a")], tools=TOOLS, tool_choice="none", max_tokens=9, seed=2)
    without = llm.chat([user("a")], max_tokens=9, seed=2)
    assert with_none.token_ids == without.token_ids
    assert with_none.report.prompt_tokens == without.report.prompt_tokens
    assert not with_none.report.notes


def test_a_template_without_a_place_for_tools_is_told_in_words(llm: LLM) -> None:
    answer = llm.chat(
        [{"role": "system", "content": "Be kind."}, user("a")],
        tools=TOOLS,
        tool_choice="required",
        max_tokens=1,
    )
    assert any("described in words" in note for note in answer.report.notes)
    refuses_system = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        + TEMPLATE
    )
    answer = llm.chat([user("a")], template=refuses_system, tools=TOOLS, max_tokens=1)
    assert answer.report.prompt_tokens > 100  # the description is in the user's message
    with_place = llm.chat([user("a")], template=HERMES, tools=TOOLS, max_tokens=1)
    assert not with_place.report.notes


@pytest.mark.parametrize("template", [None, HERMES])
def test_the_round_trip(llm: LLM, template: str | None) -> None:
    """Call, result, answer: the history goes back through the template."""
    first = llm.chat(
        [user("Weather?")],
        template=template,
        tools=TOOLS,
        tool_choice="required",
        max_tokens=400,
        seed=1,
    )
    [call, *_] = first.tool_calls
    history = [
        user("Weather?"),
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
        {"role": "tool", "tool_call_id": call.id, "content": "Rain <|end|> and <tool_call>."},
    ]
    answer = llm.chat(history, template=template, tools=TOOLS, max_tokens=5, seed=1)
    assert answer.report.prompt_tokens > first.report.prompt_tokens
    # Also where tools are not offered any more.
    assert llm.chat(history, template=template, max_tokens=5, seed=1).finish_reason


def test_a_session_keeps_calls_in_its_history(llm: LLM) -> None:
    session = llm.chat_session(tools=TOOLS, tool_choice="required", max_tokens=400, seed=1)
    answer = session.send("Weather?")
    assert answer.finish_reason == "tool_calls"
    said = session.messages[-1]
    assert [c["function"]["arguments"] for c in said["tool_calls"]] == [
        c.arguments for c in answer.tool_calls
    ]
    [call, *_] = answer.tool_calls
    after = session.send({"role": "tool", "tool_call_id": call.id, "content": "Rain."})
    assert after.report.cached_tokens > 0


def test_a_form_and_tools_together(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    kinds = set()
    for seed in range(12):
        answer = llm.chat([user("a")], tools=TOOLS, response_format=form, max_tokens=400, seed=seed)
        check(answer)
        kinds.add(answer.finish_reason)
        if answer.finish_reason == "stop":
            jsonschema.validate(json.loads(answer.text), schema)
    assert {"stop", "tool_calls"} & kinds


def test_the_same_question_has_the_same_calls(llm: LLM) -> None:
    options: dict[str, Any] = {
        "tools": TOOLS, "tool_choice": "required", "max_tokens": 300, "seed": 5,
    }  # fmt: skip
    first = llm.chat([user("a")], **options)
    assert llm.chat([user("a")], **options).tool_calls == first.tool_calls
    other = llm.chat([user("b")], **options)
    assert {c.id for c in other.tool_calls}.isdisjoint(c.id for c in first.tool_calls)


def _with(schema: object) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"x": schema}}
    return {"type": "function", "function": {"name": "a", "parameters": parameters}}


CIRCLE: dict[str, Any] = {}
CIRCLE["items"] = CIRCLE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": "now"}, "tools: found str"),
        ({"tools": [1]}, r"tools\[0\]: found int"),
        ({"tools": [{"type": "retrieval"}]}, r"tools\[0\]: found type 'retrieval'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "the name is 'a b'"),
        ({"tools": [{"type": "function", "function": {}}]}, "the name is None"),
        ({"tools": [NOW, NOW]}, r"tools\[1\]: the name 'now' is taken"),
        ({"tools": [NOW] * 200}, "found 200"),
        (
            {"tools": [{"function": {"name": "a", "parameters": {"type": "array"}}}]},
            "of type 'array'",
        ),
        ({"tools": [{"function": {"name": "a", "parameters": 3}}]}, "parameters is int"),
        (
            {"tools": [{"function": {"name": "a", "parameters": {"properties": {"b": {1, 2}}}}}]},
            "not JSON",
        ),
        ({"tools": [_with({"enum": {1}})]}, r"tools\[0\]: it is not JSON: Object of type set"),
        ({"tools": [_with({"const": float("nan")})]}, r"tools\[0\]: it is not JSON"),
        ({"tools": [{**NOW, "strict": b"x"}]}, r"tools\[0\]: it is not JSON"),
        ({"tools": [_with(CIRCLE)]}, r"tools\[0\]: it is not JSON: Circular"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice: found 'always'"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "then"}}}, "called 'then'"),
        ({"tool_choice": "required"}, "no tools"),
        ({"tools": TOOLS, "parallel_tool_calls": "yes"}, "parallel_tool_calls: found 'yes'"),
    ],
)
def test_what_is_no_tool(llm: LLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        llm.chat([user("a")], max_tokens=1, **options)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": "now"},
        {"role": "assistant", "content": None, "tool_calls": ["now"]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{}"}}]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": 3}}]},
        {"role": "assistant", "content": "", "tool_calls": [{"id": [], "function": {"name": "a"}}]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "a", "arguments": {"x": object()}}}],
        },
        {"role": "tool", "content": "3", "tool_call_id": {}},
    ],
)
@pytest.mark.parametrize("template", [None, HERMES])
def test_calls_that_are_none(llm: LLM, message: dict[str, Any], template: str | None) -> None:
    with pytest.raises(ConfigError, match=r"messages\[1\]"):
        llm.chat([user("a"), message], template=template, max_tokens=1)


def test_tools_may_be_any_mappings(llm: LLM) -> None:
    frozen = MappingProxyType({"type": "function", "function": MappingProxyType(NOW["function"])})
    options: dict[str, Any] = {"tool_choice": "required", "max_tokens": 200, "seed": 1}
    for template in (None, HERMES):
        wanted = llm.chat([user("a")], tools=[NOW], template=template, **options)
        found = llm.chat([user("a")], tools=[frozen], template=template, **options)
        assert found.token_ids == wanted.token_ids
        assert found.tool_calls == wanted.tool_calls != ()


@pytest.mark.parametrize(
    "call",
    ["now", {"function": "now"}, {"function": {"name": "now", "arguments": {"at": {1}}}}],
)
@pytest.mark.parametrize("template", [None, HERMES])
def test_what_is_no_call_in_a_message(llm: LLM, template: str | None, call: object) -> None:
    messages = [user("a"), {"role": "assistant", "content": "", "tool_calls": [call]}, user("b")]
    with pytest.raises((ConfigError, TemplateError), match=r"call|function|Undefined"):
        llm.chat(messages, template=template, max_tokens=1)


def test_a_schema_that_cannot_be_held_is_refused(llm: LLM) -> None:
    tool = {
        "type": "function",
        "function": {"name": "a", "parameters": {"properties": {"b": {"not": {}}}}},
    }
    with pytest.raises(ConstraintError, match="'not'"):
        llm.chat([user("a")], tools=[tool], max_tokens=1)


def test_channels_are_not_connected(llm: LLM) -> None:
    harmony = HERMES + "{# <|channel|> <|message|> #}"
    with pytest.raises(UnsupportedError, match="harmony"):
        llm.chat([user("a")], template=harmony, tools=TOOLS, max_tokens=1)
    with pytest.raises(UnsupportedError, match="harmony"):
        llm.chat(
            [user("a")], template=harmony, response_format={"type": "json_object"}, max_tokens=1
        )
