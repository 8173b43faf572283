"""Anthropic's own client against the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anthropic
import pytest

from insula import LLM

MESSAGES = [{"role": "user", "content": "the cat sat on the mat"}]
#: This client has no word for the temperature any more.
GREEDY = {"temperature": 0.0}
ASKED = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "extra_body": GREEDY}


@pytest.fixture
def client(served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def llm(files: dict[str, Path]) -> Iterator[LLM]:
    with LLM(files["tiny"]) as loaded:
        yield loaded


def test_a_message_whole_and_streamed(client, llm):
    own = llm.chat(MESSAGES, max_tokens=8, temperature=0)
    whole = client.messages.create(**ASKED)
    assert whole.content[0].text == own.text
    assert whole.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == 8
    read = whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    assert read == own.report.prompt_tokens
    with client.messages.stream(**ASKED) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0].text == own.text
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 8
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-1] == "message_stop"


def test_system_parts_and_stop_sequences(client, llm):
    spoken = [{"role": "system", "content": "be a cat"}, *MESSAGES]
    text = llm.chat(spoken, max_tokens=12, temperature=0).text
    parts = [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]
    asked = {**ASKED, "max_tokens": 12, "messages": parts, "system": "be a cat"}
    assert client.messages.create(**asked).content[0].text == text
    stopped = client.messages.create(**asked, stop_sequences=[text[4:6]])
    assert stopped.content[0].text == text[: text.index(text[4:6])]
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", text[4:6])


def test_count_tokens(client, llm):
    found = client.messages.count_tokens(model="tiny", messages=MESSAGES, system="be a cat")
    spoken = [{"role": "system", "content": "be a cat"}, *MESSAGES]
    assert found.input_tokens == llm.count_chat(spoken)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ({"tool_choice": {"type": "perhaps"}}, "tool_choice"),
        ({"container": "c"}, "container"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "Sure"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages"),
        ({"max_tokens": 4096}, "holds 512"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
    ],
)
def test_errors_in_their_shape(client, asked, named):
    with pytest.raises(anthropic.BadRequestError, match=named) as caught:
        client.messages.create(**{**ASKED, "extra_body": asked})
    assert caught.value.body["error"]["type"] == "invalid_request_error"


def test_no_such_model(client):
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(**{**ASKED, "model": "nobody"})
    assert caught.value.body["error"]["type"] == "not_found_error"
