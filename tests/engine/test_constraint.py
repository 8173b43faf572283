"""Constrained decoding on a tiny random model: what it writes is what the constraint describes.

A random model has no wish to write JSON, so whatever valid comes out is the mask's doing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from insula import LLM
from insula.engine import constraint as constraint_module
from insula.engine import grammars
from insula.engine.constraint import MAX_COMPILED, MAX_COMPILED_CHARACTERS, Constraints
from insula.errors import ConfigError, ConstraintError, EngineError
from insula.types import Constraint
from tiny_chat_model import write_tiny

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def held(schema: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("constraint") / "tiny.gguf", context=2048)


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(model) as llm:
        yield llm


@pytest.mark.parametrize("seed", range(6))
def test_a_random_model_writes_what_the_schema_allows(llm: LLM, seed: int) -> None:
    answer = llm.generate("A person:", response_format=held(PERSON), max_tokens=400, seed=seed)
    assert answer.finish_reason == "stop"
    jsonschema.validate(json.loads(answer.text), PERSON)


def test_greedy_too_and_it_ends_by_itself(llm: LLM) -> None:
    answer = llm.generate("A", response_format=held({"const": 7}), max_tokens=50, temperature=0)
    assert (answer.text, answer.finish_reason) == ("7", "stop")
    assert answer.report.completion_tokens == len(answer.token_ids)
    # The last token completed it: no end token was waited for.
    exact = len(answer.token_ids)
    again = llm.generate("A", response_format=held({"const": 7}), max_tokens=exact, temperature=0)
    assert again.finish_reason == "stop"


def test_what_is_cut_off_says_length(llm: LLM) -> None:
    schema = {"type": "string", "minLength": 50}
    answer = llm.generate("A", response_format=held(schema), max_tokens=5, seed=1)
    assert answer.finish_reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.text)


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Constraint(kind="regex", text=r"[0-9]{3}-[a-c]{2,4}"), r"[0-9]{3}-[a-c]{2,4}"),
        (Constraint(kind="lark", text='start: "yes" | "no" /b{1,3}/'), r"yes|nob{1,3}"),
        (Constraint(kind="gbnf", text='root ::= "<" word ">"\nword ::= [a-d]{2}'), r"<[a-d]{2}>"),
        (Constraint(kind="gbnf", text=r'root ::= [\u00e9-\u00fc] "\\" "\x41"'), r"[é-ü]\\A"),
        (Constraint(kind="regex", text=" a"), " a"),
    ],
)
def test_other_grammars(llm: LLM, constraint: Constraint, pattern: str) -> None:
    for seed in range(4):
        answer = llm.generate("Say", constraint=constraint, max_tokens=60, seed=seed)
        assert answer.finish_reason == "stop"
        assert re.fullmatch(pattern, answer.text), answer.text


#: JSON of lists and strings in GBNF: escapes, classes, counts, comments.
NESTED = r"""
root   ::= list
list   ::= "[" ws (item ("," ws item)*)? "]"
item   ::= list | string # either
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-f]{4})
  ){0,6} "\""
ws     ::= | " " | "\n" [ \t]{0,3}
"""


def test_gbnf_with_all_its_notation(llm: LLM) -> None:
    ended = 0
    for seed in range(10):
        answer = llm.generate("Say", grammar=NESTED, max_tokens=200, seed=seed)
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.text), list)
            ended += 1
    assert ended


def test_any_object(llm: LLM) -> None:
    ended = 0
    for seed in range(12):
        answer = llm.generate(
            "Say", response_format={"type": "json_object"}, max_tokens=200, seed=seed
        )
        assert answer.text.startswith("{")
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.text), dict)
            ended += 1
    assert ended


def test_log_probabilities_are_those_of_the_model(llm: LLM) -> None:
    """The mask chooses; what is reported is the raw distribution, over all tokens."""
    constraint = Constraint(kind="regex", text="[0-9]{4}")
    answer = llm.generate("Say", constraint=constraint, max_tokens=9, seed=3, logprobs=3)
    assert answer.logprobs is not None
    ids = (*llm.tokenize("Say"), *answer.token_ids)
    raw = llm.logits(ids)
    n = len(ids) - len(answer.token_ids)
    for at, entry in enumerate(answer.logprobs):
        row = raw[n + at - 1].astype(np.float64)
        expected = row[entry.token_id] - (np.logaddexp.reduce(row))
        assert entry.logprob == pytest.approx(expected, abs=1e-4)
        assert len(entry.top) == 3
        assert entry.top[0][2] >= entry.logprob


def test_a_control_token_is_no_way_to_write_its_name(llm: LLM) -> None:
    answer = llm.generate("Say", grammar='start: "<|end|>"', max_tokens=40, seed=1)
    assert answer.text == "<|end|>"
    assert not any(llm.tokenizer.is_special(i) for i in answer.token_ids)


def test_only_one_form(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="response_format and grammar were given"):
        llm.generate("A", response_format={"type": "json_object"}, grammar='start: "a"')
    for wrong in (
        {"type": "json"},
        {},
        "json_object",
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_object", "schema": {}},
        {"type": "json_schema", "json_schema": {"schema": {}, "strikt": True}},
    ):
        with pytest.raises(ConfigError, match="response_format"):
            llm.generate("A", response_format=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConstraintError, match="no rule to start from"):
        llm.generate("A", grammar="anything")
    plain = llm.generate("A", response_format={"type": "text"}, max_tokens=5, seed=1)
    assert plain.token_ids == llm.generate("A", max_tokens=5, seed=1).token_ids


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "string", "format": "klingon"}, "format"),
        ({"oneOf": [{"type": "object"}, {"type": "object", "properties": {"a": {}}}]}, "oneOf"),
        ({"$ref": "https://example.org/schema"}, "$ref"),
        ({"type": "strin"}, "type"),
        ({"if": {}, "then": {}}, "if"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
        ({"type": "array", "items": [{}], "additionalItems": False}, "additionalItems"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
    ],
)
def test_what_cannot_be_held_is_named(llm: LLM, schema: object, keyword: str) -> None:
    with pytest.raises(ConstraintError, match=re.escape(keyword)) as caught:
        llm.generate("A", response_format=held(schema), max_tokens=3)
    assert caught.value.keyword == keyword
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "schema", ['{"type": "object", "minProperties": 3}', '{"additionalItems": false}']
)
def test_a_schema_inside_another_grammar_is_no_way_around(llm: LLM, schema: str) -> None:
    named = r"minProperties|additionalItems"
    for constraint in (
        Constraint(kind="lark", text=f'start: "%json {{" /a"/ // "\n | %json {schema} "b"'),
        Constraint(kind="llguidance", text=f'{{"grammars": [{{"json_schema": {schema}}}]}}'),
        Constraint(
            kind="llguidance",
            text=json.dumps({"grammars": [{"lark_grammar": f"start: %json{schema}"}]}),
        ),
    ):
        with pytest.raises(ConstraintError, match=named) as caught:
            llm.generate("A", constraint=constraint, max_tokens=3)
        assert caught.value.keyword in named.split("|")
    # What only looks like one is text.
    text = json.dumps(f"%json {schema}")
    said = llm.generate("A", grammar=f"start: {text}", max_tokens=60, seed=1)
    assert said.text == json.loads(text)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint(kind="json_schema", text="{"), "not JSON"),
        (Constraint(kind="json_schema", text="3"), "is int"),
        (Constraint(kind="json_schema", text="false"), "allows nothing"),
        (Constraint(kind="json_schema", text='{"const": NaN}'), "not JSON"),
        (Constraint(kind="json_schema", text=""), "is empty"),
        (Constraint(kind="llguidance", text="[" * 300 + "]" * 300), "nested too deeply"),
        (Constraint(kind="regex", text="(a"), "cannot be followed"),
        (Constraint(kind="regex", text="(?=a)b"), "look-around"),
        (Constraint(kind="lark", text="start: nothing"), "cannot be followed"),
        (Constraint(kind="gbnf", text="root ::= ("), "GBNF"),
        (Constraint(kind="llguidance", text="[]"), "grammars"),
        (Constraint(kind="lark", text="start: <|no_such_token|>"), "cannot be followed"),
        (Constraint(kind="json_schema", text='{"$ref": "#"}'), "no answer of this model"),
        (Constraint(kind="llguidance", text='{"grammars": ["a"]}'), "a grammar is str"),
        (Constraint(kind="regex", text="a\ud800"), r"lone surrogate \('\\ud800'\)"),
        (Constraint(kind="json_schema", text='{"const": "\\ud800"}'), "lone surrogate"),
        (Constraint(kind="gbnf", text=r'root ::= "\uD800"'), r"no character U\+D800"),
        (Constraint(kind="gbnf", text=r'root ::= "\UFFFFFFFF"'), r"no character U\+FFFFFFFF"),
        (Constraint(kind="yaml", text="a"), "allowed"),  # type: ignore[arg-type]
        ("a", "Constraint"),
    ],
)
def test_what_is_no_constraint(llm: LLM, constraint: Constraint, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        llm.generate("A", constraint=constraint, max_tokens=3)


BOMBS = {
    "deep": Constraint(kind="json_schema", text='{"items":' * 100_000 + "{}" + "}" * 100_000),
    "deep list": Constraint(kind="json_schema", text="[" * 100_000 + "]" * 100_000),
    "just too deep": Constraint(kind="json_schema", text='{"items":' * 70 + "{}" + "}" * 70),
    "cycle": Constraint(
        kind="json_schema",
        text='{"$ref":"#/$defs/a","$defs":{"a":{"allOf":[{"$ref":"#/$defs/b"}]},'
        '"b":{"allOf":[{"$ref":"#/$defs/a"}]}}}',
    ),
    "long": Constraint(kind="json_schema", text='{"const": "' + "a" * 300_000 + '"}'),
    "wide": Constraint(
        kind="json_schema",
        text=json.dumps(
            {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(6000)}}
        ),
    ),
    "products": Constraint(
        kind="json_schema",
        text=json.dumps(
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(4)]}
                    for i in range(12)
                ]
            }
        ),
    ),
    "deep in a list of grammars": Constraint(
        kind="llguidance",
        text='{"grammars": [{"json_schema": ' + '{"items":' * 400 + "{}" + "}" * 400 + "}]}",
    ),
    "deep in Lark": Constraint(
        kind="lark", text="start: %json " + '{"items":' * 20_000 + "{}" + "}" * 20_000
    ),
    "prime": Constraint(kind="json_schema", text='{"type": "integer", "multipleOf": 9999991}'),
    "and not": Constraint(
        kind="lark",
        text="start: A\nA: /(.|\\n)*a(.|\\n){30}/ & "
        "/(.|\\n)*b(.|\\n){29}/ & ~/(.|\\n)*c(.|\\n){28}/",
    ),
    "brackets": Constraint(kind="lark", text="start: " + "(" * 50_000 + '"a"' + ")" * 50_000),
    "brackets of a regex": Constraint(kind="regex", text="(" * 50_000 + "a" + ")" * 50_000),
    "rules that name each other": Constraint(
        kind="gbnf",
        text="root ::= r0\n"
        + "\n".join(f"r{i} ::= r{i + 1}" for i in range(9000))
        + '\nr9000 ::= "a"',
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(llm: LLM, name: str) -> None:
    with pytest.raises(ConstraintError):
        llm.generate("A", constraint=BOMBS[name], max_tokens=3)
    # And the next request succeeds.
    assert llm.generate("A", response_format=held({"const": 1}), max_tokens=9).text == "1"


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Constraint(kind="regex", text="(a+)+$"), "a+"),
        (Constraint(kind="regex", text="a{1,1000000000}"), "a+"),
        (Constraint(kind="json_schema", text='{"type": "string", "maxLength": 1000000000}'), ".*"),
        (Constraint(kind="lark", text='start: a\na: a a | "b"'), "b+"),
    ],
)
def test_what_only_looks_like_a_bomb_works(llm: LLM, constraint: Constraint, pattern: str) -> None:
    answer = llm.generate("A", constraint=constraint, max_tokens=24, seed=4)
    assert re.fullmatch(pattern, answer.text, re.DOTALL)


def test_the_cache_is_bounded(llm: LLM) -> None:
    constraints = Constraints(llm.tokenizer, n_vocab=llm.model_info.n_vocab)
    for at in range(3 * MAX_COMPILED):
        constraints.matcher(Constraint(kind="json_schema", text=json.dumps({"const": at})))
        assert len(constraints) <= MAX_COMPILED
    assert len(constraints) == MAX_COMPILED


def test_the_cache_is_bounded_in_memory_too(llm: LLM) -> None:
    """Long texts make large grammars: a few are kept, and the last one always."""
    constraints = Constraints(llm.tokenizer, n_vocab=llm.model_info.n_vocab)
    for at in range(5):
        values = [f"{at}-{i:05}" for i in range(20_000)]
        text = json.dumps({"enum": values})
        constraints.matcher(Constraint(kind="json_schema", text=text))
        assert 1 <= len(constraints) <= MAX_COMPILED_CHARACTERS // len(text)
    assert len(constraints) == MAX_COMPILED_CHARACTERS // len(text)


def test_a_constraint_that_takes_too_long_ends_by_itself(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other requests would wait for it."""
    options: dict[str, Any] = {"max_tokens": 20, "seed": 1, "ignore_eos": True}
    grammar = "start: a\na: /[a-z ]/ | a a | a a a"
    assert llm.generate("A", grammar=grammar, **options).finish_reason == "length"
    with monkeypatch.context() as patched:
        patched.setattr(constraint_module, "SECONDS", -1.0)  # so that no clock decides
        with pytest.raises(EngineError, match="0 tokens of it took"):
            llm.generate("A", grammar=grammar, **options)
    assert llm.generate("A", response_format=held({"const": 1}), max_tokens=9).text == "1"


def test_plain_schemas_need_no_trial() -> None:
    """What costs a process is decided by keywords, wherever they stand."""
    plain = [
        PERSON,
        {"$ref": "#/$defs/a", "$defs": {"a": {"enum": [{"pattern": 1}]}}},
        {"type": "object", "properties": {"pattern": {"type": "string"}}},
    ]
    risky = [
        {"pattern": "a"},
        {"items": {"multipleOf": 3}},
        {"anyOf": [{"allOf": []}]},
        {"properties": {"a": {"format": "date"}}},
        {"$defs": {"properties": {"multipleOf": 3}}},
    ]
    for schema in plain:
        assert grammars._is_plain(grammars.schema_grammar(schema)), schema
    for schema in risky:
        assert not grammars._is_plain(grammars.schema_grammar(schema)), schema
    assert grammars._is_plain({"lark_grammar": 'start: "&~/" a\na: T\nT: /(.|\\n)*/'})
    for lark in ("start: /a/", "start: A & B", "start: ~A", "%ignore A", 'start: "a"{3}'):
        assert not grammars._is_plain({"lark_grammar": lark})
