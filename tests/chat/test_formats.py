"""The built-in formats write what their models' documentation shows."""

from __future__ import annotations

import pytest

from insula.chat import known
from insula.chat.formats import FORMATS
from insula.chat.templates import ChatTemplate
from insula.errors import ConfigError, TemplateError

SYSTEM = {"role": "system", "content": "Be kind."}
HELLO = {"role": "user", "content": "Hello"}
HI = {"role": "assistant", "content": "Hi"}
BYE = {"role": "user", "content": "Bye"}

#: name -> the prompt for system, user, assistant, user; each as its source writes it.
DOCUMENTED = {
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "llama2": (
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHello [/INST] Hi </s><s>[INST] Bye [/INST]"
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "gemma": (
        "<s><start_of_turn>user\nBe kind.\n\nHello<end_of_turn>\n"
        "<start_of_turn>model\nHi<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n"
        "<start_of_turn>model\n"
    ),
    "phi3": (
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi<|end|>\n"
        "<|user|>\nBye<|end|>\n<|assistant|>\n"
    ),
    "zephyr": (
        "<|system|>\nBe kind.</s>\n<|user|>\nHello</s>\n<|assistant|>\nHi</s>\n"
        "<|user|>\nBye</s>\n<|assistant|>\n"
    ),
    "vicuna": "<s>Be kind. USER: Hello ASSISTANT: Hi</s> USER: Bye ASSISTANT:",
    "alpaca": (
        "<s>Be kind.\n\n### Instruction:\nHello\n\n### Response:\nHi</s>"
        "\n\n### Instruction:\nBye\n\n### Response:\n"
    ),
    "mistral": "<s>[INST] Be kind.\n\nHello [/INST] Hi</s>[INST] Bye [/INST]",
}


def named(name: str) -> ChatTemplate:
    return ChatTemplate.named(name, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", FORMATS)
def test_documented_prompts(name: str) -> None:
    assert named(name).render([SYSTEM, HELLO, HI, BYE]) == DOCUMENTED[name]


@pytest.mark.parametrize("name", FORMATS)
def test_formats_render_in_this_process(name: str) -> None:
    assert known.origin(FORMATS[name]) == f"insula's {name} format"


@pytest.mark.parametrize("name", FORMATS)
def test_a_turn_only_adds_to_the_prompt(name: str) -> None:
    """What a session's cache lives from: the earlier prompt is the beginning of the later one."""
    before = named(name).render([SYSTEM, HELLO])
    after = named(name).render([SYSTEM, HELLO, HI, BYE])
    assert after.startswith(before)


@pytest.mark.parametrize("name", FORMATS)
def test_what_has_no_place_is_refused(name: str) -> None:
    with pytest.raises(TemplateError, match="no place for tools"):
        named(name).render([HELLO], tools=[{"type": "function"}])
    if name not in ("chatml", "llama3"):  # their turns take any role
        for messages in ([HELLO, SYSTEM], [{"role": "tool", "content": "x"}]):
            with pytest.raises(TemplateError, match="no place for the role"):
                named(name).render(messages)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        named("llama9")
    assert all(name in str(caught.value) for name in ("'llama9'", *FORMATS))
