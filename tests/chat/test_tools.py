"""Tools through published templates: how each tells of its calls, what it makes of a history."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from insula.chat.calling import calling, held_to
from insula.chat.prompt import ChatFormat
from insula.chat.reasoning import detect
from insula.chat.reply import Reply
from insula.chat.templates import ChatTemplate
from insula.chat.tool_calls import CallReader, read
from insula.chat.tools import HERMES, LLAMA3, MISTRAL, CallFormat, call_format
from insula.engine.constraint import Constraints
from insula.errors import TemplateError, UnsupportedError
from insula.tokenizer import Tokenizer
from insula.types import Chunk
from tokenizer import small

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Says how the weather is.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Avilés"}'},
}
HISTORY = [
    {"role": "user", "content": "How is it in Avilés?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": "It rains."},
]

#: How the templates of the shared folder tell of calls.
KNOWN: dict[str, CallFormat | None] = {
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": HERMES,
    "Qwen-Qwen2.5-7B-Instruct": HERMES,
    "Qwen-Qwen3-0.6B": HERMES,
    "meta-llama-Llama-3.1-8B-Instruct": LLAMA3,
    "mistralai-Mistral-Nemo-Instruct-2407": MISTRAL,
    "HuggingFaceTB-SmolLM3-3B": None,
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": None,
    "google-gemma-2-2b-it": None,
    "microsoft-Phi-3.5-mini-instruct": None,
}
CONTROL = ["<|python_tag|>", "[TOOL_CALLS]"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    extra = [(name, small.CONTROL) for name in CONTROL]
    return Tokenizer.from_metadata(small.byte_level(extra=extra))


def chat_format(source: str, tokenizer: Tokenizer, tools: Any, choice: Any = None) -> ChatFormat:
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    called = calling(source, tools, tool_choice=choice)
    return ChatFormat(
        tokenizer=tokenizer, template=template, tools=called.for_template, calling=called
    )


@pytest.mark.parametrize("name", KNOWN)
def test_published_templates(
    published_templates: dict[str, str], tokenizer: Tokenizer, name: str
) -> None:
    source = published_templates[name]
    assert call_format(source) == KNOWN[name]
    offering = chat_format(source, tokenizer, [TOOL])
    first = offering.render(HISTORY[:1]).text
    assert "get_weather" in first
    assert "Says how the weather is." in first
    assert bool(offering.notes) is (KNOWN[name] is None)
    # What was called and what came of it are there, with tools and without.
    forms = [offering, chat_format(source, tokenizer, [TOOL], "none")]
    if name.endswith("tool_use"):  # a template for conversations with tools alone
        del forms[1]
    for form in forms:
        text = form.render(HISTORY).text
        assert "get_weather" in text
        assert "It rains." in text
        assert '"city": "Avilés"' in text


def test_channels_are_not_connected(published_templates: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match="harmony"):
        call_format(published_templates["openai-gpt-oss-120b"])


def test_a_template_that_refuses_every_way_says_why(tokenizer: Tokenizer) -> None:
    with pytest.raises(TemplateError, match="never"):
        chat_format("{{ raise_exception('never') }}", tokenizer, [TOOL]).render(HISTORY)


def written(form: CallFormat, calls: list[tuple[str, str]]) -> str:
    """Calls as the format has them."""
    each = [
        f'{form.before}{{"name": "{name}", "{form.key}": {arguments}}}{form.after}'
        for name, arguments in calls
    ]
    opening = "" if form.by_brace else form.opening
    return opening + form.first + form.between.join(each) + form.closing


ARGUMENTS = ['{"city": "a}]</tool_call>\\" [TOOL_CALLS]{"}', "{}", '{"x": {"y": [1, {"z": "}"}]}}']


@pytest.mark.parametrize("form", [HERMES, MISTRAL, LLAMA3], ids=lambda form: form.name)
def test_calls_are_read_however_they_are_cut(form: CallFormat) -> None:
    n = 1 if form.single else 3
    calls = [(f"tool_{at}", ARGUMENTS[at]) for at in range(n)]
    said = "" if form.by_brace else "Let me see <tool. "
    text = said + written(form, calls)
    whole = read(form, text, salt="s")
    assert whole.text == said
    assert [(call.name, call.arguments) for call in whole.calls] == calls
    assert len({call.id for call in whole.calls}) == n
    assert all(len(call.id.removeprefix("call_")) == form.id_length for call in whole.calls)
    for step in (1, 2, 3, 7, 50):
        reader = CallReader(form, salt="s")
        parts = [reader.push(text[at : at + step]) for at in range(0, len(text), step)]
        parts.append(reader.flush())
        assert "".join(part.text for part in parts) == whole.text
        assert tuple(call for part in parts for call in part.calls) == whole.calls
        assert not any(form.opening in part.text for part in parts)


@pytest.mark.parametrize("form", [HERMES, MISTRAL, LLAMA3], ids=lambda form: form.name)
def test_what_is_cut_off_stays_text_and_is_no_call(form: CallFormat) -> None:
    text = written(form, [("now", '{"a": 1}')])
    end = text.rindex("}") + 1
    for cut in range(end):
        found = read(form, text[:cut], salt="s")
        assert not found.calls
        assert found.text == text[:cut]
    for cut in range(end, len(text) + 1):
        found = read(form, text[:cut], salt="s")
        assert len(found.calls) == 1
        assert found.text == ""


def test_text_that_is_none_of_it_is_text() -> None:
    for form in (HERMES, MISTRAL, LLAMA3):
        for text in ("", "  ", "Hello {x}", "<tool", "[TOOL", "<|python", "\n\n1 < 2"):
            reader = CallReader(form, salt="s")
            parts = [*(reader.push(sign) for sign in text), reader.flush()]
            assert "".join(part.text for part in parts) == text
            assert not any(part.calls for part in parts)


def test_reasoning_is_read_before_calls() -> None:
    reply = Reply("<think></think>", "prompt", calls=HERMES)
    call = written(HERMES, [("now", "{}")])
    text = f"<think>I may call <tool_call> now.</think>\n\n{call}"
    chunks = [
        reply.chunk(Chunk(text=text[at : at + 4], token_ids=())) for at in range(0, len(text), 4)
    ]
    assert "".join(chunk.reasoning for chunk in chunks) == "I may call <tool_call> now."
    assert [call.name for chunk in chunks for call in chunk.tool_calls] == ["now"]
    assert "".join(chunk.text for chunk in chunks) == ""


@pytest.mark.parametrize("name", [name for name, form in KNOWN.items() if form])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_the_grammar_takes_what_the_model_was_trained_on(
    published_templates: dict[str, str], tokenizer: Tokenizer, name: str, choice: str
) -> None:
    """A call as the format has it, control tokens and all, and no other."""
    source = published_templates[name]
    form = KNOWN[name]
    assert form is not None
    called = calling(source, [TOOL], tool_choice=choice)
    prompt = chat_format(source, tokenizer, [TOOL]).render(HISTORY[:1]).text
    constraint = held_to(
        None, called, thinking=detect(source, prompt), prompt=prompt, tokenizer=tokenizer
    )
    assert constraint is not None
    constraints = Constraints(tokenizer, n_vocab=tokenizer.vocab_size)

    def follows(text: str) -> tuple[bool, bool]:
        """Whether the text may come, and whether it may end there."""
        matcher = constraints.matcher(constraint)
        for token in tokenizer.encode(text, add_special=False, parse_special=True):
            if not has(matcher.allowed(), token):
                return False, False
            matcher.accept(token)
        whole = matcher.ended or has(matcher.allowed(), min(tokenizer.eog_ids))
        return True, whole

    good = written(form, [("get_weather", '{"city": "Avilés"}')])
    assert follows(good) == (True, True)
    assert follows(good[: good.index('"city"')]) == (True, False)
    assert follows(written(form, [("get_weather", '{"town": "Avilés"}')])) == (False, False)
    assert follows(written(form, [("get_rich", "{}")])) == (False, False)
    two = written(form, [("get_weather", '{"city": "a"}'), ("get_weather", '{"city": "b"}')])
    assert follows(two) == ((False, False) if form.single else (True, True))
    free = follows("It is fine, I believe.")
    assert free == ((True, True) if choice == "auto" else (False, False))
    if form is LLAMA3:
        assert follows("<|python_tag|>" + good) == (True, True)


def has(mask: np.ndarray, token: int) -> bool:
    return bool(int(mask[token // 32]) >> (token % 32) & 1)


def test_json_of_the_description_is_one_line_a_tool(tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    text = (
        chat_format(source, tokenizer, [TOOL, {"function": {"name": "now"}}])
        .render([{"role": "system", "content": "Be kind."}, *HISTORY])
        .text
    )
    listed = text.split("<tools>\n")[1].split("\n</tools>")[0].split("\n")
    assert [json.loads(line)["name"] for line in listed] == ["get_weather", "now"]
    assert text.startswith("[system]Be kind.\n\nYou can call these tools.")
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Avilés"}}' in text
    assert "[user]The result of get_weather:\nIt rains." in text
