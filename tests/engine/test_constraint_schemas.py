"""Random schemas, and whatever a random model writes under each is valid, or was cut off.

The oracle is the `jsonschema` package, which shares no code with what makes the masks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from insula import LLM
from insula.errors import ConstraintError
from tiny_chat_model import write_tiny

NAMES = st.sampled_from(
    ["a", "b", "name", "número", "x y", 'q"uote', "back\\slash", "", "new\nline"]
)
SMALL = st.integers(0, 4)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1000, 1000),
    st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 2)),
    st.text('aé\n"\\ 😀{}[]', max_size=5),
)


@st.composite
def bounds(draw: Any, low: str, high: str, values: Any) -> dict[str, Any]:
    first, second = sorted((draw(values), draw(values)))
    return draw(st.sampled_from([{}, {low: first}, {high: second}, {low: first, high: second}]))


@st.composite
def strings(draw: Any) -> dict[str, Any]:
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return {"type": "string", "pattern": draw(st.sampled_from(
            ["^[a-f]{2,5}$", "ab+c", "^x", "é|ñ", "^(ab|cd)*$", r"^\d{3}$", r"\w"]
        ))}  # fmt: skip
    if kind == 1:
        return {"type": "string", "format": draw(st.sampled_from(["date", "uuid", "ipv4"]))}
    return {"type": "string", **draw(bounds("minLength", "maxLength", SMALL))}


@st.composite
def numbers(draw: Any) -> dict[str, Any]:
    kind = draw(st.sampled_from(["integer", "number"]))
    low, high = draw(
        st.sampled_from([("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")])
    )
    found: dict[str, Any] = {"type": kind, **draw(bounds(low, high, st.integers(-500, 500)))}
    if kind == "integer" and draw(st.integers(0, 4)) == 0:
        found["multipleOf"] = draw(st.sampled_from([2, 5, 10]))
    return found


@st.composite
def objects(draw: Any, inner: Any) -> dict[str, Any]:
    names = draw(st.lists(NAMES, max_size=4, unique=True))
    found: dict[str, Any] = {
        "type": "object",
        "properties": {name: draw(inner) for name in names},
        "required": draw(st.lists(st.sampled_from(names), unique=True)) if names else [],
    }
    extra = draw(st.sampled_from([False, False, None, "schema"]))
    if extra == "schema":
        found["additionalProperties"] = draw(inner)
    elif extra is not None:
        found["additionalProperties"] = extra
    if draw(st.integers(0, 3)) == 0:
        found["minProperties"] = draw(st.integers(0, 2))
    if draw(st.integers(0, 3)) == 0:
        found["maxProperties"] = draw(st.integers(1, 3))
    return found


@st.composite
def arrays(draw: Any, inner: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "array", **draw(bounds("minItems", "maxItems", SMALL))}
    if draw(st.booleans()):
        found["prefixItems"] = [draw(inner) for _ in range(draw(st.integers(1, 2)))]
    found["items"] = draw(st.one_of(inner, st.just(False)) if "prefixItems" in found else inner)
    return found


LEAVES = st.one_of(
    strings(),
    numbers(),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda value: {"const": value}, SCALARS),
    st.builds(lambda values: {"enum": values}, st.lists(SCALARS, min_size=1, max_size=4)),
    st.just({"type": ["integer", "null"]}),
    st.just({"$ref": "#/$defs/pair"}),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner),
        arrays(inner),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda one, two: {"allOf": [one, two]}, inner, inner),
    ),
    max_leaves=8,
)
PAIR = {"type": "array", "items": {"type": "integer", "maximum": 9}, "minItems": 2, "maxItems": 2}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(write_tiny(tmp_path_factory.mktemp("schemas") / "tiny.gguf", context=1024)) as llm:
        yield llm


def held(llm: LLM, schema: dict[str, Any], seed: int) -> str:
    """Generate under the schema, and check. Returns what became of it."""
    try:
        answer = llm.generate(
            "JSON:",
            response_format={"type": "json_schema", "json_schema": {"schema": schema}},
            max_tokens=250,
            seed=seed,
            temperature=1.0,
        )
    except ConstraintError as error:
        return f"refused: {error.keyword}"
    if answer.finish_reason == "stop":
        jsonschema.validate(json.loads(answer.text), schema, cls=jsonschema.Draft202012Validator)
    return answer.finish_reason


@given(schema=SCHEMAS, seed=st.integers(0, 1000))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_ends_is_valid(llm: LLM, schema: dict[str, Any], seed: int) -> None:
    event(held(llm, {"$defs": {"pair": PAIR}, **schema}, seed))


def test_most_random_schemas_are_taken_and_most_answers_end(llm: LLM) -> None:
    """The test above would pass if all were refused."""
    kinds: dict[str, int] = {}

    @given(schema=SCHEMAS, seed=st.integers(0, 1000))
    @settings(max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    def count(schema: dict[str, Any], seed: int) -> None:
        kind = held(llm, {"$defs": {"pair": PAIR}, **schema}, seed)
        kinds[kind] = kinds.get(kind, 0) + 1

    count()
    assert kinds.get("stop", 0) > sum(kinds.values()) / 2, kinds


@given(
    schemas=st.lists(objects(LEAVES), min_size=1, max_size=3),
    style=st.sampled_from(["hermes", "mistral", "llama3", None]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_called_is_valid(
    llm: LLM, schemas: list[dict[str, Any]], style: str | None, seed: int
) -> None:
    """Arguments that stand within other text, next to braces of their own."""
    marks = {
        "hermes": "<tool_call>",
        "mistral": "[TOOL_CALLS]",
        "llama3": '<|python_tag|>"parameters"',
    }
    named = {f"f{at}": {"$defs": {"pair": PAIR}, **each} for at, each in enumerate(schemas)}
    try:
        answer = llm.chat(
            [{"role": "user", "content": "a"}],
            template=f"{{# tools {marks.get(style or '', '')} #}}a",
            tools=[
                {"type": "function", "function": {"name": name, "parameters": schema}}
                for name, schema in named.items()
            ],
            tool_choice="required",
            max_tokens=300,
            seed=seed,
        )
    except ConstraintError as error:
        event(f"refused: {error.keyword}")
        return
    event(answer.finish_reason)
    assert answer.finish_reason in ("tool_calls", "length")
    for call in answer.tool_calls:
        jsonschema.validate(
            json.loads(call.arguments), named[call.name], cls=jsonschema.Draft202012Validator
        )
    if answer.finish_reason == "tool_calls":
        assert answer.tool_calls
        assert answer.text == ""
