"""`insula run` with a model that is not a file: an address."""

from __future__ import annotations

from backends.openai_server import OpenAIServer, answer
from cli.conftest import Insula
from insula import LLM

OPTIONS = ("--max-tokens", "6", "--temperature", "0")


def test_a_question_to_another_server(insula: Insula, shared_llm: LLM) -> None:
    with OpenAIServer(shared_llm) as server:
        done = insula("run", server.model, "hello", *OPTIONS)
        raw = insula("run", server.model, "hello", "--raw", *OPTIONS)
        piped = insula("run", server.model, *OPTIONS, stdin="hello")
        empty = insula("run", server.model)
    messages = [{"role": "user", "content": "hello"}]
    expected = shared_llm.chat(messages, max_tokens=6, temperature=0).text.strip()
    assert (done.stdout.strip(), done.stderr) == (expected, "")
    assert piped.stdout.strip() == expected
    plain = shared_llm.generate("hello", max_tokens=6, temperature=0).text.strip()
    assert raw.stdout.strip() == plain
    assert empty.returncode == 2
    assert "empty" in empty.stderr


def test_its_failures_are_one_line(insula: Insula, shared_llm: LLM) -> None:
    with OpenAIServer(shared_llm) as server:
        server.faults.append(answer(503, {"error": {"message": "loading the model"}}))
        done = insula("run", server.model, "hello", *OPTIONS)
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert "is busy (503): loading the model" in line
    gone = insula("run", server.model, "hello", *OPTIONS)
    assert "nothing answers at" in gone.stderr
