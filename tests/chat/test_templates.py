"""ChatTemplate: where it takes its source from, what it accepts, what it says when it cannot."""

from __future__ import annotations

import datetime as dt
import enum
import subprocess
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest

from insula.chat.formats import FORMATS
from insula.chat.templates import ChatTemplate
from insula.errors import TemplateError

HELLO = [{"role": "user", "content": "Hello"}]
SHOW = "{{ messages | tojson }}|{{ tools | tojson }}|{{ bos_token }}|{{ add_generation_prompt }}"


@dataclass
class FakeTokenizer:
    chat_template: str | None
    bos_id: int | None = 0
    eos_id: int | None = 1

    def token_bytes(self, token_id: int, /) -> bytes:
        return [b"<s>", "</ſ>".encode()][token_id]


def test_of_a_tokenizer() -> None:
    tokenizer = FakeTokenizer("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    assert ChatTemplate.of(tokenizer).render(HELLO) == "<s>Hello</ſ>"
    assert ChatTemplate.of(tokenizer, name="mistral").render(HELLO) == "<s>[INST] Hello [/INST]"
    tokenizer.bos_id = None
    assert ChatTemplate.of(tokenizer).render(HELLO) == "Hello</ſ>"


def test_a_model_without_template_names_the_ways_out() -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate.of(FakeTokenizer(None))
    assert all(name in str(caught.value) for name in ("no chat template", *FORMATS))
    with pytest.raises(TemplateError, match="is empty"):
        ChatTemplate.of(FakeTokenizer(" \n"))


def test_options_reach_the_template_and_none_is_none() -> None:
    template = ChatTemplate("{{ a }} {{ b is none }} {{ c is defined }} {{ d.e[0] }}")
    assert template.render(HELLO, a=1.5, b=None, d={"e": ("x",)}) == "1.5 True False x"
    assert ChatTemplate(SHOW).render(HELLO, add_generation_prompt=False).endswith("|null||False")


def test_the_clock() -> None:
    template = ChatTemplate(
        "{% macro m() %}{{ strftime_now('%Y-%m-%d %H') }}{% endmacro %}{{ m() }}"
    )
    assert template.render(HELLO, now=dt.datetime(1605, 1, 16, 9, tzinfo=dt.UTC)) == "1605-01-16 09"
    before = dt.datetime.now().astimezone()
    shown = template.render(HELLO)
    after = dt.datetime.now().astimezone()
    assert f"{before:%Y-%m-%d %H}" <= shown <= f"{after:%Y-%m-%d %H}"


class Role(str, enum.Enum):  # noqa: UP042 - whose str() is not its value
    USER = "user"


def test_data_of_any_mapping_or_sequence_is_taken() -> None:
    class Text(str):  # noqa: SLOT000
        def secret(self) -> str:
            return "seen"

    messages = (
        MappingProxyType({"role": Role.USER, "content": Text("x")}),
        OrderedDict(role="user", content=["a", ("b",)]),
    )
    assert ChatTemplate("{{ messages | tojson }}").render(messages) == (
        '[{"role": "user", "content": "x"}, {"role": "user", "content": ["a", ["b"]]}]'
    )
    probe = ChatTemplate.named("chatml")
    assert probe.render(messages[:1]).startswith("<|im_start|>user\nx")
    with pytest.raises(TemplateError, match="secret"):
        ChatTemplate("{{ messages[0].content.secret() }}").render(messages)


@pytest.mark.parametrize(
    ("messages", "options", "says"),
    [
        (["hello"], {}, "a message is a str"),
        ("hello", {}, "a message is a str"),
        ([{"role": "user", "content": b"x"}], {}, r"message.content holds a bytes"),
        ([{"role": "user", "content": [1, {"x": object()}]}], {}, r"content\[1\].x holds a object"),
        ([{1: "x"}], {}, "has the key 1"),
        (HELLO, {"tools": [lambda: 1]}, r"tools\[0\] holds a function"),
        (HELLO, {"thing": {2}}, r"option.thing holds a set"),
        (HELLO, {"documents": [{"x": 1j}]}, r"documents\[0\].x holds a complex"),
    ],
)
def test_data_that_is_not_plain_is_refused(
    messages: Any, options: dict[str, Any], says: str
) -> None:
    for template in (ChatTemplate.named("chatml"), ChatTemplate(SHOW)):
        with pytest.raises(TemplateError, match=says):
            template.render(messages, **options)


def test_data_nested_too_deeply_is_refused() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    for template in (ChatTemplate.named("chatml"), ChatTemplate(SHOW)):
        with pytest.raises(TemplateError, match="nested too deeply"):
            template.render([{"role": "user", "content": deep}])


def test_text_of_every_kind_survives_the_child() -> None:
    text = "".join(map(chr, [0, 1, 9, 10, 13, 34, 92, 127, 0x2028, 0xD800, 0xDFFF, 0x1F680])) + "é"
    assert ChatTemplate("{{ messages[0].content }}").render([{"content": text}]) == text


def test_arguments_are_left_alone() -> None:
    messages = [{"role": "assistant", "content": "x", "reasoning": "y"}]
    ChatTemplate.named("chatml").render(messages)
    assert messages == [{"role": "assistant", "content": "x", "reasoning": "y"}]


def test_a_template_may_refuse_messages() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TemplateError, match="refuses these messages: roles must alternate"):
        template.render(HELLO)


def test_long_conversations_leave_this_process(published_templates: dict[str, str]) -> None:
    """gpt-oss looks ahead from each tool call: ten thousand of them would take minutes here."""
    template = ChatTemplate(published_templates["openai-gpt-oss-120b"])
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    before = time.process_time()
    with pytest.raises(TemplateError, match="1 s of processor time"):
        template.render([*HELLO, *[call] * 20_000])
    assert time.process_time() - before < 5


def test_prepare_makes_ready_and_never_raises() -> None:
    for source in ("{{ messages }}", "{% broken", FORMATS["chatml"]):
        ChatTemplate(source).prepare()
    assert ChatTemplate.named("chatml").render([]) == "<|im_start|>assistant\n"


def test_jinja_is_imported_by_the_first_render_only() -> None:
    program = (
        "import sys, insula.chat.templates as t, insula.chat.reasoning\n"
        "a = t.ChatTemplate.named('chatml'); b = t.ChatTemplate('{{ messages }}')\n"
        "assert 'jinja2' not in sys.modules\n"
        "b.render([])\n"
        "assert 'jinja2' not in sys.modules\n"
        "a.render([])\n"
        "assert 'jinja2' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
