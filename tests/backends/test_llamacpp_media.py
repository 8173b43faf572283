"""Images and sound through llama.cpp: passed with a projector, refused in plain words without.

The projector is random, so what is said of an image means nothing; that it depends on the image,
and on nothing else, is what is tested.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.tiny_projector import data_url, png, wav, write_listener, write_projector
from insula import LLM
from insula.errors import ConfigError, ContextOverflowError, InsulaError, UnsupportedError

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}
RED, GREEN = data_url(png(255, 0, 0)), data_url(png(0, 255, 0))


def ask(url: str, text: str = "what is it?") -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


def sound(data: str, kind: str = "wav") -> list[dict[str, Any]]:
    part = {"type": "input_audio", "input_audio": {"data": data, "format": kind}}
    return [{"role": "user", "content": [part]}]


@pytest.fixture(scope="module")
def projector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_projector(tmp_path_factory.mktemp("mmproj") / "mmproj.gguf")


@pytest.fixture(scope="module")
def seeing(tiny_model: Path, projector: Path) -> Iterator[LLM]:
    with LLM(tiny_model, mmproj=projector, n_ctx=256, n_threads=1) as llm:
        yield llm


def test_auto_takes_llamacpp_and_says_why(seeing: LLM) -> None:
    assert seeing.model_info.engine == "llamacpp"
    assert "mmproj was given" in seeing.model_info.engine_reason


def test_an_answer_depends_on_the_image(seeing: LLM) -> None:
    red, green = (seeing.chat(ask(url), **GREEDY) for url in (RED, GREEN))
    assert red.token_ids != green.token_ids
    assert seeing.chat(ask(RED), **GREEDY).token_ids == red.token_ids
    assert red.report.completion_tokens == 8
    # The image's four patches are tokens besides those of the text.
    text = seeing.chat([{"role": "user", "content": "what is it?"}], **GREEDY)
    assert red.report.prompt_tokens >= text.report.prompt_tokens + 4


def test_options_and_streams(seeing: LLM) -> None:
    whole = seeing.chat(ask(RED), logprobs=2, **GREEDY)
    assert whole.logprobs is not None
    assert [entry.token_id for entry in whole.logprobs] == list(whole.token_ids)
    chunks = list(seeing.chat_stream(ask(RED), **GREEDY))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    drawn = [seeing.chat(ask(RED), temperature=2.0, max_tokens=8, seed=s).token_ids for s in (1, 2)]
    assert drawn[0] != drawn[1]
    assert seeing.chat(ask(RED), temperature=2.0, max_tokens=8, seed=1).token_ids == drawn[0]


def test_text_alone_gives_what_it_gives_without_a_projector(seeing: LLM, tiny_model: Path) -> None:
    messages = [{"role": "user", "content": "hello"}]
    with LLM(tiny_model, engine="llamacpp", n_ctx=256, n_threads=1) as blind:
        for model in (seeing, blind):
            assert model.tokenize("a <|end|> b") == blind.tokenize("a <|end|> b")
        assert seeing.chat(messages, **GREEDY).text == blind.chat(messages, **GREEDY).text
        prompt = "the quick brown"
        assert seeing.generate(prompt, **GREEDY).text == blind.generate(prompt, **GREEDY).text


def test_an_answer_depends_on_the_sound(tiny_model: Path, tmp_path: Path) -> None:
    low, high = (sound(base64.b64encode(wav(hertz)).decode()) for hertz in (440, 3000))
    listener = write_listener(tmp_path / "listener.gguf")
    with LLM(tiny_model, mmproj=listener, n_ctx=256, n_threads=1) as llm:
        heard = [llm.chat(messages, **GREEDY) for messages in (low, high, low)]
        assert heard[0].text != heard[1].text
        assert heard[0].text == heard[2].text
        assert heard[0].report.prompt_tokens >= 75
        with pytest.raises(InsulaError, match="image input is not supported"):
            llm.chat(ask(RED), **GREEDY)


def test_ids_that_no_text_becomes(seeing: LLM) -> None:
    """With a projector llama.cpp takes text alone."""
    ids = seeing.tokenize("<|end|>", parse_special=False)
    with pytest.raises(UnsupportedError, match="no text becomes these token ids"):
        seeing.generate(ids, **GREEDY)


def test_too_long_a_conversation(seeing: LLM) -> None:
    with pytest.raises(ContextOverflowError) as info:
        seeing.chat(ask(RED, "a b c " * 200), **GREEDY)
    assert info.value.limit == 256
    assert seeing.chat(ask(RED), **GREEDY).token_ids  # and it goes on


class TestRefusals:
    def test_an_engine_that_takes_text_alone(self, shared_llm: LLM, tiny_model: Path) -> None:
        with pytest.raises(UnsupportedError, match="native backend has no vision") as info:
            shared_llm.chat(ask(RED), **GREEDY)
        assert "llamacpp" in str(info.value)
        with pytest.raises(UnsupportedError, match="native backend has no audio"):
            shared_llm.chat(sound("UklGRg=="), **GREEDY)
        with pytest.raises(UnsupportedError, match="native backend has no vision"):
            LLM(tiny_model, engine="native", mmproj="none.gguf")

    def test_a_model_without_its_projector(self, tiny_model: Path) -> None:
        with (
            LLM(tiny_model, engine="llamacpp", n_ctx=64) as llm,
            pytest.raises(UnsupportedError, match="give its file as mmproj="),
        ):
            llm.chat(ask(RED), **GREEDY)

    def test_sessions_take_text_alone(self, seeing: LLM) -> None:
        with (
            seeing.chat_session(**GREEDY) as session,
            pytest.raises(ConfigError, match="a part of type 'image_url'; allowed: text"),
        ):
            session.send(ask(RED)[0])

    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1:9/a.png",
            "https://example.org/a.png",
            "file:///etc/passwd",
            "data:text/plain;base64,AAAA",
            "data:image/png,AAAA",
        ],
    )
    def test_nothing_is_fetched(self, seeing: LLM, url: str) -> None:
        with pytest.raises(ConfigError, match="nothing is fetched"):
            seeing.chat(ask(url), **GREEDY)

    def test_what_is_no_base64(self, seeing: LLM) -> None:
        with pytest.raises(ConfigError, match="not base64"):
            seeing.chat(ask("data:image/png;base64,???"), **GREEDY)

    def test_what_is_no_image(self, seeing: LLM) -> None:
        junk = "data:image/png;base64," + base64.b64encode(b"no image at all").decode()
        with pytest.raises(InsulaError, match=r"llama\.cpp refused"):
            seeing.chat(ask(junk), **GREEDY)
        assert seeing.chat(ask(RED), **GREEDY).token_ids  # and it goes on

    def test_sound_that_the_projector_does_not_take(self, seeing: LLM) -> None:
        with pytest.raises(InsulaError, match="audio input is not supported"):
            seeing.chat(sound(base64.b64encode(b"RIFF").decode()), **GREEDY)

    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            (sound("AAAA", "ogg"), "format of wav, mp3"),
            (sound("?"), "not base64"),
            ([{"role": "user", "content": [{"type": "image_url"}]}], "has no url"),
            (
                [{"role": "user", "content": [{"type": "video"}, *ask(RED)[0]["content"]]}],
                "part of type 'video'",
            ),
        ],
    )
    def test_malformed_parts(self, seeing: LLM, messages: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            seeing.chat(messages, **GREEDY)

    def test_a_file_that_is_no_projector(self, tiny_model: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"architecture 'llama'.*projector"):
            LLM(tiny_model, mmproj=tiny_model)
        junk = tmp_path / "junk.gguf"
        junk.write_bytes(b"GGUF" + bytes(40))
        with pytest.raises(InsulaError):
            LLM(tiny_model, mmproj=junk)

    def test_a_projector_of_another_model(self, tiny_model: Path, tmp_path: Path) -> None:
        other = write_projector(tmp_path / "wide.gguf", n_embd=96)
        with pytest.raises(InsulaError, match=r"could not load tiny\.gguf with wide\.gguf"):
            LLM(tiny_model, mmproj=other, n_ctx=64)
