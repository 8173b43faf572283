"""Text that goes on: after a prompt, or as the answer to a conversation.

Results are transformers': one mapping with generated_text for each sequence asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from insula.engine.options import samples
from insula.engine.stream import Stream
from insula.errors import ConfigError
from insula.llm import LLM
from insula.tasks.inputs import is_chat, listed, sequence
from insula.tasks.options import generation
from insula.tasks.prompts import check_generates
from insula.types import Completion, Message, SamplingParams

_OTHERS = ("num_return_sequences", "return_full_text")


def text_generation(
    llm: LLM,
    inputs: Any,
    *,
    num_return_sequences: int = 1,
    return_full_text: bool = True,
    **options: Any,
) -> list[Any]:
    """[{"generated_text"}] of one prompt, a list of such lists of several, which run together.

    inputs: text, conversations (lists of messages; see `chat`), or a list of either.
    return_full_text: the prompt's text in front. num_return_sequences: so many of each prompt.
    options: max_new_tokens, do_sample, temperature and the rest of `options.NAMES`.
    Raises ConfigError, ContextOverflowError, UnsupportedError.
    """
    one_chat = is_chat(inputs)
    if one_chat or (isinstance(inputs, list | tuple) and inputs and is_chat(inputs[0])):
        return chat(
            llm,
            inputs,
            num_return_sequences=num_return_sequences,
            return_full_text=return_full_text,
            **options,
        )
    check_generates(llm)
    params = generation(llm, options, others=_OTHERS)
    texts, one = listed(inputs)
    completions = llm.generate(texts, params, n=num_return_sequences)
    results = []
    for i, text in enumerate(texts):
        of_this = completions[i * num_return_sequences : (i + 1) * num_return_sequences]
        before = text if return_full_text else ""
        results.append([{"generated_text": before + each.text} for each in of_this])
    return results[0] if one else results


def chat(
    llm: LLM,
    inputs: Any,
    *,
    num_return_sequences: int = 1,
    return_full_text: bool = True,
    **options: Any,
) -> list[Any]:
    """The assistant's answers: [{"generated_text": the messages and the answer}], or the answer's
    text alone with return_full_text=False; a list of such lists for a list of conversations.

    inputs: a text (what a user says), a conversation, or a list of either, which run together.
    What the model marks as reasoning is in "reasoning", not in the answer.
    Raises ConfigError, ContextOverflowError, TemplateError, UnsupportedError.
    """
    check_generates(llm)
    params = generation(llm, options, others=_OTHERS)
    one = isinstance(inputs, str) or is_chat(inputs)
    chats = [
        _messages(each, i) for i, each in enumerate([inputs] if one else sequence(inputs, "inputs"))
    ]
    answers = answered(llm, chats, params, n=num_return_sequences)
    results = []
    for messages, of_this in zip(chats, answers, strict=True):
        results.append([_result(messages, each, full=return_full_text) for each in of_this])
    return results[0] if one else results


def answered(
    llm: LLM, chats: Sequence[Sequence[Message]], params: SamplingParams, *, n: int = 1
) -> list[list[Completion]]:
    """n answers to each conversation; all run together, and none goes on alone if one fails."""
    streams: list[list[Stream]] = []
    try:
        for messages in chats:
            streams.append([])
            for each in samples(params, n):
                streams[-1].append(llm.chat_stream(messages, each))
        return [[_whole(stream) for stream in of_this] for of_this in streams]
    finally:
        for of_this in streams:
            for stream in of_this:
                stream.close()


def _whole(stream: Stream) -> Completion:
    for _ in stream:
        pass
    assert stream.completion is not None
    return stream.completion


def _messages(given: Any, i: int) -> list[Message]:
    if isinstance(given, str):
        [text], _ = listed([given], f"inputs[{i}]")
        return [{"role": "user", "content": text}]
    if not is_chat(given):
        raise ConfigError(
            f"inputs[{i}]: found {type(given).__name__}; allowed is a text or a list of messages "
            'such as {"role": "user", "content": "..."}'
        )
    if given[-1].get("role") == "assistant":
        raise ConfigError(
            f"inputs[{i}]: the last message is the assistant's; going on with it is not possible "
            "here, end with what it shall answer"
        )
    return list(given)


def _result(messages: Sequence[Message], answer: Completion, *, full: bool) -> dict[str, Any]:
    reply: Mapping[str, Any] = {"role": "assistant", "content": answer.text}
    result: dict[str, Any] = {"generated_text": [*messages, dict(reply)] if full else answer.text}
    if answer.reasoning is not None:
        result["reasoning"] = answer.reasoning
    return result
