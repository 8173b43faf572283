"""Images through `Llama`, with the original's chat handlers as the projector's path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.tiny_projector import data_url, png, write_projector
from insula.compat.llama_cpp import Llama
from insula.compat.llama_cpp.llama_chat_format import Llava15ChatHandler, Qwen25VLChatHandler

pytest.importorskip("xllamacpp", reason="the llamacpp extra is not installed")


def ask(colour: tuple[int, int, int]) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": data_url(png(*colour))}}
    return [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, image]}]


@pytest.fixture(scope="module")
def llm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    projector = write_projector(tmp_path_factory.mktemp("mmproj") / "mmproj.gguf")
    handler = Llava15ChatHandler(clip_model_path=str(projector))
    with Llama(str(tiny_model), chat_handler=handler, n_ctx=256, verbose=False) as model:
        yield model


def test_answers_depend_on_the_image(llm: Llama) -> None:
    answers: list[Any] = [
        llm.create_chat_completion(ask(colour), max_tokens=8, temperature=0.0)
        for colour in ((255, 0, 0), (0, 255, 0), (255, 0, 0))
    ]
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert texts[0] == texts[2] != texts[1]
    assert answers[0]["object"] == "chat.completion"
    assert answers[0]["choices"][0]["finish_reason"] == "length"
    assert answers[0]["usage"]["prompt_tokens"] > 4


def test_streams_and_log_probabilities(llm: Llama) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0.0}
    whole: Any = llm.create_chat_completion(
        ask((9, 9, 9)), logprobs=True, top_logprobs=1, **options
    )
    chunks: Any = list(llm.create_chat_completion(ask((9, 9, 9)), stream=True, **options))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert len(whole["choices"][0]["logprobs"]["content"]) > 0


def test_text_alone(llm: Llama) -> None:
    answer: Any = llm.create_chat_completion([{"role": "user", "content": "hi"}], max_tokens=3)
    assert answer["usage"]["completion_tokens"] > 0


def test_refusals(llm: Llama, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tools: cannot be had together with images"):
        llm.create_chat_completion(ask((1, 2, 3)), tools=[{"type": "function"}])
    with pytest.raises(ValueError, match="Clip model path does not exist"):
        Qwen25VLChatHandler(clip_model_path=str(tmp_path / "none.gguf"))
    with (
        Llama(str(tiny_model), n_ctx=64, verbose=False) as blind,
        pytest.raises(ValueError, match="native backend has no vision"),
    ):
        blind.create_chat_completion(ask((1, 2, 3)))
