"""Grammars, schemas and forced calls in llama-cpp-python's interface: the model is random, and has
no wish to write them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compat.llama_cpp_behaviour import MESSAGES, PROMPT
from insula.compat.llama_cpp import Llama, LlamaGrammar, LogitsProcessorList, NotHereError
from tiny_chat_model import write_tiny


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    path = write_tiny(tmp_path_factory.mktemp("grammar") / "tiny.gguf", context=1024)
    with Llama(str(path), n_ctx=1024, verbose=False) as llm:
        yield llm


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "parameters": SCHEMA},
}


def test_gbnf(llm: Llama, tmp_path: Path) -> None:
    file = tmp_path / "digits.gbnf"
    file.write_text('root ::= [0-9]+ "!"\n')
    for grammar in (
        LlamaGrammar.from_string('root ::= [0-9]+ "!"'),
        LlamaGrammar.from_file(file),
    ):
        answer: Any = llm(PROMPT, grammar=grammar, max_tokens=60, seed=1)
        [choice] = answer["choices"]
        assert re.fullmatch(r"[0-9]+!?", choice["text"])
        assert choice["text"].endswith("!") is (choice["finish_reason"] == "stop")


def test_a_schema_in_each_way(llm: Llama) -> None:
    grammar = LlamaGrammar.from_json_schema(json.dumps(SCHEMA))
    ways: list[dict[str, Any]] = [
        {"grammar": grammar},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    ]
    texts = set()
    for way in ways:
        answer: Any = llm.create_chat_completion(MESSAGES, max_tokens=80, seed=4, **way)
        [choice] = answer["choices"]
        assert choice["finish_reason"] == "stop"
        texts.add(choice["message"]["content"])
    assert len(texts) == 1
    assert set(json.loads(texts.pop())) == {"n"}
    with pytest.raises(ValueError, match="one form"):
        llm.create_chat_completion(MESSAGES, grammar=grammar, **ways[1])


@pytest.mark.parametrize(
    "choice",
    [
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"function_call": {"name": "weather"}},
    ],
)
def test_a_call_that_is_forced(llm: Llama, choice: dict[str, Any]) -> None:
    ask: Any = llm.create_chat_completion
    options = {"tools": [TOOL], "max_tokens": 150, "seed": 2, **choice}
    [answer] = ask(MESSAGES, **options)["choices"]
    assert answer["finish_reason"] == "tool_calls"
    assert answer["message"]["content"] is None
    [call] = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert set(json.loads(call["function"]["arguments"])) == {"n"}
    chunks = [c["choices"][0] for c in ask(MESSAGES, stream=True, **options)]
    streamed = [c["delta"]["tool_calls"] for c in chunks if "tool_calls" in c["delta"]]
    assert streamed[0][0]["function"] == call["function"]
    assert chunks[-1]["finish_reason"] == "tool_calls"


def test_what_cannot_be(llm: Llama) -> None:
    grammar = LlamaGrammar.from_string("root ::= [0-9]+")
    with pytest.raises(NotHereError, match="logits_processor"):
        llm(PROMPT, grammar=grammar, logits_processor=LogitsProcessorList([lambda i, x: x]))
    with pytest.raises(NotHereError, match="the engine itself generates"):
        llm.sample(grammar=grammar)
    with pytest.raises(ValueError, match="GBNF"):
        llm(PROMPT, grammar=LlamaGrammar.from_string("root ::= ("))
    with pytest.raises(ValueError, match="no tool is called"):
        llm.create_chat_completion(MESSAGES, tools=[TOOL], tool_choice={"function": {"name": "x"}})
    with pytest.raises(ValueError, match="uniqueItems"):
        llm.create_chat_completion(
            MESSAGES,
            response_format={"type": "json_object", "schema": {"uniqueItems": True}},
        )
